//! Which cells a run visits.

use crate::workload::Case;
use anyhow::{Result, bail, ensure};
use attn_spec::{DType, Kernel, Mask};
use clap::{Args, ValueEnum};
use ferroflash::Problem;
use serde::Deserialize;

/// Model width of the FlashAttention papers: the default number of heads is this over the head dim.
const MODEL_WIDTH: usize = 2048;

/// Tokens of one cell in the FlashAttention papers: the default batch is this over the sequence length.
const PAPER_TOKENS: usize = 16384;

/// Which problems to run. What is left out takes the default sweep of the device.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SweepArgs {
    /// Kernels to run, comma separated [default: all that the device runs]
    #[arg(long, value_delimiter = ',', value_name = "KERNEL")]
    kernel: Vec<KernelName>,
    /// Element types, comma separated [default: f16,bf16 and small f32 problems]
    #[arg(long, value_delimiter = ',', value_name = "TYPE")]
    dtype: Vec<DTypeName>,
    /// Head dims, comma separated: multiples of 8 up to 256 [default: 64,128; emulator: 64]
    #[arg(long, value_delimiter = ',', value_name = "DIM")]
    head_dim: Vec<usize>,
    /// Sequence lengths, comma separated [default: 512 to 16384 by powers of two; emulator: 64,128,256]
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    seq: Vec<usize>,
    /// Batch entries [default: --tokens over the sequence length]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Query heads [default: 2048 over the head dim; emulator: 2]
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Key-value heads, a divisor of the query heads [default: the query heads]
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Tokens of one cell, batch times sequence length [default: 16384, f32: 4096; emulator: batch 1]
    #[arg(long, value_name = "N", conflicts_with = "batch")]
    tokens: Option<usize>,
    /// Only the causal mask; with --full, both
    #[arg(long)]
    causal: bool,
    /// Only without a mask; with --causal, both
    #[arg(long)]
    full: bool,
}

/// A kernel on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KernelName {
    /// Scores and probabilities in device memory.
    Naive,
    /// FlashAttention.
    V1,
    /// FlashAttention-2.
    V2,
    /// FlashAttention-3: compute capability 9.0, f16 and bf16.
    V3,
}

impl From<KernelName> for Kernel {
    fn from(name: KernelName) -> Kernel {
        match name {
            KernelName::Naive => Kernel::Naive,
            KernelName::V1 => Kernel::V1,
            KernelName::V2 => Kernel::V2,
            KernelName::V3 => Kernel::V3,
        }
    }
}

/// An element type on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DTypeName {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE binary32.
    F32,
}

impl From<DTypeName> for DType {
    fn from(name: DTypeName) -> DType {
        match name {
            DTypeName::F16 => DType::F16,
            DTypeName::Bf16 => DType::Bf16,
            DTypeName::F32 => DType::F32,
        }
    }
}

/// What a device's default sweep holds for one element type.
struct Defaults {
    head_dims: &'static [usize],
    seqs: &'static [usize],
    /// `None`: batch 1.
    tokens: Option<usize>,
    /// `None`: [`MODEL_WIDTH`] over the head dim.
    heads: Option<usize>,
}

fn defaults(dtype: DType, emulator: bool) -> Defaults {
    if emulator {
        // Sized so that the whole sweep, references included, stays under a minute on two cores.
        return Defaults { head_dims: &[64], seqs: &[64, 128, 256], tokens: None, heads: Some(2) };
    }
    match dtype {
        DType::F16 | DType::Bf16 => Defaults {
            head_dims: &[64, 128],
            seqs: &[512, 1024, 2048, 4096, 8192, 16384],
            tokens: Some(PAPER_TOKENS),
            heads: None,
        },
        // True f32 has no tensor cores: a quarter of the tokens keeps a cell within the time of the others.
        DType::F32 => {
            Defaults { head_dims: &[64, 128], seqs: &[512, 1024, 2048], tokens: Some(PAPER_TOKENS / 4), heads: None }
        }
    }
}

/// Kernels and cells of one run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sweep {
    pub(crate) kernels: Vec<Kernel>,
    /// Grouped by element type, mask and head dim, the sequence length running fastest.
    pub(crate) cases: Vec<Case>,
}

impl SweepArgs {
    /// The cells that these arguments ask for. `runnable` are the kernels that the device has the instructions for.
    pub(crate) fn sweep(&self, emulator: bool, runnable: &[Kernel]) -> Result<Sweep> {
        let kernels = if self.kernel.is_empty() {
            runnable.to_vec()
        } else {
            unique("--kernel", self.kernel.iter().map(|&kernel| Kernel::from(kernel)))?
        };
        let dtypes = if self.dtype.is_empty() {
            vec![DType::Bf16, DType::F16, DType::F32]
        } else {
            unique("--dtype", self.dtype.iter().map(|&dtype| DType::from(dtype)))?
        };
        let masks: &[Mask] = match (self.full, self.causal) {
            (true, false) => &[Mask::Full],
            (false, true) => &[Mask::Causal],
            _ => &[Mask::Full, Mask::Causal],
        };
        let mut cases = Vec::new();
        for dtype in dtypes {
            let defaults = defaults(dtype, emulator);
            let head_dims = unique("--head-dim", or_default(&self.head_dim, defaults.head_dims))?;
            let seqs = unique("--seq", or_default(&self.seq, defaults.seqs))?;
            for &mask in masks {
                for &head_dim in &head_dims {
                    for &seq in &seqs {
                        cases.push(self.case(&defaults, dtype, mask, head_dim, seq)?);
                    }
                }
            }
        }
        Ok(Sweep { kernels, cases })
    }

