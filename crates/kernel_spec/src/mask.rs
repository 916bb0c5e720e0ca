//! Which key a query may see, and which key blocks a block of query rows has to visit.
//!
//! Every mask of this family is a band around the bottom-right diagonal: with `offset = kv_rows - q_rows`, query row `i` sees key
//! row `j` iff `i + offset - left <= j <= i + offset + right`. Causal is `left` unbounded and `right = 0`.
//!
//! ```text
//!             kv_row ->              blocks of one q_block:
//!   q_row   # # # . . . . .          first         unmasked_first   unmasked_end      end
//!     |     # # # # . . . .            |  test elements   |   no tests    |  test elements  |
//!     v     # # # # # . . .   (causal with kv_rows = q_rows + 2: `#` visible, `.` hidden)
//! ```

/// Largest `q_rows` and `kv_rows` (exclusive): `row + offset + right` then stays inside `i32` on the device.
pub const MAX_ROWS: u32 = 1 << 29;

/// Which keys a query row may see. Bounds are inclusive and aligned to the bottom-right corner of the score matrix, as in
/// FlashAttention 2.1 and later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mask {
    /// Every query sees every key.
    #[default]
    Full,
    /// Query row `i` sees key rows `j <= i + kv_rows - q_rows`.
    Causal,
    /// Query row `i` sees key rows from `i + kv_rows - q_rows - left` to `i + kv_rows - q_rows + right`; `None` is unbounded.
    Window {
        /// Keys visible before the diagonal, or `None` for all of them.
        left: Option<u32>,
        /// Keys visible after the diagonal, or `None` for all of them.
        right: Option<u32>,
    },
}

impl Mask {
    /// The band that the kernels work with.
    pub const fn band(self) -> Band {
        match self {
            Mask::Full => Band { left: Band::UNBOUNDED, right: Band::UNBOUNDED },
            Mask::Causal => Band { left: Band::UNBOUNDED, right: 0 },
            Mask::Window { left, right } => Band { left: Band::bound(left), right: Band::bound(right) },
        }
    }
}

/// A mask as the kernels read it: how far a query row sees to the left and right of the bottom-right diagonal.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Keys visible before the diagonal; [`Band::UNBOUNDED`] for all.
    pub left: i32,
    /// Keys visible after the diagonal; [`Band::UNBOUNDED`] for all.
    pub right: i32,
}

impl Band {
    /// No row pair of a legal problem is this far apart (see [`MAX_ROWS`]), so the bound never hides anything.
    pub const UNBOUNDED: i32 = MAX_ROWS as i32;

    const fn bound(keys: Option<u32>) -> i32 {
        match keys {
            Some(keys) if keys < MAX_ROWS => keys as i32,
            // Exact, not a clamp: rows are closer together than MAX_ROWS.
            Some(_) | None => Band::UNBOUNDED,
        }
    }

    /// Whether query row `q_row` sees key row `kv_row`; `offset = kv_rows - q_rows`.
    #[inline(always)]
    pub const fn sees(self, q_row: i32, kv_row: i32, offset: i32) -> bool {
        let diagonal = q_row + offset;
        kv_row >= diagonal - self.left && kv_row <= diagonal + self.right
    }

    /// The mask of the transposed problem, in which keys look at the query rows that see them: `self.sees(i, j, offset)` is
    /// `self.transposed().sees(j, i, -offset)`.
    #[inline(always)]
    pub const fn transposed(self) -> Band {
        Band { left: self.right, right: self.left }
    }

    /// The keys that query row `row` sees, as `[first, end]`; `end <= first` where it sees none.
    #[inline(always)]
    pub const fn keys(self, row: u32, q_rows: u32, kv_rows: u32) -> [u32; 2] {
        let diagonal = row as i32 + kv_rows as i32 - q_rows as i32;
        let (first, end) = (max(diagonal - self.left, 0), min(diagonal + self.right + 1, kv_rows as i32));
        [first as u32, max(end, 0) as u32]
    }

