//! Programs on scores that cells are measured with, and the tensors that they read.

use super::{Case, Ours, Rows, Workload, attention, launch};
use clap::ValueEnum;
use ferroflash::score::{BoundProgram, Int, ProgramTensor, Scope, ScoreProgram, ScoreShape};
use ferroflash::{Attention, Device, Dims, Error, Indices, Layout, Result, Sizes, Tensor};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fmt;
use std::time::Instant;

/// Bound of the scores in the caps: that of Grok-1, the lowest of published models. Standard normal inputs stay far below it, as scores of models
/// do.
const CAP: f32 = 30.0;

/// Bound of the tight softcap: standard normal inputs meet it in nearly every tile.
const TIGHT_CAP: f32 = 5.0;

/// Keys before and behind a row that have biases of their own in the table of relative positions.
const SPAN: usize = 128;

/// What scores pass through, by its name on the command line and in records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Program {
    /// The built-in softcap, no program: 30 tanh(score / 30)
    Softcap,
    /// The same with a bound that scores come near to: 5 tanh(score / 5)
    TightSoftcap,
    /// Attention sinks, no program: a logit of each head in the denominator of its rows
    Sink,
    /// The library's ALiBi: score - slopes[head] |position - key|
    Alibi,
    /// The softcap as a program
    TanhCap,
    /// A table of relative positions: score + table[head, key - position], 128 keys to each side
    Relative,
    /// A decay with the distance: score - slopes[head] ln(1 + |position - key|)
    Decay,
    /// Documents: keys of the row's own, by a tensor of ids
    Documents,
    /// The first sixteenth of the keys, and the eighth of them before the row and the row's own
    Prefix,
    /// Tokens of a square picture, line by line: keys up to an eighth of its width away, down and across
    Neighbourhood,
}

