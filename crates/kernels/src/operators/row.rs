//! A row of a tensor in the registers of threads.
//!
//! ```text
//! threads of a row      0      1      2    ..  n-1 |   0      1    ..
//! columns, 16 bytes  [......][......][......]      | [......][......]
//! at a time                  vector 0              |     vector 1
//! ```
//!
//! Neighbours read neighbouring vectors. A thread block has one row, or several of up to 64 threads each; or the thread blocks of a cluster share a
//! row, each with a run of its columns; or no register holds it, and tiles of as many columns as there are registers pass by, from shared memory where a
//! cluster keeps it there.

use cuda_std::{copy, math, thread};
use kernel_spec::Divisor;
use kernel_spec::families::rows::{Extents, RowTile, RowsParams, Sharing, SumsMemory, VECTOR_BYTES};

use crate::parts::element::Element;

/// How a kernel holds the rows of a tensor.
pub trait Config {
    /// The policy of its row of the list.
    const TILE: RowTile;
    /// Places in shared memory for [`Sums`](crate::operators::sums::Sums).
    const SUMS: SumsMemory;
    /// Element type of the rows.
    type T: Element;

    /// Threads of a thread block that share a row.
    const ROW_THREADS: u32 = Self::TILE.row_threads;
    /// Whether rows are read again in place of being held in registers.
    const AGAIN: bool = matches!(Self::TILE.sharing, Sharing::Again | Sharing::Kept);
    /// Whether it is shared memory that they are read again from.
    const KEPT: bool = matches!(Self::TILE.sharing, Sharing::Kept);
    /// Whether the thread blocks of a cluster share a row.
    const CLUSTER: bool = Self::TILE.in_clusters();
    /// Elements of a vector.
    const CHUNK: u32 = VECTOR_BYTES / Self::TILE.dtype.bytes() as u32;
}

/// Numbers of a thread: a vector of 16 bits in f32. Of f32, the first four are there, and the others cost nothing.
pub type Vector = [f32; 8];

/// Which thread of its row a thread is, and with which others it shares it.
#[derive(Clone, Copy)]
pub struct Seat {
    /// Index among the threads of a thread block that share a row.
    pub thread: u32,
    /// Which of the rows of the thread block it works on.
    pub in_block: u32,
    /// Which of those that work on rows of their own the thread block, or its cluster, is.
    pub team: u32,
    /// Which of its cluster the thread block is; 0 without one.
    pub rank: u32,
    /// Thread blocks that share a row.
    pub sharers: u32,
}

impl Seat {
    /// That of this thread.
    #[inline(always)]
    pub fn of<C: Config>(sharers: &Divisor) -> Seat {
        let (thread, in_block) = if const { C::TILE.block_rows() == 1 } {
            (thread::index(), 0)
        } else {
            (thread::index() % C::ROW_THREADS, thread::index() / C::ROW_THREADS)
        };
        let (team, rank) = if C::CLUSTER { sharers.split(thread::block_index()) } else { (thread::block_index(), 0) };
        Seat { thread, in_block, team, rank, sharers: if C::CLUSTER { sharers.value } else { 1 } }
    }

    /// Whether it is the one that writes what a row has one number of.
    #[inline(always)]
    pub fn is_first(&self) -> bool {
        self.thread == 0 && self.rank == 0
    }
}

/// The columns that a thread has of a row, or of a tile of it.
#[derive(Clone, Copy)]
pub struct Columns {
    /// The first of the thread.
    pub(super) first: u32,
    /// Columns from there to the end of the row, or of the run of it that is the thread block's; 0 where the first lies behind it.
    pub(super) room: u32,
    /// Whether vectors are whole, and at multiples of their bytes.
    pub(super) aligned: bool,
}

/// Tiles in which a thread block has its part of a row.
#[inline(always)]
pub fn tiles<C: Config>(share: u32, columns: u32) -> u32 {
    if C::AGAIN { (if C::KEPT { share } else { columns }).div_ceil(const { C::TILE.columns() }) } else { 1 }
}

