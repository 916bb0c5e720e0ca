//! Whether two groups of samples differ.

/// Groups of up to this many samples together have their p-value counted out; larger ones are close to normal.
const LARGEST_EXACT: usize = 60;

/// Two-sided p-value of the Mann-Whitney U test: the chance that samples of one distribution are ordered at least as unevenly.
///
/// Exact without ties; otherwise, and for large groups, by the normal approximation with corrections for ties and continuity.
pub(super) fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let (n, m) = (a.len(), b.len());
    if n == 0 || m == 0 {
        return 1.0;
    }
    let mut all: Vec<(f64, bool)> = a.iter().map(|&x| (x, true)).chain(b.iter().map(|&x| (x, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    // Ranks of a, ties sharing the middle of theirs, and the sum over ties of t^3 - t.
    let (mut ranks_of_a, mut ties) = (0.0, 0.0);
    let mut start = 0;
    while start < all.len() {
        let end = start + all[start..].iter().take_while(|x| x.0 == all[start].0).count();
        let rank = 0.5 * (start + 1 + end) as f64;
        ranks_of_a += rank * all[start..end].iter().filter(|x| x.1).count() as f64;
        let tied = (end - start) as f64;
        ties += tied.powi(3) - tied;
        start = end;
    }
    let (nf, mf) = (n as f64, m as f64);
    let u = ranks_of_a - 0.5 * nf * (nf + 1.0);
    let u = u.min(nf * mf - u);
    if ties == 0.0 && n + m <= LARGEST_EXACT {
        return exact(n, m, u as usize);
    }
    let total = nf + mf;
    let variance = nf * mf / 12.0 * ((total + 1.0) - ties / (total * (total - 1.0)));
    if variance <= 0.0 {
        // All samples are the same number.
        return 1.0;
    }
    let z = (0.5 * nf * mf - u - 0.5).max(0.0) / variance.sqrt();
    (2.0 * upper_tail(z)).min(1.0)
}

/// Twice the share of all orders of `n` and `m` samples whose U is at most `u`.
fn exact(n: usize, m: usize, u: usize) -> f64 {
    // counts[j][v]: orders of the samples so far, j of the first group, that have v pairs the wrong way round. Adding a sample of
    // the first group behind i - j of the second adds as many pairs.
    let mut counts = vec![vec![0.0; n * m + 1]; n + 1];
    counts[0][0] = 1.0;
    for placed in 1..=n + m {
        for j in (1..=n.min(placed)).rev() {
            let second = placed - j;
            let (low, high) = counts.split_at_mut(j);
            if second > m {
                // This many of the second group there are not: only the one that came first could have led here.
                high[0].fill(0.0);
            }
            if second <= m {
                for v in (second..=n * m).rev() {
                    high[0][v] += low[j - 1][v - second];
                }
            }
        }
        if placed > m {
            counts[0].fill(0.0);
        }
    }
    let all: f64 = counts[n].iter().sum();
    (2.0 * counts[n][..=u].iter().sum::<f64>() / all).min(1.0)
}

/// Chance that a standard normal value exceeds `z >= 0`, to 7 decimals (Abramowitz and Stegun 26.2.17).
fn upper_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let polynomial = series.iter().rev().fold(0.0, |sum, c| t * (sum + c));
    polynomial * (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_groups_are_counted_out() {
        // 3 against 3: one of 20 orders on each side.
        assert!((mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]) - 0.1).abs() < 1e-12);
        // 5 against 5: one of 252.
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]);
        assert!((mann_whitney(&a, &b) - 2.0 / 252.0).abs() < 1e-12);
        assert_eq!(mann_whitney(&a, &b), mann_whitney(&b, &a));
        // 5 against 3: one of 56 on each side, whichever group is named first.
        assert!((mann_whitney(&a, &b[..3]) - 2.0 / 56.0).abs() < 1e-12);
        assert!((mann_whitney(&b[..3], &a) - 2.0 / 56.0).abs() < 1e-12);
        // U = 2 of 4 pairs: nothing is more even.
        assert_eq!(mann_whitney(&[1.0, 4.0], &[2.0, 3.0]), 1.0);
    }

    #[test]
    fn counting_agrees_with_trying_every_order() {
        let (n, m) = (4, 3);
        for u in 0..=n * m / 2 {
            let (mut extreme, mut all) = (0, 0);
            for order in 0u32..1 << (n + m) {
                if order.count_ones() as usize != n {
                    continue;
                }
                let mut pairs = 0;
                for i in 0..n + m {
                    let of_a = order >> i & 1 == 1;
                    pairs += if of_a { (0..i).filter(|j| order >> j & 1 == 0).count() } else { 0 };
                }
                all += 1;
                extreme += usize::from(pairs <= u);
            }
            let expected = (2.0 * extreme as f64 / f64::from(all)).min(1.0);
            assert!((exact(n, m, u) - expected).abs() < 1e-12, "{u}: {} {expected}", exact(n, m, u));
        }
    }

    #[test]
    fn the_normal_approximation_is_close_to_the_count() {
        let a: Vec<f64> = (0..20).map(|i| f64::from(i) * 2.0).collect();
        let b: Vec<f64> = (0..20).map(|i| f64::from(i) * 2.0 + 11.0).collect();
        let counted = mann_whitney(&a, &b);
        // One tie turns the count off.
        let mut tied = b.clone();
        tied[0] = 10.0;
        let approximate = mann_whitney(&a, &tied);
        assert!((counted - approximate).abs() < 0.2 * counted, "{counted} {approximate}");
        assert!(counted < 0.05 && counted > 0.001, "{counted}");
        assert_eq!(mann_whitney(&[1.0; 5], &[1.0; 5]), 1.0);
        assert!((upper_tail(1.959_964) - 0.025).abs() < 1e-6 && (upper_tail(0.0) - 0.5).abs() < 1e-6);
    }
}
