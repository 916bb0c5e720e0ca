//! Cross-entropy of the logits of a dense layer, forward and backward, against its definition. What it refuses is in `linear_cross_entropy_errors`, what of its
//! kernels may not go in `dense_mutants`.

use crate::dense::{emulator, lie};
use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::lie::Lie;
use crate::support::rule;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{
    Activation, CrossEntropy, CrossEntropyOutputViewMut, DenseGradientsViewMut, LinearCrossEntropy,
    LinearCrossEntropySaved, Operation,
};
use ferroflash::reference::{
    ReferenceCrossEntropy, ReferenceDense, ReferenceDenseGradients, ReferenceLinearCrossEntropy,
};
use ferroflash::{DType, Device, Dims, Element, EmulatorConfig, Indices, Layout, Tensor, bf16, f16};
use kernel_spec::families::dense::{Engine, Pass, VARIANTS};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// The target of rows that count for nothing.
const IGNORED: i32 = -100;

/// Rows of losses, and numbers of each gradient, that the error of the precision is taken over, at least; unless their products are more than so many.
const TELLING: usize = 2048;
const MOST_PRODUCTS: usize = 1 << 25;

/// A layer, the options of its loss, and its memory.
#[derive(Clone, Debug)]
struct Case {
    /// Axes of rows.
    outer: Vec<usize>,
    depth: usize,
    classes: usize,
    bias: bool,
    scale: f32,
    smoothing: f32,
    z_loss: f32,
    /// Two rows of eight are ignored.
    ignores: bool,
    hopper: bool,
    chunk_bytes: Option<u64>,
    /// Which of dx, dweight and dbias are asked for: one at least.
    asked: [bool; 3],
    /// How x, the weights, and what gradients are written lie.
    lies: [Lie; 3],
    /// Elements before the biases.
    bias_offset: usize,
    /// Standard deviation of x.
    deviation: f64,
    seed: u64,
}

/// Numbers of a call, in logical order.
struct Given<T> {
    x: Vec<T>,
    targets: Vec<i32>,
    dloss: Vec<f32>,
}

impl Case {
    fn new([rows, depth, classes]: [usize; 3]) -> Case {
        Case {
            outer: vec![rows],
            depth,
            classes,
            bias: true,
            scale: 1.0,
            smoothing: 0.0,
            z_loss: 0.0,
            ignores: false,
            hopper: true,
            chunk_bytes: None,
            asked: [true; 3],
            lies: [Lie::default(); 3],
            bias_offset: 0,
            deviation: 1.0,
            seed: 0,
        }
    }

    fn rows(&self) -> usize {
        self.outer.iter().product()
    }

    fn shape(&self) -> Vec<usize> {
        self.outer.iter().copied().chain([self.depth]).collect()
    }

