//! Cross-entropy, forward and backward, against its definition. What it refuses is in `cross_entropy_errors`, what of its kernels may not go in
//! `softmax_mutants`.

use crate::norms::lie;
use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::lie::Lie;
use crate::support::rule::check;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{CrossEntropy, CrossEntropyOutputViewMut, CrossEntropySaved, Operation};
use ferroflash::reference::ReferenceCrossEntropy;
use ferroflash::{DType, Device, Element, EmulatorConfig, Indices, Layout, Tensor, bf16, f16};
use kernel_spec::families::cross_entropy::{Pass, VARIANTS};
use kernel_spec::families::rows::Sharing;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// The target of rows that count for nothing.
const IGNORED: i32 = -100;

/// Rows, options and memory of a call.
#[derive(Clone, Debug)]
struct Case {
    /// Axes of rows.
    outer: Vec<usize>,
    classes: usize,
    scale: f32,
    smoothing: f32,
    z_loss: f32,
    /// One row of four is ignored.
    ignores: bool,
    clusters: bool,
    /// How logits and their gradients lie.
    lies: [Lie; 2],
    /// Gradients take the place of logits, and lie as these do.
    in_place: bool,
    /// Standard deviation of the logits.
    deviation: f64,
    seed: u64,
}

impl Case {
    fn new(rows: usize, classes: usize) -> Case {
        Case {
            outer: vec![rows],
            classes,
            scale: 1.0,
            smoothing: 0.0,
            z_loss: 0.0,
            ignores: false,
            clusters: true,
            lies: [Lie::default(); 2],
            in_place: false,
            deviation: 2.0,
            seed: 0,
        }
    }

    fn shape(&self) -> Vec<usize> {
        self.outer.iter().copied().chain([self.classes]).collect()
    }

    fn rows(&self) -> usize {
        self.outer.iter().product()
    }

    /// Rows that the error of the precision is taken over: those of the call first, and more of few. 256, as far as these are a million logits.
    fn drawn(&self) -> usize {
        self.rows().max(256.min((1 << 20) / self.classes)).max(4096 / self.classes)
    }

