//! One attention problem on a device, with random inputs and a reference to compare results with.

mod case;
mod exchange;
mod gradients;
mod output;
mod pass;
mod program;
mod rows;
mod sequences;

use crate::bench::record::Check;
use crate::names::with_element;
use crate::values::Values;
use anyhow::{Context, Result};
pub(crate) use case::Case;
use clap::ValueEnum;
use ferroflash::{
    Attention, Device, Element, GradientsViewMut, KernelChoice, Layout, Lse, LseShape, Shape, Sizes, Stream, Tensor,
};
use kernel_spec::DType;
pub(crate) use pass::{Ours, Pass};
pub(crate) use program::Program;
use program::Scores;
use rayon::prelude::*;
pub(crate) use rows::{Lengths, Rows};
use sequences::{Numbers, Replay};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

/// What a timed launch finds in the level-two cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum L2 {
    /// What the launch before it left there, as in a layer that has just been computed
    #[default]
    Warm,
    /// Nothing of its own: a copy of twice the cache goes before each launch, outside of the time
    Flush,
    /// Little of its own: launches go round several copies of the tensors, together twice the cache
    Rotate,
}

impl L2 {
    pub(crate) fn name(self) -> &'static str {
        match self {
            L2::Warm => "warm",
            L2::Flush => "flush",
            L2::Rotate => "rotate",
        }
    }
}

/// Bytes of one row of what is copied to flush the cache.
const FLUSH_ROW_BYTES: usize = 1024;

/// The tensors of one launch.
struct Set {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    /// Where there is a backward pass.
    gradients: Option<GradientSet>,
}

/// The gradients of one launch: what is given, and what comes out.
struct GradientSet {
    dout: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
}

/// Device buffers, and the rows that results are compared on.
pub(crate) struct Workload {
    case: Case,
    pass: Pass,
    device: Device,
    stream: Stream,
    /// Never empty. Results are taken from the first.
    sets: Vec<Set>,
    lse: Lse,
    /// Which rows are whose, where sequences are not equal tensors.
    numbers: Option<Numbers>,
    /// What scores pass through.
    scores: Scores,
    /// What is timed in the place of single calls, where these take microseconds; made for the first sample.
    replay: Option<Replay>,
    /// Where there is a forward pass.
    reference: Option<output::Reference>,
    /// Where there is a backward pass.
    of_gradients: Option<gradients::Reference>,
    /// In the place of the first set's when results are compared, where that is another.
    checked_dout: Option<Tensor>,
    /// Two tensors, each as large as the level-two cache: copying one to the other leaves nothing else there.
    flush: Option<[Tensor; 2]>,
    /// Of the bits that were last compared with the reference.
    fingerprints: HashMap<Ours, u64>,
}

impl Workload {
    /// Allocates the inputs of a pass, fills them with `values`, and computes the reference. What the backward pass reads of a forward pass
    /// is computed by the kernel that the library chooses.
    pub(crate) fn new(device: &Device, case: Case, pass: Pass, values: Values, seed: u64) -> Result<Workload> {
        case.problem.validate()?;
        with_element!(case.problem.dtype, T => Workload::with::<T>(device, case, pass, values, seed))
    }

    /// Prepares for launches that find this in the cache.
    pub(crate) fn with_l2(mut self, l2: L2) -> Result<Workload> {
        let cache = u64::from(self.device.info().l2_bytes);
        match l2 {
            L2::Warm => {}
            L2::Flush => {
                // A device without a cache has nothing to flush; the copy of one row keeps the path the same.
                let rows = (cache as usize).div_ceil(FLUSH_ROW_BYTES).max(1);
                let shape = Shape::new(1, rows, 1, FLUSH_ROW_BYTES / DType::F32.bytes());
                let zeros = || Tensor::zeros(&self.device, DType::F32, shape, Layout::Bshd);
                self.flush = Some([zeros()?, zeros()?]);
            }
            L2::Rotate => {
                for _ in 1..self.case.rotated_sets(cache) {
                    let first = &self.sets[0];
                    let copy = |tensor: &Tensor| -> ferroflash::Result<Tensor> {
                        let mut copy = Tensor::uninit(&self.device, tensor.dtype(), tensor.shape(), Layout::Bshd)?;
                        copy.copy_from(&self.stream, tensor)?;
                        Ok(copy)
                    };
                    let (q, k, v) = (copy(&first.q)?, copy(&first.k)?, copy(&first.v)?);
                    let out = Tensor::uninit(&self.device, first.out.dtype(), first.out.shape(), Layout::Bshd)?;
                    let gradients = match &first.gradients {
                        Some(GradientSet { dout, .. }) => {
                            Some(GradientSet::new(&self.device, &self.case, copy(dout)?)?)
                        }
                        None => None,
                    };
                    self.sets.push(Set { q, k, v, out, gradients });
                }
                self.prepare_backward(1)?;
            }
        }
        Ok(self)
    }

