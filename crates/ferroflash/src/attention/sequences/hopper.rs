//! v3 over sequences: a list of their tiles, the tiles, and, where the keys are split, a merge.

use super::super::choose::check_copies;
use super::super::options::{Attention, KernelChoice, Splits};
use super::super::request::{Placed, Request, Tensors};
use super::launches::{Launches, find, is_decode, problem_of};
use super::params::{Arrays, Cut};
use super::sizes::SequenceSizes;
use super::split::{keys, keys_per_row};
use crate::device::DeviceInfo;
use crate::error::{Error, Operand, Result, Unsupported};
use crate::plan::{Binding, check_device, check_hopper};
use crate::specialise::Specialised;
use kernel_spec::copy_engine::WRAPPED_BYTES;
use kernel_spec::families::forward::features::{PROGRAM, SINK, SOFTCAP};
use kernel_spec::families::sequences::{self, MAX_SPLITS, TileEntry};
use kernel_spec::schedule::{self, MAX_TILES};
use kernel_spec::{DType, FeatureSet, Kernel, Pass, Variant};

mod parameters;

/// Least rows of a piece of a page. The swizzle of a tile in shared memory repeats after 8, which is the least that there can be; pieces of 8
/// would be 32 copies of 1 KiB a block of 128 keys and of as many values. Neither was measured.
const LEAST_PIECE: usize = 16;

/// Blocks of keys of a split, at least: a tile overlaps nothing at its start and its end, and its sums are written, and read by the merge. Not
/// measured.
const LEAST_BLOCKS: u32 = 4;

/// Bytes of sums of a single split up to which a call that leaves the choice to the library has them: 8192 rows of 32 heads of 128 dims take
/// 128 MiB. Beyond, memory counts for more than time.
const MOST_SUM_BYTES: u128 = 1 << 30;

/// Rows along an axis of a map, at most: coordinates are `i32`.
const MAX_MAP_ROWS: u64 = 1 << 31;

/// Rows of all heads and splits, fewer than which there are: the kernel counts them in 32 bits.
const MAX_PLACES: u64 = 1 << 32;

/// How v3 runs a call.
pub(super) struct Choice {
    row: &'static Variant,
    /// Query heads that share a tile.
    pub(super) packed_heads: u32,
    /// Tiles of a head, or of heads that share one, without splits.
    tiles: u64,
    pub(super) splits: u32,
    split_keys: u32,
    /// Rows that are loaded at a time from a page, if there are pages.
    piece_rows: Option<u32>,
    q_step: u32,
    kv_step: u32,
}

/// How v3 runs a call, or why it does not, where it is asked for.
pub(super) fn choose(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    arrays: &Arrays,
    tensors: &Tensors,
    features: FeatureSet,
) -> Result<Option<Choice>> {
    let asked = match attention.kernel {
        KernelChoice::Variant(row) if matches!(row.pass, Pass::PackedV3 | Pass::SplitV3) => Some(row),
        // A step of generation for every sequence.
        KernelChoice::Auto if is_decode(sizes) => return Ok(None),
        KernelChoice::Auto | KernelChoice::Kernel(Kernel::V3) => None,
        _ => return Ok(None),
    };
    let choice = || {
        check_hopper(device)?;
        let of = Asked { row: asked, attention, device, sizes, features };
        Choice::of(&of, check(sizes, arrays, tensors)?)
    };
    match choice() {
        Ok(choice) if attention.kernel == KernelChoice::Auto && choice.sum_bytes(sizes) > MOST_SUM_BYTES => Ok(None),
        Ok(choice) => Ok(Some(choice)),
        Err(_) if attention.kernel == KernelChoice::Auto => Ok(None),
        Err(reason) => Err(Error::KernelUnsupported { kernel: Kernel::V3, reason }),
    }
}

