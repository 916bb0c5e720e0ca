//! Which keys a program on scores shows to which rows, block by block: written down once for many calls, and made into lists of the tiles
//! that a kernel visits.
//!
//! ```text
//!   classes: units of 64 rows x 16 keys                          list of one tile of queries
//!   . . # # / . . .      `#` every row sees every key             [visited, tested, 0, 0 | 1, 4, 2, 3]
//!   . / # # / . . .      `/` some do                                                    tested  seen
//!   . / # # # / . .      `.` none does: not visited
//! ```
//!
//! Units are smaller than any kernel's tile, and divide those: one set of classes serves them all.

use super::forward::{FORWARD_SLOTS, ForwardFeatures, features};
use crate::divisor::Divisor;
use crate::entry::{Arch, Entry};
use crate::features::{FeatureSet, Features};
use crate::mask::Band;

/// Rows of a unit: those of a warpgroup of v3.
pub const UNIT_ROWS: u32 = 64;

/// Keys of a unit: what tile widths are multiples of.
pub const UNIT_KEYS: u32 = 16;

/// Rows of the largest tile with lists.
pub const MOST_ROWS: u32 = 128;

/// Keys of the largest tile with lists.
pub const MOST_KEYS: u32 = 128;

/// Neighbouring units of one row of them that a warp writes: one for each half of it, and a key for each lane.
pub const UNITS_OF_WARP: u32 = 2;

/// A unit none of whose keys is seen by any of its rows.
pub const HIDDEN: u16 = 0;

/// A unit of which some rows see some keys.
pub const PARTIAL: u16 = 1;

/// A unit all of whose keys are seen by all of its rows.
pub const SEEN: u16 = 2;

/// Threads of a thread block of either kernel.
pub const THREADS: u32 = 128;

/// Words before the first list: how many words a list has, after how many the next head's and the next batch entry's first list starts (0
/// where all have the same), and the first word of the followers; then [`TAKEN_WORD`], alone among four, so that nobody reads it with others.
///
/// Lists differ in length as no schedule knows beforehand: with a static one the busiest multiprocessor had a fifth more to do than the mean
/// (documents, H200). So thread blocks take the tiles of a call in the order in which they ask, each its own first one. The followers, a word for each slot
/// of the schedule behind all lists, are the slots that a thread block took behind others: for who walks along its tiles once more.
pub const HEAD_WORDS: u32 = 8;

/// The word that counts the tiles taken, without the first ones.
pub const TAKEN_WORD: u32 = 4;

/// Words of a list before its entries: how many tiles of keys are visited, and how many of them, the first ones, need element tests. Two are
/// unused: lists start at multiples of 16 bytes.
pub const LIST_WORDS: u32 = 4;

/// Words of a list that has room for `kv_tiles` tiles, and for the one that a row without keys visits.
pub const fn list_words(kv_tiles: u32) -> u32 {
    LIST_WORDS + (kv_tiles + 1).next_multiple_of(LIST_WORDS)
}

/// Parameters of the first kernel: the class of every unit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassesParams {
    /// Device address of the classes, a byte each, `[batch, head, unit of rows, pair of units of keys, 2]`.
    pub classes: u64,
    /// Query rows of a batch entry.
    pub q_rows: u32,
    /// Keys of a batch entry.
    pub kv_rows: u32,
    /// Pairs of units along the keys.
    pub key_pairs: Divisor,
    /// Units along the rows.
    pub row_units: Divisor,
    /// Heads that classes are written for.
    pub heads: Divisor,
    /// Pairs of units in all.
    pub count: u32,
    /// What a program reads.
    pub features: ForwardFeatures,
}

/// Parameters of the second one: the lists for a kernel's tiles, under the mask of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ListsParams {
    /// Device address of the classes.
    pub classes: u64,
    /// Device address of [`HEAD_WORDS`], the lists, `u32 [batch, head, tile, words]`, and the followers.
    pub lists: u64,
    /// Query rows of a batch entry.
    pub q_rows: u32,
    /// Keys of a batch entry.
    pub kv_rows: u32,
    /// Rows of a tile, a multiple of [`UNIT_ROWS`].
    pub q_block: u32,
    /// Keys of a tile, a multiple of [`UNIT_KEYS`].
    pub kv_block: u32,
    /// Tiles of queries.
    pub tiles: Divisor,
    /// Units along the rows.
    pub row_units: u32,
    /// Pairs of units along the keys.
    pub key_pairs: u32,
    /// Words of a list.
    pub words: u32,
    /// Words from one head's first list to the next one's, or 0.
    pub head_words: u32,
    /// The same of batch entries.
    pub batch_words: u32,
    /// Lists.
    pub count: u32,
    /// Which keys a row sees.
    pub band: Band,
    /// Fills up to 8 bytes.
    pub unused: u32,
    /// None yet.
    pub features: Features<0>,
}

const fn entry(symbol: &'static str, params_bytes: usize, feature_slots: u32, accepts: FeatureSet) -> Entry {
    Entry {
        symbol,
        arch: Arch::Sm80,
        threads: THREADS,
        shared_bytes: 0,
        min_ctas: 8,
        params_bytes: params_bytes as u32,
        feature_slots,
        accepts,
        cooperative: false,
        max_cluster: 1,
    }
}

/// The kernel that classifies.
pub const CLASSES: Entry =
    entry("block_classes", size_of::<ClassesParams>(), FORWARD_SLOTS, FeatureSet::of(features::PROGRAM));

/// The kernel that lists.
pub const LISTS: Entry = entry("block_lists", size_of::<ListsParams>(), 0, FeatureSet::NONE);

/// Every compiled entry point.
pub const ENTRIES: [&Entry; 2] = [&CLASSES, &LISTS];
