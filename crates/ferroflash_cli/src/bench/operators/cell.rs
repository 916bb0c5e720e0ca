//! One problem of an operator on a device, with random inputs, and what its results are compared with.

use super::OperatorName;
use crate::bench::peers::RowsProblem;
use crate::names::with_element;
use crate::values::Values;
use crate::workload::Pass;
use anyhow::{Context, Result, ensure};
use ferroflash::operators::{Norm, NormGradientsViewMut, NormOutputViewMut, NormSaved, OperatorPlan};
use ferroflash::reference::{ReferenceNorm, max_abs_difference, tolerance};
use ferroflash::{Device, Element, Graph, Layout, Stream, Tensor};
use kernel_spec::DType;
use rayon::prelude::*;
use std::fmt;
use std::path::{Path, PathBuf};

/// Is added to variances.
const EPSILON: f32 = 1e-6;

/// Bytes that launches go round, at least, whatever the cache.
const LEAST_BYTES: u64 = 128 << 20;

/// Rows that are compared with the reference.
const COMPARED: usize = 64;

/// Rows whose sums one thread adds.
const CHUNK: usize = 64;

/// One problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) operator: OperatorName,
    pub(super) pass: Pass,
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { operator, dtype, rows, columns, .. } = self;
        write!(f, "{} {} {dtype}, {rows} rows of {columns} columns", operator.name(), self.pass_name())
    }
}

impl Cell {
    fn is_layer(&self) -> bool {
        self.operator == OperatorName::Layernorm
    }

    fn is_backward(&self) -> bool {
        self.pass == Pass::Backward
    }

    pub(super) fn pass_name(&self) -> &'static str {
        if self.is_backward() { "backward" } else { "forward" }
    }

    /// Bytes of all tensors that every implementation reads or writes, each counted once: x, out, weights, biases; or x, dout, dx, weights, the gradients of
    /// weights and biases, and the statistics.
    pub(super) fn bytes(&self) -> u64 {
        let (rows, columns, bytes) = (self.rows as u64, self.columns as u64, self.dtype.bytes() as u64);
        let layer = u64::from(self.is_layer());
        let (tensors, vectors, statistics) =
            if self.is_backward() { (3, 2 + layer, 1 + layer) } else { (2, 1 + layer, 0) };
        (tensors * rows + vectors) * columns * bytes + statistics * rows * 4
    }
}

/// The tensors of one launch.
struct Set {
    x: Tensor,
    out: Tensor,
    /// Of a backward pass: what comes in and what forward saved.
    dout: Option<Tensor>,
    rstd: Option<Tensor>,
    mean: Option<Tensor>,
}

/// Device buffers of a problem.
pub(super) struct Rows {
    cell: Cell,
    device: Device,
    stream: Stream,
    weight: Tensor,
    bias: Option<Tensor>,
    dweight: Option<Tensor>,
    dbias: Option<Tensor>,
    sets: Vec<Set>,
    /// A call on each set; made before times are taken.
    graph: Option<Graph>,
}

