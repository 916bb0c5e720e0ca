//! Cross-entropy of the logits of a dense layer.

use crate::cross_entropy::{IGNORED, targets, tensor};
use crate::support::{DTYPES, Laid, Lie, check, f64s, values, weighted};
use candle_core::{DType, Device, Tensor, Var};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{CrossEntropy, LinearCrossEntropy, cross_entropy, linear, linear_cross_entropy};
use ferroflash::operators::Activation;
use ferroflash::reference::{ReferenceCrossEntropy, ReferenceDense, ReferenceLinearCrossEntropy};

/// A layer and its loss, and how its tensors lie.
#[derive(Clone, Copy, Debug)]
struct Case<'a> {
    /// Axes of rows.
    outer: &'a [usize],
    depth: usize,
    bias: bool,
    loss: ReferenceCrossEntropy,
    /// How x and weights lie.
    lie: Lie,
    chunk_bytes: Option<u64>,
}

impl Case<'_> {
    /// The layer that is tested, with these weights and biases.
    fn layer(&self, weight: &Tensor, bias: Option<&Tensor>) -> LinearCrossEntropy {
        let ReferenceCrossEntropy { scale, smoothing, z_loss, ignored, .. } = self.loss;
        let loss = CrossEntropy::new().with_scale(scale as f32).with_smoothing(smoothing as f32);
        let loss = loss.with_z_loss(z_loss as f32);
        let loss = ignored.map_or(loss.clone(), |ignored| loss.with_ignored(ignored));
        let of = LinearCrossEntropy::new(weight).with_loss(loss);
        let of = bias.map_or(of.clone(), |bias| of.with_bias(bias));
        self.chunk_bytes.map_or(of.clone(), |bytes| of.with_chunk_bytes(bytes))
    }

    /// Losses, their mean and gradients, compared with the reference.
    fn check(&self, (dtype, of): (DType, ferroflash::DType), unsigned: bool) {
        let Case { outer, depth, loss, lie, .. } = *self;
        let name = |what: &str| format!("{what} of {dtype:?} {self:?}");
        let (classes, rows) = (loss.classes, outer.iter().product::<usize>());
        let shape: Vec<_> = outer.iter().copied().chain([depth]).collect();
        let tensors = || {
            let bias = self.bias.then(|| Laid::new(&values(&[classes], 3, dtype), Lie::Whole));
            (Laid::new(&values(&shape, 1, dtype), lie), Laid::new(&values(&[classes, depth], 2, dtype), lie), bias)
        };
        let targets = targets(rows, classes, loss.ignored.is_some());
        let given = tensor(&targets, outer, unsigned);
        let (x, weight, bias) = tensors();
        let layer = self.layer(&weight.view(), bias.as_ref().map(Laid::view).as_ref());
        let losses = layer.losses(&x.view(), &given).unwrap();
        assert_eq!((losses.dims(), losses.dtype()), (outer, DType::F32), "{}", name("losses"));
        let dloss = values(outer, 4, DType::F32);
        let gradients = weighted(&losses, &dloss).backward().unwrap();

        let (numbers, weights) = (f64s(&x.view()), f64s(&weight.view()));
        let biases = bias.as_ref().map(|bias| f64s(&bias.view()));
        let dense =
            ReferenceDense { depth, weight: &weights, bias: biases.as_deref(), activation: Activation::Identity };
        let reference = ReferenceLinearCrossEntropy { layer: dense, loss };
        let exact = reference.forward(&numbers, &targets).unwrap().loss;
        let rounded = reference.forward_rounded(&numbers, &targets).unwrap().loss;
        check(&name("losses"), &f64s(&losses), &exact, &rounded, 1.0);
        let check_gradients =
            |name: &dyn Fn(&str) -> String, gradients, dloss: &[f64], x: &Laid, weight: &Laid, bias: &Option<Laid>| {
                let exact = reference.backward(&numbers, &targets, dloss).unwrap();
                let rounded = reference.backward_rounded(&numbers, &targets, dloss, of).unwrap();
                check(&name("dx"), &x.gradient(gradients), &exact.dx, &rounded.dx, 1.0);
                check(&name("dweight"), &weight.gradient(gradients), &exact.dweight, &rounded.dweight, 1.0);
                if let Some(bias) = bias {
                    check(&name("dbias"), &bias.gradient(gradients), &exact.dbias, &rounded.dbias, 1.0);
                }
            };
        check_gradients(&name, &gradients, &f64s(&dloss), &x, &weight, &bias);

        // The mean is over the rows that count, and its gradients have one over them as a factor.
        let (x, weight, bias) = tensors();
        let layer = self.layer(&weight.view(), bias.as_ref().map(Laid::view).as_ref());
        let mean = layer.mean(&x.view(), &given).unwrap();
        let counted = targets.iter().filter(|&&target| Some(target) != loss.ignored).count() as f64;
        let right = exact.iter().sum::<f64>() / counted;
        let found = f64::from(mean.to_scalar::<f32>().unwrap());
        assert!((found / right - 1.0).abs() < 1e-5, "{}: {found} for {right}", name("the mean"));
        let of_mean = |what: &str| name(&format!("{what} of the mean"));
        check_gradients(&of_mean, &mean.backward().unwrap(), &vec![1.0 / counted; rows], &x, &weight, &bias);
    }
}

