//! Cross-entropy of the logits of a dense layer without biases, a loss a row.

use super::cell::Cell;
use super::compared::{Elements, Expected, compared, numbers};
use super::problem::{self, Data, Input, Output, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::Result;
use ferroflash::operators::{
    Activation, CrossEntropy, CrossEntropyOutputViewMut, DenseGradientsViewMut, LinearCrossEntropy,
    LinearCrossEntropySaved, Operation,
};
use ferroflash::reference::{ReferenceCrossEntropy, ReferenceDense, ReferenceLinearCrossEntropy};
use ferroflash::{DType, Device, Element, Indices, Layout, Stream, Tensor};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Of the rows that others compare one in so many: each takes all of the weights.
const ONE_ROW_OF: usize = 8;

/// Classes of the gradient of weights that are compared, targets of rows and others: each takes all of x.
const COMPARED_CLASSES: usize = 8;

/// The tensors of one launch.
struct Set {
    x: Tensor,
    weight: Tensor,
    /// What is written: the losses, or the gradients of x and of the weights.
    written: Vec<Tensor>,
    /// Of a backward pass: what forward gave.
    lse: Option<Tensor>,
}

/// Plain losses, of which every row counts.
pub(super) struct Subject {
    cell: Cell,
    targets: Vec<i64>,
    indices: Indices,
    /// Gradients with respect to the losses.
    dloss: Option<Tensor>,
    sets: Vec<Set>,
}

fn depth(cell: &Cell) -> usize {
    cell.depth.expect("products have one")
}

/// Bytes of x, weights, targets and losses; of a backward pass those of the gradients beside x and weights, and of targets, log-sum-exps and the gradients with
/// respect to the losses. None of logits.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let (twice, numbers) = if cell.is_backward() { (2, 3) } else { (1, 2) };
    let tensors = twice * (cell.rows + cell.columns) * depth(cell) * cell.dtype.bytes();
    (tensors + 4 * numbers * cell.rows) as u64
}

impl Subject {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        with_element!(cell.dtype, T => Subject::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        let (rows, classes, depth) = (cell.rows, cell.columns, depth(&cell));
        let seed = seed.wrapping_mul(8);
        let (x, mut weight) = (values.draw::<T>(rows * depth, seed), values.draw::<T>(classes * depth, seed + 1));
        // Logits of the size of x's numbers, whatever the depth.
        let scale = (depth as f64).sqrt().recip();
        weight.par_iter_mut().for_each(|w| *w = T::from_f64(w.to_f64() * scale));
        let mut rng = SmallRng::seed_from_u64(seed + 2);
        let targets: Vec<i32> = (0..rows).map(|_| rng.random_range(0..classes as i32)).collect();
        let indices = Indices::from_slice(device, &targets)?;
        let dloss = match cell.is_backward() {
            true => Some(Tensor::from_slice(device, &values.draw::<f32>(rows, seed + 3), [rows], Layout::RowMajor)?),
            false => None,
        };
        let mut subject =
            Subject { cell, targets: targets.into_iter().map(i64::from).collect(), indices, dloss, sets: Vec::new() };
        let new = |shape: [usize; 2]| Tensor::uninit(device, cell.dtype, shape, Layout::RowMajor);
        for _ in 0..problem::sets(device, bytes(&cell)) {
            let written = if cell.is_backward() {
                vec![new([rows, depth])?, new([classes, depth])?]
            } else {
                vec![Tensor::uninit(device, DType::F32, [rows], Layout::RowMajor)?]
            };
            let mut set = Set {
                x: Tensor::from_slice(device, &x, [rows, depth], Layout::RowMajor)?,
                weight: Tensor::from_slice(device, &weight, [classes, depth], Layout::RowMajor)?,
                written,
                lse: None,
            };
            if cell.is_backward() {
                let of = LinearCrossEntropy::new(&set.weight.view()).with_loss(CrossEntropy::new().with_lse(true));
                let lse = of.forward(&set.x.view(), &subject.indices.view())?.lse;
                set.lse = lse;
            }
            subject.sets.push(set);
        }
        Ok(subject)
    }

    /// What a backward pass takes, on a set.
    fn saved<'s>(&'s self, set: &'s Set) -> Option<(LinearCrossEntropySaved<'s>, &'s Tensor)> {
        let lse = set.lse.as_ref()?.view();
        Some((LinearCrossEntropySaved::new(&set.x.view(), &self.indices.view(), &lse), self.dloss.as_ref()?))
    }

    /// Gradients of the weights of some classes, exactly and in the precision of the tensors, from the log-sum-exps of all rows as they are.
    fn dweight<T: Element>(&self, classes: &[usize], dloss: &[f64]) -> Result<[Vec<f64>; 2]> {
        let (set, depth) = (&self.sets[0], depth(&self.cell));
        let (x, weight) = (numbers(&set.x)?, numbers(&set.weight)?);
        let lse = numbers(set.lse.as_ref().expect("of a backward pass"))?;
        let few = Elements::rows(classes.iter().copied(), depth).pick(&weight);
        let layer = ReferenceDense { depth, weight: &few, bias: None, activation: Activation::Identity };
        let logits = layer.forward(&x, None)?.out;
        let mut dlogits = Vec::with_capacity(logits.len());
        for (row, logits) in logits.chunks(classes.len()).enumerate() {
            for (logit, &class) in logits.iter().zip(classes) {
                let of_target = if self.targets[row] == class as i64 { 1.0 } else { 0.0 };
                dlogits.push(dloss[row] * ((logit - lse[row]).exp() - of_target));
            }
        }
        let rounded: Vec<f64> = dlogits.iter().map(|&dlogit| T::from_f64(dlogit).to_f64()).collect();
        let exact = layer.backward(&x, Some(&logits), &dlogits)?.dweight;
        Ok([exact, layer.backward_rounded(&x, Some(&logits), &rounded, T::DTYPE)?.dweight])
    }
}

