//! Results of one cell beside each other, and beside what the device reaches at most.

use super::record::{Measurement, Roofline};
use kernel_spec::Kernel;

/// How much of what the device reaches at most each reaches.
pub(super) fn beside_the_roofline(results: &mut [Measurement], roofline: Option<&Roofline>) {
    for result in results {
        result.bound_fraction = roofline.zip(result.time_ms).map(|(roofline, time)| roofline.bound_ms / time.median);
    }
}

/// What each takes beside `naive`, if that ran.
pub(super) fn beside_naive(results: &mut [Measurement]) {
    let Some(naive) = results.iter().find(|result| result.name == Kernel::Naive.name()) else { return };
    let (naive_time, naive_bytes) = (naive.time_ms, naive.extra_bytes);
    for result in results.iter_mut().filter(|result| result.name != Kernel::Naive.name()) {
        result.saved_percent = naive_bytes
            .zip(result.extra_bytes)
            .filter(|&(naive, _)| naive > 0)
            .map(|(naive, this)| 100.0 * (1.0 - this as f64 / naive as f64));
    }
    for result in results {
        result.speedup_over_naive = naive_time.zip(result.time_ms).map(|(naive, this)| naive.median / this.median);
    }
}

/// The fastest peer whose result is right.
pub(super) fn best_peer(results: &[Measurement]) -> Option<&Measurement> {
    let right = |result: &&Measurement| result.peer && result.check.as_ref().is_some_and(|check| check.within);
    let timed = results.iter().filter(right).filter_map(|result| Some((result, result.time_ms?.median)));
    timed.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(result, _)| result)
}

/// How fast each of ours is beside the fastest peer whose result is right.
pub(super) fn beside_peers(results: &mut [Measurement]) {
    let Some(best) = best_peer(results).and_then(|peer| peer.time_ms) else { return };
    for result in results.iter_mut().filter(|result| !result.peer) {
        result.ratio_to_best_peer = result.time_ms.map(|this| best.median / this.median);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::samples::sample_cell;
    use super::*;

    #[test]
    fn the_fastest_right_peer_is_the_one_to_beat() {
        let mut results =
            sample_cell("bf16", 512, &[("v2", 2.0), ("v3", 1.0), ("torch math", 9.0), ("torch cudnn", 1.5)]).results;
        beside_peers(&mut results);
        let ratios: Vec<_> = results.iter().map(|result| result.ratio_to_best_peer).collect();
        assert_eq!(ratios, [Some(0.75), Some(1.5), None, None]);
        results[3].check.as_mut().unwrap().within = false;
        beside_peers(&mut results);
        assert_eq!(
            (best_peer(&results).unwrap().name.as_str(), results[0].ratio_to_best_peer),
            ("torch math", Some(4.5))
        );
    }

    #[test]
    fn twice_as_fast_as_naive_is_a_speedup_of_two() {
        let mut results = sample_cell("bf16", 512, &[("naive", 4.0), ("v2", 2.0), ("torch cudnn", 8.0)]).results;
        for (result, bytes) in results.iter_mut().zip([1000, 250, 2000]) {
            result.extra_bytes = Some(bytes);
        }
        beside_naive(&mut results);
        let speedups: Vec<_> = results.iter().map(|result| result.speedup_over_naive).collect();
        assert_eq!(speedups, [Some(1.0), Some(2.0), Some(0.5)]);
        let saved: Vec<_> = results.iter().map(|result| result.saved_percent).collect();
        assert_eq!(saved, [None, Some(75.0), Some(-100.0)]);
    }

    #[test]
    fn the_bound_is_one_and_slower_is_less() {
        let mut results = sample_cell("bf16", 512, &[("v2", 4.0), ("v3", 1.25)]).results;
        let ms = 1.0;
        let roofline =
            Roofline { bound: "tensor".to_owned(), bound_ms: ms, matmul_ms: ms, exp_ms: 0.5 * ms, hbm_ms: 0.1 * ms };
        beside_the_roofline(&mut results, Some(&roofline));
        assert_eq!([results[0].bound_fraction, results[1].bound_fraction], [Some(0.25), Some(0.8)]);
        beside_the_roofline(&mut results, None);
        assert_eq!(results[0].bound_fraction, None);
    }
}
