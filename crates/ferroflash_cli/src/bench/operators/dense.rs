//! Dense layers.

use super::OperatorName;
use super::cell::Cell;
use super::problem::{self, Data, Input, Output, pick, verdict, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::{Context, Result};
use ferroflash::operators::{Activation, Dense, DenseGradientsViewMut, DenseOutputViewMut, Operation};
use ferroflash::reference::{ReferenceDense, ReferenceDenseGradients};
use ferroflash::{Device, Element, Layout, Stream, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The tensors of one launch.
struct Set {
    x: Tensor,
    weight: Tensor,
    /// What is written: the output, or the gradients of x and of the weights.
    written: Vec<Tensor>,
    /// Of a backward pass, what forward kept, where there is an activation.
    z: Option<Tensor>,
}

/// Rows of the gradient of x that are compared, and sums of the gradient of weights: each of them takes all of the weights, or all of x.
const COMPARED_ROWS: usize = 4;
const COMPARED_SUMS: usize = 8;

/// A layer with biases.
pub(super) struct Subject {
    cell: Cell,
    bias: Option<Tensor>,
    /// Of a backward pass, the gradient of the output, and where that of the biases goes.
    dout: Option<Tensor>,
    dbias: Option<Tensor>,
    sets: Vec<Set>,
}

fn activation(cell: &Cell) -> Activation {
    match cell.operator {
        OperatorName::DenseGelu => Activation::GeluTanh,
        OperatorName::Swiglu => Activation::SwiGlu,
        _ => Activation::Identity,
    }
}

fn depth(cell: &Cell) -> usize {
    cell.depth.expect("products have one")
}

/// Rows of the weights.
fn sums(cell: &Cell) -> usize {
    cell.columns * if activation(cell).is_gated() { 2 } else { 1 }
}

/// Multiplications and additions of the product, or of both of a backward pass.
pub(super) fn operations(cell: &Cell) -> u64 {
    let products = if cell.is_backward() { 2 } else { 1 };
    2 * products * (cell.rows * sums(cell) * depth(cell)) as u64
}

/// Bytes of x, weights, biases and output; of a backward pass those of the gradients beside x and weights, and of what forward kept.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let (depth, sums) = (depth(cell), sums(cell));
    let biases = if activation(cell).is_gated() { 0 } else { sums };
    let (twice, kept) = match (cell.is_backward(), activation(cell)) {
        (false, _) => (1, 0),
        (true, Activation::Identity) => (2, 0),
        (true, _) => (2, cell.rows * sums),
    };
    ((twice * (cell.rows * depth + sums * depth) + cell.rows * cell.columns + kept + biases) * cell.dtype.bytes())
        as u64
}

impl Subject {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        with_element!(cell.dtype, T => Subject::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        let (rows, columns, depth, sums) = (cell.rows, cell.columns, depth(&cell), sums(&cell));
        let draw = |what: u64, elements: usize| values.draw::<T>(elements, seed.wrapping_mul(8) + what);
        let bias = (!activation(&cell).is_gated())
            .then(|| Tensor::from_slice(device, &draw(2, sums), [sums], Layout::RowMajor))
            .transpose()?;
        let (x, mut weight) = (draw(0, rows * depth), draw(1, sums * depth));
        // Sums of the size of x's numbers, whatever the depth.
        let scale = (depth as f64).sqrt().recip();
        weight.par_iter_mut().for_each(|w| *w = T::from_f64(w.to_f64() * scale));
        let new = |shape: [usize; 2]| Tensor::uninit(device, cell.dtype, shape, Layout::RowMajor);
        let (mut dout, mut dbias) = (None, None);
        if cell.is_backward() {
            dout = Some(Tensor::from_slice(device, &draw(3, rows * columns), [rows, columns], Layout::RowMajor)?);
            if bias.is_some() {
                dbias = Some(Tensor::uninit(device, cell.dtype, [sums], Layout::RowMajor)?);
            }
        }
        let mut subject = Subject { cell, bias, dout, dbias, sets: Vec::new() };
        for _ in 0..problem::sets(device, bytes(&cell)) {
            let written = if cell.is_backward() {
                vec![new([rows, depth])?, new([sums, depth])?]
            } else {
                vec![new([rows, columns])?]
            };
            let mut set = Set {
                x: Tensor::from_slice(device, &x, [rows, depth], Layout::RowMajor)?,
                weight: Tensor::from_slice(device, &weight, [sums, depth], Layout::RowMajor)?,
                written,
                z: None,
            };
            if cell.is_backward() && activation(&cell) != Activation::Identity {
                set.z = subject.layer(&set).with_z(true).forward(&set.x.view())?.z;
            }
            subject.sets.push(set);
        }
        Ok(subject)
    }

    fn layer<'t>(&'t self, set: &'t Set) -> Dense<'t> {
        let layer = Dense::new(&set.weight.view()).with_activation(activation(&self.cell));
        self.bias.as_ref().map_or(layer, |bias| layer.with_bias(&bias.view()))
    }
}

impl problem::Subject for Subject {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn plan(&self) -> Result<Box<dyn Operation>> {
        let (set, x) = (&self.sets[0], self.sets[0].x.view());
        let plan = match &self.dout {
            Some(dout) => self.layer(set).plan_backward(&x, set.z.as_ref().map(Tensor::view).as_ref(), &dout.view()),
            None => self.layer(set).plan(&x),
        };
        Ok(Box::new(plan?))
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let set = &self.sets[set];
        let (layer, x) = (self.layer(set), set.x.view());
        let Some(dout) = &self.dout else {
            return layer.forward_into(stream, &x, &mut DenseOutputViewMut::new(written(device, &set.written[0])?));
        };
        let mut into = DenseGradientsViewMut::new()
            .with_dx(written(device, &set.written[0])?)
            .with_dweight(written(device, &set.written[1])?);
        if let Some(dbias) = &self.dbias {
            into = into.with_dbias(written(device, dbias)?);
        }
        layer.backward_into(stream, &x, set.z.as_ref().map(Tensor::view).as_ref(), &dout.view(), &mut into)
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let set = &self.sets[0];
        let input =
            |name, tensor, own, differentiated| Input { name, data: Data::Elements(tensor), own, differentiated };
        let mut inputs = vec![input("x", &set.x, true, true), input("weight", &set.weight, true, true)];
        inputs.extend(self.bias.iter().map(|bias| input("bias", bias, false, true)));
        inputs.extend(self.dout.iter().map(|dout| input("dout", dout, false, false)));
        inputs
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let names = if self.cell.is_backward() { ["dx", "dweight"] } else { ["out", ""] };
        let set = self.sets[0].written.iter();
        let mut outputs: Vec<_> = names.into_iter().zip(set).map(|(name, tensor)| Output { name, tensor }).collect();
        outputs.extend(self.dbias.iter().map(|tensor| Output { name: "dbias", tensor }));
        outputs
    }

    fn poison(&mut self) -> ferroflash::Result<()> {
        self.sets[0].written.iter_mut().chain(&mut self.dbias).try_for_each(|tensor| tensor.fill_bytes(0xff))
    }

    fn numbers(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn verdicts(&self, found: &[Vec<f64>]) -> Result<Vec<(f64, f64)>> {
        let Cell { rows, columns, dtype, .. } = self.cell;
        let (x, weight) = (self.sets[0].x.to_f64_vec()?, self.sets[0].weight.to_f64_vec()?);
        let bias = self.bias.as_ref().map(Tensor::to_f64_vec).transpose()?;
        let (depth, sums, activation) = (depth(&self.cell), sums(&self.cell), activation(&self.cell));
        let layer = ReferenceDense { depth, weight: &weight, bias: bias.as_deref(), activation };
        let Some(dout) = &self.dout else {
            let outputs = pick(&x, rows)
                .par_chunks(depth)
                .map(|x| Ok([layer.forward(x, None)?.out, layer.forward_rounded(x, None, dtype)?.out]))
                .collect::<ferroflash::Result<Vec<_>>>()?;
            let [exact, rounded] =
                [0, 1].map(|which| outputs.iter().flat_map(|output| output[which].clone()).collect::<Vec<f64>>());
            let found = found.first().context("a layer has one result")?;
            return Ok(vec![verdict(&pick(found, rows), &exact, &rounded)]);
        };
        let dout = dout.to_f64_vec()?;
        let both = |layer: &ReferenceDense<'_>, x: &[f64], dout: &[f64]| -> Result<[ReferenceDenseGradients; 2]> {
            Ok([layer.backward(x, None, dout)?, layer.backward_rounded(x, None, dout, dtype)?])
        };
        // Some rows of x for its gradient.
        let some = rows.min(COMPARED_ROWS);
        let [exact, rounded] = both(&layer, &x[..some * depth], &dout[..some * columns])?;
        let mut verdicts = vec![verdict(&found[0][..some * depth], &exact.dx, &rounded.dx)];
        // Some columns of the output for that of the weights, with all rows.
        let some = columns.min(COMPARED_SUMS);
        let halves: Vec<usize> = (0..sums / columns).map(|half| half * columns).collect();
        let of = |data: &[f64], width: usize| -> Vec<f64> {
            halves.iter().flat_map(|&from| &data[from * width..(from + some) * width]).copied().collect()
        };
        let (few_weights, few_biases) = (of(&weight, depth), bias.as_ref().map(|bias| of(bias, 1)));
        let few = ReferenceDense { weight: &few_weights, bias: few_biases.as_deref(), ..layer };
        let few_douts: Vec<f64> = dout.chunks(columns).flat_map(|row| &row[..some]).copied().collect();
        let [exact, rounded] = both(&few, &x, &few_douts)?;
        verdicts.push(verdict(&of(&found[1], depth), &exact.dweight, &rounded.dweight));
        if self.dbias.is_some() {
            verdicts.push(verdict(&of(&found[2], 1), &exact.dbias, &rounded.dbias));
        }
        Ok(verdicts)
    }
}
