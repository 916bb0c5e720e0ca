//! A problem on a device: its tensors, in as many copies as launches go round, a graph of calls, and the files of its peers.

use super::cell::Cell;
use super::compared::Expected;
use super::{OperatorName, cross_entropy, dense, embedding, linear_cross_entropy, lists, norm, rotary, softmax};
use crate::bench::peers::{RowsInput, RowsProblem};
use crate::names::with_element;
use crate::values::Values;
use anyhow::{Context, Result};
use ferroflash::operators::Operation;
use ferroflash::{Device, Graph, Stream, Tensor, TensorViewMut};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes that launches go round, at least, whatever the cache.
const LEAST_BYTES: u64 = 128 << 20;

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

    /// What of each result is compared with the reference, in the order of [`Subject::outputs`].
    fn expected(&self) -> Result<Vec<Expected>>;
}

/// Sets of a problem, so that launches that go round them find little in the cache.
pub(super) fn sets(device: &Device, bytes: u64) -> usize {
    let is_emulator = device.info().is_emulator();
    let cache = (2 * u64::from(device.info().l2_bytes)).max(if is_emulator { 0 } else { LEAST_BYTES });
    // The emulator has no time to measure.
    let most = if is_emulator { 2 } else { u64::MAX };
    (cache.div_ceil(bytes) + 1).min(most) as usize
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
    /// The same for all implementations.
    expected: Vec<Expected>,
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
        let (device, stream, expected) = (device.clone(), device.default_stream(), subject.expected()?);
        Ok(Problem { cell, device, stream, subject, expected, graph: None })
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
        let found = self.subject.outputs().into_iter().zip(&self.expected);
        nearest(found.map(|(output, expected)| expected.verdict(output.tensor)))
    }

    /// Writes the inputs as files, and says what they are.
    pub(super) fn write_inputs(&self, folder: &Path) -> Result<RowsProblem> {
        let mut inputs = Vec::new();
        for Input { name, data, own, differentiated } in self.subject.inputs() {
            let path = folder.join(name);
            let write =
                |bytes: &[u8]| std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()));
            let (dtype, shape) = match data {
                Data::Elements(tensor) => {
                    with_element!(tensor.dtype(), T => write(bytemuck::cast_slice(&tensor.to_vec::<T>()?))?);
                    (tensor.dtype().name(), tensor.shape().to_vec())
                }
                Data::Whole(numbers) => {
                    write(bytemuck::cast_slice(numbers))?;
                    ("i64", vec![numbers.len()])
                }
            };
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
        let found = self.subject.outputs().into_iter().zip(self.result_files(file)).zip(&self.expected);
        nearest(found.map(|((output, path), expected)| expected.verdict_of_file(&path, output.tensor)))
    }
}

/// Of the errors of results, and what is accepted of each, those that come nearest to each other.
fn nearest(verdicts: impl Iterator<Item = Result<(f64, f64)>>) -> Result<(f64, f64)> {
    let share = |(error, bound): &(f64, f64)| error / bound;
    let verdicts = verdicts.collect::<Result<Vec<_>>>()?;
    verdicts.into_iter().max_by(|a, b| share(a).total_cmp(&share(b))).context("an operator without results")
}
