//! Programs on scores beside the cells of a sweep.

use super::{Sweep, SweepArgs, unique};
use crate::workload::Case;
use anyhow::{Result, bail, ensure};

impl SweepArgs {
    /// Puts a cell with each program that was asked for behind every cell, which stays for comparison.
    pub(super) fn with_programs(&self, sweep: Sweep) -> Result<Sweep> {
        let programs = unique("--program", self.program.iter().copied())?;
        if programs.is_empty() {
            return Ok(sweep);
        }
        if let Some(preset) = self.listed() {
            let name = preset.name();
            bail!("--program is not accepted with --preset {name}; it is measured on sequences of equal rows");
        }
        for case in &sweep.cases {
            // Before the first key a row has no neighbours.
            ensure!(
                case.problem.kv_rows >= case.problem.q_rows,
                "--kv-seq {} is not accepted with --program and {} rows of q; it takes at least as many keys",
                case.problem.kv_rows,
                case.problem.q_rows
            );
        }
        let beside = |case: Case| {
            let with = programs.iter().map(move |&program| Case { program: Some(program), ..case });
            std::iter::once(case).chain(with)
        };
        let cases = sweep.cases.iter().flat_map(|&case| beside(case)).collect();
        Ok(Sweep { name: format!("{} with programs", sweep.name), cases, ..sweep })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::preset::Preset;
    use super::*;
    use crate::names::Named;
    use crate::workload::Program;
    use kernel_spec::{DType, Kernel};

    fn args() -> SweepArgs {
        let program = vec![Program::Alibi, Program::Documents];
        SweepArgs {
            program,
            dtype: vec![Named(DType::F16)],
            head_dim: vec![64],
            seq: vec![512],
            ..SweepArgs::default()
        }
    }

    #[test]
    fn every_cell_has_its_plain_one_before_it() {
        let sweep = args().sweep(true, &[Kernel::V2]).unwrap();
        let programs: Vec<_> = sweep.cases.iter().map(|case| case.program).collect();
        // With both masks.
        assert_eq!(programs, [None, Some(Program::Alibi), Some(Program::Documents)].repeat(2));
        assert_eq!(sweep.name, "options with programs");
        let plain = SweepArgs { program: Vec::new(), ..args() }.sweep(true, &[Kernel::V2]).unwrap();
        assert!(plain.cases.iter().all(|case| case.program.is_none()) && plain.name == "options");
    }

    #[test]
    fn what_has_no_program_is_refused() {
        let error = |change: fn(&mut SweepArgs)| {
            let mut args = args();
            change(&mut args);
            args.sweep(true, &[Kernel::V2]).unwrap_err().to_string()
        };
        assert!(error(|args| args.program = vec![Program::Alibi; 2]).contains("--program names alibi twice"));
        let fewer = error(|args| (args.kv_seq, args.full) = (Some(500), true));
        assert!(fewer.contains("--kv-seq 500 is not accepted with --program and 512 rows"), "{fewer}");
        let listed = SweepArgs { program: args().program, preset: Some(Preset::Decode), ..SweepArgs::default() };
        let listed = listed.sweep(true, &[Kernel::V2]).unwrap_err().to_string();
        assert!(listed.contains("--program is not accepted with --preset decode"), "{listed}");
    }
}
