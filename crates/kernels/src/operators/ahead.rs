//! Rows that are on their way while one is worked on.

use cuda_std::{copy, shared, thread};
use kernel_spec::families::rows::VECTOR_BYTES;

use crate::operators::row::{Columns, Config};

/// Rows to come, on their way into shared memory. Each thread copies its own vectors, to places that no other thread touches: it waits for itself alone,
/// and what it has read is free for the row after.
///
/// ```text
/// row        0         1         2         3
/// place    0 [copy....][work]
///          1           [copy.............][work]    two rows ahead: a row is worked on while two are on their way
///          0                [copy..............][work]
/// ```
///
/// Or all tiles of one row, which stay for as often as they are looked at.
pub struct Ahead<const TENSORS: usize> {
    /// The thread's own place of the oldest row.
    place: u32,
    /// Which of the rows that are on their way it is.
    turn: u32,
}

impl<const TENSORS: usize> Ahead<TENSORS> {
    /// None yet. `memory` is the offset of the places in shared memory.
    #[inline(always)]
    pub fn new(memory: u32) -> Ahead<TENSORS> {
        Ahead { place: shared::dynamic() + memory + thread::index() * VECTOR_BYTES, turn: 0 }
    }

    /// Bytes from a tensor's vectors of a row to the next tensor's.
    #[inline(always)]
    fn step<C: Config, const V: usize>() -> u32 {
        const { V as u32 * C::TILE.threads * VECTOR_BYTES }
    }

    #[inline(always)]
    fn of_turn<C: Config, const V: usize>(&self, turn: u32, tensor: usize) -> u32 {
        self.place + (turn * TENSORS as u32 + tensor as u32) * Self::step::<C, V>()
    }

    /// Starts copying a thread's vectors of a row of the first `tensors`, of the row's own type, into the place of the oldest row, and goes on to the next.
    /// Where there is no row, it is to be called with no columns.
    ///
    /// # Safety
    /// The columns of the rows, whose columns 0 are at `starts`, are in bounds, and vectors are aligned; the row that had the place was taken.
    #[inline(always)]
    pub unsafe fn start<C: Config, const V: usize>(&mut self, own: &Columns, starts: [u64; TENSORS], tensors: usize) {
        // SAFETY: passed on.
        unsafe { self.copy::<C, V>(self.turn, own, starts, tensors) };
        copy::commit_group();
        self.turn = if self.turn + 1 == const { C::TILE.ahead } { 0 } else { self.turn + 1 };
    }

    /// Starts copying a thread's vectors of all tiles of a row that stays; `own` has the columns of a tile. See [`Ahead::start`].
    ///
    /// # Safety
    /// As for [`Ahead::start`].
    #[inline(always)]
    pub unsafe fn start_all<C: Config, const V: usize>(
        &self,
        own: impl Fn(u32) -> Columns,
        starts: [u64; TENSORS],
        tensors: usize,
    ) {
        for tile in 0..const { C::TILE.ahead } {
            // SAFETY: passed on.
            unsafe { self.copy::<C, V>(tile, &own(tile), starts, tensors) };
        }
        copy::commit_group();
    }

    #[inline(always)]
    unsafe fn copy<C: Config, const V: usize>(&self, turn: u32, own: &Columns, starts: [u64; TENSORS], tensors: usize) {
        for tensor in 0..TENSORS {
            if tensor >= tensors {
                break;
            }
            // SAFETY: passed on.
            unsafe { own.copy_to_shared::<C, V>(starts[tensor], self.of_turn::<C, V>(turn, tensor)) };
        }
    }

    /// Waits for all that is on its way.
    #[inline(always)]
    pub fn wait_for_all(&self) {
        copy::wait_group::<0>();
    }

    /// Reads a thread's vectors of a tile that stays, of the first `tensors`, as bits.
    ///
    /// # Safety
    /// After [`Ahead::wait_for_all`].
    #[inline(always)]
    pub unsafe fn look<C: Config, const V: usize>(&self, tile: u32, tensors: usize) -> [[[u32; 4]; V]; TENSORS] {
        let mut words = [[[0; 4]; V]; TENSORS];
        for tensor in 0..TENSORS {
            if tensor >= tensors {
                break;
            }
            let from = self.of_turn::<C, V>(tile, tensor);
            for v in 0..V {
                // SAFETY: the thread's own place, whose copies have ended.
                words[tensor][v] =
                    unsafe { shared::load_u32x4(from + v as u32 * const { C::TILE.threads * VECTOR_BYTES }) };
            }
        }
        words
    }

    /// Waits for the oldest row, and reads a thread's vectors of the first `tensors`, as bits, which take half the registers of numbers.
    ///
    /// # Safety
    /// As many rows were started as are on their way.
    #[inline(always)]
    pub unsafe fn take<C: Config, const V: usize>(&self, tensors: usize) -> [[[u32; 4]; V]; TENSORS] {
        match const { C::TILE.ahead } {
            0 | 1 => copy::wait_group::<0>(),
            2 => copy::wait_group::<1>(),
            3 => copy::wait_group::<2>(),
            _ => {
                const {
                    assert!(
                        C::TILE.ahead <= 3 || C::KEPT,
                        "three rows on their way at most; tiles that stay are looked at"
                    )
                }
            }
        }
        let mut words = [[[0; 4]; V]; TENSORS];
        for tensor in 0..TENSORS {
            if tensor >= tensors {
                break;
            }
            let from = self.of_turn::<C, V>(self.turn, tensor);
            for v in 0..V {
                // SAFETY: the thread's own place, whose copies have ended.
                let from = from + v as u32 * const { C::TILE.threads * VECTOR_BYTES };
                words[tensor][v] = unsafe { shared::load_u32x4(from) };
            }
        }
        words
    }
}
