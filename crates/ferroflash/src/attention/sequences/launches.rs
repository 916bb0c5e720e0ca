//! The launches of a plan over sequences, and what they have in common.

use super::super::problem::{Problem, QueryRows, Sequences};
use super::super::request::{Placed, Request};
use super::params::{self, Arrays, Cut};
use super::sizes::SequenceSizes;
use crate::error::{Error, Result};
use crate::plan::{Binding, Buffer, MAX_GRID, Params, Step};
use crate::specialise::Specialised;
use kernel_spec::families::forward::features::PAGED;
use kernel_spec::families::sequences;
use kernel_spec::{Entry, FeatureSet, Pass, Variant};

/// Query rows, over the heads of a group, up to which a tile of decode holds them.
pub(super) const DECODE_ROWS: usize = 16;

/// Rows of a thread block of append: one a warp.
const APPEND_ROWS: u64 = 4;

/// What a plan launches, and the memory between its steps.
#[derive(Default)]
pub(super) struct Launches {
    pub(super) buffers: Vec<Buffer>,
    pub(super) steps: Vec<Step>,
}

impl Launches {
    /// Memory that a step writes and another reads.
    pub(super) fn buffer(&mut self, name: &'static str, bytes: u64, reason: &'static str) -> Binding {
        self.buffers.push(Buffer { name, bytes, reason });
        Binding::Buffer(self.buffers.len() - 1)
    }

    /// Memory for what splits find: sums, and maxima and sums of weights.
    pub(super) fn partial(&mut self, sizes: &SequenceSizes, splits: u32) -> [Binding; 2] {
        let rows = u128::from(splits) * sizes.q_heads as u128 * sizes.tokens() as u128;
        // What does not fit is refused with the sum of all buffers.
        let bytes = |each: u128| u64::try_from(rows * each).unwrap_or(u64::MAX);
        let reason = "the splits of the keys write them, the last step puts them together";
        [
            self.buffer("sums of splits", bytes(sizes.head_dim as u128 * 4), reason),
            self.buffer("maxima and sums of weights", bytes(8), reason),
        ]
    }

    /// A launch without clusters.
    pub(super) fn step(&mut self, kernel: Specialised, ctas: u32, tile: String, params: Params) {
        self.steps.push(Step::new(kernel, ctas, tile, params));
    }

    /// New rows go to the cache, and queries are turned with them, to `turned`.
    pub(super) fn append(
        &mut self,
        request: &Request<'_>,
        sizes: &SequenceSizes,
        arrays: &Arrays,
        new: [&Placed; 2],
        turned: Option<(&Placed, Binding)>,
    ) -> Result<()> {
        let mut rows = 2 * (sizes.new_tokens() * sizes.kv_heads) as u64;
        if turned.is_some() {
            rows += (sizes.tokens() * sizes.q_heads) as u64;
        }
        let params = params::append(request, sizes, arrays, new, turned);
        let pass = find(Pass::Append, sizes, FeatureSet::NONE)?;
        let ctas = check_grid(&pass.entry, rows.div_ceil(APPEND_ROWS))?;
        let kernel = Specialised::with_features(&pass.entry, paged(arrays).intersection(pass.entry.accepts));
        self.step(kernel, ctas, pass.reason.to_owned(), params);
        Ok(())
    }

    /// Splits are put together.
    pub(super) fn merge(
        &mut self,
        request: &Request<'_>,
        sizes: &SequenceSizes,
        arrays: &Arrays,
        cut: &Cut,
        q: Binding,
        partial: [Binding; 2],
    ) -> Result<()> {
        let merge = find(Pass::Merge, sizes, features(request, arrays))?;
        let ctas = check_grid(&merge.entry, cut.places(sizes))?;
        let ctas = if sizes.tokens() == 0 { 0 } else { ctas };
        let params = params::attend(request, sizes, arrays, cut, q, Some(partial)).1;
        self.step(request.specialised(merge, paged(arrays)), ctas, merge.reason.to_owned(), params);
        Ok(())
    }
}

/// Thread blocks of a launch, if there are not too many.
pub(super) fn check_grid(entry: &Entry, ctas: u64) -> Result<u32> {
    if ctas > MAX_GRID {
        return Err(Error::GridTooLarge { symbol: entry.symbol, needed: ctas.into(), limit: MAX_GRID });
    }
    Ok(ctas as u32)
}

/// The problem of a call, for plans and messages.
pub(crate) fn problem_of(sizes: &SequenceSizes) -> Problem {
    let SequenceSizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype, .. } = *sizes;
    let rows = if sizes.packed_q { QueryRows::Packed(q_rows) } else { QueryRows::Each(q_rows) };
    let sequences = match sizes.page_rows {
        _ if sizes.packed_kv => Sequences::Packed { batch, q_rows, kv_rows },
        Some(page_rows) => {
            Sequences::Paged { batch, q_rows: rows, pages: sizes.kv_entries, page_rows, width: kv_rows / page_rows }
        }
        None => Sequences::Cached { batch, q_rows: rows, capacity: kv_rows },
    };
    Problem::new(sequences, q_heads, kv_heads, head_dim, dtype)
}

/// The features of a call.
pub(super) fn features(request: &Request<'_>, arrays: &Arrays) -> FeatureSet {
    request.features().set().union(paged(arrays))
}

/// The feature of calls with pages.
pub(super) fn paged(arrays: &Arrays) -> FeatureSet {
    if arrays.pages.is_some() { FeatureSet::of(PAGED) } else { FeatureSet::NONE }
}

pub(super) fn find(pass: Pass, sizes: &SequenceSizes, features: FeatureSet) -> Result<&'static Variant> {
    // validated: at most MAX_HEAD_DIM
    sequences::find(pass, sizes.dtype, sizes.head_dim as u32, 0, features)
        .ok_or(Error::HeadDim { found: sizes.head_dim })
}

/// Whether a tile of decode holds the query rows of a sequence.
pub(super) fn is_decode(sizes: &SequenceSizes) -> bool {
    let group = sizes.q_heads / sizes.kv_heads;
    sizes.longest_q == 1 || sizes.longest_q.saturating_mul(group) <= DECODE_ROWS
}
