//! The output.

use super::super::check::Tensors;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::Dense;
use super::choose::{Matrix, Product};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
use crate::error::{Error, Operand, OperatorError, Result};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, MAX_GRID, Params, Step, check_device, run};
use crate::specialise::Specialised;
use crate::tensor::{Dims, Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::copy_engine::ALIGNMENT;
use kernel_spec::families::dense::{self, DenseParams, Engine, HopperDenseParams, MatrixParams, TileOrder, Variant};
use kernel_spec::families::rows::MAX_COLUMNS;
use kernel_spec::{FeatureSet, Features, TensorMap};
use std::mem::offset_of;

plain! {
    MatrixParams { address, row_stride }
    TileOrder { tiles, last_group, group_tiles, group_rows, last_rows }
    DenseParams { a, b, out, kept, residual, bias, rows, columns, depth, aligned, out_aligned, order, features }
    HopperDenseParams { a, b, dense }
}

/// What [`Dense::forward`] returns. New tensors are contiguous.
#[derive(Debug)]
#[non_exhaustive]
pub struct DenseOutput {
    /// The output.
    pub out: Tensor,
    /// The sums before the activation, where [`Dense::with_z`] asks for them.
    pub z: Option<Tensor>,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// Where [`Dense::forward_into`] writes.
#[derive(Debug)]
#[non_exhaustive]
pub struct DenseOutputViewMut<'o> {
    /// The output.
    pub out: TensorViewMut<'o>,
    /// The sums before the activation.
    pub z: Option<TensorViewMut<'o>>,
}

impl<'o> DenseOutputViewMut<'o> {
    /// The output alone.
    pub fn new(out: TensorViewMut<'o>) -> DenseOutputViewMut<'o> {
        DenseOutputViewMut { out, z: None }
    }

    /// And the sums before the activation.
    pub fn with_z(mut self, z: TensorViewMut<'o>) -> DenseOutputViewMut<'o> {
        self.z = Some(z);
        self
    }
}

/// The tensors of a forward pass, and where each lies.
struct Call {
    x: Placed,
    weight: Placed,
    bias: Option<Placed>,
    residual: Option<Placed>,
    out: Placed,
    z: Option<Placed>,
}

impl Dense<'_> {
    /// The layer of these rows into new tensors, on the default stream of their device.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn forward(&self, x: &TensorView<'_>) -> Result<DenseOutput> {
        let call = self.call(x, None)?;
        let plan = self.forward_plan(&call, x.device())?;
        let new = |placed: &Placed| Tensor::uninit(x.device(), placed.dtype, placed.shape, Layout::RowMajor);
        let out = new(&call.out)?;
        let z = call.z.as_ref().map(new).transpose()?;
        let mut operands = self.inputs(x);
        operands.push((Operand::Out, out.address()));
        operands.extend(z.as_ref().map(|z| (Operand::Z, z.address())));
        run(x.device(), RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(DenseOutput { out, z, plan })
    }

    /// [`Dense::forward`] into these tensors, on `stream`: z is written where it is given. They need memory of their own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Dense::forward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn forward_into(&self, stream: &Stream, x: &TensorView<'_>, into: &mut DenseOutputViewMut<'_>) -> Result<()> {
        let call = self.call(x, Some(into))?;
        x.device().check_stream(stream)?;
        let plan = self.forward_plan(&call, x.device())?;
        let mut operands = self.inputs(x);
        operands.push((Operand::Out, into.out.view().address()));
        operands.extend(into.z.as_ref().map(|z| (Operand::Z, z.view().address())));
        run(x.device(), stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`Dense::forward`] of these rows would launch, and why.
    ///
    /// # Errors
    /// As [`Dense::forward`].
    pub fn plan(&self, x: &TensorView<'_>) -> Result<OperatorPlan> {
        self.forward_plan(&self.call(x, None)?, x.device())
    }

    fn inputs(&self, x: &TensorView<'_>) -> Vec<(Operand, u64)> {
        let given = [(Operand::Bias, &self.bias), (Operand::Residual, &self.residual)];
        let given = given.into_iter().filter_map(|(operand, view)| Some((operand, view.as_ref()?.address())));
        [(Operand::X, x.address()), (Operand::Weight, self.weight.address())].into_iter().chain(given).collect()
    }

    /// Checks everything, for outputs that are given or for new ones.
    fn call(&self, x: &TensorView<'_>, into: Option<&DenseOutputViewMut<'_>>) -> Result<Call> {
        let mut tensors = Tensors::of(Operand::X, x)?;
        let (dtype, shape, gated) = (x.dtype(), x.shape(), self.activation.is_gated());
        let (&columns, outer) = shape.split_last().expect("checked");
        let of_gate = if gated { 2 } else { 1 };
        let sums = match self.weight.shape()[..] {
            [sums, depth] if depth == columns && sums > 0 && sums.is_multiple_of(of_gate) => sums,
            _ => {
                let found = self.weight.shape().to_vec();
                return Err(OperatorError::Weights { found, columns, gated }.into());
            }
        };
        if sums > MAX_COLUMNS as usize {
            return Err(OperatorError::Columns { found: sums }.into());
        }
        let with = |columns: usize| Dims::new(&[outer, &[columns]].concat()).expect("as many axes as x has");
        let (out_shape, z_shape) = (with(sums / of_gate), with(sums));
        tensors.matrix(Operand::Weight, &self.weight, &self.weight.shape(), &[dtype])?;
        if let Some(bias) = &self.bias {
            tensors.line(Operand::Bias, bias, &Dims::from([sums]), Operand::Weight, &[dtype])?;
        }
        if let Some(residual) = &self.residual {
            tensors.matrix(Operand::Residual, residual, &out_shape, &[dtype])?;
        }
        let given = |operand, view: &Option<TensorView<'_>>| view.as_ref().map(|view| Placed::of(operand, view));
        let mut call = Call {
            x: Placed::of(Operand::X, x),
            weight: Placed::of(Operand::Weight, &self.weight),
            bias: given(Operand::Bias, &self.bias),
            residual: given(Operand::Residual, &self.residual),
            out: Placed::new(Operand::Out, dtype, out_shape),
            z: self.keeps.then(|| Placed::new(Operand::Z, dtype, z_shape)),
        };
        if let Some(into) = into {
            tensors.matrix_out(Operand::Out, &into.out, &out_shape, &[dtype])?;
            call.out = Placed::of(Operand::Out, &into.out.view());
            call.z = None;
            if let Some(z) = &into.z {
                tensors.matrix_out(Operand::Z, z, &z_shape, &[dtype])?;
                call.z = Some(Placed::of(Operand::Z, &z.view()));
            }
            tensors.check_apart()?;
        }
        Ok(call)
    }

    fn forward_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let by_rows: Vec<Placed> =
            [Some(call.x), Some(call.out), call.residual, call.z].into_iter().flatten().collect();
        let rows = Rows::of(&call.x, &by_rows)?;
        let matrix = |placed: &Placed| -> Result<Matrix> {
            let columns = *placed.shape.last().expect("as many axes as x has");
            Ok(Matrix { placed: *placed, rows: rows.rows, columns, stride: rows.one_stride(&call.x, placed)? })
        };
        let x = matrix(&call.x)?;
        let others = by_rows[1..].iter().map(matrix).collect::<Result<Vec<_>>>()?;
        let [sums, depth] = call.weight.shape[..] else { unreachable!("checked") };
        let weight = Matrix { placed: call.weight, rows: sums, columns: depth, stride: self.weight.strides()[0] };
        let gated = self.activation.is_gated();
        let columns = others[0].columns;
        let (dtype, bias) = (call.x.dtype, call.bias.as_ref());
        let product =
            Product { dtype, rows: rows.rows, columns, gated, operands: [&x, &weight], others: &others, bias };
        let (row, refused) = product.choose(device, self.hopper);
        let aligned = x.is_whole() && weight.is_whole();
        let out_aligned = product.leaves_whole();
        let of = |operand| others.iter().find(|matrix| matrix.placed.operand == operand);
        let place = |matrix: Option<&Matrix>| {
            let row_stride = matrix.map_or(0, |matrix| matrix.stride as u64);
            MatrixParams { address: 0, row_stride }
        };
        let set = self.activation.features();
        // At least one: a row of a product without rows is never asked for.
        let tiles = row.tiles(rows.rows.max(1) as u32, columns as u32, gated);
        let params = DenseParams {
            a: place(Some(&x)),
            b: place(Some(&weight)),
            out: place(of(Operand::Out)),
            kept: place(of(Operand::Z)),
            residual: place(of(Operand::Residual)),
            bias: 0,
            rows: rows.rows as u32,
            columns: columns as u32,
            depth: depth as u32,
            aligned: aligned.into(),
            out_aligned: out_aligned.into(),
            order: order(row, tiles)?,
            features: with_features(set),
        };
        let piece = |whole: bool| if whole { ALIGNMENT } else { dtype.bytes() as u64 };
        let holes = match row.engine {
            Engine::Warps => Params::new(bytes_of(&params))
                .address(offset_of!(DenseParams, a.address), Binding::Operand(Operand::X), piece(aligned))
                .address(offset_of!(DenseParams, b.address), Binding::Operand(Operand::Weight), piece(aligned)),
            Engine::Warpgroups => {
                let none = TensorMap([0; 16]);
                let halves = if gated { 2 } else { 1 };
                let maps = [
                    (offset_of!(HopperDenseParams, a), Operand::X, x.geometry(1, row.tile.rows)),
                    // Each of two parts of the columns in a box.
                    (offset_of!(HopperDenseParams, b), Operand::Weight, weight.geometry(halves, row.tile.columns / 2)),
                ];
                let bytes = bytes_of(&HopperDenseParams { a: none, b: none, dense: params });
                maps.into_iter().fold(Params::new(bytes), |holes, (offset, operand, geometry)| {
                    holes.map(offset, Binding::Operand(operand), ALIGNMENT, geometry)
                })
            }
        };
        let base = if row.engine == Engine::Warpgroups { offset_of!(HopperDenseParams, dense) } else { 0 };
        let rest = others.iter().map(|matrix| &matrix.placed).chain(bias);
        let holes = rest.fold(holes, |holes, placed| {
            let offset = match placed.operand {
                Operand::Out => offset_of!(DenseParams, out.address),
                Operand::Z => offset_of!(DenseParams, kept.address),
                Operand::Residual => offset_of!(DenseParams, residual.address),
                _ => offset_of!(DenseParams, bias),
            };
            holes.address(base + offset, Binding::Operand(placed.operand), piece(out_aligned))
        });
        let all = by_rows.iter().chain([&call.weight]).chain(bias);
        Ok(OperatorPlan {
            name: "dense",
            pass: "forward",
            rows: rows.rows,
            columns,
            dtype,
            steps: vec![step(row, set, tiles, rows.rows, device, holes, [aligned, out_aligned])?],
            buffers: Vec::new(),
            bytes: all.map(Placed::bytes).sum(),
            reason: match refused {
                None => format!("products of warpgroups, {depth} deep, {}", self.activation),
                Some(why) => {
                    format!("products of warps, {depth} deep, {}, and not those of warpgroups: {why}", self.activation)
                }
            },
        })
    }
}

/// The block of features with this set on.
fn with_features(set: FeatureSet) -> Features<{ dense::SLOTS as usize }> {
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
fn step(
    row: &'static Variant,
    features: FeatureSet,
    [tile_rows, tile_columns]: [u32; 2],
    rows: usize,
    device: &Device,
    params: Params,
    [aligned, out_aligned]: [bool; 2],
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
    let pieces = match [aligned, out_aligned] {
        [true, true] => "",
        [false, _] => ", in single elements, as rows start anywhere",
        [true, false] => ", with an output in single elements, as its rows start anywhere",
    };
    let text = format!("{} x {} sums a thread block, {tiles} tiles: {reason}{pieces}", tile.rows, tile.columns);
    Ok(Step::new(Specialised::with_features(&row.entry, features), ctas, text, params).in_clusters(tile.cluster))
}
