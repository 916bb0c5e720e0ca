//! Dense layers against their definition. Their gradients are in `dense_backward`, what they refuse in `dense_errors`,
//! what of their kernels may not go in `dense_mutants`.

use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::lie::Lie;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{Activation, Dense, DenseOutputViewMut, Operation};
use ferroflash::reference::{ReferenceDense, max_abs_difference, tolerance};
use ferroflash::{DType, Device, Element, EmulatorConfig, Layout, Tensor, bf16, f16};
use kernel_spec::families::dense::{Engine, Pass, VARIANTS, Variant, find};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// A layer, its options and its memory.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Axes of rows.
    pub(crate) outer: Vec<usize>,
    pub(crate) depth: usize,
    /// Columns of the output.
    pub(crate) columns: usize,
    pub(crate) activation: Activation,
    pub(crate) bias: bool,
    pub(crate) residual: bool,
    pub(crate) z: bool,
    pub(crate) hopper: bool,
    /// How x, the weights, the residual, and what is written lie.
    pub(crate) lies: [Lie; 4],
    /// Elements before the biases.
    pub(crate) bias_offset: usize,
    /// Standard deviation of x.
    pub(crate) deviation: f64,
    pub(crate) seed: u64,
}

impl Case {
    pub(crate) fn new([rows, depth, columns]: [usize; 3], activation: Activation) -> Case {
        Case {
            outer: vec![rows],
            depth,
            columns,
            activation,
            bias: true,
            residual: false,
            z: false,
            hopper: true,
            lies: [Lie::default(); 4],
            bias_offset: 0,
            deviation: 1.0,
            seed: 0,
        }
    }

    pub(crate) fn sums(&self) -> usize {
        self.columns * if self.activation.is_gated() { 2 } else { 1 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.outer.iter().product()
    }

    pub(crate) fn shape(&self, columns: usize) -> Vec<usize> {
        self.outer.iter().copied().chain([columns]).collect()
    }

    pub(crate) fn draw<T: Element>(&self, what: u64, elements: usize, deviation: f64) -> Vec<T> {
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_mul(16) + what);
        (0..elements).map(|_| T::from_f64(deviation * rng.sample::<f64, _>(StandardNormal))).collect()
    }

    /// Rows that the error of the precision is taken over: those of the call first, and more of few.
    fn drawn(&self) -> usize {
        self.rows().max(4096usize.div_ceil(self.columns))
    }

