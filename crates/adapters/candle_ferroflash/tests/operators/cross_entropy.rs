//! Cross-entropy.

use crate::support::{DTYPES, Laid, Lie, check, f64s, values, weighted};
use candle_core::{DType, Device, Tensor, Var};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{CrossEntropy, cross_entropy};
use ferroflash::reference::ReferenceCrossEntropy;

pub(crate) const IGNORED: i32 = -100;

/// Classes of rows, every fourth of which, and with it the last of 33, is ignored where that is wanted.
pub(crate) fn targets(rows: usize, classes: usize, ignores: bool) -> Vec<i32> {
    let target = |row: usize| if ignores && row.is_multiple_of(4) { IGNORED } else { (row * 31 % classes) as i32 };
    (0..rows).map(target).collect()
}

/// The same numbers as i32, or as u32 with the same bits, behind another number in memory.
pub(crate) fn tensor(targets: &[i32], shape: &[usize], unsigned: bool) -> Tensor {
    let rows = targets.len();
    let behind = match unsigned {
        true => Tensor::from_iter(std::iter::once(7).chain(targets.iter().map(|&of| of as u32)), &Device::Cpu),
        false => Tensor::from_iter(std::iter::once(7).chain(targets.iter().copied()), &Device::Cpu),
    };
    behind.unwrap().narrow(0, 1, rows).unwrap().reshape(shape).unwrap()
}

#[test]
fn losses_and_gradients_in_every_type() {
    emulate_cpu(true);
    let plain = ReferenceCrossEntropy { classes: 50, scale: 1.0, smoothing: 0.0, z_loss: 0.0, ignored: None };
    let cases = [
        (vec![37], plain, Lie::Whole),
        (vec![3, 11], ReferenceCrossEntropy { classes: 77, ignored: Some(IGNORED), ..plain }, Lie::Gaps(1, 2)),
        (vec![4, 9], ReferenceCrossEntropy { smoothing: 0.125, z_loss: 0.25, ..plain }, Lie::Turned),
        (vec![5], ReferenceCrossEntropy { classes: 5000, scale: 0.5, ignored: Some(IGNORED), ..plain }, Lie::Whole),
    ];
    for (dtype, of) in DTYPES {
        for (i, (outer, reference, lie)) in cases.iter().enumerate() {
            let (classes, rows) = (reference.classes, outer.iter().product());
            let shape: Vec<_> = outer.iter().copied().chain([classes]).collect();
            let logits = Laid::new(&values(&shape, 1, dtype), *lie);
            let targets = targets(rows, classes, reference.ignored.is_some());
            let mut options = CrossEntropy::new()
                .with_scale(reference.scale as f32)
                .with_smoothing(reference.smoothing as f32)
                .with_z_loss(reference.z_loss as f32);
            if let Some(ignored) = reference.ignored {
                options = options.with_ignored(ignored);
            }
            let given = tensor(&targets, outer, i % 2 == 0);
            let losses = options.losses(&logits.view(), &given).unwrap();
            let dloss = values(outer, 2, DType::F32);
            let gradients = weighted(&losses, &dloss).backward().unwrap();
            let numbers = f64s(&logits.view());
            let exact = reference.forward(&numbers, &targets).unwrap().loss;
            let rounded = reference.forward_rounded(&numbers, &targets).unwrap().loss;
            check(&format!("losses of {dtype:?} {outer:?} {reference:?}"), &f64s(&losses), &exact, &rounded, 1.0);
            let dloss = f64s(&dloss);
            let exact_gradient = reference.backward(&numbers, &targets, &dloss).unwrap();
            let rounded_gradient = reference.backward_rounded(&numbers, &targets, &dloss, of).unwrap();
            let (found, unit) = (logits.gradient(&gradients), 1.0 / classes as f64);
            let name = format!("dlogits of {dtype:?} {outer:?} {reference:?}");
            check(&name, &found, &exact_gradient, &rounded_gradient, unit);

            // The mean is over the rows that count, and its gradient has one over them as a factor.
            let counted = targets.iter().filter(|&&target| Some(target) != reference.ignored).count() as f64;
            let logits = Laid::new(&values(&shape, 1, dtype), *lie);
            let mean = options.mean(&logits.view(), &given).unwrap();
            let right = exact.iter().sum::<f64>() / counted;
            let found = f64::from(mean.to_scalar::<f32>().unwrap());
            assert!((found / right - 1.0).abs() < 1e-5, "{dtype:?} {reference:?}: {found} for {right}");
            let each = vec![1.0 / counted; rows];
            let exact = reference.backward(&numbers, &targets, &each).unwrap();
            let rounded = reference.backward_rounded(&numbers, &targets, &each, of).unwrap();
            let found = logits.gradient(&mean.backward().unwrap());
            check(&format!("{name}, of the mean"), &found, &exact, &rounded, unit);
        }
    }
}

/// The function that candle_nn has, by candle's own operations.
#[test]
fn candle_finds_the_same() {
    emulate_cpu(true);
    let logits = Var::from_tensor(&values(&[9, 21], 1, DType::F32)).unwrap();
    let targets = tensor(&targets(9, 21, false), &[9], true);
    let loss = cross_entropy(&logits, &targets).unwrap();
    let theirs = {
        let logarithms = logits.broadcast_sub(&logits.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap()).unwrap();
        let chosen = logarithms.gather(&targets.unsqueeze(1).unwrap(), 1).unwrap();
        (chosen.mean_all().unwrap() * -1.0).unwrap()
    };
    let of = |number: &Tensor| f64s(number.backward().unwrap().get(&logits).unwrap());
    let worst = of(&loss).iter().zip(of(&theirs)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-6, "{worst}");
    let [loss, theirs] = [&loss, &theirs].map(|number| number.to_scalar::<f32>().unwrap());
    assert!((loss - theirs).abs() < 1e-5, "{loss} {theirs}");
}

/// A target that is no class is seen in the result, and a mean of nothing is none.
#[test]
fn targets_that_make_no_sense() {
    emulate_cpu(true);
    let logits = values(&[3, 8], 1, DType::F32);
    let losses = CrossEntropy::new().losses(&logits, &tensor(&[0, 8, 7], &[3], false)).unwrap();
    assert_eq!(f64s(&losses).iter().map(|loss| loss.is_nan()).collect::<Vec<_>>(), [false, true, false]);
    let ignoring = CrossEntropy::new().with_ignored(IGNORED);
    let mean = ignoring.mean(&logits, &tensor(&[IGNORED; 3], &[3], true)).unwrap();
    assert!(mean.to_scalar::<f32>().unwrap().is_nan());
}
