//! Tests of comparisons.

use super::*;
use crate::bench::record::samples::{sample, sample_cell};
use crate::bench::record::{Measurement, Noise, Record};

const THRESHOLD: f64 = 0.02;

fn record(times: &[(&str, f64)]) -> Record {
    sample("GPU", "cuda", vec![sample_cell("bf16", 512, times), sample_cell("bf16", 1024, times)])
}

fn verdicts(before: &Record, after: &Record) -> Vec<(String, String, Verdict)> {
    let comparison = compare(before, after, THRESHOLD, false).unwrap();
    let all = comparison.changes.iter().map(|c| (c.name.clone(), c.quantity.clone(), c.verdict));
    all.filter(|(_, quantity, _)| quantity == TIME).collect()
}

#[test]
fn the_same_record_is_the_same() {
    let record = record(&[("naive", 4.0), ("torch flash", 2.0)]);
    let comparison = compare(&record, &record, THRESHOLD, false).unwrap();
    assert_eq!(comparison.changes.len(), 8);
    assert!(comparison.changes.iter().all(|change| change.verdict == Verdict::Same));
    assert_eq!((comparison.missing.len(), comparison.peers), (0, Some(0.0)));
}

#[test]
fn slower_is_worse_and_faster_is_better() {
    let (before, slower) = (record(&[("v2", 1.0)]), record(&[("v2", 1.05)]));
    assert!(verdicts(&before, &slower).iter().all(|verdict| verdict.2 == Verdict::Worse));
    assert_eq!(compare(&before, &slower, THRESHOLD, false).unwrap().worse().count(), 2);
    assert!(verdicts(&slower, &before).iter().all(|verdict| verdict.2 == Verdict::Better));
    assert_eq!(compare(&slower, &before, THRESHOLD, false).unwrap().worse().count(), 0);
}

#[test]
fn what_is_below_the_threshold_or_the_noise_floor_is_the_same() {
    // Every sample is later than every one before, by 1.9 % in the median.
    let mut before = record(&[("v2", 1.0)]);
    let mut after = record(&[("v2", 1.019)]);
    for record in [&mut before, &mut after] {
        for result in record.cells.iter_mut().flat_map(|cell| &mut cell.results) {
            let median = result.time_ms.unwrap().median;
            result.samples_ms = (0..21).map(|i| median * (1.0 + 1e-5 * f64::from(i))).collect();
        }
    }
    assert!(verdicts(&before, &after).iter().all(|verdict| verdict.2 == Verdict::Same));
    assert_eq!(compare(&before, &after, 0.01, false).unwrap().worse().count(), 2);
    after.noise = Some(Noise { floor_percent: 3.0, pairs: Vec::new() });
    let comparison = compare(&before, &after, 0.01, false).unwrap();
    assert_eq!((comparison.worse().count(), comparison.threshold), (0, 0.03));
}

#[test]
fn far_apart_within_wide_samples_is_noise() {
    let mut before = record(&[("v2", 1.0)]);
    let mut after = record(&[("v2", 1.05)]);
    for (record, shift) in [(&mut before, 0.0), (&mut after, 0.05)] {
        for result in record.cells.iter_mut().flat_map(|cell| &mut cell.results) {
            result.samples_ms = [0.5, 0.8, 1.0, 1.3, 1.6].map(|time| time + shift).to_vec();
        }
    }
    assert!(verdicts(&before, &after).iter().all(|verdict| verdict.2 == Verdict::Noise));
}

#[test]
fn without_samples_the_quartiles_decide() {
    let mut before = record(&[("v2", 1.0)]);
    let mut after = record(&[("v2", 1.05)]);
    for result in [&mut before, &mut after].into_iter().flat_map(|r| &mut r.cells).flat_map(|c| &mut c.results) {
        result.samples_ms.clear();
    }
    assert!(verdicts(&before, &after).iter().all(|verdict| verdict.2 == Verdict::Worse));
    assert!(verdicts(&after, &before).iter().all(|verdict| verdict.2 == Verdict::Better));
    for result in after.cells.iter_mut().flat_map(|cell| &mut cell.results) {
        result.time_ms.as_mut().unwrap().q1 = 1.0;
    }
    assert!(verdicts(&before, &after).iter().all(|verdict| verdict.2 == Verdict::Noise));
}

#[test]
fn peers_have_no_say() {
    let before = record(&[("v2", 1.0), ("torch flash", 1.0)]);
    let after = record(&[("v2", 1.0), ("torch flash", 1.5)]);
    let comparison = compare(&before, &after, THRESHOLD, false).unwrap();
    assert_eq!(comparison.worse().count(), 0);
    assert!((comparison.peers.unwrap() - 0.5).abs() < 1e-12);
}

