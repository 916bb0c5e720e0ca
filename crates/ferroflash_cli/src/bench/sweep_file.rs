//! A sweep of one's own, read from TOML.
//!
//! ```toml
//! kernels = ["v2", "v3"]          # default: all that the device runs
//!
//! [[group]]                       # as many as wanted; each is the product of its lists
//! dtype = ["bf16", "f16"]
//! head_dim = [64, 128]
//! mask = ["full", "window 127/0"] # or "causal"; default: full and causal
//! seq = [1024, 4096]
//! kv_seq = 8192                   # default: seq
//! tokens = 16384                  # or batch = 4; default: batch = 1
//! width = 2048                    # or heads = 16; default: width = 2048
//! kv_heads = 8                    # default: as many as there are query heads
//! ```

use super::record::MaskName;
use super::sweep::{Axes, Batch, Given, Heads, unique};
use crate::files;
use crate::names::Named;
use crate::workload::Case;
use anyhow::{Context, Result, bail, ensure};
use kernel_spec::{DType, Kernel, Mask};
use serde::Deserialize;
use std::path::Path;
use toml::Spanned;

/// Model width when a group gives neither heads nor width: that of the FlashAttention papers.
const DEFAULT_WIDTH: usize = 2048;

/// Kernels, if the file names some, and cells.
#[derive(Debug)]
pub(crate) struct SweepFile {
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    kernels: Vec<Named<Kernel>>,
    #[serde(default)]
    group: Vec<Spanned<Group>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    dtype: Vec<Named<DType>>,
    head_dim: Vec<usize>,
    #[serde(default = "both_masks")]
    mask: Vec<MaskName>,
    seq: Vec<usize>,
    kv_seq: Option<usize>,
    tokens: Option<usize>,
    batch: Option<usize>,
    width: Option<usize>,
    heads: Option<usize>,
    kv_heads: Option<usize>,
}

fn both_masks() -> Vec<MaskName> {
    vec![MaskName(Mask::Full), MaskName(Mask::Causal)]
}

/// Reads a sweep file.
///
/// # Errors
/// A file that cannot be read; with the line, what is no TOML, no sweep, or asks for a cell that cannot be.
pub(crate) fn read(path: &Path) -> Result<SweepFile> {
    parse(&files::read_to_string("--sweep", path)?, &files::read_name(path))
}

fn parse(text: &str, name: &str) -> Result<SweepFile> {
    let line_of = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
    let file: File = match toml::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            let line = error.span().map(|span| format!(":{}", line_of(span.start))).unwrap_or_default();
            bail!("{name}{line}: {}", error.message());
        }
    };
    let kernels =
        unique("kernels", file.kernels.into_iter().map(|kernel| kernel.0)).with_context(|| name.to_owned())?;
    ensure!(!file.group.is_empty(), "{name}: there is no [[group]], so there is nothing to measure");
    let mut cases: Vec<Case> = Vec::new();
    for group in file.group {
        let place = format!("{name}:{}: in this group", line_of(group.span().start));
        let found = group.into_inner().axes().and_then(|axes| axes.cases(Given::Keys)).context(place.clone())?;
        for case in found {
            ensure!(!cases.contains(&case), "{place}: {} comes a second time", super::measure::cell_problem(&case));
            cases.push(case);
        }
    }
    Ok(SweepFile { kernels, cases })
}