    fn with<T: Element>(device: &Device, case: Case, pass: Pass, values: Values, seed: u64) -> Result<Workload> {
        let draw = |shape: Shape, seed: u64| {
            let elements = shape.elements().context("the tensors are larger than the address space")?;
            anyhow::Ok((values.draw::<T>(elements, seed), shape))
        };
        let of_tensor = |tensor| seed.wrapping_mul(3).wrapping_add(tensor);
        let q = draw(case.q_shape(), of_tensor(0))?;
        let (k, v) = (draw(case.kv_shape(), of_tensor(1))?, draw(case.kv_shape(), of_tensor(2))?);
        // Far from the seeds of all cells, whose inputs are those of a run without a backward pass.
        let dout = if pass.has_backward() { Some(draw(case.q_shape(), !seed)?) } else { None };
        let table = sequences::page_table(&case, seed);
        let scores = Scores::new(device, &case, seed)?;
        let inputs = [&q.0[..], &k.0, &v.0];
        let forward =
            pass.has_forward().then(|| output::Reference::new(&case, &scores, inputs, table.as_deref(), seed));
        let gradients = dout.as_ref().map(|dout| gradients::Reference::new(&case, &scores, inputs, &dout.0, seed));
        let (of_gradients, checked) = gradients.transpose()?.unzip();
        let upload = |(data, shape): &(Vec<T>, Shape)| Tensor::from_slice(device, data, *shape, Layout::Bshd);
        let Sizes { batch, q_heads: heads, q_rows: rows, dtype, .. } = case.problem;
        let gradients = match &dout {
            Some(dout) => Some(GradientSet::new(device, &case, upload(dout)?)?),
            None => None,
        };
        let checked = checked.flatten().map(|checked| upload(&(checked, case.q_shape())));
        let mut workload = Workload {
            case,
            pass,
            device: device.clone(),
            stream: device.default_stream(),
            sets: vec![Set {
                q: upload(&q)?,
                k: upload(&k)?,
                v: upload(&v)?,
                out: Tensor::uninit(device, dtype, case.q_shape(), Layout::Bshd)?,
                gradients,
            }],
            lse: Lse::uninit(device, LseShape { batch, heads, rows })?,
            numbers: Numbers::new(device, &case, table.as_deref())?,
            scores,
            replay: None,
            reference: forward.transpose()?,
            of_gradients,
            checked_dout: checked.transpose()?,
            flush: None,
            fingerprints: HashMap::new(),
        };
        workload.prepare_backward(0)?;
        Ok(workload)
    }

    /// Lets the sets from this one on have the output and the log-sum-exp that a backward pass alone reads.
    fn prepare_backward(&mut self, first: usize) -> ferroflash::Result<()> {
        if self.pass != Pass::Backward {
            return Ok(());
        }
        let bound = self.scores.bind(None)?;
        let attention = self.scores.apply(attention(&self.case, Ours::Chosen), bound.as_ref());
        for set in &mut self.sets[first..] {
            launch(&attention, Pass::Forward, &self.stream, set, &mut self.lse, self.numbers.as_ref(), None)?;
        }
        self.stream.synchronize()
    }