/// All options that there are, in shapes whose rows are whole vectors and in others, in one chunk of classes and in several.
#[test]
fn losses_and_gradients_in_every_type() {
    emulate_cpu(true);
    let plain = ReferenceCrossEntropy { classes: 50, scale: 0.25, smoothing: 0.0, z_loss: 0.0, ignored: None };
    let first = Case { outer: &[37], depth: 40, bias: false, loss: plain, lie: Lie::Whole, chunk_bytes: None };
    let cases = [
        first,
        Case {
            outer: &[3, 11],
            depth: 33,
            bias: true,
            loss: ReferenceCrossEntropy { classes: 77, ignored: Some(IGNORED), ..plain },
            lie: Lie::Gaps(1, 2),
            ..first
        },
        Case {
            outer: &[2, 2, 9],
            bias: true,
            loss: ReferenceCrossEntropy { smoothing: 0.125, z_loss: 0.25, scale: 0.125, ..plain },
            lie: Lie::Gaps(8, 8),
            ..first
        },
        // Three chunks, of which the last is no whole one.
        Case {
            depth: 16,
            bias: true,
            loss: ReferenceCrossEntropy { classes: 600, ignored: Some(IGNORED), smoothing: 0.0625, ..plain },
            chunk_bytes: Some(1),
            ..first
        },
    ];
    for dtype in DTYPES {
        for (i, case) in cases.iter().enumerate() {
            case.check(dtype, i % 2 == 0);
        }
    }
}

/// Whatever a gradient is wanted of, alone or with others; of nothing else one is computed, and the bits are the same.
#[test]
fn gradients_of_what_is_a_variable() {
    emulate_cpu(true);
    let shapes: [&[usize]; 3] = [&[9, 24], &[31, 24], &[31]];
    let tensors: [Tensor; 3] = std::array::from_fn(|i| values(shapes[i], i, DType::F32));
    let targets = tensor(&targets(9, 31, true), &[9], true);
    let run = |wanted: usize| {
        let vars: [Tensor; 3] = std::array::from_fn(|i| match wanted >> i & 1 {
            1 => Var::from_tensor(&tensors[i]).unwrap().into_inner(),
            _ => tensors[i].clone(),
        });
        let [x, weight, bias] = &vars;
        let layer = LinearCrossEntropy::new(weight).with_bias(bias);
        let mean = layer.with_loss(CrossEntropy::new().with_ignored(IGNORED)).mean(x, &targets).unwrap();
        assert_eq!(mean.track_op(), wanted != 0);
        let gradients = mean.backward().unwrap();
        (f64s(&mean), vars.map(|of| gradients.get(&of).map(f64s)))
    };
    let (mean, all) = run(0b111);
    for wanted in 0..0b111 {
        let (found, gradients) = run(wanted);
        assert_eq!(found, mean, "{wanted:b}");
        for (i, gradient) in gradients.into_iter().enumerate() {
            assert_eq!(gradient, all[i].clone().filter(|_| wanted >> i & 1 == 1), "{wanted:b}: {i}");
        }
    }
}

/// The function is the loss of the layer's logits, to f32's precision, with the gradients that candle finds through both.
#[test]
fn it_is_the_loss_of_the_layer() {
    emulate_cpu(true);
    let var = |shape: &[usize], seed| Var::from_tensor(&values(shape, seed, DType::F32)).unwrap();
    let (x, weight, bias) = (var(&[9, 12], 1), var(&[21, 12], 2), var(&[21], 3));
    let targets = tensor(&targets(9, 21, false), &[9], true);
    let ours = linear_cross_entropy(&x, &weight, Some(&bias), &targets).unwrap();
    let theirs = cross_entropy(&linear(&x, &weight, Some(&bias)).unwrap(), &targets).unwrap();
    let near = |(a, b): (f64, f64)| (a - b).abs() < 1e-5 * b.abs().max(1.0);
    assert!(f64s(&ours).into_iter().zip(f64s(&theirs)).all(near));
    let (found, expected) = (ours.backward().unwrap(), theirs.backward().unwrap());
    for of in [&x, &weight, &bias] {
        let [found, expected] = [&found, &expected].map(|gradients| f64s(gradients.get(of).unwrap()));
        assert!(found.into_iter().zip(expected).all(near));
    }
}

/// A target that is no class is seen in the result, and rows that are none have no loss and no gradients.
#[test]
fn targets_that_make_no_sense_and_rows_that_are_none() {
    emulate_cpu(true);
    let (x, weight) = (values(&[3, 8], 1, DType::F32), values(&[5, 8], 2, DType::F32));
    let losses = LinearCrossEntropy::new(&weight).losses(&x, &tensor(&[0, 5, 4], &[3], false)).unwrap();
    assert_eq!(f64s(&losses).iter().map(|loss| loss.is_nan()).collect::<Vec<_>>(), [false, true, false]);

    let weight = Var::from_tensor(&weight).unwrap();
    let none = Tensor::zeros((0, 8), DType::F32, &Device::Cpu).unwrap();
    let losses = LinearCrossEntropy::new(&weight).losses(&none, &tensor(&[], &[0], true)).unwrap();
    assert_eq!(losses.dims(), [0]);
    let gradients = losses.sum_all().unwrap().backward().unwrap();
    assert_eq!(f64s(gradients.get(&weight).unwrap()), [0.0; 40]);
}
