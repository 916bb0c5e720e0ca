//! The text that a device compiles: an entry's PTX, edited for the features of a call.
//!
//! A feature that is off leaves no instruction behind: the loads of its slot become constants, and compilers remove what depends on
//! them. It needs no compiler on the user's machine but the driver's, and the emulator checks exactly the text that runs. See
//! [`Features`](crate::Features) for the kernel's side.
//!
//! A program on scores is not compiled into any entry. An entry that accepts one has a hook for every score, a comment that names
//! registers:
//!
//! ```text
//! // score.hook %r1, %r2, %r3, %r4, %r5, %r6, %r7;      score (f32), batch entry, head, query row, key, rows, keys (u32)
//! ```
//!
//! Without a program it stays a comment: the identity. With one, each becomes a block of the program's lines, in which `$s`, `$batch`,
//! `$head`, `$row`, `$key`, `$q_rows` and `$kv_rows` are those registers, `$factor` holds the value of
//! [`PROGRAM`](crate::families::forward::features::PROGRAM) and `$word0` to `$word7` the slots behind
//! [`FIRST_WORD`](crate::families::forward::features::FIRST_WORD) (u64). A block may declare registers of its own, and writes none of those but
//! `$s`:
//!
//! ```text
//! { .reg .f32 far; cvt.rn.f32.u32 far, $key; fma.rn.f32 $s, far, 0fBC000000, $s; }
//! ```
//!
//! The backward pass has another hook, `// score.gradient SLOPE, S, BATCH, ..;`, whose block also writes to `$slope` how the score that comes
//! out grows with the scaled one that goes in.
//!
//! Factor and words are loaded from the parameters, where the hook is in the entry itself; a hook in a function that is called names
//! registers for them too.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::entry::Entry;
use crate::families::forward::features::{DROPOUT, DROPOUT_OFFSET, DROPOUT_SEED, FIRST_WORD, PROGRAM, WORDS};
use crate::features::FeatureSet;

/// A text that cannot be specialised.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecialiseError {
    /// The entry does not run with one of the features.
    NotAccepted {
        /// What was asked for.
        features: FeatureSet,
        /// What the entry accepts.
        accepts: FeatureSet,
    },
    /// A program for an entry without a score hook.
    NoHook,
    /// A load of the features block that reaches over the edge of a slot: no compiler was seen to write one.
    Load {
        /// The line.
        line: String,
    },
}

impl core::fmt::Display for SpecialiseError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            SpecialiseError::NotAccepted { features, accepts } => {
                write!(f, "the entry accepts the features {:#b}, not {:#b}", accepts.bits(), features.bits())
            }
            SpecialiseError::NoHook => f.write_str("a program on scores, and the entry has no score hook"),
            SpecialiseError::Load { line } => {
                write!(f, "a load of the features block that is not the load of one slot: {line}")
            }
        }
    }
}

impl core::error::Error for SpecialiseError {}

type Result<T> = core::result::Result<T, SpecialiseError>;

/// Bytes of a slot.
const SLOT_BYTES: u32 = 8;

/// The text of `entry` with the loads of its features block replaced where they are known.
///
/// The set itself is known always. The value of a slot is known, 0, where the feature is off. A `program` takes the place of every
/// score hook; see [the module](self) for how it is written.
///
/// # Errors
/// [`SpecialiseError::NotAccepted`], [`SpecialiseError::NoHook`], [`SpecialiseError::Load`].
pub fn specialise(text: &str, entry: &Entry, features: FeatureSet, program: Option<&str>) -> Result<String> {
    if !entry.accepts.contains(features) {
        return Err(SpecialiseError::NotAccepted { features, accepts: entry.accepts });
    }
    let block = entry.params_bytes - SLOT_BYTES * (entry.feature_slots + 1);
    let known = |offset: u32| -> Option<u64> {
        let slot = offset.checked_sub(block)? / SLOT_BYTES;
        match slot {
            0 => Some(features.bits().into()),
            // The block is the end of the parameters: what lies behind it is no load of theirs.
            _ if slot > entry.feature_slots => None,
            _ if features.contains(feature_of(slot - 1)) => None,
            _ => Some(0),
        }
    };
    let parameter = format!("[{}_param_0", entry.symbol);
    let mut edited = String::with_capacity(text.len());
    let mut hooks = 0;
    for line in text.split_inclusive('\n') {
        if let Some(load) = ParamLoad::of(line, &parameter) {
            edited += &load.edit(line, block, known)?;
        } else if let (Some(program), Some(hook)) = (program, ScoreHook::of(line)) {
            edited += &hook.run(program, &parameter, block + SLOT_BYTES);
            hooks += 1;
        } else {
            edited += line;
        }
    }
    if program.is_some() && hooks == 0 { Err(SpecialiseError::NoHook) } else { Ok(edited) }
}

