//! What the two processes say to each other: one JSON object a line.
//!
//! ```text
//!                                                {"hello": {"versions": {"torch": "2.11.0", ..},
//!                                                           "peers": {"cudnn": {"version": "9.19.0"}, "fa3": {"missing": "why"}}}}
//!                                                or {"unavailable": "why"}
//! {"prepare": {"folder": "..", "dtype": "bf16", .., "sets": 1, "flush_bytes": 0}}           {"prepared": true}
//! {"check": {"peer": "cudnn", "out": "FILE"}}                {"checked": {"extra_bytes": 0, "graph": true}}
//! {"time": {"peer": "cudnn", "launches": 10, "lead": false}} {"ms": 7.3}            of all launches together
//! {"verify": {"peer": "cudnn"}}                              {"verified": true}     what was timed gives what was checked
//! {"matmul": {"dtype": "bf16", "size": 8192, "launches": 3}} {"ms": 4.2}            of all products together
//! {"trim": true}                                             {"trimmed": true}      kept memory goes back to the driver
//! {"release": true}                                          {"released": true}     the tensors too
//! ```
//! What a peer cannot do is answered with `{"skipped": "why"}`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request<'a> {
    Prepare(Prepare),
    Check { peer: &'a str, out: PathBuf },
    Time { peer: &'a str, launches: u32, lead: bool },
    Verify { peer: &'a str },
    Matmul { dtype: &'a str, size: usize, launches: u32 },
    Trim(bool),
    Release(bool),
}

/// A problem, and where its inputs lie.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Prepare {
    /// Holds the files `q`, `k` and `v`.
    pub(super) folder: PathBuf,
    pub(super) dtype: String,
    pub(super) head_dim: usize,
    pub(super) seq: usize,
    pub(super) kv_seq: usize,
    pub(super) batch: usize,
    pub(super) q_heads: usize,
    pub(super) kv_heads: usize,
    /// Keys that a row sees before its own place, counted from the last row and the last key; `None`: all of them.
    pub(super) window_left: Option<u32>,
    /// The same after its own place: 0 with the causal mask.
    pub(super) window_right: Option<u32>,
    /// Copies of the tensors that launches go round.
    pub(super) sets: u64,
    /// Bytes that are written between two launches.
    pub(super) flush_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Hello { versions: BTreeMap<String, String>, peers: BTreeMap<String, Import> },
    Unavailable(String),
    Prepared(bool),
    Checked { extra_bytes: u64, graph: bool },
    Ms(f64),
    Verified(bool),
    Trimmed(bool),
    Released(bool),
    Skipped(String),
}

/// What became of the import of a peer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Import {
    Version(String),
    Missing(String),
}