impl Columns {
    /// Those of a thread in a tile of the run of `share` columns that its thread block has. None where `exists` says that there is no such row.
    #[inline(always)]
    pub fn of<C: Config>(seat: &Seat, tile: u32, share: u32, columns: u32, aligned: bool, exists: bool) -> Columns {
        let from = if C::CLUSTER { seat.rank * share } else { 0 };
        let end = if C::CLUSTER { columns.min(from + share) } else { columns };
        let tile = if C::AGAIN { tile * const { C::TILE.columns() } } else { 0 };
        let first = from + tile + seat.thread * C::CHUNK;
        Columns { first, room: if exists { end.saturating_sub(first) } else { 0 }, aligned }
    }

    /// Columns between the first of a thread and the first of a vector.
    #[inline(always)]
    pub(super) fn ahead<C: Config>(vector: usize) -> u32 {
        vector as u32 * const { C::ROW_THREADS * C::CHUNK }
    }

    /// The first column of a vector.
    #[inline(always)]
    pub fn column<C: Config>(&self, vector: usize) -> u32 {
        self.first + Self::ahead::<C>(vector)
    }

    /// A number of an element of a vector, and 0 behind the last column. The test is in one statement with its use, here and below: as a condition
    /// there would be one for each element, from its first use to its last, and all of them do not fit the registers.
    #[inline(always)]
    pub fn or_zero<C: Config>(&self, vector: usize, element: usize, x: f32) -> f32 {
        math::within(x, Self::ahead::<C>(vector) + element as u32, self.room)
    }

    /// The address of the first vector, where `start` is that of column 0.
    #[inline(always)]
    pub(super) fn base(&self, start: u64, bytes: usize) -> u64 {
        math::opaque_address(start + self.first as u64 * bytes as u64)
    }

    /// Reads the vectors of a thread, of f32 where `wide`, else of the row's own type; zeros behind the last column. `start` is the address of column 0.
    ///
    /// # Safety
    /// The columns of the row are in bounds, and `aligned` is true.
    #[inline(always)]
    pub unsafe fn load<C: Config, const V: usize>(&self, start: u64, wide: bool) -> [Vector; V] {
        let mut values = [[0.0; 8]; V];
        // SAFETY: passed on. All loads first, and as bits, which take half the registers of numbers.
        unsafe {
            if wide && C::T::BYTES == 2 {
                let base = self.base(start, 4);
                if self.aligned {
                    let mut words = [[[0; 4]; 2]; V];
                    for v in 0..V {
                        words[v] = self.load_wide::<C>(base, v);
                    }
                    for v in 0..V {
                        values[v] = wide_vector(words[v]);
                    }
                } else {
                    for v in 0..V {
                        values[v] = self.load_elements::<C, f32>(base, v);
                    }
                }
                return values;
            }
            let base = self.base(start, C::T::BYTES);
            if self.aligned {
                let mut words = [[0; 4]; V];
                for v in 0..V {
                    words[v] = self.load_words::<C>(base, v);
                }
                for v in 0..V {
                    values[v] = C::T::widen_chunk(words[v]);
                }
            } else {
                for v in 0..V {
                    values[v] = self.load_elements::<C, C::T>(base, v);
                }
            }
        }
        values
    }

    /// The sum of two tensors, of which the second is of f32 where `wide`; see [`Columns::load`].
    ///
    /// # Safety
    /// As for [`Columns::load`].
    #[inline(always)]
    pub unsafe fn load_sum<C: Config, const V: usize>(&self, start: u64, other: u64, wide: bool) -> [Vector; V] {
        let mut values = [[0.0; 8]; V];
        let base = self.base(start, C::T::BYTES);
        // SAFETY: passed on.
        unsafe {
            if !self.aligned {
                for v in 0..V {
                    // A branch, so that the assembler does not begin with the loads of all vectors.
                    if math::opaque(self.room) > Self::ahead::<C>(v) {
                        let x = self.load_elements::<C, C::T>(base, v);
                        values[v] = added(x, self.load_one::<C>(other, wide, v));
                    }
                }
                return values;
            }
            if V > 4 {
                for v in 0..V {
                    // A branch here too: all words of so many vectors do not fit the registers beside their sums.
                    if math::opaque(self.room) > Self::ahead::<C>(v) {
                        let x = C::T::widen_chunk(self.load_words::<C>(base, v));
                        values[v] = added(x, self.load_one::<C>(other, wide, v));
                    }
                }
                return values;
            }
            let mut words = [[0; 4]; V];
            for v in 0..V {
                words[v] = self.load_words::<C>(base, v);
            }
            if wide && C::T::BYTES == 2 {
                let other = self.base(other, 4);
                for v in 0..V {
                    values[v] = added(C::T::widen_chunk(words[v]), wide_vector(self.load_wide::<C>(other, v)));
                }
            } else {
                let other = self.base(other, C::T::BYTES);
                let mut others = [[0; 4]; V];
                for v in 0..V {
                    others[v] = self.load_words::<C>(other, v);
                }
                for v in 0..V {
                    values[v] = added(C::T::widen_chunk(words[v]), C::T::widen_chunk(others[v]));
                }
            }
        }
        values
    }

