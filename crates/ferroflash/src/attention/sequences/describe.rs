//! What users say of their sequences.

use crate::tensor::{IndicesView, TensorView, TensorViewMut};

/// Which rows of a packed tensor, `[row, head, dim]`, belong to which sequence. The numbers stay on the device: no call waits for them, and
/// a captured call reads them anew at each replay.
///
/// Whatever the numbers are, nothing outside the tensors is touched: rows outside are taken for the nearest inside, with results that mean
/// nothing. Rows of no sequence are neither read nor written.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PackedRows<'a> {
    /// First row of each sequence, and the end of the last: `[batch + 1]`, ascending ("cu_seqlens").
    pub starts: IndicesView<'a>,
    /// How many rows of each sequence are in use, `[batch]` ("seqused"); `None`: all.
    pub used: Option<IndicesView<'a>>,
    /// Rows of the longest sequence, if the caller knows ("max_seqlen"): a hint for the choice of tiles and splits, with no influence on what
    /// is computed, only on the order of sums. `None`: one sequence may have all rows.
    pub longest: Option<usize>,
}

impl<'a> PackedRows<'a> {
    /// Sequences that start at these rows; the last number is the end of the last.
    pub fn new(starts: IndicesView<'a>) -> PackedRows<'a> {
        PackedRows { starts, used: None, longest: None }
    }

    /// Only so many rows of each sequence are in use.
    pub fn with_used(mut self, used: impl Into<Option<IndicesView<'a>>>) -> PackedRows<'a> {
        self.used = used.into();
        self
    }

    /// The longest sequence has so many rows: a hint.
    pub fn with_longest(mut self, longest: impl Into<Option<usize>>) -> PackedRows<'a> {
        self.longest = longest.into();
        self
    }
}

/// Which pages belong to which sequence: row `t` of sequence `b` is row `t % page_rows` of page `table[b, t / page_rows]`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PageTable<'a> {
    /// The numbers of the pages, `[batch, width]`. Those behind the rows in use are never followed.
    pub pages: IndicesView<'a>,
    /// Pages of a sequence that the table has room for.
    pub width: usize,
    /// Numbers from one sequence's to the next one's: at least `width`.
    pub stride: usize,
}

impl<'a> PageTable<'a> {
    /// A table of `width` pages a sequence.
    pub fn new(pages: IndicesView<'a>, width: usize) -> PageTable<'a> {
        PageTable { pages, width, stride: width }
    }

    /// Sequences start so many numbers apart.
    pub fn with_stride(mut self, stride: usize) -> PageTable<'a> {
        self.stride = stride;
        self
    }
}

/// Keys and values in a cache with room for more rows than are there.
///
/// Contiguous, `k` and `v` are `[entry, row, head, dim]`; with a [`PageTable`], `[page, row, head, dim]`. What lies in rows that are not in
/// use, NaN included, plays no part.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct KvCache<'a> {
    /// Keys.
    pub k: TensorView<'a>,
    /// Values.
    pub v: TensorView<'a>,
    /// Rows in use of each sequence, `[batch]`, without those that the call appends ("cache_seqlens"); `None`: all.
    pub lengths: Option<IndicesView<'a>>,
    /// First row in use of each sequence, `[batch]` ("leftpad_k"); `None`: the first.
    pub first: Option<IndicesView<'a>>,
    /// Entry of the cache that belongs to each sequence, `[batch]` ("cache_batch_idx"); `None`: the same.
    pub entries: Option<IndicesView<'a>>,
    /// Pages of the sequences; `None`: entries are contiguous.
    pub pages: Option<PageTable<'a>>,
}

