//! The problem of a cell: its sizes, and how much work it is.

use super::program::Program;
use super::rows::Rows;
use ferroflash::{Shape, Sizes};
use kernel_spec::Mask;

/// Most copies of the tensors that launches go round: beyond, their allocation takes longer than the launches.
const MAX_SETS: u64 = 64;

/// Sizes, element type and mask of one problem, where its rows are, and what its scores pass through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) problem: Sizes,
    pub(crate) mask: Mask,
    pub(crate) rows: Rows,
    pub(crate) program: Option<Program>,
}

impl Case {
    /// A problem of equal sequences.
    pub(crate) fn new(problem: Sizes, mask: Mask) -> Case {
        Case { problem, mask, rows: Rows::Equal, program: None }
    }

    /// How many sequences there are.
    pub(crate) fn sequences(&self) -> usize {
        match self.rows {
            Rows::Packed(lengths) => lengths.rows.len(),
            _ => self.problem.batch,
        }
    }

    /// Bytes of the keys and values in a cache, which a call reads once at least; `None` where there is no cache.
    pub(crate) fn kv_bytes(&self) -> Option<u64> {
        let Sizes { batch, kv_rows, kv_heads, head_dim, dtype, .. } = self.problem;
        self.rows.cached().then(|| (2 * batch * kv_rows * kv_heads * head_dim * dtype.bytes()) as u64)
    }

    /// Floating-point operations by the convention of the FlashAttention papers: two matrix products of what the mask leaves. What a program
    /// does counts for nothing, also where it hides keys.
    pub(crate) fn flops(&self) -> f64 {
        4.0 * self.scores() * self.problem.head_dim as f64
    }

    /// Scores of all heads that a row sees: of equal sequences half of them with the causal mask, by the convention of the papers; with a
    /// window, in a cache and of packed sequences each that the mask leaves.
    pub(crate) fn scores(&self) -> f64 {
        let Sizes { batch, q_rows, kv_rows, q_heads, .. } = self.problem;
        let of_a_head = match self.rows {
            Rows::Equal if self.mask == Mask::Causal => q_rows as f64 * kv_rows as f64 / 2.0,
            Rows::Packed(lengths) => lengths.rows.iter().map(|&rows| visible(self.mask, rows, rows)).sum(),
            _ => visible(self.mask, q_rows, kv_rows),
        };
        batch as f64 * q_heads as f64 * of_a_head
    }

    /// How many copies of the tensors are needed to fill twice a cache of this size.
    pub(crate) fn rotated_sets(&self, cache_bytes: u64) -> u64 {
        (2 * cache_bytes).div_ceil(self.tensor_bytes().max(1)).clamp(2, MAX_SETS)
    }

    /// Bytes of q, k, v and out.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        let elements = |shape: Shape| shape.elements().unwrap_or(usize::MAX) as u64;
        let elements = elements(self.q_shape()).saturating_add(elements(self.kv_shape()));
        elements.saturating_mul(2 * self.problem.dtype.bytes() as u64)
    }

    pub(super) fn q_shape(&self) -> Shape {
        Shape::new(self.problem.batch, self.problem.q_rows, self.problem.q_heads, self.problem.head_dim)
    }

    /// Of k and v; of pages `[page, row, head, dim]`.
    pub(super) fn kv_shape(&self) -> Shape {
        let Sizes { batch, kv_rows, kv_heads, head_dim, .. } = self.problem;
        match self.rows {
            Rows::Pages(rows) => Shape::new(batch * kv_rows.div_ceil(rows), rows, kv_heads, head_dim),
            _ => Shape::new(batch, kv_rows, kv_heads, head_dim),
        }
    }
}

/// Scores of one head and sequence that a mask leaves.
fn visible(mask: Mask, q_rows: usize, kv_rows: usize) -> f64 {
    let (left, right) = match mask {
        Mask::Causal => (None, Some(0)),
        Mask::Window { left, right } => (left, right),
        _ => (None, None),
    };
    (0..q_rows).map(|row| keys_in_window(row, q_rows, kv_rows, left, right) as f64).sum()
}

