//! Rotary embedding, into another tensor and in place, forward and backward, against its definition. What it refuses is in `rotary_errors`.

use crate::norms::lie;
use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::edits::mutants;
use crate::support::lie::Lie;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{Operation, Rotary, RotaryPositions};
use ferroflash::reference::{ReferenceRotary, max_abs_difference, tolerance};
use ferroflash::{DType, Device, Element, Indices, Layout, Tensor, bf16, f16};
use kernel_spec::families::rotary::{VARIANTS, find};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// Where positions come from.
#[derive(Clone, Debug)]
enum Positions {
    Offset(usize),
    /// One of these for each batch entry or sequence, in turn.
    Offsets(Vec<i32>),
    /// One of these for each row, in turn.
    Each(Vec<i32>),
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Into,
    InPlace,
    Backward,
    /// Back in place, by the conjugate.
    Back,
}

#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    rows: usize,
    heads: usize,
    columns: usize,
    pairs: usize,
    interleaved: bool,
    /// Starts of packed sequences; whatever numbers.
    starts: Option<Vec<i32>>,
    positions: Positions,
    table_rows: usize,
    /// Tables of f32.
    wide: bool,
    /// Elements before the tables.
    table_offset: usize,
    way: Way,
    lies: [Lie; 2],
    seed: u64,
}

impl Case {
    fn new(rows: usize, heads: usize, columns: usize, pairs: usize) -> Case {
        Case {
            batch: 2,
            rows,
            heads,
            columns,
            pairs,
            interleaved: false,
            starts: None,
            positions: Positions::Offset(3),
            table_rows: rows + 5,
            wide: true,
            table_offset: 0,
            way: Way::Into,
            lies: [Lie::default(); 2],
            seed: 0,
        }
    }

    fn tokens(&self) -> usize {
        if self.starts.is_some() { self.rows } else { self.batch * self.rows }
    }

    fn shape(&self) -> Vec<usize> {
        match self.starts {
            Some(_) => vec![self.rows, self.heads, self.columns],
            None => vec![self.batch, self.rows, self.heads, self.columns],
        }
    }