    fn rng(&self, what: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.seed.wrapping_mul(16) + what)
    }

    fn draw<T: Element>(&self, what: u64, elements: usize, deviation: f64) -> Vec<T> {
        let mut rng = self.rng(what);
        (0..elements).map(|_| T::from_f64(deviation * rng.sample::<f64, _>(StandardNormal))).collect()
    }

    /// A class a row; the first and the last one too.
    fn targets(&self, rows: usize) -> Vec<i32> {
        let mut rng = self.rng(2);
        let classes = self.classes as i32;
        let target = |row: usize, any: i32| match row % 8 {
            0 => 0,
            3 => classes - 1,
            2 | 5 if self.ignores => IGNORED,
            _ => any,
        };
        (0..rows).map(|row| target(row, rng.random_range(0..classes))).collect()
    }

    fn reference(&self) -> ReferenceCrossEntropy {
        ReferenceCrossEntropy {
            classes: self.classes,
            scale: self.scale.into(),
            smoothing: self.smoothing.into(),
            z_loss: self.z_loss.into(),
            ignored: self.ignores.then_some(IGNORED),
        }
    }

    fn cross_entropy(&self) -> CrossEntropy {
        let of = CrossEntropy::new().with_scale(self.scale).with_smoothing(self.smoothing).with_z_loss(self.z_loss);
        let of = if self.ignores { of.with_ignored(IGNORED) } else { of };
        of.with_clusters(self.clusters)
    }

    /// Losses, log-sum-exps and their losses into NaN; compares with the definition, and gives them all.
    fn forward<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let (shape, rows) = (self.shape(), self.rows());
        let logits = self.draw::<T>(0, self.drawn() * self.classes, self.deviation);
        let targets = self.targets(self.drawn());
        let tensor = self.lies[0].upload(device, &shape, &logits[..rows * self.classes]);
        let indices = Indices::from_slice(device, &targets[..rows]).unwrap();
        let line = Lie { offset: 3, ..Lie::default() };
        let [mut loss, mut lse, mut z_losses] = [0, 1, 2].map(|_| line.poisoned::<f32>(device, &self.outer));
        {
            let mut into = CrossEntropyOutputViewMut::new(loss.view_mut())
                .with_lse(lse.view_mut())
                .with_z_losses(z_losses.view_mut());
            let stream = device.default_stream();
            let run = self.cross_entropy().forward_into(&stream, &tensor.view(), &indices.view(), &mut into);
            run.and_then(|()| stream.synchronize()).map_err(|error| format!("{error}\n{self:#?}"))?;
        }
        let logits = to_f64(&logits);
        let exact = self.reference().forward(&logits, &targets).unwrap();
        let rounded = self.reference().forward_rounded(&logits, &targets).unwrap();
        let mut all = Vec::new();
        for (name, tensor, exact, rounded) in [
            ("loss", &loss, &exact.loss, &rounded.loss),
            ("lse", &lse, &exact.lse, &rounded.lse),
            ("z_losses", &z_losses, &exact.z_losses, &rounded.z_losses),
        ] {
            let found = line.read::<f32>(name, &self.outer, tensor)?;
            check(name, &found, exact, rounded, 1.0).map_err(|wrong| format!("{wrong}\n{self:#?}"))?;
            all.extend(found);
        }
        Ok(all)
    }

    /// Gradients into NaN, or into the logits; compares with the definition, and gives them.
    fn backward<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let (shape, rows) = (self.shape(), self.rows());
        let drawn = self.drawn();
        let logits = self.draw::<T>(0, drawn * self.classes, self.deviation);
        let (targets, dloss) = (self.targets(drawn), self.draw::<f32>(1, drawn, 1.0));
        let mut tensor = self.lies[0].upload(device, &shape, &logits[..rows * self.classes]);
        let indices = Indices::from_slice(device, &targets[..rows]).unwrap();
        let line = Lie { offset: 3, ..Lie::default() };
        let dloss_tensor = line.upload(device, &self.outer, &dloss[..rows]);
        let of = self.cross_entropy().with_lse(true);
        let lse = of.forward(&tensor.view(), &indices.view()).map_err(|error| error.to_string())?.lse.unwrap();
        let stream = device.default_stream();
        let (run, dlogits, lie) = if self.in_place {
            let (view, dloss) = (&mut tensor.view_mut(), dloss_tensor.view());
            (of.backward_in_place(&stream, view, &indices.view(), &lse.view(), &dloss), None, self.lies[0])
        } else {
            let mut dlogits = self.lies[1].poisoned::<T>(device, &shape);
            let saved = CrossEntropySaved::new(&tensor.view(), &indices.view(), &lse.view());
            let run = of.backward_into(&stream, &saved, &dloss_tensor.view(), &mut dlogits.view_mut());
            (run, Some(dlogits), self.lies[1])
        };
        run.and_then(|()| stream.synchronize()).map_err(|error| format!("{error}\n{self:#?}"))?;
        let (logits, dloss) = (to_f64(&logits), to_f64(&dloss));
        let exact = self.reference().backward(&logits, &targets, &dloss).unwrap();
        let rounded = self.reference().backward_rounded(&logits, &targets, &dloss, T::DTYPE).unwrap();
        let found = lie.read::<T>("dlogits", &shape, dlogits.as_ref().unwrap_or(&tensor))?;
        check("dlogits", &found, &exact, &rounded, 1.0 / self.classes as f64)
            .map_err(|wrong| format!("{wrong}\n{self:#?}"))?;
        Ok(found)
    }
}

