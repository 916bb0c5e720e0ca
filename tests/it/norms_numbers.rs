//! Norms of numbers that f32 hardly holds, and of what is no number.

use crate::norms::Case;
use crate::support::{bf16, device};
use ferroflash::operators::Norm;
use ferroflash::{Layout, Tensor};

/// Numbers whose squares f32 does not hold, up to the largest, and those whose squares vanish.
#[test]
fn numbers_of_every_size() {
    let device = &device::shared().device;
    for columns in [48, 64, 100, 128, 1000, 4096, 9000] {
        for layer in [false, true] {
            for (deviation, mean) in
                [(1e19, 0.0), (1e30, 0.0), (5e37, 0.0), (1e36, 5e37), (1e-12, 0.0), (1e-25, 0.0), (1e-3, 1.0)]
            {
                let case = Case { deviation, mean, epsilon: 1e-30, bias: false, ..Case::new(3, columns, layer) };
                let case = if deviation >= 1.0 { case } else { Case { epsilon: 1e-12, ..case } };
                case.forward::<f32>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
                if mean == 0.0 {
                    case.forward::<bf16>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
                }
            }
        }
    }
    // Read again and again, and in a cluster.
    for (columns, clusters) in [(33_000, false), (33_000, true)] {
        for layer in [false, true] {
            let case = Case { deviation: 1e30, clusters, ..Case::new(2, columns, layer) };
            case.forward::<bf16>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

/// A large mean leaves the deviation what it is: the variance is that of differences.
#[test]
fn a_large_mean_costs_no_more_than_its_own_rounding() {
    let device = &device::shared().device;
    for columns in [64, 1000, 5000] {
        let x: Vec<f32> = (0..columns).map(|i| 30000.0 + if i % 2 == 0 { 0.5 } else { -0.5 }).collect();
        let x = Tensor::from_slice(device, &x, [columns], Layout::RowMajor).unwrap();
        let normed = Norm::layer(1e-6).with_statistics(true).forward(&x.view()).unwrap();
        let rstd = normed.rstd.unwrap().to_vec::<f32>().unwrap()[0];
        // In f32, the mean of the squares less the square of the mean is a multiple of 64.
        assert!((rstd - 2.0).abs() < 1e-2, "{columns}: {rstd}");
    }
}

/// A NaN makes its row NaN and no other; an infinity of RMSNorm is NaN, and leaves 0 of its row; one of LayerNorm makes it NaN.
#[test]
fn what_is_no_number_stays_in_its_row() {
    let device = &device::shared().device;
    // In the narrow ones two rows share a warp.
    for columns in [48, 64, 100, 128, 700, 3000, 20_000] {
        let rows = 9;
        let mut x: Vec<f32> = Case::new(rows, columns, false).draw(0, rows * columns, 1.0, 0.0);
        let norms = [Norm::rms(1e-6), Norm::layer(1e-6)];
        let run = |x: &[f32], norm: &Norm<'_>| {
            let tensor = Tensor::from_slice(device, x, [rows, columns], Layout::RowMajor).unwrap();
            norm.forward(&tensor.view()).unwrap().out.to_vec::<f32>().unwrap()
        };
        let clean = norms.map(|norm| run(&x, &norm));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let place = 4 * columns + columns / 3;
            let before = std::mem::replace(&mut x[place], value);
            for (norm, clean, is_rms) in [(&norms[0], &clean[0], true), (&norms[1], &clean[1], false)] {
                let found = run(&x, norm);
                for (i, (found, clean)) in found.iter().zip(clean).enumerate() {
                    let right = match i / columns {
                        4 if is_rms && value.is_infinite() && i != place => *found == 0.0,
                        4 => found.is_nan(),
                        _ => found == clean,
                    };
                    assert!(right, "{value} in {columns} columns: element {i} is {found}");
                }
            }
            x[place] = before;
        }
    }
}

/// A row that is scaled leaves those beside it as they are, in whose warp it may be; and one of equal numbers whose sum is none has differences of 0.
#[test]
fn a_row_of_large_numbers_changes_no_other() {
    let device = &device::shared().device;
    for columns in [48, 64, 128, 1000] {
        let rows = 5;
        let mut x: Vec<f32> = Case::new(rows, columns, false).draw(0, rows * columns, 1.0, 0.0);
        let run = |x: &[f32], norm: &Norm<'_>| {
            let tensor = Tensor::from_slice(device, x, [rows, columns], Layout::RowMajor).unwrap();
            let normed = norm.with_statistics(true).forward(&tensor.view()).unwrap();
            [normed.out.to_vec::<f32>().unwrap(), normed.rstd.unwrap().to_vec::<f32>().unwrap()]
        };
        let norms = [Norm::rms(1e-6), Norm::layer(1e-6)];
        let clean = norms.map(|norm| run(&x, &norm));
        // A power of two: its sums are exact, and the mean is the number itself.
        x[2 * columns..3 * columns].fill(2.0_f32.powi(124));
        for (norm, [clean_out, clean_rstd]) in norms.iter().zip(&clean) {
            let [out, rstd] = run(&x, norm);
            for (i, (found, clean)) in out.iter().zip(clean_out).enumerate().filter(|(i, _)| i / columns != 2) {
                assert_eq!(found, clean, "{columns} columns: element {i}");
            }
            for row in [0, 1, 3, 4] {
                assert_eq!(rstd[row], clean_rstd[row], "{columns} columns: row {row}");
            }
        }
        let [out, rstd] = run(&x, &norms[1]);
        assert!(out[2 * columns..3 * columns].iter().all(|&x| x == 0.0), "{columns} columns: {out:?}");
        assert!((rstd[2] - 1e3).abs() < 1e-2, "{columns} columns: {rstd:?}");
    }
}