impl problem::Subject for Subject {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn plan(&self) -> Result<Box<dyn Operation>> {
        let set = &self.sets[0];
        let weight = set.weight.view();
        let of = LinearCrossEntropy::new(&weight);
        Ok(Box::new(match self.saved(set) {
            Some((saved, dloss)) => of.plan_backward(&saved, &dloss.view())?,
            None => of.plan(&set.x.view(), &self.indices.view())?,
        }))
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let set = &self.sets[set];
        let weight = set.weight.view();
        let of = LinearCrossEntropy::new(&weight);
        let first = written(device, &set.written[0])?;
        match self.saved(set) {
            Some((saved, dloss)) => {
                let into = DenseGradientsViewMut::new().with_dx(first);
                let mut into = into.with_dweight(written(device, &set.written[1])?);
                of.backward_into(stream, &saved, &dloss.view(), &mut into)
            }
            None => {
                let mut into = CrossEntropyOutputViewMut::new(first);
                of.forward_into(stream, &set.x.view(), &self.indices.view(), &mut into)
            }
        }
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let set = &self.sets[0];
        let input = |name, tensor| Input { name, data: Data::Elements(tensor), own: true, differentiated: true };
        let mut inputs = vec![
            input("x", &set.x),
            input("weight", &set.weight),
            Input { name: "targets", data: Data::Whole(&self.targets), own: false, differentiated: false },
        ];
        let dout = |tensor| Input { name: "dout", data: Data::Elements(tensor), own: false, differentiated: false };
        inputs.extend(self.dloss.as_ref().map(dout));
        inputs
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let names = if self.cell.is_backward() { ["dx", "dweight"] } else { ["out", ""] };
        names.into_iter().zip(&self.sets[0].written).map(|(name, tensor)| Output { name, tensor }).collect()
    }

    fn poison(&mut self) -> ferroflash::Result<()> {
        self.sets[0].written.iter_mut().try_for_each(|tensor| tensor.fill_bytes(0xff))
    }

    fn numbers(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn expected(&self) -> Result<Vec<Expected>> {
        let Cell { rows, columns: classes, dtype, .. } = self.cell;
        let (x, weight, depth) = (numbers(&self.sets[0].x)?, numbers(&self.sets[0].weight)?, depth(&self.cell));
        let reference = ReferenceLinearCrossEntropy {
            layer: ReferenceDense { depth, weight: &weight, bias: None, activation: Activation::Identity },
            loss: ReferenceCrossEntropy { classes, scale: 1.0, smoothing: 0.0, z_loss: 0.0, ignored: None },
        };
        let dloss = self.dloss.as_ref().map(numbers).transpose()?;
        let some: Vec<usize> = compared(rows).step_by(ONE_ROW_OF).collect();
        // A loss, or a row of dx, of each: exactly, and in the precision of the tensors.
        let each = |&row: &usize| -> Result<[Vec<f64>; 2]> {
            // Fits: they are drawn as such.
            let (x, target) = (&x[row * depth..][..depth], [self.targets[row] as i32]);
            Ok(match &dloss {
                None => [reference.forward(x, &target)?.loss, reference.forward_rounded(x, &target)?.loss],
                Some(dloss) => {
                    let dloss = &dloss[row..][..1];
                    let rounded = reference.backward_rounded(x, &target, dloss, dtype)?;
                    [reference.backward(x, &target, dloss)?.dx, rounded.dx]
                }
            })
        };
        let all = some.par_iter().map(each).collect::<Result<Vec<_>>>()?;
        let [exact, rounded] = [0, 1].map(|which| all.iter().flat_map(|both| both[which].clone()).collect::<Vec<_>>());
        let width = if dloss.is_some() { depth } else { 1 };
        let mut expected = vec![Expected::new(Elements::rows(some, width), exact, rounded)];
        if let Some(dloss) = &dloss {
            let targets = self.targets.iter().take(COMPARED_CLASSES / 2).map(|&target| target as usize);
            let mut few: Vec<usize> = targets.chain([0, classes / 3, classes / 2, classes - 1]).collect();
            few.sort_unstable();
            few.dedup();
            let [exact, rounded] = with_element!(dtype, T => self.dweight::<T>(&few, dloss)?);
            expected.push(Expected::new(Elements::rows(few, depth), exact, rounded));
        }
        Ok(expected)
    }
}
