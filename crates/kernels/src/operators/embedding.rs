//! Embedding: `out[token] = scale table[ids[token]]`. A row of the table is read for each token that names it, all of a thread's vectors before the first is
//! written; [`row`](crate::operators::row) has the picture. Numbers on the device are not believed: each is taken for the nearest row that the table has.

use cuda_std::copy;
use kernel_spec::Divisor;
use kernel_spec::families::embedding::GatherParams;

use crate::operators::row::{Columns, Config, RowPlace, Seat};
use crate::parts::element::Element;

/// A number that names a row of a table.
///
/// # Safety
/// There is such a number, and a row.
#[inline(always)]
pub unsafe fn id(ids: u64, index: u32, vocabulary: u32) -> u32 {
    // SAFETY: passed on.
    let id = unsafe { copy::load_u32(ids + index as u64 * 4) } as i32;
    (id.max(0) as u32).min(vocabulary - 1)
}

/// The seat of a thread where no thread blocks share a row.
#[inline(always)]
pub fn seat<C: Config>() -> Seat {
    Seat::of::<C>(&const { Divisor::new(1) })
}

/// Tiles that a row of so many columns passes by in.
#[inline(always)]
pub fn tiles<C: Config>(columns: u32) -> u32 {
    columns.div_ceil(const { C::TILE.columns() })
}

/// One thread block.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn gather<C: Config, const V: usize>(p: &GatherParams) {
    let seat = seat::<C>();
    let token = seat.team * const { C::TILE.block_rows() } + seat.in_block;
    if token >= p.extents.rows {
        return;
    }
    // SAFETY: the token exists, and the columns of its row of the output are those of this thread alone.
    unsafe {
        let id = id(p.ids, token, p.vocabulary);
        let from = RowPlace::at([0, 0, id]).start::<C::T>(&p.table, false);
        let to = RowPlace::of(&p.extents, token).start::<C::T>(&p.out, false);
        for tile in 0..tiles::<C>(p.extents.columns) {
            let own = Columns::of::<C>(&seat, tile, p.extents.columns, p.extents.columns, p.aligned != 0, true);
            let mut values = own.load::<C, V>(from, false);
            for v in 0..V {
                for e in 0..C::T::CHUNK {
                    values[v][e] *= p.scale;
                }
            }
            for v in 0..V {
                own.store::<C>(to, false, v, values[v]);
            }
        }
    }
}