    fn rng(&self, what: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.seed.wrapping_mul(16).wrapping_add(what))
    }

    fn draw<T: Element>(&self, what: u64, elements: usize, deviation: f64) -> Vec<T> {
        let mut rng = self.rng(what);
        (0..elements).map(|_| T::from_f64(deviation * rng.sample::<f64, _>(StandardNormal))).collect()
    }

    fn weight<T: Element>(&self) -> Vec<T> {
        // Logits of the size of x's numbers, whatever the depth.
        self.draw(1, self.classes * self.depth, (self.depth as f64).sqrt().recip())
    }

    fn biases<T: Element>(&self) -> Vec<T> {
        self.draw(2, self.classes, 1.0)
    }

    /// The rows of a call, and others for the error of the precision. The first and the last class are targets too.
    fn given<T: Element>(&self, draw: u64) -> Given<T> {
        let of = Case { seed: self.seed.wrapping_add(draw << 32), ..self.clone() };
        let (mut rng, classes) = (of.rng(3), self.classes as i32);
        let target = |row: usize, any: i32| match row % 8 {
            0 => 0,
            3 => classes - 1,
            2 | 5 if self.ignores => IGNORED,
            _ => any,
        };
        Given {
            x: of.draw(0, self.rows() * self.depth, self.deviation),
            targets: (0..self.rows()).map(|row| target(row, rng.random_range(0..classes))).collect(),
            // Sums over rows of the size of their addends, whatever the rows are.
            dloss: of.draw(4, self.rows(), (self.rows().max(1) as f64).sqrt().recip()),
        }
    }

    /// Draws that the error of the precision is taken over, where one has so many numbers.
    fn draws(&self, numbers: usize) -> u64 {
        let products = self.rows().max(1) * self.classes * self.depth;
        TELLING.div_ceil(numbers.max(1)).min(MOST_PRODUCTS.div_ceil(products)) as u64
    }

    fn loss(&self) -> CrossEntropy {
        let of = CrossEntropy::new().with_scale(self.scale).with_smoothing(self.smoothing).with_z_loss(self.z_loss);
        if self.ignores { of.with_ignored(IGNORED) } else { of }
    }

    fn reference<'a>(&self, weight: &'a [f64], bias: Option<&'a [f64]>) -> ReferenceLinearCrossEntropy<'a> {
        ReferenceLinearCrossEntropy {
            layer: ReferenceDense { depth: self.depth, weight, bias, activation: Activation::Identity },
            loss: ReferenceCrossEntropy {
                classes: self.classes,
                scale: self.scale.into(),
                smoothing: self.smoothing.into(),
                z_loss: self.z_loss.into(),
                ignored: self.ignores.then_some(IGNORED),
            },
        }
    }

    /// Does something with the layer on a device.
    fn with_layer<T: Element, R>(&self, device: &Device, act: impl FnOnce(LinearCrossEntropy<'_>) -> R) -> R {
        let weight = self.lies[1].upload(device, &[self.classes, self.depth], &self.weight::<T>());
        let line = Lie { offset: self.bias_offset, ..Lie::default() };
        let bias = line.upload(device, &[self.classes], &self.biases::<T>());
        let (weight, bias) = (weight.view(), bias.view());
        let mut of = LinearCrossEntropy::new(&weight).with_loss(self.loss()).with_hopper(self.hopper);
        if self.bias {
            of = of.with_bias(&bias);
        }
        if let Some(bytes) = self.chunk_bytes {
            of = of.with_chunk_bytes(bytes);
        }
        act(of)
    }

    /// Losses, log-sum-exps and their losses into NaN; compares with the definition, and gives them all.
    fn forward<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        self.forward_with::<T>(device).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn forward_with<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let given = self.given::<T>(0);
        let x = self.lies[0].upload(device, &self.shape(), &given.x);
        let targets = Indices::from_slice(device, &given.targets).unwrap();
        let line = Lie { offset: 3, ..Lie::default() };
        let [mut loss, mut lse, mut z_losses] = [0, 1, 2].map(|_| line.poisoned::<f32>(device, &self.outer));
        self.with_layer::<T, _>(device, |of| {
            let mut into = CrossEntropyOutputViewMut::new(loss.view_mut())
                .with_lse(lse.view_mut())
                .with_z_losses(z_losses.view_mut());
            let stream = device.default_stream();
            let run = of.forward_into(&stream, &x.view(), &targets.view(), &mut into);
            run.and_then(|()| stream.synchronize()).map_err(|error| error.to_string())
        })?;
        let (weight, bias) = (to_f64(&self.weight::<T>()), to_f64(&self.biases::<T>()));
        let reference = self.reference(&weight, self.bias.then_some(&bias));
        let [mut exact, mut rounded] = [(); 2].map(|()| [Vec::new(), Vec::new(), Vec::new()]);
        for draw in 0..self.draws(self.rows()) {
            let Given { x, targets, .. } = self.given::<T>(draw);
            let x = to_f64(&x);
            for (all, one) in [
                (&mut exact, reference.forward(&x, &targets).unwrap()),
                (&mut rounded, reference.forward_rounded(&x, &targets).unwrap()),
            ] {
                let [loss, lse, z_losses] = all;
                loss.extend(one.loss);
                lse.extend(one.lse);
                z_losses.extend(one.z_losses);
            }
        }
        let mut all = Vec::new();
        for (i, (name, tensor)) in [("loss", &loss), ("lse", &lse), ("z_losses", &z_losses)].into_iter().enumerate() {
            let found = line.read::<f32>(name, &self.outer, tensor)?;
            rule::check(name, &found, &exact[i], &rounded[i], 1.0)?;
            all.extend(found);
        }
        Ok(all)
    }

    /// Those gradients that are asked for into NaN; compares with the definition, and gives them all.
    fn backward<T: Element>(&self, device: &Device) -> Result<[Option<Vec<f64>>; 3], String> {
        self.backward_with::<T>(device).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn backward_with<T: Element>(&self, device: &Device) -> Result<[Option<Vec<f64>>; 3], String> {
        let found = self.launch_backward::<T>(device)?;
        let (weight, bias) = (to_f64(&self.weight::<T>()), to_f64(&self.biases::<T>()));
        let reference = self.reference(&weight, self.bias.then_some(&bias));
        let [mut exact, mut rounded] = [(); 2].map(|()| ReferenceDenseGradients::default());
        let few = (self.rows() * self.depth).min(self.classes);
        for draw in 0..self.draws(few) {
            let Given { x, targets, dloss } = self.given::<T>(draw);
            let (x, dloss) = (to_f64(&x), to_f64(&dloss));
            for (all, one) in [
                (&mut exact, reference.backward(&x, &targets, &dloss).unwrap()),
                (&mut rounded, reference.backward_rounded(&x, &targets, &dloss, T::DTYPE).unwrap()),
            ] {
                all.dx.extend(one.dx);
                all.dweight.extend(one.dweight);
                all.dbias.extend(one.dbias);
            }
        }
        let unit = self.deviation.max(1.0);
        for (name, found, exact, rounded, unit) in [
            ("dx", &found[0], &exact.dx, &rounded.dx, 1.0),
            ("dweight", &found[1], &exact.dweight, &rounded.dweight, unit),
            ("dbias", &found[2], &exact.dbias, &rounded.dbias, 1.0),
        ] {
            if let Some(found) = found {
                rule::check(name, found, exact, rounded, unit)?;
            }
        }
        Ok(found)
    }

    /// What is not asked for stays as it was.
    fn launch_backward<T: Element>(&self, device: &Device) -> Result<[Option<Vec<f64>>; 3], String> {
        let given = self.given::<T>(0);
        let x = self.lies[0].upload(device, &self.shape(), &given.x);
        let targets = Indices::from_slice(device, &given.targets).unwrap();
        let line = Lie { offset: 3, ..Lie::default() };
        let dloss = line.upload(device, &self.outer, &given.dloss);
        let (own, bias_line) = (self.lies[2], Lie { offset: self.bias_offset, ..Lie::default() });
        let asked = [self.asked[0], self.asked[1], self.asked[2] && self.bias];
        let shapes = [self.shape(), vec![self.classes, self.depth], vec![self.classes]];
        let mut dx = own.poisoned::<T>(device, &shapes[0]);
        let mut dweight = own.poisoned::<T>(device, &shapes[1]);
        let mut dbias = bias_line.poisoned::<T>(device, &shapes[2]);
        self.with_layer::<T, _>(device, |of| {
            let of = of.with_loss(self.loss().with_lse(true));
            let found = of.forward(&x.view(), &targets.view())?;
            let lse = found.lse.expect("with log-sum-exps");
            let mut into = DenseGradientsViewMut::new();
            if asked[0] {
                into = into.with_dx(dx.view_mut());
            }
            if asked[1] {
                into = into.with_dweight(dweight.view_mut());
            }
            if asked[2] {
                into = into.with_dbias(dbias.view_mut());
            }
            let stream = device.default_stream();
            let saved = LinearCrossEntropySaved::new(&x.view(), &targets.view(), &lse.view());
            of.backward_into(&stream, &saved, &dloss.view(), &mut into)?;
            stream.synchronize()
        })
        .map_err(|error| error.to_string())?;
        let all = [
            own.read::<T>("dx", &shapes[0], &dx)?,
            own.read::<T>("dweight", &shapes[1], &dweight)?,
            bias_line.read::<T>("dbias", &shapes[2], &dbias)?,
        ];
        for (found, asked) in all.iter().zip(asked) {
            if !asked && found.iter().any(|x| !x.is_nan()) {
                return Err("a gradient is not asked for, and was written".to_owned());
            }
        }
        let mut asked = asked.into_iter();
        Ok(all.map(|found| asked.next().expect("three").then_some(found)))
    }

    /// What the library launches for it, of tensors that lie contiguous.
    fn symbols<T: Element>(&self, device: &Device, pass: Pass) -> Vec<&'static str> {
        let zeros =
            |dtype, shape: &[usize]| Tensor::zeros(device, dtype, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap();
        let (x, lse) = (zeros(T::DTYPE, &self.shape()), zeros(DType::F32, &self.outer));
        let targets = Indices::from_slice(device, &vec![0; self.rows()]).unwrap();
        self.with_layer::<T, _>(device, |of| match pass {
            Pass::Losses => of.plan(&x.view(), &targets.view()).unwrap().symbols(),
            _ => {
                let saved = LinearCrossEntropySaved::new(&x.view(), &targets.view(), &lse.view());
                of.plan_backward(&saved, &lse.view()).unwrap().symbols()
            }
        })
    }
}

