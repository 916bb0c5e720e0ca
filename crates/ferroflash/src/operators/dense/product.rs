//! A product of matrices: which row of the list it takes, what rules Hopper's out, and its launch.

use super::super::rows::Placed;
use super::Activation;
use super::matrix::Matrix;
use crate::device::{Device, DeviceInfo};
use crate::error::{Error, Operand, Result, Unsupported};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, MAX_GRID, Params, Step, check_device, check_hopper};
use crate::specialise::Specialised;
use kernel_spec::copy_engine::{ALIGNMENT, BOX_COLS};
use kernel_spec::families::dense::{
    self, DenseParams, Engine, HopperDenseParams, MatrixParams, OUT_PIECE_ROWS, Pass, TileOrder, Variant, features,
    find,
};
use kernel_spec::{DType, FeatureSet, Features, TensorMap};
use std::mem::offset_of;

plain! {
    MatrixParams { address, row_stride }
    TileOrder { tiles, last_group, group_tiles, group_rows, last_rows }
    DenseParams { a, b, out, kept, residual, bias, rows, columns, depth, aligned, out_aligned, order, features }
    HopperDenseParams { a, b, out, dense }
}

/// A product `[rows, columns]` that sums over `depth` numbers.
#[derive(Clone, Copy)]
pub(in crate::operators) struct Product<'p> {
    pub(in crate::operators) pass: Pass,
    pub(in crate::operators) activation: Activation,
    pub(in crate::operators) rows: usize,
    /// Of the output.
    pub(in crate::operators) columns: usize,
    pub(in crate::operators) depth: usize,
    /// What is read as operands, each as the pass has it.
    pub(in crate::operators) operands: [&'p Matrix; 2],
    /// None of [`Pass::Losses`]. That of the gradient of x, and its residual, may be f32 whatever the operands are.
    pub(in crate::operators) out: Option<&'p Matrix>,
    pub(in crate::operators) kept: Option<&'p Matrix>,
    /// It may be the output itself.
    pub(in crate::operators) residual: Option<&'p Matrix>,
    pub(in crate::operators) bias: Option<&'p Placed>,
}

/// The parameters of a kernel, of which those of a product are a part; on Hopper they start with the maps of both operands and of the output.
pub(in crate::operators) struct Whole {
    pub(in crate::operators) bytes: Vec<u8>,
    /// Where those of the product are.
    pub(in crate::operators) dense: usize,
    /// What else holds an address: where it is, of what, and what that is a multiple of.
    pub(in crate::operators) holes: Vec<(usize, Binding, u64)>,
}

/// No map yet.
pub(in crate::operators) const NO_MAP: TensorMap = TensorMap([0; 16]);