    /// Starts copying the vectors of a thread, of the row's own type, zeros behind the last column. `start` is the address of column 0, `to` that of the
    /// thread's own first vector in shared memory, where the vectors of all threads lie side by side.
    ///
    /// # Safety
    /// As for [`Columns::load`] of aligned rows, and for [`copy::async_16_or_zero`].
    #[inline(always)]
    pub unsafe fn copy_to_shared<C: Config, const V: usize>(&self, start: u64, to: u32) {
        let from = self.base(start, C::T::BYTES);
        for v in 0..V {
            let ahead = Self::ahead::<C>(v);
            let bytes = if ahead < self.room { VECTOR_BYTES } else { 0 };
            // SAFETY: passed on; nothing is read behind the last column.
            unsafe {
                let to = to + v as u32 * const { C::TILE.threads * VECTOR_BYTES };
                copy::async_16_or_zero(to, from + ahead as u64 * C::T::BYTES as u64, bytes);
            }
        }
    }

    /// One vector; see [`Columns::load`].
    ///
    /// # Safety
    /// As for [`Columns::load`].
    #[inline(always)]
    pub unsafe fn load_one<C: Config>(&self, start: u64, wide: bool, vector: usize) -> Vector {
        // SAFETY: passed on.
        unsafe {
            if wide && C::T::BYTES == 2 {
                let base = self.base(start, 4);
                return if self.aligned {
                    wide_vector(self.load_wide::<C>(base, vector))
                } else {
                    self.load_elements::<C, f32>(base, vector)
                };
            }
            let base = self.base(start, C::T::BYTES);
            if self.aligned {
                C::T::widen_chunk(self.load_words::<C>(base, vector))
            } else {
                self.load_elements::<C, C::T>(base, vector)
            }
        }
    }

    /// The booleans of one vector, a byte each, as they lie: 0 is false. `start` is the address of column 0.
    ///
    /// # Safety
    /// As for [`Columns::load`], but that vectors are at multiples of as many bytes as they have elements.
    #[inline(always)]
    pub unsafe fn load_bools<C: Config>(&self, start: u64, vector: usize) -> [u32; 2] {
        let base = self.base(start, 1);
        let ahead = Self::ahead::<C>(vector);
        // SAFETY: passed on; nothing is read behind the last column.
        unsafe {
            if self.aligned {
                let from = base + ahead as u64;
                return if C::CHUNK == 8 {
                    copy::load_u32x2_within(from, ahead, self.room)
                } else {
                    [copy::load_u32_within(from, ahead, self.room), 0]
                };
            }
            let mut words = [0; 2];
            for e in 0..C::CHUNK {
                let index = ahead + e;
                words[e as usize / 4] |= copy::load_u8_within(base + index as u64, index, self.room) << (8 * (e % 4));
            }
            words
        }
    }

    #[inline(always)]
    pub(super) unsafe fn load_words<C: Config>(&self, base: u64, vector: usize) -> [u32; 4] {
        let ahead = Self::ahead::<C>(vector);
        // SAFETY: nothing is read behind the last column.
        unsafe { copy::load_u32x4_within(base + ahead as u64 * C::T::BYTES as u64, ahead, self.room) }
    }

    #[inline(always)]
    unsafe fn load_wide<C: Config>(&self, base: u64, vector: usize) -> [[u32; 4]; 2] {
        let ahead = Self::ahead::<C>(vector);
        let from = base + ahead as u64 * 4;
        // SAFETY: as above.
        unsafe { [0, 16].map(|half| copy::load_u32x4_within(from + half, ahead, self.room)) }
    }