    fn draw<T: Element>(&self, what: u64, elements: usize) -> Vec<T> {
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_mul(16) + what);
        (0..elements).map(|_| T::from_f64(rng.sample::<f64, _>(StandardNormal))).collect()
    }

    /// Positions of all rows, by a scan.
    fn expected_positions(&self) -> Vec<usize> {
        let nearest = |position: i64| position.clamp(0, self.table_rows as i64 - 1) as usize;
        let first = |sequence: usize| match &self.positions {
            Positions::Offset(offset) => *offset as i64,
            Positions::Offsets(offsets) => i64::from(offsets[sequence % offsets.len()].max(0)),
            Positions::Each(_) => unreachable!("no first"),
        };
        let of_token = |token: usize| match (&self.positions, &self.starts) {
            (Positions::Each(each), _) => nearest(each[token % each.len()].into()),
            (_, None) => nearest(first(token / self.rows) + (token % self.rows) as i64),
            (_, Some(starts)) => {
                let sequences = &starts[..starts.len() - 1];
                let sequence = sequences.iter().rposition(|&start| start.max(0) as usize <= token).unwrap_or(0);
                let row = token.saturating_sub(starts[sequence].max(0) as usize);
                nearest(first(sequence) + row as i64)
            }
        };
        (0..self.tokens()).map(of_token).collect()
    }

    fn run<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        self.checked::<T>(device).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    /// Turns rows into NaN, or where they are, compares with the definition, and gives the result.
    fn checked<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let (tokens, shape) = (self.tokens(), self.shape());
        let row = self.heads * self.columns;
        // The error of the precision is that of some thousand elements, however few the call has.
        let drawn = tokens.max(4096 / row);
        let data = self.draw::<T>(0, drawn * row);
        let numbers = self.table_rows * self.pairs;
        let [cos, sin] = [1, 2].map(|what| self.table::<T>(device, what, numbers));
        let [from, to] = self.lies;
        let in_place = matches!(self.way, Way::InPlace | Way::Back);
        let mut x = from.upload(device, &shape, &data[..tokens * row]);
        let to = if in_place { from } else { to };
        let mut out = to.poisoned::<T>(device, &shape);

        let upload = |numbers: &[i32], count: usize| {
            let all: Vec<i32> = numbers.iter().cycle().take(count).copied().collect();
            Indices::from_slice(device, &all).unwrap()
        };
        let sequences = self.starts.as_ref().map_or(self.batch, |starts| starts.len() - 1);
        let arrays = match &self.positions {
            Positions::Offset(_) => None,
            Positions::Offsets(offsets) => Some(upload(offsets, sequences)),
            Positions::Each(each) => Some(upload(each, tokens)),
        };
        let starts = self.starts.as_ref().map(|starts| Indices::from_slice(device, starts).unwrap());
        let positions = match (&self.positions, &arrays) {
            (Positions::Offset(offset), _) => RotaryPositions::Offset(*offset),
            (Positions::Offsets(_), Some(array)) => RotaryPositions::Offsets(array.view()),
            (_, array) => RotaryPositions::Each(array.as_ref().expect("made above").view()),
        };
        let rotary = Rotary::new(&cos.0.view(), &sin.0.view())
            .with_interleaved(self.interleaved)
            .with_positions(positions)
            .with_starts(starts.as_ref().map(Indices::view));
        let stream = device.default_stream();
        match self.way {
            Way::Into => rotary.forward_into(&stream, &x.view(), &mut out.view_mut()),
            Way::Backward => rotary.backward_into(&stream, &x.view(), &mut out.view_mut()),
            Way::InPlace => rotary.in_place(&stream, &mut x.view_mut()),
            Way::Back => rotary.conjugate().in_place(&stream, &mut x.view_mut()),
        }
        .and_then(|()| stream.synchronize())
        .map_err(|error| error.to_string())?;
        let result = if in_place { x } else { out };

        let reference = ReferenceRotary {
            heads: self.heads,
            columns: self.columns,
            pairs: self.pairs,
            interleaved: self.interleaved,
            conjugate: matches!(self.way, Way::Backward | Way::Back),
            cos: &cos.1,
            sin: &sin.1,
        };
        let mut positions = self.expected_positions();
        positions.extend((tokens..drawn).map(|token| token % self.table_rows));
        let data = to_f64(&data);
        let exact = reference.forward(&data, &positions).unwrap();
        let rounded = reference.forward_rounded(&data, &positions, T::DTYPE).unwrap();
        let found = to.read::<T>("the output", &shape, &result)?;
        let (error, bound) =
            (max_abs_difference(&found, &exact[..found.len()]), tolerance(max_abs_difference(&rounded, &exact)));
        // What is no number is not right either.
        if !error.le(&bound) {
            return Err(format!("the output is off by {error:e}, {bound:e} is accepted"));
        }
        let stays = |index: usize| index % self.columns >= 2 * self.pairs;
        match (0..found.len()).find(|&index| stays(index) && found[index] != data[index]) {
            Some(index) => {
                Err(format!("element {index} is not turned, and is {} in place of {}", found[index], data[index]))
            }
            None => Ok(found),
        }
    }

    /// A table on the device, and its numbers. Not cosines: whatever they are, the equation holds.
    fn table<T: Element>(&self, device: &Device, what: u64, numbers: usize) -> (Tensor, Vec<f64>) {
        let shape = [self.table_rows, self.pairs];
        let lie = Lie { offset: self.table_offset, ..Lie::default() };
        if self.wide {
            let values = self.draw::<f32>(what, numbers);
            (lie.upload(device, &shape, &values), to_f64(&values))
        } else {
            let values = self.draw::<T>(what, numbers);
            (lie.upload(device, &shape, &values), to_f64(&values))
        }
    }
}

/// Heads and columns around what a thread has, in every way of a call and both styles, whole vectors and others.
fn edges_of_threads<T: Element>() {
    let shared = device::shared();
    let chunk = 16 / T::DTYPE.bytes();
    let at_once = find(T::DTYPE).expect("a row").heads as usize;
    let mut turn = 0u64;
    for heads in [1, at_once - 1, at_once, at_once + 1] {
        // All turned; one vector to copy, and two; halves that are no vectors; a pair; an odd column behind.
        for (columns, pairs) in
            [(4 * chunk, 2 * chunk), (3 * chunk, chunk), (4 * chunk, chunk), (2 * chunk + 2, chunk + 1), (2, 1), (7, 3)]
        {
            for way in [Way::Into, Way::InPlace, Way::Backward, Way::Back] {
                turn += 1;
                let case = Case {
                    way,
                    interleaved: turn.is_multiple_of(2),
                    wide: turn.is_multiple_of(3),
                    seed: turn,
                    ..Case::new(3, heads, columns, pairs)
                };
                case.run::<T>(&shared.device).unwrap_or_else(|wrong| panic!("{wrong}"));
                let case = Case { interleaved: !case.interleaved, ..case };
                case.run::<T>(&shared.device).unwrap_or_else(|wrong| panic!("{wrong}"));
            }
        }
    }
}

