//! What became of one result between two records.

use super::significance;
use crate::bench::record::{CellProblem, Measurement};
use crate::format;

/// Chance of a difference where there is none, for each result that is compared.
const ALPHA: f64 = 0.01;

/// Samples of fewer rounds cannot be told apart at [`ALPHA`]: five against five come in 252 orders.
const FEWEST_SAMPLES: usize = 5;

/// What became of one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Same,
    Better,
    Worse,
    /// Far apart, but not beyond what the samples vary by themselves.
    Noise,
}

/// One line of the table: one quantity of one result.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) problem: CellProblem,
    pub(super) name: String,
    pub(super) peer: bool,
    pub(super) quantity: String,
    pub(super) before: String,
    pub(super) after: String,
    /// After over before, less one.
    pub(super) difference: Option<f64>,
    /// Of the Mann-Whitney test; `None` where there was none.
    pub(super) p_value: Option<f64>,
    pub(super) verdict: Verdict,
}

pub(super) const TIME: &str = "time";

/// Everything that can be compared of one result.
pub(super) fn changes(
    problem: &CellProblem,
    before: &Measurement,
    after: &Measurement,
    times: f64,
    threshold: f64,
) -> Vec<Change> {
    let change = |quantity: &str, before_text: String, after_text: String, verdict| Change {
        problem: problem.clone(),
        name: before.name.clone(),
        peer: before.peer,
        quantity: quantity.to_owned(),
        before: before_text,
        after: after_text,
        difference: None,
        p_value: None,
        verdict,
    };
    match (&before.skipped, &after.skipped) {
        (None, None) => {}
        (Some(reason), Some(_)) => {
            let reason = format!("not run: {reason}");
            return vec![change("run", reason.clone(), reason, Verdict::Same)];
        }
        (None, Some(reason)) => {
            return vec![change("run", "runs".to_owned(), format!("not run: {reason}"), Verdict::Worse)];
        }
        (Some(reason), None) => {
            return vec![change("run", format!("not run: {reason}"), "runs".to_owned(), Verdict::Better)];
        }
    }
    let mut changes = Vec::new();
    if let (Some(a), Some(b)) = (before.time_ms, after.time_ms) {
        let difference = b.median / a.median - 1.0;
        let enough = before.samples_ms.len().min(after.samples_ms.len()) >= FEWEST_SAMPLES;
        let p_value = enough.then(|| significance::mann_whitney(&before.samples_ms, &after.samples_ms));
        let apart = p_value.map_or(a.q3 < b.q1 || b.q3 < a.q1, |p| p < ALPHA);
        let verdict = if difference.abs() < times {
            Verdict::Same
        } else if !apart {
            Verdict::Noise
        } else {
            worse_if(difference > 0.0)
        };
        let texts = [a, b].map(|time| format::milliseconds(time.median));
        let [before, after] = texts;
        changes.push(Change { difference: Some(difference), p_value, ..change(TIME, before, after, verdict) });
    }
    if let (Some(a), Some(b)) = (before.extra_bytes, after.extra_bytes) {
        let difference = if a == b { 0.0 } else { b as f64 / a as f64 - 1.0 };
        let verdict = if difference.abs() < threshold || a == b { Verdict::Same } else { worse_if(b > a) };
        let change = change("extra memory", format::bytes(a), format::bytes(b), verdict);
        changes.push(Change { difference: Some(difference), ..change });
    }
    for (counter, &a) in &before.counters {
        let Some(&b) = after.counters.get(counter) else { continue };
        let verdict = if a == b { Verdict::Same } else { worse_if(b > a) };
        let difference = if a == b { 0.0 } else { b as f64 / a as f64 - 1.0 };
        let change = change(&counter.replace('_', " "), a.to_string(), b.to_string(), verdict);
        changes.push(Change { difference: Some(difference), ..change });
    }
    if let (Some(a), Some(b)) = (&before.check, &after.check) {
        let text = |within| if within { "accepted" } else { "WRONG" }.to_owned();
        let verdict = if a.within == b.within { Verdict::Same } else { worse_if(a.within) };
        changes.push(change("result", text(a.within), text(b.within), verdict));
    }
    changes
}

fn worse_if(worse: bool) -> Verdict {
    if worse { Verdict::Worse } else { Verdict::Better }
}
