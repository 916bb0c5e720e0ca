//! Where the rows of sequences are: keys in pages or not, queries of several heads in turn.

use core::marker::PhantomData;

use cuda_std::copy;
use kernel_spec::{Divisor, TensorParams};

use crate::parts::element::Element;
use crate::parts::rows::{AffineWalk, GlobalRows, RowSource, RowWalk};

/// The pages of a sequence.
#[derive(Clone, Copy)]
pub struct Pages {
    /// Whether there are pages at all. A constant once the kernel is loaded, see `kernel_spec::Features`.
    pub exist: bool,
    /// Address of the number of the first page, `i32`.
    pub table: u64,
    /// Row of the first page that the sequence's rows are counted from.
    pub first: u32,
    /// Rows of a page.
    pub rows: Divisor,
    /// Pages of all sequences.
    pub count: u32,
}

/// The keys or values of one head of a sequence.
#[derive(Clone, Copy)]
pub struct SequenceRows<T> {
    rows: GlobalRows<T>,
    pages: Pages,
    page_bytes: u64,
}

impl<T: Element> SequenceRows<T> {
    /// These rows, or in pages: `rows` are then those of the first page, and `tensor` is the pages.
    #[inline(always)]
    pub fn new(rows: &GlobalRows<T>, pages: Pages, tensor: &TensorParams) -> Self {
        SequenceRows { rows: *rows, pages, page_bytes: tensor.batch_stride * T::BYTES as u64 }
    }
}

/// Addresses of every so many rows of a [`SequenceRows`].
#[derive(Clone, Copy)]
pub struct SequenceWalk<T> {
    source: SequenceRows<T>,
    /// Where the rows are at equal distances.
    affine: AffineWalk,
    /// Whether each row's page has to be looked up.
    scattered: bool,
    row: u32,
    step: u32,
    offset: u64,
}

impl<T: Element> RowSource for SequenceRows<T> {
    type Walk = SequenceWalk<T>;

    #[inline(always)]
    fn rows(&self) -> u32 {
        self.rows.rows
    }

    #[inline(always)]
    fn cols(&self) -> u32 {
        self.rows.cols
    }

    #[inline(always)]
    fn aligned(&self) -> bool {
        self.rows.aligned
    }

    #[inline(always)]
    fn whole(&self) -> bool {
        self.rows.whole
    }

    #[inline(always)]
    fn walk(&self, first: u32, step: u32, offset: u64) -> SequenceWalk<T> {
        let affine = self.rows.walk(first, step, offset);
        SequenceWalk { source: *self, affine, scattered: self.pages.exist, row: first, step, offset }
    }

    /// A tile that lies in one page needs one look at the table.
    #[inline(always)]
    fn walk_tile(&self, first: u32, rows: u32, own: u32, step: u32, offset: u64) -> SequenceWalk<T> {
        let walk = self.walk(first + own, step, offset);
        if !self.pages.exist {
            return walk;
        }
        let (entry, row) = self.pages.rows.split(self.pages.first + first);
        if row + rows > self.pages.rows.value {
            return walk;
        }
        let from = self.rows.address + self.page(entry) as u64 * self.page_bytes;
        let affine = GlobalRows { address: from, ..self.rows }.walk(row + own, step, offset);
        SequenceWalk { affine, scattered: false, ..walk }
    }
}

impl<T: Element> SequenceRows<T> {
    /// The page of an entry of the table that exists.
    #[inline(always)]
    fn page(&self, entry: u32) -> u32 {
        // SAFETY: passed on.
        let page = unsafe { copy::load_u32(self.pages.table + entry as u64 * 4) };
        // A number that is no page's is a mistake of the caller's, who reads a page of somebody else then, but nothing outside.
        page.min(self.pages.count - 1)
    }
}

impl<T: Element> SequenceWalk<T> {
    /// The address of a row. The table is read for rows that exist alone: behind them its entries may be anything.
    #[inline(always)]
    fn paged(&self, row: u32) -> u64 {
        let SequenceRows { rows, pages, page_bytes } = &self.source;
        let (entry, row_in_page) = pages.rows.split(pages.first + row);
        let page = if row < rows.rows { self.source.page(entry) } else { 0 };
        rows.address + page as u64 * page_bytes + row_in_page as u64 * rows.row_bytes + self.offset
    }
}

impl<T: Element> RowWalk for SequenceWalk<T> {
    #[inline(always)]
    fn address(&self) -> u64 {
        if self.scattered { self.paged(self.row) } else { self.affine.address() }
    }

    #[inline(always)]
    fn ahead(&self, steps: u32) -> u64 {
        if self.scattered { self.paged(self.row + steps * self.step) } else { self.affine.ahead(steps) }
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.row += self.step;
        self.affine.advance();
    }
}

/// Rows of q or out, of several heads in turn: row `r` of the source is row `r >> log2` of head `r & (2^log2 - 1)`.
#[derive(Clone, Copy)]
pub struct HeadRows<T> {
    rows: GlobalRows<T>,
    head_bytes: u64,
    log2: u32,
    heads: u32,
}

impl<T: Element> HeadRows<T> {
    /// The rows of `heads` heads, at most `2^log2`, of which `rows` is the first.
    #[inline(always)]
    pub fn new(rows: &GlobalRows<T>, head_stride: u64, log2: u32, heads: u32) -> Self {
        HeadRows { rows: *rows, head_bytes: head_stride * T::BYTES as u64, log2, heads }
    }

    #[inline(always)]
    fn head(&self, row: u32) -> u32 {
        row & ((1 << self.log2) - 1)
    }
}

/// Addresses of every so many rows of a [`HeadRows`].
#[derive(Clone, Copy)]
pub struct HeadWalk<T> {
    source: HeadRows<T>,
    row: u32,
    step: u32,
    offset: u64,
    element: PhantomData<T>,
}

impl<T: Element> RowSource for HeadRows<T> {
    type Walk = HeadWalk<T>;

    #[inline(always)]
    fn rows(&self) -> u32 {
        self.rows.rows << self.log2
    }

    #[inline(always)]
    fn has(&self, row: u32) -> bool {
        row >> self.log2 < self.rows.rows && self.head(row) < self.heads
    }

    #[inline(always)]
    fn cols(&self) -> u32 {
        self.rows.cols
    }

    #[inline(always)]
    fn aligned(&self) -> bool {
        self.rows.aligned
    }

    /// Never: some rows of a tile may not exist.
    #[inline(always)]
    fn whole(&self) -> bool {
        false
    }

    #[inline(always)]
    fn walk(&self, first: u32, step: u32, offset: u64) -> HeadWalk<T> {
        HeadWalk { source: *self, row: first, step, offset, element: PhantomData }
    }
}

impl<T: Element> RowWalk for HeadWalk<T> {
    #[inline(always)]
    fn address(&self) -> u64 {
        self.ahead(0)
    }

    #[inline(always)]
    fn ahead(&self, steps: u32) -> u64 {
        let (source, row) = (&self.source, self.row + steps * self.step);
        let head = source.head(row) as u64 * source.head_bytes;
        source.rows.address + head + (row >> source.log2) as u64 * source.rows.row_bytes + self.offset
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.row += self.step;
    }
}
