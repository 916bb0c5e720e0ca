//! Which cells a run visits.

mod listed;
mod programs;

use super::preset::{self, Preset};
use super::record::MaskName;
use super::sequences::Pages;
use super::sweep_file;
use crate::names::Named;
use crate::workload::{Case, Program};
use anyhow::{Result, bail, ensure};
use clap::Args;
use ferroflash::Sizes;
use kernel_spec::{DType, Kernel, Mask};
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

/// Which problems to run. What is left out takes the default sweep of the device.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SweepArgs {
    /// A sweep with a name; the options below replace parts of it, or choose among the cells of decode, prefill and varlen [default: on a GPU the
    /// defaults below; emulator: quick]
    #[arg(long, value_name = "NAME", ignore_case = true)]
    preset: Option<Preset>,
    /// Where the keys of decode and prefill are, comma separated: pages of so many rows, or `none` for a contiguous cache [default: none,64]
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    pages: Vec<Pages>,
    /// A sweep of one's own, in TOML; docs/benchmarking.md describes the file; - is standard input
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["preset", "pages", "dtype", "head_dim", "seq", "kv_seq", "batch", "heads", "kv_heads", "tokens", "causal", "full", "window"]
    )]
    sweep: Option<PathBuf>,
    /// Kernels of --pass forward, comma separated [default: all that the device runs]
    #[arg(long, value_delimiter = ',', value_name = "KERNEL", ignore_case = true)]
    kernel: Vec<Named<Kernel>>,
    /// Element types, comma separated [default: f16,bf16 and small f32 problems]
    #[arg(long, value_delimiter = ',', value_name = "TYPE", ignore_case = true)]
    dtype: Vec<Named<DType>>,
    /// Head dims, comma separated: multiples of 8 up to 256 [default: 64,128; emulator: 64]
    #[arg(long, value_delimiter = ',', value_name = "DIM")]
    head_dim: Vec<usize>,
    /// Sequence lengths, comma separated [default: 512 to 16384 by powers of two; emulator: 64,128,256]
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    seq: Vec<usize>,
    /// Rows of k and v [default: the sequence length]
    #[arg(long, value_name = "ROWS")]
    kv_seq: Option<usize>,
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
    /// The causal mask [default: without --causal, --full and --window, both masks]
    #[arg(long)]
    causal: bool,
    /// No mask
    #[arg(long)]
    full: bool,
    /// Windows, comma separated: the keys that a query sees before and after its own place, `all` for no bound on a side
    #[arg(long, value_delimiter = ',', value_name = "LEFT/RIGHT")]
    window: Vec<Window>,
    /// Programs on scores, comma separated: each cell is measured with each of them too, under its mask
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES", ignore_case = true)]
    program: Vec<Program>,
}

impl SweepArgs {
    /// The element types that were asked for, or these.
    pub(crate) fn dtypes_or(&self, default: &[DType]) -> Vec<DType> {
        if self.dtype.is_empty() { default.to_vec() } else { self.dtype.iter().map(|dtype| dtype.0).collect() }
    }
}

/// A window on the command line: the mask of a record without its first word.
#[derive(Clone, Copy, Debug)]
struct Window(Mask);

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Window, String> {
        let mask = format!("window {text}").parse::<MaskName>();
        mask.map(|mask| Window(mask.0))
            .map_err(|_| "two numbers of keys are expected, as in 1023/0 or all/128".to_owned())
    }
}

/// How many batch entries a cell has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Batch {
    Fixed(usize),
    /// This over the sequence length.
    Tokens(usize),
}

/// How many query heads a cell has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Heads {
    Fixed(usize),
    /// This over the head dim.
    Width(usize),
}

/// A product of sizes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axes {
    pub(crate) dtypes: Vec<DType>,
    pub(crate) masks: Vec<Mask>,
    pub(crate) head_dims: Vec<usize>,
    pub(crate) seqs: Vec<usize>,
    /// `None`: the sequence length.
    pub(crate) kv_seq: Option<usize>,
    pub(crate) batch: Batch,
    pub(crate) heads: Heads,
    /// `None`: the query heads.
    pub(crate) kv_heads: Option<usize>,
}

