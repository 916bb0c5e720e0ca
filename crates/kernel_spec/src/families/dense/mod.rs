//! Dense layers: a product of matrices, and what is done to it before it leaves.

pub mod order;
mod params;
#[macro_use]
mod rows;

pub use order::TileOrder;
pub use params::{DenseParams, HopperDenseParams, HopperLogitsParams, LogitsParams, MatrixParams};

use crate::dtype::DType;
use crate::entry::{Arch, Entry};
use crate::features::FeatureSet;
use crate::layout::PANEL_BYTES;
use crate::shared::Carve;

/// Slots of the features.
pub const SLOTS: u32 = 3;

/// What the slots of the features mean. None has a value.
///
/// An activation is one of the sets below: eight fit three slots, and an entry is assembled for each. Kernels test one slot after the other: of a
/// comparison of sets, LLVM would make a table of branches, which no assembler takes out.
pub mod features {
    use crate::features::FeatureSet;

    /// Of two activations that the other slots leave, the second: ReLU of none, the exact one of GELUs, SwiGLU of those with the logistic function.
    pub const SECOND: u32 = 0;
    /// A GELU.
    pub const CURVED: u32 = 1;
    /// SiLU, alone or of a gate.
    pub const LOGISTIC: u32 = 2;

    const A: FeatureSet = FeatureSet::of(SECOND);
    const B: FeatureSet = FeatureSet::of(CURVED);
    const C: FeatureSet = FeatureSet::of(LOGISTIC);

    /// `z` as it is.
    pub const IDENTITY: FeatureSet = FeatureSet::NONE;
    /// `max(z, 0)`.
    pub const RELU: FeatureSet = A;
    /// `z Phi(z)`, with the distribution function of the normal distribution by `tanh`.
    pub const GELU_TANH: FeatureSet = B;
    /// `z Phi(z)`.
    pub const GELU_ERF: FeatureSet = A.union(B);
    /// `z / (1 + e^-z)`.
    pub const SILU: FeatureSet = C;
    /// `SILU(gate) up`, of two products.
    pub const SWIGLU: FeatureSet = A.union(C);
    /// All slots of activations.
    pub const ALL: FeatureSet = A.union(B).union(C);

    /// Of the gradient of x, which has no activation: the output is f32, whatever the operands are.
    pub const WIDE_OUT: u32 = 0;
    /// And so is what is added to it.
    pub const WIDE_RESIDUAL: u32 = 1;

    /// All slots of the gradient of x.
    pub const WIDE: FeatureSet = FeatureSet::of(WIDE_OUT).union(FeatureSet::of(WIDE_RESIDUAL));

    /// Whether these features are an activation of two products.
    #[inline(always)]
    pub const fn is_gated(set: FeatureSet) -> bool {
        set.contains(SWIGLU)
    }
}

/// What a row computes: a product, of operands that lie in memory as the tensors of a layer do.
///
/// ```text
/// Forward           out [rows, n] = x [rows, k]  w [n, k]^T       both with what is summed over in their rows
/// InputGradient     dx  [rows, k] = dz [rows, n] w [n, k]         the second one with a row for each number that is summed over
/// WeightGradient    dw  [n, k]    = dz [rows, n]^T x [rows, k]    both
/// Losses            none, of x [rows, k] w [n, k]^T               as forward: the sums are logits, and what losses need of them leaves
/// LogitGradient     dz  [rows, n] of the same                     as forward: the sums are logits, and their gradient leaves
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient of x.
    InputGradient,
    /// That of the weights.
    WeightGradient,
    /// What the losses of rows of logits need of a tile of these.
    Losses,
    /// The gradient of the logits.
    LogitGradient,
}

impl Pass {
    /// Whether each operand has the axis that is summed over in its rows, which are contiguous; else along them.
    pub const fn depth_in_rows(self) -> [bool; 2] {
        match self {
            Pass::Forward | Pass::Losses | Pass::LogitGradient => [true, true],
            Pass::InputGradient => [true, false],
            Pass::WeightGradient => [false, false],
        }
    }

    /// Whether sums leave as a matrix.
    pub const fn has_output(self) -> bool {
        !matches!(self, Pass::Losses)
    }

    /// The features: activations of forward, and sums in f32 of the gradient of x, whose type that is not.
    pub const fn accepts(self, dtype: DType) -> FeatureSet {
        match (self, dtype) {
            (Pass::Forward, _) => features::ALL,
            (Pass::InputGradient, DType::F16 | DType::Bf16) => features::WIDE,
            _ => FeatureSet::NONE,
        }
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Warpgroups of Hopper, on what the copy engine brings.
    Warpgroups,
    /// Warps.
    Warps,
}

/// The part of a product that a thread block has at a time, and how operands get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Rows of the product.
    pub rows: u32,
    /// Columns of it.
    pub columns: u32,
    /// Numbers of the axis that is summed over, in each buffer.
    pub depth: u32,
    /// Buffers.
    pub stages: u32,
    /// Thread blocks of a cluster, whose tiles are on top of one another: each loads its part of the columns' operand for all of them.
    pub cluster: u32,
    /// Rows of tiles that are walked over together.
    pub group: u32,
    /// About how many cycles a buffer is multiplied in.
    pub cycles: u32,
}

