//! The table that `VALIDATION.md` is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::cases::{Case, Compare, THREADS, agrees};
use super::workers::Outcome;
use super::{Emulated, Error};

/// Differing words that the table shows of one case.
const EXAMPLES: usize = 8;

/// What the comparison of one case gave.
enum Verdict {
    Agree,
    /// The lines say how.
    Differ(String),
    /// The GPU has not run it.
    Open,
}

/// The table, of the outcomes that there are.
pub(super) fn table(
    list: &[Case],
    emulated: &[Emulated],
    gpu: Option<(&str, &[Option<Outcome>])>,
) -> Result<String, Error> {
    let mut families: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, c) in list.iter().enumerate() {
        families.entry(c.family).or_default().push(i);
    }
    let mut text = String::from(
        "# What of the emulator was compared, and how\n\n\
         Written by `cargo run --release -p ptx_emu --example validation`; do not edit.\n\n",
    );
    match gpu {
        Some((device, _)) => writeln!(text, "GPU: {device}, the same PTX and inputs on both.\n")?,
        None => writeln!(text, "No GPU was there: the last columns are empty.\n")?,
    }
    writeln!(
        text,
        "{THREADS} threads run each instruction, on corner values and random bits. *Definition* counts the instructions\n\
         that a test compares bit for bit with an independent definition on the host. Where the last columns are empty, no GPU has run\n\
         the instructions yet.\n"
    )?;
    writeln!(text, "| family | instructions | definition | compared by | GPU: agree | GPU: differ |")?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- |")?;
    let mut differences = String::new();
    for (family, indices) in &families {
        let (mut agree, mut differ) = (0, 0);
        let mut by = Vec::new();
        for &i in indices {
            let case = &list[i];
            let how = measure(case.compare);
            if !by.contains(&how) {
                by.push(how);
            }
            match judge(case, &emulated[i], gpu.and_then(|(_, outcomes)| outcomes[i].as_ref()))? {
                Verdict::Agree => agree += 1,
                Verdict::Open => {}
                Verdict::Differ(how) => {
                    differ += 1;
                    writeln!(differences, "- case {i}, `{}`: {how}", shorten(case))?;
                }
            }
        }
        let defined = indices.iter().filter(|&&i| list[i].reference.is_some() || list[i].definition.is_some()).count();
        let ran = agree + differ > 0;
        let (a, d) = if gpu.is_some() && ran { (agree.to_string(), differ.to_string()) } else { Default::default() };
        writeln!(text, "| {family} | {} | {defined} | {} | {a} | {d} |", indices.len(), by.join(", "))?;
    }
    if !differences.is_empty() {
        write!(text, "\n## Differences\n\n{differences}")?;
    }
    text.push_str(
        "\n## Covered by other tests\n\n\
         Races, missing waits and fences, deadlocks, and the orderings between threads, warps and CTAs are no matter of bits:\n\
         `tests/mutations.rs` runs six kernels with exact results under 1000 seeds each, and breaks them in more than sixty\n\
         ways. `tests/hopper.rs` compares tensor copies and `wgmma` with plain definitions.\n\n\
         Never compared with a GPU: `tests/wmma.rs` has `wmma` of f16 and bf16 against plain sums, in every shape, layout and type;\n\
         `tests/language.rs` has minima and maxima of three and `discard`, `tests/host.rs` has `vprintf` and `__assertfail`, whose\n\
         formats `src/host.rs` compares with what C says; `src/alu/directed.rs` has directed rounding at the ends of the range, and\n\
         `src/alu/defined` which bits are known.\n",
    );
    Ok(text)
}

/// By what a case is compared.
fn measure(compare: Compare) -> String {
    match compare {
        Compare::Bits => "bits".to_owned(),
        Compare::Ulps(n) => format!("{n} ulp"),
        Compare::HalfUlps { units, .. } => format!("{units} ulp"),
        Compare::Absolute(d) => format!("{d:e} absolute"),
        Compare::Refused => "refusal".to_owned(),
        Compare::Lg2 => "2^-22 absolute in (0.5, 2) and relative elsewhere".to_owned(),
    }
}

/// Compares the two results of a case.
fn judge(case: &Case, ours: &Emulated, theirs: Option<&Outcome>) -> Result<Verdict, Error> {
    let refused = case.compare == Compare::Refused;
    let ours = match ours {
        Emulated::Failed(why) if !refused => return Ok(Verdict::Differ(format!("the emulator: {why}"))),
        Emulated::Words(_) if refused => return Ok(Verdict::Differ("the emulator runs it".to_owned())),
        Emulated::Failed(_) => &[][..],
        Emulated::Words(words) => words,
    };
    match theirs {
        None | Some(Outcome::Skipped) => Ok(Verdict::Open),
        Some(Outcome::Failed(_)) if refused => Ok(Verdict::Agree),
        Some(Outcome::Failed(why)) => Ok(Verdict::Differ(why.clone())),
        Some(Outcome::Words(_)) if refused => {
            Ok(Verdict::Differ("the emulator refuses it, the GPU runs it".to_owned()))
        }
        Some(Outcome::Words(theirs)) => compare(case, ours, theirs),
    }
}

fn compare(case: &Case, ours: &[u32], theirs: &[u32]) -> Result<Verdict, Error> {
    let inputs = case.inputs();
    let wrong: Vec<usize> =
        (0..ours.len()).filter(|&k| !agrees(case.compare, &inputs[k / 4], ours[k], theirs[k])).collect();
    if wrong.is_empty() {
        return Ok(Verdict::Agree);
    }
    let mut how = format!("{} of {} words", wrong.len(), ours.len());
    // One line for each pair of words, as far as a reader wants to go.
    let mut shown = BTreeSet::new();
    for k in wrong.into_iter().filter(|&k| shown.insert((k % 4, ours[k], theirs[k]))).take(EXAMPLES) {
        write!(
            how,
            "\n  - thread {}, inputs {:x?}, word {}: emulator {:#x}, GPU {:#x}",
            k / 4,
            inputs[k / 4],
            k % 4,
            ours[k],
            theirs[k]
        )?;
    }
    Ok(Verdict::Differ(how))
}

/// A body on one line; of a long one only what makes it differ from others of its family.
fn shorten(case: &Case) -> String {
    const TELLING: [&str; 4] = ["wgmma.mma_async", "bulk", "add.s64 %la, %lb", "add.s64 %lb, %lb"];
    // What every case of clusters has.
    const COMMON: [&str; 3] = ["mapa.shared::cluster.u32 %t3", "mapa.shared::cluster.u32 %t6", "barrier.cluster"];
    let whole = case.body.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut line = whole.clone();
    if case.cluster != 0 {
        let telling =
            whole.split_inclusive(';').filter(|s| s.contains("cluster") && !COMMON.iter().any(|c| s.contains(c)));
        line = format!("{} in clusters of {}", telling.collect::<String>().trim(), case.cluster);
    } else if whole.len() > 400 {
        let telling =
            whole.split_inclusive(';').filter(|s| TELLING.iter().any(|t| s.contains(t)) && !s.contains("t_group"));
        // The accumulators' names say nothing.
        let telling = telling.map(|s| match (s.find("{%w0"), s.find("}, ")) {
            (Some(from), Some(to)) if from < to => format!("{}{{..{}", &s[..from], &s[to..]),
            _ => s.to_owned(),
        });
        line = telling.collect::<String>().trim().to_owned();
    }
    if let Some(tensor) = &case.tensor {
        write!(line, " of {tensor:?}").expect("a string takes all");
    }
    line
}
