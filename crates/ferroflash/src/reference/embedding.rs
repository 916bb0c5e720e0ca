//! Embedding tables by their definition.

use super::inputs::round;
use crate::error::{Error, Result};
use kernel_spec::DType;

/// Rows of a table by their number.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceEmbedding {
    /// Rows of the table.
    pub vocabulary: usize,
    /// Columns of a row.
    pub columns: usize,
    /// Is multiplied with every element.
    pub scale: f64,
    /// The row of the table that gets no gradient.
    pub padding: Option<usize>,
}

impl ReferenceEmbedding {
    /// In `f64`, the rows of `table`, `[row, column]`, that `ids` name: what [`crate::operators::Embedding::forward`] is checked against. A number that
    /// names no row is taken for the nearest that does.
    ///
    /// # Errors
    /// [`Error::DataLength`] for a slice of another length than the others make it.
    pub fn forward(&self, table: &[f64], ids: &[i32]) -> Result<Vec<f64>> {
        check(table.len(), self.vocabulary, self.columns)?;
        let rows = ids.iter().map(|&id| &table[self.nearest(id) * self.columns..][..self.columns]);
        Ok(rows.flatten().map(|x| self.scale * x).collect())
    }

    /// As a straightforward program computes it: in `f32`, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceEmbedding::forward`].
    pub fn forward_rounded(&self, table: &[f64], ids: &[i32], dtype: DType) -> Result<Vec<f64>> {
        check(table.len(), self.vocabulary, self.columns)?;
        let rows = ids.iter().map(|&id| &table[self.nearest(id) * self.columns..][..self.columns]);
        Ok(rows.flatten().map(|&x| f64::from(round(self.scale as f32 * x as f32, dtype))).collect())
    }

    /// The gradient in `f64` of a number with respect to the table, given that with respect to the output, `[token, column]`, on top of `before`.
    ///
    /// # Errors
    /// As [`ReferenceEmbedding::forward`].
    pub fn backward(&self, ids: &[i32], dout: &[f64], before: Option<&[f64]>) -> Result<Vec<f64>> {
        let mut dtable = self.start(ids, dout, before)?;
        for (&id, row) in ids.iter().zip(dout.chunks(self.columns)) {
            let id = self.nearest(id);
            if self.padding != Some(id) {
                let sums = &mut dtable[id * self.columns..][..self.columns];
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += self.scale * x);
            }
        }
        Ok(dtable)
    }

    /// [`ReferenceEmbedding::backward`] as a straightforward program computes it: sums in `f32`, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceEmbedding::forward`].
    pub fn backward_rounded(
        &self,
        ids: &[i32],
        dout: &[f64],
        before: Option<&[f64]>,
        dtype: DType,
    ) -> Result<Vec<f64>> {
        let mut dtable: Vec<f32> = self.start(ids, dout, before)?.into_iter().map(|x| x as f32).collect();
        for (&id, row) in ids.iter().zip(dout.chunks(self.columns)) {
            let id = self.nearest(id);
            if self.padding != Some(id) {
                let sums = &mut dtable[id * self.columns..][..self.columns];
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += self.scale as f32 * x as f32);
            }
        }
        Ok(dtable.into_iter().map(|x| f64::from(round(x, dtype))).collect())
    }

    fn nearest(&self, id: i32) -> usize {
        (id.max(0) as usize).min(self.vocabulary - 1)
    }

    fn start(&self, ids: &[i32], dout: &[f64], before: Option<&[f64]>) -> Result<Vec<f64>> {
        check(dout.len(), ids.len(), self.columns)?;
        let start = before.map_or_else(|| vec![0.0; self.vocabulary * self.columns], <[f64]>::to_vec);
        check(start.len(), self.vocabulary, self.columns)?;
        Ok(start)
    }
}

fn check(found: usize, rows: usize, columns: usize) -> Result<()> {
    let expected = rows * columns;
    if found == expected { Ok(()) } else { Err(Error::DataLength { shape: vec![rows, columns], expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMBEDDING: ReferenceEmbedding =
        ReferenceEmbedding { vocabulary: 3, columns: 2, scale: 0.5, padding: Some(1) };

    #[test]
    fn rows_by_hand() {
        let table = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let ids = [2, 1, -7, i32::MAX, 2];
        assert_eq!(EMBEDDING.forward(&table, &ids).unwrap(), [2.5, 3.0, 1.5, 2.0, 0.5, 1.0, 2.5, 3.0, 2.5, 3.0]);
        let dout = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0, 5.0, 50.0];
        assert_eq!(EMBEDDING.backward(&ids, &dout, None).unwrap(), [1.5, 15.0, 0.0, 0.0, 5.0, 50.0]);
        let found = EMBEDDING.backward(&ids, &dout, Some(&[1.0; 6])).unwrap();
        assert_eq!(found, [2.5, 16.0, 1.0, 1.0, 6.0, 51.0]);
        assert_eq!(EMBEDDING.backward_rounded(&ids, &dout, Some(&[1.0; 6]), DType::F32).unwrap(), found);
    }

    /// The sum of `dout out` is linear in the table.
    #[test]
    fn the_gradient_is_that_of_the_rows() {
        let wave = |n: usize, f: f64| (0..n).map(|i| (i as f64 * f).sin()).collect::<Vec<f64>>();
        let (table, ids) = (wave(6, 0.7), [2, 0, 1, 1, 0]);
        let dout = wave(10, 1.3);
        let embedding = ReferenceEmbedding { padding: None, ..EMBEDDING };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (out, dtable) = (embedding.forward(&table, &ids).unwrap(), embedding.backward(&ids, &dout, None).unwrap());
        assert!((dot(&out, &dout) - dot(&table, &dtable)).abs() < 1e-12);
        let rounded = embedding.forward_rounded(&table, &ids, DType::F16).unwrap();
        let error = rounded.iter().zip(&out).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error > 0.0 && error < 1e-3);
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        assert!(matches!(EMBEDDING.forward(&[0.0; 7], &[0]), Err(Error::DataLength { found: 7, expected: 6, .. })));
        assert!(EMBEDDING.backward(&[0], &[0.0; 3], None).is_err());
        assert!(EMBEDDING.backward(&[0], &[0.0; 2], Some(&[0.0; 5])).is_err());
    }
}
