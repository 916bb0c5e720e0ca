//! Programs on scores: random ones, drawn from a grammar, and well-known ones with what they mean in plain Rust.

use ferroflash::score::{Bool, BoundProgram, Float, Int, ProgramTensor, Scope, ScoreProgram};
use ferroflash::{Device, Indices, Layout, Tensor, f16};
use proptest::prelude::*;

/// Binds a program for as long as the tests run.
pub(crate) fn leak(
    program: ScoreProgram,
    tensors: Vec<(&'static str, ProgramTensor<'static>)>,
) -> &'static BoundProgram<'static> {
    Box::leak(Box::new(program.bind(&tensors).expect("the program's tensors")))
}

/// A number of a random program. Values stay small, so that f32 carries them, and nothing jumps where a score moves a little.
#[derive(Clone, Debug)]
pub(crate) enum Number {
    Score,
    Constant(f32),
    Whole(Box<Whole>),
    Slope(Box<Whole>),
    Bias(Box<[Whole; 2]>),
    Unary(u8, Box<Number>),
    Binary(u8, Box<[Number; 2]>),
    Select(Box<Condition>, Box<[Number; 2]>),
    /// Hidden elsewhere: only as the whole program.
    Seen(Box<Condition>, Box<Number>),
}

/// A whole number.
#[derive(Clone, Debug)]
pub(crate) enum Whole {
    Axis(u8),
    Constant(i32),
    Id(Box<[Whole; 2]>),
    Binary(u8, Box<[Whole; 2]>),
    Division(bool, Box<Whole>, i32),
    Select(Box<Condition>, Box<[Whole; 2]>),
}

/// A condition, of whole numbers alone.
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    Compare(u8, Box<[Whole; 2]>),
    CompareFloats(u8, Box<Whole>, f32),
    Both(bool, Box<[Condition; 2]>),
    Not(Box<Condition>),
    Constant(bool),
}

impl Number {
    pub(crate) fn write<'p>(&self, p: &'p Scope) -> Float<'p> {
        match self {
            Number::Score => p.score(),
            Number::Constant(x) => p.constant(*x),
            // Up to 1.6 in magnitude.
            Number::Whole(x) => x.write(p).rem_floor(17).to_float() * 0.1,
            Number::Slope(x) => p.floats("slopes").at([x.write(p)]),
            Number::Bias(x) => p.floats("bias").at([x[0].write(p), x[1].write(p)]),
            Number::Unary(which, x) => {
                let x = x.write(p);
                match which % 7 {
                    0 => -x,
                    1 => x.abs(),
                    2 => (-x.abs()).exp(),
                    3 => (x.abs() + 1.0).ln(),
                    4 => (x.abs() + 0.5).sqrt(),
                    5 => x.tanh(),
                    _ => x.sigmoid(),
                }
            }
            Number::Binary(which, x) => {
                let (a, b) = (x[0].write(p), x[1].write(p));
                match which % 6 {
                    0 => a + b,
                    1 => a - b,
                    2 => a * b.tanh(),
                    3 => a / (b.abs() + 1.0),
                    4 => a.min(b),
                    _ => a.max(b),
                }
            }
            Number::Select(condition, x) => condition.write(p).select(x[0].write(p), x[1].write(p)),
            Number::Seen(condition, x) => condition.write(p).select(x.write(p), p.hidden()),
        }
    }
}

