//! Sweeps with names.

use super::sweep::{Axes, Batch, Heads};
use clap::ValueEnum;
use kernel_spec::{DType, Mask};

/// Model width of the FlashAttention papers: the number of heads is this over the head dim.
const MODEL_WIDTH: usize = 2048;

/// Tokens of one cell in the FlashAttention papers: the batch is this over the sequence length.
const PAPER_TOKENS: usize = 16384;

/// A sweep with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// The 36 forward cells of the FlashAttention papers: bf16, head dims 64, 128 and 256, 512 to 16384 rows, full and causal
    Paper,
    /// Extra memory by sequence length: one sequence of 128 to 16384 rows
    Memory,
    /// Speed by sequence length: one sequence of 128 to 65536 rows, head dim 128
    Seqlen,
    /// A first impression in under a minute
    Quick,
    /// Decoding: one row or a few on the keys of a cache, contiguous and in pages (--pages)
    Decode,
    /// Chunked prefill: 256 to 2048 rows on the keys of a cache, contiguous and in pages (--pages)
    Prefill,
    /// Packed sequences of unequal lengths, and a batch of equal ones beside them
    Varlen,
}

impl Preset {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Preset::Paper => "paper",
            Preset::Memory => "memory",
            Preset::Seqlen => "seqlen",
            Preset::Quick => "quick",
            Preset::Decode => "decode",
            Preset::Prefill => "prefill",
            Preset::Varlen => "varlen",
        }
    }

    /// How the sweep is made smaller for the emulator, which takes some seconds for what a GPU does in microseconds.
    pub(crate) fn scaled(self) -> Option<&'static str> {
        match self {
            Preset::Paper => Some(
                "tokens and sequence lengths are those of the papers over 32, the model width (heads times head dim) theirs \
                 over 8; head dims, masks and element type are theirs",
            ),
            Preset::Memory => {
                Some("128 to 1024 rows and one head; on a GPU 128 to 16384 rows and a model width of 2048")
            }
            Preset::Seqlen => {
                Some("32 to 1024 rows and one head; on a GPU 128 to 65536 rows and a model width of 2048")
            }
            Preset::Quick => None,
            Preset::Decode => Some(
                "keys of a cache are those of a GPU over 64, sequences those over 8, key-value heads those over 4; as many query \
                 heads share one",
            ),
            Preset::Prefill => Some(
                "rows are those of a GPU over 16, keys of a cache those over 64, sequences those over 8, key-value heads those over 4; \
                 as many query heads share one",
            ),
            Preset::Varlen => Some(
                "1x256+7x16, 16x32 and the first 16 lengths of the trace over 64; 2 heads, and 4 on 1; on a GPU 1x32k+63x512, \
                 64x1024 and all 96 lengths, with 16 heads, and 32 on 8",
            ),
        }
    }
}

/// Element types of a preset, or of the default sweep of a GPU.
pub(crate) fn dtypes(preset: Option<Preset>, emulator: bool) -> Vec<DType> {
    match preset {
        Some(Preset::Paper | Preset::Memory | Preset::Seqlen | Preset::Decode | Preset::Prefill | Preset::Varlen) => {
            vec![DType::Bf16]
        }
        Some(Preset::Quick) if !emulator => vec![DType::Bf16],
        Some(Preset::Quick) | None => vec![DType::Bf16, DType::F16, DType::F32],
    }
}