impl Product<'_> {
    /// The launch, and why it is not Hopper's, if it is not.
    pub(in crate::operators) fn step(&self, device: &Device, hopper: bool) -> Result<(Step, Option<Unsupported>)> {
        let (row, refused) = self.choose(device, hopper);
        let step = self.step_of(row, device, |dense| match row.engine {
            Engine::Warps => Whole { bytes: bytes_of(&dense), dense: 0, holes: Vec::new() },
            Engine::Warpgroups => Whole {
                bytes: bytes_of(&HopperDenseParams { a: NO_MAP, b: NO_MAP, out: NO_MAP, dense }),
                dense: offset_of!(HopperDenseParams, dense),
                holes: Vec::new(),
            },
        })?;
        Ok((step, refused))
    }

    /// The launch of this row of the list, whose parameters `whole` makes of those of the product.
    pub(in crate::operators) fn step_of(
        &self,
        row: &'static Variant,
        device: &Device,
        whole: impl FnOnce(DenseParams) -> Whole,
    ) -> Result<Step> {
        let Product { rows, columns, depth, operands: [a, b], .. } = *self;
        let dtype = self.dtype();
        let gated = self.activation.is_gated();
        let aligned = a.is_whole() && b.is_whole();
        let out_aligned = self.leaves_whole();
        let set = self.features();
        // At least one: a row of a product without rows is never asked for.
        let tiles = row.tiles(rows.max(1) as u32, columns as u32, gated);
        let params = DenseParams {
            a: Matrix::params(Some(a)),
            b: Matrix::params(Some(b)),
            out: Matrix::params(self.out),
            kept: Matrix::params(self.kept),
            residual: Matrix::params(self.residual),
            bias: 0,
            rows: rows as u32,
            columns: columns as u32,
            depth: depth as u32,
            aligned: aligned.into(),
            out_aligned: out_aligned.into(),
            order: order(row, tiles)?,
            features: with_features(set),
        };
        let piece = |whole: bool| if whole { ALIGNMENT } else { dtype.bytes() as u64 };
        let Whole { bytes, dense: base, holes: more } = whole(params);
        let mut holes = Params::new(bytes);
        holes = match row.engine {
            Engine::Warps => holes
                .address(base + offset_of!(DenseParams, a.address), a.binding, piece(aligned))
                .further(a.placed.further)
                .address(base + offset_of!(DenseParams, b.address), b.binding, piece(aligned))
                .further(b.placed.further),
            Engine::Warpgroups => {
                let [a_boxes, b_boxes] = boxes(row);
                let halves = if gated { 2 } else { 1 };
                holes = holes
                    .map(offset_of!(HopperDenseParams, a), a.binding, ALIGNMENT, a.geometry(1, a_boxes))
                    .further(a.placed.further)
                    .map(offset_of!(HopperDenseParams, b), b.binding, ALIGNMENT, b.geometry(halves, b_boxes))
                    .further(b.placed.further);
                match self.out.filter(|out| out.placed.dtype == dtype) {
                    Some(out) => {
                        let geometry = out.geometry(1, OUT_PIECE_ROWS);
                        holes
                            .map(offset_of!(HopperDenseParams, out), out.binding, ALIGNMENT, geometry)
                            .further(out.placed.further)
                    }
                    None => holes,
                }
            }
        };
        let of = |matrix: &Matrix| (matrix.binding, matrix.placed.further);
        let rest = [
            (offset_of!(DenseParams, out.address), self.out.map(of)),
            (offset_of!(DenseParams, kept.address), self.kept.map(of)),
            (offset_of!(DenseParams, residual.address), self.residual.map(of)),
            (offset_of!(DenseParams, bias), self.bias.map(|bias| (Binding::Operand(bias.operand), bias.further))),
        ];
        for (offset, there) in rest {
            if let Some((binding, further)) = there {
                holes = holes.address(base + offset, binding, piece(out_aligned)).further(further);
            }
        }
        for (offset, binding, alignment) in more {
            holes = holes.address(offset, binding, alignment);
        }
        let pieces = match [aligned, out_aligned] {
            [true, true] => "",
            [false, _] => ", in single elements, as rows start anywhere",
            [true, false] if !self.is_of_logits() => ", with an output in single elements, as its rows start anywhere",
            [true, false] if self.bias.is_some() => ", with biases in single elements, as they are no whole pieces",
            [true, false] => "",
        };
        launch(row, set, tiles, rows, device, holes, pieces)
    }

    /// The type of the operands.
    fn dtype(&self) -> DType {
        self.operands[0].placed.dtype
    }

    /// The activation, or what is f32 beside operands that are not.
    fn features(&self) -> FeatureSet {
        let wide = |matrix: Option<&Matrix>, slot: u32| match matrix {
            Some(matrix) if matrix.placed.dtype != self.dtype() => FeatureSet::of(slot),
            _ => FeatureSet::NONE,
        };
        match self.pass {
            Pass::InputGradient => {
                wide(self.out, features::WIDE_OUT).union(wide(self.residual, features::WIDE_RESIDUAL))
            }
            _ => self.activation.features(),
        }
    }

    /// Whether the sums are logits, which do not leave as they are.
    fn is_of_logits(&self) -> bool {
        matches!(self.pass, Pass::Losses | Pass::LogitGradient)
    }

    /// What else than operands is read and written row by row.
    fn others(&self) -> impl Iterator<Item = &Matrix> {
        [self.out, self.kept, self.residual].into_iter().flatten()
    }

    /// The row that the product takes, and why it is not Hopper's, if it is not.
    pub(in crate::operators) fn choose(
        &self,
        device: &Device,
        hopper: bool,
    ) -> (&'static Variant, Option<Unsupported>) {
        let Product { pass, rows, columns, .. } = *self;
        let (info, gated) = (device.info(), self.activation.is_gated());
        // Fit: the call has bounded both.
        let find = |unit| find(pass, unit, self.dtype(), [rows as u32, columns as u32], gated, info.multiprocessors);
        let checked = if hopper { self.check_hopper(info) } else { Err(Unsupported::SwitchedOff) };
        match (checked, find(Engine::Warpgroups)) {
            (Ok(()), Some(row)) => (row, None),
            (checked, _) => (find(Engine::Warps).expect("a row for every type"), checked.err()),
        }
    }

    /// The one place of the conditions of Hopper's kernel.
    fn check_hopper(&self, device: &DeviceInfo) -> Result<(), Unsupported> {
        check_hopper(device)?;
        if self.dtype() == DType::F32 {
            return Err(Unsupported::DType { found: self.dtype() });
        }
        if self.rows == 0 || self.depth == 0 {
            return Err(Unsupported::NoRows);
        }
        // Logits may be any number, and their biases anywhere: no tensor of the call has rows of them, and biases are read in single elements where they have to be.
        if !self.is_of_logits() && !self.columns.is_multiple_of(8) {
            return Err(Unsupported::OutputColumns { found: self.columns });
        }
        self.operands.into_iter().chain(self.others()).try_for_each(Matrix::check)?;
        if self.is_of_logits() {
            return Ok(());
        }
        match self.bias.and_then(|bias| bias.address()).filter(|address| !address.is_multiple_of(ALIGNMENT)) {
            Some(address) => Err(Unsupported::Address { tensor: Operand::Bias, address }),
            None => Ok(()),
        }
    }

    /// Whether everything but the operands moves in whole pieces.
    fn leaves_whole(&self) -> bool {
        let bias = self.bias.is_none_or(|bias| bias.address().unwrap_or(0).is_multiple_of(ALIGNMENT));
        self.columns.is_multiple_of(8) && bias && (self.is_of_logits() || self.others().all(Matrix::is_whole))
    }
}

