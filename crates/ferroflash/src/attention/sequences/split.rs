//! How the keys of sequences are split, so that more of the GPU works on few query rows.

use super::super::options::{Attention, Splits};
use super::params::Cut;
use super::sizes::SequenceSizes;
use crate::device::DeviceInfo;
use crate::error::{Result, SequencesError};
use kernel_spec::families::sequences::MAX_SPLITS;
use kernel_spec::{Mask, Pass, Variant};

/// Keys that splits are counted in: every kernel visits a divisor of it at a time.
const SPLIT_UNIT: usize = 64;

/// The GPU counts as idle where less than one in so many multiprocessors has a thread block: 8 tiles in clusters of 8, on 64 of 132, are no
/// slower than 128 thread blocks and a merge, from 1024 to 131072 keys (H200, docs/perf-log.md). Fewer tiles were not measured.
const IDLE: u64 = 4;

/// Units of keys of a thread block up to which that does not matter: what a merge costs, about 2 us, is the time of as many.
const FEW_UNITS: u64 = 8;

/// Keys that a row of the longest sequence sees, on average: half of all under a causal mask.
pub(super) fn keys_per_row(attention: &Attention, sizes: &SequenceSizes) -> u32 {
    let seen = keys(attention, sizes);
    // Below MAX_ROWS.
    (if attention.mask == Mask::Causal { seen / 2 } else { seen }) as u32
}

/// Keys that a query row of the longest sequence may see.
pub(super) fn keys(attention: &Attention, sizes: &SequenceSizes) -> usize {
    match attention.mask {
        Mask::Window { left: Some(left), right } => {
            let right = right.map_or(sizes.longest_kv, |right| right as usize);
            sizes.longest_kv.min((left as usize).saturating_add(right).saturating_add(sizes.longest_q))
        }
        _ => sizes.longest_kv,
    }
}

/// How the work is cut, splits included.
pub(super) fn split(attention: &Attention, device: &DeviceInfo, sizes: &SequenceSizes, row: &Variant) -> Result<Cut> {
    let cut = Cut::of(row, sizes);
    let in_clusters = row.pass == Pass::ClusterDecode;
    let most = if in_clusters { row.entry.max_cluster } else { MAX_SPLITS };
    let refused = |found, needed, of_all| Err(SequencesError::Splits { found, needed, most, of_all }.into());
    match attention.splits {
        Splits::Count(count) if count == 0 || count > most => refused(format!("{count} splits"), count as usize, false),
        Splits::Count(splits) => Ok(Cut { splits, ..cut }),
        Splits::Keys(keys) => {
            let fits = keys > 0 && (keys as usize).is_multiple_of(SPLIT_UNIT);
            // One sequence may have all packed keys: starts and lengths are on the device, and no number on the host is a better bound. Fewer
            // splits than a sequence needs would make its last one longer, and its bits those of this call.
            let splits = sizes.longest_kv.div_ceil((keys as usize).max(1)).max(1);
            if !fits || splits > most as usize {
                let of_all = sizes.packed_kv && sizes.batch > 1 && sizes.longest_kv == sizes.kv_rows;
                return refused(format!("splits of {keys} keys"), splits, of_all);
            }
            Ok(Cut { splits: splits as u32, split_keys: keys, ..cut })
        }
        Splits::Auto if in_clusters => Ok(Cut { splits: clusters(attention, device, sizes, row), ..cut }),
        Splits::Auto => {
            let units = keys(attention, sizes).div_ceil(SPLIT_UNIT) as u64;
            // Decode is bound by reading, which one thread block a multiprocessor keeps busy; prefill by its products and their waits.
            let each = if row.pass == Pass::Decode { 1 } else { row.entry.min_ctas };
            Ok(Cut { splits: splits(cut.places(sizes), units, device.multiprocessors, each), ..cut })
        }
    }
}

/// Thread blocks of a cluster: the largest power of two of which all clusters are on the GPU at a time, and no more than the keys are worth.
/// 1: no clusters.
pub(super) fn clusters(attention: &Attention, device: &DeviceInfo, sizes: &SequenceSizes, row: &Variant) -> u32 {
    if attention.splits != Splits::Auto {
        return 1;
    }
    let places = Cut::of(row, sizes).places(sizes).max(1);
    let units = keys(attention, sizes).div_ceil(SPLIT_UNIT) as u64;
    let multiprocessors = u64::from(device.multiprocessors);
    // A cluster lies within a part of the GPU, of which some have too few multiprocessors for two clusters of 8.
    let fits = |size: u64| places * (size + size / 8) <= multiprocessors;
    let size = (0..=row.entry.max_cluster.ilog2()).map(|log2| 1 << log2).rfind(|&size| fits(size) && size <= units);
    let size = size.unwrap_or(1);
    // So few that most of the GPU would have nothing to do: more splits, and a merge, are worth it for many keys.
    let is_idle = places * size * IDLE < multiprocessors && units > size * FEW_UNITS;
    if is_idle { 1 } else { size as u32 }
}

/// Splits that give every multiprocessor `each` thread blocks, and no more than the keys are worth.
fn splits(places: u64, units: u64, multiprocessors: u32, each: u32) -> u32 {
    let wanted = u64::from(multiprocessors) * u64::from(each) / places.max(1);
    // Below 2^32.
    wanted.min(units).clamp(1, MAX_SPLITS.into()) as u32
}
