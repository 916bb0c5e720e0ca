//! What programs are written with: values that stand for operations, and the scope that holds these.

use super::op::{Axis, Binary, Code, Compare, Division, Id, IntBinary, Load, MAX_AXES, Op, Unary};
use crate::error::ProgramError;
use std::cell::RefCell;
use std::collections::HashMap;

/// Most operations of a program. Each stands in the kernel's text once for every score of a thread, of which there are up to 128.
pub(super) const MAX_OPS: usize = 256;

/// A tensor that a program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) rank: usize,
    /// Whether it holds whole numbers.
    pub(crate) is_int: bool,
}

/// The place where a program is written: it gives the score and where that is, constants and tensors. See
/// [`ScoreProgram::new`](super::ScoreProgram::new).
#[derive(Debug, Default)]
pub struct Scope(RefCell<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whether it holds operations of a derivative, of which there may be several for each of the program.
    is_derived: bool,
    ops: Vec<Op>,
    known: HashMap<Op, Id>,
    tensors: Vec<Declared>,
    error: Option<ProgramError>,
}

/// A number of a program, an `f32` in kernels.
#[derive(Clone, Copy, Debug)]
pub struct Float<'p> {
    pub(super) scope: &'p Scope,
    pub(super) id: Id,
}

/// A whole number of a program, an `i32`. Sums and products wrap around.
#[derive(Clone, Copy, Debug)]
pub struct Int<'p> {
    pub(super) scope: &'p Scope,
    id: Id,
}

/// A condition of a program.
#[derive(Clone, Copy, Debug)]
pub struct Bool<'p> {
    pub(super) scope: &'p Scope,
    pub(super) id: Id,
}

/// A tensor of numbers with `RANK` axes.
#[derive(Clone, Copy, Debug)]
pub struct FloatTensor<'p, const RANK: usize> {
    scope: &'p Scope,
    index: u8,
}

/// A tensor of whole numbers with `RANK` axes.
#[derive(Clone, Copy, Debug)]
pub struct IntTensor<'p, const RANK: usize> {
    scope: &'p Scope,
    index: u8,
}

impl Scope {
    /// A scope that holds these operations.
    pub(super) fn of(code: &Code) -> Scope {
        let scope = Scope(RefCell::new(Inner { is_derived: true, ..Inner::default() }));
        for op in &code.ops {
            scope.push(*op);
        }
        scope
    }

    fn push(&self, op: Op) -> Id {
        let mut inner = self.0.borrow_mut();
        let Inner { is_derived, ops, known, error, .. } = &mut *inner;
        *known.entry(op).or_insert_with(|| {
            if ops.len() >= MAX_OPS && !*is_derived {
                error.get_or_insert(ProgramError::TooManyOperations { limit: MAX_OPS });
                return Id(0);
            }
            ops.push(op);
            Id((ops.len() - 1) as u16)
        })
    }