/// The feature that a slot belongs to: the words of programs are theirs, and dropout has three.
fn feature_of(slot: u32) -> FeatureSet {
    FeatureSet::of(match slot {
        DROPOUT_SEED | DROPOUT_OFFSET => DROPOUT,
        FIRST_WORD.. => PROGRAM,
        _ => slot,
    })
}

/// `// score.hook S, BATCH, ..;` or `// score.gradient SLOPE, S, BATCH, ..;`, as `cuda_std::math` writes them.
struct ScoreHook<'a> {
    /// What a program calls the first operands; the others are factor and words.
    names: &'static [&'static str],
    operands: Vec<&'a str>,
}

impl<'a> ScoreHook<'a> {
    const OF_SCORES: [&'static str; 7] = ["$s", "$batch", "$head", "$row", "$key", "$q_rows", "$kv_rows"];
    const OF_GRADIENTS: [&'static str; 8] = ["$slope", "$s", "$batch", "$head", "$row", "$key", "$q_rows", "$kv_rows"];

    fn of(line: &'a str) -> Option<ScoreHook<'a>> {
        let line = line.trim().strip_prefix("// score.")?;
        let (names, operands) = match line.strip_prefix("hook ") {
            Some(operands) => (&Self::OF_SCORES[..], operands),
            None => (&Self::OF_GRADIENTS[..], line.strip_prefix("gradient ")?),
        };
        Some(ScoreHook { names, operands: operands.strip_suffix(';')?.split(", ").collect() })
    }

    /// The lines in place of the hook; `values` is where the slots' values start in the parameter.
    fn run(&self, program: &str, parameter: &str, values: u32) -> String {
        let mut code = program.to_owned();
        for (name, register) in self.names.iter().zip(&self.operands) {
            code = code.replace(name, register);
        }
        let words = (0..WORDS as u32).map(|i| (format!("$word{i}"), FIRST_WORD + i));
        let mut loads = String::new();
        for (i, (name, slot)) in core::iter::once(("$factor".to_owned(), PROGRAM)).chain(words).enumerate() {
            if !code.contains(&name) {
                continue;
            }
            let register = match self.operands.get(self.names.len() + i) {
                Some(register) => (*register).to_owned(),
                None => {
                    let (register, offset) = (format!("score_{}", &name[1..]), values + SLOT_BYTES * slot);
                    loads += &format!(".reg .b64 {register}; ld.param.b64 {register}, {parameter}+{offset}]; ");
                    register
                }
            };
            code = code.replace(&name, &register);
        }
        format!("\t{{ {loads}{code} }}\n")
    }
}

/// `ld.param.TYPE REGISTER, [SYMBOL_param_0+OFFSET];`, as LLVM writes it.
struct ParamLoad<'a> {
    type_name: &'a str,
    register: &'a str,
    offset: u32,
}

impl<'a> ParamLoad<'a> {
    fn of(line: &'a str, parameter: &str) -> Option<ParamLoad<'a>> {
        let (type_name, rest) = line.trim_start().strip_prefix("ld.param.")?.split_once(char::is_whitespace)?;
        let (register, address) = rest.trim().rsplit_once(", ")?;
        let offset = address.strip_prefix(parameter)?.split_once(']')?.0;
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        Some(ParamLoad { type_name, register, offset })
    }

    /// The line, or a move of what the load would give.
    fn edit(&self, line: &str, block: u32, known: impl Fn(u32) -> Option<u64>) -> Result<String> {
        let unexpected = || SpecialiseError::Load { line: line.trim().to_owned() };
        let bits = self.type_name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<u32>();
        let inside = self.offset >= block;
        let Ok(bits) = bits else {
            // Vectors: `v2.b64` and the like.
            return if inside { Err(unexpected()) } else { Ok(line.to_owned()) };
        };
        let end = self.offset + bits / 8;
        if !inside {
            return if self.type_name.contains('v') || end > block { Err(unexpected()) } else { Ok(line.to_owned()) };
        }
        let within = self.offset % SLOT_BYTES;
        if within + bits / 8 > SLOT_BYTES {
            return Err(unexpected());
        }
        let Some(value) = known(self.offset) else { return Ok(line.to_owned()) };
        let value = value >> (8 * within) & (u64::MAX >> (u64::BITS - bits));
        // A byte is loaded into a register of 16 bits, as PTX has none of 8.
        let width = bits.max(16);
        Ok(format!("\tmov.b{width} \t{}, {value};\n", self.register))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::entry::Arch;
    use std::string::ToString;

    /// 16 bytes of parameters, then a set and two slots.
    const ENTRY: Entry = Entry {
        symbol: "k",
        arch: Arch::Sm80,
        threads: 32,
        shared_bytes: 0,
        min_ctas: 1,
        params_bytes: 16 + 3 * 8,
        feature_slots: 2,
        accepts: FeatureSet::of(0).union(FeatureSet::of(1)),
        cooperative: false,
        max_cluster: 1,
    };

    fn edited(line: &str, features: FeatureSet) -> Result<String> {
        specialise(&format!("\t{line}\n"), &ENTRY, features, None).map(|text| text.trim().replace(" \t", " "))
    }

    #[test]
    fn loads_outside_the_block_stay() {
        for line in [
            "ld.param.b64 \t%rd1, [k_param_0];",
            "ld.param.b32 %r1, [k_param_0+12];",
            "ld.param.b64 %rd1, [other_param_0+16];",
            // Behind the last slot.
            "ld.param.b64 %rd1, [k_param_0+40];",
            "ld.param.b64 %rd1, [k_param_0+48];",
        ] {
            assert_eq!(edited(line, FeatureSet::NONE).unwrap(), line.replace(" \t", " "));
        }
    }

    #[test]
    fn the_set_is_a_constant_and_so_is_a_slot_that_is_off() {
        let (none, second) = (FeatureSet::NONE, FeatureSet::of(1));
        let set = "ld.param.b64 %rd1, [k_param_0+16];";
        assert_eq!(edited(set, none).unwrap(), "mov.b64 %rd1, 0;");
        assert_eq!(edited(set, second).unwrap(), "mov.b64 %rd1, 2;");
        assert_eq!(edited("ld.param.b32 %r1, [k_param_0+16];", second).unwrap(), "mov.b32 %r1, 2;");
        assert_eq!(edited("ld.param.b8 %rs1, [k_param_0+16];", second).unwrap(), "mov.b16 %rs1, 2;");
        assert_eq!(edited("ld.param.b32 %r1, [k_param_0+20];", second).unwrap(), "mov.b32 %r1, 0;");
        assert_eq!(edited("ld.param.b64 %rd1, [k_param_0+24];", second).unwrap(), "mov.b64 %rd1, 0;");
        let on = "ld.param.b64 %rd1, [k_param_0+32];";
        assert_eq!(edited(on, second).unwrap(), on);
        assert_eq!(edited(on, none).unwrap(), "mov.b64 %rd1, 0;");
    }

    /// The set is loaded byte by byte, too: each is its own part of it.
    #[test]
    fn a_part_of_the_set_is_that_part() {
        let many = FeatureSet::of(0).union(FeatureSet::of(9)).union(FeatureSet::of(18));
        let entry = Entry { params_bytes: 16 + 20 * 8, feature_slots: 19, accepts: many, ..ENTRY };
        for (load, expected) in [
            ("ld.param.b32 %r1, [k_param_0+16];", "mov.b32 %r1, 262657;"),
            ("ld.param.b16 %rs1, [k_param_0+16];", "mov.b16 %rs1, 513;"),
            ("ld.param.b16 %rs1, [k_param_0+18];", "mov.b16 %rs1, 4;"),
            ("ld.param.b8 %rs1, [k_param_0+17];", "mov.b16 %rs1, 2;"),
            ("ld.param.b8 %rs1, [k_param_0+18];", "mov.b16 %rs1, 4;"),
            ("ld.param.b8 %rs1, [k_param_0+19];", "mov.b16 %rs1, 0;"),
        ] {
            let text = specialise(&format!("\t{load}\n"), &entry, many, None).unwrap();
            assert_eq!(text.trim().replace(" \t", " "), expected, "{load}");
        }
    }

    #[test]
    fn loads_across_slots_are_errors() {
        for line in [
            "ld.param.v2.b64 {%rd1, %rd2}, [k_param_0+16];",
            "ld.param.b64 %rd1, [k_param_0+20];",
            "ld.param.b64 %rd1, [k_param_0+12];",
        ] {
            let error = edited(line, FeatureSet::NONE).unwrap_err();
            assert!(matches!(error, SpecialiseError::Load { .. }), "{line}: {error}");
        }
    }

    #[test]
    fn a_program_takes_the_place_of_every_hook() {
        let hook = "// score.hook %r1, %r2, %r3, %r4, %r5, %r6, %r7;";
        let called = hook.replace(';', ", %rd0, %rd1, %rd2, %rd3, %rd4, %rd5, %rd6, %rd7, %rd8;");
        let text = format!("\t{hook}\n\tadd.f32 %r1, %r1, %r1;\n\t{called}\n");
        let entry = Entry { params_bytes: 16 + 18 * 8, feature_slots: 17, ..ENTRY };
        let run = |program| specialise(&text, &entry, FeatureSet::of(PROGRAM), program).unwrap();
        assert_eq!(run(None), text);
        let program =
            "mad.lo.u32 x, $batch, $head, $row; sub.u32 x, $kv_rows, $q_rows; ld.global.f32 $s, [$word1]; mov x, $key;";
        let edited = |word: &str| {
            format!("mad.lo.u32 x, %r2, %r3, %r4; sub.u32 x, %r7, %r6; ld.global.f32 %r1, [{word}]; mov x, %r5;")
        };
        // The block starts at 16; the set has the first slot, words follow nine values.
        let load = ".reg .b64 score_word1; ld.param.b64 score_word1, [k_param_0+104]; ";
        let expected = text
            .replace(&called, &format!("{{ {} }}", edited("%rd2")))
            .replace(hook, &format!("{{ {load}{} }}", edited("score_word1")));
        assert_eq!(run(Some(program)), expected);
        let factor = specialise(&format!("{hook}\n"), &entry, FeatureSet::of(PROGRAM), Some("mov.b64 x, $factor;"));
        let load = ".reg .b64 score_factor; ld.param.b64 score_factor, [k_param_0+32]; mov.b64 x, score_factor;";
        assert_eq!(factor.unwrap(), format!("\t{{ {load} }}\n"));
        assert_eq!(specialise("\tret;\n", &ENTRY, FeatureSet::NONE, Some(program)), Err(SpecialiseError::NoHook));
    }

    /// Words stay loads where there is a program, and are 0 elsewhere.
    #[test]
    fn words_are_the_programs() {
        let entry = Entry { params_bytes: 16 + 18 * 8, feature_slots: 17, ..ENTRY };
        let word = "ld.param.b64 %rd1, [k_param_0+96];";
        let edited = |features| specialise(&format!("{word}\n"), &entry, features, None).unwrap();
        assert_eq!(edited(FeatureSet::of(PROGRAM)).trim(), word);
        assert_eq!(edited(FeatureSet::of(0)).trim(), "mov.b64 \t%rd1, 0;");
    }

    /// Seed and offset stay loads where there is dropout, and are 0 elsewhere.
    #[test]
    fn seed_and_offset_are_those_of_dropout() {
        let accepts = FeatureSet::of(DROPOUT).union(FeatureSet::of(PROGRAM));
        let entry = Entry { params_bytes: 16 + 16 * 8, feature_slots: 15, accepts, ..ENTRY };
        for slot in [DROPOUT, DROPOUT_SEED, DROPOUT_OFFSET] {
            let load = format!("ld.param.b64 %rd1, [k_param_0+{}];", 16 + 8 * (1 + slot));
            let edited = |features| specialise(&format!("{load}\n"), &entry, features, None).unwrap();
            assert_eq!(edited(FeatureSet::of(DROPOUT)).trim(), load);
            assert_eq!(edited(FeatureSet::of(PROGRAM)).trim(), "mov.b64 \t%rd1, 0;");
        }
    }

    #[test]
    fn features_that_the_entry_does_not_accept_are_an_error() {
        let error = edited("ret;", FeatureSet::of(2)).unwrap_err();
        assert_eq!(error.to_string(), "the entry accepts the features 0b11, not 0b100");
    }
}
