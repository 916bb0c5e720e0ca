//! Dropout and factors of rows before a norm adds the residual: which elements every kernel keeps, one by one, and what is refused. Drawn calls with both are
//! in `norms`.

use crate::norms::Case;
use crate::support::case::to_f64;
use crate::support::device;
use crate::support::rule::for_each_dtype;
use ferroflash::dropout::keep_in_row;
use ferroflash::operators::{Norm, NormGradients, NormGradientsViewMut, NormOutput, NormOutputViewMut, NormSaved};
use ferroflash::{
    DType, Device, Dims, Dropout, Element, Error, Indices, Layout, Operand, OperatorError, Tensor, bf16, f16,
};
use kernel_spec::FeatureSet;
use kernel_spec::families::norm::features::BRANCH;
use kernel_spec::families::norm::{Pass, VARIANTS};
use kernel_spec::families::rows::Sharing;

const SEED: u64 = 0x0123_4567_89ab_cdef;
const OFFSET: u64 = u32::MAX as u64 - 3;

fn filled<T: Element>(device: &Device, shape: &[usize], value: f64) -> Tensor {
    let data = vec![T::from_f64(value); shape.iter().product()];
    Tensor::from_slice(device, &data, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap()
}

fn numbers<T: Element>(tensor: &Tensor) -> Vec<f64> {
    to_f64(&tensor.to_vec::<T>().unwrap())
}

/// What ones become.
fn mask(rows: usize, columns: usize, p: f32) -> Vec<f64> {
    let factor = f64::from(1.0 / (1.0 - p));
    let kept = |i: usize| keep_in_row(SEED, OFFSET, i / columns, i % columns, p);
    (0..rows * columns).map(|i| if kept(i) { factor } else { 0.0 }).collect()
}

/// Of ones, forward; and backward, of a gradient of ones that reaches the sum past the norm.
fn every_row_of_the_list_keeps_the_same<T: Element>() {
    let device = &device::shared().device;
    let mut visited = 0;
    for row in VARIANTS.iter().filter(|row| row.tile.dtype == T::DTYPE && device.info().runs(row.entry.arch)) {
        let accepts = row.entry.accepts.contains(FeatureSet::of(BRANCH));
        assert_eq!(accepts, matches!(row.pass, Pass::Forward | Pass::Backward), "{}", row.entry.symbol);
        if !accepts {
            continue;
        }
        let clusters = row.tile.in_clusters();
        let alike = VARIANTS.iter().filter(|other| other.pass == row.pass && other.tile.dtype == row.tile.dtype);
        // The first columns that the rows before it do not take, whole vectors of them and not.
        let shorter = alike.clone().take_while(|other| *other != row);
        let shorter = shorter.filter(|other| clusters || other.tile.sharing == Sharing::Alone);
        let least = shorter.map(|other| other.tile.most_columns()).max().unwrap_or(0) as usize;
        for columns in [least + 16 / T::DTYPE.bytes(), least + 5] {
            let rows = row.tile.block_rows() as usize + 1;
            // A power of two as its factor, so that nothing is rounded.
            let p = 0.75;
            let shape = [rows, columns];
            let norm = Norm::rms(1e-5).with_clusters(clusters).with_dropout(Dropout::new(p, SEED, OFFSET));
            let (ones, zeros) = (filled::<T>(device, &shape, 1.0), filled::<T>(device, &shape, 0.0));
            let expected = mask(rows, columns, p);
            let (found, plan) = match row.pass {
                Pass::Forward => {
                    let NormOutput { residual_out, plan, .. } = norm.forward(&ones.view()).unwrap();
                    (residual_out.expect("another tensor than x"), plan)
                }
                _ => {
                    let rstd = filled::<f32>(device, &[rows], 1.0);
                    let saved = NormSaved::new(&ones.view(), &rstd.view());
                    let norm = norm.with_residual(&zeros.view());
                    let found = norm.backward(&saved, &zeros.view(), Some(&ones.view())).unwrap();
                    let dresidual = found.dresidual.expect("another tensor than dx");
                    assert!(numbers::<T>(&dresidual).iter().all(|&x| x == 1.0), "{}", row.entry.symbol);
                    (found.dx, found.plan)
                }
            };
            assert_eq!(plan.steps[0].kernel.entry.symbol, row.entry.symbol, "{plan}");
            let found = numbers::<T>(&found);
            let wrong = (0..found.len()).find(|&i| found[i] != expected[i]);
            assert_eq!(
                wrong,
                None,
                "{} of {columns} columns: row, column {:?}",
                row.entry.symbol,
                wrong.map(|i| (i / columns, i % columns))
            );
            visited += 1;
        }
    }
    assert!(visited >= 2 * 20, "{visited}");
}

for_each_dtype!(every_row_of_the_list_keeps_the_same);

/// The numbers of a row do not depend on how many thread blocks hold it.
#[test]
fn a_cluster_and_a_thread_block_keep_the_same() {
    let device = &device::shared().device;
    let (rows, columns) = (3, 20_000);
    let case = Case { dropout: Some(Dropout::new(0.4, 11, 5)), ..Case::new(rows, columns, true) };
    let data: Vec<bf16> = case.draw(0, rows * columns, 1.0, 0.0);
    let x = Tensor::from_slice(device, &data, [rows, columns], Layout::RowMajor).unwrap();
    let run = |clusters| {
        let normed = case.norm().with_clusters(clusters).with_statistics(true).forward(&x.view()).unwrap();
        let saved = normed.saved(&x.view()).unwrap();
        let gradients = case.norm().with_clusters(clusters).backward(&saved, &x.view(), Some(&x.view())).unwrap();
        let sum = numbers::<bf16>(normed.residual_out.as_ref().unwrap());
        (normed.plan.steps[0].cluster, sum, numbers::<bf16>(&gradients.dx))
    };
    let ((one, sum, dx), (other, others_sum, others_dx)) = (run(false), run(true));
    assert!(one == 1 && (other > 1 || !device.info().runs(kernel_spec::Arch::Sm90a)));
    assert_eq!(sum, others_sum);
    let dropped = |of: &[f64]| -> Vec<usize> { (0..of.len()).filter(|&i| of[i] == 0.0).collect() };
    assert_eq!(dropped(&dx), dropped(&others_dx));
    // Forward and backward, too; numbers that are 0 in x itself are few.
    let by_definition: Vec<usize> =
        (0..sum.len()).filter(|i| !keep_in_row(11, 5, i / columns, i % columns, 0.4)).collect();
    assert!(by_definition.iter().all(|&i| sum[i] == 0.0 && dx[i] == 0.0));
    let share = by_definition.len() as f64 / sum.len() as f64;
    // Five standard deviations.
    assert!((share - 0.4).abs() < 5.0 * (0.4f64 * 0.6 / sum.len() as f64).sqrt(), "{share}");
}

/// With a probability of 0 it is the call without, to the entry's text; close to 1, what is dropped is gone, whatever it was.
#[test]
fn nothing_and_nearly_everything() {
    let device = &device::shared().device;
    let (rows, columns) = (4, 300);
    let case = Case::new(rows, columns, true);
    let data: Vec<f32> = case.draw(0, rows * columns, 1.0, 0.0);
    let x = Tensor::from_slice(device, &data, [rows, columns], Layout::RowMajor).unwrap();
    let none = Norm::layer(1e-5).with_statistics(true);
    let zero = none.with_dropout(Dropout::new(0.0, SEED, OFFSET));
    let (plain, found) = (none.forward(&x.view()).unwrap(), zero.forward(&x.view()).unwrap());
    assert!(found.residual_out.is_none() && found.plan == plain.plan);
    assert_eq!(numbers::<f32>(&found.out), numbers::<f32>(&plain.out));
    let residual: Vec<f32> = case.draw(1, rows * columns, 1.0, 0.0);
    let residual = Tensor::from_slice(device, &residual, [rows, columns], Layout::RowMajor).unwrap();
    let of_residual = numbers::<f32>(&none.forward(&residual.view()).unwrap().out);
    // The share that is kept is 1 of 65536: no seed of these keeps an element.
    let most = Dropout::new(1.0 - f32::EPSILON, 5, 0);
    assert!((0..rows * columns).all(|i| !keep_in_row(5, 0, i / columns, i % columns, most.p())));
    let wild = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1.0];
    let wild: Vec<f32> = wild.iter().copied().cycle().take(rows * columns).collect();
    let wild = Tensor::from_slice(device, &wild, [rows, columns], Layout::RowMajor).unwrap();
    let found = none.with_dropout(most).with_residual(&residual.view()).forward(&wild.view()).unwrap();
    assert_eq!(numbers::<f32>(&found.out), of_residual);
    let gradients = none
        .with_dropout(most)
        .with_residual(&residual.view())
        .backward(&found.saved(&wild.view()).unwrap(), &residual.view(), None)
        .unwrap();
    assert!(numbers::<f32>(&gradients.dx).iter().all(|&dx| dx == 0.0));
    assert!(numbers::<f32>(&gradients.dresidual.unwrap()).iter().any(|&dx| dx != 0.0));
}