/// Every row of the list is what runs at its edges, with one row of the tensor less, and more, than a thread block has.
fn every_row_at_its_edges<T: Element>() {
    let shared = device::shared();
    let device = &shared.device;
    let mut visited = 0;
    // Parts are those of products, which `linear_cross_entropy` has.
    let rows = VARIANTS.iter().filter(|row| row.tile.dtype == T::DTYPE && row.pass != Pass::Parts);
    for row in rows.filter(|row| device.info().runs(row.entry.arch)) {
        let clusters = row.tile.in_clusters();
        let vector = 16 / T::DTYPE.bytes();
        let tile = row.tile.columns() as usize;
        let classes = match row.tile.sharing {
            Sharing::Alone => vec![tile - vector, tile - 1, tile],
            // A little more than what other rows hold in a tile; and more tiles, with a last that is whole.
            Sharing::Again | Sharing::Cluster | Sharing::Kept => {
                let others = VARIANTS.iter().filter(|other| other.pass == row.pass && other.tile.dtype == T::DTYPE);
                let most = others.map(|other| other.tile.columns() as usize).max().expect("rows of the list");
                vec![most + vector, most + 1, 3 * tile, 3 * tile + 5]
            }
        };
        for (i, &classes) in classes.iter().enumerate() {
            let at_once = row.tile.block_rows() as usize;
            let rows = if i == 0 { at_once + 1 } else { (at_once - 1).max(1) };
            let smoothing = [0.0, 0.1, 1.0][i % 3];
            let case = Case { clusters, smoothing, seed: i as u64, in_place: i % 2 == 1, ..Case::new(rows, classes) };
            let run = match row.pass {
                Pass::Forward => case.forward::<T>(device),
                _ => case.backward::<T>(device),
            };
            run.unwrap_or_else(|wrong| panic!("{}: {wrong}", row.entry.symbol));
            let x = Tensor::zeros(device, T::DTYPE, [rows, classes], Layout::RowMajor).unwrap();
            let lse = Tensor::zeros(device, DType::F32, [rows], Layout::RowMajor).unwrap();
            let targets = Indices::from_slice(device, &vec![0; rows]).unwrap();
            let saved = CrossEntropySaved::new(&x.view(), &targets.view(), &lse.view());
            let plan = match row.pass {
                Pass::Forward => case.cross_entropy().plan(&x.view(), &targets.view()),
                _ => case.cross_entropy().plan_backward(&saved, &lse.view()),
            };
            assert_eq!(plan.expect("a legal problem").symbols(), [row.entry.symbol], "{classes} classes");
        }
        visited += 1;
    }
    assert!(visited >= if device.info().runs(kernel_spec::Arch::Sm90a) { 6 } else { 5 }, "{visited}");
}

for_each_dtype!(every_row_at_its_edges);

/// Classes around those that the first rows of the list hold, and some of the others; axes of rows; whatever options there are.
fn cases() -> impl Strategy<Value = Case> {
    let classes =
        prop_oneof![4 => 1usize..=140, 3 => 1usize..=1100, 2 => (1usize..=140).prop_map(|n| 8 * n), 1 => 1usize..=5000];
    let outer = prop_oneof![
        (1usize..=20).prop_map(|rows| vec![rows]),
        (1usize..=4, 1usize..=5).prop_map(|(a, b)| vec![a, b]),
        (1usize..=3, 1usize..=3, 1usize..=3).prop_map(|(a, b, c)| vec![a, b, c]),
        Just(vec![]),
    ];
    let options = (
        prop::sample::select(vec![0.0f32, 0.0, 0.1, 0.9, 1.0]),
        prop::sample::select(vec![0.0f32, 1e-4, 0.5]),
        any::<bool>(),
        any::<bool>(),
    );
    let numbers = (prop::sample::select(vec![1.0f32, 0.125, 3.0]), prop::sample::select(vec![1e-3, 1.0, 5.0, 30.0]));
    (outer, classes, options, [lie(), lie()], numbers, any::<u64>()).prop_map(
        |(outer, classes, (smoothing, z_loss, ignores, in_place), lies, (scale, deviation), seed)| {
            let clusters = true;
            Case { outer, classes, scale, smoothing, z_loss, ignores, clusters, lies, in_place, deviation, seed }
        },
    )
}

fn random_rows_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.forward::<T>(&shared.device).map(|_| ()));
}

for_each_dtype!(random_rows_agree_with_the_definition);

fn random_gradients_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.backward::<T>(&shared.device).map(|_| ()));
}

for_each_dtype!(random_gradients_agree_with_the_definition);

/// A loss far below the largest logit is no difference of two numbers that are rounded like that.
#[test]
fn a_small_loss_among_large_logits() {
    let device = &device::shared().device;
    for classes in [5, 300, 3000, 20_000] {
        for large in [1e4f32, 1e30, 3e38] {
            let mut logits = vec![-large; 2 * classes];
            // All the probability is the target's; and half of it.
            logits[classes - 1] = large;
            (logits[classes], logits[classes + 1]) = (large, large);
            let tensor = Tensor::from_slice(device, &logits, [2, classes], Layout::RowMajor).unwrap();
            let targets = Indices::from_slice(device, &[classes as i32 - 1, 1]).unwrap();
            let of = CrossEntropy::new().with_lse(true);
            let found = of.forward(&tensor.view(), &targets.view()).unwrap();
            let loss = found.loss.to_vec::<f32>().unwrap();
            assert!(loss[0] == 0.0 && (loss[1] - 2f32.ln()).abs() < 1e-6, "{large} of {classes}: {loss:?}");
            let one = Tensor::from_slice(device, &[1.0f32; 2], [2], Layout::RowMajor).unwrap();
            let saved = found.saved(&tensor.view(), &targets.view()).expect("with log-sum-exps");
            let dlogits = of.backward(&saved, &one.view()).unwrap().dlogits.to_vec::<f32>().unwrap();
            assert!(dlogits[..classes].iter().all(|&x| x == 0.0), "{large} of {classes}");
        }
    }
}