    fn case(&self, defaults: &Defaults, dtype: DType, mask: Mask, head_dim: usize, seq: usize) -> Result<Case> {
        ensure!(seq > 0, "--seq 0 is not accepted; a sequence has at least one row");
        ensure!(
            (8..=attn_spec::MAX_HEAD_DIM as usize).contains(&head_dim) && head_dim.is_multiple_of(8),
            "--head-dim {head_dim} is not accepted; kernels take the multiples of 8 from 8 to {}",
            attn_spec::MAX_HEAD_DIM
        );
        let batch = match (self.batch, self.tokens.or(defaults.tokens)) {
            (Some(0), _) => bail!("--batch 0 is not accepted; at least 1 is needed"),
            (Some(batch), _) => batch,
            (None, None) => 1,
            (None, Some(tokens)) => {
                ensure!(
                    tokens > 0 && tokens.is_multiple_of(seq),
                    "{tokens} tokens are no whole number of sequences of {seq} rows; give --batch or --tokens"
                );
                tokens / seq
            }
        };
        let q_heads = match self.heads.or(defaults.heads) {
            Some(0) => bail!("--heads 0 is not accepted; at least 1 is needed"),
            Some(heads) => heads,
            None => {
                ensure!(
                    MODEL_WIDTH.is_multiple_of(head_dim),
                    "the default number of heads, {MODEL_WIDTH} over the head dim, is not whole for --head-dim {head_dim}; \
                     give --heads"
                );
                MODEL_WIDTH / head_dim
            }
        };
        let kv_heads = self.kv_heads.unwrap_or(q_heads);
        ensure!(
            kv_heads > 0 && q_heads.is_multiple_of(kv_heads),
            "{q_heads} query heads cannot share {kv_heads} key-value heads; --kv-heads takes a divisor of --heads"
        );
        let problem = Problem { batch, q_rows: seq, kv_rows: seq, q_heads, kv_heads, head_dim, dtype };
        Ok(Case { problem, mask })
    }
}

fn or_default<'a>(given: &'a [usize], default: &'a [usize]) -> impl Iterator<Item = usize> {
    if given.is_empty() { default } else { given }.iter().copied()
}

/// The values in their order; one that comes twice is a mistake in the command.
fn unique<T: PartialEq + std::fmt::Debug>(flag: &str, values: impl Iterator<Item = T>) -> Result<Vec<T>> {
    let mut seen = Vec::new();
    for value in values {
        ensure!(!seen.contains(&value), "{flag} names {value:?} twice");
        seen.push(value);
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_sweep_of_a_gpu_is_that_of_the_papers() {
        let sweep = SweepArgs::default().sweep(false, &Kernel::ALL).unwrap();
        assert_eq!(sweep.kernels, Kernel::ALL);
        let half: Vec<_> = sweep.cases.iter().filter(|case| case.problem.dtype != DType::F32).collect();
        // Two types, two masks, two head dims, six lengths.
        assert_eq!(half.len(), 2 * 2 * 2 * 6);
        for Case { problem, .. } in half {
            assert_eq!(problem.batch * problem.q_rows, 16384);
            assert_eq!(problem.q_heads * problem.head_dim, 2048);
            assert_eq!((problem.kv_heads, problem.kv_rows), (problem.q_heads, problem.q_rows));
        }
    }

    #[test]
    fn what_does_not_divide_is_an_error() {
        let args = |change: fn(&mut SweepArgs)| {
            let mut args = SweepArgs { dtype: vec![DTypeName::F16], ..SweepArgs::default() };
            change(&mut args);
            args.sweep(false, &Kernel::ALL).map(|sweep| sweep.cases.len()).map_err(|error| error.to_string())
        };
        assert_eq!(args(|a| a.seq = vec![1024]), Ok(4));
        assert!(args(|a| a.seq = vec![1000]).unwrap_err().contains("--batch or --tokens"));
        assert!(args(|a| a.seq = vec![0]).unwrap_err().contains("--seq 0"));
        assert!(args(|a| a.seq = vec![64, 64]).unwrap_err().contains("twice"));
        assert!(args(|a| a.head_dim = vec![96]).unwrap_err().contains("--heads"));
        assert!(args(|a| a.head_dim = vec![260]).unwrap_err().contains("--head-dim 260"));
        assert!(args(|a| a.kv_heads = Some(3)).unwrap_err().contains("--kv-heads"));
        assert!(args(|a| a.batch = Some(0)).unwrap_err().contains("--batch 0"));
        assert!(args(|a| a.heads = Some(0)).unwrap_err().contains("--heads 0"));
    }

    #[test]
    fn both_mask_flags_mean_both_masks() {
        let masks = |full, causal| {
            let args = SweepArgs { full, causal, seq: vec![512], head_dim: vec![64], ..SweepArgs::default() };
            let cases = args.sweep(true, &[Kernel::V2]).unwrap().cases;
            cases.iter().filter(|case| case.problem.dtype == DType::F16).map(|case| case.mask).collect::<Vec<_>>()
        };
        assert_eq!(masks(false, false), [Mask::Full, Mask::Causal]);
        assert_eq!(masks(true, true), [Mask::Full, Mask::Causal]);
        assert_eq!(masks(true, false), [Mask::Full]);
        assert_eq!(masks(false, true), [Mask::Causal]);
    }
}
