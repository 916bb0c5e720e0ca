//! A problem on a device: its tensors, in as many copies as launches go round, a graph of calls, and the files of its peers.

use super::cell::Cell;
use super::{OperatorName, cross_entropy, dense, embedding, linear_cross_entropy, lists, norm, rotary, softmax};
use crate::bench::peers::{RowsInput, RowsProblem};
use crate::names::with_element;
use crate::values::Values;
use anyhow::{Context, Result, ensure};
use ferroflash::operators::Operation;
use ferroflash::reference::{max_abs_difference, tolerance};
use ferroflash::{Device, Element, Graph, Stream, Tensor, TensorViewMut};
use kernel_spec::DType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes that launches go round, at least, whatever the cache.
const LEAST_BYTES: u64 = 128 << 20;

/// Rows that are compared with the reference.
const COMPARED: usize = 64;

/// A tensor that every peer is given.
pub(super) struct Input<'t> {
    /// Its file, and what `peer_operators.py` calls it.
    pub(super) name: &'static str,
    pub(super) data: Data<'t>,
    /// Whether each launch has its own, or all have this one: what is small.
    pub(super) own: bool,
    /// Whether a backward pass gives the gradient with respect to it, under `d` and its name.
    pub(super) differentiated: bool,
}

/// What a peer reads from a file.
pub(super) enum Data<'t> {
    Elements(&'t Tensor),
    /// Of `i64`, one axis.
    Whole(&'t [i64]),
}

/// A tensor that every implementation gives.
pub(super) struct Output<'t> {
    /// `out`, or `d` and the name of an input.
    pub(super) name: &'static str,
    pub(super) tensor: &'t Tensor,
}

/// What differs between operators. Calls are on one of several sets of tensors, of which all have the same inputs.
pub(super) trait Subject {
    /// Sets of tensors.
    fn sets(&self) -> usize;

    /// What is launched.
    fn plan(&self) -> Result<Box<dyn Operation>>;

    /// One call, on a set.
    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()>;

    /// The inputs of the first set.
    fn inputs(&self) -> Vec<Input<'_>>;

    /// The results of the first set.
    fn outputs(&self) -> Vec<Output<'_>>;

    /// Fills the results of the first set with NaN; what is overwritten gets its first numbers again.
    fn poison(&mut self) -> ferroflash::Result<()>;

    /// Numbers that peers are given, by name.
    fn numbers(&self) -> BTreeMap<&'static str, f64>;

    /// Of each of the results `found`, in the order of [`Subject::outputs`], the largest error and what is accepted of it.
    fn verdicts(&self, found: &[Vec<f64>]) -> Result<Vec<(f64, f64)>>;
}

/// Sets of a problem, so that launches that go round them find little in the cache.
pub(super) fn sets(device: &Device, bytes: u64) -> usize {
    let is_emulator = device.info().is_emulator();
    let cache = (2 * u64::from(device.info().l2_bytes)).max(if is_emulator { 0 } else { LEAST_BYTES });
    // The emulator has no time to measure.
    let most = if is_emulator { 2 } else { u64::MAX };
    (cache.div_ceil(bytes) + 1).min(most) as usize
}

/// The rows of `rows` that are compared: at equal distances, the first and the last among them.
pub(super) fn compared(rows: usize) -> impl Iterator<Item = usize> + Clone {
    let compared = rows.min(COMPARED);
    (0..compared).map(move |i| i * (rows - 1) / (compared - 1).max(1))
}

/// Those rows of a tensor.
pub(super) fn pick(of: &[f64], rows: usize) -> Vec<f64> {
    let columns = of.len() / rows;
    compared(rows).flat_map(|row| &of[row * columns..][..columns]).copied().collect()
}

/// The largest error of a result, and what is accepted of it.
pub(super) fn verdict(found: &[f64], exact: &[f64], rounded: &[f64]) -> (f64, f64) {
    (max_abs_difference(found, exact), tolerance(max_abs_difference(rounded, exact)))
}

/// A tensor that a call writes.
pub(super) fn written<'t>(device: &'t Device, tensor: &'t Tensor) -> ferroflash::Result<TensorViewMut<'t>> {
    let (shape, strides) = (tensor.shape(), tensor.strides());
    // SAFETY: nobody else works on these tensors, and calls are in the order of one stream.
    unsafe {
        TensorViewMut::from_raw(device, tensor.address(), tensor.storage_elements(), shape, strides, tensor.dtype())
    }
}

/// A problem on a device.
pub(super) struct Problem {
    cell: Cell,
    device: Device,
    stream: Stream,
    subject: Box<dyn Subject>,
    /// A call on each set; made before times are taken.
    graph: Option<Graph>,
}

