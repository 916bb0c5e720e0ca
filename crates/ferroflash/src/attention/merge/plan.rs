//! What a merge will do, decided before it does it.

use super::super::params::{bytes_of, tensor_params};
use super::super::request::Placed;
use super::check::Call;
use crate::error::{Error, MergeError, Operand, Result};
use crate::plan::{Binding, Buffer, MAX_GRID, Params, Step, check_device};
use crate::specialise::Specialised;
use crate::tensor::{HeadsView, Layout, Shape};
use kernel_spec::families::forward::TensorParams;
use kernel_spec::families::merge::{COLUMNS, MAX_PARTS, MergeParams, PartParams, THREADS, find};
use kernel_spec::{DType, Divisor, Features};
use std::mem::offset_of;

/// What a merge will launch and allocate, and why. Prints as a few lines.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MergePlan {
    /// Partial results.
    pub parts: usize,
    /// Rows of all heads and batch entries.
    pub rows: usize,
    /// Columns of a row.
    pub head_dim: usize,
    /// Element type of the partial results.
    pub dtype: DType,
    /// Element type of the output.
    pub out_dtype: DType,
    /// The launches in order.
    pub steps: Vec<Step>,
    /// Device memory that is allocated for the duration of the call, in the order in which steps number it.
    pub buffers: Vec<Buffer>,
    /// Why so many launches.
    pub reason: String,
}

impl MergePlan {
    /// Bytes of device memory allocated for the duration of the call.
    pub fn workspace_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.bytes).sum()
    }

    /// Entry points in launch order.
    pub fn symbols(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|step| step.kernel.entry.symbol)
    }
}

impl AsRef<[Step]> for MergePlan {
    fn as_ref(&self) -> &[Step] {
        &self.steps
    }
}

impl std::fmt::Display for MergePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MergePlan { parts, rows, head_dim, dtype, out_dtype, reason, .. } = self;
        writeln!(f, "merge: {reason}")?;
        writeln!(f, "  problem    {parts} parts of {rows} rows, head_dim {head_dim}, {dtype}, out {out_dtype}")?;
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for buffer in &self.buffers {
            writeln!(f, "{buffer}")?;
        }
        write!(f, "  memory     {} bytes of workspace", self.workspace_bytes())
    }
}

/// A tensor with its log-sum-exp, read or written by a step.
#[derive(Clone, Copy)]
struct Place {
    out: Binding,
    lse: Option<Binding>,
    placed: Placed,
}