/// Every row of the list at the edges of its tiles.
fn every_row_at_its_edges<T: Element>() {
    let device = &device::shared().device;
    let mut visited = 0;
    let rows = VARIANTS.iter().filter(|row| row.dtype == T::DTYPE && device.info().runs(row.entry.arch));
    for row in rows.filter(|row| matches!(row.pass, Pass::Losses | Pass::LogitGradient)) {
        let (tile, hopper) = (row.tile, row.engine == Engine::Warpgroups);
        let step = if hopper { 8 } else { 1 };
        let [rows, columns, depth] = [tile.rows * tile.cluster, tile.columns, tile.depth].map(|extent| extent as usize);
        // Whole tiles; one number more than they have, of the depth the least that Hopper takes; less than one tile.
        for (i, size) in [
            [rows, 2 * depth, columns],
            [rows + 1, depth * (tile.stages as usize + 1) + step, columns + 1],
            [rows - 1, depth - step, columns - 1],
        ]
        .into_iter()
        .enumerate()
        {
            let smoothing = [0.1, 0.0, 1.0][i];
            let case = Case { smoothing, hopper, seed: i as u64, ..Case::new(size) };
            let run = match row.pass {
                Pass::Losses => case.forward::<T>(device).map(|_| ()),
                _ => case.backward::<T>(device).map(|_| ()),
            };
            run.unwrap_or_else(|wrong| panic!("{}: {wrong}", row.entry.symbol));
            assert!(case.symbols::<T>(device, row.pass).contains(&row.entry.symbol), "{}", row.entry.symbol);
            visited += 1;
        }
    }
    assert!(visited >= 6, "{visited}");
}