    /// Runs the layer into NaN, compares with the definition, and gives the output and z.
    pub(crate) fn run<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        self.run_with::<T>(device).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn run_with<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let (sums, [x_lie, weight_lie, residual_lie, out_lie]) = (self.sums(), self.lies);
        let (out_shape, z_shape) = (self.shape(self.columns), self.shape(sums));
        // Sums of the size of x's numbers, whatever the depth.
        let weight = self.draw::<T>(1, sums * self.depth, (self.depth as f64).sqrt().recip());
        let x = self.draw::<T>(0, self.drawn() * self.depth, self.deviation);
        let bias = self.bias.then(|| self.draw::<T>(2, sums, 1.0));
        let residual = self.residual.then(|| self.draw::<T>(3, self.drawn() * self.columns, 1.0));
        let x_tensor = x_lie.upload(device, &self.shape(self.depth), &x[..self.rows() * self.depth]);
        let weight_tensor = weight_lie.upload(device, &[sums, self.depth], &weight);
        let line = Lie { offset: self.bias_offset, ..Lie::default() };
        let bias_tensor = bias.as_ref().map(|bias| line.upload(device, &[sums], bias));
        let residual_tensor = residual
            .as_ref()
            .map(|residual| residual_lie.upload(device, &out_shape, &residual[..self.rows() * self.columns]));
        let weight_view = weight_tensor.view();
        let mut layer = Dense::new(&weight_view).with_activation(self.activation).with_hopper(self.hopper);
        if let Some(bias) = &bias_tensor {
            layer = layer.with_bias(&bias.view());
        }
        if let Some(residual) = &residual_tensor {
            layer = layer.with_residual(&residual.view());
        }
        let mut out = out_lie.poisoned::<T>(device, &out_shape);
        let mut z = out_lie.poisoned::<T>(device, &z_shape);
        {
            let mut into = DenseOutputViewMut::new(out.view_mut());
            if self.z {
                into = into.with_z(z.view_mut());
            }
            let stream = device.default_stream();
            layer.forward_into(&stream, &x_tensor.view(), &mut into).map_err(|error| error.to_string())?;
            stream.synchronize().map_err(|error| error.to_string())?;
        }
        let (x, weight) = (to_f64(&x), to_f64(&weight));
        let (bias, residual) = (bias.map(|bias| to_f64(&bias)), residual.map(|residual| to_f64(&residual)));
        let reference =
            ReferenceDense { depth: self.depth, weight: &weight, bias: bias.as_deref(), activation: self.activation };
        let exact = reference.forward(&x, residual.as_deref()).unwrap();
        let rounded = reference.forward_rounded(&x, residual.as_deref(), T::DTYPE).unwrap();
        let check = |name: &str, found: &[f64], exact: &[f64], rounded: &[f64]| {
            let error = max_abs_difference(found, &exact[..found.len()]);
            let bound = tolerance(max_abs_difference(rounded, exact));
            if error <= bound { Ok(()) } else { Err(format!("{name} is off by {error:e}, {bound:e} is accepted")) }
        };
        let mut all = out_lie.read::<T>("the output", &out_shape, &out)?;
        check("out", &all, &exact.out, &rounded.out)?;
        if self.z {
            let found = out_lie.read::<T>("z", &z_shape, &z)?;
            check("z", &found, &exact.z, &rounded.z)?;
            all.extend(found);
        } else if out_lie.read::<T>("z", &z_shape, &z)?.iter().any(|z| !z.is_nan()) {
            return Err("z is not asked for, and was written".to_owned());
        }
        Ok(all)
    }

    /// What the library launches for it, of tensors that lie contiguous.
    fn symbol<T: Element>(&self, device: &Device) -> &'static str {
        let zeros = |shape: &[usize]| {
            let shape = ferroflash::Dims::new(shape).unwrap();
            Tensor::zeros(device, T::DTYPE, shape, Layout::RowMajor).unwrap()
        };
        let (x, weight) = (zeros(&self.shape(self.depth)), zeros(&[self.sums(), self.depth]));
        let weight = weight.view();
        let layer = Dense::new(&weight).with_activation(self.activation).with_hopper(self.hopper);
        layer.plan(&x.view()).unwrap().symbols()[0]
    }
}

/// Every row of forward at the edges of its tiles, with every activation.
fn every_row_at_its_edges<T: Element>() {
    let shared = device::shared();
    // As many multiprocessors as make the library take the row.
    let of = |row: &Variant| match (device::is_gpu(), row.tile.columns) {
        (true, _) => shared.device.clone(),
        (false, 129..) => emulator(1),
        (false, _) => emulator(64),
    };
    let mut visited = 0;
    for row in VARIANTS.iter().filter(|row| row.dtype == T::DTYPE && row.pass == Pass::Forward) {
        let device = of(row);
        if !device.info().runs(row.entry.arch) {
            continue;
        }
        let tile = row.tile;
        let hopper = row.engine == Engine::Warpgroups;
        for (i, activation) in Activation::ALL.into_iter().enumerate() {
            let gated = activation.is_gated();
            if gated && !row.takes_gates() {
                continue;
            }
            let halves = if gated { 2 } else { 1 };
            let [rows, columns, depth] = [tile.rows, tile.columns / halves, tile.depth].map(|extent| extent as usize);
            // Whole tiles; one number more than they have, of the axes that may, or, where another row is taken for that, one less than two have; less than one tile.
            let step = if hopper { 8 } else { 1 };
            let more = [columns + step, 2 * columns - step].into_iter().find(|&columns| {
                let size = [rows as u32 + 1, columns as u32];
                find(row.pass, row.engine, row.dtype, size, gated, device.info().multiprocessors) == Some(row)
            });
            let more = more.unwrap_or(columns + step);
            let sizes = [
                [rows, 2 * depth, columns],
                [rows + 1, depth * (tile.stages as usize + 1) + step, more],
                [rows * tile.cluster as usize - 1, depth - step, columns - step],
            ];
            let size = sizes[(i + usize::from(T::DTYPE == DType::F16)) % sizes.len()];
            let case =
                Case { residual: i % 2 == 0, z: i % 3 == 0, hopper, seed: i as u64, ..Case::new(size, activation) };
            case.run::<T>(&device).unwrap_or_else(|wrong| panic!("{}: {wrong}", row.entry.symbol));
            if !device::is_gpu() {
                assert_eq!(case.symbol::<T>(&device), row.entry.symbol, "{case:?}");
            }
            visited += 1;
        }
    }
    assert!(visited >= Activation::ALL.len(), "{visited}");
}