impl Program {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Program::Softcap => "softcap",
            Program::TightSoftcap => "tight-softcap",
            Program::Sink => "sink",
            Program::Alibi => "alibi",
            Program::TanhCap => "tanh-cap",
            Program::Relative => "relative",
            Program::Decay => "decay",
            Program::Documents => "documents",
            Program::Prefix => "prefix",
            Program::Neighbourhood => "neighbourhood",
        }
    }

    /// Its name for peers, to whom a bound is a number.
    pub(crate) fn peer_name(self) -> &'static str {
        if self == Program::TightSoftcap { Program::Softcap.name() } else { self.name() }
    }

    /// Bound of the scores, where it has one.
    pub(crate) fn cap(self) -> f32 {
        if self == Program::TightSoftcap { TIGHT_CAP } else { CAP }
    }

    /// Whether it is a softcap of the library.
    fn is_softcap(self) -> bool {
        matches!(self, Program::Softcap | Program::TightSoftcap)
    }

    /// The whole numbers that it has for this many keys, by name.
    pub(crate) fn numbers(self, keys: usize) -> Vec<(&'static str, usize)> {
        match self {
            Program::Relative => vec![("span", SPAN)],
            Program::Prefix => vec![("prefix", keys.div_ceil(16)), ("window", keys.div_ceil(8))],
            Program::Neighbourhood => {
                let width = keys.isqrt();
                vec![("width", width), ("reach", width.div_ceil(8))]
            }
            _ => Vec::new(),
        }
    }

    /// One of them, as programs take it; the library takes fewer than 2^31 rows.
    fn number(self, name: &str, keys: usize) -> i32 {
        let numbers = self.numbers(keys);
        numbers.iter().find(|number| number.0 == name).expect("a number of the program").1 as i32
    }

    /// Type and shape of the tensor that it reads, if it reads one.
    pub(crate) fn tensor(self, sizes: &Sizes) -> Option<(&'static str, Vec<usize>)> {
        let Sizes { batch, kv_rows, q_heads: heads, .. } = *sizes;
        match self {
            Program::Alibi => Some(("f32", vec![1, heads])),
            Program::Decay | Program::Sink => Some(("f32", vec![heads])),
            Program::Relative => Some(("f32", vec![heads, 2 * SPAN + 1])),
            Program::Documents => Some(("i32", vec![batch, kv_rows])),
            Program::Softcap | Program::TightSoftcap | Program::TanhCap | Program::Prefix | Program::Neighbourhood => {
                None
            }
        }
    }

    /// The program for the sizes of a case, in the terms of a part of it; `None` of what is no program.
    fn written(self, sizes: &Sizes, part: Option<Place>) -> Result<Option<ScoreProgram>> {
        let number = |name| self.number(name, sizes.kv_rows);
        let program = match self {
            Program::Softcap | Program::TightSoftcap | Program::Sink => return Ok(None),
            Program::Alibi if part.is_none() => ScoreProgram::alibi(),
            Program::Alibi => ScoreProgram::new(self.name(), |p| {
                let distance = (Place::position(part, p) - p.key()).abs().to_float();
                p.score() - p.floats("slopes").at([p.int_constant(0), Place::head(part, p)]) * distance
            })?,
            Program::TanhCap => ScoreProgram::new(self.name(), |p| CAP * (p.score() / CAP).tanh())?,
            Program::Relative => ScoreProgram::new(self.name(), |p| {
                let span = number("span");
                let distance =
                    (p.key() - Place::position(part, p)).max(p.int_constant(-span)).min(p.int_constant(span));
                p.score() + p.floats("table").at([Place::head(part, p), distance + span])
            })?,
            Program::Decay => ScoreProgram::new(self.name(), |p| {
                let distance = (Place::position(part, p) - p.key()).abs().to_float();
                p.score() - p.floats("slopes").at([Place::head(part, p)]) * (distance + 1.0).ln()
            })?,
            Program::Documents => ScoreProgram::mask(self.name(), |p| {
                let (ids, batch) = (p.ints("ids"), Place::batch(part, p));
                ids.at([batch, Place::position(part, p)]).eq(ids.at([batch, p.key()]))
            })?,
            Program::Prefix => ScoreProgram::mask(self.name(), |p| {
                let (position, key) = (Place::position(part, p), p.key());
                let near = key.le(position) & (position - key).le(p.int_constant(number("window")));
                key.lt(p.int_constant(number("prefix"))) | near
            })?,
            Program::Neighbourhood => ScoreProgram::mask(self.name(), |p| {
                let (position, key, width) = (Place::position(part, p), p.key(), number("width"));
                let down = (position.div_floor(width) - key.div_floor(width)).abs();
                let across = (position.rem_floor(width) - key.rem_floor(width)).abs();
                down.max(across).le(p.int_constant(number("reach")))
            })?,
        };
        Ok(Some(program))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a part of a problem begins, when it is computed as a problem of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) batch: usize,
    pub(super) head: usize,
    /// Of the first row: the last key that it sees under a causal mask.
    pub(super) position: i64,
}

impl Place {
    fn batch<'p>(part: Option<Place>, p: &'p Scope) -> Int<'p> {
        part.map_or(p.batch(), |part| p.batch() + part.batch as i32)
    }

    fn head<'p>(part: Option<Place>, p: &'p Scope) -> Int<'p> {
        part.map_or(p.head(), |part| p.head() + part.head as i32)
    }

    fn position<'p>(part: Option<Place>, p: &'p Scope) -> Int<'p> {
        part.map_or(p.position(), |part| p.row() + part.position as i32)
    }
}