/// Targets that are no class, beside others: their losses and gradients are NaN or 0, and nothing else is.
#[test]
fn targets_that_are_no_class() {
    let device = &device::shared().device;
    for classes in [7, 64, 1000, 3000, 9000] {
        for in_range in [false, true] {
            let ignored = if in_range { 2 } else { IGNORED };
            let of = CrossEntropy::new().with_smoothing(0.1).with_z_loss(0.1).with_ignored(ignored).with_lse(true);
            let mut logits: Vec<f32> = Case::new(6, classes).draw(0, 6 * classes, 1.0);
            // What is ignored may hold anything.
            logits[5 * classes..].fill(f32::NAN);
            let tensor = Tensor::from_slice(device, &logits, [6, classes], Layout::RowMajor).unwrap();
            let targets = [0, -1, classes as i32, i32::MIN, i32::MAX, ignored];
            let targets = Indices::from_slice(device, &targets).unwrap();
            let found = of.with_z_losses(true).forward(&tensor.view(), &targets.view()).unwrap();
            let (loss, z_losses) = (found.loss.to_vec::<f32>().unwrap(), found.z_losses.as_ref().unwrap());
            let z_losses = z_losses.to_vec::<f32>().unwrap();
            assert!(loss[0] > 0.0 && loss[1..5].iter().all(|x| x.is_nan()), "{classes} classes: {loss:?}");
            assert!(loss[5] == 0.0 && z_losses[5] == 0.0 && z_losses[..5].iter().all(|&z| z > 0.0), "{z_losses:?}");
            let one = Tensor::from_slice(device, &[1.0f32; 6], [6], Layout::RowMajor).unwrap();
            let saved = found.saved(&tensor.view(), &targets.view()).expect("with log-sum-exps");
            let dlogits = of.backward(&saved, &one.view()).unwrap().dlogits.to_vec::<f32>().unwrap();
            for (row, dlogits) in dlogits.chunks(classes).enumerate() {
                let right = |x: &f32| match row {
                    0 => x.is_finite() && *x != 0.0,
                    5 => *x == 0.0,
                    _ => x.is_nan(),
                };
                assert!(dlogits.iter().all(right), "{classes} classes, row {row}: {dlogits:?}");
            }
        }
    }
}