/// What does not depend on the device or a row. Gives the rows from one batch entry of q, and of k, to the next.
fn check(sizes: &SequenceSizes, arrays: &Arrays, tensors: &Tensors) -> Result<[u32; 2], Unsupported> {
    let Tensors { q, k, v, out } = tensors;
    if sizes.kv_rows == 0 {
        return Err(Unsupported::NoKeys);
    }
    if arrays.pages.is_some() && arrays.kv_first {
        return Err(Unsupported::LeftPadding);
    }
    if let Some(found) = sizes.page_rows.filter(|rows| !rows.is_multiple_of(LEAST_PIECE)) {
        return Err(Unsupported::PageRows { found, multiple: LEAST_PIECE });
    }
    let operands = [(Operand::Q, q), (Operand::K, k), (Operand::V, v), (Operand::Out, out)];
    for (operand, placed) in operands {
        check_copies(operand, placed)?;
        let [_, (rows, stride), ..] = placed.axes;
        let bytes = stride as u64 * placed.dtype.bytes() as u64;
        if rows > 1 && bytes >= WRAPPED_BYTES {
            return Err(Unsupported::RowBytes { tensor: operand, bytes, limit: WRAPPED_BYTES });
        }
    }
    let same_step = |(tensor, placed): (Operand, &Placed), (other, like): (Operand, &Placed)| {
        let [found, accepted] = [entry_rows(tensor, placed)?, entry_rows(other, like)?];
        if found == accepted { Ok(found) } else { Err(Unsupported::EntryRows { tensor, found, other, accepted }) }
    };
    let [q, k, v, out] = operands;
    Ok([same_step(out, q)?, same_step(v, k)?])
}

/// Rows from one batch entry to the next, or from one page; 0 where there is one alone.
fn entry_rows(tensor: Operand, placed: &Placed) -> Result<u32, Unsupported> {
    let [(entries, entry_stride), (rows, row_stride), ..] = placed.axes;
    if entries <= 1 {
        return Ok(0);
    }
    if rows <= 1 || !entry_stride.is_multiple_of(row_stride) {
        return Err(Unsupported::EntryStride { tensor, entry_stride, row_stride });
    }
    let step = (entry_stride / row_stride) as u64;
    let found = step * entries as u64 + rows as u64;
    if found >= MAX_MAP_ROWS {
        return Err(Unsupported::TooManyRows { tensor, found, limit: MAX_MAP_ROWS });
    }
    Ok(step as u32)
}

/// What a choice is made from, beside the tensors.
struct Asked<'a> {
    row: Option<&'static Variant>,
    attention: &'a Attention<'a>,
    device: &'a DeviceInfo,
    sizes: &'a SequenceSizes,
    features: FeatureSet,
}

/// The row of a pass whose tile suits a call whose rows see `seen` keys: a smaller one where there are few query rows, or where the long one
/// would leave too much of the GPU idle.
fn suited(
    pass: Pass,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    seen: u32,
    features: FeatureSet,
) -> Option<&'static Variant> {
    let (dtype, dim) = (sizes.dtype, sizes.head_dim as u32);
    let long = sequences::find(pass, dtype, dim, seen, features)?;
    // Heads of a group share a tile, in powers of two.
    let rows = sizes.longest_q.saturating_mul((sizes.q_heads / sizes.kv_heads).next_power_of_two());
    let of_few_rows = u32::try_from(rows).ok().and_then(|rows| sequences::find_few(pass, dtype, dim, rows, features));
    // Unless it is a row for more columns than there are.
    let of_few_rows = of_few_rows.filter(|row| row.dim_qk == long.dim_qk && row.q_block < long.q_block);
    let short = sequences::find(pass, dtype, dim, 0, features).filter(|row| leaves_idle(long, row, device, sizes));
    of_few_rows.or(short).or(Some(long))
}