/// The tensor that a program reads, or that stands in its place.
enum Read {
    Nothing,
    Sinks(Tensor),
    Floats(&'static str, Tensor),
    Ints(&'static str, Indices, [usize; 2]),
}

/// The program of a case, and what it reads on the device.
pub(super) struct Scores {
    program: Option<Program>,
    sizes: Sizes,
    /// Whether sequences are of equal length, each in memory of its own: blocks are theirs.
    uniform: bool,
    read: Read,
}

impl Scores {
    /// Draws and uploads what the program of a case reads.
    pub(super) fn new(device: &Device, case: &Case, seed: u64) -> Result<Scores> {
        let Sizes { batch, kv_rows, q_heads: heads, .. } = case.problem;
        let floats = |name, values: &[f32], shape: Dims| {
            let tensor = Tensor::from_slice(device, values, shape, Layout::RowMajor)?;
            Ok::<_, Error>(Read::Floats(name, tensor))
        };
        // Far from the seeds of the inputs.
        let mut rng = SmallRng::seed_from_u64(!seed);
        // Those of the paper for heads that are a power of two: 1/2 to 1/256 for 8 of them.
        let slopes: Vec<f32> = (1..=heads).map(|head| (-8.0 * head as f32 / heads as f32).exp2()).collect();
        let read = match case.program {
            Some(Program::Sink) => {
                // From a row that sees one key to one that sees hundreds they have a share. Peers take them in bf16, which holds quarters.
                let sinks: Vec<f32> = (0..heads).map(|_| rng.random_range(-8..24) as f32 / 4.0).collect();
                Read::Sinks(Tensor::from_slice(device, &sinks, Dims::from([heads]), Layout::RowMajor)?)
            }
            Some(Program::Alibi) => floats("slopes", &slopes, [1, heads].into())?,
            Some(Program::Decay) => floats("slopes", &slopes, [heads].into())?,
            Some(Program::Relative) => {
                let width = 2 * SPAN + 1;
                let table: Vec<f32> = (0..heads * width).map(|_| rng.random_range(-2.0..2.0)).collect();
                floats("table", &table, [heads, width].into())?
            }
            Some(Program::Documents) => {
                let ids = documents(batch, kv_rows, &mut rng);
                Read::Ints("ids", Indices::from_slice(device, &ids)?, [batch, kv_rows])
            }
            Some(
                Program::Softcap | Program::TightSoftcap | Program::TanhCap | Program::Prefix | Program::Neighbourhood,
            )
            | None => Read::Nothing,
        };
        Ok(Scores { program: case.program, sizes: case.problem, uniform: matches!(case.rows, Rows::Equal), read })
    }

    /// The program with its tensors, if there is one; for the reference of a part of the problem in the terms of that part.
    pub(super) fn bind(&self, part: Option<Place>) -> Result<Option<BoundProgram<'_>>> {
        let program = self.program.map(|program| program.written(&self.sizes, part)).transpose()?.flatten();
        let tensors = match &self.read {
            Read::Nothing | Read::Sinks(_) => Vec::new(),
            Read::Floats(name, tensor) => vec![(*name, ProgramTensor::from(tensor.view()))],
            Read::Ints(name, ids, shape) => vec![(*name, ProgramTensor::ints(ids.view(), *shape)?)],
        };
        program.map(|program| program.bind(&tensors)).transpose()
    }

    /// Has scores pass through this program, and the softcap or the sinks where they are asked for.
    pub(super) fn apply<'a>(&'a self, attention: Attention<'a>, bound: Option<&'a BoundProgram<'a>>) -> Attention<'a> {
        let cap = self.program.filter(|program| program.is_softcap()).map(Program::cap);
        let attention = attention.with_softcap(cap);
        let attention = match &self.read {
            Read::Sinks(sinks) => attention.with_sink(&sinks.view()),
            _ => attention,
        };
        match bound {
            Some(bound) => attention.with_program(bound),
            None => attention,
        }
    }

    /// [`Self::apply`] to a part of the problem, with the program in the terms of that part.
    pub(super) fn apply_to_part<'a>(
        &'a self,
        attention: Attention<'a>,
        bound: Option<&'a BoundProgram<'a>>,
        part: Option<Place>,
    ) -> Result<Attention<'a>> {
        let attention = self.apply(attention, bound);
        match (&self.read, part) {
            (Read::Sinks(sinks), Some(Place { head, .. })) => {
                Ok(attention.with_sink(&sinks.view().narrow(0, head..head + 1)?))
            }
            _ => Ok(attention),
        }
    }

    /// [`Self::bind`] of the whole problem, with the blocks that it hides where it hides any: forward attention passes over them.
    pub(super) fn bind_with_blocks(&self, device: &Device) -> Result<Option<BoundProgram<'_>>> {
        let hides = matches!(self.program, Some(Program::Documents | Program::Prefix | Program::Neighbourhood));
        let hides = hides && self.uniform;
        let Sizes { batch, q_heads: heads, q_rows, kv_rows, .. } = self.sizes;
        let shape = ScoreShape { batch, heads, q_rows, kv_rows };
        match self.bind(None)? {
            Some(bound) if hides => Ok(Some(bound.with_blocks(device, shape)?)),
            bound => Ok(bound),
        }
    }

    /// The bytes of the tensor, numbers of 32 bits.
    pub(super) fn bytes(&self) -> Result<Option<Vec<u8>>> {
        Ok(match &self.read {
            Read::Nothing => None,
            Read::Floats(_, tensor) | Read::Sinks(tensor) => {
                Some(bytemuck::cast_slice(&tensor.to_vec::<f32>()?).to_vec())
            }
            Read::Ints(_, ids, _) => Some(bytemuck::cast_slice(&ids.to_vec()?).to_vec()),
        })
    }
}