/// Where the numbers were given, for messages: as options, or as keys of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Given {
    Options,
    Keys,
}

impl Given {
    /// What the user wrote for the axis `key`.
    fn name(self, key: &str) -> String {
        match self {
            Given::Options => format!("--{}", key.replace('_', "-")),
            Given::Keys => key.to_owned(),
        }
    }
}

/// Kernels and cells of one run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sweep {
    /// What the record calls it.
    pub(crate) name: String,
    /// How a preset was made smaller for the emulator.
    pub(crate) scaled: Option<String>,
    /// None where the library chooses.
    pub(crate) kernels: Vec<Kernel>,
    /// Whether the kernels were named; otherwise they are all that the device runs.
    pub(crate) kernels_named: bool,
    /// Grouped by element type, mask and head dim, the sequence length running fastest.
    pub(crate) cases: Vec<Case>,
}

impl SweepArgs {
    /// The cells that these arguments ask for. `runnable` are the kernels that the device has the instructions for.
    pub(crate) fn sweep(&self, emulator: bool, runnable: &[Kernel]) -> Result<Sweep> {
        self.with_programs(self.plain(emulator, runnable)?)
    }

    fn plain(&self, emulator: bool, runnable: &[Kernel]) -> Result<Sweep> {
        let has_cache = matches!(self.preset, Some(Preset::Decode | Preset::Prefill));
        ensure!(self.pages.is_empty() || has_cache, "--pages is for --preset decode and prefill");
        if let Some(preset) = self.listed() {
            return self.choose(preset, emulator);
        }
        let named = unique("--kernel", self.kernel.iter().map(|kernel| kernel.0))?;
        if let Some(path) = &self.sweep {
            let file = sweep_file::read(path)?;
            let kernels_named = !(named.is_empty() && file.kernels.is_empty());
            let kernels = [named, file.kernels, runnable.to_vec()].into_iter().find(|kernels| !kernels.is_empty());
            let kernels = kernels.unwrap_or_default();
            let name = path.display().to_string();
            return Ok(Sweep { name, scaled: None, kernels, kernels_named, cases: file.cases });
        }
        let kernels_named = !named.is_empty();
        let kernels = if named.is_empty() { runnable.to_vec() } else { named };
        // Without a GPU there is one sweep that ends soon.
        let preset = self.preset.or(emulator.then_some(Preset::Quick).filter(|_| !self.names_cells()));
        let dtypes = unique("--dtype", self.dtype.iter().map(|dtype| dtype.0))?;
        let dtypes = if dtypes.is_empty() { preset::dtypes(preset, emulator) } else { dtypes };
        let mut cases = Vec::new();
        for dtype in dtypes {
            let axes = self.replace(preset::axes(preset, dtype, emulator))?;
            cases.extend(axes.cases(Given::Options)?);
        }
        let name = match (preset, self.names_cells()) {
            (Some(preset), false) => preset.name().to_owned(),
            (Some(preset), true) => format!("{} with options", preset.name()),
            (None, true) => "options".to_owned(),
            (None, false) => "default".to_owned(),
        };
        let scaled = preset.filter(|_| emulator).and_then(Preset::scaled).map(str::to_owned);
        Ok(Sweep { name, scaled, kernels, kernels_named, cases })
    }

    /// Whether any option changes the cells.
    fn names_cells(&self) -> bool {
        let lists = [self.head_dim.is_empty(), self.seq.is_empty(), self.dtype.is_empty()];
        let numbers = [self.kv_seq, self.batch, self.heads, self.kv_heads, self.tokens];
        lists.contains(&false) || numbers.iter().any(Option::is_some) || !self.masks().is_empty()
    }

    /// The masks that were asked for.
    fn masks(&self) -> Vec<Mask> {
        let named = [(self.full, Mask::Full), (self.causal, Mask::Causal)];
        let named = named.into_iter().filter_map(|(given, mask)| given.then_some(mask));
        named.chain(self.window.iter().map(|window| window.0)).collect()
    }