/// A training step by what the calls make themselves: the sum in the type of x, the gradient of the residual apart from that of x, and other numbers for
/// another offset.
#[test]
fn a_step_makes_what_it_needs() {
    let device = &device::shared().device;
    let (rows, columns) = (6, 128);
    let ones = filled::<bf16>(device, &[rows, columns], 1.0);
    let stream = filled::<f32>(device, &[rows, columns], 0.5);
    let scales: Vec<f32> = (0..rows).map(|row| row as f32).collect();
    let rowscale = Tensor::from_slice(device, &scales, [rows], Layout::RowMajor).unwrap();
    let norm = Norm::rms(1e-6).with_dropout(Dropout::new(0.5, SEED, OFFSET)).with_rowscale(&rowscale.view());
    let sum = |norm: &Norm<'_>| norm.forward(&ones.view()).unwrap().residual_out.unwrap();
    let expected: Vec<f64> =
        mask(rows, columns, 0.5).iter().enumerate().map(|(i, kept)| kept * (i / columns) as f64).collect();
    assert_eq!((sum(&norm).dtype(), numbers::<bf16>(&sum(&norm))), (DType::Bf16, expected.clone()));
    let next = norm.with_dropout(Dropout::new(0.5, SEED, OFFSET + ferroflash::dropout::ROWS_NUMBERS));
    assert_ne!(numbers::<bf16>(&sum(&next)), expected);
    let norm = norm.with_residual(&stream.view()).with_statistics(true);
    let normed = norm.forward(&ones.view()).unwrap();
    assert_eq!(normed.plan.steps[0].kernel.features, FeatureSet::of(BRANCH).union(FeatureSet::of(1)));
    // x and out, the residual and the sum, factors and statistics.
    assert_eq!(normed.plan.bytes, (rows * columns * (2 + 2 + 4 + 4) + rows * (4 + 4)) as u64);
    let total: Vec<f64> = expected.iter().map(|x| x + 0.5).collect();
    assert_eq!(numbers::<f32>(normed.residual_out.as_ref().unwrap()), total);
    let saved = normed.saved(&ones.view()).unwrap();
    let NormGradients { dx, dresidual, .. } = norm.backward(&saved, &ones.view(), None).unwrap();
    let dresidual = numbers::<f32>(&dresidual.unwrap());
    for (i, (dx, dh)) in numbers::<bf16>(&dx).into_iter().zip(dresidual).enumerate() {
        assert_eq!(dx, f64::from(bf16::from_f64(dh * expected[i])), "{i}");
    }
}