for_each_dtype!(every_row_at_its_edges);

pub(crate) fn emulator(multiprocessors: u32) -> Device {
    let config = EmulatorConfig::default().with_multiprocessors(multiprocessors.try_into().expect("at least one"));
    Device::emulator_with(config).expect("the emulator is built in")
}

pub(crate) fn lie() -> impl Strategy<Value = Lie> {
    let apart = (0usize..20, 0usize..20).prop_map(|(offset, gap)| Lie { offset, gap, reversed: false });
    let whole =
        (0usize..3, 0usize..3).prop_map(|(offset, gap)| Lie { offset: 8 * offset, gap: 8 * gap, reversed: false });
    prop_oneof![3 => Just(Lie::default()), 3 => whole, 1 => apart]
}

/// Sizes from 1 on, most of them around the edges of pieces and tiles; whatever options there are.
pub(crate) fn cases() -> impl Strategy<Value = Case> {
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
    let sizes = (outer, extent(300), extent(280));
    let options =
        (prop::sample::select(&Activation::ALL[..]), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let numbers = prop::sample::select(vec![1e-2, 1.0, 1.0, 20.0]);
    (sizes, options, [lie(), lie(), lie(), lie()], 0usize..9, numbers, any::<u64>()).prop_map(
        |((outer, depth, columns), (activation, bias, residual, z, hopper), lies, bias_offset, deviation, seed)| {
            let bias_offset = bias_offset * if seed % 2 == 0 { 8 } else { 1 };
            Case { outer, depth, columns, activation, bias, residual, z, hopper, lies, bias_offset, deviation, seed }
        },
    )
}

fn random_layers_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    // One multiprocessor takes the largest tiles, which many of them would leave for the last.
    let few = emulator(1);
    draws(file!(), device::cases(), 256).check(&cases(), |case| {
        let device = if device::is_gpu() || case.seed % 2 == 0 { &shared.device } else { &few };
        case.run::<T>(device).map(|_| ())
    });
}

for_each_dtype!(random_layers_agree_with_the_definition);

/// Sums of every size: those beyond the element type are infinite, those beyond f32 too, and each activation is that of its equation at both ends.
#[test]
fn large_sums_follow_the_definition() {
    let device = &device::shared().device;
    let columns = 8;
    for activation in
        [Activation::Identity, Activation::Relu, Activation::GeluTanh, Activation::GeluErf, Activation::Silu]
    {
        for hopper in [false, true] {
            // One sum a column: x times the weight.
            let weights = [60000.0f32, -60000.0, 30.0, -30.0, 5.0, -5.0, 0.0, -0.0].map(|w| f16::from_f64(w.into()));
            let weight: Vec<f16> = weights.iter().flat_map(|&w| [w, f16::from_f64(0.0)].repeat(4)).collect();
            let upload = |data: &[f16], shape| Tensor::from_slice(device, data, shape, Layout::RowMajor).unwrap();
            let weight = upload(&weight, [columns, 8]);
            let x = upload(&[2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0].map(f16::from_f64), [1, 8]);
            let weight = weight.view();
            let layer = Dense::new(&weight).with_activation(activation).with_hopper(hopper);
            let out = to_f64(&layer.forward(&x.view()).unwrap().out.to_vec::<f16>().unwrap());
            let negative = if activation == Activation::Identity { f64::NEG_INFINITY } else { 0.0 };
            assert_eq!(out[..2], [f64::INFINITY, negative], "{activation}");
            assert_eq!((out[2], out[6], out[7]), (60.0, 0.0, 0.0), "{activation}");
            let below = if activation == Activation::Identity { -60.0 } else { 0.0 };
            assert_eq!(out[3], below, "{activation}");
        }
    }
}

