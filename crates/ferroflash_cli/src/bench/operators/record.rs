//! The record of a run of operators, as `--json` writes it and the page of results reads it.

use crate::bench::record::{Environment, file};
use crate::bench::stats::Quartiles;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What `kind` says in a record of `ferroflash bench --operator`.
pub(crate) const OPERATORS_KIND: &str = "ferroflash operators";

/// Version of the record; it grows when a field changes its meaning or goes away.
pub(in crate::bench) const OPERATORS_VERSION: u32 = 1;

/// How results of ours are called; all others are peers.
pub(crate) const OURS: &str = "ferroflash";

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OperatorRecord {
    /// [`OPERATORS_KIND`].
    pub(crate) kind: String,
    /// [`OPERATORS_VERSION`].
    pub(crate) schema_version: u32,
    pub(crate) environment: Environment,
    /// What a launch finds in the cache, how samples are taken, and what bytes count.
    pub(crate) method: String,
    pub(crate) seed: u64,
    pub(crate) cells: Vec<OperatorCell>,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OperatorCell {
    pub(crate) operator: String,
    pub(crate) pass: String,
    pub(crate) dtype: String,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Of a list of tensors, which are `rows` of `columns` elements together: whose they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    /// Of dense layers: numbers that are summed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) depth: Option<usize>,
    /// Of dense layers: multiplications and additions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operations: Option<u64>,
    /// Of all tensors, each counted once.
    pub(crate) bytes: u64,
    /// Ours first, then peers.
    pub(crate) results: Vec<OperatorResult>,
}

/// One implementation on one problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct OperatorResult {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    pub(crate) symbols: Vec<String>,
    pub(crate) workspace_bytes: Option<u64>,
    /// Largest error, and what is accepted of it, of the result that comes nearest to that; JSON has no infinity, and an error of `null` beside a bound
    /// is one.
    pub(crate) max_error: Option<f64>,
    pub(crate) bound: Option<f64>,
    pub(crate) samples_ms: Vec<f64>,
    pub(crate) time_ms: Option<Quartiles>,
    pub(crate) bytes_per_second: Option<f64>,
    pub(crate) skipped: Option<String>,
}

impl OperatorRecord {
    /// Reads a record, from the file that `flag` names.
    ///
    /// # Errors
    /// As [`Record::read`](crate::bench::record::Record::read).
    pub(crate) fn read(flag: &str, path: &Path) -> Result<OperatorRecord> {
        file::read(flag, path, OPERATORS_KIND, OPERATORS_VERSION)
    }

    /// Writes the record, all of it or nothing.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        file::write(self, path)
    }
}

impl OperatorCell {
    /// The result of this implementation.
    pub(crate) fn result(&self, name: &str) -> Option<&OperatorResult> {
        self.results.iter().find(|result| result.name == name)
    }

    /// Operations a second of a result, of a product.
    pub(crate) fn flops(&self, result: &OperatorResult) -> Option<f64> {
        Some(self.operations? as f64 / (result.time_ms?.median * 1e-3))
    }

    /// The time of the fastest peer whose result is right over ours: above 1, ours is faster.
    pub(crate) fn ratio_to_best_peer(&self) -> Option<f64> {
        let peers = self.results.iter().filter(|result| result.name != OURS && result.is_right());
        let best = peers.filter_map(|peer| Some(peer.time_ms?.median)).min_by(f64::total_cmp)?;
        Some(best / self.result(OURS)?.time_ms?.median)
    }
}

impl OperatorResult {
    pub(crate) fn new(name: &str) -> OperatorResult {
        OperatorResult { name: name.to_owned(), ..OperatorResult::default() }
    }

    /// Whether its error is one that is accepted.
    pub(crate) fn is_right(&self) -> bool {
        self.max_error.zip(self.bound).is_some_and(|(error, bound)| error <= bound)
    }
}
