//! The options of attention.

use crate::dropout::Dropout;
use crate::error::{Error, Result, Unsupported};
use crate::score::BoundProgram;
use crate::tensor::TensorView;
use kernel_spec::{Kernel, Mask, Variant};

/// Which kernel computes the result. All give the same result up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelChoice {
    /// The library chooses; [`Plan::reason`](crate::Plan::reason) says why.
    #[default]
    Auto,
    /// This one.
    Kernel(Kernel),
    /// The kernel of this row of [`VARIANTS`](kernel_spec::VARIANTS), with its tile: to compare tiles, and to test each of them.
    Variant(&'static Variant),
}

impl KernelChoice {
    /// The kernel that is asked for, if one is.
    pub fn kernel(self) -> Option<Kernel> {
        match self {
            KernelChoice::Auto => None,
            KernelChoice::Kernel(kernel) => Some(kernel),
            KernelChoice::Variant(variant) => Some(variant.pass.kernel()),
        }
    }
}

impl From<&'static Variant> for KernelChoice {
    fn from(variant: &'static Variant) -> KernelChoice {
        KernelChoice::Variant(variant)
    }
}

impl From<Kernel> for KernelChoice {
    fn from(kernel: Kernel) -> KernelChoice {
        KernelChoice::Kernel(kernel)
    }
}

/// Exact attention, `out = softmax(scale * q k^T + mask) v`, and its options.
///
/// Shapes: q and out `[batch, q_rows, q_heads, head_dim]`, k and v `[batch, kv_rows, kv_heads, head_dim]` with `q_heads` a multiple
/// of `kv_heads` (query head `h` reads key-value head `h / (q_heads / kv_heads)`), and `head_dim` a multiple of 8 up to 256. Scores,
/// softmax and sums are `f32` for every element type. A row that sees no key gives 0, and minus infinity as its log-sum-exp, or its
/// [sink](Attention::with_sink).
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::{Attention, Device, Layout, Shape, Tensor};
/// let device = Device::emulator()?;
/// let shape = Shape::new(1, 4, 2, 32);
/// let data: Vec<f32> = (0..shape.elements().unwrap()).map(|i| (i as f32).sin()).collect();
/// let q = Tensor::from_slice(&device, &data, shape, Layout::Bshd)?;
/// let output = Attention::new().causal().forward(&q.view(), &q.view(), &q.view())?;
/// // The first row sees only itself.
/// let (out, first) = (output.out.to_vec::<f32>()?, &data[..2 * 32]);
/// assert!(out.iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-6));
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Attention<'a> {
    /// Which keys a row sees.
    pub mask: Mask,
    /// Factor on the scores; `None` is `1 / sqrt(head_dim)`. Any finite value, 0 and negative ones too.
    pub scale: Option<f32>,
    /// Bound of the scores: `scale * q k^T` becomes `softcap * tanh(scale * q k^T / softcap)`; `None` is no bound. The log-sum-exp is
    /// that of the bounded scores.
    pub softcap: Option<f32>,
    /// What scores pass through, scaled and bounded, before keys are hidden. The log-sum-exp is that of the scores that come out.
    pub program: Option<&'a BoundProgram<'a>>,
    /// Sinks of the query heads, see [`Attention::with_sink`].
    pub sink: Option<TensorView<'a>>,
    /// Which probabilities are dropped, behind the softmax: the log-sum-exp knows nothing of it. `None` drops none.
    pub dropout: Option<Dropout>,
    /// Which kernel computes it.
    pub kernel: KernelChoice,
    /// Whether [`Attention::forward`] also returns the log-sum-exp of every row.
    pub lse: bool,
    /// Whether equal inputs have to give equal bits, whatever else the device does. All forward kernels do; so does the backward pass
    /// when this is set: on Hopper its fused kernel then adds to the sums of dq in order, which takes 5 to 25 % longer.
    pub deterministic: bool,
    /// How the keys of sequences are split, so that more of the GPU works on few query rows. Plays no part for uniform sequences.
    pub splits: Splits,
}

impl Default for Attention<'_> {
    fn default() -> Self {
        Attention {
            mask: Mask::Full,
            scale: None,
            softcap: None,
            program: None,
            sink: None,
            dropout: None,
            kernel: KernelChoice::Auto,
            lse: false,
            deterministic: false,
            splits: Splits::Auto,
        }
    }
}

