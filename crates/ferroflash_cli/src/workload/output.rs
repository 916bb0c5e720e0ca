//! Output and log-sum-exp of a workload, and what they are compared with.

mod gathered;

use super::program::Scores;
use super::{Case, Rows};
use crate::bench::record::{Check, ErrorQuantiles, LseCheck};
use anyhow::Result;
use ferroflash::reference::{self, Comparison, ReferenceOutput, Row};
use ferroflash::{Attention, Element, Sizes};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

/// Below this many operations the whole output is compared with the reference; about a second of f64 on two cores.
const FULL_CHECK_FLOPS: f64 = 1e9;

/// Rows drawn for the comparison of larger outputs, besides the first and last row of the first and last head.
const DRAWN_ROWS: usize = 128;

/// What results of a forward pass are compared with: output and log-sum-exp of some rows, one after the other.
pub(super) struct Reference {
    rows: Vec<Row>,
    exact: ReferenceOutput,
    /// The same formula in the precision of the tensors.
    rounded: ReferenceOutput,
}

impl Reference {
    /// Of these tensors; `table` has the pages of the sequences, one after the other, where there are pages.
    pub(super) fn new<T: Element>(
        case: &Case,
        scores: &Scores,
        tensors: [&[T]; 3],
        table: Option<&[i32]>,
        seed: u64,
    ) -> Result<Reference> {
        let rows = compared_rows(case, seed);
        if case.rows != Rows::Equal {
            let [exact, rounded] = gathered::forward_rows(case, tensors, table, &rows)?;
            return Ok(Reference { rows, exact, rounded });
        }
        let [q, k, v] = tensors.map(|data| data.par_iter().map(|x| x.to_f64()).collect::<Vec<_>>());
        let bound = scores.bind(None)?;
        let attention = scores.apply(Attention::new().with_mask(case.mask), bound.as_ref());
        let exact = reference::forward_rows(&q, &k, &v, case.problem, &attention, &rows)?;
        let rounded = reference::forward_rounded_rows(&q, &k, &v, case.problem, &attention, &rows)?;
        Ok(Reference { rows, exact, rounded })
    }

    /// Compares `out`, `[batch, row, head, dim]`, and `lse`, `[batch, head, row]`, if there is one, with the reference.
    pub(super) fn compare<T: Element>(&self, case: &Case, out: &[T], lse: Option<&[f32]>) -> Check {
        let Sizes { batch, q_rows, q_heads, head_dim, .. } = case.problem;
        let mut found = Vec::new();
        for row in &self.rows {
            let start = ((row.batch * q_rows + row.q_row) * q_heads + row.q_head) * head_dim;
            found.extend(out[start..start + head_dim].iter().map(|x| x.to_f64()));
        }
        let comparison = Comparison::new(&found, &self.exact.out, &self.rounded.out);
        let lse_check = lse.map(|lse| {
            let place = |row: &Row| (row.batch * q_heads + row.q_head) * q_rows + row.q_row;
            let found: Vec<f64> = self.rows.iter().map(|row| lse[place(row)].into()).collect();
            LseCheck {
                max_error: reference::max_abs_difference(&found, &self.exact.lse),
                bound: lse_bound(&self.exact.lse, &self.rounded.lse),
            }
        });
        // Every row of these problems sees a key, so whatever is not finite was not written, or is wrong.
        let all_written =
            out.par_iter().all(|x| x.to_f64().is_finite()) && lse.is_none_or(|lse| lse.iter().all(|x| x.is_finite()));
        Check {
            rows: self.rows.len(),
            rows_total: batch * q_heads * q_rows,
            max_error: comparison.max_error,
            error_quantiles: error_quantiles(&found, &self.exact.out),
            rounded_error: comparison.rounded_error,
            bound: comparison.bound,
            lse: lse_check,
            gradients: Vec::new(),
            within: comparison.within && lse_check.is_none_or(|lse| lse.max_error <= lse.bound) && all_written,
        }
    }
}

/// How `|found - exact|` is distributed; `None` when one of them is not finite.
pub(super) fn error_quantiles(found: &[f64], exact: &[f64]) -> Option<ErrorQuantiles> {
    let mut errors: Vec<f64> = found.iter().zip(exact).map(|(found, exact)| (found - exact).abs()).collect();
    if errors.is_empty() || !errors.iter().all(|error| error.is_finite()) {
        return None;
    }
    errors.sort_unstable_by(f64::total_cmp);
    let at = |fraction: f64| errors[(fraction * (errors.len() - 1) as f64).round() as usize];
    Some(ErrorQuantiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999) })
}

/// Largest accepted error of the log-sum-exp: the rule of the output, and 16 units in the last place of the largest value, which
/// passes through a base-2 logarithm on the way.
fn lse_bound(exact: &[f64], rounded: &[f64]) -> f64 {
    let largest = exact.iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()));
    reference::tolerance(reference::max_abs_difference(rounded, exact)) + 16.0 * f64::from(f32::EPSILON) * largest
}

/// Every row of a small problem; of a large one the first and last row of the first and last head, and drawn ones.
fn compared_rows(case: &Case, seed: u64) -> Vec<Row> {
    let Sizes { batch, q_rows, q_heads, .. } = case.problem;
    if case.flops() <= FULL_CHECK_FLOPS {
        let rows = (0..batch * q_heads * q_rows).map(|i| Row {
            batch: i / q_rows / q_heads,
            q_head: i / q_rows % q_heads,
            q_row: i % q_rows,
        });
        return rows.collect();
    }
    let mut rows = Vec::new();
    for (batch, q_head) in [(0, 0), (batch - 1, q_heads - 1)] {
        rows.extend([0, q_rows - 1].map(|q_row| Row { batch, q_head, q_row }));
    }
    let mut rng = SmallRng::seed_from_u64(seed);
    rows.extend((0..DRAWN_ROWS).map(|_| Row {
        batch: rng.random_range(0..batch),
        q_head: rng.random_range(0..q_heads),
        q_row: rng.random_range(0..q_rows),
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::super::case::tests::case;
    use super::*;
    use kernel_spec::Mask;

    #[test]
    fn small_problems_are_compared_in_full() {
        let rows = compared_rows(&case(2, 3, 2, Mask::Full), 0);
        let distinct: std::collections::HashSet<_> = rows.iter().collect();
        assert_eq!((rows.len(), distinct.len()), (12, 12));
    }

    #[test]
    fn large_problems_are_compared_at_their_corners_and_drawn_rows() {
        let rows = compared_rows(&case(4, 4096, 8, Mask::Full), 0);
        assert_eq!(rows.len(), 4 + DRAWN_ROWS);
        assert!(rows.contains(&Row { batch: 3, q_head: 7, q_row: 4095 }));
        assert_ne!(rows, compared_rows(&case(4, 4096, 8, Mask::Full), 1));
    }
}
