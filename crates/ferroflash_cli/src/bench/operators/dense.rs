//! Dense layers.

use super::OperatorName;
use super::cell::Cell;
use super::problem::{self, Data, Input, Output, pick, verdict, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::{Context, Result};
use ferroflash::operators::{Activation, Dense, DenseOutputViewMut, OperatorPlan};
use ferroflash::reference::ReferenceDense;
use ferroflash::{Device, Element, Layout, Stream, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The tensors of one launch.
struct Set {
    x: Tensor,
    weight: Tensor,
    out: Tensor,
}

/// A layer with biases.
pub(super) struct Subject {
    cell: Cell,
    bias: Option<Tensor>,
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

/// Multiplications and additions of the product.
pub(super) fn operations(cell: &Cell) -> u64 {
    2 * (cell.rows * sums(cell) * depth(cell)) as u64
}

/// Bytes of x, weights, biases and output.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let (depth, sums) = (depth(cell), sums(cell));
    let biases = if activation(cell).is_gated() { 0 } else { sums };
    ((cell.rows * (depth + cell.columns) + sums * depth + biases) * cell.dtype.bytes()) as u64
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
        let mut sets = Vec::new();
        for _ in 0..problem::sets(device, bytes(&cell)) {
            sets.push(Set {
                x: Tensor::from_slice(device, &x, [rows, depth], Layout::RowMajor)?,
                weight: Tensor::from_slice(device, &weight, [sums, depth], Layout::RowMajor)?,
                out: Tensor::uninit(device, cell.dtype, [rows, columns], Layout::RowMajor)?,
            });
        }
        Ok(Subject { cell, bias, sets })
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

    fn plan(&self) -> Result<OperatorPlan> {
        let set = &self.sets[0];
        Ok(self.layer(set).plan(&set.x.view())?)
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let set = &self.sets[set];
        let mut into = DenseOutputViewMut::new(written(device, &set.out)?);
        self.layer(set).forward_into(stream, &set.x.view(), &mut into)
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let set = &self.sets[0];
        let input = |name, tensor, own| Input { name, data: Data::Elements(tensor), own, differentiated: false };
        let mut inputs = vec![input("x", &set.x, true), input("weight", &set.weight, true)];
        inputs.extend(self.bias.iter().map(|bias| input("bias", bias, false)));
        inputs
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        vec![Output { name: "out", tensor: &self.sets[0].out }]
    }

    fn poison(&mut self) -> ferroflash::Result<()> {
        self.sets[0].out.fill_bytes(0xff)
    }

    fn numbers(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn verdicts(&self, found: &[Vec<f64>]) -> Result<Vec<(f64, f64)>> {
        let Cell { rows, dtype, .. } = self.cell;
        let (x, weight) = (self.sets[0].x.to_f64_vec()?, self.sets[0].weight.to_f64_vec()?);
        let bias = self.bias.as_ref().map(Tensor::to_f64_vec).transpose()?;
        let (depth, activation) = (depth(&self.cell), activation(&self.cell));
        let layer = ReferenceDense { depth, weight: &weight, bias: bias.as_deref(), activation };
        let outputs = pick(&x, rows)
            .par_chunks(depth)
            .map(|x| Ok([layer.forward(x, None)?.out, layer.forward_rounded(x, None, dtype)?.out]))
            .collect::<ferroflash::Result<Vec<_>>>()?;
        let [exact, rounded] =
            [0, 1].map(|which| outputs.iter().flat_map(|output| output[which].clone()).collect::<Vec<f64>>());
        let found = found.first().context("a layer has one result")?;
        Ok(vec![verdict(&pick(found, rows), &exact, &rounded)])
    }
}
