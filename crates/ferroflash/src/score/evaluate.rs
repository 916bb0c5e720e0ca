//! The value of a program, by the definition of each operation: what kernels are checked against.

use super::op::{Axis, Binary, Code, Compare, Division, Id, IntBinary, Load, Logic, Op, Unary};

/// Where a score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    pub(crate) row: usize,
    pub(crate) key: usize,
    pub(crate) q_rows: usize,
    pub(crate) kv_rows: usize,
}

/// What a bound tensor holds, on the host.
#[derive(Clone, Debug)]
pub(crate) struct HostTensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: HostData,
}

#[derive(Clone, Debug)]
pub(crate) enum HostData {
    Floats(Vec<f64>),
    Ints(Vec<i32>),
}

impl HostTensor {
    /// Which element these indices name, if there is one.
    fn place(&self, index: impl Iterator<Item = i32>) -> Option<usize> {
        let mut place = 0;
        for (index, &extent) in index.zip(&self.shape) {
            let index = if extent == 1 { 0 } else { usize::try_from(index).ok().filter(|&i| i < extent)? };
            place = place * extent + index;
        }
        Some(place)
    }
}

/// The numbers that a program is evaluated in.
pub(crate) trait Real: Copy + PartialOrd {
    fn of_f64(x: f64) -> Self;
    fn of_i32(x: i32) -> Self;
    fn unary(self, unary: Unary) -> Self;
    fn binary(self, binary: Binary, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// `cap tanh(x / cap)`.
    fn bounded(self, cap: f32) -> Self;
    /// `1 - tanh^2(x / cap)`, its derivative.
    fn slope_of_bounded(self, cap: f32) -> Self;
}

macro_rules! real {
    ($($real:ident)*) => {$(
        impl Real for $real {
            fn of_f64(x: f64) -> Self {
                x as $real
            }

            fn of_i32(x: i32) -> Self {
                x as $real
            }

            fn times(self, other: Self) -> Self {
                self * other
            }

            fn bounded(self, cap: f32) -> Self {
                let cap = $real::from(cap);
                cap * (self / cap).tanh()
            }

            fn slope_of_bounded(self, cap: f32) -> Self {
                let tanh = (self / $real::from(cap)).tanh();
                1.0 - tanh * tanh
            }

            fn unary(self, unary: Unary) -> Self {
                match unary {
                    Unary::Neg => -self,
                    Unary::Abs => self.abs(),
                    Unary::Exp => self.exp(),
                    Unary::Ln => self.ln(),
                    Unary::Sqrt => self.sqrt(),
                    Unary::Tanh => self.tanh(),
                    Unary::Sigmoid => 1.0 / (1.0 + (-self).exp()),
                }
            }

            fn binary(self, binary: Binary, other: Self) -> Self {
                match binary {
                    Binary::Add => self + other,
                    Binary::Sub => self - other,
                    Binary::Mul => self * other,
                    Binary::Div => self / other,
                    Binary::Min => self.min(other),
                    Binary::Max => self.max(other),
                }
            }
        }
    )*};
}

real! { f32 f64 }

#[derive(Clone, Copy)]
enum Value<F> {
    Float(F),
    Int(i32),
    Bool(bool),
}

/// The value of `code` for `score`, a scaled one.
pub(super) fn evaluate<F: Real>(code: &Code, score: F, at: At, tensors: &[HostTensor]) -> F {
    let mut values: Vec<Value<F>> = Vec::with_capacity(code.ops.len());
    for op in &code.ops {
        let float = |id: Id| match values[id.index()] {
            Value::Float(x) => x,
            _ => unreachable!("a number"),
        };
        let int = |id: Id| match values[id.index()] {
            Value::Int(x) => x,
            _ => unreachable!("a whole number"),
        };
        let holds = |id: Id| match values[id.index()] {
            Value::Bool(x) => x,
            _ => unreachable!("a condition"),
        };
        let place = |load: &Load| {
            let tensor = &tensors[usize::from(load.tensor)];
            (tensor, tensor.place(load.index().iter().map(|&id| int(id))))
        };
        values.push(match op {
            Op::Score => Value::Float(score),
            Op::Float(bits) => Value::Float(F::of_f64(f32::from_bits(*bits).into())),
            Op::ToFloat(x) => Value::Float(F::of_i32(int(*x))),
            Op::LoadFloat(load) => {
                let (tensor, place) = place(load);
                let HostData::Floats(data) = &tensor.data else { unreachable!("bound to numbers") };
                Value::Float(F::of_f64(place.map_or(0.0, |place| data[place])))
            }
            Op::Unary(unary, x) => Value::Float(float(*x).unary(*unary)),
            Op::Binary(binary, [a, b]) => Value::Float(float(*a).binary(*binary, float(*b))),
            Op::SelectFloat(condition, [yes, no]) => {
                Value::Float(if holds(*condition) { float(*yes) } else { float(*no) })
            }
            // Rows and keys are below MAX_ROWS.
            Op::Axis(axis) => Value::Int(match axis {
                Axis::Batch => at.batch,
                Axis::Head => at.head,
                Axis::Row => at.row,
                Axis::Key => at.key,
                Axis::QRows => at.q_rows,
                Axis::KvRows => at.kv_rows,
            } as i32),
            Op::Int(x) => Value::Int(*x),
            Op::LoadInt(load) => {
                let (tensor, place) = place(load);
                let HostData::Ints(data) = &tensor.data else { unreachable!("bound to whole numbers") };
                Value::Int(place.map_or(0, |place| data[place]))
            }
            Op::IntAbs(x) => Value::Int(int(*x).wrapping_abs()),
            Op::IntBinary(binary, [a, b]) => Value::Int(match binary {
                IntBinary::Add => int(*a).wrapping_add(int(*b)),
                IntBinary::Sub => int(*a).wrapping_sub(int(*b)),
                IntBinary::Mul => int(*a).wrapping_mul(int(*b)),
                IntBinary::Min => int(*a).min(int(*b)),
                IntBinary::Max => int(*a).max(int(*b)),
            }),
            // The divisor is above 0.
            Op::IntDivision(division, x, by) => Value::Int(match division {
                Division::Quotient => int(*x).div_euclid(*by),
                Division::Remainder => int(*x).rem_euclid(*by),
            }),
            Op::SelectInt(condition, [yes, no]) => Value::Int(if holds(*condition) { int(*yes) } else { int(*no) }),
            Op::Bool(x) => Value::Bool(*x),
            Op::CompareFloat(compare, [a, b]) => Value::Bool(compared(*compare, &float(*a), &float(*b))),
            Op::CompareInt(compare, [a, b]) => Value::Bool(compared(*compare, &int(*a), &int(*b))),
            Op::Logic(Logic::And, [a, b]) => Value::Bool(holds(*a) & holds(*b)),
            Op::Logic(Logic::Or, [a, b]) => Value::Bool(holds(*a) | holds(*b)),
            Op::Not(x) => Value::Bool(!holds(*x)),
        });
    }
    match values[code.result.index()] {
        Value::Float(x) => x,
        _ => unreachable!("a program gives a number"),
    }
}

fn compared<T: PartialOrd>(compare: Compare, a: &T, b: &T) -> bool {
    match compare {
        Compare::Lt => a < b,
        Compare::Le => a <= b,
        Compare::Eq => a == b,
        Compare::Ne => a != b,
        Compare::Gt => a > b,
        Compare::Ge => a >= b,
    }
}
