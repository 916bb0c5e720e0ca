//! What a plan is made for, as far as it is known before the call.

use super::options::Attention;
use super::problem::Sizes;
use crate::dropout::{Dropout, State};
use crate::score::BoundProgram;
use crate::specialise::Specialised;
use crate::tensor::{HeadsView, Layout, Shape};
use kernel_spec::families::forward::features::{
    self, BLOCKS, DROPOUT, DROPOUT_OFFSET, DROPOUT_SEED, DROPOUT_STATE, MASK_ONLY, SINK, SOFTCAP,
};
use kernel_spec::{DType, FeatureSet, ForwardFeatures, Variant, philox};

/// Where a tensor of a call lies, as far as the plan knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Axes as `(extent, stride)`: batch, row, head, dim.
    pub(crate) axes: [(usize, usize); 4],
    pub(crate) dtype: DType,
    /// `None`: memory that is still to be allocated, which suits every kernel.
    pub(crate) address: Option<u64>,
}

impl Placed {
    /// A contiguous tensor that is not there yet. Strides past the end of the address space saturate: no machine has such a tensor, and
    /// what else is wrong with the problem can be told.
    pub(crate) fn contiguous(shape: Shape, layout: Layout, dtype: DType) -> Placed {
        let Shape { batch, rows, heads, head_dim } = shape;
        let (row, head) = match layout {
            Layout::Bhsd => (head_dim, rows.saturating_mul(head_dim)),
            Layout::Bshd | Layout::RowMajor => (heads.saturating_mul(head_dim), head_dim),
        };
        let batch_stride = rows.saturating_mul(heads).saturating_mul(head_dim);
        Placed { axes: [(batch, batch_stride), (rows, row), (heads, head), (head_dim, 1)], dtype, address: None }
    }

    pub(crate) fn of(view: &HeadsView<'_>) -> Placed {
        Placed { axes: view.axes(), dtype: view.dtype(), address: Some(view.address()) }
    }

    /// Whether every row of the tensor starts at a multiple of `alignment` bytes.
    pub(crate) fn rows_start_at(&self, alignment: usize) -> bool {
        // Along an axis of extent 1 nothing is ever stepped over.
        let aligned = |&(extent, stride): &(usize, usize)| {
            extent <= 1 || stride.saturating_mul(self.dtype.bytes()).is_multiple_of(alignment)
        };
        self.address.unwrap_or(0).is_multiple_of(alignment as u64) && self.axes[..3].iter().all(aligned)
    }
}

/// The tensors of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensors {
    pub(crate) q: Placed,
    pub(crate) k: Placed,
    pub(crate) v: Placed,
    pub(crate) out: Placed,
}

impl Tensors {
    /// Contiguous tensors of a problem, `[batch, row, head, dim]`.
    pub(crate) fn contiguous(sizes: &Sizes) -> Tensors {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = *sizes;
        let placed = |rows, heads| Placed::contiguous(Shape::new(batch, rows, heads, head_dim), Layout::Bshd, dtype);
        let (q, k) = (placed(q_rows, q_heads), placed(kv_rows, kv_heads));
        Tensors { q, k, v: k, out: q }
    }
}

/// What a plan is made for, checked.
pub(crate) struct Request<'a> {
    pub(crate) attention: &'a Attention<'a>,
    pub(crate) sizes: Sizes,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    /// What is dropped, checked.
    pub(crate) dropout: Option<Dropout>,
    /// Keys that a row sees, on average.
    pub(crate) keys_per_row: u32,
    pub(crate) tensors: Tensors,
}

impl Request<'_> {
    /// What the call does beyond plain attention, as its parameters say it.
    pub(super) fn features(&self) -> ForwardFeatures {
        let mut features = ForwardFeatures::OFF;
        if let Some(cap) = self.softcap {
            // Programs take scores with their sign.
            let scale = if self.scaled_by_program() { self.scale } else { self.scale.abs() };
            features = features.with(SOFTCAP, (scale / cap).to_bits().into());
        }
        if let Some(program) = self.attention.changing_program() {
            let factor = if self.scaled_by_program() { self.softcap.unwrap_or(self.scale) } else { 1.0 };
            features = program.fill(features, factor);
            if program.blocks().is_some() {
                features = features.with(BLOCKS, 0);
                if program.is_mask_only() {
                    features = features.with(MASK_ONLY, 0);
                }
            }
        }
        if self.attention.sink.is_some() {
            // The address is not known yet.
            features = features.with(SINK, 0);
        }
        with_dropout(features, self.dropout)
    }

    /// Whether scores are scaled before the softmax, because the program is to see them so. One that only hides keys takes them as they come.
    pub(super) fn scaled_by_program(&self) -> bool {
        self.attention.changing_program().is_some_and(|program| !program.is_mask_only())
    }

    /// The features without which a pass does not give the result of the call. Lists of blocks save time alone.
    pub(super) fn needed(&self) -> FeatureSet {
        let saving = FeatureSet::of(BLOCKS).union(FeatureSet::of(MASK_ONLY));
        self.features().set().without(saving)
    }

    /// What a device loads for the row of a pass, with the call's features as far as its entry accepts them, and `more`.
    pub(super) fn specialised(&self, variant: &'static Variant, more: FeatureSet) -> Specialised {
        let features = self.features().set().union(more).intersection(variant.entry.accepts);
        let program = self.attention.changing_program().filter(|_| variant.pass.has_score_hook());
        Specialised {
            program: program.map(BoundProgram::shared_text),
            ..Specialised::with_features(&variant.entry, features)
        }
    }
}

/// These features and dropout, if anything is dropped.
pub(super) fn with_dropout(features: ForwardFeatures, dropout: Option<Dropout>) -> ForwardFeatures {
    let Some(dropout) = dropout else { return features };
    let value = features::dropout(philox::threshold(dropout.p()), dropout.factor());
    let (value, seed, offset) = match dropout.state() {
        State::Numbers { seed, offset } => (value, seed, offset),
        State::OnDevice { address, offset } => (value | DROPOUT_STATE, address, offset),
    };
    features.with(DROPOUT, value).with_word(DROPOUT_SEED, seed).with_word(DROPOUT_OFFSET, offset)
}

/// A row of the variant list with its launch.
pub(crate) struct Row {
    pub(crate) variant: &'static Variant,
    pub(crate) ctas: u32,
    /// Query heads of a group that share a tile; 1 but for v3.
    pub(crate) packed_heads: u32,
}
