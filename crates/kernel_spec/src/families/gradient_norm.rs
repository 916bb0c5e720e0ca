//! The norm of all gradients of a list of tensors, and what clipping multiplies them with.

use super::rows::{RowTile, RowVariant, Sharing, SumsMemory};
use crate::dtype::DType;
use crate::features::{FeatureSet, Features};

/// Tensors of one launch, at most: their places fill most of the 4 KiB that parameters may have.
pub const MAX_TENSORS: u32 = 128;

/// Vectors of a thread, all of which are on their way before the first is squared.
pub const VECTORS: u32 = 4;

/// What a row computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The sum of the squares of each thread block.
    Squares,
    /// The norm, from these.
    Norm,
}

/// A tensor of gradients.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorParams {
    /// Device address.
    pub address: u64,
    /// Elements.
    pub elements: u64,
    /// The first thread block that works on it.
    pub first_block: u64,
}

impl TensorParams {
    /// No tensor.
    pub const NONE: TensorParams = TensorParams { address: 0, elements: 0, first_block: 0 };
}

/// Parameters of [`Pass::Squares`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SquaresParams {
    /// The tensors, of which the first [`count`](Self::count) are there.
    pub tensors: [TensorParams; MAX_TENSORS as usize],
    /// Device address of the sums of all launches, `f32 [parts]`.
    pub parts: u64,
    /// The sum of the first thread block among them.
    pub first_part: u32,
    /// Tensors: `1..=MAX_TENSORS`.
    pub count: u32,
    /// None yet.
    pub features: Features<0>,
}

/// Parameters of [`Pass::Norm`]: `norm = scale sqrt(sum of parts)`, `coefficient = min(1, most / (norm + 1e-6))`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormParams {
    /// Device address of the sums.
    pub parts: u64,
    /// Device address of the norm and the coefficient, `f32 [2]`.
    pub out: u64,
    /// Sums.
    pub count: u32,
    /// What gradients are taken times, 0 or above.
    pub scale: f32,
    /// The norm above which gradients are clipped; infinity: none is.
    pub most: f32,
    /// 0: the features start at a multiple of 8.
    pub unused: u32,
    /// None yet.
    pub features: Features<0>,
}

/// One row of the list. Its tile: how elements lie in the registers of a thread block, a vector a thread at a time.
pub type Variant = RowVariant<Pass>;

impl Variant {
    named!();

    /// Elements of a thread block.
    pub const fn block_elements(&self) -> u32 {
        self.tile.columns() * VECTORS
    }
}

/// Calls `$callback!` with every row: `Pass [type symbol, ..] threads_of_a_thread_block, thread blocks of a multiprocessor, "why";`.
#[macro_export]
macro_rules! for_each_gradient_norm_row {
    ($callback:ident) => {
        $callback! {
            Squares [F16 squares_f16, Bf16 squares_bf16, F32 squares_f32] 256, 4,
                "four vectors a thread on their way";
            Norm [F32 squares_norm] 1024, 1,
                "one thread block, whose threads have eight sums on their way each";
        }
    };
}

macro_rules! variants {
    ($($pass:ident [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal, $reason:literal;)*) => {
        &[$($(variant(Pass::$pass, DType::$dtype, stringify!($symbol), [$threads, $min_ctas], $reason),)+)*]
    };
}

const fn variant(
    pass: Pass,
    dtype: DType,
    symbol: &'static str,
    [threads, min_ctas]: [u32; 2],
    reason: &'static str,
) -> Variant {
    let tile = RowTile { sharing: Sharing::Alone, dtype, threads, row_threads: threads, vectors: 1, ahead: 0 };
    let params_bytes = match pass {
        Pass::Squares => size_of::<SquaresParams>(),
        Pass::Norm => size_of::<NormParams>(),
    };
    let entry = tile.entry(symbol, [min_ctas, SumsMemory::alone_bytes(&tile)], params_bytes, 0, FeatureSet::NONE);
    Variant { entry, pass, tile, reason }
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_gradient_norm_row!(variants);

/// The row for this pass over elements of this type; sums are f32.
pub fn find(pass: Pass, dtype: DType) -> Option<&'static Variant> {
    VARIANTS.iter().find(|row| row.pass == pass && row.tile.dtype == dtype)
}

// What every driver takes.
const _: () = assert!(size_of::<SquaresParams>() <= 4096, "parameters of a kernel are 4 KiB at most");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_taken() {
        for row in VARIANTS {
            assert_eq!(find(row.pass, row.tile.dtype), Some(row));
            assert_eq!(Variant::named(row.entry.symbol), row);
        }
        assert!(DType::ALL.iter().all(|&dtype| find(Pass::Squares, dtype).is_some()));
    }
}