impl Workload {
    /// What the driver compiles for the program of the case: equal where the kernels are. `None` without one.
    pub(crate) fn program_text(&self, ours: Ours) -> Result<Option<String>> {
        let Case { program, mask, problem: Sizes { dtype, head_dim, .. }, .. } = self.case;
        let Some(program) = program else { return Ok(None) };
        let bound = self.scores.bind(None)?;
        let text = bound.as_ref().map_or("", |bound| bound.text());
        Ok(Some(format!("{ours} {dtype} {head_dim} {mask:?} {program}\n{text}")))
    }

    /// Milliseconds on the host from the program of the case to the result of one launch: lowering, choosing and specialising kernels,
    /// compiling those that are not loaded, and running them.
    pub(crate) fn result_ms(&mut self, ours: Ours) -> Result<f64> {
        self.stream.synchronize()?;
        let start = Instant::now();
        let bound = self.scores.bind_with_blocks(&self.device)?;
        let attention = self.scores.apply(attention(&self.case, ours), bound.as_ref());
        let (set, lse, numbers) = (&mut self.sets[0], &mut self.lse, self.numbers.as_ref());
        launch(&attention, self.pass, &self.stream, set, lse, numbers, None)?;
        self.stream.synchronize()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// Ids of the documents that keys belong to, `[batch, key]`, from 0 on: eight of a sequence in the mean, of drawn lengths.
fn documents(batch: usize, keys: usize, rng: &mut SmallRng) -> Vec<i32> {
    let of_a_sequence = |_| {
        let longest = keys.div_ceil(4);
        let (mut ids, mut id) = (Vec::with_capacity(keys), 0);
        while ids.len() < keys {
            let rows = rng.random_range(1..=longest).min(keys - ids.len());
            ids.extend(std::iter::repeat_n(id, rows));
            id += 1;
        }
        ids
    };
    (0..batch).flat_map(of_a_sequence).collect()
}

#[cfg(test)]
mod tests {
    use super::super::case::tests::case;
    use super::*;
    use kernel_spec::Mask;

    #[test]
    fn names_are_those_of_the_command_line() {
        for program in Program::value_variants() {
            assert_eq!(program.to_possible_value().unwrap().get_name(), program.name());
        }
    }

    #[test]
    fn every_document_has_keys_and_the_first_is_0() {
        let ids = documents(2, 100, &mut SmallRng::seed_from_u64(1));
        assert_eq!(ids.len(), 200);
        for ids in ids.chunks(100) {
            assert!(ids[0] == 0 && ids.windows(2).all(|pair| (0..=1).contains(&(pair[1] - pair[0]))), "{ids:?}");
            assert!(ids[99] > 1, "{ids:?}");
        }
        assert_eq!(documents(1, 1, &mut SmallRng::seed_from_u64(1)), [0]);
    }

    /// A program in the terms of a part prints other places, and reads the same.
    #[test]
    fn parts_have_programs_of_their_own() {
        let device = Device::emulator().unwrap();
        let place = Place { batch: 1, head: 2, position: 30 };
        for &program in Program::value_variants() {
            let case = Case { program: Some(program), ..case(2, 64, 4, Mask::Full) };
            let scores = Scores::new(&device, &case, 3).unwrap();
            let [whole, part] = [None, Some(place)].map(|part| scores.bind(part).unwrap());
            let texts = whole.zip(part).map(|(whole, part)| (format!("{:?}", whole), format!("{:?}", part)));
            match program {
                Program::Softcap | Program::TightSoftcap | Program::Sink => assert_eq!(texts, None),
                Program::TanhCap => assert!(texts.is_some_and(|(whole, part)| whole == part)),
                _ => assert!(texts.is_some_and(|(whole, part)| whole != part), "{program}"),
            }
        }
    }
}