for_each_dtype!(every_row_at_its_edges);

/// Sizes from 1 on, many of them around the edges of pieces and tiles; whatever options there are.
fn cases() -> impl Strategy<Value = Case> {
    let extent = |most: usize| {
        prop_oneof![
            2 => 1..=most,
            3 => (1..=most.div_ceil(8)).prop_map(|n| 8 * n),
            2 => (1..=most.div_ceil(64), 0usize..3).prop_map(|(n, by)| 64 * n + by - 1),
        ]
    };
    let outer = prop_oneof![
        (extent(140)).prop_map(|rows| vec![rows]),
        (1usize..=4, 1usize..=40).prop_map(|(a, b)| vec![a, b]),
        Just(vec![]),
    ];
    let sizes = (outer, extent(200), extent(700));
    let options = (
        prop::sample::select(vec![0.0f32, 0.0, 0.1, 0.9, 1.0]),
        // No more, so that f16 holds gradients of the largest log-sum-exps.
        prop::sample::select(vec![0.0f32, 1e-4, 0.03]),
        any::<[bool; 3]>(),
        any::<[bool; 3]>(),
        // Chunks of 256 classes, and one of all.
        prop::sample::select(vec![None, Some(1)]),
    );
    let numbers = (prop::sample::select(vec![1.0f32, 0.125, 3.0]), prop::sample::select(vec![1e-2, 1.0, 5.0, 20.0]));
    (sizes, options, [lie(), lie(), lie()], 0usize..9, numbers, any::<u64>()).prop_map(
        |(sizes, (smoothing, z_loss, flags, asked, chunk_bytes), lies, bias_offset, (scale, deviation), seed)| {
            let ((outer, depth, classes), [bias, ignores, hopper]) = (sizes, flags);
            let bias_offset = bias_offset * if seed % 2 == 0 { 8 } else { 1 };
            let [dx, dweight, dbias] = asked;
            // One at least.
            let asked = [dx || !(dweight || dbias && bias), dweight, dbias];
            Case {
                outer,
                depth,
                classes,
                bias,
                scale,
                smoothing,
                z_loss,
                ignores,
                hopper,
                chunk_bytes,
                asked,
                lies,
                bias_offset,
                deviation,
                seed,
            }
        },
    )
}

fn random_losses_agree_with_the_definition<T: Element>() {
    let device = &device::shared().device;
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.forward::<T>(device).map(|_| ()));
}

for_each_dtype!(random_losses_agree_with_the_definition);