impl Rows {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Rows> {
        with_element!(cell.dtype, T => Rows::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Rows> {
        let Cell { rows, columns, dtype, .. } = cell;
        let shape = [rows, columns];
        let draw = |what: u64, elements: usize| values.draw::<T>(elements, seed.wrapping_mul(8) + what);
        let vector = |what| Tensor::from_slice(device, &draw(what, columns), [columns], Layout::RowMajor);
        let weight = vector(1)?;
        let bias = cell.is_layer().then(|| vector(2)).transpose()?;
        let uninit = || Tensor::uninit(device, dtype, [columns], Layout::RowMajor);
        let dweight = cell.is_backward().then(uninit).transpose()?;
        let dbias = (cell.is_backward() && cell.is_layer()).then(uninit).transpose()?;
        let cache =
            (2 * u64::from(device.info().l2_bytes)).max(if device.info().is_emulator() { 0 } else { LEAST_BYTES });
        // The emulator has no time to measure.
        let most = if device.info().is_emulator() { 2 } else { u64::MAX };
        let count = (cache.div_ceil(cell.bytes()) + 1).min(most) as usize;
        let (x, dout) = (draw(0, rows * columns), cell.is_backward().then(|| draw(3, rows * columns)));
        let mut sets = Vec::new();
        for _ in 0..count {
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
        Ok(Rows {
            cell,
            device: device.clone(),
            stream: device.default_stream(),
            weight,
            bias,
            dweight,
            dbias,
            sets,
            graph: None,
        })
    }

    pub(super) fn sets(&self) -> usize {
        self.sets.len()
    }

    fn norm(&self) -> Norm<'_> {
        let norm = norm(&self.cell).with_weight(&self.weight.view());
        self.bias.as_ref().map_or(norm, |bias| norm.with_bias(&bias.view()))
    }

    fn saved<'s>(&'s self, set: &'s Set) -> NormSaved<'s> {
        let rstd = set.rstd.as_ref().expect("of a backward pass");
        let saved = NormSaved::new(&set.x.view(), &rstd.view());
        set.mean.as_ref().map_or(saved, |mean| saved.with_mean(&mean.view()))
    }

    /// What is launched.
    pub(super) fn plan(&self) -> Result<OperatorPlan> {
        let set = &self.sets[0];
        Ok(match &set.dout {
            Some(dout) => self.norm().plan_backward(&self.saved(set), &dout.view(), None)?,
            None => self.norm().plan(&set.x.view())?,
        })
    }

    /// One call, on a set.
    fn call(&self, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let set = &self.sets[set % self.sets.len()];
        // SAFETY: nobody else works on these tensors, and calls are in the order of one stream.
        let write = |tensor: &Tensor| unsafe {
            ferroflash::TensorViewMut::from_raw(
                &self.device,
                tensor.address(),
                tensor.storage_elements(),
                tensor.shape(),
                tensor.strides(),
                tensor.dtype(),
            )
        };
        let Some(dout) = &set.dout else {
            return self.norm().forward_into(stream, &set.x.view(), &mut NormOutputViewMut::new(write(&set.out)?));
        };
        let mut into = NormGradientsViewMut::new(write(&set.out)?);
        if let Some(dweight) = &self.dweight {
            into = into.with_dweight(write(dweight)?);
        }
        if let Some(dbias) = &self.dbias {
            into = into.with_dbias(write(dbias)?);
        }
        self.norm().backward_into(stream, &self.saved(set), &dout.view(), None, &mut into)
    }

    /// Makes a graph of a call on each set, so that the host's own time is not counted.
    pub(super) fn capture(&mut self) -> Result<()> {
        if self.device.info().is_emulator() {
            return Ok(());
        }
        self.device.prepare(self.plan()?)?;
        let graph = self.device.capture(|stream| (0..self.sets.len()).try_for_each(|set| self.call(set, stream)))?;
        self.graph = Some(graph);
        Ok(())
    }

    /// Milliseconds of so many calls in a row, a multiple of the sets, together.
    pub(super) fn time_ms(&self, launches: u32) -> Result<f64> {
        let sets = self.sets.len() as u32;
        let time = self.device.time(&self.stream, || match &self.graph {
            // SAFETY: the tensors live as long as the graph, and nobody else works on them.
            Some(graph) => (0..launches.div_ceil(sets)).try_for_each(|_| unsafe { graph.launch(&self.stream) }),
            None => (0..launches).try_for_each(|i| self.call(i as usize, &self.stream)),
        })?;
        Ok(time.as_secs_f64() * 1e3)
    }

    /// Runs a call over NaN and compares: the largest error, and what is accepted of it.
    pub(super) fn check(&mut self) -> Result<(f64, f64)> {
        self.sets[0].out.fill_bytes(0xff)?;
        for tensor in [&mut self.dweight, &mut self.dbias].into_iter().flatten() {
            tensor.fill_bytes(0xff)?;
        }
        self.call(0, &self.stream)?;
        let mut found = vec![self.sets[0].out.to_f64_vec()?];
        for tensor in [&self.dweight, &self.dbias].into_iter().flatten() {
            found.push(tensor.to_f64_vec()?);
        }
        self.compare(&found)
    }

    /// Writes the inputs as files, and says what they are.
    pub(super) fn write_inputs(&self, folder: &Path) -> Result<RowsProblem> {
        let set = &self.sets[0];
        let inputs = [
            ("x", Some(&set.x)),
            ("weight", Some(&self.weight)),
            ("bias", self.bias.as_ref()),
            ("dout", set.dout.as_ref()),
        ];
        for (name, tensor) in inputs {
            let (Some(tensor), path) = (tensor, folder.join(name)) else { continue };
            let write = |bytes: &[u8]| std::fs::write(&path, bytes);
            with_element!(self.cell.dtype, T => write(bytemuck::cast_slice(&tensor.to_vec::<T>()?)))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let Cell { operator, dtype, rows, columns, .. } = self.cell;
        Ok(RowsProblem {
            folder: folder.to_owned(),
            operator: operator.name(),
            pass: self.cell.pass_name(),
            dtype: dtype.name(),
            rows,
            columns,
            epsilon: EPSILON,
            sets: self.sets.len(),
        })
    }

    /// The files that a peer writes when it was told this one.
    pub(super) fn result_files(&self, file: &Path) -> Vec<PathBuf> {
        let gradients = [("dx", true), ("dweight", true), ("dbias", self.cell.is_layer())];
        if !self.cell.is_backward() {
            return vec![file.to_owned()];
        }
        gradients.into_iter().filter(|(_, there)| *there).map(|(name, _)| file.with_extension(name)).collect()
    }

    /// Compares what a peer wrote to those.
    pub(super) fn check_files(&self, file: &Path) -> Result<(f64, f64)> {
        let read = |(i, path): (usize, &PathBuf)| {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let expected = self.cell.columns * if i == 0 { self.cell.rows } else { 1 } * self.cell.dtype.bytes();
            ensure!(bytes.len() == expected, "the result has {} bytes instead of {expected}", bytes.len());
            Ok(with_element!(self.cell.dtype, T => {
                let size = size_of::<T>();
                bytes.chunks_exact(size).map(|bytes| bytemuck::pod_read_unaligned::<T>(bytes).to_f64()).collect::<Vec<f64>>()
            }))
        };
        let found = self.result_files(file).iter().enumerate().map(read).collect::<Result<Vec<_>>>()?;
        self.compare(&found)
    }

    /// The result that comes nearest to what is accepted of it: its largest error, and that.
    fn compare(&self, found: &[Vec<f64>]) -> Result<(f64, f64)> {
        let Cell { rows, columns, dtype, .. } = self.cell;
        let (x, weight) = (self.sets[0].x.to_f64_vec()?, self.weight.to_f64_vec()?);
        let bias = self.bias.as_ref().map(Tensor::to_f64_vec).transpose()?;
        let norm = ReferenceNorm {
            columns,
            takes_mean_off: self.cell.is_layer(),
            epsilon: EPSILON.into(),
            weight: Some(&weight),
            bias: bias.as_deref(),
        };
        // Rows at equal distances, the first and the last among them.
        let compared = rows.min(COMPARED);
        let some = (0..compared).map(|i| i * (rows - 1) / (compared - 1).max(1));
        let pick =
            |of: &[f64]| some.clone().flat_map(|row| of[row * columns..][..columns].to_vec()).collect::<Vec<f64>>();
        let verdict = |found: &[f64], exact: &[f64], rounded: &[f64]| {
            (max_abs_difference(found, exact), tolerance(max_abs_difference(rounded, exact)))
        };
        let Some(dout) = &self.sets[0].dout else {
            let x = pick(&x);
            let (exact, rounded) = (norm.forward(&x, None)?, norm.forward_rounded(&x, None, [dtype; 2])?);
            return Ok(verdict(&pick(&found[0]), &exact.out, &rounded.out));
        };
        let dout = dout.to_f64_vec()?;
        let (some_x, some_dout) = (pick(&x), pick(&dout));
        let exact = norm.backward(&some_x, &some_dout, None)?;
        let rounded = norm.backward_rounded(&some_x, &some_dout, None, [dtype; 2])?;
        let mut verdicts = vec![verdict(&pick(&found[0]), &exact.dx, &rounded.dx)];
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
        verdicts.push(verdict(&found[1], &dweight, &dweight_rounded));
        if let Some(found) = found.get(2) {
            verdicts.push(verdict(found, &dbias, &dbias_rounded));
        }
        let share = |(error, bound): &(f64, f64)| error / bound;
        let nearest = verdicts.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        Ok(*nearest.expect("dx is there"))
    }
}

fn norm(cell: &Cell) -> Norm<'static> {
    if cell.is_layer() { Norm::layer(EPSILON) } else { Norm::rms(EPSILON) }
}