impl Choice {
    fn of(asked: &Asked<'_>, [q_step, kv_step]: [u32; 2]) -> Result<Choice, Unsupported> {
        let Asked { row: asked, attention, device, sizes, features } = *asked;
        let seen = keys_per_row(attention, sizes);
        let row = |pass| {
            // Of splits, whoever merges them takes the sinks.
            let features = if pass == Pass::SplitV3 { features.without(FeatureSet::of(SINK)) } else { features };
            let suited = || suited(pass, device, sizes, seen, features);
            let row = asked.map_or_else(suited, |row| (row.pass == pass).then_some(row));
            row.filter(|row| row.holds(sizes.dtype, [sizes.head_dim as u32; 2]) && row.entry.accepts.contains(features))
        };
        let (whole, split) = (row(Pass::PackedV3), row(Pass::SplitV3));
        let (splits, split_keys) = match split {
            Some(row) => splits(attention, device, sizes, row)?,
            None if matches!(attention.splits, Splits::Auto | Splits::Count(1)) => (1, 0),
            None if whole.is_some() => return Err(unsplittable(attention, "one split".to_owned())),
            None => return Err(no_row(sizes, features)),
        };
        let piece_rows = match (sizes.page_rows, split) {
            (None, _) => None,
            (Some(rows), Some(row)) => Some(piece_rows(rows, row)),
            (Some(_), None) => {
                let found = problem_of(sizes).sequences.name();
                return Err(Unsupported::Sequences { found, accepted: "packed and cached" });
            }
        };
        // Whole tiles find the log-sum-exp by the row of q, of which sequences have as many as they are rows apart.
        let is_dense = sizes.packed_q || q_step == 0 || q_step as usize == sizes.q_rows;
        if !is_dense && split.is_none() {
            let (tensor, other) = (Operand::Q, Operand::Lse);
            return Err(Unsupported::EntryRows { tensor, found: q_step, other, accepted: sizes.q_rows as u32 });
        }
        let is_whole = splits == 1 && piece_rows.is_none() && is_dense;
        let row = if is_whole { whole.or(split) } else { split }.ok_or_else(|| no_row(sizes, features))?;
        let (tiles, packed_heads) = tiles(sizes, row);
        let choice = Choice { row, packed_heads, tiles, splits, split_keys, piece_rows, q_step, kv_step };
        let places = (sizes.tokens() as u64).saturating_mul(sizes.q_heads as u64).saturating_mul(splits.into());
        if places >= MAX_PLACES {
            return Err(Unsupported::TooManyRows { tensor: Operand::Out, found: places, limit: MAX_PLACES });
        }
        let found = u128::from(choice.room()) * sizes.q_heads as u128;
        if found > MAX_TILES.into() {
            return Err(Unsupported::TooManyTiles { found, limit: MAX_TILES });
        }
        Ok(choice)
    }

    /// Entries of the list, at most.
    fn room(&self) -> u64 {
        self.tiles.saturating_mul(self.splits.into())
    }

    /// Bytes of the sums of a single split, which prefill does without.
    fn sum_bytes(&self, sizes: &SequenceSizes) -> u128 {
        let has_sums = self.row.pass == Pass::SplitV3 && self.splits == 1;
        if has_sums { sizes.tokens() as u128 * sizes.q_heads as u128 * sizes.head_dim as u128 * 4 } else { 0 }
    }

    /// Why this kernel.
    pub(super) fn reason(&self) -> String {
        let mut reason = "asynchronous copies and products, and tiles in the order of their length".to_owned();
        if self.splits > 1 {
            reason += &format!("; {} splits of the keys", self.splits);
        }
        if let Some(rows) = self.piece_rows {
            reason += &format!("; pages in pieces of {rows} rows");
        }
        reason
    }

