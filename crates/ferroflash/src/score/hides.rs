//! Which keys a program hides whatever their scores are: what can be known before there are any.

use super::op::{Binary, Code, Id, Op};
use super::scope::{Float, Scope};

/// The program that gives minus infinity where this one does for every score, and else 0. `None`: it hides nothing of the kind.
///
/// Where it cannot be told, it says 0: such a key is visited, and the program itself decides.
pub(super) fn hides(code: &Code) -> Option<Code> {
    let scope = Scope::of(code);
    let by_score = by_score(code);
    let result = of(&scope, code, &by_score, code.result)?.id;
    Some(scope.into_code(result).without_the_unused())
}

/// Whether the program gives the score that it gets or minus infinity, and decides which without a look at the score.
pub(super) fn is_mask_only(code: &Code) -> bool {
    mask_only(code, &by_score(code), code.result)
}

fn mask_only(code: &Code, by_score: &[bool], id: Id) -> bool {
    match *code.op(id) {
        Op::Score => true,
        Op::Float(bits) => f32::from_bits(bits) == f32::NEG_INFINITY,
        Op::SelectFloat(condition, [yes, no]) => {
            !by_score[condition.index()] && mask_only(code, by_score, yes) && mask_only(code, by_score, no)
        }
        _ => false,
    }
}

/// Which operations depend on the score.
fn by_score(code: &Code) -> Vec<bool> {
    let mut known: Vec<bool> = Vec::with_capacity(code.ops.len());
    for op in &code.ops {
        let depends = *op == Op::Score || op.operands().iter().any(|operand| known[operand.index()]);
        known.push(depends);
    }
    known
}

/// Minus infinity where an operation is that for every score, and else 0. `None`: it never is, as far as can be told.
fn of<'p>(scope: &'p Scope, code: &Code, by_score: &[bool], id: Id) -> Option<Float<'p>> {
    let number = |id: Id| of(scope, code, by_score, id);
    let or_zero = |found: Option<Float<'p>>| found.unwrap_or_else(|| scope.constant(0.0));
    match *code.op(id) {
        Op::Float(bits) if f32::from_bits(bits) == f32::NEG_INFINITY => Some(scope.hidden()),
        Op::SelectFloat(condition, [yes, no]) if !by_score[condition.index()] => match (number(yes), number(no)) {
            (None, None) => None,
            (yes, no) => Some(scope.known_bool(condition).select(or_zero(yes), or_zero(no))),
        },
        // With minus infinity on either side, or, of a difference, on its left. What is plus infinity or NaN on the other has no softmax.
        Op::Binary(Binary::Add | Binary::Min, [a, b]) => match (number(a), number(b)) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        },
        Op::Binary(Binary::Sub, [a, _]) => number(a),
        _ => None,
    }
}