impl Problem {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Problem> {
        let subject: Box<dyn Subject> = match cell.operator {
            OperatorName::Rmsnorm | OperatorName::Layernorm => {
                Box::new(norm::Subject::new(device, cell, values, seed)?)
            }
            OperatorName::Softmax => Box::new(softmax::Subject::new(device, cell, values, seed)?),
            OperatorName::CrossEntropy => Box::new(cross_entropy::Subject::new(device, cell, values, seed)?),
            OperatorName::Rotary => Box::new(rotary::Subject::new(device, cell, values, seed)?),
            OperatorName::Embedding => Box::new(embedding::Subject::new(device, cell, values, seed)?),
            OperatorName::Dense | OperatorName::DenseGelu | OperatorName::Swiglu => {
                Box::new(dense::Subject::new(device, cell, values, seed)?)
            }
            OperatorName::LinearCrossEntropy => {
                Box::new(linear_cross_entropy::Subject::new(device, cell, values, seed)?)
            }
            OperatorName::Adamw | OperatorName::GradientNorm => {
                Box::new(lists::Subject::new(device, cell, values, seed)?)
            }
        };
        let (device, stream) = (device.clone(), device.default_stream());
        Ok(Problem { cell, device, stream, subject, graph: None })
    }

    pub(super) fn sets(&self) -> usize {
        self.subject.sets()
    }

    pub(super) fn plan(&self) -> Result<Box<dyn Operation>> {
        self.subject.plan()
    }

    /// Makes a graph of a call on each set, so that the host's own time is not counted.
    pub(super) fn capture(&mut self) -> Result<()> {
        if self.device.info().is_emulator() {
            return Ok(());
        }
        self.device.prepare(self.plan()?.steps())?;
        let calls = |stream: &Stream| (0..self.sets()).try_for_each(|set| self.subject.call(&self.device, set, stream));
        self.graph = Some(self.device.capture(calls)?);
        Ok(())
    }

    /// Milliseconds of so many calls in a row, a multiple of the sets, together.
    pub(super) fn time_ms(&self, launches: u32) -> Result<f64> {
        let sets = self.sets();
        let time = self.device.time(&self.stream, || match &self.graph {
            // SAFETY: the tensors live as long as the graph, and nobody else works on them.
            Some(graph) => (0..launches.div_ceil(sets as u32)).try_for_each(|_| unsafe { graph.launch(&self.stream) }),
            None => (0..launches as usize).try_for_each(|i| self.subject.call(&self.device, i % sets, &self.stream)),
        })?;
        Ok(time.as_secs_f64() * 1e3)
    }

    /// Runs a call over NaN and compares: the largest error, and what is accepted of it.
    pub(super) fn check(&mut self) -> Result<(f64, f64)> {
        self.subject.poison()?;
        self.subject.call(&self.device, 0, &self.stream)?;
        let read = |output: Output<'_>| output.tensor.to_f64_vec();
        self.nearest(&self.subject.outputs().into_iter().map(read).collect::<ferroflash::Result<Vec<_>>>()?)
    }

    /// Writes the inputs as files, and says what they are.
    pub(super) fn write_inputs(&self, folder: &Path) -> Result<RowsProblem> {
        let mut inputs = Vec::new();
        for Input { name, data, own, differentiated } in self.subject.inputs() {
            let path = folder.join(name);
            let (bytes, dtype, shape) = match data {
                Data::Elements(tensor) => (bytes_of(tensor)?, tensor.dtype().name(), tensor.shape().to_vec()),
                Data::Whole(numbers) => (bytemuck::cast_slice(numbers).to_vec(), "i64", vec![numbers.len()]),
            };
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            inputs.push(RowsInput { name, dtype, shape, own, differentiated });
        }
        Ok(RowsProblem {
            folder: folder.to_owned(),
            operator: self.cell.operator.name(),
            pass: self.cell.pass_name(),
            inputs,
            numbers: self.subject.numbers(),
            sets: self.sets(),
        })
    }

    /// The files that a peer writes when it was told this one, in the order of the results.
    pub(super) fn result_files(&self, file: &Path) -> Vec<PathBuf> {
        self.subject.outputs().iter().map(|output| file.with_extension(output.name)).collect()
    }

    /// Compares what a peer wrote to those.
    pub(super) fn check_files(&self, file: &Path) -> Result<(f64, f64)> {
        let read = |(output, path): (Output<'_>, PathBuf)| {
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let dtype: DType = output.tensor.dtype();
            let expected = output.tensor.shape().iter().product::<usize>() * dtype.bytes();
            ensure!(bytes.len() == expected, "{} has {} bytes instead of {expected}", output.name, bytes.len());
            Ok(with_element!(dtype, T => {
                let elements = bytes.chunks_exact(size_of::<T>());
                elements.map(|bytes| bytemuck::pod_read_unaligned::<T>(bytes).to_f64()).collect::<Vec<f64>>()
            }))
        };
        let files = self.result_files(file);
        self.nearest(&self.subject.outputs().into_iter().zip(files).map(read).collect::<Result<Vec<_>>>()?)
    }

    /// The result that comes nearest to what is accepted of it.
    fn nearest(&self, found: &[Vec<f64>]) -> Result<(f64, f64)> {
        let share = |(error, bound): &(f64, f64)| error / bound;
        let verdicts = self.subject.verdicts(found)?;
        let nearest = verdicts.into_iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        nearest.context("an operator without results")
    }
}

fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    Ok(with_element!(tensor.dtype(), T => bytemuck::cast_slice(&tensor.to_vec::<T>()?).to_vec()))
}
