//! Dense layers.

use crate::support::{DTYPES, Laid, Lie, check, f64s, values};
use candle_core::DType;
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{Activation, Dense, dense, linear};
use ferroflash::reference::ReferenceDense;

#[test]
fn every_activation_in_every_type() {
    emulate_cpu(true);
    // Axes of rows, depth, columns, and how x lies.
    let cases = [
        (vec![17], 40, 24, Lie::Whole),
        (vec![3, 7], 33, 19, Lie::Gaps(1, 2)),
        (vec![2, 2, 9], 64, 72, Lie::Gaps(8, 8)),
        (vec![], 16, 8, Lie::Whole),
    ];
    for (dtype, of) in DTYPES {
        for (i, activation) in Activation::ALL.into_iter().enumerate() {
            for (j, (outer, depth, columns, lie)) in cases.iter().enumerate() {
                let name = format!("{dtype:?} {activation} {outer:?} {depth} {columns} {lie:?}");
                let sums = if activation.is_gated() { 2 * columns } else { *columns };
                let with = |last: usize| outer.iter().copied().chain([last]).collect::<Vec<_>>();
                let x = Laid::new(&values(&with(*depth), 1, dtype), *lie);
                let weight = values(&[sums, *depth], 2, dtype);
                let bias = (i + j).is_multiple_of(2).then(|| values(&[sums], 3, dtype));
                let residual = (i + j).is_multiple_of(3).then(|| values(&with(*columns), 4, dtype));
                let mut layer = Dense::new(&weight).with_activation(activation);
                if let Some(bias) = &bias {
                    layer = layer.with_bias(bias);
                }
                if let Some(residual) = &residual {
                    layer = layer.with_residual(residual);
                }
                let out = layer.forward(&x.view()).unwrap();
                assert_eq!((out.dims(), out.dtype()), (with(*columns).as_slice(), dtype), "{name}");
                let [bias, residual] = [bias, residual].map(|tensor| tensor.as_ref().map(f64s));
                let reference =
                    ReferenceDense { depth: *depth, weight: &f64s(&weight), bias: bias.as_deref(), activation };
                let exact = reference.forward(&f64s(&x.view()), residual.as_deref()).unwrap().out;
                let rounded = reference.forward_rounded(&f64s(&x.view()), residual.as_deref(), of).unwrap().out;
                // Sums of products of up to 2 by 2.
                check(&name, &f64s(&out), &exact, &rounded, (*depth as f64).sqrt());
            }
        }
    }
}

/// The functions are the options that their names say, and the layer is candle's, to f32's precision.
#[test]
fn the_functions_are_these_options() {
    emulate_cpu(true);
    let [x, weight] = [[5, 12], [9, 12]].map(|shape| values(&shape, 1, DType::F32));
    let bias = values(&[9], 2, DType::F32);
    let found = f64s(&linear(&x, &weight, Some(&bias)).unwrap());
    assert_eq!(found, f64s(&Dense::new(&weight).with_bias(&bias).forward(&x).unwrap()));
    let theirs = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
    assert!(found.iter().zip(f64s(&theirs)).all(|(a, b)| (a - b).abs() < 1e-4));
    let silu = Dense::new(&weight).with_activation(Activation::Silu).forward(&x).unwrap();
    assert_eq!(f64s(&dense(&x, &weight, None, Activation::Silu).unwrap()), f64s(&silu));
}
