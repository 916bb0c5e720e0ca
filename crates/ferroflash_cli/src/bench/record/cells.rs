//! Cells of a record: how they are named, found, added and judged.

use super::{Cell, CellProblem, Check, Measurement, Noise, NoisePair, Record};
use std::collections::BTreeMap;

impl Measurement {
    /// An implementation of which nothing is known yet.
    pub(crate) fn new(name: impl Into<String>, peer: bool) -> Measurement {
        Measurement {
            name: name.into(),
            peer,
            version: None,
            skipped: None,
            symbols: Vec::new(),
            launches: None,
            graph: false,
            samples_ms: Vec::new(),
            time_ms: None,
            tflops: None,
            kv_bytes_per_second: None,
            splits: None,
            first_result_ms: None,
            second_result_ms: None,
            speedup_over_naive: None,
            ratio_to_best_peer: None,
            bound_fraction: None,
            extra_bytes: None,
            saved_percent: None,
            counters: BTreeMap::new(),
            check: None,
        }
    }

    /// Name and version, as a table shows them.
    pub(crate) fn title(&self) -> String {
        self.version.as_ref().map_or_else(|| self.name.clone(), |version| format!("{} {version}", self.name))
    }
}

impl Cell {
    /// The result of the implementation called `name`.
    pub(crate) fn result(&self, name: &str) -> Option<&Measurement> {
        self.results.iter().find(|result| result.name == name)
    }
}

impl Record {
    /// Adds a cell in the order of the sweep.
    pub(crate) fn insert(&mut self, cell: Cell, pair: Option<NoisePair>) {
        self.cells.push(cell);
        let problems = &self.sweep.problems;
        self.cells.sort_by_key(|cell| problems.iter().position(|problem| *problem == cell.problem));
        if let Some(pair) = pair {
            let noise = self.noise.get_or_insert(Noise { floor_percent: 0.0, pairs: Vec::new() });
            noise.floor_percent = noise.floor_percent.max(pair.difference_percent);
            noise.pairs.push(pair);
            noise.pairs.sort_by_key(|pair| problems.iter().position(|problem| *problem == pair.problem));
        }
    }

    /// How many results of ours were compared, and the wrong ones as `problem: kernel`. A peer's error is shown, not judged.
    pub(crate) fn verdict(&self) -> (usize, Vec<String>) {
        let ours = |cell: &'_ Cell| -> Vec<(String, Check)> {
            let results = cell.results.iter().filter(|result| !result.peer);
            results.filter_map(|result| Some((result.name.clone(), result.check.clone()?))).collect()
        };
        let mut count = 0;
        let mut wrong = Vec::new();
        for cell in &self.cells {
            for (name, check) in ours(cell) {
                count += 1;
                if !check.within {
                    wrong.push(format!("{}: {name}", cell.problem));
                }
            }
        }
        (count, wrong)
    }
}

impl std::fmt::Display for CellProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CellProblem { dtype, head_dim, mask, seq, kv_seq, batch, q_heads, kv_heads, sequences, program } = self;
        write!(f, "{dtype} {mask} head_dim {head_dim} seq {seq}")?;
        if kv_seq != seq {
            write!(f, "/{kv_seq}")?;
        }
        write!(f, " batch {batch} heads {q_heads}")?;
        if kv_heads != q_heads {
            write!(f, "/{kv_heads}")?;
        }
        sequences.iter().chain(program).try_for_each(|more| write!(f, " {more}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn cells_come_in_the_order_of_the_sweep() {
        let cell = |seq| samples::sample_cell("bf16", seq, &[("v2", 1.0)]);
        let mut record = samples::sample("GPU", "cuda", vec![cell(64), cell(128), cell(256)]);
        let cells = std::mem::take(&mut record.cells);
        let pair = |seq, difference_percent| {
            let problem = cell(seq).problem;
            Some(NoisePair { problem, kernel: "v2".to_owned(), a_ms: vec![], b_ms: vec![], difference_percent })
        };
        record.insert(cells[2].clone(), pair(256, 0.5));
        record.insert(cells[0].clone(), pair(64, 2.0));
        record.insert(cells[1].clone(), None);
        assert_eq!(record.cells, cells);
        let noise = record.noise.unwrap();
        assert_eq!((noise.floor_percent, noise.pairs[0].problem.seq), (2.0, 64));
    }
}
