//! What this crate refuses itself.

use ferroflash::Operand;

/// Result of what is this crate's own.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a function of this crate failed. Nothing was launched, unless the error inside says so.
///
/// candle's result holds it as a [`candle_core::Error::Cuda`], the variant for errors of other crates, whatever the device; [`Error::find`]
/// gives it back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A feature that ferroflash has not.
    #[error("{op}: {feature} is not supported by ferroflash yet")]
    Missing {
        /// The function, or the operation that it stands for.
        op: &'static str,
        /// What it would take.
        feature: Feature,
    },
    /// The tensors are on the CPU, and nobody asked for the emulator.
    #[error(
        "no cpu support for {op}, which is for tensors on a GPU; {} or `candle_ferroflash::emulate_cpu(true)` runs those on the CPU \
         in an emulator",
        "CANDLE_FERROFLASH_CPU=emulator"
    )]
    CpuTensors {
        /// The operation.
        op: &'static str,
    },
    /// The emulator was asked for and is not in this build.
    #[error("{op}: this build has no emulator; it needs the cargo feature `emulator` of candle_ferroflash")]
    NoEmulator {
        /// The operation.
        op: &'static str,
    },
    /// The environment asks for something else than the emulator.
    #[error("CANDLE_FERROFLASH_CPU is `{found}`; `emulator` is accepted")]
    CpuVariable {
        /// What it is.
        found: String,
    },
    /// A tensor of another rank.
    #[error("{op} expects {operand} of rank {} ({}); it has rank {found}", .axes.len(), .axes.join(", "))]
    Rank {
        /// The operation.
        op: &'static str,
        /// The tensor.
        operand: Operand,
        /// Its rank.
        found: usize,
        /// The axes that are expected.
        axes: &'static [&'static str],
    },
    /// Lengths or pages that are no integers of 32 bits.
    #[error("{op} expects {operand} to hold u32 or i32; it holds {found:?}")]
    Numbers {
        /// The operation.
        op: &'static str,
        /// The tensor.
        operand: Operand,
        /// Its element type.
        found: candle_core::DType,
    },
    /// Pages of another size than the argument says.
    #[error("{op}: page_block_size is {found}, k has pages of {expected} rows; they must be equal")]
    PageRows {
        /// The operation.
        op: &'static str,
        /// The argument.
        found: usize,
        /// Rows of a page of k.
        expected: usize,
    },
    /// Slopes of another type.
    #[error("{op} expects alibi_slopes to hold f32; it holds {found:?}")]
    SlopesType {
        /// The operation.
        op: &'static str,
        /// Their element type.
        found: candle_core::DType,
    },
    /// Slopes of another shape.
    #[error("{op} expects alibi_slopes of shape ({q_heads}), one for each head of q; it has shape {found:?}")]
    SlopesShape {
        /// The operation.
        op: &'static str,
        /// Their shape.
        found: Vec<usize>,
        /// Heads of q.
        q_heads: usize,
    },
    /// Sinks of another type.
    #[error("{op} expects sinks to hold f32; they hold {found:?}")]
    SinkType {
        /// The operation.
        op: &'static str,
        /// Their element type.
        found: candle_core::DType,
    },
    /// Sinks of another shape.
    #[error("{op} expects sinks of shape ({q_heads}), one for each head of q; they have shape {found:?}")]
    SinkShape {
        /// The operation.
        op: &'static str,
        /// Their shape.
        found: Vec<usize>,
        /// Heads of q.
        q_heads: usize,
    },
    /// An element type without kernels.
    #[error("{op} is only supported for f16, bf16 and f32; q holds {found:?}")]
    DType {
        /// The operation.
        op: &'static str,
        /// Element type of q.
        found: candle_core::DType,
    },
    /// A tensor of an operator with an element type that it has no kernels for.
    #[error("{op}: {operand} holds {found:?}; f16, bf16 and f32 are accepted")]
    ElementType {
        /// The operator.
        op: &'static str,
        /// The tensor.
        operand: Operand,
        /// Its element type.
        found: candle_core::DType,
    },
    /// A learning rate on the device of another type.
    #[error("{op} expects the learning rate to hold f32; it holds {found:?}")]
    RateType {
        /// The optimiser.
        op: &'static str,
        /// Its element type.
        found: candle_core::DType,
    },
    /// A mask of softmax of another type.
    #[error(
        "{op}: mask holds {found:?}; u8, which shows the columns where it is not 0, and f16, bf16 and f32, which are added, are accepted"
    )]
    MaskType {
        /// The operator.
        op: &'static str,
        /// Its element type.
        found: candle_core::DType,
    },
    /// Tensors of a device that ferroflash has nothing for.
    #[error(
        "{op}: tensors on NVIDIA GPUs are accepted, with the cargo feature `cuda`, and those on the CPU in the emulator"
    )]
    Device {
        /// The operator.
        op: &'static str,
    },
    /// A variable that a list has twice.
    #[error("{op}: {operand} is {first} again; each variable is accepted once")]
    Repeated {
        /// The operator.
        op: &'static str,
        /// The variable.
        operand: Operand,
        /// Where the list has it first.
        first: Operand,
    },
    /// An axis that an operator does not work along.
    #[error("{op} works along the last axis of a tensor, {} of {rank}; axis {found} was asked for", .rank.saturating_sub(1))]
    Axis {
        /// The operator.
        op: &'static str,
        /// The axis that was asked for, from 0 on.
        found: usize,
        /// Axes of the tensor.
        rank: usize,
    },
    /// What ferroflash refuses, or what failed while it launched.
    #[error(transparent)]
    Ferroflash(#[from] ferroflash::Error),
    /// What happened between ferroflash and candle's slices and streams.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cudarc(#[from] ferroflash_cudarc::Error),
}

impl Error {
    /// The error of this crate inside of candle's, if there is one.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_ferroflash::{Error, flash_attn_alibi};
    ///
    /// let q = Tensor::zeros((1, 4, 2, 64), DType::F16, &Device::Cpu)?;
    /// let slopes = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
    /// candle_ferroflash::emulate_cpu(true);
    /// let error = flash_attn_alibi(&q, &q, &q, &slopes, 0.125, true).unwrap_err();
    /// assert!(matches!(Error::find(&error), Some(Error::SlopesShape { q_heads: 2, .. })));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn find(error: &candle_core::Error) -> Option<&Error> {
        use candle_core::Error as Candle;
        match error {
            Candle::Cuda(inner) => inner.downcast_ref(),
            Candle::WithBacktrace { inner, .. } | Candle::Context { inner, .. } | Candle::WithPath { inner, .. } => {
                Error::find(inner)
            }
            _ => None,
        }
    }
}

/// A feature that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// Gradients of sequences that are packed one behind the other, or whose keys are in pages.
    PagedGradients,
    /// Ranges of keys that every row sees, whatever the mask says.
    PrefixRanges,
}

impl std::fmt::Display for Feature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Feature::PagedGradients => "gradients of keys and values in pages",
            Feature::PrefixRanges => "ranges of keys that every row sees (mm_prefix_ranges)",
        })
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> candle_core::Error {
        candle_core::Error::Cuda(Box::new(error)).bt()
    }
}