/// Seed and offset on the device are read at each launch.
#[test]
fn numbers_on_the_device() {
    let device = &device::shared().device;
    let (rows, columns) = (5, 130);
    let ones = filled::<f32>(device, &[rows, columns], 1.0);
    let words = |seed: u64, offset: u64| [seed as i32, (seed >> 32) as i32, offset as i32, (offset >> 32) as i32];
    let state = Indices::from_slice(device, &words(SEED, OFFSET - 7)).unwrap();
    // SAFETY: the numbers live as long as the calls.
    let dropout = unsafe { Dropout::from_device(0.5, state.view().address(), 7) };
    let norm = Norm::layer(1e-5).with_dropout(dropout).with_statistics(true);
    let normed = norm.forward(&ones.view()).unwrap();
    assert_eq!(numbers::<f32>(normed.residual_out.as_ref().unwrap()), mask(rows, columns, 0.5));
    let zeros = filled::<f32>(device, &[rows, columns], 0.0);
    let gradients = norm.backward(&normed.saved(&ones.view()).unwrap(), &zeros.view(), Some(&ones.view())).unwrap();
    assert_eq!(numbers::<f32>(&gradients.dx), mask(rows, columns, 0.5));
}

#[test]
fn what_is_refused() {
    let device = &device::shared().device;
    let x = filled::<bf16>(device, &[3, 16], 1.0);
    for p in [-0.1, 1.0, 1.5, f32::NAN] {
        let norm = Norm::rms(1e-5).with_dropout(Dropout::new(p, 0, 0));
        let rstd = filled::<f32>(device, &[3], 1.0);
        let text = format!("dropout of {p} is not accepted; probabilities from 0 to below 1 are");
        for found in [
            norm.forward(&x.view()).unwrap_err(),
            norm.backward(&NormSaved::new(&x.view(), &rstd.view()), &x.view(), None).unwrap_err(),
        ] {
            assert!(matches!(found, Error::Dropout(_)) && found.to_string() == text, "{found}");
        }
    }
    // SAFETY: the call is refused before anything reads it.
    let odd = Norm::rms(1e-5).with_dropout(unsafe { Dropout::from_device(0.5, 12, 0) });
    assert!(matches!(odd.plan(&x.view()), Err(Error::Dropout(_))));
    for (rowscale, text) in [
        (filled::<bf16>(device, &[3], 1.0), "rowscale holds bf16; f32 is accepted"),
        (filled::<f32>(device, &[16], 1.0), "rowscale has shape [16]; x makes it [3]"),
    ] {
        let found = Norm::rms(1e-5).with_rowscale(&rowscale.view()).forward(&x.view()).unwrap_err();
        assert!(matches!(found, Error::Operator(_)) && found.to_string() == text, "{found}");
    }
    // The sum is of the type of x where nothing else says its type, and is not to lie on the factors of the rows.
    let rowscale = filled::<f32>(device, &[3], 1.0);
    let norm = Norm::rms(1e-5).with_rowscale(&rowscale.view());
    let (mut out, mut sum) = (filled::<bf16>(device, &[3, 16], 0.0), filled::<f32>(device, &[3, 16], 0.0));
    let mut into = NormOutputViewMut::new(out.view_mut()).with_residual_out(sum.view_mut());
    let found = norm.forward_into(&device.default_stream(), &x.view(), &mut into).unwrap_err();
    let expected =
        OperatorError::DType { tensor: Operand::ResidualOut, found: DType::F32, accepted: vec![DType::Bf16] };
    assert!(matches!(&found, Error::Operator(found) if *found == expected), "{found}");
    let rstd = filled::<f32>(device, &[3], 1.0);
    // SAFETY: the call is refused before anything is written.
    let over = unsafe {
        ferroflash::TensorViewMut::from_raw(device, rowscale.address(), 24, [3, 2], [2, 1], DType::Bf16).unwrap()
    };
    let narrow = filled::<bf16>(device, &[3, 2], 1.0);
    let saved = NormSaved::new(&narrow.view(), &rstd.view());
    let found = norm
        .backward_into(&device.default_stream(), &saved, &narrow.view(), None, &mut NormGradientsViewMut::new(over))
        .unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Dx, other: Operand::Rowscale }), "{found}");
}
