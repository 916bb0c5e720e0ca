//! Programs on scores: functions of a score and of where it is, written in Rust at run time and run inside of the kernels.
//!
//! A program is built once from expressions. Kernels run it as a few lines of PTX, put into their text before the driver compiles it; the
//! [reference](crate::reference) evaluates the same expressions in f64; [`ScoreProgram::derivative`] derives them.

mod blocks;
mod bound;
mod derivative;
mod display;
mod evaluate;
mod hides;
mod lower;
mod op;
mod operators;
mod scope;
#[cfg(test)]
mod tests;

pub use blocks::{FoundBlocks, ScoreShape};
pub use bound::{BoundProgram, ProgramTensor};
pub use scope::{Bool, Float, FloatTensor, Int, IntTensor, Scope};

pub(crate) use blocks::Blocks;
pub(crate) use bound::Word;
pub(crate) use evaluate::{At, HostTensor, Real};

use crate::error::Result;
use op::{Code, Op};
use scope::Declared;
use std::sync::Arc;

/// A function of scores, `score' = program(score, batch, head, row, key, ..)`, before the softmax and the mask of the call.
///
/// It is written with a [`Scope`], which gives the scaled score, where that is, constants and tensors by name. Its values have the usual
/// operators and functions, comparisons and [`Bool::select`]. A score of minus infinity, [`Scope::hidden`], is a key that the row does not
/// see. Tensors are [bound](ScoreProgram::bind) for calls.
///
/// ```
/// use ferroflash::score::ScoreProgram;
/// // Scores fall with the distance to the row, each head by a slope of its own, and only every second key is seen.
/// let program = ScoreProgram::new("dilated", |p| {
///     let distance = (p.position() - p.key()).abs();
///     let decayed = p.score() - p.floats("slopes").at([p.head()]) * distance.to_float();
///     distance.rem_floor(2).eq(p.int_constant(0)).select(decayed, p.hidden())
/// })?;
/// assert_eq!(
///     program.to_string(),
///     "dilated(slopes: float[1 axis])\n  \
///        let x1 = abs(((row + kv_rows) - q_rows) - key)\n  \
///        if ((x1 mod 2) == 0) { (score - (slopes[head] * float(x1))) } else { -inf }"
/// );
/// # Ok::<(), ferroflash::Error>(())
/// ```
///
/// Kernels compute it in f32, with the functions of the hardware (`exp`, `ln`, `sqrt`) and a `tanh` that is exact to 1e-7. A program that
/// returns the score unchanged is none: the call runs the plain kernel. A key that a program hides is still visited,
/// unless the program knows its [blocks](BoundProgram::with_blocks).
#[derive(Clone, PartialEq, Eq)]
pub struct ScoreProgram(Arc<Definition>);

#[derive(Debug, PartialEq, Eq)]
struct Definition {
    name: String,
    code: Code,
    tensors: Vec<Declared>,
}

impl ScoreProgram {
    /// The program that `write` returns.
    ///
    /// # Errors
    /// [`ProgramError`] for a tensor that is declared twice and differently, a divisor that is not above 0, and too many operations.
    pub fn new(name: &str, write: impl for<'p> FnOnce(&'p Scope) -> Float<'p>) -> Result<ScoreProgram> {
        let scope = Scope::default();
        let result = write(&scope).id;
        let (code, tensors) = scope.finish(result)?;
        Ok(ScoreProgram(Arc::new(Definition { name: name.to_owned(), code, tensors })))
    }

    /// The program that keeps a score where `sees` holds, and hides the key elsewhere.
    ///
    /// # Errors
    /// As [`ScoreProgram::new`].
    pub fn mask(name: &str, sees: impl for<'p> FnOnce(&'p Scope) -> Bool<'p>) -> Result<ScoreProgram> {
        ScoreProgram::new(name, |p| sees(p).select(p.score(), p.hidden()))
    }

    /// Attention with linear biases (Press et al., 2022): `score - slopes[batch, head] * |position - key|`. It reads one tensor, `slopes`,
    /// `[batch, head]`, or `[1, head]` for all of the batch.
    pub fn alibi() -> ScoreProgram {
        let program = ScoreProgram::new("alibi", |p| {
            p.score() - p.floats("slopes").at([p.batch(), p.head()]) * (p.position() - p.key()).abs().to_float()
        });
        program.expect("it is short, and names one tensor")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it returns the score as it is.
    pub fn is_identity(&self) -> bool {
        *self.0.code.op(self.0.code.result) == Op::Score
    }

    /// The program that gives the derivative of this one with respect to the score.
    pub fn derivative(&self) -> ScoreProgram {
        let Definition { name, code, tensors } = &*self.0;
        let (name, tensors) = (format!("derivative of {name}"), tensors.clone());
        ScoreProgram(Arc::new(Definition { name, code: derivative::derivative(code).without_the_unused(), tensors }))
    }

    /// The value for a scaled score, given the tensors on the host.
    pub(crate) fn evaluate<F: Real>(&self, score: F, at: At, tensors: &[HostTensor]) -> F {
        evaluate::evaluate(&self.0.code, score, at, tensors)
    }
}

/// As it prints.
impl std::fmt::Debug for ScoreProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What it computes, in a few lines.
impl std::fmt::Display for ScoreProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Definition { name, code, tensors } = &*self.0;
        let of = |tensor: &Declared| {
            let (kind, axes) = (if tensor.is_int { "int" } else { "float" }, tensor.rank);
            format!("{}: {kind}[{axes} {}]", tensor.name, if axes == 1 { "axis" } else { "axes" })
        };
        let tensors_text: Vec<String> = tensors.iter().map(of).collect();
        writeln!(f, "{name}({})", tensors_text.join(", "))?;
        display::write(f, code, tensors)
    }
}