/// One row of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What a launch needs of it.
    pub entry: Entry,
    /// What it computes.
    pub pass: Pass,
    /// What multiplies.
    pub engine: Engine,
    /// Element type of all tensors.
    pub dtype: DType,
    /// How the product is cut.
    pub tile: Tile,
    /// Why it is cut so.
    pub reason: &'static str,
}

impl Variant {
    named!();

    /// Rows and columns of tiles, of a product of this size, where clusters have a row together. `gated`: a tile has half as many columns of
    /// the output as of the product.
    pub const fn tiles(&self, rows: u32, columns: u32, gated: bool) -> [u32; 2] {
        let of_output = if gated { self.tile.columns / 2 } else { self.tile.columns };
        [rows.div_ceil(self.tile.rows * self.tile.cluster), columns.div_ceil(of_output)]
    }

    /// Whether a warp has whole groups of four fragments of the gate and of what it opens. A row of other tiles is not for gated activations.
    pub const fn takes_gates(&self) -> bool {
        self.part_columns().is_multiple_of(2 * FOUR_FRAGMENTS)
    }

    /// Columns of the product of which one warp has a row: all of a tile's, or some of them.
    pub const fn part_columns(&self) -> u32 {
        match self.engine {
            Engine::Warpgroups => self.tile.columns,
            Engine::Warps => WARP_COLUMNS,
        }
    }
}

/// How a thread block divides up its shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// First buffer: of each, the rows' operand, then that of the columns.
    pub buffers: u32,
    /// Bytes of the rows' operand in a buffer.
    pub a_bytes: u32,
    /// Bytes of a buffer.
    pub stage_bytes: u32,
    /// The barriers of the buffers, of [`Engine::Warpgroups`] alone.
    pub barriers: u32,
    /// Biases of the tile of each warpgroup, for two turns: `[warpgroups][2][columns]` in the type of the operands. Of [`Engine::Warpgroups`] alone.
    pub biases: u32,
    /// Where rows of the output wait for the copy engine: `[warps][OUT_PIECES]` pieces. Of [`Engine::Warpgroups`], but for [`Pass::Losses`].
    pub out: u32,
    /// Bytes of all.
    pub total: u32,
}

impl Memory {
    /// Bytes of the two barriers of a buffer, full and empty.
    pub const BARRIER_PAIR_BYTES: u32 = 16;

    /// What operands start at multiples of: the pattern of the swizzle.
    const ALIGN: u32 = 1024;

    /// The memory of a row of the list.
    pub const fn of(pass: Pass, engine: Engine, dtype: DType, tile: &Tile) -> Memory {
        let mut carve = Carve::new();
        let row_bytes = tile.depth * dtype.bytes() as u32;
        let (a_bytes, b_bytes) = (tile.rows * row_bytes, tile.columns * row_bytes);
        assert!(
            a_bytes.is_multiple_of(Memory::ALIGN) && b_bytes.is_multiple_of(Memory::ALIGN),
            "operands follow one another"
        );
        let buffers = carve.take(tile.stages * (a_bytes + b_bytes), Memory::ALIGN);
        let (mut barriers, mut biases, mut out) = (0, 0, 0);
        if matches!(engine, Engine::Warpgroups) {
            if pass.has_output() {
                out = carve.take(tile.rows / OUT_PIECE_ROWS * OUT_PIECES * OUT_PIECE_BYTES, Memory::ALIGN);
            }
            barriers = carve.take(tile.stages * Memory::BARRIER_PAIR_BYTES, 16);
            biases = carve.take(tile.rows / WARPGROUP_ROWS * 2 * tile.columns * dtype.bytes() as u32, 16);
        }
        Memory { buffers, a_bytes, stage_bytes: a_bytes + b_bytes, barriers, biases, out, total: carve.total() }
    }
}

/// Columns of four fragments, which leave together.
const FOUR_FRAGMENTS: u32 = 32;

/// Columns of a product that a warp of [`Engine::Warps`] has.
pub const WARP_COLUMNS: u32 = 64;

/// Rows of a product that a warpgroup has.
pub const WARPGROUP_ROWS: u32 = 64;

/// Rows of the output that a warp leaves at a time, in a panel of columns: its own.
pub const OUT_PIECE_ROWS: u32 = 16;