impl Whole {
    fn write<'p>(&self, p: &'p Scope) -> Int<'p> {
        match self {
            Whole::Axis(which) => match which % 7 {
                0 => p.batch(),
                1 => p.head(),
                2 => p.row(),
                3 => p.key(),
                4 => p.q_rows(),
                5 => p.kv_rows(),
                _ => p.position(),
            },
            Whole::Constant(x) => p.int_constant(*x),
            Whole::Id(x) => p.ints("ids").at([x[0].write(p), x[1].write(p)]),
            Whole::Binary(which, x) => {
                let (a, b) = (x[0].write(p), x[1].write(p));
                match which % 6 {
                    0 => a + b,
                    1 => a - b,
                    2 => a * b,
                    3 => a.min(b),
                    4 => a.max(b),
                    _ => (a - b).abs(),
                }
            }
            Whole::Division(false, x, by) => x.write(p).div_floor(*by),
            Whole::Division(true, x, by) => x.write(p).rem_floor(*by),
            Whole::Select(condition, x) => condition.write(p).select_int(x[0].write(p), x[1].write(p)),
        }
    }
}

impl Condition {
    fn write<'p>(&self, p: &'p Scope) -> Bool<'p> {
        match self {
            Condition::Compare(which, x) => {
                let (a, b) = (x[0].write(p), x[1].write(p));
                match which % 6 {
                    0 => a.lt(b),
                    1 => a.le(b),
                    2 => a.eq(b),
                    3 => a.ne(b),
                    4 => a.gt(b),
                    _ => a.ge(b),
                }
            }
            // Exact below 2^24.
            Condition::CompareFloats(which, x, constant) => {
                let (a, b) = (x.write(p).rem_floor(1000).to_float(), p.constant(*constant));
                match which % 4 {
                    0 => a.lt(b),
                    1 => a.le(b),
                    2 => a.gt(b),
                    _ => a.ge(b),
                }
            }
            Condition::Both(and, x) => {
                let (a, b) = (x[0].write(p), x[1].write(p));
                if *and { a & b } else { a | b }
            }
            Condition::Not(x) => !x.write(p),
            Condition::Constant(x) => p.bool_constant(*x),
        }
    }
}

fn whole() -> BoxedStrategy<Whole> {
    let leaf = prop_oneof![4 => any::<u8>().prop_map(Whole::Axis), 1 => (-20..40).prop_map(Whole::Constant)];
    leaf.prop_recursive(3, 12, 2, |inner| {
        let two = || [inner.clone(), inner.clone()].prop_map(Box::new);
        let compare = (any::<u8>(), two()).prop_map(|(which, x)| Condition::Compare(which, x));
        prop_oneof![
            3 => (any::<u8>(), two()).prop_map(|(which, x)| Whole::Binary(which, x)),
            1 => (any::<bool>(), inner.clone(), 1..20).prop_map(|(rest, x, by)| Whole::Division(rest, Box::new(x), by)),
            1 => two().prop_map(Whole::Id),
            1 => (compare, two()).prop_map(|(condition, x)| Whole::Select(Box::new(condition), x)),
        ]
    })
    .boxed()
}

pub(crate) fn condition() -> BoxedStrategy<Condition> {
    let two = [whole(), whole()].prop_map(Box::new);
    let leaf = prop_oneof![
        6 => (any::<u8>(), two).prop_map(|(which, x)| Condition::Compare(which, x)),
        2 => (any::<u8>(), whole(), (0..100).prop_map(|x| x as f32 / 2.0))
            .prop_map(|(which, x, constant)| Condition::CompareFloats(which, Box::new(x), constant)),
        1 => any::<bool>().prop_map(Condition::Constant),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            2 => (any::<bool>(), [inner.clone(), inner.clone()]).prop_map(|(and, x)| Condition::Both(and, Box::new(x))),
            1 => inner.prop_map(|x| Condition::Not(Box::new(x))),
        ]
    })
    .boxed()
}