    /// How many query rows, the first of all, see no key.
    #[inline(always)]
    pub const fn rows_without_keys(self, q_rows: u32, kv_rows: u32) -> i32 {
        if kv_rows == 0 { q_rows as i32 } else { q_rows as i32 - kv_rows as i32 - self.right }
    }

    /// The key blocks that the `q_block` query rows from `q_first` on have to visit.
    ///
    /// Rows past `q_rows` do not count. Key rows past `kv_rows` are hidden, so the block that holds the end of the keys is
    /// always among the tested ones unless it is full.
    #[inline(always)]
    pub const fn kv_blocks(self, q_first: u32, q_block: u32, q_rows: u32, kv_rows: u32, kv_block: u32) -> KvBlocks {
        let offset = kv_rows as i32 - q_rows as i32;
        let q_first = q_first as i32;
        let q_last = min(q_first + q_block as i32, q_rows as i32) - 1;
        let kv_block = kv_block as i32;
        // Seen by at least one row: from the first row's left edge to the last row's right edge.
        let seen_first = max(q_first + offset - self.left, 0);
        let seen_end = max(min(q_last + offset + self.right + 1, kv_rows as i32), seen_first);
        // Seen by every row: from the last row's left edge to the first row's right edge.
        let shared_first = max(q_last + offset - self.left, 0);
        let shared_end = max(min(q_first + offset + self.right + 1, kv_rows as i32), 0);
        let first = seen_first / kv_block;
        let end = if seen_end == seen_first { first } else { div_ceil(seen_end, kv_block) };
        let unmasked_first = clamp(div_ceil(shared_first, kv_block), first, end);
        let unmasked_end = clamp(shared_end / kv_block, unmasked_first, end);
        KvBlocks {
            first: first as u32,
            unmasked_first: unmasked_first as u32,
            unmasked_end: unmasked_end as u32,
            end: end as u32,
        }
    }

    /// Steps for a sub-range of the query rows that visit `blocks`, the `rows` from `first` on; steps count visits from last to first,
    /// see [`KvBlocks::step`].
    #[inline(always)]
    pub const fn steps(
        self,
        blocks: KvBlocks,
        first: u32,
        rows: u32,
        q_rows: u32,
        kv_rows: u32,
        kv_block: u32,
    ) -> Steps {
        if first >= q_rows {
            // Nobody reads what becomes of these rows.
            return Steps { first: blocks.count() - 1, tested_end: 0 };
        }
        let own = self.kv_blocks(first, rows, q_rows, kv_rows, kv_block);
        if own.count() == 0 {
            // These rows see nothing, and learn it in one step.
            return Steps { first: blocks.count() - 1, tested_end: blocks.count() };
        }
        // Blocks behind the unmasked ones come first, from the end on. What these rows see in full of them needs no tests either, unless
        // blocks before the unmasked ones follow.
        let all_behind = blocks.first == blocks.unmasked_first;
        let tested_end =
            if all_behind { blocks.end - own.unmasked_end } else { blocks.count() - blocks.unmasked_count() };
        Steps { first: blocks.end - own.end, tested_end }
    }
}

/// The key blocks of one block of query rows: `first..end` are visited, `unmasked_first..unmasked_end` need no element tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBlocks {
    /// First key block that any row sees.
    pub first: u32,
    /// First key block that every row sees in full.
    pub unmasked_first: u32,
    /// One past the last key block that every row sees in full.
    pub unmasked_end: u32,
    /// One past the last key block that any row sees.
    pub end: u32,
}

