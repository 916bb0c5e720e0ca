//! Where the rows of a tile come from and go to in global memory.

use core::marker::PhantomData;

/// The rows of one head of a `[batch, row, head, dim]` tensor in global memory.
#[derive(Clone, Copy)]
pub struct GlobalRows<T> {
    /// Address of element `[0, 0]`.
    pub address: u64,
    /// Bytes from one row to the next.
    pub row_bytes: u64,
    /// Rows that exist.
    pub rows: u32,
    /// Columns that exist.
    pub cols: u32,
    /// Whether address and row stride are multiples of 16 bytes.
    pub aligned: bool,
    /// Whether they are, and the rows have all columns of the tiles that they are loaded into.
    pub whole: bool,
    /// The element type.
    pub element: PhantomData<T>,
}

/// Rows that a tile can be loaded from: all in one place, as [`GlobalRows`], or wherever a table says.
pub trait RowSource {
    /// Addresses of every so many rows.
    type Walk: RowWalk;

    /// Rows that exist, or the end of those that may.
    fn rows(&self) -> u32;

    /// Whether a row exists.
    #[inline(always)]
    fn has(&self, row: u32) -> bool {
        row < self.rows()
    }

    /// Columns that exist.
    fn cols(&self) -> u32;

    /// Whether all rows start at multiples of 16 bytes.
    fn aligned(&self) -> bool;

    /// Whether they do, and have all columns of a tile.
    fn whole(&self) -> bool;

    /// The addresses of rows `first`, `first + step`, `first + 2 step`, .., each moved by `offset` bytes.
    fn walk(&self, first: u32, step: u32, offset: u64) -> Self::Walk;

    /// The same for a thread that takes such rows of a tile from its row `own` on: all of the tile's `rows` rows from `first` on exist.
    #[inline(always)]
    fn walk_tile(&self, first: u32, _rows: u32, own: u32, step: u32, offset: u64) -> Self::Walk {
        self.walk(first + own, step, offset)
    }
}

/// Addresses of every so many rows, see [`RowSource::walk`].
pub trait RowWalk: Copy {
    /// The address of the current row.
    fn address(&self) -> u64;

    /// The address `steps` steps on.
    fn ahead(&self, steps: u32) -> u64;

    /// Goes to the next row.
    fn advance(&mut self);
}

/// Rows at equal distances.
#[derive(Clone, Copy)]
pub struct AffineWalk {
    address: u64,
    step_bytes: u64,
}

impl AffineWalk {
    /// From an address on, in steps of so many bytes.
    #[inline(always)]
    pub fn new(address: u64, step_bytes: u64) -> AffineWalk {
        AffineWalk { address, step_bytes }
    }
}

impl<T> RowSource for GlobalRows<T> {
    type Walk = AffineWalk;

    #[inline(always)]
    fn rows(&self) -> u32 {
        self.rows
    }

    #[inline(always)]
    fn cols(&self) -> u32 {
        self.cols
    }

    #[inline(always)]
    fn aligned(&self) -> bool {
        self.aligned
    }

    #[inline(always)]
    fn whole(&self) -> bool {
        self.whole
    }

    #[inline(always)]
    fn walk(&self, first: u32, step: u32, offset: u64) -> AffineWalk {
        let address = self.address + first as u64 * self.row_bytes + offset;
        AffineWalk { address, step_bytes: step as u64 * self.row_bytes }
    }
}

impl RowWalk for AffineWalk {
    #[inline(always)]
    fn address(&self) -> u64 {
        self.address
    }

    #[inline(always)]
    fn ahead(&self, steps: u32) -> u64 {
        self.address + steps as u64 * self.step_bytes
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.address += self.step_bytes;
    }
}