for_each_dtype!(edges_of_threads);

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1usize..=3, 1usize..=9, 1usize..=9);
    // Whole vectors, with and without columns behind, and any.
    let columns = prop_oneof![
        (1usize..=6, 0usize..=5).prop_map(|(half, rest)| (8 * (2 * half + rest), 8 * half)),
        (1usize..=70, 0usize..=9).prop_map(|(pairs, rest)| (2 * pairs + rest, pairs)),
        Just((128, 64)),
    ];
    let numbers = || prop::collection::vec(-3i32..40, 1..8);
    let positions = prop_oneof![
        2 => (0usize..9).prop_map(Positions::Offset),
        1 => numbers().prop_map(Positions::Offsets),
        1 => numbers().prop_map(Positions::Each),
        1 => Just(Positions::Each(vec![i32::MAX, i32::MIN, 0, -1])),
        1 => Just(Positions::Offsets(vec![i32::MAX, i32::MIN])),
    ];
    // Starts that rise, some of them twice, with the tokens behind the last; what a device holds by mistake is below.
    let starts = prop::option::of(prop::collection::vec(0usize..12, 1..6));
    let way = prop::sample::select(vec![Way::Into, Way::InPlace, Way::Backward, Way::Back]);
    let tables = (any::<bool>(), prop_oneof![Just(0usize), Just(8), 0usize..9], 1usize..20);
    (sizes, columns, any::<bool>(), positions, starts, (way, tables), [lie(), lie()], any::<u64>()).prop_map(
        |(
            (batch, rows, heads),
            (columns, pairs),
            interleaved,
            positions,
            lengths,
            (way, (wide, table_offset, spare)),
            lies,
            seed,
        )| {
            let starts = lengths.filter(|_| !matches!(positions, Positions::Each(_))).map(|lengths| {
                let first = i32::from(seed % 5 == 0);
                lengths.iter().fold(vec![first], |mut starts, &length| {
                    starts.push(starts[starts.len() - 1] + length as i32);
                    starts
                })
            });
            // A host's offset has to be in the tables; numbers on the device need not.
            let offset = if let Positions::Offset(offset) = positions { offset } else { 0 };
            let needed = match (&positions, &starts) {
                (Positions::Offset(_), None) => offset + rows,
                (Positions::Offset(_), Some(_)) => offset + 1,
                _ => 1,
            };
            Case {
                batch,
                rows: if starts.is_some() { 3 * rows } else { rows },
                heads,
                columns,
                pairs,
                interleaved,
                starts,
                positions,
                table_rows: needed + spare - 1,
                wide,
                table_offset,
                way,
                lies,
                seed,
            }
        },
    )
}

fn random_rows_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.run::<T>(&shared.device).map(|_| ()));
}

for_each_dtype!(random_rows_agree_with_the_definition);

/// Numbers on the device that make no sense give some position of the tables, and touch nothing.
#[test]
fn starts_that_do_not_rise_touch_nothing_outside() {
    let device = &device::shared().device;
    let (tokens, pairs, rows) = (20, 4, 6);
    let cos = Tensor::from_slice(device, &vec![1.0f32; rows * pairs], [rows, pairs], Layout::RowMajor).unwrap();
    let sin = Tensor::from_slice(device, &vec![0.0f32; rows * pairs], [rows, pairs], Layout::RowMajor).unwrap();
    let x: Vec<f32> = (0..tokens * 8).map(|i| i as f32).collect();
    let x_tensor = Tensor::from_slice(device, &x, [tokens, 1, 8], Layout::RowMajor).unwrap();
    for starts in
        [vec![9, -5, i32::MAX, 3, i32::MIN], vec![i32::MAX, i32::MAX], vec![-7, -7, -7], vec![5, 4, 3, 2, 1, 0]]
    {
        let offsets = Indices::from_slice(device, &vec![i32::MAX; starts.len() - 1]).unwrap();
        let starts = Indices::from_slice(device, &starts).unwrap();
        let rotary = Rotary::new(&cos.view(), &sin.view())
            .with_starts(starts.view())
            .with_positions(RotaryPositions::Offsets(offsets.view()));
        // All turns of these tables are none.
        assert_eq!(rotary.forward(&x_tensor.view()).unwrap().out.to_vec::<f32>().unwrap(), x);
    }
}