    /// Adds the launches, and the memory between them. Queries are read from `q`.
    pub(super) fn launch(
        &self,
        request: &Request<'_>,
        device: &DeviceInfo,
        sizes: &SequenceSizes,
        arrays: &Arrays,
        q: Binding,
        launches: &mut Launches,
    ) -> Result<()> {
        let Choice { row, packed_heads, splits, split_keys, .. } = *self;
        check_device(&row.entry, device)?;
        let is_split = row.pass == Pass::SplitV3;
        let bytes = (self.room() + 1) * size_of::<TileEntry>() as u64;
        let reason = "the first step lists the tiles of the sequences, the longest first, the next takes them in turn";
        let list = launches.buffer("tiles", bytes, reason);
        let partial = is_split.then(|| launches.partial(sizes, splits));
        let lister = find(Pass::Tiles, &SequenceSizes { dtype: DType::F32, ..*sizes }, FeatureSet::NONE)?;
        // Nothing to do where there are no queries.
        let ctas = |ctas: u64| if sizes.tokens() == 0 { 0 } else { ctas as u32 };
        let tiles = self.room() * sizes.q_heads as u64 / u64::from(packed_heads);
        let tile = format!("{} x {}: {}", row.q_block, row.kv_block, row.reason);
        let params = self.list_params(request, sizes, arrays, list);
        launches.step(Specialised::plain(&lister.entry), ctas(1), lister.reason.to_owned(), params);
        let params = match partial {
            Some(partial) => self.split_params(request, sizes, arrays, [q, list], partial),
            None => self.whole_params(request, sizes, [q, list]),
        };
        launches.step(
            request.specialised(row, FeatureSet::NONE),
            ctas(tiles.min(resident(device, row).into())),
            tile,
            params,
        );
        if let Some(partial) = partial {
            let cut = Cut { splits, split_keys, ..Cut::of(row, sizes) };
            launches.merge(request, sizes, arrays, &cut, q, partial)?;
        }
        Ok(())
    }
}

/// Splits that a call asks for, and their keys, as far as a row makes them.
fn splits(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    row: &Variant,
) -> Result<(u32, u32), Unsupported> {
    let block = row.kv_block;
    let refused = || unsplittable(attention, format!("at most {MAX_SPLITS} splits, of whole blocks of {block} keys,"));
    match attention.splits {
        Splits::Auto => {
            let (tiles, packed_heads) = tiles(sizes, row);
            let blocks = keys(attention, sizes).div_ceil(block as usize) as u32;
            let tiles = tiles.saturating_mul((sizes.q_heads / packed_heads as usize) as u64);
            Ok((auto_splits(tiles, blocks, resident(device, row)), 0))
        }
        Splits::Count(count @ 1..=MAX_SPLITS) => Ok((count, 0)),
        Splits::Keys(keys) if keys > 0 && keys.is_multiple_of(block) => {
            let splits = sizes.longest_kv.div_ceil(keys as usize).max(1);
            if splits > MAX_SPLITS as usize { Err(refused()) } else { Ok((splits as u32, keys)) }
        }
        _ => Err(refused()),
    }
}

/// Thread blocks of a row that the device has room for at a time.
fn resident(device: &DeviceInfo, row: &Variant) -> u32 {
    device.multiprocessors * row.entry.min_ctas
}

/// The fewest splits with which the thread blocks are about as busy as with any number of them, given how many there is room for.
fn auto_splits(tiles: u64, blocks: u32, resident: u32) -> u32 {
    let resident = u64::from(resident);
    // Four fifths of the GPU are busy already, from which on FlashAttention splits nothing either: a merge costs more than the rest brings.
    if tiles == 0 || 5 * tiles >= 4 * resident {
        return 1;
    }
    let most = u64::from((blocks / LEAST_BLOCKS).clamp(1, MAX_SPLITS));
    // Share of the time of the rounds that the thread blocks are busy in.
    let busy = |splits: u64| {
        let tiles = tiles * splits;
        tiles as f64 / (tiles.div_ceil(resident) * resident) as f64
    };
    let best = (1..=most).map(busy).fold(0.0, f64::max);
    // FlashAttention's own rule, too: 0.85 of the best is as good, with fewer sums to write and to read.
    let fewest = (1..=most).find(|&splits| busy(splits) >= 0.85 * best);
    fewest.unwrap_or(1) as u32
}

/// Whether so many multiprocessors have nothing to do with the tiles for long rows that those for short ones are faster.
fn leaves_idle(long: &Variant, short: &Variant, device: &DeviceInfo, sizes: &SequenceSizes) -> bool {
    // Rows that each thread block works on, one tile after the other.
    let rows = |row: &Variant| {
        let (tiles, packed_heads) = tiles(sizes, row);
        let tiles = tiles.saturating_mul((sizes.q_heads / packed_heads as usize) as u64);
        tiles.div_ceil(resident(device, row).into()).saturating_mul(row.q_block.into())
    };
    // By a quarter: long tiles are up to a tenth faster where both are busy, and tiles differ in length under a mask.
    4 * u128::from(rows(long)) > 5 * u128::from(rows(short))
}