    fn float(&self, op: Op) -> Float<'_> {
        Float { scope: self, id: self.push(op) }
    }

    fn int(&self, op: Op) -> Int<'_> {
        Int { scope: self, id: self.push(op) }
    }

    pub(super) fn condition(&self, op: Op) -> Bool<'_> {
        Bool { scope: self, id: self.push(op) }
    }

    /// The value of an operation that is there.
    pub(super) fn known_float(&self, id: Id) -> Float<'_> {
        Float { scope: self, id }
    }

    pub(super) fn known_bool(&self, id: Id) -> Bool<'_> {
        Bool { scope: self, id }
    }

    /// The operations, of which `result` is the value.
    pub(super) fn into_code(self, result: Id) -> Code {
        Code { ops: self.0.into_inner().ops, result }
    }

    pub(super) fn finish(self, result: Id) -> Result<(Code, Vec<Declared>), ProgramError> {
        let Inner { ops, tensors, error, .. } = self.0.into_inner();
        match error {
            Some(error) => Err(error),
            None => Ok((Code { ops, result }.without_the_unused(), tensors)),
        }
    }

    /// The score: `scale * q k^T`, after the softcap if there is one.
    pub fn score(&self) -> Float<'_> {
        self.float(Op::Score)
    }

    /// Batch entry, or sequence, from 0 on.
    pub fn batch(&self) -> Int<'_> {
        self.int(Op::Axis(Axis::Batch))
    }

    /// Query head.
    pub fn head(&self) -> Int<'_> {
        self.int(Op::Axis(Axis::Head))
    }

    /// Query row, counted from the first of its batch entry or sequence.
    pub fn row(&self) -> Int<'_> {
        self.int(Op::Axis(Axis::Row))
    }

    /// Key, counted likewise; in a cache from its first in use.
    pub fn key(&self) -> Int<'_> {
        self.int(Op::Axis(Axis::Key))
    }

    /// Query rows of the batch entry or sequence.
    pub fn q_rows(&self) -> Int<'_> {
        self.int(Op::Axis(Axis::QRows))
    }

    /// Keys of the batch entry or sequence.
    pub fn kv_rows(&self) -> Int<'_> {
        self.int(Op::Axis(Axis::KvRows))
    }

    /// The key at which the row stands, `row + kv_rows - q_rows`: the last one that it sees under a causal mask.
    pub fn position(&self) -> Int<'_> {
        self.row() + self.kv_rows() - self.q_rows()
    }

    /// A constant.
    pub fn constant(&self, value: f32) -> Float<'_> {
        self.float(Op::Float(value.to_bits()))
    }

    /// A whole constant.
    pub fn int_constant(&self, value: i32) -> Int<'_> {
        self.int(Op::Int(value))
    }

    /// A condition that holds always, or never.
    pub fn bool_constant(&self, value: bool) -> Bool<'_> {
        self.condition(Op::Bool(value))
    }

    /// Minus infinity, the score of a key that the row does not see.
    pub fn hidden(&self) -> Float<'_> {
        self.constant(f32::NEG_INFINITY)
    }

    /// A tensor of numbers, `f32`, `f16` or `bf16`, by the name under which it is [bound](super::ScoreProgram::bind).
    pub fn floats<const RANK: usize>(&self, name: &str) -> FloatTensor<'_, RANK> {
        FloatTensor { scope: self, index: self.declare::<RANK>(name, false) }
    }

    /// A tensor of whole numbers, `i32`, likewise.
    pub fn ints<const RANK: usize>(&self, name: &str) -> IntTensor<'_, RANK> {
        IntTensor { scope: self, index: self.declare::<RANK>(name, true) }
    }

    fn declare<const RANK: usize>(&self, name: &str, is_int: bool) -> u8 {
        const { assert!(RANK >= 1 && RANK <= MAX_AXES, "1 to 4 axes") };
        let mut inner = self.0.borrow_mut();
        let declared = Declared { name: name.to_owned(), rank: RANK, is_int };
        if let Some(index) = inner.tensors.iter().position(|tensor| tensor.name == name) {
            if inner.tensors[index] != declared {
                inner.error.get_or_insert(ProgramError::DeclaredTwice { name: name.to_owned() });
            }
            return index as u8;
        }
        // One word at least each: the program is refused long before 256.
        let index = inner.tensors.len().min(u8::MAX.into()) as u8;
        inner.tensors.push(declared);
        index
    }
}

impl<'p, const RANK: usize> FloatTensor<'p, RANK> {
    /// The element with these indices, as an `f32`. Outside of the tensor 0; along an axis of extent 1, the element for every index.
    pub fn at(self, index: [Int<'p>; RANK]) -> Float<'p> {
        self.scope.float(Op::LoadFloat(Load::new(self.index, &index.map(|x| x.id))))
    }
}

impl<'p, const RANK: usize> IntTensor<'p, RANK> {
    /// The element with these indices. Outside of the tensor 0; along an axis of extent 1, the element for every index.
    pub fn at(self, index: [Int<'p>; RANK]) -> Int<'p> {
        self.scope.int(Op::LoadInt(Load::new(self.index, &index.map(|x| x.id))))
    }
}

impl<'p> Float<'p> {
    pub(super) fn unary(self, unary: Unary) -> Float<'p> {
        self.scope.float(Op::Unary(unary, self.id))
    }

    pub(super) fn binary(self, binary: Binary, other: Float<'p>) -> Float<'p> {
        self.scope.float(Op::Binary(binary, [self.id, other.id]))
    }

    /// Whether it is the constant 1.
    pub(super) fn is_one(self) -> bool {
        self.scope.0.borrow().ops[self.id.index()] == Op::Float(1f32.to_bits())
    }

    fn compare(self, compare: Compare, other: Float<'p>) -> Bool<'p> {
        self.scope.condition(Op::CompareFloat(compare, [self.id, other.id]))
    }

    /// Its magnitude.
    pub fn abs(self) -> Float<'p> {
        self.unary(Unary::Abs)
    }

    /// `e` to its power.
    pub fn exp(self) -> Float<'p> {
        self.unary(Unary::Exp)
    }

    /// Its natural logarithm.
    pub fn ln(self) -> Float<'p> {
        self.unary(Unary::Ln)
    }

    /// Its square root.
    pub fn sqrt(self) -> Float<'p> {
        self.unary(Unary::Sqrt)
    }

    /// Its hyperbolic tangent.
    pub fn tanh(self) -> Float<'p> {
        self.unary(Unary::Tanh)
    }