impl Group {
    fn axes(self) -> Result<Axes> {
        for (key, empty) in [
            ("dtype", self.dtype.is_empty()),
            ("head_dim", self.head_dim.is_empty()),
            ("mask", self.mask.is_empty()),
            ("seq", self.seq.is_empty()),
        ] {
            ensure!(!empty, "{key} is an empty list, so there is nothing to measure");
        }
        Ok(Axes {
            dtypes: unique("dtype", self.dtype.into_iter().map(|dtype| dtype.0))?,
            masks: unique("mask", self.mask.into_iter())?.into_iter().map(|mask| mask.0).collect(),
            head_dims: unique("head_dim", self.head_dim.into_iter())?,
            seqs: unique("seq", self.seq.into_iter())?,
            kv_seq: self.kv_seq,
            batch: match (self.batch, self.tokens) {
                (Some(_), Some(_)) => bail!("batch and tokens are both given; one of them decides the other"),
                (Some(batch), None) => Batch::Fixed(batch),
                (None, Some(tokens)) => Batch::Tokens(tokens),
                (None, None) => Batch::Fixed(1),
            },
            heads: match (self.heads, self.width) {
                (Some(_), Some(_)) => bail!("heads and width are both given; one of them decides the other"),
                (Some(heads), None) => Heads::Fixed(heads),
                (None, width) => Heads::Width(width.unwrap_or(DEFAULT_WIDTH)),
            },
            kv_heads: self.kv_heads,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_read() {
        let docs = include_str!("../../../../docs/benchmarking.md");
        let example = docs.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
        let file = parse(example, "f").unwrap();
        assert_eq!(file.kernels, [Kernel::V2, Kernel::V3]);
        // Two types, two head dims, two masks and two lengths; then a group that takes the defaults.
        assert_eq!(file.cases.len(), 2 * 2 * 2 * 2 + 2);
        let first = file.cases[0].problem;
        assert_eq!((first.batch, first.q_heads, first.kv_heads, first.kv_rows), (16, 32, 8, 8192));
        let last = file.cases[17].problem;
        assert_eq!((last.batch, last.q_heads, last.kv_heads, last.kv_rows), (1, 16, 16, 2048));
    }

    #[test]
    fn errors_name_the_line() {
        let message = |text: &str| format!("{:#}", parse(text, "s.toml").unwrap_err());
        let group = "[[group]]\ndtype = [\"bf16\"]\nhead_dim = [64]\nseq = [512]\n";
        assert!(parse(group, "s.toml").is_ok());
        assert!(message("kernels = [\n").starts_with("s.toml:"), "{}", message("kernels = [\n"));
        let typo = message("kernels = [\"v2\"]\n[[groups]]\n");
        assert!(typo.contains("s.toml:2") && typo.contains("groups"), "{typo}");
        let kernel = message(&format!("kernels = [\"v9\"]\n{group}"));
        assert!(kernel.contains("s.toml:1") && kernel.contains("v9"), "{kernel}");
        let unknown = message(&format!("{group}rows = 3\n"));
        assert!(unknown.contains("s.toml:5") && unknown.contains("rows"), "{unknown}");
        let kind = message(&group.replace("[512]", "512"));
        assert!(kind.contains("s.toml:4") && kind.contains("sequence"), "{kind}");
        let dim = message(&format!("\n\n{}", group.replace("[64]", "[12]")));
        assert!(dim.contains("s.toml:3: in this group") && dim.contains("head_dim 12 is not accepted"), "{dim}");
        let twice = message(&format!("{group}{group}"));
        assert!(twice.contains("s.toml:5: in this group") && twice.contains("a second time"), "{twice}");
        let masks = message(&format!("{group}mask = [\"full\", \"full\"]\n"));
        assert!(masks.contains("s.toml:1: in this group: mask names full twice"), "{masks}");
        assert!(message(&format!("{group}batch = 1\ntokens = 512\n")).contains("both given"));
        assert!(message(&format!("{group}heads = 1\nwidth = 512\n")).contains("both given"));
        assert!(message(&group.replace("[64]", "[]")).contains("head_dim is an empty list"));
        assert!(message(&format!("{group}mask = [\"window 1\"]\n")).contains("`window LEFT/RIGHT`"));
        let window = parse(&format!("{group}mask = [\"window 127/0\"]\n"), "s.toml").unwrap();
        assert_eq!(window.cases[0].mask, Mask::Window { left: Some(127), right: Some(0) });
        for nothing in ["", "group = []\n", "kernels = [\"v2\"]\n"] {
            assert!(message(nothing).contains("no [[group]]"), "{nothing}: {}", message(nothing));
        }
    }
}