/// The sizes of a preset, or of the default sweep, for one element type.
pub(crate) fn axes(preset: Option<Preset>, dtype: DType, emulator: bool) -> Axes {
    let axes = |head_dims: &[usize], seqs: Vec<usize>, batch, heads| Axes {
        dtypes: vec![dtype],
        masks: vec![Mask::Full, Mask::Causal],
        head_dims: head_dims.to_vec(),
        seqs,
        kv_seq: None,
        batch,
        heads,
        kv_heads: None,
    };
    let (one, width) = (Batch::Fixed(1), Heads::Width(MODEL_WIDTH));
    match (preset, emulator) {
        (Some(Preset::Paper), false) => axes(&[64, 128, 256], doubling(512, 16384), Batch::Tokens(PAPER_TOKENS), width),
        (Some(Preset::Paper), true) => axes(
            &[64, 128, 256],
            doubling(512 / 32, 16384 / 32),
            Batch::Tokens(PAPER_TOKENS / 32),
            Heads::Width(MODEL_WIDTH / 8),
        ),
        (Some(Preset::Memory), false) => axes(&[64, 128], doubling(128, 16384), one, width),
        (Some(Preset::Memory), true) => axes(&[64, 128], doubling(128, 1024), one, Heads::Fixed(1)),
        (Some(Preset::Seqlen), false) => axes(&[128], doubling(128, 65536), one, width),
        (Some(Preset::Seqlen), true) => axes(&[128], doubling(32, 1024), one, Heads::Fixed(1)),
        (Some(Preset::Quick), false) => axes(&[64, 128], vec![1024, 4096], Batch::Tokens(PAPER_TOKENS), width),
        // Sized so that the whole sweep, references included, stays under a minute on two cores.
        (Some(Preset::Quick) | None, true) => axes(&[64], doubling(64, 256), one, Heads::Fixed(2)),
        // True f32 has no tensor cores: a quarter of the tokens keeps a cell within the time of the others.
        (None, false) if dtype == DType::F32 => {
            axes(&[64, 128], doubling(512, 2048), Batch::Tokens(PAPER_TOKENS / 4), width)
        }
        (None, false) => axes(&[64, 128], doubling(512, 16384), Batch::Tokens(PAPER_TOKENS), width),
        (Some(Preset::Decode | Preset::Prefill | Preset::Varlen), _) => unreachable!("lists its cells"),
    }
}

/// The powers of two times `first` up to `last`.
fn doubling(first: usize, last: usize) -> Vec<usize> {
    std::iter::successors(Some(first), |seq| Some(seq * 2)).take_while(|&seq| seq <= last).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sweep::Given;
    use super::*;

    /// Work of a whole preset, in floating-point operations.
    fn flops(preset: Preset, emulator: bool) -> f64 {
        let axes = dtypes(Some(preset), emulator).into_iter().map(|dtype| axes(Some(preset), dtype, emulator));
        axes.flat_map(|axes| axes.cases(Given::Options).unwrap()).map(|case| case.flops()).sum()
    }

    #[test]
    fn the_paper_preset_is_the_36_cells() {
        let cells = axes(Some(Preset::Paper), DType::Bf16, false).cases(Given::Options).unwrap();
        assert_eq!(cells.len(), 36);
        for case in &cells {
            assert_eq!(case.problem.batch * case.problem.q_rows, 16384);
            assert_eq!(case.problem.q_heads * case.problem.head_dim, 2048);
        }
        let scaled = axes(Some(Preset::Paper), DType::Bf16, true).cases(Given::Options).unwrap();
        assert_eq!(scaled.len(), 36);
        for (scaled, case) in scaled.iter().zip(&cells) {
            let (small, large) = (scaled.problem, case.problem);
            assert_eq!((small.q_rows * 32, small.batch, small.head_dim), (large.q_rows, large.batch, large.head_dim));
            assert_eq!((small.q_heads * 8, scaled.mask), (large.q_heads, case.mask));
        }
    }

    #[test]
    fn what_runs_on_the_emulator_is_small_and_says_so() {
        for preset in [Preset::Paper, Preset::Memory, Preset::Seqlen, Preset::Quick] {
            // The emulator does 10^8 of them in a second on one core, and there are four kernels.
            assert!(flops(preset, true) < 5e9, "{}: {:e}", preset.name(), flops(preset, true));
            assert_eq!(preset.scaled().is_some(), preset != Preset::Quick);
        }
        assert!(flops(Preset::Paper, false) > 1e13);
    }
}