    /// `1 / (1 + e^-x)`.
    pub fn sigmoid(self) -> Float<'p> {
        self.unary(Unary::Sigmoid)
    }

    /// The smaller of the two.
    pub fn min(self, other: Float<'p>) -> Float<'p> {
        self.binary(Binary::Min, other)
    }

    /// The larger of the two.
    pub fn max(self, other: Float<'p>) -> Float<'p> {
        self.binary(Binary::Max, other)
    }

    /// Whether it is below the other.
    pub fn lt(self, other: Float<'p>) -> Bool<'p> {
        self.compare(Compare::Lt, other)
    }

    /// Whether it is at most the other.
    pub fn le(self, other: Float<'p>) -> Bool<'p> {
        self.compare(Compare::Le, other)
    }

    /// Whether it is above the other.
    pub fn gt(self, other: Float<'p>) -> Bool<'p> {
        self.compare(Compare::Gt, other)
    }

    /// Whether it is at least the other.
    pub fn ge(self, other: Float<'p>) -> Bool<'p> {
        self.compare(Compare::Ge, other)
    }
}

impl<'p> Int<'p> {
    pub(super) fn binary(self, binary: IntBinary, other: Int<'p>) -> Int<'p> {
        self.scope.int(Op::IntBinary(binary, [self.id, other.id]))
    }

    fn compare(self, compare: Compare, other: Int<'p>) -> Bool<'p> {
        self.scope.condition(Op::CompareInt(compare, [self.id, other.id]))
    }

    fn division(self, division: Division, divisor: i32) -> Int<'p> {
        if divisor <= 0 {
            self.scope.0.borrow_mut().error.get_or_insert(ProgramError::Divisor { found: divisor });
        }
        self.scope.int(Op::IntDivision(division, self.id, divisor))
    }

    /// The same number, rounded where it has more than 24 bits.
    pub fn to_float(self) -> Float<'p> {
        self.scope.float(Op::ToFloat(self.id))
    }

    /// Its magnitude.
    pub fn abs(self) -> Int<'p> {
        self.scope.int(Op::IntAbs(self.id))
    }

    /// The smaller of the two.
    pub fn min(self, other: Int<'p>) -> Int<'p> {
        self.binary(IntBinary::Min, other)
    }

    /// The larger of the two.
    pub fn max(self, other: Int<'p>) -> Int<'p> {
        self.binary(IntBinary::Max, other)
    }

    /// The quotient, rounded towards minus infinity; the divisor is above 0.
    pub fn div_floor(self, divisor: i32) -> Int<'p> {
        self.division(Division::Quotient, divisor)
    }

    /// What [`Int::div_floor`] leaves: from 0 to below the divisor, which is above 0.
    pub fn rem_floor(self, divisor: i32) -> Int<'p> {
        self.division(Division::Remainder, divisor)
    }

    /// Whether it is below the other.
    pub fn lt(self, other: Int<'p>) -> Bool<'p> {
        self.compare(Compare::Lt, other)
    }

    /// Whether it is at most the other.
    pub fn le(self, other: Int<'p>) -> Bool<'p> {
        self.compare(Compare::Le, other)
    }

    /// Whether the two are equal.
    #[allow(clippy::should_implement_trait, reason = "the result is a condition of the program")]
    pub fn eq(self, other: Int<'p>) -> Bool<'p> {
        self.compare(Compare::Eq, other)
    }

    /// Whether the two differ.
    #[allow(clippy::should_implement_trait, reason = "as above")]
    pub fn ne(self, other: Int<'p>) -> Bool<'p> {
        self.compare(Compare::Ne, other)
    }

    /// Whether it is above the other.
    pub fn gt(self, other: Int<'p>) -> Bool<'p> {
        self.compare(Compare::Gt, other)
    }

    /// Whether it is at least the other.
    pub fn ge(self, other: Int<'p>) -> Bool<'p> {
        self.compare(Compare::Ge, other)
    }
}

impl<'p> Bool<'p> {
    /// `yes` where it holds, else `no`. Both are computed; no number of the other reaches the result.
    pub fn select(self, yes: Float<'p>, no: Float<'p>) -> Float<'p> {
        self.scope.float(Op::SelectFloat(self.id, [yes.id, no.id]))
    }

    /// The same of whole numbers.
    pub fn select_int(self, yes: Int<'p>, no: Int<'p>) -> Int<'p> {
        self.scope.int(Op::SelectInt(self.id, [yes.id, no.id]))
    }
}
