//! What the two processes say to each other: one JSON object a line.
//!
//! ```text
//!                                                {"hello": {"versions": {"torch": "2.11.0", ..},
//!                                                           "peers": {"cudnn": {"version": "9.19.0"}, "fa3": {"missing": "why"}}}}
//!                                                or {"unavailable": "why"}
//! {"prepare": {"folder": "..", "pass": "forward", .., "sets": 1, "flush_bytes": 0}}         {"prepared": true}
//! {"prepare_rows": {"folder": "..", "operator": "rmsnorm", .., "sets": 3}}            {"prepared": true}
//! {"check": {"peer": "cudnn", "out": "FILE"}}                {"checked": {"extra_bytes": 0, "graph": true,
//!                                                                        "first_ms": 900.5, "second_ms": 0.4}}
//!                                                            FILE is the output, FILE.dq, FILE.dk and FILE.dv are gradients,
//!                                                            of rows FILE.dx, FILE.dweight and FILE.dbias
//! {"time": {"peer": "cudnn", "launches": 10, "lead": false}} {"ms": 7.3}            of all launches together
//! {"verify": {"peer": "cudnn"}}                              {"verified": true}     what was timed gives what was checked
//! {"matmul": {"dtype": "bf16", "size": 8192, "launches": 3}} {"ms": 4.2}            of all products together
//! {"read": {"bytes": 1073741824, "launches": 3}}             {"ms": 0.8}            of all sums together
//! {"trim": true}                                             {"trimmed": true}      kept memory goes back to the driver
//! {"release": true}                                          {"released": true}     the tensors too
//! ```
//! What a peer cannot do is answered with `{"skipped": "why"}`.

use super::Outcome;
use crate::workload::{Case, L2, Pass, Program, Rows};
use ferroflash::{Mask, Sizes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request<'a> {
    Prepare(Box<Prepare>),
    PrepareRows(RowsProblem),
    Check { peer: &'a str, out: PathBuf },
    Time { peer: &'a str, launches: u32, lead: bool },
    Verify { peer: &'a str },
    Matmul { dtype: &'a str, size: usize, launches: u32 },
    Read { bytes: u64, launches: u32 },
    Trim(bool),
    Release(bool),
}

/// A problem, and where its inputs lie.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Prepare {
    /// Holds the files `q`, `k` and `v`; for a backward pass also `dout`, for launches that are timed, and `checked_dout`, for those that
    /// are compared with the reference.
    pub(super) folder: PathBuf,
    pub(super) pass: Pass,
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
    /// Launches of one graph.
    pub(super) calls: u32,
    /// Where the rows are; nothing of equal sequences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sequences: Option<Sequences>,
    /// What scores pass through, if there is something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) program: Option<ProgramOf>,
}

/// A problem of an operator, and where its inputs lie.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RowsProblem {
    /// Holds a file for each input.
    pub(crate) folder: PathBuf,
    pub(crate) operator: &'static str,
    pub(crate) pass: &'static str,
    pub(crate) inputs: Vec<RowsInput>,
    /// What else the operator has, by name.
    pub(crate) numbers: BTreeMap<&'static str, f64>,
    /// Copies of the tensors that launches go round.
    pub(crate) sets: usize,
}

/// A tensor in a file of its name.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RowsInput {
    pub(crate) name: &'static str,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    /// Whether each launch has its own.
    pub(crate) own: bool,
    /// Whether a backward pass gives the gradient with respect to it.
    pub(crate) differentiated: bool,
}

/// A program on scores; `docs/benchmarking.md` says what each computes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ProgramOf {
    name: &'static str,
    /// Bound of the scores in a softcap.
    cap: f32,
    /// Whole numbers that it has, by name.
    numbers: BTreeMap<&'static str, usize>,
    /// Type, `f32` or `i32`, and shape of the tensor in the file `program`; `None` where it reads none.
    tensor: Option<(&'static str, Vec<usize>)>,
}

impl ProgramOf {
    fn new(program: Program, sizes: &Sizes) -> ProgramOf {
        ProgramOf {
            name: program.peer_name(),
            cap: program.cap(),
            numbers: program.numbers(sizes.kv_rows).into_iter().collect(),
            tensor: program.tensor(sizes),
        }
    }
}

/// Which rows are whose.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Sequences {
    /// k and v are `[batch, row, head, dim]`; `lengths` is the file of the rows in use.
    Cache,
    /// k and v are `[page, row, head, dim]` with so many rows; `pages` is the file of the pages of the sequences, and `lengths` as above.
    Pages(usize),
    /// q, k and v have one batch entry; `starts` is the file of the first rows of the sequences, and the end of the last.
    Packed {
        /// How many there are.
        sequences: usize,
        /// Rows of the longest.
        longest: usize,
    },
}