/// Rows of the boxes that the copy engine brings of each operand: of `b`, half a tile's columns, as each of two parts is loaded; squares of what has a row
/// for each number that is summed over.
fn boxes(row: &Variant) -> [u32; 2] {
    let [a_in_rows, b_in_rows] = row.pass.depth_in_rows();
    [if a_in_rows { row.tile.rows } else { BOX_COLS }, if b_in_rows { row.tile.columns / 2 } else { BOX_COLS }]
}

/// The block of features with this set on.
pub(in crate::operators) fn with_features(set: FeatureSet) -> Features<{ dense::SLOTS as usize }> {
    (0..dense::SLOTS)
        .filter(|&slot| set.contains(FeatureSet::of(slot)))
        .fold(Features::OFF, |on, slot| on.with(slot, 0))
}

/// The order of the tiles, of which there are fewer than a grid has thread blocks.
fn order(row: &'static Variant, [rows, columns]: [u32; 2]) -> Result<TileOrder> {
    let (needed, limit) = (u64::from(rows) * u64::from(columns), MAX_GRID);
    if needed >= limit {
        return Err(Error::GridTooLarge { symbol: row.entry.symbol, needed: needed.into(), limit });
    }
    Ok(TileOrder::new(rows, columns, row.tile.group.div_ceil(row.tile.cluster)))
}

/// The launch: a thread block a tile, or as many as run at a time.
fn launch(
    row: &'static Variant,
    features: FeatureSet,
    [tile_rows, tile_columns]: [u32; 2],
    rows: usize,
    device: &Device,
    params: Params,
    pieces: &str,
) -> Result<Step> {
    check_device(&row.entry, device.info())?;
    let Variant { tile, reason, .. } = row;
    let tiles = tile_rows * tile_columns;
    let ctas = match row.engine {
        Engine::Warps => tiles,
        Engine::Warpgroups => tiles.min((device.info().multiprocessors / tile.cluster).max(1)) * tile.cluster,
    };
    // Without rows there is nothing to do.
    let ctas = if rows == 0 { 0 } else { ctas };
    let text = format!("{} x {} sums a thread block, {tiles} tiles: {reason}{pieces}", tile.rows, tile.columns);
    Ok(Step::new(Specialised::with_features(&row.entry, features), ctas, text, params).in_clusters(tile.cluster))
}
