//! Dense layers.

use super::OperatorName;
use super::cell::Cell;
use super::compared::{Elements, Expected, compared, in_f64, numbers};
use super::problem::{self, Data, Input, Output, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::Result;
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

/// Products for which the compared rows of the output are compared in all of their columns. Of more, one column in so many is, and of the next row another,
/// so that each column is in some rows and each row in all tiles: all of them would take longer than everything else together.
const COMPARED_PRODUCTS: usize = 1 << 28;
const ONE_COLUMN_OF: usize = 8;

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

    /// The rows of the weights of some columns of the output.
    fn sums_of(&self, columns: &[usize]) -> Vec<usize> {
        let halves = (0..sums(&self.cell)).step_by(self.cell.columns);
        halves.flat_map(|half| columns.iter().map(move |column| half + column)).collect()
    }

    /// One in how many columns of a row of the output is compared.
    fn one_column_of(&self) -> usize {
        let rows = compared(self.cell.rows).count();
        let products = rows * sums(&self.cell) * depth(&self.cell);
        products.div_ceil(COMPARED_PRODUCTS).min(ONE_COLUMN_OF).min(rows).min(self.cell.columns)
    }

    /// What is compared of the output, with one of so many columns in each row.
    fn expected_output<T: Element>(&self, every: usize) -> Result<Expected> {
        let Cell { rows, columns, dtype, .. } = self.cell;
        let (x, weight) = (self.sets[0].x.to_vec::<T>()?, self.sets[0].weight.to_vec::<T>()?);
        let bias = self.bias.as_ref().map(numbers).transpose()?;
        let (depth, activation) = (depth(&self.cell), activation(&self.cell));
        // Rows with the same columns one after the other: they share the weights.
        let of = |first: usize| {
            let few: Vec<usize> = (first..columns).step_by(every).collect();
            let sums = self.sums_of(&few);
            let weight = in_f64(&Elements::rows(sums.iter().copied(), depth).pick(&weight));
            let bias = bias.as_ref().map(|bias| Elements::rows(sums, 1).pick(bias));
            let layer = ReferenceDense { depth, weight: &weight, bias: bias.as_deref(), activation };
            let rows: Vec<usize> = compared(rows).skip(first).step_by(every).collect();
            let each = |&row: &usize| {
                let x = in_f64(&x[row * depth..][..depth]);
                let found = [layer.forward(&x, None)?.out, layer.forward_rounded(&x, None, dtype)?.out];
                Ok((few.iter().map(|column| row * columns + column).collect::<Vec<usize>>(), found))
            };
            rows.par_iter().map(each).collect::<ferroflash::Result<Vec<_>>>()
        };
        let all = (0..every).into_par_iter().map(of).collect::<ferroflash::Result<Vec<_>>>()?.concat();
        let elements = Elements::rows(all.iter().flat_map(|(elements, _)| elements.iter().copied()), 1);
        let [exact, rounded] = [0, 1].map(|which| all.iter().flat_map(|(_, found)| found[which].clone()).collect());
        Ok(Expected::new(elements, exact, rounded))
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

    fn expected(&self) -> Result<Vec<Expected>> {
        let Cell { rows, columns, dtype, .. } = self.cell;
        let Some(dout) = &self.dout else {
            return Ok(vec![with_element!(dtype, T => self.expected_output::<T>(self.one_column_of())?)]);
        };
        let (x, weight, dout) = (numbers(&self.sets[0].x)?, numbers(&self.sets[0].weight)?, numbers(dout)?);
        let bias = self.bias.as_ref().map(numbers).transpose()?;
        let (depth, activation) = (depth(&self.cell), activation(&self.cell));
        let layer = ReferenceDense { depth, weight: &weight, bias: bias.as_deref(), activation };
        // Some rows of x for its gradient.
        let some = rows.min(COMPARED_ROWS);
        // Some columns of the output for that of the weights, with all rows.
        let few = self.sums_of(&(0..columns.min(COMPARED_SUMS)).collect::<Vec<_>>());
        let few_sums = Elements::rows(few.iter().copied(), 1);
        let few_weights = Elements::rows(few.iter().copied(), depth);
        let (weight, bias) = (few_weights.pick(&weight), bias.as_ref().map(|bias| few_sums.pick(bias)));
        let of_few = ReferenceDense { weight: &weight, bias: bias.as_deref(), ..layer };
        let few_douts: Vec<f64> =
            dout.chunks(columns).flat_map(|row| &row[..columns.min(COMPARED_SUMS)]).copied().collect();
        let both = |layer: &ReferenceDense<'_>, x: &[f64], dout: &[f64]| -> Result<[ReferenceDenseGradients; 2]> {
            let rounded = || layer.backward_rounded(x, None, dout, dtype);
            let (exact, rounded) = rayon::join(|| layer.backward(x, None, dout), rounded);
            Ok([exact?, rounded?])
        };
        let (of_rows, of_columns) =
            rayon::join(|| both(&layer, &x[..some * depth], &dout[..some * columns]), || both(&of_few, &x, &few_douts));
        let ([exact, rounded], [few_exact, few_rounded]) = (of_rows?, of_columns?);
        let mut expected = vec![
            Expected::new(Elements::all(some * depth), exact.dx, rounded.dx),
            Expected::new(few_weights, few_exact.dweight, few_rounded.dweight),
        ];
        if self.dbias.is_some() {
            expected.push(Expected::new(few_sums, few_exact.dbias, few_rounded.dbias));
        }
        Ok(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::problem::Subject as _;
    use super::*;
    use crate::workload::Pass;

    /// Columns that take turns are compared with their own numbers, and a whole row of NaN is seen whichever they are.
    #[test]
    fn some_columns_of_each_row_are_compared() {
        let device = Device::open("emulator").unwrap();
        for operator in [OperatorName::Dense, OperatorName::Swiglu] {
            let (pass, dtype, model) = (Pass::Forward, kernel_spec::DType::F32, None);
            let cell = Cell { operator, pass, dtype, rows: 16, columns: 24, depth: Some(64), model };
            let mut subject = Subject::new(&device, cell, Values::Normal, 3).unwrap();
            subject.poison().unwrap();
            subject.call(&device, 0, &device.default_stream()).unwrap();
            let out = &subject.sets[0].written[0];
            let mut cut = out.to_vec::<f32>().unwrap();
            cut[5 * 24..6 * 24].fill(f32::NAN);
            let cut = Tensor::from_slice(&device, &cut, [16, 24], Layout::RowMajor).unwrap();
            for every in [1, 5, 8] {
                let expected = subject.expected_output::<f32>(every).unwrap();
                let (error, bound) = expected.verdict(out).unwrap();
                assert!(error <= bound, "{every}: {error} {bound}");
                assert_eq!(expected.verdict(&cut).unwrap().0, f64::INFINITY, "{every}");
            }
            assert_eq!(subject.one_column_of(), 1);
        }
    }
}
