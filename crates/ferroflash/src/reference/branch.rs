//! What a norm does to x before it adds the residual, by its definition.

use super::inputs::round;
use crate::dropout::{Dropout, keep_in_row};
use crate::error::{Error, Result, Unsupported};
use kernel_spec::DType;

/// Dropout and factors of rows: `rowscale x / (1 - p)` where an element is kept, and 0 where it is not. The gradient of x is the same of that of what comes
/// out.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceBranch<'a> {
    /// Columns of a row.
    pub columns: usize,
    /// What is dropped, by numbers of the host.
    pub dropout: Option<Dropout>,
    /// Factors of the rows; 1 where there are none.
    pub rowscale: Option<&'a [f64]>,
}

impl ReferenceBranch<'_> {
    /// In `f64`, of `x`, `[row, column]`.
    ///
    /// # Errors
    /// [`Error::DataLength`] for factors that are not as many as rows; [`Error::Dropout`]; [`Unsupported::DropoutOnDevice`].
    pub fn apply(&self, x: &[f64]) -> Result<Vec<f64>> {
        let kept = self.check(x)?;
        let scaled = |(i, &x): (usize, &f64)| {
            let row = i / self.columns;
            let rowscale = self.rowscale.map_or(1.0, |rowscale| rowscale[row]);
            kept(row, i % self.columns).map_or(0.0, |p| x * rowscale / (1.0 - f64::from(p)))
        };
        Ok(x.iter().enumerate().map(scaled).collect())
    }

    /// As a straightforward program computes it: in `f32`, and rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceBranch::apply`].
    pub fn apply_rounded(&self, x: &[f64], dtype: DType) -> Result<Vec<f64>> {
        let kept = self.check(x)?;
        let scaled = |(i, &x): (usize, &f64)| {
            let row = i / self.columns;
            let rowscale = self.rowscale.map_or(1.0, |rowscale| rowscale[row] as f32);
            let y = kept(row, i % self.columns).map_or(0.0, |p| x as f32 * rowscale * (1.0 / (1.0 - p)));
            f64::from(round(y, dtype))
        };
        Ok(x.iter().enumerate().map(scaled).collect())
    }

    /// The probability of an element that is kept, after a look at everything.
    fn check(&self, x: &[f64]) -> Result<impl Fn(usize, usize) -> Option<f32>> {
        let dropout = self.dropout.map(Dropout::checked).transpose()?.flatten();
        let numbers = dropout.and_then(|dropout| dropout.seed_and_offset());
        if dropout.is_some() && numbers.is_none() {
            return Err(Error::Unsupported(Unsupported::DropoutOnDevice));
        }
        let rows = x.len().div_ceil(self.columns.max(1));
        if let Some(found) = self.rowscale.map(<[f64]>::len).filter(|&found| found != rows) {
            return Err(Error::DataLength { shape: vec![rows], expected: rows, found });
        }
        Ok(move |row, column| match (dropout, numbers) {
            (Some(dropout), Some([seed, offset])) => {
                keep_in_row(seed, offset, row, column, dropout.p()).then_some(dropout.p())
            }
            _ => Some(0.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let x = [1.0, 2.0, 3.0, 4.0];
        let plain = ReferenceBranch { columns: 2, dropout: None, rowscale: None };
        assert_eq!(plain.apply(&x).unwrap(), x);
        let scaled = ReferenceBranch { rowscale: Some(&[2.0, -1.0]), ..plain };
        assert_eq!(scaled.apply(&x).unwrap(), [2.0, 4.0, -3.0, -4.0]);
        assert_eq!(scaled.apply_rounded(&x, DType::F16).unwrap(), [2.0, 4.0, -3.0, -4.0]);
        let dropped = ReferenceBranch { dropout: Some(Dropout::new(0.5, 3, 4)), ..scaled };
        let kept = |row, column| if keep_in_row(3, 4, row, column, 0.5) { 2.0 } else { 0.0 };
        let expected = [2.0 * kept(0, 0), 4.0 * kept(0, 1), -3.0 * kept(1, 0), -4.0 * kept(1, 1)];
        assert_eq!(dropped.apply(&x).unwrap(), expected);
        // What is dropped is 0 whatever it was.
        let none = ReferenceBranch { dropout: Some(Dropout::new(0.999_99, 3, 4)), ..plain };
        assert_eq!(none.apply(&[f64::INFINITY, f64::NAN]).unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn what_is_refused() {
        let plain = ReferenceBranch { columns: 2, dropout: None, rowscale: None };
        let found = ReferenceBranch { rowscale: Some(&[1.0]), ..plain }.apply(&[0.0; 4]).unwrap_err();
        assert!(matches!(found, Error::DataLength { found: 1, expected: 2, .. }), "{found:?}");
        let found = ReferenceBranch { dropout: Some(Dropout::new(1.0, 0, 0)), ..plain }.apply(&[0.0; 4]).unwrap_err();
        assert!(matches!(found, Error::Dropout(_)), "{found:?}");
        // SAFETY: nothing reads it.
        let on_device = unsafe { Dropout::from_device(0.5, 16, 0) };
        let found =
            ReferenceBranch { dropout: Some(on_device), ..plain }.apply_rounded(&[0.0; 4], DType::F32).unwrap_err();
        assert!(matches!(found, Error::Unsupported(Unsupported::DropoutOnDevice)), "{found:?}");
    }
}