impl Call<'_> {
    /// Plans this merge into an output of type `dtype`: `out`, with a log-sum-exp or without, or a new one.
    pub(super) fn plan(&self, dtype: DType, out: Option<(&HeadsView<'_>, bool)>) -> Result<MergePlan> {
        let placed =
            out.map_or_else(|| Placed::contiguous(self.shape, self.new_order(), dtype), |(view, _)| Placed::of(view));
        let lse = out.is_none_or(|(_, lse)| lse).then_some(Binding::Operand(Operand::Lse));
        let target = Place { out: Binding::Operand(Operand::Out), lse, placed };
        let mut sources: Vec<_> = self.parts.iter().enumerate().map(|(i, (view, _))| self.part(i, view)).collect();

        let (mut steps, mut buffers) = (Vec::new(), Vec::new());
        while sources.len() > MAX_PARTS as usize {
            let groups = sources.len().div_ceil(MAX_PARTS as usize);
            let mut merged = Vec::with_capacity(groups);
            for group in 0..groups {
                // As equal as they can be: none is left with a part that would only be copied.
                let share = |group: usize| group * sources.len() / groups;
                let target = self.between(&mut buffers);
                steps.push(self.step(&sources[share(group)..share(group + 1)], &target)?);
                merged.push(target);
            }
            sources = merged;
        }
        steps.push(self.step(&sources, &target)?);
        let reason = match steps.len() {
            1 => "a thread has four columns of a row, and reads each part once".to_owned(),
            launches => format!(
                "a launch takes {MAX_PARTS} parts: groups of them in {} launches, and those in the last",
                launches - 1
            ),
        };
        let plan = MergePlan {
            parts: self.parts.len(),
            rows: self.all_rows(),
            head_dim: self.shape.head_dim,
            dtype: self.dtype,
            out_dtype: dtype,
            steps,
            buffers,
            reason,
        };
        tracing::debug!(parts = plan.parts, reason = plan.reason, "planned merge");
        Ok(plan)
    }

    fn part(&self, index: usize, view: &HeadsView<'_>) -> Place {
        let (out, lse) = (Binding::Operand(Operand::Part(index)), Some(Binding::Operand(Operand::PartLse(index))));
        Place { out, lse, placed: Placed::of(view) }
    }

    /// Buffers for the result of a group.
    fn between(&self, buffers: &mut Vec<Buffer>) -> Place {
        let (first, rows, number) = (buffers.len(), self.all_rows() as u64, DType::F32.bytes() as u64);
        let reason = "a group's result in f32, which the last step reads";
        buffers.extend([
            Buffer { name: "merged outputs", bytes: rows * self.shape.head_dim as u64 * number, reason },
            Buffer { name: "merged log-sum-exps", bytes: rows * number, reason },
        ]);
        let placed = Placed::contiguous(self.shape, Layout::Bshd, DType::F32);
        Place { out: Binding::Buffer(first), lse: Some(Binding::Buffer(first + 1)), placed }
    }

    /// One launch.
    fn step(&self, sources: &[Place], target: &Place) -> Result<Step> {
        let (parts, out) = (sources[0].placed.dtype, target.placed.dtype);
        let entry = &find(parts, out).ok_or(MergeError::OutDType { parts, out })?.entry;
        check_device(entry, self.device.info())?;
        let Shape { rows, heads, head_dim, .. } = self.shape;
        let row_threads = head_dim as u32 / COLUMNS;
        let block_rows = THREADS / row_threads;
        let all_rows = self.all_rows() as u64;
        // Kernels divide numbers below 2^31, and no thread block may pass that.
        let (ctas, limit) = (all_rows.div_ceil(block_rows.into()), MAX_GRID / u64::from(block_rows));
        if ctas > limit {
            return Err(Error::GridTooLarge { symbol: entry.symbol, needed: ctas.into(), limit });
        }
        let bytes = |placed: &Placed| COLUMNS as usize * placed.dtype.bytes();
        let aligned = |place: &Place| place.placed.rows_start_at(bytes(&place.placed));
        let all_aligned = sources.iter().all(aligned);
        let none =
            PartParams { out: TensorParams { address: 0, batch_stride: 0, row_stride: 0, head_stride: 0 }, lse: 0 };
        let mut places = [none; MAX_PARTS as usize];
        for (place, source) in places.iter_mut().zip(sources) {
            place.out = tensor_params(&source.placed);
        }
        // Nothing is lost: the rows fit 31 bits.
        let params = MergeParams {
            parts: places,
            out: tensor_params(&target.placed),
            lse: 0,
            count: sources.len() as u32,
            all_rows: all_rows as u32,
            rows: Divisor::new(rows.max(1) as u32),
            heads: Divisor::new(heads.max(1) as u32),
            row_threads: Divisor::new(row_threads),
            block_rows,
            aligned: all_aligned.into(),
            out_aligned: aligned(target).into(),
            features: Features::OFF,
        };
        let pieces = |place: &Place, aligned: bool| {
            if aligned { bytes(&place.placed) as u64 } else { place.placed.dtype.bytes() as u64 }
        };
        let number = DType::F32.bytes() as u64;
        let mut filled = Params::new(bytes_of(&params));
        for (i, source) in sources.iter().enumerate() {
            let at = offset_of!(MergeParams, parts) + i * size_of::<PartParams>();
            let out = at + offset_of!(PartParams, out.address);
            filled = filled.address(out, source.out, pieces(source, all_aligned));
            filled = source
                .lse
                .iter()
                .fold(filled, |params, &lse| params.address(at + offset_of!(PartParams, lse), lse, number));
        }
        filled = filled.address(offset_of!(MergeParams, out.address), target.out, pieces(target, aligned(target)));
        filled =
            target.lse.iter().fold(filled, |params, &lse| params.address(offset_of!(MergeParams, lse), lse, number));
        let tile = format!("{block_rows} rows of {row_threads} threads: bound by reading {} parts", sources.len());
        Ok(Step::new(Specialised::plain(entry), ctas as u32, tile, filled))
    }
}
