//! The derivative of a program with respect to its score.

use super::op::{Binary, Code, Id, Op, Unary};
use super::scope::{Float, Scope};

/// The program that gives `d program / d score`, behind the operations of the program itself. Where a program has a corner, it is the derivative
/// of the branch that the value came from.
pub(super) fn derivative(code: &Code) -> Code {
    let scope = Scope::of(code);
    let mut known: Vec<Option<Float<'_>>> = Vec::with_capacity(code.ops.len());
    for (i, op) in code.ops.iter().enumerate() {
        // At most MAX_OPS.
        let value = scope.known_float(Id(i as u16));
        let found = of(&scope, op, value, |id| known[id.index()]);
        known.push(found);
    }
    let result = known[code.result.index()].unwrap_or_else(|| scope.constant(0.0)).id;
    drop(known);
    scope.into_code(result)
}

/// The derivative of an operation whose value is `value`, given those of its operands. `None` is 0.
fn of<'p>(scope: &'p Scope, op: &Op, value: Float<'p>, known: impl Fn(Id) -> Option<Float<'p>>) -> Option<Float<'p>> {
    let number = |id: Id| scope.known_float(id);
    match *op {
        Op::Score => Some(scope.constant(1.0)),
        Op::Unary(unary, x) => {
            let (dx, x) = (known(x)?, number(x));
            let zero = scope.constant(0.0);
            Some(match unary {
                Unary::Neg => -dx,
                Unary::Abs => x.lt(zero).select(-dx, dx),
                Unary::Exp => times(value, dx),
                Unary::Ln => dx / x,
                Unary::Sqrt => dx / (value * 2.0),
                Unary::Tanh => times(1.0 - value * value, dx),
                Unary::Sigmoid => times(value * (1.0 - value), dx),
            })
        }
        Op::Binary(binary, [a, b]) => {
            let ([da, db], [a, b]) = ([known(a), known(b)], [number(a), number(b)]);
            let or_zero = |d: Option<Float<'p>>| d.unwrap_or_else(|| scope.constant(0.0));
            if da.is_none() && db.is_none() {
                return None;
            }
            match binary {
                Binary::Add => sum(da, db),
                Binary::Sub => sum(da, db.map(|db| -db)),
                Binary::Mul => sum(da.map(|da| times(b, da)), db.map(|db| times(a, db))),
                Binary::Div => sum(da.map(|da| da / b), db.map(|db| -(times(value, db) / b))),
                Binary::Min => Some(a.le(b).select(or_zero(da), or_zero(db))),
                Binary::Max => Some(a.ge(b).select(or_zero(da), or_zero(db))),
            }
        }
        Op::SelectFloat(condition, [yes, no]) => {
            let [yes, no] = [known(yes), known(no)];
            if yes.is_none() && no.is_none() {
                return None;
            }
            let or_zero = |d: Option<Float<'p>>| d.unwrap_or_else(|| scope.constant(0.0));
            Some(scope.known_bool(condition).select(or_zero(yes), or_zero(no)))
        }
        // Constants, and what is made of where the score is.
        _ => None,
    }
}

fn sum<'p>(a: Option<Float<'p>>, b: Option<Float<'p>>) -> Option<Float<'p>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// A product, without one factor that is 1.
fn times<'p>(a: Float<'p>, b: Float<'p>) -> Float<'p> {
    if b.is_one() { a } else { a * b }
}