    #[inline(always)]
    pub(super) unsafe fn load_elements<C: Config, U: Element>(&self, base: u64, vector: usize) -> Vector {
        let mut values = [0.0; 8];
        for e in 0..C::T::CHUNK {
            let index = Self::ahead::<C>(vector) + e as u32;
            // SAFETY: as above.
            values[e] = unsafe { U::load_within(base + index as u64 * U::BYTES as u64, index, self.room) };
        }
        values
    }

    /// Rounds and writes one vector of a thread; see [`Columns::load`].
    ///
    /// # Safety
    /// As for [`Columns::load`], and no other thread touches these columns.
    #[inline(always)]
    pub unsafe fn store<C: Config>(&self, start: u64, wide: bool, vector: usize, values: Vector) {
        // SAFETY: passed on.
        unsafe {
            if wide && C::T::BYTES == 2 {
                self.store_as::<C, f32>(start, vector, values);
            } else {
                self.store_as::<C, C::T>(start, vector, values);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_as<C: Config, U: Element>(&self, start: u64, vector: usize, values: Vector) {
        let base = self.base(start, U::BYTES);
        let ahead = Self::ahead::<C>(vector);
        // SAFETY: nothing is written behind the last column.
        unsafe {
            if !self.aligned {
                for e in 0..C::T::CHUNK {
                    let index = ahead + e as u32;
                    U::store_within(base + index as u64 * U::BYTES as u64, values[e], index, self.room);
                }
                return;
            }
            let to = base + ahead as u64 * U::BYTES as u64;
            copy::store_u32x4_within(to, U::round_chunk(values), ahead, self.room);
            if U::BYTES > C::T::BYTES {
                let [.., a, b, c, d] = values;
                copy::store_u32x4_within(to + 16, U::round_chunk([a, b, c, d, 0.0, 0.0, 0.0, 0.0]), ahead, self.room);
            }
        }
    }
}

#[inline(always)]
fn wide_vector(words: [[u32; 4]; 2]) -> Vector {
    let mut values = [0.0; 8];
    for i in 0..4 {
        values[i] = f32::from_bits(words[0][i]);
        values[4 + i] = f32::from_bits(words[1][i]);
    }
    values
}

/// Vectors of a row's own type, from their bits.
#[inline(always)]
pub fn widened<T: Element, const V: usize>(words: [[u32; 4]; V]) -> [Vector; V] {
    let mut values = [[0.0; 8]; V];
    for v in 0..V {
        values[v] = T::widen_chunk(words[v]);
    }
    values
}

/// The sums of their elements.
#[inline(always)]
pub fn added(mut a: Vector, b: Vector) -> Vector {
    for e in 0..8 {
        a[e] += b[e];
    }
    a
}

/// Where a row is among the three axes of rows.
#[derive(Clone, Copy)]
pub struct RowPlace {
    index: [u32; 3],
}

impl RowPlace {
    /// The place of row `row`, below `2^31`.
    #[inline(always)]
    pub fn of(extents: &Extents, row: u32) -> RowPlace {
        let (outer, inner) = extents.inner.split(row);
        let (outer, middle) = extents.middle.split(outer);
        RowPlace { index: [outer, middle, inner] }
    }

    /// The place at this index along each of the axes.
    #[inline(always)]
    pub fn at(index: [u32; 3]) -> RowPlace {
        RowPlace { index }
    }

    /// The address of its row of a tensor, of elements of f32 where `wide`, else of `T`.
    #[inline(always)]
    pub fn start<T: Element>(&self, tensor: &RowsParams, wide: bool) -> u64 {
        let bytes = if wide { 4 } else { T::BYTES as u64 };
        tensor.address + self.elements(tensor) * bytes
    }

    /// The same of booleans, a byte each.
    #[inline(always)]
    pub fn start_of_bools(&self, tensor: &RowsParams) -> u64 {
        tensor.address + self.elements(tensor)
    }

    /// Elements between the address of a tensor and its row.
    #[inline(always)]
    fn elements(&self, tensor: &RowsParams) -> u64 {
        let [outer, middle, inner] = self.index;
        let [a, b, c] = tensor.strides;
        outer as u64 * a + middle as u64 * b + inner as u64 * c
    }
}
