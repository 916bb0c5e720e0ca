//! Cross-entropy, a loss a row.

use super::cell::Cell;
use super::compared::{Elements, Expected, compared};
use super::problem::{self, Data, Input, Output, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::Result;
use ferroflash::operators::{CrossEntropy, CrossEntropyOutputViewMut, CrossEntropySaved, Operation};
use ferroflash::reference::ReferenceCrossEntropy;
use ferroflash::{DType, Device, Element, Indices, Layout, Stream, Tensor};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// The tensors of one launch.
struct Set {
    logits: Tensor,
    /// What is written: the losses, or the gradient of the logits.
    result: Tensor,
    /// Of a backward pass: what forward gave.
    lse: Option<Tensor>,
}

/// Losses of logits as they are, every row of which counts.
pub(super) struct Subject {
    cell: Cell,
    targets: Vec<i64>,
    indices: Indices,
    /// Gradients with respect to the losses.
    dloss: Option<Tensor>,
    sets: Vec<Set>,
}

/// Bytes of all tensors that every implementation reads or writes, each counted once: logits, targets and losses; or logits, their gradients, targets,
/// log-sum-exps and the gradients with respect to the losses.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let (tensors, numbers) = if cell.is_backward() { (2, 3) } else { (1, 2) };
    cell.rows as u64 * (tensors * cell.columns as u64 * cell.dtype.bytes() as u64 + 4 * numbers)
}

impl Subject {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        with_element!(cell.dtype, T => Subject::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        let Cell { rows, columns, dtype, .. } = cell;
        let seed = seed.wrapping_mul(8);
        let logits = values.draw::<T>(rows * columns, seed);
        let mut rng = SmallRng::seed_from_u64(seed + 1);
        let targets: Vec<i32> = (0..rows).map(|_| rng.random_range(0..columns as i32)).collect();
        let indices = Indices::from_slice(device, &targets)?;
        let dloss = match cell.is_backward() {
            true => Some(Tensor::from_slice(device, &values.draw::<f32>(rows, seed + 2), [rows], Layout::RowMajor)?),
            false => None,
        };
        let mut sets = Vec::new();
        for _ in 0..problem::sets(device, bytes(&cell)) {
            let logits = Tensor::from_slice(device, &logits, [rows, columns], Layout::RowMajor)?;
            let (result, lse) = if cell.is_backward() {
                let lse = CrossEntropy::new().with_lse(true).forward(&logits.view(), &indices.view())?.lse;
                (Tensor::uninit(device, dtype, [rows, columns], Layout::RowMajor)?, lse)
            } else {
                (Tensor::uninit(device, DType::F32, [rows], Layout::RowMajor)?, None)
            };
            sets.push(Set { logits, result, lse });
        }
        let targets = targets.into_iter().map(i64::from).collect();
        Ok(Subject { cell, targets, indices, dloss, sets })
    }

    /// What a backward pass takes, on a set.
    fn saved<'s>(&'s self, set: &'s Set) -> Option<(CrossEntropySaved<'s>, &'s Tensor)> {
        let lse = set.lse.as_ref()?.view();
        Some((CrossEntropySaved::new(&set.logits.view(), &self.indices.view(), &lse), self.dloss.as_ref()?))
    }
}

impl problem::Subject for Subject {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn plan(&self) -> Result<Box<dyn Operation>> {
        let set = &self.sets[0];
        Ok(Box::new(match self.saved(set) {
            Some((saved, dloss)) => CrossEntropy::new().plan_backward(&saved, &dloss.view())?,
            None => CrossEntropy::new().plan(&set.logits.view(), &self.indices.view())?,
        }))
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let set = &self.sets[set];
        let mut result = written(device, &set.result)?;
        match self.saved(set) {
            Some((saved, dloss)) => CrossEntropy::new().backward_into(stream, &saved, &dloss.view(), &mut result),
            None => {
                let mut into = CrossEntropyOutputViewMut::new(result);
                CrossEntropy::new().forward_into(stream, &set.logits.view(), &self.indices.view(), &mut into)
            }
        }
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let logits = Data::Elements(&self.sets[0].logits);
        let mut inputs = vec![
            Input { name: "logits", data: logits, own: true, differentiated: true },
            Input { name: "targets", data: Data::Whole(&self.targets), own: false, differentiated: false },
        ];
        let dout = |tensor| Input { name: "dout", data: Data::Elements(tensor), own: false, differentiated: false };
        inputs.extend(self.dloss.as_ref().map(dout));
        inputs
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let name = if self.cell.is_backward() { "dlogits" } else { "out" };
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
        let reference =
            ReferenceCrossEntropy { classes: columns, scale: 1.0, smoothing: 0.0, z_loss: 0.0, ignored: None };
        let elements = Elements::rows(compared(rows), columns);
        let logits = elements.of_tensor(&self.sets[0].logits)?;
        // Fits: they are drawn as such.
        let targets: Vec<i32> = compared(rows).map(|row| self.targets[row] as i32).collect();
        let losses = Elements::rows(compared(rows), 1);
        let Some(dloss) = &self.dloss else {
            let exact = reference.forward(&logits, &targets)?.loss;
            return Ok(vec![Expected::new(losses, exact, reference.forward_rounded(&logits, &targets)?.loss)]);
        };
        let dloss = losses.of_tensor(dloss)?;
        let exact = reference.backward(&logits, &targets, &dloss)?;
        Ok(vec![Expected::new(elements, exact, reference.backward_rounded(&logits, &targets, &dloss, dtype)?)])
    }
}