    /// Entry points of one launch, in their order.
    pub(crate) fn symbols(&mut self, ours: Ours) -> ferroflash::Result<Vec<&'static str>> {
        let bound = self.scores.bind_with_blocks(&self.device)?;
        let attention = self.scores.apply(attention(&self.case, ours), bound.as_ref());
        let (set, mut symbols) = (&mut self.sets[0], Vec::new());
        if self.pass.has_forward() {
            let plan = match &self.numbers {
                Some(numbers) => numbers.plan(&attention, set)?,
                None => attention.plan(&self.device, self.case.problem)?,
            };
            symbols.extend(plan.symbols());
        }
        if let (true, Some(gradients)) = (self.pass.has_backward(), &mut set.gradients) {
            let (q, k, v, out) = (set.q.view(), set.k.view(), set.v.view(), set.out.view());
            let GradientSet { dout, dq, dk, dv } = gradients;
            let into = GradientsViewMut::new(dq.view_mut(), dk.view_mut(), dv.view_mut());
            let lse = self.lse.view();
            symbols.extend(attention.backward_plan_for(&q, &k, &v, &out, &lse, dout.view(), Some(&into))?.symbols());
        }
        Ok(symbols)
    }

    /// Parts that the keys are split into, where sequences are packed or in a cache.
    pub(crate) fn splits(&self, ours: Ours) -> ferroflash::Result<Option<u32>> {
        let plan = |numbers: &Numbers| numbers.plan(&attention(&self.case, ours), &self.sets[0]);
        Ok(self.numbers.as_ref().map(plan).transpose()?.map(|plan| plan.splits))
    }

    /// Calls that are launched together when they are timed: those of a graph, where a call takes microseconds. The emulator has no graphs.
    pub(crate) fn calls(&self) -> u32 {
        let replayed = self.case.rows.cached() && !self.device.info().is_emulator();
        if replayed { sequences::graph_calls(self.sets.len()) } else { 1 }
    }

    /// Milliseconds on the device for `launches` of the pass in a row, together. `lead`: one more goes ahead, outside of the time,
    /// so that a device at rest does not wait for the host inside of it. Where [several](Self::calls) are launched together, it is their
    /// share of as many as hold so many.
    pub(crate) fn time_ms(&mut self, ours: Ours, launches: u32, lead: bool) -> ferroflash::Result<f64> {
        let calls = self.calls();
        // Once for all launches, as a model does for all of its layers.
        let bound = self.scores.bind_with_blocks(&self.device)?;
        let attention = self.scores.apply(attention(&self.case, ours), bound.as_ref());
        let Workload { device, stream, sets, lse, numbers, replay, flush, pass, .. } = self;
        if let (2.., None, Some(numbers)) = (calls, &replay, &numbers) {
            *replay = Some(numbers.capture(&attention, device, calls, sets, lse)?);
        }
        let mut launch = |i: u32| match replay {
            // SAFETY: the sets, the log-sum-exp and the numbers that were captured live as long as the graph, and the stream is the only one.
            Some(replay) => unsafe { replay.launch(stream) },
            None => {
                let count = sets.len();
                launch(&attention, *pass, stream, &mut sets[i as usize % count], lse, numbers.as_ref(), None)
            }
        };
        let count = launches.div_ceil(calls);
        if lead {
            launch(count)?;
        }
        let elapsed = match flush {
            None => device.time(stream, || (0..count).try_for_each(&mut launch))?,
            Some([to, from]) => {
                device.time_each(stream, count, || to.copy_from(stream, from), || launch(0))?.iter().sum()
            }
        };
        let share = f64::from(launches) / f64::from(count * calls);
        Ok(elapsed.as_secs_f64() * 1e3 * share)
    }

    /// Device memory at the peak of one allocating call of each pass, beyond what goes in and the tensors that come out: measured, not
    /// computed. The log-sum-exp is part of it where a forward pass makes it.
    pub(crate) fn extra_bytes(&self, ours: Ours) -> ferroflash::Result<u64> {
        let bound = self.scores.bind_with_blocks(&self.device)?;
        let before = self.device.memory().live_bytes;
        self.device.reset_peak();
        let Set { q, k, v, out, gradients } = &self.sets[0];
        let attention = self.scores.apply(attention(&self.case, ours), bound.as_ref());
        let output = match (self.pass.has_forward(), &self.numbers) {
            (true, Some(numbers)) => Some(numbers.forward(&attention, &self.sets[0])?),
            (true, None) => {
                let output = attention.forward(&q.view(), &k.view(), &v.view())?;
                Some((output.out, output.lse))
            }
            (false, _) => None,
        };
        let of_forward = output.as_ref().and_then(|(out, lse)| Some((out.view(), lse.as_ref()?.view())));
        let (out, lse) = of_forward.unwrap_or((out.view(), self.lse.view()));
        let gradients = match gradients {
            Some(given) => Some(attention.backward(&q.view(), &k.view(), &v.view(), &out, &lse, given.dout.view())?),
            None => None,
        };
        self.device.synchronize()?;
        let of_backward = gradients.iter().flat_map(|gradients| [&gradients.dq, &gradients.dk, &gradients.dv]);
        let returned = output.iter().map(|(out, _)| out).chain(of_backward);
        let returned = returned.chain(gradients.iter().filter_map(|gradients| gradients.dsink.as_ref()));
        let returned: usize = returned.map(|tensor| tensor.storage_elements() * tensor.dtype().bytes()).sum();
        Ok(self.device.memory().peak_bytes - before - returned as u64)
    }

    /// Runs one of ours once over poisoned outputs and compares them with the reference.
    pub(crate) fn check(&mut self, ours: Ours) -> ferroflash::Result<Check> {
        with_element!(self.case.problem.dtype, T => self.check_as::<T>(ours))
    }

    fn check_as<T: Element>(&mut self, ours: Ours) -> ferroflash::Result<Check> {
        // NaN in every type: an element that the kernel does not write stands out.
        let bound = self.scores.bind_with_blocks(&self.device)?;
        let attention = self.scores.apply(attention(&self.case, ours), bound.as_ref());
        let set = &mut self.sets[0];
        if self.pass.has_forward() {
            set.out.fill_bytes(0xff)?;
            self.lse.fill_bytes(0xff)?;
        }
        if let Some(GradientSet { dq, dk, dv, .. }) = &mut set.gradients {
            [dq, dk, dv].into_iter().try_for_each(|tensor| tensor.fill_bytes(0xff))?;
        }
        match &self.replay {
            // What was timed. SAFETY: as there.
            Some(replay) => unsafe { replay.launch(&self.stream) }?,
            None => {
                let (numbers, dout) = (self.numbers.as_ref(), self.checked_dout.as_ref());
                launch(&attention, self.pass, &self.stream, set, &mut self.lse, numbers, dout)?;
            }
        }
        self.stream.synchronize()?;
        let set = &self.sets[0];
        let forward = match self.pass.has_forward() {
            true => Some((set.out.to_vec::<T>()?, self.lse.to_vec()?)),
            false => None,
        };
        let gradients = match &set.gradients {
            Some(GradientSet { dq, dk, dv, .. }) => Some([dq.to_vec::<T>()?, dk.to_vec()?, dv.to_vec()?]),
            None => None,
        };
        let mut bits: Vec<&[u8]> = Vec::new();
        if let Some((out, lse)) = &forward {
            bits.extend([bytemuck::cast_slice(out), bytemuck::cast_slice(lse)]);
        }
        bits.extend(gradients.iter().flatten().map(|gradient| bytemuck::cast_slice::<T, u8>(gradient)));
        self.fingerprints.insert(ours, fingerprint(&bits));
        let forward = forward.as_ref().map(|(out, lse)| (&out[..], Some(&lse[..])));
        Ok(self.compare(forward, gradients.as_ref()))
    }

    /// Compares what the pass gave with the reference.
    fn compare<T: Element>(&self, forward: Option<(&[T], Option<&[f32]>)>, gradients: Option<&[Vec<T>; 3]>) -> Check {
        let of_forward = self.reference.as_ref().zip(forward);
        let of_forward = of_forward.map(|(reference, (out, lse))| reference.compare(&self.case, out, lse));
        let of_gradients = self.of_gradients.as_ref().zip(gradients);
        let of_gradients = of_gradients
            .map(|(reference, found)| reference.compare(&self.case, found.each_ref().map(|data| data.as_slice())));
        match (of_forward, of_gradients) {
            (Some(forward), Some(backward)) => {
                let (lse, gradients) = (forward.lse, backward.gradients.clone());
                Check { lse, gradients, ..gradients::nearest(forward, backward) }
            }
            (forward, backward) => forward.or(backward).expect("a pass has results"),
        }
    }

    /// Whether one more [check](Self::check) finds the bits of the one before; where sums are added in any order, numbers within the
    /// tolerance.
    pub(crate) fn comes_again(&mut self, ours: Ours) -> ferroflash::Result<bool> {
        let before = self.fingerprints.get(&ours).copied();
        let check = self.check(ours)?;
        if before == self.fingerprints.get(&ours).copied() {
            return Ok(true);
        }
        let bound = self.scores.bind_with_blocks(&self.device)?;
        let attention = self.scores.apply(attention(&self.case, ours), bound.as_ref());
        let plan = attention.backward_plan(&self.device, self.case.problem)?;
        Ok(self.pass.has_backward() && !plan.deterministic && check.within)
    }
}

