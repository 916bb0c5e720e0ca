//! Presets that list their cells: options choose among them.

use super::super::preset::Preset;
use super::super::sequences::{self, DEFAULT_PAGES};
use super::{Sweep, SweepArgs, unique};
use crate::workload::Case;
use anyhow::{Result, ensure};
use kernel_spec::DType;

impl SweepArgs {
    /// The preset, if it is one of these.
    pub(super) fn listed(&self) -> Option<Preset> {
        self.preset.filter(|preset| matches!(preset, Preset::Decode | Preset::Prefill | Preset::Varlen))
    }

    /// The cells of such a preset that have what the options name.
    pub(super) fn choose(&self, preset: Preset, emulator: bool) -> Result<Sweep> {
        let refused = [
            ("--kernel", self.kernel.is_empty()),
            ("--tokens", self.tokens.is_none()),
            ("--causal, --full and --window", self.masks().is_empty()),
        ];
        for (option, absent) in refused {
            ensure!(
                absent,
                "{option} with --preset {} is not accepted: its cells are causal, their sizes are listed, and the library chooses \
                 the kernels",
                preset.name()
            );
        }
        let pages = unique("--pages", self.pages.iter().copied())?;
        let dtypes = unique("--dtype", self.dtype.iter().map(|dtype| dtype.0))?;
        let dtypes = if dtypes.is_empty() { vec![DType::Bf16] } else { dtypes };
        let pages = if pages.is_empty() { &DEFAULT_PAGES[..] } else { &pages };
        let all = dtypes.into_iter().flat_map(|dtype| match preset {
            Preset::Decode => sequences::decode(dtype, pages, emulator),
            Preset::Prefill => sequences::prefill(dtype, pages, emulator),
            _ => sequences::varlen(dtype, emulator),
        });
        let cases: Vec<Case> = all.filter(|case| self.wants(case)).collect();
        ensure!(!cases.is_empty(), "no cell of --preset {} has all of what the options name", preset.name());
        let (name, named) = (preset.name(), self.names_cells() || !self.pages.is_empty());
        Ok(Sweep {
            name: if named { format!("{name} with options") } else { name.to_owned() },
            scaled: preset.scaled().filter(|_| emulator).map(str::to_owned),
            kernels: Vec::new(),
            kernels_named: false,
            cases,
        })
    }

    fn wants(&self, case: &Case) -> bool {
        let one_of = |wanted: &[usize], size| wanted.is_empty() || wanted.contains(&size);
        let is = |wanted: Option<usize>, size| wanted.is_none_or(|wanted| wanted == size);
        let problem = &case.problem;
        one_of(&self.head_dim, problem.head_dim)
            && one_of(&self.seq, problem.q_rows)
            && is(self.kv_seq, problem.kv_rows)
            && is(self.batch, case.sequences())
            && is(self.heads, problem.q_heads)
            && is(self.kv_heads, problem.kv_heads)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sequences::Pages;
    use super::*;
    use crate::names::Named;
    use crate::workload::Rows;
    use kernel_spec::Kernel;

    fn sweep(change: impl FnOnce(&mut SweepArgs)) -> Result<Sweep> {
        let mut args = SweepArgs { preset: Some(Preset::Decode), ..SweepArgs::default() };
        change(&mut args);
        args.sweep(false, &Kernel::ALL)
    }

    #[test]
    fn options_choose_among_the_cells() {
        let all = sweep(|_| {}).unwrap();
        assert_eq!((all.name.as_str(), all.cases.len(), all.kernels.len()), ("decode", 28, 0));
        let one = sweep(|args| {
            (args.batch, args.kv_seq) = (Some(1), Some(8192));
            args.pages = vec![Pages::Of(16.try_into().unwrap())];
        });
        let one = one.unwrap();
        assert_eq!(
            (one.name.as_str(), one.cases.len(), one.cases[0].rows),
            ("decode with options", 1, Rows::Pages(16))
        );
        let f16 = sweep(|args| args.dtype = vec![Named(DType::F16)]).unwrap();
        assert!(f16.cases.iter().all(|case| case.problem.dtype == DType::F16));
        // Sequences count, although packed ones have one batch entry.
        let packed = sweep(|args| (args.preset, args.batch) = (Some(Preset::Varlen), Some(96))).unwrap();
        assert_eq!(packed.cases.len(), 2);
    }

    #[test]
    fn what_no_cell_has_is_an_error() {
        let error = |change: fn(&mut SweepArgs)| sweep(change).unwrap_err().to_string();
        assert!(error(|args| args.batch = Some(7)).contains("no cell of --preset decode"));
        assert!(error(|args| args.kernel = vec![Named(Kernel::V2)]).contains("--kernel with --preset decode"));
        assert!(error(|args| args.full = true).contains("--causal, --full and --window with --preset decode"));
        assert!(error(|args| args.pages = vec![Pages::None; 2]).contains("--pages names none twice"));
        let pages =
            |preset| sweep(|args| (args.preset, args.pages) = (preset, vec![Pages::None])).unwrap_err().to_string();
        for preset in [None, Some(Preset::Paper), Some(Preset::Varlen)] {
            assert!(pages(preset).contains("--pages is for --preset decode and prefill"), "{preset:?}");
        }
    }
}