/// How many keys a row sees: its own place counts from the last row and the last key.
fn keys_in_window(row: usize, q_rows: usize, kv_rows: usize, left: Option<u32>, right: Option<u32>) -> i64 {
    let place = row as i64 + kv_rows as i64 - q_rows as i64;
    let first = left.map_or(0, |left| (place - i64::from(left)).max(0));
    let last = right.map_or(kv_rows as i64 - 1, |right| (place + i64::from(right)).min(kv_rows as i64 - 1));
    (last - first + 1).max(0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::rows::Lengths;
    use super::*;
    use kernel_spec::DType;

    /// Of f16 in 64 dims, with as many keys as queries.
    pub(in crate::workload) fn case(batch: usize, seq: usize, heads: usize, mask: Mask) -> Case {
        let problem = Sizes {
            batch,
            q_rows: seq,
            kv_rows: seq,
            q_heads: heads,
            kv_heads: heads,
            head_dim: 64,
            dtype: DType::F16,
        };
        Case::new(problem, mask)
    }

    #[test]
    fn flops_follow_the_papers() {
        assert_eq!(case(2, 512, 3, Mask::Full).flops(), 4.0 * 2.0 * 3.0 * 512.0 * 512.0 * 64.0);
        assert_eq!(case(2, 512, 3, Mask::Causal).flops() * 2.0, case(2, 512, 3, Mask::Full).flops());
    }

    #[test]
    fn caches_count_what_is_read_and_packed_sequences_what_is_seen() {
        let problem =
            Sizes { batch: 3, q_rows: 2, kv_rows: 40, q_heads: 8, kv_heads: 2, head_dim: 128, dtype: DType::Bf16 };
        let cache = Case { rows: Rows::Cache, ..Case::new(problem, Mask::Causal) };
        assert_eq!(cache.kv_bytes(), Some(2 * 3 * 40 * 2 * 128 * 2));
        // The first row does not see the last key.
        assert_eq!(cache.flops(), 4.0 * 128.0 * 3.0 * 8.0 * f64::from(39 + 40));
        let pages = Case { rows: Rows::Pages(16), ..cache };
        assert_eq!((pages.kv_bytes(), pages.flops()), (cache.kv_bytes(), cache.flops()));
        assert_eq!(pages.kv_shape(), Shape::new(9, 16, 2, 128));

        let lengths = Lengths { name: "two", rows: &[3, 1] };
        let problem = Sizes { batch: 1, q_rows: 4, kv_rows: 4, ..problem };
        let packed = Case { rows: Rows::Packed(lengths), ..Case::new(problem, Mask::Causal) };
        assert_eq!(packed.flops(), 4.0 * 128.0 * 8.0 * f64::from(1 + 2 + 3 + 1));
        assert_eq!((packed.kv_bytes(), packed.sequences(), cache.sequences()), (None, 2, 3));
    }

    #[test]
    fn windows_count_what_a_row_sees() {
        for (q_rows, kv_rows) in [(1, 1), (5, 5), (3, 8), (8, 3)] {
            for left in [None, Some(0), Some(2), Some(9)] {
                for right in [None, Some(0), Some(1), Some(9)] {
                    let sees = |row: i64, key: i64| {
                        let place = row + kv_rows - q_rows;
                        left.is_none_or(|left| key >= place - i64::from(left))
                            && right.is_none_or(|right| key <= place + i64::from(right))
                    };
                    let pairs = (0..q_rows).flat_map(|row| (0..kv_rows).map(move |key| (row, key)));
                    let seen = pairs.filter(|&(row, key)| sees(row, key)).count();
                    let mut windowed = case(2, q_rows as usize, 3, Mask::Window { left, right });
                    windowed.problem.kv_rows = kv_rows as usize;
                    assert_eq!(windowed.scores(), 6.0 * seen as f64, "{q_rows} {kv_rows} {left:?} {right:?}");
                    assert_eq!(windowed.flops(), 4.0 * 64.0 * windowed.scores());
                }
            }
        }
    }
}