impl GradientSet {
    fn new(device: &Device, case: &Case, dout: Tensor) -> ferroflash::Result<GradientSet> {
        let new = |shape| Tensor::uninit(device, case.problem.dtype, shape, Layout::Bshd);
        let (dq, dk, dv) = (new(case.q_shape())?, new(case.kv_shape())?, new(case.kv_shape())?);
        Ok(GradientSet { dout, dq, dk, dv })
    }
}

/// The options that one of ours runs with on this problem.
fn attention(case: &Case, ours: Ours) -> Attention<'static> {
    let kernel = match ours {
        Ours::Kernel(kernel) => kernel.into(),
        Ours::Chosen | Ours::Deterministic => KernelChoice::Auto,
    };
    let deterministic = ours == Ours::Deterministic;
    Attention::new().with_mask(case.mask).with_kernel(kernel).with_deterministic(deterministic).with_lse(true)
}

/// Runs a pass on one set of tensors, of sequences with their numbers, with `dout` in the place of its own where one is given.
fn launch(
    attention: &Attention,
    pass: Pass,
    stream: &Stream,
    set: &mut Set,
    lse: &mut Lse,
    numbers: Option<&Numbers>,
    dout: Option<&Tensor>,
) -> ferroflash::Result<()> {
    if let Some(numbers) = numbers {
        return numbers.launch(attention, stream, set, lse);
    }
    let Set { q, k, v, out, gradients } = set;
    let (q, k, v) = (q.view(), k.view(), v.view());
    if pass.has_forward() {
        attention.forward_into(stream, &q, &k, &v, &mut out.view_mut(), Some(&mut lse.view_mut()))?;
    }
    if let (true, Some(gradients)) = (pass.has_backward(), gradients) {
        let dout = dout.unwrap_or(&gradients.dout).view();
        let (dq, dk, dv) = (gradients.dq.view_mut(), gradients.dk.view_mut(), gradients.dv.view_mut());
        let mut into = GradientsViewMut::new(dq, dk, dv);
        attention.backward_into(stream, &q, &k, &v, &out.view(), &lse.view(), dout, &mut into)?;
    }
    Ok(())
}

/// A hash of all bits.
fn fingerprint(parts: &[&[u8]]) -> u64 {
    // Piece by piece on all cores: an output has some hundred million bytes.
    let pieces = |bytes: &[u8]| -> Vec<u64> {
        let hash = |piece: &[u8]| {
            let mut hasher = DefaultHasher::new();
            hasher.write(piece);
            hasher.finish()
        };
        bytes.par_chunks(1 << 20).map(hash).collect()
    };
    let mut hasher = DefaultHasher::new();
    for piece in parts.iter().flat_map(|part| pieces(part)) {
        hasher.write_u64(piece);
    }
    hasher.finish()
}