#[test]
fn what_one_record_lacks_is_named() {
    let mut before = record(&[("v2", 1.0), ("v1", 2.0)]);
    let mut after = record(&[("v2", 1.0), ("v3", 0.5)]);
    before.cells.push(sample_cell("f16", 64, &[("v2", 1.0)]));
    after.cells.push(sample_cell("f16", 128, &[("v2", 1.0)]));
    let missing = compare(&before, &after, THRESHOLD, false).unwrap().missing;
    let expected =
        ["only before: v1 on bf16 full", "only after: v3 on bf16 full", "only before: f16", "only after: f16"];
    for line in expected {
        assert!(missing.iter().any(|found| found.starts_with(line)), "{line}: {missing:?}");
    }
    let other = sample("GPU", "cuda", vec![sample_cell("f32", 512, &[("v2", 1.0)])]);
    let error = compare(&before, &other, THRESHOLD, false).unwrap_err().to_string();
    assert!(error.contains("no result in common"), "{error}");
}

#[test]
fn memory_wrong_results_and_what_does_not_run_any_more_are_regressions() {
    let before = record(&[("v2", 1.0)]);
    let worse = |change: fn(&mut Measurement)| {
        let mut before = before.clone();
        before.cells[0].results[0].extra_bytes = Some(1000);
        let mut after = before.clone();
        change(&mut after.cells[0].results[0]);
        let forth: Vec<_> = compare(&before, &after, THRESHOLD, false).unwrap().worse().cloned().collect();
        assert_eq!(compare(&after, &before, THRESHOLD, false).unwrap().worse().count(), 0);
        forth.into_iter().map(|change| change.quantity).collect::<Vec<_>>()
    };
    assert_eq!(worse(|result| result.extra_bytes = Some(1100)), ["extra memory"]);
    assert_eq!(worse(|result| result.extra_bytes = Some(1010)), [""; 0]);
    assert_eq!(worse(|result| result.check.as_mut().unwrap().within = false), ["result"]);
    assert_eq!(worse(|result| result.skipped = Some("no memory".to_owned())), ["run"]);
}

#[test]
fn counts_are_compared_exactly() {
    let counted = |count: u64| {
        let mut cell = sample_cell("bf16", 64, &[("v2", 1.0)]);
        cell.results[0].time_ms = None;
        cell.results[0].samples_ms.clear();
        cell.results[0].counters.insert("global_bytes_read".to_owned(), count);
        sample("emulator", "emulator", vec![cell])
    };
    let worse = |a, b| {
        let comparison = compare(&counted(a), &counted(b), 0.5, false).unwrap();
        comparison.worse().map(|change| change.quantity.clone()).collect::<Vec<_>>()
    };
    assert_eq!(worse(1_000_000, 1_000_001), ["global bytes read"]);
    assert!(worse(1_000_000, 1_000_000).is_empty() && worse(1_000_001, 1_000_000).is_empty());
    let mut lone = counted(1);
    lone.cells[0].results[0].counters.insert("new_count".to_owned(), 1);
    let missing = compare(&counted(1), &lone, 0.5, false).unwrap().missing;
    assert_eq!(missing, ["only after: the count new_count"]);
}

#[test]
fn other_machines_and_methods_are_refused() {
    let before = record(&[("v2", 1.0)]);
    let mut after = before.clone();
    after.environment.device = "other GPU".to_owned();
    let error = |after: &Record| compare(&before, after, THRESHOLD, false).unwrap_err().to_string();
    assert!(error(&after).contains("GPU and other GPU; --across"), "{}", error(&after));
    assert!(compare(&before, &after, THRESHOLD, true).is_ok());
    after.environment.backend = "emulator".to_owned();
    assert!(compare(&before, &after, THRESHOLD, true).unwrap_err().to_string().contains("cannot be compared"));
    let mut after = before.clone();
    after.method.l2 = "flush".to_owned();
    assert!(error(&after).contains("level-two cache, `warm` and `flush`"), "{}", error(&after));
    let mut after = before.clone();
    after.method.rest_ms = 20;
    assert!(error(&after).contains("samples, `back to back` and `20 ms of rest apart`"), "{}", error(&after));
}

#[test]
fn a_threshold_is_a_percentage() {
    assert_eq!((percent("2%"), percent("0.5"), percent("100 %")), (Ok(0.02), Ok(0.005), Ok(1.0)));
    for wrong in ["", "x", "-1", "101%", "nan"] {
        assert!(percent(wrong).is_err(), "{wrong}");
    }
}
