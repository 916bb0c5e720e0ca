//! RMSNorm and LayerNorm.

use super::OperatorName;
use super::cell::Cell;
use super::compared::{Elements, Expected, compared, numbers};
use super::problem::{self, Data, Input, Output, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::Result;
use ferroflash::operators::{Norm, NormGradientsViewMut, NormOutputViewMut, NormSaved, Operation};
use ferroflash::reference::ReferenceNorm;
use ferroflash::{Device, Element, Layout, Stream, Tensor};
use kernel_spec::DType;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Is added to variances.
const EPSILON: f32 = 1e-6;

/// Rows whose sums one thread adds.
const CHUNK: usize = 64;

/// The tensors of one launch.
struct Set {
    x: Tensor,
    out: Tensor,
    /// Of a backward pass: what comes in and what forward saved.
    dout: Option<Tensor>,
    rstd: Option<Tensor>,
    mean: Option<Tensor>,
}

/// Norms of rows with weights, and of LayerNorm biases.
pub(super) struct Subject {
    cell: Cell,
    weight: Tensor,
    bias: Option<Tensor>,
    dweight: Option<Tensor>,
    dbias: Option<Tensor>,
    sets: Vec<Set>,
}

/// Bytes of all tensors that every implementation reads or writes, each counted once: x, out, weights, biases; or x, dout, dx, weights, the gradients of
/// weights and biases, and the statistics.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let (rows, columns, bytes) = (cell.rows as u64, cell.columns as u64, cell.dtype.bytes() as u64);
    let layer = u64::from(is_layer(cell));
    let (tensors, vectors, statistics) = if cell.is_backward() { (3, 2 + layer, 1 + layer) } else { (2, 1 + layer, 0) };
    (tensors * rows + vectors) * columns * bytes + statistics * rows * 4
}

fn is_layer(cell: &Cell) -> bool {
    cell.operator == OperatorName::Layernorm
}

fn norm(cell: &Cell) -> Norm<'static> {
    if is_layer(cell) { Norm::layer(EPSILON) } else { Norm::rms(EPSILON) }
}

impl Subject {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        with_element!(cell.dtype, T => Subject::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        let Cell { rows, columns, dtype, .. } = cell;
        let shape = [rows, columns];
        let draw = |what: u64, elements: usize| values.draw::<T>(elements, seed.wrapping_mul(8) + what);
        let vector = |what| Tensor::from_slice(device, &draw(what, columns), [columns], Layout::RowMajor);
        let weight = vector(1)?;
        let bias = is_layer(&cell).then(|| vector(2)).transpose()?;
        let uninit = || Tensor::uninit(device, dtype, [columns], Layout::RowMajor);
        let dweight = cell.is_backward().then(uninit).transpose()?;
        let dbias = (cell.is_backward() && is_layer(&cell)).then(uninit).transpose()?;
        let (x, dout) = (draw(0, rows * columns), cell.is_backward().then(|| draw(3, rows * columns)));
        let mut sets = Vec::new();
        for _ in 0..problem::sets(device, bytes(&cell)) {
            let x = Tensor::from_slice(device, &x, shape, Layout::RowMajor)?;
            let out = Tensor::uninit(device, dtype, shape, Layout::RowMajor)?;
            let dout =
                dout.as_ref().map(|dout| Tensor::from_slice(device, dout, shape, Layout::RowMajor)).transpose()?;
            let (mut rstd, mut mean) = (None, None);
            if cell.is_backward() {
                let normed = norm(&cell).with_statistics(true).forward(&x.view())?;
                (rstd, mean) = (normed.rstd, normed.mean);
            }
            sets.push(Set { x, out, dout, rstd, mean });
        }
        Ok(Subject { cell, weight, bias, dweight, dbias, sets })
    }

    fn norm(&self) -> Norm<'_> {
        let norm = norm(&self.cell).with_weight(&self.weight.view());
        self.bias.as_ref().map_or(norm, |bias| norm.with_bias(&bias.view()))
    }
}

fn saved(set: &Set) -> NormSaved<'_> {
    let rstd = set.rstd.as_ref().expect("of a backward pass");
    let saved = NormSaved::new(&set.x.view(), &rstd.view());
    set.mean.as_ref().map_or(saved, |mean| saved.with_mean(&mean.view()))
}

