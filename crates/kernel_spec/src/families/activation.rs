//! Gradients through the activations of dense layers, and of their biases.

use super::dense::{self, MatrixParams};
use super::rows::{RowTile, RowVariant, Sharing};
use crate::divisor::Divisor;
use crate::dtype::DType;
use crate::features::Features;

/// Parameters: `dz = dout activation'(z)`, and what each part of the rows adds to the gradients of the biases.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationGradientParams {
    /// Gradient of the output, `[rows, columns]`.
    pub dout: MatrixParams,
    /// Sums before the activation, `[rows, columns]`, of a gated one `[rows, 2 columns]`; none of the identity.
    pub z: MatrixParams,
    /// Their gradient, or none.
    pub dz: MatrixParams,
    /// Device address of what each part of the rows adds to the gradients of the biases, `f32 [parts, sums]`, a multiple of four numbers from one part
    /// to the next; or 0.
    pub part_sums: u64,
    /// Rows.
    pub rows: u32,
    /// Columns of the output.
    pub columns: u32,
    /// Parts that share out the rows.
    pub parts: u32,
    /// 1 when all rows are whole pieces of 16 bytes at multiples of them; 0 makes threads read and write single elements.
    pub aligned: u32,
    /// Thread blocks that share out the columns.
    pub strips: Divisor,
    /// 0: the features start at a multiple of 8.
    pub unused: u32,
    /// See [`dense::features`].
    pub features: Features<{ dense::SLOTS as usize }>,
}

/// What a row computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Gradients of sums, and of biases.
    Backward,
}

/// One row of the list. Its tile: a row of threads has a vector each of some columns, and the thread block several rows.
pub type Variant = RowVariant<Pass>;

impl Variant {
    named!();

    /// Bytes of shared memory: what each row of threads has summed up of its columns, of a gated activation for both halves.
    pub const fn sums_bytes(tile: &RowTile) -> u32 {
        2 * tile.block_rows() * tile.columns() * DType::F32.bytes() as u32
    }
}

/// Calls `$callback!` with every row: `[type symbol, ..] threads_of_a_thread_block, thread blocks of a multiprocessor, "why";`.
#[macro_export]
macro_rules! for_each_activation_row {
    ($callback:ident) => {
        $callback! {
            [F16 dense_dz_f16, Bf16 dense_dz_bf16, F32 dense_dz_f32] 256, 2,
                "a warp has 512 neighbouring bytes of a row, and two rows on their way";
        }
    };
}

macro_rules! variants {
    ($([$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        &[$($(variant(DType::$dtype, stringify!($symbol), [$threads, $min_ctas], $reason),)+)*]
    };
}

const fn variant(dtype: DType, symbol: &'static str, [threads, min_ctas]: [u32; 2], reason: &'static str) -> Variant {
    let tile = RowTile { sharing: Sharing::Alone, dtype, threads, row_threads: 32, vectors: 1, ahead: 0 };
    let params_bytes = size_of::<ActivationGradientParams>();
    let shared_bytes = Variant::sums_bytes(&tile);
    let entry = tile.entry(symbol, [min_ctas, shared_bytes], params_bytes, dense::SLOTS, dense::features::ALL);
    Variant { entry, pass: Pass::Backward, tile, reason }
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_activation_row!(variants);

/// The row for elements of this type.
pub fn find(dtype: DType) -> Option<&'static Variant> {
    VARIANTS.iter().find(|row| row.tile.dtype == dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_taken() {
        for row in VARIANTS {
            assert_eq!(find(row.tile.dtype), Some(row));
            assert_eq!(Variant::named(row.entry.symbol), row);
        }
        assert!(DType::ALL.iter().all(|&dtype| find(dtype).is_some()));
    }
}