    /// What was given in the place of the default.
    fn replace(&self, default: Axes) -> Result<Axes> {
        let or = |flag, given: &[usize], default: Vec<usize>| {
            if given.is_empty() { Ok(default) } else { unique(flag, given.iter().copied()) }
        };
        Ok(Axes {
            dtypes: default.dtypes,
            masks: unique("--window", self.masks().into_iter().map(MaskName)).map(|masks| {
                if masks.is_empty() { default.masks } else { masks.into_iter().map(|mask| mask.0).collect() }
            })?,
            head_dims: or("--head-dim", &self.head_dim, default.head_dims)?,
            seqs: or("--seq", &self.seq, default.seqs)?,
            kv_seq: self.kv_seq.or(default.kv_seq),
            batch: self.batch.map(Batch::Fixed).or(self.tokens.map(Batch::Tokens)).unwrap_or(default.batch),
            heads: self.heads.map_or(default.heads, Heads::Fixed),
            kv_heads: self.kv_heads.or(default.kv_heads),
        })
    }
}

impl Axes {
    /// Every combination.
    pub(crate) fn cases(&self, given: Given) -> Result<Vec<Case>> {
        let mut cases = Vec::new();
        for &dtype in &self.dtypes {
            for &mask in &self.masks {
                for &head_dim in &self.head_dims {
                    for &seq in &self.seqs {
                        cases.push(self.case(given, dtype, mask, head_dim, seq)?);
                    }
                }
            }
        }
        Ok(cases)
    }

    fn case(&self, given: Given, dtype: DType, mask: Mask, head_dim: usize, seq: usize) -> Result<Case> {
        let name = |key| given.name(key);
        ensure!(seq > 0, "{} 0 is not accepted; a sequence has at least one row", name("seq"));
        ensure!(
            (8..=kernel_spec::MAX_HEAD_DIM as usize).contains(&head_dim) && head_dim.is_multiple_of(8),
            "{} {head_dim} is not accepted; kernels take the multiples of 8 from 8 to {}",
            name("head_dim"),
            kernel_spec::MAX_HEAD_DIM
        );
        let kv_rows = self.kv_seq.unwrap_or(seq);
        ensure!(kv_rows > 0, "{} 0 is not accepted; without keys there is nothing to measure", name("kv_seq"));
        check_mask(mask, seq, kv_rows, &name("kv_seq"))?;
        let batch = match self.batch {
            Batch::Fixed(batch) => {
                ensure!(batch > 0, "{} 0 is not accepted; at least 1 is needed", name("batch"));
                batch
            }
            Batch::Tokens(tokens) => {
                ensure!(
                    tokens > 0 && tokens.is_multiple_of(seq),
                    "{tokens} tokens are no whole number of sequences of {seq} rows; give {} or {}",
                    name("batch"),
                    name("tokens")
                );
                tokens / seq
            }
        };
        let q_heads = match self.heads {
            Heads::Fixed(heads) => {
                ensure!(heads > 0, "{} 0 is not accepted; at least 1 is needed", name("heads"));
                heads
            }
            Heads::Width(width) => {
                ensure!(
                    width > 0 && width.is_multiple_of(head_dim),
                    "the number of heads, {width} over the head dim, is not whole for {} {head_dim}; give {}",
                    name("head_dim"),
                    name("heads")
                );
                width / head_dim
            }
        };
        let kv_heads = self.kv_heads.unwrap_or(q_heads);
        ensure!(
            kv_heads > 0 && q_heads.is_multiple_of(kv_heads),
            "{q_heads} query heads cannot share {kv_heads} key-value heads; {} takes a divisor of {}",
            name("kv_heads"),
            name("heads")
        );
        let problem = Sizes { batch, q_rows: seq, kv_rows, q_heads, kv_heads, head_dim, dtype };
        Ok(Case::new(problem, mask))
    }
}

