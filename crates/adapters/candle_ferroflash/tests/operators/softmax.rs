//! Softmax and its logarithm.

use crate::support::{DTYPES, Laid, Lie, check, f64s, values, weighted};
use candle_core::{D, DType, Device, Tensor};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{Softmax, log_softmax, softmax, softmax_last_dim};
use ferroflash::reference::ReferenceSoftmax;

/// A mask `(batch, 1, 1, columns)` that hides every fifth column from each second batch entry, and biases the others.
fn mask(batch: usize, columns: usize, dtype: DType) -> Tensor {
    let number = |i: usize| match (i / columns % 2, i % columns % 5) {
        (1, 4) => f32::NEG_INFINITY,
        (_, column) => 0.25 * column as f32,
    };
    let numbers: Vec<f32> = (0..batch * columns).map(number).collect();
    Tensor::from_vec(numbers, (batch, 1, 1, columns), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

#[test]
fn every_option_in_every_type() {
    emulate_cpu(true);
    let shape = [2, 3, 5, 40];
    // The logarithm, a mask and whether it is f32, causal rows, and how x lies.
    let cases = [
        (false, None, false, Lie::Whole),
        (true, None, false, Lie::Gaps(3, 6)),
        (false, Some(false), false, Lie::Turned),
        (false, Some(true), true, Lie::Gaps(8, 16)),
        (true, Some(true), false, Lie::Turned),
        (false, None, true, Lie::Whole),
    ];
    for (dtype, of) in DTYPES {
        for (log, masked, causal, lie) in cases {
            let name = format!("{dtype:?} {log} {masked:?} {causal} {lie:?}");
            let x = Laid::new(&values(&shape, 1, dtype), lie);
            let mask = masked.map(|wide| mask(2, 40, if wide { DType::F32 } else { dtype }));
            let options = if log { Softmax::log() } else { Softmax::new() };
            let mut options = options.with_scale(0.7).causal(causal);
            if let Some(mask) = &mask {
                options = options.with_mask(mask);
            }
            let out = options.forward(&x.view()).unwrap();
            let dout = values(&shape, 2, dtype);
            let gradients = if log && masked.is_some() {
                // Minus infinities make no number that candle could derive: what it would hand on is handed on here.
                let shown = out.ge(f32::MIN).unwrap().where_cond(&out, &out.zeros_like().unwrap()).unwrap();
                weighted(&shown, &dout).backward().unwrap()
            } else {
                weighted(&out, &dout).backward().unwrap()
            };
            let reference =
                ReferenceSoftmax { columns: 40, scale: f64::from(0.7f32), log, queries: causal.then_some(5) };
            let mask = mask.map(|mask| f64s(&mask.broadcast_as(&shape).unwrap()));
            let exact = reference.forward(&f64s(&x.view()), mask.as_deref()).unwrap();
            let rounded = reference.forward_rounded(&f64s(&x.view()), mask.as_deref(), of).unwrap();
            let unit = if log { 1.0 } else { 1.0 / 40.0 };
            check(&format!("out of {name}"), &f64s(&out), &exact, &rounded, unit);
            let exact = reference.backward(&f64s(&out), &f64s(&dout)).unwrap();
            let rounded = reference.backward_rounded(&f64s(&out), &f64s(&dout), of).unwrap();
            check(&format!("dx of {name}"), &x.gradient(&gradients), &exact, &rounded, unit);
        }
    }
}

/// The functions are the options that their names say, whatever the last axis is called.
#[test]
fn the_functions_are_these_options() {
    emulate_cpu(true);
    let x = values(&[3, 4, 50], 1, DType::F32);
    let expected = f64s(&Softmax::new().forward(&x).unwrap());
    let found = [softmax_last_dim(&x), softmax(&x, 2), softmax(&x, D::Minus1)];
    assert!(found.into_iter().all(|found| f64s(&found.unwrap()) == expected));
    let expected = f64s(&Softmax::log().forward(&x).unwrap());
    assert!([log_softmax(&x, 2), log_softmax(&x, D::Minus1)].into_iter().all(|out| f64s(&out.unwrap()) == expected));
}

/// Masks of booleans, whole, shared by rows, and with gaps between them: what is hidden is not looked at, and gradients are those of what is shown.
#[test]
fn masks_of_booleans() {
    emulate_cpu(true);
    for (dtype, of) in DTYPES {
        for (log, shape, columns, causal, lie) in [
            (false, [2, 3, 5, 40], 40, false, Lie::Whole),
            (true, [2, 1, 1, 40], 40, false, Lie::Turned),
            (false, [1, 3, 5, 37], 37, true, Lie::Gaps(3, 2)),
            (false, [2, 3, 1, 1300], 1300, false, Lie::Gaps(8, 4)),
        ] {
            let name = format!("{dtype:?} {log} {shape:?} {causal} {lie:?}");
            let full = [2, 3, 5, columns];
            // Every third column of a fixed pattern is hidden, and all of the last row of a mask; any byte but 0 shows a column.
            let rows = shape[..3].iter().product::<usize>();
            let hides = |i: usize| (i * 7 + i / 11).is_multiple_of(3) || i / columns == rows - 1;
            let bytes: Vec<u8> = (0..rows * columns).map(|i| if hides(i) { 0 } else { 1 + (i % 255) as u8 }).collect();
            let seen = Tensor::from_vec(bytes, &shape, &Device::Cpu).unwrap();
            // Behind other bytes, and with gaps between its rows.
            let wide = seen.pad_with_zeros(D::Minus1, 3, 6).unwrap();
            let mask = wide.narrow(D::Minus1, 3, columns).unwrap();
            let numbers = values(&full, 1, dtype);
            let hidden = seen.broadcast_as(&full).unwrap().ne(0u8).unwrap();
            // What is hidden is no number.
            let nans = Tensor::full(f32::NAN, &full, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let x = Laid::new(&hidden.where_cond(&numbers, &nans).unwrap(), lie);
            let options = if log { Softmax::log() } else { Softmax::new() };
            let options = options.with_scale(0.7).causal(causal).with_mask(&mask);
            let out = options.forward(&x.view()).unwrap();
            let dout = values(&full, 2, dtype);
            let shown = out.ge(f32::MIN).unwrap().where_cond(&out, &out.zeros_like().unwrap()).unwrap();
            let gradients = weighted(if log { &shown } else { &out }, &dout).backward().unwrap();
            let reference = ReferenceSoftmax { columns, scale: f64::from(0.7f32), log, queries: causal.then_some(5) };
            let added = |seen: f64| if seen == 0.0 { f64::NEG_INFINITY } else { 0.0 };
            let mask: Vec<_> = f64s(&seen.broadcast_as(&full).unwrap()).into_iter().map(added).collect();
            let exact = reference.forward(&f64s(&numbers), Some(&mask)).unwrap();
            let rounded = reference.forward_rounded(&f64s(&numbers), Some(&mask), of).unwrap();
            let unit = if log { 1.0 } else { 1.0 / columns as f64 };
            check(&format!("out of {name}"), &f64s(&out), &exact, &rounded, unit);
            let exact = reference.backward(&f64s(&out), &f64s(&dout)).unwrap();
            let rounded = reference.backward_rounded(&f64s(&out), &f64s(&dout), of).unwrap();
            check(&format!("dx of {name}"), &x.gradient(&gradients), &exact, &rounded, unit);
        }
    }
}