/// Tiles of a head, at most, without splits, and the heads that share one.
fn tiles(sizes: &SequenceSizes, row: &Variant) -> (u64, u32) {
    let group = (sizes.q_heads / sizes.kv_heads) as u32;
    let packed_heads = schedule::packed_heads(sizes.longest_q.max(1) as u32, group, row.q_block);
    let of_rows = |rows: usize| rows as u64 * u64::from(packed_heads);
    let tiles = if sizes.packed_q {
        // Each sequence has at most one that is not full.
        of_rows(sizes.q_rows) / u64::from(row.q_block) + sizes.batch as u64
    } else {
        of_rows(sizes.q_rows).div_ceil(row.q_block.into()).saturating_mul(sizes.batch as u64)
    };
    (tiles, packed_heads)
}

/// Rows of a piece of a page: as many as are all of one page, and of one block of keys, wherever it starts.
fn piece_rows(page_rows: usize, row: &Variant) -> u32 {
    let (mut rows, mut rest) = (page_rows, row.kv_block as usize);
    while rest > 0 {
        (rows, rest) = (rest, rows % rest);
    }
    // Of every row, blocks of keys are a multiple of it, as pages are.
    assert!(rows.is_multiple_of(LEAST_PIECE), "{page_rows} rows of a page, {} of a block", row.kv_block);
    rows as u32
}

fn unsplittable(attention: &Attention, accepted: String) -> Unsupported {
    Unsupported::Splits { found: format!("{:?}", attention.splits), accepted }
}

/// Why there is no row.
fn no_row(sizes: &SequenceSizes, features: FeatureSet) -> Unsupported {
    let SequenceSizes { dtype, head_dim, .. } = *sizes;
    let of_type = |v: &&Variant| matches!(v.pass, Pass::PackedV3 | Pass::SplitV3) && v.dtype == dtype;
    match sequences::VARIANTS.iter().filter(of_type).map(|v| v.dim_qk as usize).max() {
        Some(largest) if head_dim > largest => Unsupported::HeadDim { found: head_dim, largest },
        // A row that was asked for.
        Some(_) if features.contains(FeatureSet::of(SOFTCAP)) => {
            Unsupported::Feature { feature: "softcap", dtype, head_dim }
        }
        Some(_) if features.contains(FeatureSet::of(PROGRAM)) => {
            Unsupported::Feature { feature: "a program on scores", dtype, head_dim }
        }
        Some(_) if features.contains(FeatureSet::of(SINK)) => {
            Unsupported::Feature { feature: "sinks", dtype, head_dim }
        }
        Some(largest) => Unsupported::HeadDim { found: head_dim, largest },
        None => Unsupported::DType { found: dtype },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_fill_the_gpu_and_no_more() {
        for (tiles, blocks, multiprocessors, expected) in [
            // Enough tiles.
            (106, 1000, 132, 1),
            (1000, 1000, 132, 1),
            // 16 tiles of a chunk of 256 rows of 8 heads: 8 splits, 128 of 132 busy.
            (16, 256, 132, 8),
            // 66 in 2, 100 in no better number than 4 (3.03 rounds) or 5 (3.8), of which 5 is busy 0.95 of the time.
            (66, 256, 132, 2),
            (100, 256, 132, 5),
            // Few keys: no split of fewer than 4 blocks.
            (1, 16, 132, 4),
            (1, 3, 132, 1),
            // 109 of 132 are more than 0.85 of the 128 that the most splits keep busy.
            (1, 100_000, 132, 109),
            (0, 10, 132, 1),
        ] {
            assert_eq!(auto_splits(tiles, blocks, multiprocessors), expected, "{tiles} tiles, {blocks} blocks");
        }
    }
}