impl problem::Subject for Subject {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn plan(&self) -> Result<Box<dyn Operation>> {
        let set = &self.sets[0];
        Ok(Box::new(match &set.dout {
            Some(dout) => self.norm().plan_backward(&saved(set), &dout.view(), None)?,
            None => self.norm().plan(&set.x.view())?,
        }))
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let set = &self.sets[set];
        let out = written(device, &set.out)?;
        let Some(dout) = &set.dout else {
            return self.norm().forward_into(stream, &set.x.view(), &mut NormOutputViewMut::new(out));
        };
        let mut into = NormGradientsViewMut::new(out);
        if let Some(dweight) = &self.dweight {
            into = into.with_dweight(written(device, dweight)?);
        }
        if let Some(dbias) = &self.dbias {
            into = into.with_dbias(written(device, dbias)?);
        }
        self.norm().backward_into(stream, &saved(set), &dout.view(), None, &mut into)
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let set = &self.sets[0];
        let vector = |name, tensor| Input { name, data: Data::Elements(tensor), own: false, differentiated: true };
        let rows =
            |name, tensor, differentiated| Input { name, data: Data::Elements(tensor), own: true, differentiated };
        let mut inputs = vec![rows("x", &set.x, true)];
        inputs.push(vector("weight", &self.weight));
        inputs.extend(self.bias.iter().map(|bias| vector("bias", bias)));
        inputs.extend(set.dout.iter().map(|dout| rows("dout", dout, false)));
        inputs
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let name = if self.cell.is_backward() { "dx" } else { "out" };
        let mut outputs = vec![Output { name, tensor: &self.sets[0].out }];
        outputs.extend(self.dweight.iter().map(|tensor| Output { name: "dweight", tensor }));
        outputs.extend(self.dbias.iter().map(|tensor| Output { name: "dbias", tensor }));
        outputs
    }

    fn poison(&mut self) -> ferroflash::Result<()> {
        let vectors = [&mut self.dweight, &mut self.dbias].into_iter().flatten();
        vectors.chain([&mut self.sets[0].out]).try_for_each(|tensor| tensor.fill_bytes(0xff))
    }

    fn numbers(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::from([("epsilon", EPSILON.into())])
    }

    fn expected(&self) -> Result<Vec<Expected>> {
        let Cell { rows, columns, dtype, .. } = self.cell;
        let (x, weight) = (&self.sets[0].x, numbers(&self.weight)?);
        let bias = self.bias.as_ref().map(numbers).transpose()?;
        let elements = Elements::rows(compared(rows), columns);
        let norm = ReferenceNorm {
            columns,
            takes_mean_off: is_layer(&self.cell),
            epsilon: EPSILON.into(),
            weight: Some(&weight),
            bias: bias.as_deref(),
        };
        let Some(dout) = &self.sets[0].dout else {
            let x = elements.of_tensor(x)?;
            let (exact, rounded) = (norm.forward(&x, None)?, norm.forward_rounded(&x, None, [dtype; 2])?);
            return Ok(vec![Expected::new(elements, exact.out, rounded.out)]);
        };
        let (x, dout) = (numbers(x)?, numbers(dout)?);
        let (some_x, some_dout) = (elements.pick(&x), elements.pick(&dout));
        let exact = norm.backward(&some_x, &some_dout, None)?;
        let rounded = norm.backward_rounded(&some_x, &some_dout, None, [dtype; 2])?;
        let mut expected = vec![Expected::new(elements, exact.dx, rounded.dx)];
        // Of all rows, in f64, and in f32 where a simple program has them; then rounded as its result is.
        let chunk = CHUNK * columns;
        let sums = x.par_chunks(chunk).zip(dout.par_chunks(chunk)).map(|(x, dout)| {
            let exact = norm.backward(x, dout, None)?;
            let rounded = norm.backward_rounded(x, dout, None, [DType::F32; 2])?;
            Ok([exact.dweight, exact.dbias, rounded.dweight, rounded.dbias])
        });
        let add = |mut a: [Vec<f64>; 4], b: [Vec<f64>; 4]| {
            for (a, b) in a.iter_mut().zip(&b) {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            }
            Ok::<_, ferroflash::Error>(a)
        };
        let none = || [0; 4].map(|_| vec![0.0; columns]);
        let [dweight, dbias, mut dweight_rounded, mut dbias_rounded] = sums.try_reduce(none, add)?;
        for x in dweight_rounded.iter_mut().chain(&mut dbias_rounded) {
            *x = with_element!(dtype, T => T::from_f64(*x).to_f64());
        }
        expected.push(Expected::new(Elements::all(columns), dweight, dweight_rounded));
        if self.dbias.is_some() {
            expected.push(Expected::new(Elements::all(columns), dbias, dbias_rounded));
        }
        Ok(expected)
    }
}