/// Infinities and NaN stay in their pair; numbers of any size are turned.
#[test]
fn extreme_numbers() {
    let device = &device::shared().device;
    let cos = Tensor::from_slice(device, &[0.5f32; 8], [1, 8], Layout::RowMajor).unwrap();
    let sin = Tensor::from_slice(device, &[0.25f32; 8], [1, 8], Layout::RowMajor).unwrap();
    let mut x = [0.0f32; 16];
    let largest = f32::MAX;
    (x[0], x[1], x[2], x[9]) = (f32::NAN, f32::INFINITY, largest, 1e-40);
    let tensor = Tensor::from_slice(device, &x, [1, 1, 16], Layout::RowMajor).unwrap();
    let out = Rotary::new(&cos.view(), &sin.view()).forward(&tensor.view()).unwrap().out.to_vec::<f32>().unwrap();
    assert!(out[0].is_nan() && out[8].is_nan() && out[1] == f32::INFINITY && out[9] == f32::INFINITY);
    assert_eq!([out[2], out[10]], [largest * 0.5, largest * 0.25]);
    assert!((0..16).filter(|i| ![0, 8, 1, 9, 2, 10].contains(i)).all(|i| out[i] == 0.0), "{out:?}");
}

/// Queries and keys of one projection are one call: a view of the heads of both.
#[test]
fn queries_and_keys_of_a_projection_are_one_call() {
    let device = &device::shared().device;
    let (tokens, q_heads, kv_heads, columns) = (6, 4, 2, 32);
    let case = Case::new(tokens, q_heads + 2 * kv_heads, columns, columns / 2);
    let data: Vec<bf16> = case.draw(0, tokens * case.heads * columns);
    let [cos, sin] = [1, 2].map(|what| case.table::<bf16>(device, what, case.table_rows * case.pairs).0);
    let rotary = Rotary::new(&cos.view(), &sin.view());
    let stream = device.default_stream();
    let projection = || Tensor::from_slice(device, &data, [tokens, case.heads, columns], Layout::RowMajor).unwrap();
    let (mut both, mut apart) = (projection(), projection());
    let turn = |tensor: &mut Tensor, heads: std::ops::Range<usize>| {
        let mut view = tensor.view_mut().into_narrow(1, heads).unwrap();
        rotary.in_place(&stream, &mut view).unwrap();
    };
    turn(&mut both, 0..q_heads + kv_heads);
    turn(&mut apart, 0..q_heads);
    turn(&mut apart, q_heads..q_heads + kv_heads);
    let both = both.to_vec::<bf16>().unwrap();
    assert_eq!(both, apart.to_vec::<bf16>().unwrap());
    let values = |data: &[bf16]| {
        data.chunks(columns).skip(q_heads + kv_heads).take(kv_heads).flatten().copied().collect::<Vec<_>>()
    };
    assert_eq!(values(&both), values(&data));
    assert_ne!(both, data);
}

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &device::shared().device;
    let mut x = Tensor::zeros(device, DType::Bf16, [2, 5, 6, 96], Layout::RowMajor).unwrap();
    let table = Tensor::zeros(device, DType::F32, [100, 32], Layout::RowMajor).unwrap();
    let rotary = Rotary::new(&table.view(), &table.view());
    let plan = rotary.plan(&x.view()).unwrap();
    // Four vectors turn and two copy, for two groups of heads of ten tokens: 120 threads.
    assert_eq!((plan.symbols(), plan.steps()[0].ctas, plan.workspace_bytes()), (vec!["rotary_bf16"], 1, 0));
    assert_eq!((plan.name(), plan.bytes()), ("rotary", 2 * 2 * 60 * 96 + 2 * 4 * 10 * 32));
    assert!(plan.reason().contains("32 pairs of columns of both halves") && plan.reason().contains("copied"), "{plan}");
    device.prepare(&plan).unwrap();
    let plan = rotary.with_interleaved(true).plan_in_place(&x.view_mut()).unwrap();
    assert!(plan.reason().contains("neighbours") && plan.reason().contains("left alone"), "{plan}");
    assert_eq!(plan.bytes(), 2 * 2 * 60 * 64 + 2 * 4 * 10 * 32);
    // Nothing to do.
    for shape in [[0, 5, 6, 96], [2, 0, 6, 96], [2, 5, 0, 96]] {
        let none = Tensor::zeros(device, DType::Bf16, shape, Layout::RowMajor).unwrap();
        let turned = rotary.forward(&none.view()).unwrap();
        assert_eq!((turned.plan.steps()[0].ctas, turned.out.shape()[..].to_vec()), (0, shape.to_vec()));
    }
}

/// Nobody waits for anybody, and no number is kept in local memory.
#[test]
fn no_entry_has_local_memory_or_waits() {
    for row in VARIANTS {
        let text = ferroflash::embedded_ptx(&row.entry).expect("every build has it");
        assert!(!text.contains(".local") && mutants(&text).is_empty(), "{}", row.entry.symbol);
    }
}