fn random_gradients_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    // One multiprocessor takes the largest tiles of the products of gradients.
    let few = emulator(1);
    draws(file!(), device::cases(), 256).check(&cases(), |case| {
        let device = if device::is_gpu() || case.seed % 2 == 0 { &shared.device } else { &few };
        case.backward::<T>(device).map(|_| ())
    });
}

for_each_dtype!(random_gradients_agree_with_the_definition);

/// More parts of a row than the lanes that merge them.
#[test]
fn rows_of_many_parts() {
    let device = &device::shared().device;
    for (hopper, classes) in [(false, 64 * 33 + 5), (true, 256 * 33 + 5)] {
        let case = Case { hopper, smoothing: 0.1, ..Case::new([3, 8, classes]) };
        case.forward::<bf16>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

/// A chunk of one class, whose row starts at a multiple of 16 bytes where the next one, of another chunk, would not.
#[test]
fn a_chunk_of_one_class() {
    let device = &device::shared().device;
    let mut case = Case { hopper: false, chunk_bytes: Some(1), ..Case::new([1, 8, 257]) };
    case.lies[1] = Lie { offset: 4, gap: 1, reversed: false };
    case.backward::<f32>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// Each chunk's rows of the weights' gradient are complete: those of all classes at once. Sums of dx and of biases have other orders, and dx is rounded once.
fn chunks_are_all_classes<T: Element>() {
    let device = &device::shared().device;
    for hopper in [false, true] {
        let whole = Case { hopper, smoothing: 0.1, ..Case::new([70, 72, 600]) };
        // A byte is less than 256 classes take, which are the least.
        let cut = Case { chunk_bytes: Some(1), ..whole.clone() };
        let run = |case: &Case| case.backward::<T>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
        let (all, chunks) = (run(&whole), run(&cut));
        if !device::is_gpu() {
            assert!(all[1] == chunks[1], "hopper {hopper}");
        }
        let symbols = [&whole, &cut].map(|case| case.symbols::<T>(device, Pass::LogitGradient));
        // The gradient of logits, biases in two launches, dx and dweight: of 256, 256 and 88 classes.
        assert_eq!(symbols.map(|symbols| symbols.len()), [5, 15]);
    }
}

for_each_dtype!(chunks_are_all_classes);

/// A loss far below the largest logit is no difference of two numbers that are rounded like that.
fn a_small_loss_among_large_logits<T: Element>(large: f64) {
    let device = &device::shared().device;
    for (hopper, classes) in [(false, 5), (false, 300), (true, 5), (true, 600)] {
        // The first number of x is all of the first row's logits, of which one is large; the second one those of the second, of which two are.
        let mut weight = vec![T::from_f64(0.0); classes * 8];
        for class in 0..classes {
            weight[class * 8] = T::from_f64(if class + 1 == classes { 1.0 } else { -1.0 });
            weight[class * 8 + 1] = T::from_f64(if class < 2 { 1.0 } else { -1.0 });
        }
        let mut x = vec![T::from_f64(0.0); 2 * 8];
        (x[0], x[8 + 1]) = (T::from_f64(large), T::from_f64(large));
        let upload = |data: &[T], shape: [usize; 2]| Tensor::from_slice(device, data, shape, Layout::RowMajor).unwrap();
        let (x, weight) = (upload(&x, [2, 8]), upload(&weight, [classes, 8]));
        let targets = Indices::from_slice(device, &[classes as i32 - 1, 1]).unwrap();
        let weight = weight.view();
        for chunk_bytes in [1, 1 << 20] {
            let of = LinearCrossEntropy::new(&weight).with_hopper(hopper).with_chunk_bytes(chunk_bytes);
            let of = of.with_loss(CrossEntropy::new().with_lse(true));
            let found = of.forward(&x.view(), &targets.view()).unwrap();
            let loss = found.loss.to_vec::<f32>().unwrap();
            assert!(loss[0] == 0.0 && (loss[1] - 2f32.ln()).abs() < 1e-6, "{large} of {classes}: {loss:?}");
            let one = Tensor::from_slice(device, &[1.0f32; 2], [2], Layout::RowMajor).unwrap();
            let saved = found.saved(&x.view(), &targets.view()).expect("with log-sum-exps");
            let gradients = of.backward(&saved, &one.view()).unwrap();
            let (dx, dweight) = (gradients.dx.to_f64_vec().unwrap(), gradients.dweight.to_f64_vec().unwrap());
            // The first row's target has all of it, and nothing is left to learn. (The second row's log-sum-exp does not hold ln 2 beside the logits.)
            assert!(dx[..8].iter().all(|&dx| dx == 0.0), "{large} of {classes}: {dx:?}");
            assert!(dweight.iter().step_by(8).all(|&dweight| dweight == 0.0), "{large} of {classes}: {dweight:?}");
            assert!(dx.iter().chain(&dweight).all(|x| x.is_finite()), "{large} of {classes}");
        }
    }
}

#[test]
fn small_losses_among_large_logits() {
    for large in [1e4, 1e30, 3e38] {
        a_small_loss_among_large_logits::<f32>(large);
        a_small_loss_among_large_logits::<bf16>(large);
    }
    a_small_loss_among_large_logits::<f16>(6e4);
}

/// Biases that are no numbers: what is hidden has no probability; a NaN, an infinity, or nothing that is left, is no loss.
#[test]
fn logits_that_are_none() {
    let device = &device::shared().device;
    let hidden = f32::NEG_INFINITY;
    for (dtype_is_f32, classes) in [(true, 6), (true, 300), (false, 6), (false, 600)] {
        let dtype = if dtype_is_f32 { DType::F32 } else { DType::Bf16 };
        let zeros = |shape: [usize; 2]| Tensor::zeros(device, dtype, shape, Layout::RowMajor).unwrap();
        let (x, weight) = (zeros([2, 8]), zeros([classes, 8]));
        let weight = weight.view();
        let run = |bias: &[f32]| {
            let halves: Vec<bf16> = bias.iter().map(|&bias| bf16::from_f32(bias)).collect();
            let bias = match dtype {
                DType::F32 => Tensor::from_slice(device, bias, [classes], Layout::RowMajor),
                _ => Tensor::from_slice(device, &halves, [classes], Layout::RowMajor),
            };
            let (bias, targets) = (bias.unwrap(), Indices::from_slice(device, &[0, 1]).unwrap());
            let (bias, loss) = (bias.view(), CrossEntropy::new().with_lse(true));
            let of = LinearCrossEntropy::new(&weight).with_bias(&bias).with_loss(loss);
            let found = of.forward(&x.view(), &targets.view()).unwrap();
            let saved = found.saved(&x.view(), &targets.view()).expect("with log-sum-exps");
            let one = Tensor::from_slice(device, &[1.0f32; 2], [2], Layout::RowMajor).unwrap();
            let dbias = of.backward(&saved, &one.view()).unwrap().dbias.expect("with biases");
            let read = |tensor: &Tensor| tensor.to_vec::<f32>().unwrap();
            (read(&found.loss), read(found.lse.as_ref().unwrap()), dbias.to_f64_vec().unwrap())
        };
        // Two classes are left: the target of the first row, and none of the second's.
        let mut bias = vec![hidden; classes];
        (bias[0], bias[classes - 1]) = (1.0, 1.0);
        let (loss, lse, dbias) = run(&bias);
        assert!((loss[0] - 2f32.ln()).abs() < 1e-6 && loss[1] == f32::INFINITY, "{loss:?}");
        assert!(lse.iter().all(|lse| (lse - 1.0 - 2f32.ln()).abs() < 1e-6), "{lse:?}");
        assert!((dbias[0]).abs() < 1e-2 && (dbias[classes - 1] - 1.0).abs() < 1e-2 && dbias[1] == -1.0, "{dbias:?}");
        assert!(dbias[2..classes - 1].iter().all(|&dbias| dbias == 0.0), "{dbias:?}");
        let (loss, lse, _) = run(&vec![hidden; classes]);
        assert!(loss.iter().all(|loss| loss.is_nan()) && lse == [hidden; 2], "{loss:?} {lse:?}");
        for none in [f32::NAN, f32::INFINITY] {
            let mut bias = vec![0.0; classes];
            bias[classes - 2] = none;
            let (loss, _, dbias) = run(&bias);
            assert!(loss.iter().all(|loss| loss.is_nan()), "{none}: {loss:?}");
            assert!(dbias.iter().all(|dbias| dbias.is_nan()), "{none}: {dbias:?}");
        }
    }
}

/// Targets that are no class, beside others: their losses and gradients are NaN or 0, and nothing else is, whatever an ignored row holds.
#[test]
fn targets_that_are_no_class() {
    let device = &device::shared().device;
    let (rows, depth) = (6, 16);
    for (hopper, classes) in [(false, 7), (false, 300), (true, 7), (true, 600)] {
        for ignored in [2, IGNORED] {
            let case = Case { hopper, ..Case::new([rows, depth, classes]) };
            let mut x: Vec<bf16> = case.draw(0, rows * depth, 1.0);
            x[5 * depth + 3] = bf16::from_f32(f32::NAN);
            let loss = CrossEntropy::new().with_smoothing(0.1).with_z_loss(0.1).with_ignored(ignored);
            let loss = loss.with_lse(true).with_z_losses(true);
            let run = |targets: [i32; 6]| {
                let x = Tensor::from_slice(device, &x, [rows, depth], Layout::RowMajor).unwrap();
                let targets = Indices::from_slice(device, &targets).unwrap();
                case.with_layer::<bf16, _>(device, |of| {
                    let of = of.with_loss(loss);
                    let found = of.forward(&x.view(), &targets.view()).unwrap();
                    let saved = found.saved(&x.view(), &targets.view()).expect("with log-sum-exps");
                    // What the ignored row is multiplied with counts for nothing either.
                    let dloss = Tensor::from_slice(device, &[1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN], [6], Layout::RowMajor);
                    let gradients = of.backward(&saved, &dloss.unwrap().view()).unwrap();
                    let all = [found.loss, found.z_losses.unwrap(), gradients.dx, gradients.dweight];
                    let [loss, z_losses, dx, dweight] = all.map(|tensor| tensor.to_f64_vec().unwrap());
                    (loss, z_losses, dx, dweight, gradients.dbias.unwrap().to_f64_vec().unwrap())
                })
            };
            let (loss, z_losses, dx, ..) = run([0, -1, classes as i32, i32::MIN, i32::MAX, ignored]);
            assert!(loss[0] > 0.0 && loss[1..5].iter().all(|x| x.is_nan()), "{classes} classes: {loss:?}");
            assert!(loss[5] == 0.0 && z_losses[5] == 0.0 && z_losses[..5].iter().all(|&z| z > 0.0), "{z_losses:?}");
            for (row, dx) in dx.chunks(depth).enumerate() {
                let right = |x: &f64| match row {
                    0 => x.is_finite() && *x != 0.0,
                    5 => *x == 0.0,
                    _ => x.is_nan(),
                };
                assert!(dx.iter().all(right), "{classes} classes, row {row}: {dx:?}");
            }
            // Of classes alone: 0 times the NaN of the ignored row is one, in its column of the weights' gradient and nowhere else.
            let (loss, _, dx, dweight, dbias) = run([0, 1, 0, 1, 0, ignored]);
            assert!(loss.iter().chain(&dx).chain(&dbias).all(|x| x.is_finite()), "{classes} classes");
            assert!(dweight.iter().enumerate().all(|(i, x)| x.is_nan() == (i % depth == 3)), "{classes} classes");
        }
    }
}

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &emulator(132);
    let zeros =
        |dtype, shape: &[usize]| Tensor::zeros(device, dtype, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap();
    let (x, weight, bias) =
        (zeros(DType::Bf16, &[2, 150, 64]), zeros(DType::Bf16, &[1001, 64]), zeros(DType::Bf16, &[1001]));
    let (targets, lse) = (Indices::from_slice(device, &[0; 300]).unwrap(), zeros(DType::F32, &[2, 150]));
    let (weight, bias) = (weight.view(), bias.view());
    let loss = CrossEntropy::new().with_lse(true);
    let of = LinearCrossEntropy::new(&weight).with_bias(&bias).with_loss(loss);
    let plan = of.plan(&x.view(), &targets.view()).unwrap();
    // An odd number of classes is no reason against Hopper's kernel: nothing has rows of them.
    assert_eq!(plan.symbols(), ["linear_cross_entropy_hopper_bf16_128x256", "linear_cross_entropy_parts"], "{plan}");
    // Two clusters of two thread blocks have 256 rows each, and four rows a thread block are merged.
    assert_eq!((plan.steps()[0].ctas, plan.steps()[1].ctas), (16, 75), "{plan}");
    assert_eq!((plan.name(), plan.workspace_bytes()), ("linear-cross-entropy", 300 * (4 * 8 + 4)), "{plan}");
    // A target, a loss and a log-sum-exp a row.
    assert_eq!(plan.bytes(), 2 * (300 * 64 + 1001 * 64 + 1001) + 3 * 300 * 4);
    assert!(plan.to_string().contains("sums are logits that never leave"), "{plan}");
    assert!(plan.to_string().contains("biases in single elements"), "{plan}");
    device.prepare(&plan).unwrap();
    let smooth = of.with_loss(loss.with_smoothing(0.1)).plan(&x.view(), &targets.view()).unwrap();
    assert_eq!(smooth.workspace_bytes(), 300 * (4 * (8 + 4) + 4), "{smooth}");
    let portable = of.with_hopper(false).plan(&x.view(), &targets.view()).unwrap();
    assert_eq!((portable.symbols()[0], portable.steps()[0].ctas), ("linear_cross_entropy_bf16_128x128", 24));
    // Whole tiles of two parts.
    assert_eq!(portable.workspace_bytes(), 300 * (16 * 8 + 4), "{portable}");
    assert!(portable.reason().contains("not those of warpgroups: the options have Hopper's kernel switched off"));

    let saved = LinearCrossEntropySaved::new(&x.view(), &targets.view(), &lse.view());
    let plan = of.plan_backward(&saved, &lse.view()).unwrap();
    let symbols = [
        "linear_cross_entropy_dlogits_hopper_bf16_128x256",
        "dense_dz_bf16",
        "norm_parts_bf16",
        "dense_dx_hopper_bf16_128x128",
        "dense_dw_hopper_bf16_128x128",
    ];
    assert_eq!((plan.symbols(), plan.pass), (symbols.to_vec(), "backward"), "{plan}");
    assert!(
        plan.reason().contains("all classes at a time, as gradients of logits are no more than 536870912"),
        "{plan}"
    );
    // dlogits of 1008 numbers a row, so that rows are whole pieces.
    let one = plan.workspace_bytes();
    assert_eq!(plan.buffers[0].bytes, 2 * 300 * 1008, "{plan}");
    assert_eq!(plan.bytes(), 2 * (2 * 300 * 64 + 2 * 1001 * 64 + 2 * 1001) + 3 * 300 * 4);
    device.prepare(&plan).unwrap();
    // 512 classes, and the 489 that are left: their sum of dx is f32.
    let plan = of.with_chunk_bytes(2 * 300 * 600).plan_backward(&saved, &lse.view()).unwrap();
    assert_eq!(plan.symbols(), [symbols, symbols].concat(), "{plan}");
    assert!(plan.reason().contains("2 chunks of 512 classes, so that gradients of logits are no more than 360000"));
    assert_eq!((plan.buffers[0].bytes, plan.buffers[1].bytes), (2 * 300 * 512, 4 * 300 * 64), "{plan}");
    assert!(plan.workspace_bytes() < one + 4 * 300 * 64, "{plan}");
    // Without rows, losses have nothing to do, and gradients of weights are 0.
    let none = zeros(DType::Bf16, &[0, 64]);
    let targets = Indices::from_slice(device, &[]).unwrap();
    let found = of.forward(&none.view(), &targets.view()).unwrap();
    assert!(found.plan.steps().iter().all(|step| step.ctas == 0) && found.loss.shape()[..] == [0]);
    let saved = found.saved(&none.view(), &targets.view()).unwrap();
    let gradients = of.backward(&saved, &found.loss.view()).unwrap();
    let zero = |tensor: Tensor| tensor.to_vec::<bf16>().unwrap().iter().all(|x| x.to_bits() == 0);
    assert!(gradients.dx.shape()[..] == [0, 64] && zero(gradients.dweight) && zero(gradients.dbias.unwrap()));
}

/// Whatever the order of thread blocks and warps is.
#[test]
fn every_interleaving_has_the_same_bits() {
    if device::is_gpu() {
        return;
    }
    for case in [
        Case { smoothing: 0.1, ..Case::new([300, 72, 520]) },
        Case { hopper: false, smoothing: 0.1, ..Case::new([130, 72, 300]) },
    ] {
        let case = Case { chunk_bytes: Some(1), ..case };
        let run = |seed: u64| {
            let config = EmulatorConfig::default().with_seed(seed).with_multiprocessors(1.try_into().expect("not 0"));
            let device = Device::emulator_with(config).expect("the emulator is built in");
            let unwrap = |wrong: String| -> Vec<f64> { panic!("seed {seed}: {wrong}") };
            let losses = case.forward::<bf16>(&device).unwrap_or_else(unwrap);
            let gradients = case.backward::<bf16>(&device).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            (losses, gradients)
        };
        let first = run(0);
        assert!((1..device::seeds(4).into()).all(|seed| run(seed) == first), "{case:?}");
    }
}
