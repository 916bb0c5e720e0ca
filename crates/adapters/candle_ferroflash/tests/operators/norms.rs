//! RMSNorm and LayerNorm.

use crate::support::{DTYPES, Laid, Lie, check, f64s, values, weighted};
use candle_core::{DType, Device, Tensor, Var};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{Dropout, Norm, layer_norm, layer_norm_residual, rms_norm, rms_norm_residual};
use ferroflash::dropout::keep_in_row;
use ferroflash::reference::{ReferenceBranch, ReferenceNorm};

const EPSILON: f32 = 1e-5;

/// Options of a call, and how its tensors lie.
#[derive(Clone, Copy, Debug)]
struct Case<'a> {
    shape: &'a [usize],
    layer: bool,
    /// Weights, and whether they are f32.
    weight: Option<bool>,
    bias: bool,
    zero_centred: bool,
    /// A residual, and whether it is f32.
    residual: Option<bool>,
    /// The probability that an element of x is dropped.
    dropout: Option<f32>,
    /// Factors of the rows of x, among them 0 and one below.
    rowscale: bool,
    lie: Lie,
}

impl Case<'_> {
    /// Forward and backward, compared with the reference.
    fn check(&self, (dtype, of): (DType, ferroflash::DType)) {
        let name = |what: &str| format!("{what} of {dtype:?} {self:?}");
        let type_of = |wide: bool| if wide { DType::F32 } else { dtype };
        let columns = *self.shape.last().unwrap();
        let wide_weight = self.weight.unwrap_or(false);
        let x = Laid::new(&values(self.shape, 1, dtype), self.lie);
        let residual = self.residual.map(|wide| Laid::new(&values(self.shape, 2, type_of(wide)), self.lie));
        let vector = |seed| Laid::new(&values(&[columns], seed, type_of(wide_weight)), Lie::Whole);
        let (weight, bias) = (self.weight.map(|_| vector(3)), self.bias.then(|| vector(4)));
        let mut norm = if self.layer { Norm::layer(EPSILON) } else { Norm::rms(EPSILON) };
        if let Some(weight) = &weight {
            norm = norm.with_weight(&weight.view());
        }
        if let Some(bias) = &bias {
            norm = norm.with_bias(&bias.view());
        }
        if self.zero_centred {
            norm = norm.zero_centred();
        }
        let dropout = self.dropout.map(|p| Dropout::new(p, 0x1234_5678_9abc_def0, 77));
        if let Some(dropout) = dropout {
            norm = norm.with_dropout(dropout);
        }
        let outer = &self.shape[..self.shape.len() - 1];
        let rowscale = self.rowscale.then(|| {
            let factors = (0..outer.iter().product::<usize>()).map(|row| (row % 5) as f32 * 0.75 - 0.75);
            Tensor::from_iter(factors, &Device::Cpu).unwrap().reshape(outer).unwrap()
        });
        if let Some(rowscale) = &rowscale {
            norm = norm.with_rowscale(rowscale);
        }
        let has_branch = dropout.is_some() || rowscale.is_some();
        let dout = values(self.shape, 5, dtype);
        let (out, sum) = match &residual {
            None if has_branch => {
                let (out, sum) = norm.forward_sum(&x.view()).unwrap();
                assert_eq!(f64s(&out), f64s(&norm.forward(&x.view()).unwrap()), "{}", name("out alone"));
                (out, Some(sum))
            }
            None => (norm.forward(&x.view()).unwrap(), None),
            Some(residual) => {
                let (out, sum) = norm.forward_residual(&x.view(), &residual.view()).unwrap();
                (out, Some(sum))
            }
        };
        let mut number = weighted(&out, &dout).to_dtype(DType::F32).unwrap();
        // The loss depends on the sum in another way, too.
        let dsum = sum.as_ref().map(|sum| values(self.shape, 6, sum.dtype()));
        if let (Some(sum), Some(dsum)) = (&sum, &dsum) {
            number = (number + weighted(sum, dsum).to_dtype(DType::F32).unwrap()).unwrap();
        }
        let gradients = number.backward().unwrap();

        let applied = weight.as_ref().map(|weight| {
            let centre = f64::from(u8::from(self.zero_centred));
            f64s(&weight.view()).into_iter().map(|weight| weight + centre).collect::<Vec<_>>()
        });
        let biases = bias.as_ref().map(|bias| f64s(&bias.view()));
        let reference = ReferenceNorm {
            columns,
            takes_mean_off: self.layer,
            epsilon: EPSILON.into(),
            weight: applied.as_deref(),
            bias: biases.as_deref(),
        };
        let wide = |wide: bool| if wide { ferroflash::DType::F32 } else { of };
        let sum_type = wide(self.residual.unwrap_or(false));
        let added = residual.as_ref().map(|residual| f64s(&residual.view()));
        let factors = rowscale.as_ref().map(f64s);
        let branch = ReferenceBranch { columns, dropout, rowscale: factors.as_deref() };
        let numbers = branch.apply(&f64s(&x.view())).unwrap();
        let exact = reference.forward(&numbers, added.as_deref()).unwrap();
        let rounded = reference.forward_rounded(&numbers, added.as_deref(), [of, sum_type]).unwrap();
        check(&name("out"), &f64s(&out), &exact.out, &rounded.out, 1.0);
        if let Some(sum) = &sum {
            check(&name("the sum"), &f64s(sum), &exact.sum, &rounded.sum, 1.0);
        }
        // Gradients are those of the sum as it was rounded.
        let h = sum.as_ref().map_or_else(|| f64s(&x.view()), f64s);
        let (dout, dh) = (f64s(&dout), dsum.as_ref().map(f64s));
        let exact = reference.backward(&h, &dout, dh.as_deref()).unwrap();
        let types = [of, wide(wide_weight)];
        let rounded = reference.backward_rounded(&h, &dout, dh.as_deref(), types).unwrap();
        let of_sum = reference.backward_rounded(&h, &dout, dh.as_deref(), [sum_type, types[1]]).unwrap().dx;
        let (of_x, rounded_of_x, of_residual) = match (&sum, &dh) {
            (Some(sum), Some(dh)) if has_branch => {
                // Rows that x drops out of have large gradients, which candle adds to those of the sum when they are rounded already. What becomes of x becomes
                // of that.
                let through = reference.backward_rounded(&h, &dout, None, [sum_type, types[1]]).unwrap().dx;
                let added = rounded_to(through.iter().zip(dh).map(|(through, dh)| through + dh), sum.dtype());
                (branch.apply(&exact.dx).unwrap(), branch.apply_rounded(&added, of).unwrap(), added)
            }
            _ => (exact.dx.clone(), rounded.dx.clone(), of_sum),
        };
        check(&name("dx"), &x.gradient(&gradients), &of_x, &rounded_of_x, 1.0);
        if let Some(residual) = &residual {
            check(&name("dresidual"), &residual.gradient(&gradients), &exact.dx, &of_residual, 1.0);
        }
        if let Some(weight) = &weight {
            check(&name("dweight"), &weight.gradient(&gradients), &exact.dweight, &rounded.dweight, 1.0);
        }
        if let Some(bias) = &bias {
            check(&name("dbias"), &bias.gradient(&gradients), &exact.dbias, &rounded.dbias, 1.0);
        }
    }
}