/// What is hidden has no probability; a row that has a NaN or an infinity, or no number, has no loss.
#[test]
fn numbers_that_are_none() {
    let device = &device::shared().device;
    let hidden = f32::NEG_INFINITY;
    for classes in [6, 300, 3000, 9000] {
        let mut logits = vec![0.0f32; 6 * classes];
        let row = |row: usize| row * classes;
        // Two classes are left; the target is hidden; none is left; and three numbers that are none.
        logits[row(0)..row(1)].fill(hidden);
        (logits[row(0)], logits[row(1) - 1]) = (1.0, 1.0);
        logits[row(1)] = hidden;
        logits[row(2)..row(3)].fill(hidden);
        (logits[row(3) + 4], logits[row(4) + 4], logits[row(5)]) = (f32::NAN, f32::INFINITY, f32::NAN);
        let tensor = Tensor::from_slice(device, &logits, [6, classes], Layout::RowMajor).unwrap();
        let targets = Indices::from_slice(device, &[0; 6]).unwrap();
        let found = CrossEntropy::new().with_lse(true).forward(&tensor.view(), &targets.view()).unwrap();
        let (loss, lse) = (found.loss.to_vec::<f32>().unwrap(), found.lse.unwrap().to_vec::<f32>().unwrap());
        assert!((loss[0] - 2f32.ln()).abs() < 1e-6 && (lse[0] - 1.0 - 2f32.ln()).abs() < 1e-6, "{loss:?} {lse:?}");
        assert!(loss[1] == f32::INFINITY && lse[2] == hidden, "{classes} classes: {loss:?} {lse:?}");
        assert!(loss[2..].iter().all(|x| x.is_nan()), "{classes} classes: {loss:?}");
    }
}

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &device::shared().device;
    let logits = Tensor::zeros(device, DType::Bf16, [2, 5, 96], Layout::RowMajor).unwrap();
    let targets = Indices::from_slice(device, &[0; 10]).unwrap();
    let of = CrossEntropy::new().with_lse(true);
    let plan = of.plan(&logits.view(), &targets.view()).unwrap();
    // 32 rows a thread block; a target, a loss and a log-sum-exp a row.
    assert_eq!((plan.symbols(), plan.steps()[0].ctas, plan.workspace_bytes()), (vec!["cross_entropy_bf16_4x4"], 1, 0));
    assert_eq!((plan.name(), plan.bytes()), ("cross_entropy", 960 * 2 + 3 * 10 * 4));
    assert!(plan.to_string().starts_with("cross_entropy forward: every logit is read once"), "{plan}");
    device.prepare(&plan).unwrap();
    let found = of.forward(&logits.view(), &targets.view()).unwrap();
    assert!(found.z_losses.is_none() && found.loss.shape()[..] == [2, 5]);
    let saved = found.saved(&logits.view(), &targets.view()).unwrap();
    let plan = of.plan_backward(&saved, &found.loss.view()).unwrap();
    assert_eq!((plan.symbols(), plan.bytes()), (vec!["cross_entropy_backward_bf16_4x4"], 2 * 960 * 2 + 3 * 10 * 4));
    assert!(CrossEntropy::new().forward(&logits.view(), &targets.view()).unwrap().lse.is_none());
    // Nothing to do.
    let none = Tensor::zeros(device, DType::Bf16, [0, 96], Layout::RowMajor).unwrap();
    let targets = Indices::from_slice(device, &[]).unwrap();
    let found = of.forward(&none.view(), &targets.view()).unwrap();
    assert_eq!((found.plan.steps()[0].ctas, found.loss.shape()[..].to_vec()), (0, vec![0]));
}

/// Thread blocks share rows where these are too few for all multiprocessors, as many as have a tile each.
#[test]
fn few_rows_are_shared() {
    let device = &device::shared().device;
    if !device.info().runs(kernel_spec::Arch::Sm90a) {
        return;
    }
    let multiprocessors = device.info().multiprocessors as usize;
    let plan = |rows: usize, classes: usize, clusters: bool| {
        let logits = Tensor::zeros(device, DType::F32, [rows, classes], Layout::RowMajor).unwrap();
        let targets = Indices::from_slice(device, &vec![0; rows]).unwrap();
        CrossEntropy::new().with_clusters(clusters).plan(&logits.view(), &targets.view()).unwrap()
    };
    // A tile is of 4096 numbers in f32.
    for (classes, sharers) in [(4096, 1), (4097, 2), (8192, 2), (8193, 3), (12_289, 4), (50_000, 8)] {
        assert_eq!(plan(1, classes, true).steps()[0].cluster, sharers, "{classes}");
        assert_eq!(plan(1, classes, false).steps()[0].cluster, 1);
    }
    assert_eq!(plan(multiprocessors, 9000, true).steps()[0].cluster, 1);
    assert!(plan(1, 50_000, true).reason().contains("8 thread blocks share a row"));
}

/// Whatever the order of thread blocks and warps is.
#[test]
fn every_interleaving_has_the_same_bits() {
    if device::is_gpu() {
        return;
    }
    let all = Case { smoothing: 0.1, z_loss: 1e-2, ..Case::new(3, 0) };
    let cases = [
        Case { outer: vec![20], classes: 100, ..all.clone() },
        Case { classes: 3000, in_place: true, ..all.clone() },
        Case { classes: 20_000, outer: vec![1], ..all.clone() },
        Case { classes: 20_000, clusters: false, ..all },
    ];
    for case in cases {
        let run = |seed: u64| {
            let device =
                Device::emulator_with(EmulatorConfig::default().with_seed(seed)).expect("the emulator is built in");
            let unwrap =
                |result: Result<Vec<f64>, String>| result.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            [unwrap(case.forward::<bf16>(&device)), unwrap(case.backward::<bf16>(&device))]
        };
        let first = run(0);
        assert!((1..device::seeds(4).into()).all(|seed| run(seed) == first), "{case:?}");
    }
}