/// A NaN of x is one of all of its row, and of no other.
#[test]
fn a_nan_stays_in_its_row() {
    let device = &device::shared().device;
    for activation in Activation::ALL {
        for hopper in [false, true] {
            let mut x = vec![bf16::from_f64(0.5); 3 * 16];
            x[16 + 5] = bf16::from_f64(f64::NAN);
            let x = Tensor::from_slice(device, &x, [3, 16], Layout::RowMajor).unwrap();
            let weight =
                Tensor::from_slice(device, &[bf16::from_f64(0.25); 16 * 16], [16, 16], Layout::RowMajor).unwrap();
            let weight = weight.view();
            let layer = Dense::new(&weight).with_activation(activation).with_hopper(hopper);
            let out = to_f64(&layer.forward(&x.view()).unwrap().out.to_vec::<bf16>().unwrap());
            let columns = out.len() / 3;
            assert!(out.iter().enumerate().all(|(i, out)| out.is_nan() == (i / columns == 1)), "{activation}: {out:?}");
        }
    }
}

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &emulator(132);
    let zeros = |dtype, shape: [usize; 2]| Tensor::zeros(device, dtype, shape, Layout::RowMajor).unwrap();
    let (x, weight, bias) = (
        zeros(DType::Bf16, [300, 64]),
        zeros(DType::Bf16, [128, 64]),
        Tensor::zeros(device, DType::Bf16, [128], Layout::RowMajor).unwrap(),
    );
    let weight_view = weight.view();
    let layer = Dense::new(&weight_view).with_bias(&bias.view()).with_activation(Activation::GeluErf);
    let plan = layer.plan(&x.view()).unwrap();
    assert_eq!((plan.symbols(), plan.steps()[0].ctas), (vec!["dense_hopper_bf16_128x128"], 3), "{plan}");
    assert_eq!((plan.name(), plan.workspace_bytes()), ("dense", 0));
    assert_eq!(plan.bytes(), 2 * (300 * 64 + 128 * 64 + 128 + 300 * 128));
    device.prepare(&plan).unwrap();
    let portable = layer.with_hopper(false).plan(&x.view()).unwrap();
    assert_eq!((portable.symbols(), portable.steps()[0].ctas), (vec!["dense_bf16_128x128"], 3));
    assert!(portable.to_string().contains("not those of warpgroups: the options have Hopper's kernel switched off"));
    for (columns, why) in [(63, "the row stride of x is 126 bytes"), (64, "the output has 127 columns")] {
        let (x, weight) =
            (zeros(DType::Bf16, [300, columns]), zeros(DType::Bf16, [if columns == 64 { 127 } else { 128 }, columns]));
        let plan = Dense::new(&weight.view()).plan(&x.view()).unwrap();
        assert_eq!(plan.symbols(), ["dense_bf16_128x128"]);
        assert!(plan.reason().contains(why), "{plan}");
    }
    let (x, weight) = (zeros(DType::F32, [3, 8]), zeros(DType::F32, [8, 8]));
    let plan = Dense::new(&weight.view()).plan(&x.view()).unwrap();
    assert!(plan.symbols() == ["dense_f32_128x128"] && plan.reason().contains("the tensors hold f32"), "{plan}");
    // Nothing to do.
    let none = zeros(DType::F32, [0, 8]);
    let output = Dense::new(&weight.view()).with_z(true).forward(&none.view()).unwrap();
    assert_eq!((output.plan.steps()[0].ctas, &output.out.shape()[..]), (0, &[0, 8][..]));
    assert_eq!(output.z.unwrap().shape()[..], [0, 8]);
}

/// Whatever the order of thread blocks and warps is.
#[test]
fn every_interleaving_has_the_same_bits() {
    if device::is_gpu() {
        return;
    }
    for case in [
        Case { z: true, ..Case::new([300, 200, 520], Activation::GeluTanh) },
        Case { residual: true, ..Case::new([300, 72, 264], Activation::SwiGlu) },
        Case { hopper: false, ..Case::new([130, 200, 140], Activation::SwiGlu) },
    ] {
        let run = |seed: u64| {
            let config = EmulatorConfig::default().with_seed(seed).with_multiprocessors(1.try_into().expect("not 0"));
            let device = Device::emulator_with(config).expect("the emulator is built in");
            case.run::<bf16>(&device).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"))
        };
        let first = run(0);
        assert!((1..device::seeds(4).into()).all(|seed| run(seed) == first), "{case:?}");
    }
}