impl<'a> Attention<'a> {
    /// Every query sees every key, scale `1 / sqrt(head_dim)`, the library chooses the kernel, no log-sum-exp.
    pub fn new() -> Attention<'a> {
        Attention::default()
    }

    /// Query row `i` sees the keys up to `i + kv_rows - q_rows`: the mask is aligned to the last row and the last key.
    pub fn causal(self) -> Attention<'a> {
        self.with_mask(Mask::Causal)
    }

    /// Query row `i` sees `left` keys before and `right` keys after key `i + kv_rows - q_rows`, and that one; `None` is unbounded.
    pub fn window(self, left: Option<u32>, right: Option<u32>) -> Attention<'a> {
        self.with_mask(Mask::Window { left, right })
    }

    /// Sets the mask.
    pub fn with_mask(mut self, mask: Mask) -> Attention<'a> {
        self.mask = mask;
        self
    }

    /// Sets the factor on the scores.
    pub fn with_scale(mut self, scale: f32) -> Attention<'a> {
        self.scale = Some(scale);
        self
    }

    /// Bounds the scores by `cap`, smoothly: a score `s` becomes `cap * tanh(s / cap)`. `None` and 0 are no bound. (Gemma 2, section 2
    /// of its report.)
    pub fn with_softcap(mut self, cap: impl Into<Option<f32>>) -> Attention<'a> {
        self.softcap = cap.into();
        self
    }

    /// Has scores pass through a program with its tensors. Uniform, packed and cached sequences take one, in every kernel of the forward pass; so
    /// do the portable and the naive kernels of the backward pass, without a softcap. There are no gradients of the program's tensors.
    pub fn with_program(mut self, program: &'a BoundProgram<'a>) -> Attention<'a> {
        self.program = Some(program);
        self
    }

    /// Gives every query head a sink: a logit that takes part in the softmax of its rows and has no value, `f32 [q_heads]` on q's device, contiguous
    /// and not multiplied by the scale. A row with scores `s_j` gives `sum_j e^(s_j) v_j / (sum_j e^(s_j) + e^sink)`, and the logarithm of that
    /// denominator as its log-sum-exp. (`learnable_sink` of FlashAttention-4, `s_aux` of vLLM.)
    ///
    /// A row that sees no key gives 0, and the sink as its log-sum-exp. A sink of minus infinity leaves every bit as it is without sinks. Plus
    /// infinity, or NaN, makes the log-sum-exp of the head's rows NaN, and the output of those that see a key: as of a score, the softmax of
    /// it is not defined. From 2e38 on, a sink may count as plus infinity.
    ///
    /// The numbers are read on the device when the call runs, and belong to nothing but the call. Every kernel takes them, uniform, packed and
    /// cached sequences alike, with any mask, softcap and program; where the keys are split, the sink is in the sum once. Parts that
    /// [`merge`](crate::merge) puts together would each bring it: at most one of them is to have it.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, DType, Device, Layout, Shape, Tensor};
    /// let device = Device::emulator()?;
    /// let q = Tensor::zeros(&device, DType::F32, Shape::new(1, 1, 2, 8), Layout::Bshd)?;
    /// let v = Tensor::from_slice(&device, &[1f32; 3 * 2 * 8], Shape::new(1, 3, 2, 8), Layout::Bshd)?;
    /// let sink = Tensor::from_slice(&device, &[f32::NEG_INFINITY, 0.0], [2], Layout::RowMajor)?;
    /// let output = Attention::new().with_sink(&sink.view()).forward(&q.view(), &v.view(), &v.view())?;
    /// // Three scores of 0: the sink of the second head takes a quarter of the weight.
    /// let out = output.out.to_vec::<f32>()?;
    /// assert!((out[0] - 1.0).abs() < 1e-6 && (out[8] - 0.75).abs() < 1e-6);
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    pub fn with_sink(mut self, sink: &TensorView<'a>) -> Attention<'a> {
        self.sink = Some(*sink);
        self
    }

    /// Drops each probability with probability `p`, from 0 to below 1, and multiplies the others with `1 / (1 - p)`: those that FlashAttention-2
    /// and PyTorch drop for this seed and offset, see [`dropout`](crate::dropout). The backward pass of a call takes the same numbers.
    ///
    /// Uniform sequences take it, in the kernels naive, v1 and v2 and in the naive and the portable backward pass, with any mask and program. With
    /// a softcap there are gradients by naive alone.
    pub fn dropout(self, p: f32, seed: u64, offset: u64) -> Attention<'a> {
        self.with_dropout(Dropout::new(p, seed, offset))
    }

    /// [`Attention::dropout`] by numbers that may also be on the device; `None` drops none.
    pub fn with_dropout(mut self, dropout: impl Into<Option<Dropout>>) -> Attention<'a> {
        self.dropout = dropout.into();
        self
    }

    /// Sets whether equal inputs have to give equal bits.
    pub fn with_deterministic(mut self, deterministic: bool) -> Attention<'a> {
        self.deterministic = deterministic;
        self
    }

    /// Sets the kernel.
    pub fn with_kernel(mut self, kernel: impl Into<KernelChoice>) -> Attention<'a> {
        self.kernel = kernel.into();
        self
    }

    /// Sets whether [`Attention::forward`] returns the log-sum-exp.
    pub fn with_lse(mut self, lse: bool) -> Attention<'a> {
        self.lse = lse;
        self
    }

    /// Sets how the keys of sequences are split.
    pub fn with_splits(mut self, splits: Splits) -> Attention<'a> {
        self.splits = splits;
        self
    }

    /// What scores pass through, unless it leaves them as they are.
    pub(crate) fn changing_program(&self) -> Option<&'a BoundProgram<'a>> {
        self.program.filter(|bound| !bound.program().is_identity())
    }

    /// What is dropped, checked; `None` where nothing is.
    pub(crate) fn checked_dropout(&self) -> Result<Option<Dropout>> {
        self.dropout.map_or(Ok(None), Dropout::checked)
    }

    /// That nothing is dropped, of sequences of this kind.
    pub(crate) fn check_no_dropout(&self, found: &'static str) -> Result<()> {
        match self.checked_dropout()? {
            Some(_) => Err(Error::Unsupported(Unsupported::DropoutOverSequences { found, accepted: "uniform" })),
            None => Ok(()),
        }
    }

    /// Gradients go through a softcap or a program, not through both.
    pub(crate) fn check_gradients(&self) -> Result<()> {
        match self.changing_program() {
            Some(bound) if self.softcap.is_some_and(|cap| cap != 0.0) => {
                let program = bound.program().name().to_owned();
                Err(Error::Unsupported(Unsupported::CappedProgram { program }))
            }
            _ => Ok(()),
        }
    }

    /// The factor on the scores for this head dim, checked.
    pub(crate) fn scale_for(&self, head_dim: usize) -> Result<f32> {
        let scale = self.scale.unwrap_or_else(|| (1.0 / (head_dim as f64).sqrt()) as f32);
        if log2_of(scale).is_finite() { Ok(scale) } else { Err(Error::Scale { found: scale }) }
    }

    /// The bound of the scores, checked together with the factor on them.
    pub(crate) fn softcap_for(&self, scale: f32) -> Result<Option<f32>> {
        match self.softcap {
            None | Some(0.0) => Ok(None),
            Some(cap) if cap > 0.0 && log2_of(cap).is_finite() && (scale / cap).is_finite() => Ok(Some(cap)),
            Some(found) => Err(Error::Softcap { found, scale }),
        }
    }
}

/// How the keys of sequences are split among thread blocks, whose results are then merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Splits {
    /// As many as make good use of the GPU. The bits of a result may then depend on how many sequences a call has.
    #[default]
    Auto,
    /// So many for each sequence, of equal length.
    Count(u32),
    /// So many keys each, a multiple of 64, counted from the first key of a sequence: the bits of a result do not depend on the other
    /// sequences of the call.
    ///
    /// A call makes as many splits as the longest sequence needs, 128 at most, and a buffer for the results of all of them. The longest has
    /// the capacity of the cache; of packed keys, what [`PackedRows::with_longest`](crate::PackedRows::with_longest) says, or all of them where
    /// it says nothing, since one sequence may have them all. The last split runs to the end of the keys, so that a sequence longer than the
    /// hint is computed too, with bits that depend on the hint.
    Keys(u32),
}

/// `x log2(e)`: the kernels work in powers of two, `2^(x log2(e)) = e^x`.
pub(crate) fn log2_of(x: f32) -> f32 {
    (f64::from(x) * std::f64::consts::LOG2_E) as f32
}