/// Bytes of them: the rows of a box.
pub const OUT_PIECE_BYTES: u32 = OUT_PIECE_ROWS * PANEL_BYTES as u32;

/// Pieces of a warp: one is written while the copy engine reads the other.
pub const OUT_PIECES: u32 = 2;

/// Registers of a thread of the warpgroup that loads.
pub const LOAD_REGISTERS: u32 = 24;

/// Registers of a thread of the others: with two of them all registers of a multiprocessor.
pub const MATH_REGISTERS: u32 = 240;

macro_rules! variants {
    ($($pass:ident $engine:ident $rows:literal x $columns:literal x $depth:literal [$($dtype:ident $symbol:ident),+] $threads:literal, $min_ctas:literal,
       $stages:literal, $cluster:literal, $group:literal, $cycles:literal, $reason:literal;)*) => {
        &[$($(variant(
            Pass::$pass,
            Engine::$engine,
            Tile {
                rows: $rows, columns: $columns, depth: $depth, stages: $stages, cluster: $cluster, group: $group, cycles: $cycles,
            },
            DType::$dtype,
            stringify!($symbol),
            [$threads, $min_ctas],
            $reason,
        ),)+)*]
    };
}

const fn variant(
    pass: Pass,
    engine: Engine,
    tile: Tile,
    dtype: DType,
    symbol: &'static str,
    [threads, min_ctas]: [u32; 2],
    reason: &'static str,
) -> Variant {
    let shared_bytes = Memory::of(pass, engine, dtype, &tile).total;
    let logits = matches!(pass, Pass::Losses | Pass::LogitGradient);
    let (arch, params_bytes) = match (engine, logits) {
        (Engine::Warpgroups, false) => (Arch::Sm90a, size_of::<HopperDenseParams>()),
        (Engine::Warpgroups, true) => (Arch::Sm90a, size_of::<HopperLogitsParams>()),
        (Engine::Warps, false) => (Arch::Sm80, size_of::<DenseParams>()),
        (Engine::Warps, true) => (Arch::Sm80, size_of::<LogitsParams>()),
    };
    assert!(shared_bytes <= arch.shared_bytes(), "every GPU has room for the buffers");
    let entry = Entry {
        symbol,
        arch,
        threads,
        shared_bytes,
        min_ctas,
        params_bytes: params_bytes as u32,
        feature_slots: SLOTS,
        accepts: pass.accepts(dtype),
        cooperative: false,
        max_cluster: tile.cluster,
    };
    Variant { entry, pass, engine, dtype, tile, reason }
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_dense_row!(variants);

/// The row of `engine` for a product of this size on so many multiprocessors: that with the fewest cycles of all its rounds.
pub fn find(
    pass: Pass,
    engine: Engine,
    dtype: DType,
    [rows, columns]: [u32; 2],
    gated: bool,
    multiprocessors: u32,
) -> Option<&'static Variant> {
    let cycles = |row: &&Variant| {
        let [tile_rows, tile_columns] = row.tiles(rows, columns, gated);
        let at_a_time = (multiprocessors / row.tile.cluster).max(1) * row.entry.min_ctas;
        (u64::from(tile_rows) * u64::from(tile_columns)).div_ceil(at_a_time.into()) * u64::from(row.tile.cycles)
    };
    let fits = |row: &&Variant| {
        row.pass == pass && row.engine == engine && row.dtype == dtype && (!gated || row.takes_gates())
    };
    VARIANTS.iter().filter(fits).min_by_key(cycles)
}

const _: () = assert!(size_of::<HopperLogitsParams>() <= 4096, "parameters of a kernel are 4 KiB at most");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_products_get_large_tiles_and_small_ones_fill_the_gpu() {
        let symbol = |rows, columns| {
            find(Pass::Forward, Engine::Warpgroups, DType::Bf16, [rows, columns], false, 132).unwrap().entry.symbol
        };
        assert_eq!(symbol(16384, 16384), "dense_hopper_bf16_128x256");
        assert_eq!(symbol(1024, 2048), "dense_hopper_bf16_128x128");
        for (pass, expected) in
            [(Pass::InputGradient, "dense_dx_bf16_128x128"), (Pass::WeightGradient, "dense_dw_bf16_128x128")]
        {
            assert_eq!(find(pass, Engine::Warps, DType::Bf16, [512, 512], false, 132).unwrap().entry.symbol, expected);
        }
    }

    #[test]
    fn every_row_is_taken() {
        for row in VARIANTS {
            assert_eq!(Variant::named(row.entry.symbol), row);
            let sizes = [[1, 1], [1024, 2048], [8192, 8192], [8192, 1600]];
            assert!(
                sizes.iter().any(|&size| find(row.pass, row.engine, row.dtype, size, false, 132) == Some(row)),
                "{}",
                row.entry.symbol
            );
        }
    }
}