/// Refuses masks that are another by a second name, and those with which some rows see no key. `kv_seq` is what the user wrote for it.
fn check_mask(mask: Mask, seq: usize, kv_rows: usize, kv_seq: &str) -> Result<()> {
    let name = MaskName(mask);
    let keys_after = match mask {
        Mask::Causal => 0,
        Mask::Window { left: None, right: None } => bail!("{name} is not accepted; it hides nothing: say full"),
        Mask::Window { left: None, right: Some(0) } => {
            bail!("{name} is not accepted; it is the causal mask: say causal")
        }
        Mask::Window { right: Some(right), .. } => right as usize,
        _ => return Ok(()),
    };
    // Masks end at the last key, so that rows of q before the first one's place see none.
    ensure!(
        kv_rows.saturating_add(keys_after) >= seq,
        "{kv_seq} {kv_rows} is not accepted with {} and {seq} rows of q; it takes at least {} keys",
        name.title(),
        seq - keys_after
    );
    Ok(())
}

/// The values in their order; one that comes twice is a mistake in the command.
pub(crate) fn unique<T: PartialEq + Display>(name: &str, values: impl Iterator<Item = T>) -> Result<Vec<T>> {
    let mut seen = Vec::new();
    for value in values {
        ensure!(!seen.contains(&value), "{name} names {value} twice");
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
            let mut args = SweepArgs { dtype: vec![Named(DType::F16)], ..SweepArgs::default() };
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
        assert!(args(|a| a.kv_seq = Some(0)).unwrap_err().contains("--kv-seq 0"));
        assert!(args(|a| a.kv_seq = Some(600)).unwrap_err().contains("--kv-seq 600"));
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

    #[test]
    fn windows_are_masks_beside_the_others() {
        let args = |windows: &[&str], causal, kv_seq| SweepArgs {
            window: windows.iter().map(|window| window.parse().unwrap()).collect(),
            dtype: vec![Named(DType::F16)],
            head_dim: vec![64],
            seq: vec![512],
            causal,
            kv_seq,
            ..SweepArgs::default()
        };
        let masks = |args: SweepArgs| {
            args.sweep(true, &[Kernel::V2]).unwrap().cases.iter().map(|case| case.mask).collect::<Vec<_>>()
        };
        let window = |left, right| Mask::Window { left, right };
        assert_eq!(masks(args(&["127/0", "all/3"], false, None)), [window(Some(127), Some(0)), window(None, Some(3))]);
        assert_eq!(masks(args(&["5/all"], true, Some(512))), [Mask::Causal, window(Some(5), None)]);
        // Rows of q before the first key are as many as the window sees behind a place.
        assert_eq!(masks(args(&["9/12"], false, Some(500))), [window(Some(9), Some(12))]);
        let error = |args: SweepArgs| args.sweep(true, &[Kernel::V2]).unwrap_err().to_string();
        assert!(error(args(&["9/11"], false, Some(500))).contains("--kv-seq 500 is not accepted with window 9/11"));
        assert!(error(args(&["9/0", "9/0"], false, None)).contains("--window names window 9/0 twice"));
        assert!(error(args(&["all/0"], false, None)).contains("say causal"));
        assert!(error(args(&["all/all"], false, None)).contains("say full"));
        for wrong in ["", "9", "9/", "-1/0", "9/0/0"] {
            assert!(wrong.parse::<Window>().unwrap_err().contains("1023/0"), "{wrong}");
        }
    }

    #[test]
    fn options_replace_parts_of_a_preset() {
        let args = SweepArgs { preset: Some(Preset::Paper), head_dim: vec![128], ..SweepArgs::default() };
        let sweep = args.sweep(false, &[Kernel::V2]).unwrap();
        assert_eq!((sweep.name.as_str(), sweep.cases.len()), ("paper with options", 12));
        assert!(sweep.cases.iter().all(|case| case.problem.q_heads == 16 && case.problem.dtype == DType::Bf16));
    }

    #[test]
    fn the_sweep_without_arguments_is_quick_on_the_emulator_alone() {
        let name = |emulator| SweepArgs::default().sweep(emulator, &[Kernel::V2]).unwrap().name;
        assert_eq!((name(true).as_str(), name(false).as_str()), ("quick", "default"));
    }
}