impl<'a> KvCache<'a> {
    /// A contiguous cache, all of whose rows are in use.
    pub fn new(k: &TensorView<'a>, v: &TensorView<'a>) -> KvCache<'a> {
        KvCache { k: *k, v: *v, lengths: None, first: None, entries: None, pages: None }
    }

    /// So many rows of each sequence are in use.
    pub fn with_lengths(mut self, lengths: impl Into<Option<IndicesView<'a>>>) -> KvCache<'a> {
        self.lengths = lengths.into();
        self
    }

    /// The rows in use start here.
    pub fn with_first(mut self, first: impl Into<Option<IndicesView<'a>>>) -> KvCache<'a> {
        self.first = first.into();
        self
    }

    /// Sequences have these entries of the cache.
    pub fn with_entries(mut self, entries: impl Into<Option<IndicesView<'a>>>) -> KvCache<'a> {
        self.entries = entries.into();
        self
    }

    /// The cache is pages.
    pub fn with_pages(mut self, pages: impl Into<Option<PageTable<'a>>>) -> KvCache<'a> {
        self.pages = pages.into();
        self
    }
}

/// A cache that a call may append to.
#[derive(Debug)]
pub struct KvCacheMut<'a>(KvCache<'a>);

impl<'a> KvCacheMut<'a> {
    /// A contiguous cache.
    pub fn new(k: TensorViewMut<'a>, v: TensorViewMut<'a>) -> KvCacheMut<'a> {
        KvCacheMut(KvCache::new(&k.into_view(), &v.into_view()))
    }

    /// What [`KvCache`] says of a cache, of this one.
    ///
    /// `cache.with(|cache| cache.with_lengths(lengths))`
    pub fn with(self, describe: impl FnOnce(KvCache<'a>) -> KvCache<'a>) -> KvCacheMut<'a> {
        let described = describe(self.0);
        // The memory stays what it was.
        KvCacheMut(KvCache { k: self.0.k, v: self.0.v, ..described })
    }

    /// The cache, for reading.
    pub fn view(&self) -> KvCache<'_> {
        self.0
    }
}

/// New rows of keys and values, which a call writes behind the rows in use before it attends to all of them.
///
/// The cache is then what it would be if they had been written one by one. Rows without room are left out, with results that mean nothing.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NewRows<'a> {
    /// New keys: `[batch, row, head, dim]`, or `[row, head, dim]` with [`Self::starts`].
    pub k: TensorView<'a>,
    /// New values, likewise.
    pub v: TensorView<'a>,
    /// Which new rows belong to which sequence, where they are packed.
    pub starts: Option<IndicesView<'a>>,
    /// Keys and queries are turned by their position.
    pub rotary: Option<Rotary<'a>>,
}

impl<'a> NewRows<'a> {
    /// As many new rows for each sequence.
    pub fn new(k: &TensorView<'a>, v: &TensorView<'a>) -> NewRows<'a> {
        NewRows { k: *k, v: *v, starts: None, rotary: None }
    }

    /// The new rows are packed, and start here: `[batch + 1]`.
    pub fn with_starts(mut self, starts: impl Into<Option<IndicesView<'a>>>) -> NewRows<'a> {
        self.starts = starts.into();
        self
    }

    /// Keys and queries are turned.
    pub fn with_rotary(mut self, rotary: impl Into<Option<Rotary<'a>>>) -> NewRows<'a> {
        self.rotary = rotary.into();
        self
    }
}

/// Rotary embedding (Su et al., "RoFormer", 2021): a pair `(x, y)` of a row at position `t` becomes `(x cos - y sin, x sin + y cos)`, with the
/// cosine and sine of row `t` of the tables. Computed in `f32`, and rounded.
///
/// A new key has the position of its row in the cache; query row `i` that of the first new key plus `i`, or, where the mask is full, that of the
/// first new key for all rows.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Rotary<'a> {
    /// Cosines, `[position, turned_dims / 2]` in the element type of q, contiguous. The first `turned_dims` columns are turned.
    pub cos: TensorView<'a>,
    /// Sines, likewise.
    pub sin: TensorView<'a>,
    /// Pairs are neighbours, `(2 i, 2 i + 1)` (GPT-J); else columns `i` and `turned_dims / 2 + i` (GPT-NeoX).
    pub interleaved: bool,
    /// Position of the first new row of each sequence, `[batch]`; `None`: the rows in use.
    pub positions: Option<IndicesView<'a>>,
}

impl<'a> Rotary<'a> {
    /// The two halves of the turned columns are pairs.
    pub fn new(cos: &TensorView<'a>, sin: &TensorView<'a>) -> Rotary<'a> {
        Rotary { cos: *cos, sin: *sin, interleaved: false, positions: None }
    }

    /// Whether neighbours are pairs.
    pub fn with_interleaved(mut self, interleaved: bool) -> Rotary<'a> {
        self.interleaved = interleaved;
        self
    }

    /// The first new row of each sequence has this position.
    pub fn with_positions(mut self, positions: impl Into<Option<IndicesView<'a>>>) -> Rotary<'a> {
        self.positions = positions.into();
        self
    }
}