impl KvBlocks {
    /// Blocks to visit.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        self.end - self.first
    }

    /// Blocks to visit that need no element tests.
    #[inline(always)]
    pub const fn unmasked_count(self) -> u32 {
        self.unmasked_end - self.unmasked_first
    }

    /// The block of visit `i` of `0..count()`: first the unmasked blocks, then those before them, then those behind them.
    ///
    /// The online softmax takes key blocks in any order. This one makes two loops, without and with element tests.
    #[inline(always)]
    pub const fn visit(self, i: u32) -> u32 {
        let unmasked = self.unmasked_count();
        if i < unmasked {
            self.unmasked_first + i
        } else if i < self.unmasked_end - self.first {
            self.first + i - unmasked
        } else {
            self.first + i
        }
    }

    /// Those of blocks `from..end` that are visited.
    #[inline(always)]
    pub const fn between(self, from: u32, end: u32) -> KvBlocks {
        const fn inside(x: u32, from: u32, end: u32) -> u32 {
            if x < from {
                from
            } else if x > end {
                end
            } else {
                x
            }
        }
        KvBlocks {
            first: inside(self.first, from, end),
            unmasked_first: inside(self.unmasked_first, from, end),
            unmasked_end: inside(self.unmasked_end, from, end),
            end: inside(self.end, from, end),
        }
    }

    /// The block of step `i` of `0..count()`: the visits from the last to the first, so that those with element tests come first.
    #[inline(always)]
    pub const fn step(self, i: u32) -> u32 {
        self.visit(self.count() - 1 - i)
    }
}

/// What some rows of a block of query rows do in its steps, see [`Band::steps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// First step with a key that any of these rows sees; the last one if there is none.
    pub first: u32,
    /// First step from which on they see all keys, so that no element tests are needed.
    pub tested_end: u32,
}

impl Steps {
    /// No step at all.
    pub const NONE: Steps = Steps { first: 0, tested_end: 0 };
}

// `Ord::min` is no const fn.
const fn min(a: i32, b: i32) -> i32 {
    if a < b { a } else { b }
}

const fn max(a: i32, b: i32) -> i32 {
    if a > b { a } else { b }
}

const fn clamp(x: i32, low: i32, high: i32) -> i32 {
    max(low, min(x, high))
}