/// The numbers in a type, which f32 holds well enough on the way.
fn rounded_to(numbers: impl Iterator<Item = f64>, dtype: DType) -> Vec<f64> {
    let numbers = Tensor::from_iter(numbers.map(|x| x as f32), &Device::Cpu).unwrap();
    f64s(&numbers.to_dtype(dtype).unwrap())
}

/// All options that there are, in shapes whose rows are whole vectors and in others.
#[test]
fn every_option_in_every_type() {
    emulate_cpu(true);
    let plain = Case {
        shape: &[5, 11, 64],
        layer: false,
        weight: Some(false),
        bias: false,
        zero_centred: false,
        residual: None,
        dropout: None,
        rowscale: false,
        lie: Lie::Whole,
    };
    let cases = [
        plain,
        Case { shape: &[37, 77], lie: Lie::Gaps(3, 2), ..plain },
        Case { shape: &[7, 6, 40], weight: Some(true), zero_centred: true, lie: Lie::Turned, ..plain },
        Case { weight: None, ..plain },
        Case { bias: true, residual: Some(false), lie: Lie::Gaps(8, 8), ..plain },
        Case { residual: Some(true), weight: None, ..plain },
        Case { layer: true, bias: true, ..plain },
        Case { shape: &[3, 15, 33], layer: true, weight: Some(true), bias: true, residual: Some(true), ..plain },
        Case { layer: true, weight: None, residual: Some(false), lie: Lie::Turned, ..plain },
        Case { shape: &[4, 1300], layer: true, weight: None, bias: true, ..plain },
        Case { shape: &[2, 3, 2, 5, 24], zero_centred: true, ..plain },
        Case { dropout: Some(0.25), residual: Some(false), ..plain },
        Case { dropout: Some(0.5), rowscale: true, residual: Some(true), layer: true, bias: true, ..plain },
        Case { shape: &[37, 77], dropout: Some(0.1), lie: Lie::Gaps(3, 2), ..plain },
        Case { shape: &[7, 6, 40], rowscale: true, weight: None, lie: Lie::Turned, ..plain },
        Case { shape: &[3, 15, 33], dropout: Some(0.75), rowscale: true, residual: Some(false), layer: true, ..plain },
        Case { dropout: Some(0.0), ..plain },
    ];
    for case in cases {
        for dtype in DTYPES {
            case.check(dtype);
        }
    }
}