/// A random program.
pub(crate) fn random() -> impl Strategy<Value = Number> {
    let leaf = prop_oneof![
        5 => Just(Number::Score),
        1 => (-20..20).prop_map(|x| Number::Constant(x as f32 / 8.0)),
        2 => whole().prop_map(|x| Number::Whole(Box::new(x))),
        1 => whole().prop_map(|x| Number::Slope(Box::new(x))),
        1 => [whole(), whole()].prop_map(|x| Number::Bias(Box::new(x))),
    ];
    let number = leaf.prop_recursive(4, 16, 2, |inner| {
        let two = || [inner.clone(), inner.clone()].prop_map(Box::new);
        prop_oneof![
            2 => (any::<u8>(), inner.clone()).prop_map(|(which, x)| Number::Unary(which, Box::new(x))),
            4 => (any::<u8>(), two()).prop_map(|(which, x)| Number::Binary(which, x)),
            1 => (condition(), two()).prop_map(|(condition, x)| Number::Select(Box::new(condition), x)),
        ]
    });
    // All tensors are read, and some programs hide keys.
    (number, prop::option::weighted(0.4, condition())).prop_map(|(number, seen)| {
        let with = |number, other| Number::Binary(0, Box::new([number, other]));
        let id = Whole::Id(Box::new([Whole::Axis(0), Whole::Axis(3)]));
        let number = with(number, Number::Slope(Box::new(Whole::Axis(1))));
        let number = with(number, Number::Bias(Box::new([Whole::Axis(2), Whole::Axis(3)])));
        let number = with(number, Number::Whole(Box::new(id)));
        match seen {
            Some(condition) => Number::Seen(Box::new(condition), Box::new(number)),
            None => number,
        }
    })
}

/// What random programs read: tensors that end before rows and keys do, one of which has gaps, and one an axis of extent 1.
pub(crate) fn tensors(device: &'static Device) -> Vec<(&'static str, ProgramTensor<'static>)> {
    static TENSORS: std::sync::OnceLock<(Tensor, Tensor, Indices)> = std::sync::OnceLock::new();
    let (slopes, bias, ids) = TENSORS.get_or_init(|| {
        let slopes: Vec<f32> = (0..3).map(|i| i as f32 * 0.3 - 0.2).collect();
        let bias: Vec<f16> = (0..40 * 100).map(|i| f16::from_f32((i * 37 % 23) as f32 / 8.0 - 1.4)).collect();
        let ids: Vec<i32> = (0..150).map(|i| i * 31 % 7 - 2).collect();
        (
            Tensor::from_slice(device, &slopes, [3], Layout::RowMajor).expect("memory"),
            Tensor::from_slice(device, &bias, [40, 100], Layout::RowMajor).expect("memory"),
            Indices::from_slice(device, &ids).expect("memory"),
        )
    });
    let bias = bias.view().narrow(1, 10..90).expect("inside");
    let ids = ProgramTensor::ints(ids.view(), [1, 150]).expect("as many");
    vec![("slopes", slopes.view().into()), ("bias", bias.into()), ("ids", ids)]
}

/// A program with what it means: a function of the score and of `[batch, head, row, key, q_rows, kv_rows]`.
pub(crate) struct Named {
    pub(crate) name: &'static str,
    pub(crate) program: fn() -> ScoreProgram,
    pub(crate) meaning: fn(f64, [i64; 6]) -> f64,
}

fn table(head: i64, distance: i64) -> f64 {
    (((head * 32 + distance + 16) * 29 % 31) as f64 - 15.0) / 8.0
}

fn slope(head: i64) -> f64 {
    0.5 / (1.0 + head as f64)
}

fn document(batch: i64, row: i64) -> i64 {
    (row + 3 * batch) / 11
}

fn seen(sees: bool, score: f64) -> f64 {
    if sees { score } else { f64::NEG_INFINITY }
}