const fn div_ceil(a: i32, b: i32) -> i32 {
    (a + b - 1) / b
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASKS: [Mask; 6] = [
        Mask::Full,
        Mask::Causal,
        Mask::Window { left: Some(0), right: Some(0) },
        Mask::Window { left: Some(3), right: Some(2) },
        Mask::Window { left: Some(9), right: None },
        Mask::Window { left: None, right: Some(5) },
    ];

    /// Compares the closed form with a scan over every element, for every small shape.
    #[test]
    fn keys_equal_a_scan_over_elements() {
        for (q_rows, kv_rows) in [(1, 1), (3, 7), (7, 3), (5, 5)] {
            for (left, right) in
                [(None, Some(0)), (Some(1), Some(1)), (Some(0), None), (None, None), (Some(9), Some(2))]
            {
                let band = Mask::Window { left, right }.band();
                for row in 0..q_rows {
                    let [first, end] = band.keys(row, q_rows, kv_rows);
                    for key in 0..kv_rows {
                        let seen = band.sees(row as i32, key as i32, kv_rows as i32 - q_rows as i32);
                        assert_eq!(seen, (first..end).contains(&key), "{band:?} {q_rows} {kv_rows} {row} {key}");
                    }
                }
            }
        }
    }

    /// A key looks at the query rows that see it.
    #[test]
    fn the_transposed_mask_has_rows_and_keys_exchanged() {
        for band in MASKS.map(Mask::band) {
            for (q_rows, kv_rows) in [(1, 1), (3, 7), (7, 3), (5, 5), (12, 13)] {
                let offset = kv_rows - q_rows;
                for (row, key) in (0..q_rows).flat_map(|row| (0..kv_rows).map(move |key| (row, key))) {
                    assert_eq!(band.sees(row, key, offset), band.transposed().sees(key, row, -offset), "{band:?}");
                }
            }
        }
    }

    #[test]
    fn kv_blocks_equal_a_scan_over_elements() {
        for mask in MASKS {
            let band = mask.band();
            for q_rows in 1..14u32 {
                for kv_rows in 0..14u32 {
                    for (q_block, kv_block) in [(1, 1), (4, 3), (2, 4), (16, 8)] {
                        for q_first in (0..q_rows).step_by(q_block as usize) {
                            let blocks = band.kv_blocks(q_first, q_block, q_rows, kv_rows, kv_block);
                            check(band, blocks, q_first, q_block, q_rows, kv_rows, kv_block);
                        }
                    }
                }
            }
        }
    }

    fn check(band: Band, b: KvBlocks, q_first: u32, q_block: u32, q_rows: u32, kv_rows: u32, kv_block: u32) {
        assert!(b.first <= b.unmasked_first && b.unmasked_first <= b.unmasked_end && b.unmasked_end <= b.end, "{b:?}");
        let rows = q_first..(q_first + q_block).min(q_rows);
        let offset = kv_rows as i32 - q_rows as i32;
        for block in 0..kv_rows.div_ceil(kv_block) + 1 {
            let keys = block * kv_block..(block + 1) * kv_block;
            let sees = |i: u32, j: u32| j < kv_rows && band.sees(i as i32, j as i32, offset);
            let any = rows.clone().any(|i| keys.clone().any(|j| sees(i, j)));
            let all = rows.clone().all(|i| keys.clone().all(|j| sees(i, j)));
            let visited = b.first <= block && block < b.end;
            assert!(!any || visited, "block {block} is seen but not visited: {b:?}");
            if visited {
                let unmasked = b.unmasked_first <= block && block < b.unmasked_end;
                assert_eq!(unmasked, all, "block {block}: {b:?}, rows {rows:?}, {q_rows} x {kv_rows}");
                let visits = (0..b.count()).filter(|&i| b.visit(i) == block);
                assert!(visits.map(|i| i < b.unmasked_count()).eq([unmasked]), "block {block}: one visit, in its loop");
            }
        }
    }

    /// Compares the steps of parts of a query block with a scan over every element.
    #[test]
    fn steps_of_parts_equal_a_scan_over_elements() {
        for mask in MASKS {
            let band = mask.band();
            for (q_rows, kv_rows) in (1..20u32).flat_map(|q| (0..20u32).map(move |kv| (q, kv))) {
                for (q_block, kv_block) in [(4, 2), (4, 3), (6, 4), (8, 2), (8, 16)] {
                    for q_first in (0..q_rows).step_by(q_block as usize) {
                        let blocks = band.kv_blocks(q_first, q_block, q_rows, kv_rows, kv_block);
                        if blocks.count() > 0 {
                            for part in (q_first..q_first + q_block).step_by(2) {
                                check_steps(band, blocks, part, q_rows, kv_rows, kv_block);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Steps of the two rows from `part` on.
    fn check_steps(band: Band, blocks: KvBlocks, part: u32, q_rows: u32, kv_rows: u32, kv_block: u32) {
        let steps = band.steps(blocks, part, 2, q_rows, kv_rows, kv_block);
        assert!(steps.first < blocks.count(), "one step at least: {steps:?} of {blocks:?}");
        let rows = part..(part + 2).min(q_rows);
        let offset = kv_rows as i32 - q_rows as i32;
        let sees = |i: u32, j: u32| j < kv_rows && band.sees(i as i32, j as i32, offset);
        for step in 0..blocks.count() {
            let block = blocks.step(step);
            let keys = block * kv_block..(block + 1) * kv_block;
            let any = rows.clone().any(|i| keys.clone().any(|j| sees(i, j)));
            let all = rows.clone().all(|i| keys.clone().all(|j| sees(i, j)));
            assert!(
                step >= steps.first || !any,
                "step {step} is skipped and seen: {steps:?} of {blocks:?}, rows {rows:?}"
            );
            assert!(step < steps.tested_end || all, "step {step} needs tests: {steps:?} of {blocks:?}, rows {rows:?}");
            // No more than that, among the blocks behind the unmasked ones.
            if block >= blocks.unmasked_end {
                let last = step + 1 == blocks.count();
                assert!(step != steps.first || any || last, "step {step} could be skipped: {steps:?} of {blocks:?}");
                let tested = steps.first <= step && step < steps.tested_end;
                let left_tests = blocks.first != blocks.unmasked_first;
                assert!(!tested || !all || last || left_tests, "step {step} needs no tests: {steps:?} of {blocks:?}");
            }
        }
    }

    #[test]
    fn a_bound_past_every_row_is_unbounded() {
        let band = Mask::Window { left: Some(u32::MAX), right: Some(MAX_ROWS) }.band();
        assert_eq!(band, Mask::Full.band());
    }
}