/// The functions are the options that their names say, to the bit, and no gradient is computed of what is no variable.
#[test]
fn the_functions_are_these_options() {
    emulate_cpu(true);
    let [x, residual] = [1, 2].map(|seed| values(&[6, 32], seed, DType::F32));
    let [alpha, beta] = [3, 4].map(|seed| values(&[32], seed, DType::F32));
    let rms = Norm::rms(1e-6).with_weight(&alpha);
    let layer = Norm::layer(1e-5).with_weight(&alpha).with_bias(&beta);
    assert_eq!(f64s(&rms_norm(&x, &alpha, 1e-6).unwrap()), f64s(&rms.forward(&x).unwrap()));
    assert_eq!(f64s(&layer_norm(&x, &alpha, &beta, 1e-5).unwrap()), f64s(&layer.forward(&x).unwrap()));
    for (found, expected) in [
        (rms_norm_residual(&x, &residual, &alpha, 1e-6), rms.forward_residual(&x, &residual)),
        (layer_norm_residual(&x, &residual, &alpha, &beta, 1e-5), layer.forward_residual(&x, &residual)),
    ] {
        let (found, expected) = (found.unwrap(), expected.unwrap());
        assert_eq!([f64s(&found.0), f64s(&found.1)], [f64s(&expected.0), f64s(&expected.1)]);
        assert!(!found.0.track_op() && !found.1.track_op());
    }

    // Weights alone, of a norm of a sum.
    let alpha = Var::from_tensor(&alpha).unwrap();
    let (out, sum) = rms_norm_residual(&x, &residual, &alpha, 1e-6).unwrap();
    assert!(out.track_op() && !sum.track_op());
    let gradients = out.sum_all().unwrap().backward().unwrap();
    let reference =
        ReferenceNorm { columns: 32, takes_mean_off: false, epsilon: 1e-6, weight: Some(&f64s(&alpha)), bias: None };
    let types = [ferroflash::DType::F32; 2];
    let exact = reference.backward(&f64s(&sum), &[1.0; 6 * 32], None).unwrap().dweight;
    let rounded = reference.backward_rounded(&f64s(&sum), &[1.0; 6 * 32], None, types).unwrap().dweight;
    check("dweight", &f64s(gradients.get(&alpha).unwrap()), &exact, &rounded, 1.0);
}

/// A loss of the sum alone, and rows that are none.
#[test]
fn results_that_nobody_uses_and_rows_that_are_none() {
    emulate_cpu(true);
    let [x, residual] = [1, 2].map(|seed| Var::from_tensor(&values(&[3, 16], seed, DType::F32)).unwrap());
    let alpha = Var::from_tensor(&values(&[16], 3, DType::F32)).unwrap();
    let (_, sum) = rms_norm_residual(&x, &residual, &alpha, 1e-6).unwrap();
    let gradients = sum.sum_all().unwrap().backward().unwrap();
    assert_eq!(f64s(gradients.get(&x).unwrap()), [1.0; 48]);
    assert_eq!(f64s(gradients.get(&residual).unwrap()), [1.0; 48]);
    assert!(gradients.get(&alpha).is_none());

    let none = Tensor::zeros((0, 16), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(rms_norm(&none, &alpha, 1e-6).unwrap().dims(), [0, 16]);
}

/// Elements are dropped by seed, offset, row and column alone, forward and backward, whatever they are; a loss of the sum alone has gradients, too.
#[test]
fn what_is_dropped() {
    emulate_cpu(true);
    let (rows, columns, p) = (6, 50, 0.5);
    let dropout = Dropout::new(p, 9, 4);
    let keeps = |i: usize| keep_in_row(9, 4, i / columns, i % columns, p);
    let wild: Vec<f32> = (0..rows * columns).map(|i| if keeps(i) { 1.0 } else { f32::NAN }).collect();
    let x = Var::from_tensor(&Tensor::from_vec(wild, (rows, columns), &Device::Cpu).unwrap()).unwrap();
    let residual = Var::from_tensor(&Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let rowscale = Tensor::full(3f32, rows, &Device::Cpu).unwrap();
    let norm = Norm::rms(1e-6).with_dropout(dropout).with_rowscale(&rowscale);
    let expected: Vec<f64> = (0..rows * columns).map(|i| if keeps(i) { 6.0 } else { 0.0 }).collect();
    for (sum, has_residual) in
        [(norm.forward_residual(&x, &residual).unwrap().1, true), (norm.forward_sum(&x).unwrap().1, false)]
    {
        assert_eq!(f64s(&sum), expected);
        let gradients = sum.sum_all().unwrap().backward().unwrap();
        assert_eq!(f64s(gradients.get(&x).unwrap()), expected);
        assert_eq!(gradients.get(&residual).map(f64s), has_residual.then(|| vec![1.0; rows * columns]));
    }
    // Nothing is kept, and nothing computed, of what no gradient is wanted of.
    let frozen = x.as_detached_tensor();
    let (out, sum) = norm.forward_residual(&frozen, &residual).unwrap();
    let gradients = (out.sum_all().unwrap() + sum.sum_all().unwrap()).unwrap().backward().unwrap();
    assert!(gradients.get(&residual).is_some() && gradients.get(&x).is_none());
    // The sum is x itself where x is taken as it is.
    let (out, same) = Norm::rms(1e-6).forward_sum(&residual).unwrap();
    assert_eq!((same.id(), f64s(&out)), (residual.id(), vec![0.0; rows * columns]));
}