impl Prepare {
    /// The problem of `case`, whose inputs are in `folder`; a mask that the protocol has no words for is the reason for none.
    pub(super) fn new(case: &Case, pass: Pass, folder: &Path, l2: L2, l2_bytes: u64, calls: u32) -> Outcome<Prepare> {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = case.problem;
        let (window_left, window_right) = match case.mask {
            Mask::Full => (None, None),
            Mask::Causal => (None, Some(0)),
            Mask::Window { left, right } => (left, right),
            other => return Err(format!("the peers do not know {other:?}")),
        };
        Ok(Prepare {
            folder: folder.to_owned(),
            pass,
            dtype: dtype.name().to_owned(),
            head_dim,
            seq: q_rows,
            kv_seq: kv_rows,
            batch,
            q_heads,
            kv_heads,
            window_left,
            window_right,
            sets: if l2 == L2::Rotate { case.rotated_sets(l2_bytes) } else { 1 },
            flush_bytes: if l2 == L2::Flush { 2 * l2_bytes } else { 0 },
            calls,
            sequences: match case.rows {
                Rows::Equal => None,
                Rows::Cache => Some(Sequences::Cache),
                Rows::Pages(rows) => Some(Sequences::Pages(rows)),
                Rows::Packed(lengths) => {
                    Some(Sequences::Packed { sequences: lengths.rows.len(), longest: lengths.longest() })
                }
            },
            program: case.program.map(|program| ProgramOf::new(program, &case.problem)),
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Hello {
        versions: BTreeMap<String, String>,
        peers: BTreeMap<String, Import>,
    },
    Unavailable(String),
    Prepared(bool),
    Checked {
        extra_bytes: u64,
        graph: bool,
        #[serde(default)]
        first_ms: Option<f64>,
        #[serde(default)]
        second_ms: Option<f64>,
    },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Lengths;
    use ferroflash::DType;
    use serde_json::{Value, json};

    fn prepare(mask: Mask, l2: L2) -> Value {
        let problem =
            Sizes { batch: 2, q_rows: 3, kv_rows: 5, q_heads: 8, kv_heads: 4, head_dim: 64, dtype: DType::Bf16 };
        of(&Case::new(problem, mask), l2, 1)
    }

    fn of(case: &Case, l2: L2, calls: u32) -> Value {
        let prepare = Prepare::new(case, Pass::Forward, Path::new("inputs"), l2, 1 << 16, calls).unwrap();
        serde_json::to_value(Request::Prepare(Box::new(prepare))).unwrap()
    }

    #[test]
    fn sequences_say_where_their_rows_are() {
        let problem =
            Sizes { batch: 1, q_rows: 4, kv_rows: 4, q_heads: 8, kv_heads: 4, head_dim: 64, dtype: DType::Bf16 };
        let found = |rows| {
            let found = of(&Case { rows, ..Case::new(problem, Mask::Causal) }, L2::Warm, 20);
            assert_eq!(found["prepare"]["calls"], 20);
            found["prepare"]["sequences"].clone()
        };
        assert_eq!([found(Rows::Cache), found(Rows::Pages(16))], [json!("cache"), json!({"pages": 16})]);
        let lengths = Lengths { name: "two", rows: &[3, 1] };
        assert_eq!(found(Rows::Packed(lengths)), json!({"packed": {"sequences": 2, "longest": 3}}));
    }

    #[test]
    fn programs_arrive_with_their_numbers_and_tensors() {
        let problem =
            Sizes { batch: 2, q_rows: 80, kv_rows: 100, q_heads: 8, kv_heads: 4, head_dim: 64, dtype: DType::Bf16 };
        let found = |program| {
            let case = Case { program: Some(program), ..Case::new(problem, Mask::Causal) };
            of(&case, L2::Warm, 1)["prepare"]["program"].clone()
        };
        let expected = |name, numbers, tensor| json!({"name": name, "cap": 30.0, "numbers": numbers, "tensor": tensor});
        let none = Value::Null;
        assert_eq!(found(Program::Softcap), expected("softcap", json!({}), none.clone()));
        assert_eq!(found(Program::Sink), expected("sink", json!({}), json!(["f32", [8]])));
        assert_eq!(found(Program::Prefix), expected("prefix", json!({"prefix": 7, "window": 13}), none.clone()));
        let picture = json!({"width": 10, "reach": 2});
        assert_eq!(found(Program::Neighbourhood), expected("neighbourhood", picture, none));
        assert_eq!(found(Program::Documents), expected("documents", json!({}), json!(["i32", [2, 100]])));
        let table = json!(["f32", [8, 257]]);
        assert_eq!(found(Program::Relative), expected("relative", json!({"span": 128}), table));
    }

    #[test]
    fn a_problem_arrives_with_its_sizes_and_bounds() {
        let expected = json!({"prepare": {
            "folder": "inputs", "pass": "forward", "dtype": "bf16", "head_dim": 64, "seq": 3, "kv_seq": 5, "batch": 2,
            "q_heads": 8, "kv_heads": 4,
            "window_left": 7, "window_right": 1, "sets": 1, "flush_bytes": 0, "calls": 1
        }});
        assert_eq!(prepare(Mask::Window { left: Some(7), right: Some(1) }, L2::Warm), expected);
        for (mask, left, right) in [
            (Mask::Full, None, None),
            (Mask::Causal, None, Some(0)),
            (Mask::Window { left: None, right: Some(2) }, None, Some(2)),
            (Mask::Window { left: Some(2), right: None }, Some(2), None),
        ] {
            let found = &prepare(mask, L2::Warm)["prepare"];
            assert_eq!((&found["window_left"], &found["window_right"]), (&json!(left), &json!(right)), "{mask:?}");
        }
    }

    #[test]
    fn caches_are_rotated_through_or_flushed() {
        // 128 KiB, twice the cache, are written, or filled by 6 copies of 2 * 2 * 64 * (3 * 8 + 5 * 4) elements of 2 bytes.
        let found = |l2| {
            let found = prepare(Mask::Full, l2);
            (found["prepare"]["sets"].as_u64().unwrap(), found["prepare"]["flush_bytes"].as_u64().unwrap())
        };
        assert_eq!([found(L2::Warm), found(L2::Flush), found(L2::Rotate)], [(1, 0), (1, 2 << 16), (6, 0)]);
    }
}