/// The programs of the field: a table of relative positions, a cap, a decay with the distance, documents, a prefix with a window, and
/// neighbours in two dimensions.
pub(crate) const NAMED: [Named; 6] = [
    Named {
        name: "relative",
        program: || {
            ScoreProgram::new("relative", |p| {
                let distance = (p.position() - p.key()).min(p.int_constant(15)).max(p.int_constant(-16));
                p.score() + p.floats("table").at([p.head(), distance + 16])
            })
            .expect("a legal program")
        },
        meaning: |s, [_, head, row, key, q_rows, kv_rows]| {
            s + table(head, (row + kv_rows - q_rows - key).clamp(-16, 15))
        },
    },
    Named {
        name: "capped",
        program: || ScoreProgram::new("capped", |p| 5.0 * (p.score() / 5.0).tanh()).expect("a legal program"),
        meaning: |s, _| 5.0 * (s / 5.0).tanh(),
    },
    Named {
        name: "decay",
        program: || {
            ScoreProgram::new("decay", |p| {
                let distance = (p.position() - p.key()).abs().to_float();
                p.score() - p.floats("slopes").at([p.head()]) * (distance + 1.0).ln()
            })
            .expect("a legal program")
        },
        meaning: |s, [_, head, row, key, q_rows, kv_rows]| {
            s - slope(head) * ((row + kv_rows - q_rows - key).abs() as f64 + 1.0).ln()
        },
    },
    Named {
        name: "documents",
        program: || {
            ScoreProgram::mask("documents", |p| {
                let ids = p.ints("ids");
                ids.at([p.batch(), p.row()]).eq(ids.at([p.batch(), p.key()]))
            })
            .expect("a legal program")
        },
        meaning: |s, [batch, _, row, key, ..]| seen(document(batch, row) == document(batch, key), s),
    },
    Named {
        name: "prefix window",
        program: || {
            ScoreProgram::mask("prefix window", |p| {
                let (position, key) = (p.position(), p.key());
                let near = key.le(position) & (position - key).lt(p.int_constant(12));
                key.lt(p.int_constant(7)) | near
            })
            .expect("a legal program")
        },
        meaning: |s, [_, _, row, key, q_rows, kv_rows]| {
            let position = row + kv_rows - q_rows;
            seen(key < 7 || (key <= position && position - key < 12), s)
        },
    },
    Named {
        name: "neighbours",
        program: || {
            ScoreProgram::mask("neighbours", |p| {
                let down = (p.row().div_floor(6) - p.key().div_floor(6)).abs();
                let across = (p.row().rem_floor(6) - p.key().rem_floor(6)).abs();
                down.max(across).le(p.int_constant(2))
            })
            .expect("a legal program")
        },
        meaning: |s, [_, _, row, key, ..]| seen((row / 6 - key / 6).abs().max((row % 6 - key % 6).abs()) <= 2, s),
    },
];

impl Named {
    /// With its tensors, which hold what its meaning says.
    pub(crate) fn bound(&self, device: &'static Device) -> &'static BoundProgram<'static> {
        const HEADS: i64 = 4;
        const ROWS: i64 = 600;
        fn tensor(device: &'static Device, values: &[f32], shape: [usize; 2]) -> ProgramTensor<'static> {
            let tensor = Tensor::from_slice(device, values, shape, Layout::RowMajor).expect("memory");
            Box::leak(Box::new(tensor)).view().into()
        }
        let tensors = match self.name {
            "relative" => {
                let values: Vec<f32> =
                    (0..HEADS).flat_map(|head| (-16..16).map(move |d| table(head, d) as f32)).collect();
                vec![("table", tensor(device, &values, [HEADS as usize, 32]))]
            }
            "decay" => {
                let values: Vec<f32> = (0..HEADS).map(|head| slope(head) as f32).collect();
                let tensor = Tensor::from_slice(device, &values, [HEADS as usize], Layout::RowMajor).expect("memory");
                vec![("slopes", Box::leak(Box::new(tensor)).view().into())]
            }
            "documents" => {
                let ids: Vec<i32> =
                    (0..2).flat_map(|batch| (0..ROWS).map(move |row| document(batch, row) as i32)).collect();
                let ids = Box::leak(Box::new(Indices::from_slice(device, &ids).expect("memory")));
                vec![("ids", ProgramTensor::ints(ids.view(), [2, ROWS as usize]).expect("as many"))]
            }
            _ => Vec::new(),
        };
        leak((self.program)(), tensors)
    }
}
