//! Rotary embedding by its definition.

use super::inputs::round;
use crate::error::{Error, Result};
use kernel_spec::DType;

/// Rotary embedding of rows of heads.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceRotary<'a> {
    /// Heads of a row.
    pub heads: usize,
    /// Columns of a head.
    pub columns: usize,
    /// Pairs of a head that are turned; the columns behind them stay.
    pub pairs: usize,
    /// Whether the columns of a pair are neighbours; else they are half of the turned columns apart.
    pub interleaved: bool,
    /// Whether pairs are turned the opposite way.
    pub conjugate: bool,
    /// Cosines, `[position, pair]`.
    pub cos: &'a [f64],
    /// Sines, `[position, pair]`.
    pub sin: &'a [f64],
}

impl ReferenceRotary<'_> {
    /// In `f64`, of `x`, `[row, head, column]`, and the position of each row: what [`crate::operators::Rotary::forward`] is checked against.
    ///
    /// # Errors
    /// [`Error::DataLength`] for a slice of another length than the others make it, [`Error::Range`] for a position that the tables do not have.
    pub fn forward(&self, x: &[f64], positions: &[usize]) -> Result<Vec<f64>> {
        self.check(x, positions)?;
        let mut out = x.to_vec();
        for (first, second, angle) in self.places(positions) {
            let (cos, sin) = (self.cos[angle], self.sin[angle] * if self.conjugate { -1.0 } else { 1.0 });
            out[first] = x[first] * cos - x[second] * sin;
            out[second] = x[first] * sin + x[second] * cos;
        }
        Ok(out)
    }

    /// As a straightforward program computes it: in `f32`, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`ReferenceRotary::forward`].
    pub fn forward_rounded(&self, x: &[f64], positions: &[usize], dtype: DType) -> Result<Vec<f64>> {
        self.check(x, positions)?;
        let mut out = x.to_vec();
        for (first, second, angle) in self.places(positions) {
            let [a, b, cos, sin] = [x[first], x[second], self.cos[angle], self.sin[angle]].map(|number| number as f32);
            let sin = if self.conjugate { -sin } else { sin };
            out[first] = f64::from(round(a * cos - b * sin, dtype));
            out[second] = f64::from(round(a * sin + b * cos, dtype));
        }
        Ok(out)
    }

    /// Where the columns of each pair are, and its angle.
    fn places<'p>(&'p self, positions: &'p [usize]) -> impl Iterator<Item = (usize, usize, usize)> + 'p {
        let heads = positions.iter().enumerate().flat_map(move |(row, &position)| {
            (0..self.heads).map(move |head| ((row * self.heads + head) * self.columns, position))
        });
        heads.flat_map(move |(start, position)| {
            (0..self.pairs).map(move |pair| {
                let (first, second) =
                    if self.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, self.pairs + pair) };
                (start + first, start + second, position * self.pairs + pair)
            })
        })
    }

    fn check(&self, x: &[f64], positions: &[usize]) -> Result<()> {
        let of = |found: usize, shape: Vec<usize>| {
            let expected = shape.iter().product();
            if found == expected { Ok(()) } else { Err(Error::DataLength { shape, expected, found }) }
        };
        of(x.len(), vec![positions.len(), self.heads, self.columns])?;
        of(self.sin.len(), vec![self.cos.len()])?;
        let extent = self.cos.len() / self.pairs.max(1);
        of(self.cos.len(), vec![extent, self.pairs])?;
        match positions.iter().find(|&&position| position >= extent) {
            Some(&position) => Err(Error::Range { axis: "positions", start: position, end: position + 1, len: extent }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::max_abs_difference;

    fn tables(positions: usize, pairs: usize) -> [Vec<f64>; 2] {
        let angles = || (0..positions * pairs).map(|i| (i / pairs) as f64 * 0.7f64.powi((i % pairs) as i32));
        [angles().map(f64::cos).collect(), angles().map(f64::sin).collect()]
    }

    fn wave(n: usize, f: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * f).sin()).collect()
    }

    #[test]
    fn pairs_by_hand() {
        let (cos, sin) = ([0.6, 0.0], [0.8, 1.0]);
        let halves = ReferenceRotary {
            heads: 1,
            columns: 5,
            pairs: 2,
            interleaved: false,
            conjugate: false,
            cos: &cos,
            sin: &sin,
        };
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        let out = halves.forward(&x, &[0]).unwrap();
        // (1, 3) by the first angle, (2, 4) by a quarter; 5 stays.
        assert!(max_abs_difference(&out, &[0.6 - 2.4, -4.0, 0.8 + 1.8, 2.0, 5.0]) < 1e-12, "{out:?}");
        let out = ReferenceRotary { interleaved: true, ..halves }.forward(&x, &[0]).unwrap();
        assert!(max_abs_difference(&out, &[0.6 - 1.6, 0.8 + 1.2, -4.0, 3.0, 5.0]) < 1e-12, "{out:?}");
    }

    #[test]
    fn the_opposite_turn_takes_it_back_and_is_the_gradient() {
        let [cos, sin] = tables(9, 3);
        let (x, dout) = (wave(4 * 2 * 7, 0.7), wave(4 * 2 * 7, 1.9));
        let positions = [0, 8, 3, 3];
        for interleaved in [false, true] {
            let turn =
                ReferenceRotary { heads: 2, columns: 7, pairs: 3, interleaved, conjugate: false, cos: &cos, sin: &sin };
            let back = ReferenceRotary { conjugate: true, ..turn };
            let out = turn.forward(&x, &positions).unwrap();
            assert!(max_abs_difference(&back.forward(&out, &positions).unwrap(), &x) < 1e-12);
            // The sum of `dout out` is linear in x.
            let dx = back.forward(&dout, &positions).unwrap();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            assert!((dot(&dout, &out) - dot(&dx, &x)).abs() < 1e-12);
            let rounded = turn.forward_rounded(&x, &positions, DType::F32).unwrap();
            assert!(max_abs_difference(&out, &rounded) < 1e-6 && out != rounded);
        }
    }

    #[test]
    fn slices_of_another_length_are_errors() {
        let [cos, sin] = tables(2, 3);
        let turn = ReferenceRotary {
            heads: 1,
            columns: 6,
            pairs: 3,
            interleaved: false,
            conjugate: false,
            cos: &cos,
            sin: &sin,
        };
        assert!(matches!(turn.forward(&[0.0; 7], &[0]), Err(Error::DataLength { found: 7, expected: 6, .. })));
        assert!(matches!(turn.forward(&[0.0; 6], &[2]), Err(Error::Range { .. })));
        assert!(ReferenceRotary { sin: &sin[..5], ..turn }.forward(&[0.0; 6], &[0]).is_err());
        assert!(ReferenceRotary { cos: &cos[..5], sin: &sin[..5], ..turn }.forward(&[0.0; 6], &[0]).is_err());
    }
}
