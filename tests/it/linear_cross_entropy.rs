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
        prop::sample::select(vec![0.0f32, 1e-4, 0.5]),
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
            let asked = [dx || !dweight && !(dbias && bias), dweight, dbias];
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
