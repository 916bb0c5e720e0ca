//! Softmax.

use super::cell::Cell;
use super::compared::{Elements, Expected, compared};
use super::problem::{self, Data, Input, Output, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::Result;
use ferroflash::operators::{Operation, Softmax};
use ferroflash::reference::ReferenceSoftmax;
use ferroflash::{Device, Element, Layout, Stream, Tensor};
use std::collections::BTreeMap;

/// The tensors of one launch.
struct Set {
    x: Tensor,
    /// What is written: the softmax, or the gradient.
    result: Tensor,
    /// Of a backward pass: what forward gave, and the gradient with respect to it.
    backward: Option<[Tensor; 2]>,
}

/// Softmax of rows as they are.
pub(super) struct Subject {
    cell: Cell,
    sets: Vec<Set>,
}

/// Bytes of all tensors that every implementation reads or writes, each counted once: x and out; or out, dout and dx.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let tensors = if cell.is_backward() { 3 } else { 2 };
    tensors * cell.rows as u64 * cell.columns as u64 * cell.dtype.bytes() as u64
}

impl Subject {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        with_element!(cell.dtype, T => Subject::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        let Cell { rows, columns, dtype, .. } = cell;
        let shape = [rows, columns];
        let draw = |what: u64| values.draw::<T>(rows * columns, seed.wrapping_mul(8) + what);
        let (x, dout) = (draw(0), cell.is_backward().then(|| draw(1)));
        let mut sets = Vec::new();
        for _ in 0..problem::sets(device, bytes(&cell)) {
            let x = Tensor::from_slice(device, &x, shape, Layout::RowMajor)?;
            let result = Tensor::uninit(device, dtype, shape, Layout::RowMajor)?;
            let backward = match &dout {
                Some(dout) => {
                    let out = Softmax::new().forward(&x.view())?.out;
                    Some([out, Tensor::from_slice(device, dout, shape, Layout::RowMajor)?])
                }
                None => None,
            };
            sets.push(Set { x, result, backward });
        }
        Ok(Subject { cell, sets })
    }
}

impl problem::Subject for Subject {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn plan(&self) -> Result<Box<dyn Operation>> {
        let set = &self.sets[0];
        Ok(Box::new(match &set.backward {
            Some([out, dout]) => Softmax::new().plan_backward(&out.view(), &dout.view())?,
            None => Softmax::new().plan(&set.x.view())?,
        }))
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let set = &self.sets[set];
        let mut result = written(device, &set.result)?;
        match &set.backward {
            Some([out, dout]) => Softmax::new().backward_into(stream, &out.view(), &dout.view(), &mut result),
            None => Softmax::new().forward_into(stream, &set.x.view(), &mut result),
        }
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let Set { x, backward, .. } = &self.sets[0];
        let rows =
            |name, tensor, differentiated| Input { name, data: Data::Elements(tensor), own: true, differentiated };
        let dout = backward.as_ref().map(|[_, dout]| rows("dout", dout, false));
        [rows("x", x, true)].into_iter().chain(dout).collect()
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let name = if self.cell.is_backward() { "dx" } else { "out" };
        vec![Output { name, tensor: &self.sets[0].result }]
    }

    fn poison(&mut self) -> ferroflash::Result<()> {
        self.sets[0].result.fill_bytes(0xff)
    }

    fn numbers(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn expected(&self) -> Result<Vec<Expected>> {
        let Cell { rows, columns, dtype, .. } = self.cell;
        let Set { x, backward, .. } = &self.sets[0];
        let elements = Elements::rows(compared(rows), columns);
        let softmax = ReferenceSoftmax { columns, scale: 1.0, log: false, queries: None };
        let x = elements.of_tensor(x)?;
        let (mut exact, mut rounded) = (softmax.forward(&x, None)?, softmax.forward_rounded(&x, None, dtype)?);
        if let Some([_, dout]) = backward {
            // Whoever computes the gradient has an output that is rounded.
            let dout = elements.of_tensor(dout)?;
            exact = softmax.backward(&exact, &dout)?;
            rounded = softmax.backward_rounded(&rounded, &dout, dtype)?;
        }
        Ok(vec![Expected::new(elements, exact, rounded)])
    }
}
