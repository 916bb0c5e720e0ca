//! What all operators on rows share: how the rows of a tensor lie in memory, and how they lie in the registers of threads.

use crate::divisor::Divisor;
use crate::dtype::DType;
use crate::entry::{Arch, Entry};
use crate::features::FeatureSet;
use crate::shared::Carve;

/// Bytes that a thread reads or writes at a time.
pub const VECTOR_BYTES: u32 = 16;

/// Most columns of a row: f32 counts them.
pub const MAX_COLUMNS: u32 = 1 << 24;

/// Thread blocks that share a row, at most: what every GPU that has clusters takes.
pub const MAX_SHARERS: u32 = 8;

/// A tensor of rows: three axes whose product they are, and contiguous columns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsParams {
    /// Device address of the first element, or 0 when there is no such tensor.
    pub address: u64,
    /// Elements between neighbours along each axis of rows, the outermost first.
    pub strides: [u64; 3],
}

impl RowsParams {
    /// No tensor.
    pub const NONE: RowsParams = RowsParams { address: 0, strides: [0; 3] };
}

/// The rows of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// Rows: the product of the extents of three axes, below 2^31.
    pub rows: u32,
    /// Columns of a row, from 1 to [`MAX_COLUMNS`].
    pub columns: u32,
    /// Extent of the second axis of rows.
    pub middle: Divisor,
    /// Extent of the third.
    pub inner: Divisor,
}

/// Who holds a row of the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// One thread block, or threads of it.
    Alone,
    /// The thread blocks of a cluster, in registers.
    Cluster,
    /// The thread blocks of a cluster, in shared memory: more of them fit a multiprocessor, so that more bytes are on their way to it.
    Kept,
    /// Nobody: it is read again.
    Again,
}

/// How rows lie in the registers of a thread block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowTile {
    /// Who holds a row.
    pub sharing: Sharing,
    /// Element type of the rows.
    pub dtype: DType,
    /// Threads of the thread block.
    pub threads: u32,
    /// Those that share a row.
    pub row_threads: u32,
    /// Vectors of [`VECTOR_BYTES`] of a thread.
    pub vectors: u32,
    /// Rows, or tiles of them where they pass by, that are on their way into shared memory while one is worked on; 0: a thread block has one row after
    /// another to load, or one alone. Of [`Sharing::Kept`], the tiles of a thread block: all of them are on their way at once, and stay.
    pub ahead: u32,
}

impl RowTile {
    /// Columns that the registers of a thread block hold of a row.
    pub const fn columns(&self) -> u32 {
        self.row_threads * self.vectors * VECTOR_BYTES / self.dtype.bytes() as u32
    }

    /// Whether the thread blocks of a cluster share a row.
    pub const fn in_clusters(&self) -> bool {
        matches!(self.sharing, Sharing::Cluster | Sharing::Kept)
    }

    /// Columns that a thread block holds of a row.
    pub const fn held(&self) -> u32 {
        match self.sharing {
            Sharing::Kept => self.columns() * self.ahead,
            _ => self.columns(),
        }
    }

    /// Rows that a thread block works on at a time.
    pub const fn block_rows(&self) -> u32 {
        self.threads / self.row_threads
    }

    /// The entry point of a row of a list; `params_bytes` are those of its parameter struct.
    pub const fn entry(
        &self,
        symbol: &'static str,
        [min_ctas, shared_bytes]: [u32; 2],
        params_bytes: usize,
        feature_slots: u32,
        accepts: FeatureSet,
    ) -> Entry {
        assert!(self.threads.is_multiple_of(self.row_threads), "whole rows of threads");
        let cluster = self.in_clusters();
        Entry {
            symbol,
            arch: if cluster { Arch::Sm90a } else { Arch::Sm80 },
            threads: self.threads,
            shared_bytes,
            min_ctas,
            params_bytes: params_bytes as u32,
            feature_slots,
            accepts,
            cooperative: false,
            max_cluster: if cluster { MAX_SHARERS } else { 1 },
        }
    }

    /// Bytes of shared memory of the rows that are on their way, of so many tensors: `[ahead][tensor][vector][thread]` vectors.
    pub const fn ahead_bytes(&self, tensors: u32) -> u32 {
        self.ahead * tensors * self.vectors * self.threads * VECTOR_BYTES
    }

    /// Columns of the longest row that it takes.
    pub const fn most_columns(&self) -> u32 {
        match self.sharing {
            Sharing::Alone => self.columns(),
            Sharing::Cluster | Sharing::Kept => self.held() * MAX_SHARERS,
            Sharing::Again => MAX_COLUMNS,
        }
    }
}

/// One row of the list of a family; `P` is what the family's rows compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowVariant<P> {
    /// What a launch needs of it.
    pub entry: Entry,
    /// What it computes.
    pub pass: P,
    /// How rows lie.
    pub tile: RowTile,
    /// Why it is cut so.
    pub reason: &'static str,
}

/// The row of a list for this pass over so many columns of this type: the first that takes them, in clusters where `clusters` are there. What one thread block
/// holds takes no cluster, as lists have them in that order.
pub fn find<P: PartialEq>(
    list: &'static [RowVariant<P>],
    pass: P,
    dtype: DType,
    columns: u32,
    clusters: bool,
) -> Option<&'static RowVariant<P>> {
    list.iter().find(|row| {
        let runs = clusters || !row.tile.in_clusters();
        row.pass == pass && row.tile.dtype == dtype && columns <= row.tile.most_columns() && runs
    })
}

/// Places in shared memory for sums over a row of two numbers at a time, for each of two turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumsMemory {
    /// Of each warp of the thread block: `f32 [2][2][warps]`. None where a row is that of one warp.
    pub warps: u32,
    /// Of each of the thread blocks that share a row: `f32 [2][`[`MAX_SHARERS`]`][2]`. None for others.
    pub blocks: u32,
    /// A barrier for each turn, where the numbers of these arrive: `u64 [2]`.
    pub arrived: u32,
}

impl SumsMemory {
    /// None, where nothing is summed up over a row.
    pub const NONE: SumsMemory = SumsMemory { warps: 0, blocks: 0, arrived: 0 };

    /// The places that a tile needs.
    pub const fn take(carve: &mut Carve, tile: &RowTile) -> SumsMemory {
        let warps = if tile.row_threads > 32 { carve.take(4 * 4 * (tile.threads / 32), 16) } else { 0 };
        let (mut blocks, mut arrived) = (0, 0);
        if tile.in_clusters() {
            blocks = carve.take(4 * 4 * MAX_SHARERS, 16);
            arrived = carve.take(2 * 8, 8);
        }
        SumsMemory { warps, blocks, arrived }
    }

    /// Where rows on their way lie, of so many tensors, behind the places of a thread block that has nothing else in shared memory, and the bytes of all.
    pub const fn with_ahead(tile: &RowTile, tensors: u32) -> [u32; 2] {
        let mut carve = Carve::new();
        let _ = SumsMemory::take(&mut carve, tile);
        let place = carve.take(tile.ahead_bytes(tensors), 16);
        [place, carve.total()]
    }

    /// The places of a thread block that has nothing else in shared memory.
    pub const fn alone(tile: &RowTile) -> SumsMemory {
        SumsMemory::take(&mut Carve::new(), tile)
    }

    /// Bytes of that.
    pub const fn alone_bytes(tile: &RowTile) -> u32 {
        let mut carve = Carve::new();
        let _ = SumsMemory::take(&mut carve, tile);
        carve.total()
    }
}
