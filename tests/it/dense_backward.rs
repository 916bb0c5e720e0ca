//! Gradients of dense layers against their definition.

use crate::dense::{Case, cases, emulator};
use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::lie::Lie;
use crate::support::rule;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{Activation, Dense, DenseGradientsViewMut, Operation};
use ferroflash::reference::{ReferenceDense, ReferenceDenseGradients};
use ferroflash::{DType, Device, Dims, Element, EmulatorConfig, Layout, Operand, Tensor, bf16, f16};
use kernel_spec::families::activation;
use kernel_spec::families::dense::{Engine, Pass, VARIANTS, Variant};
use proptest::prelude::*;

/// Gradients of a layer. Of the layer's lies, that of the residual is that of `dout`, and that of what is written that of z and the gradients.
#[derive(Clone, Debug)]
struct Gradients {
    layer: Case,
    /// Whether z is given.
    z: bool,
    /// Which of dx, dweight and dbias are asked for: one at least.
    asked: [bool; 3],
}

/// Numbers of a call, in logical order.
struct Given<T> {
    x: Vec<T>,
    weight: Vec<T>,
    bias: Vec<T>,
    z: Vec<T>,
    dout: Vec<T>,
}

/// Numbers of each gradient that the error of the precision is taken over, at least.
const TELLING: usize = 2048;

/// Products of a reference, at most, unless one draw has more.
const MOST_PRODUCTS: usize = 1 << 25;

impl Gradients {
    fn new(size: [usize; 3], activation: Activation) -> Gradients {
        Gradients { layer: Case::new(size, activation), z: true, asked: [true; 3] }
    }

    fn has_z(&self) -> bool {
        self.z && self.layer.activation != Activation::Identity
    }

    /// z is drawn by itself where it is given: gradients are computed from it, whatever x and the weights are.
    fn given<T: Element>(&self, draw: u64) -> Given<T> {
        let mut layer = self.layer.clone();
        layer.seed = layer.seed.wrapping_add(draw);
        let Case { depth, columns, deviation, .. } = layer;
        let (rows, sums) = (layer.rows(), layer.sums());
        Given {
            x: layer.draw(0, rows * depth, deviation),
            weight: layer.draw(1, sums * depth, (depth as f64).sqrt().recip()),
            bias: layer.draw(2, sums, 1.0),
            z: layer.draw(3, rows * sums, deviation),
            // Sums over rows of the size of their addends, whatever the rows are.
            dout: layer.draw(4, rows * columns, (rows.max(1) as f64).sqrt().recip()),
        }
    }

    /// What has to come out, exactly and in the precision of the tensors.
    fn references<T: Element>(&self, given: &Given<T>) -> [ReferenceDenseGradients; 2] {
        let Given { x, weight, bias, z, dout } = given;
        let [x, weight, bias, z, dout] = [x, weight, bias, z, dout].map(|data| to_f64(data));
        let (bias, z) = (self.layer.bias.then_some(&bias[..]), self.has_z().then_some(&z[..]));
        let dense =
            ReferenceDense { depth: self.layer.depth, weight: &weight, bias, activation: self.layer.activation };
        [dense.backward(&x, z, &dout).unwrap(), dense.backward_rounded(&x, z, &dout, T::DTYPE).unwrap()]
    }

    /// Draws whose errors of the precision are looked at: enough of small gradients.
    fn draws(&self) -> usize {
        let (rows, sums, depth) = (self.layer.rows().max(1), self.layer.sums(), self.layer.depth);
        let few = (rows * depth).min(sums * depth).min(sums);
        TELLING.div_ceil(few).min(MOST_PRODUCTS.div_ceil(rows * sums * depth))
    }

    /// Runs the layer's gradients into NaN, compares with the definition, and gives all of them.
    fn run<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        self.run_with::<T>(device).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn run_with<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let given = self.given::<T>(0);
        let found = self.launch(device, &given)?;
        let mut exact = ReferenceDenseGradients::default();
        let mut rounded = ReferenceDenseGradients::default();
        for draw in 0..self.draws() {
            let [one, other] = self.references(&if draw == 0 { self.given::<T>(0) } else { self.given(draw as u64) });
            for (all, one) in [(&mut exact, one), (&mut rounded, other)] {
                all.dx.extend(one.dx);
                all.dweight.extend(one.dweight);
                all.dbias.extend(one.dbias);
            }
        }
        let [dx, dweight, dbias] = &found;
        let unit = self.layer.deviation.max(1.0);
        // A gated sum's gradient has another sum as a factor.
        let through = if self.layer.activation.is_gated() { unit } else { 1.0 };
        for (name, found, exact, rounded, unit) in [
            ("dx", dx, &exact.dx, &rounded.dx, through),
            ("dweight", dweight, &exact.dweight, &rounded.dweight, through * unit),
            ("dbias", dbias, &exact.dbias, &rounded.dbias, through),
        ] {
            if let Some(found) = found {
                rule::check(name, found, exact, rounded, unit)?;
            }
        }
        Ok(found.into_iter().flatten().flatten().collect())
    }

    /// Those gradients that are asked for; what is not asked for stays as it was.
    fn launch<T: Element>(&self, device: &Device, given: &Given<T>) -> Result<[Option<Vec<f64>>; 3], String> {
        let Gradients { layer, asked, .. } = self;
        let (sums, [x_lie, weight_lie, dout_lie, own_lie]) = (layer.sums(), layer.lies);
        let (x_shape, dout_shape, z_shape) = (layer.shape(layer.depth), layer.shape(layer.columns), layer.shape(sums));
        let x = x_lie.upload(device, &x_shape, &given.x);
        let weight = weight_lie.upload(device, &[sums, layer.depth], &given.weight);
        let line = Lie { offset: layer.bias_offset, ..Lie::default() };
        let bias = line.upload(device, &[sums], &given.bias);
        let z = own_lie.upload(device, &z_shape, &given.z);
        let dout = dout_lie.upload(device, &dout_shape, &given.dout);
        let (weight, bias, z, dout) = (weight.view(), bias.view(), z.view(), dout.view());
        let mut dense = Dense::new(&weight).with_activation(layer.activation).with_hopper(layer.hopper);
        if layer.bias {
            dense = dense.with_bias(&bias);
        }
        let asked = [asked[0], asked[1], asked[2] && layer.bias];
        let mut dx = own_lie.poisoned::<T>(device, &x_shape);
        let mut dweight = own_lie.poisoned::<T>(device, &[sums, layer.depth]);
        let mut dbias = line.poisoned::<T>(device, &[sums]);
        {
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
            let z = self.has_z().then_some(&z);
            dense.backward_into(&stream, &x.view(), z, &dout, &mut into).map_err(|error| error.to_string())?;
            stream.synchronize().map_err(|error| error.to_string())?;
        }
        let all = [
            own_lie.read::<T>("dx", &x_shape, &dx)?,
            own_lie.read::<T>("dweight", &[sums, layer.depth], &dweight)?,
            line.read::<T>("dbias", &[sums], &dbias)?,
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
    fn symbols<T: Element>(&self, device: &Device) -> Vec<&'static str> {
        let layer = &self.layer;
        let zeros =
            |shape: &[usize]| Tensor::zeros(device, T::DTYPE, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap();
        let (x, weight, dout) =
            (zeros(&layer.shape(layer.depth)), zeros(&[layer.sums(), layer.depth]), zeros(&layer.shape(layer.columns)));
        let weight = weight.view();
        let dense = Dense::new(&weight).with_activation(layer.activation).with_hopper(layer.hopper);
        dense.plan_backward(&x.view(), None, &dout.view()).unwrap().symbols()
    }
}

/// Every row of the list at the edges of its tiles.
fn every_row_at_its_edges<T: Element>() {
    let shared = device::shared();
    // As many multiprocessors as make the library take the row.
    let of = |row: &Variant| match (device::is_gpu(), row.tile.columns) {
        (true, _) => shared.device.clone(),
        (false, 256..) => emulator(1),
        (false, _) => emulator(64),
    };
    let mut visited = 0;
    let rows = VARIANTS
        .iter()
        .filter(|row| row.dtype == T::DTYPE)
        .filter(|row| matches!(row.pass, Pass::InputGradient | Pass::WeightGradient));
    for row in rows {
        let device = of(row);
        if !device.info().runs(row.entry.arch) {
            continue;
        }
        let tile = row.tile;
        let hopper = row.engine == Engine::Warpgroups;
        let step = if hopper { 8 } else { 1 };
        let [rows, columns, depth] = [tile.rows * tile.cluster, tile.columns, tile.depth].map(|extent| extent as usize);
        // Whole tiles; one number more than they have, of the axes that may; less than one tile.
        for (i, [rows, columns, depth]) in [
            [rows, columns, 2 * depth],
            [rows + 1, columns + step, depth * (tile.stages as usize + 1) + step],
            [rows - 1, columns - step, depth - step],
        ]
        .into_iter()
        .enumerate()
        {
            let (size, asked) = match row.pass {
                Pass::InputGradient => ([rows, columns, depth], [true, false, false]),
                // The rows of the product are its sums, and what it sums over are the rows of the layer.
                _ => ([depth, columns, rows], [false, true, false]),
            };
            let mut case = Gradients { asked, ..Gradients::new(size, Activation::Relu) };
            (case.layer.hopper, case.layer.seed) = (hopper, i as u64);
            case.run::<T>(&device).unwrap_or_else(|wrong| panic!("{}: {wrong}", row.entry.symbol));
            if !device::is_gpu() {
                assert!(case.symbols::<T>(&device).contains(&row.entry.symbol), "{}: {case:?}", row.entry.symbol);
            }
            visited += 1;
        }
    }
    assert!(visited >= 6, "{visited}");
}

for_each_dtype!(every_row_at_its_edges);

/// Every activation at the edges of the strips of columns and of the rows of a thread block, with one part of the rows and with many.
fn every_activation_at_the_edges_of_strips<T: Element>() {
    let row = activation::find(T::DTYPE).expect("a row for every type");
    let (columns, rows) = (row.tile.columns() as usize, row.tile.block_rows() as usize);
    let devices = [emulator(1), emulator(132)];
    for activation in Activation::ALL {
        for (i, [rows, columns]) in
            [[rows, columns], [2 * rows + 1, columns + 8], [1, columns - 8], [5 * rows - 1, 2 * columns + 1]]
                .into_iter()
                .enumerate()
        {
            let mut case = Gradients { asked: [i == 0, false, true], ..Gradients::new([rows, 8, columns], activation) };
            case.layer.seed = i as u64;
            let device = if device::is_gpu() { &device::shared().device } else { &devices[i % 2] };
            case.run::<T>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

for_each_dtype!(every_activation_at_the_edges_of_strips);

fn gradient_cases() -> impl Strategy<Value = Gradients> {
    let asked = (any::<bool>(), any::<bool>(), any::<bool>());
    (cases(), any::<bool>(), asked).prop_map(|(layer, z, (dx, dweight, dbias))| {
        let dbias = dbias && layer.bias;
        // One at least.
        Gradients { layer, z, asked: [dx || !dweight && !dbias, dweight, dbias] }
    })
}

fn random_gradients_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    // One multiprocessor takes the largest tiles, which many of them would leave for the last.
    let few = emulator(1);
    draws(file!(), device::cases(), 256).check(&gradient_cases(), |mut case| {
        // Where z is computed, ReLU may take a sum that is nearly 0 for another sign.
        case.z |= case.layer.activation == Activation::Relu;
        let device = if device::is_gpu() || case.layer.seed % 2 == 0 { &shared.device } else { &few };
        case.run::<T>(device).map(|_| ())
    });
}

for_each_dtype!(random_gradients_agree_with_the_definition);

/// From what forward kept, and from z computed again: the same bits.
fn z_is_computed_again<T: Element>() {
    let device = &device::shared().device;
    for activation in Activation::ALL {
        for hopper in [false, true] {
            let layer = Case { hopper, ..Case::new([70, 72, 40], activation) };
            let tensor = |data: Vec<T>, shape: &[usize]| {
                Tensor::from_slice(device, &data, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap()
            };
            let sums = layer.sums();
            let (x, weight) =
                (tensor(layer.draw(0, 70 * 72, 1.0), &[70, 72]), tensor(layer.draw(1, sums * 72, 0.1), &[sums, 72]));
            let (bias, dout) =
                (tensor(layer.draw(2, sums, 1.0), &[sums]), tensor(layer.draw(4, 70 * 40, 1.0), &[70, 40]));
            let weight = weight.view();
            let dense = Dense::new(&weight).with_bias(&bias.view()).with_activation(activation).with_hopper(hopper);
            let kept = dense.with_z(true).forward(&x.view()).unwrap().z.expect("asked for");
            let kept = kept.view();
            let run = |z| {
                let gradients = dense.backward(&x.view(), z, &dout.view()).unwrap();
                let launches = gradients.plan.steps().len();
                let dbias = gradients.dbias.expect("there are biases");
                let all = [gradients.dx, gradients.dweight, dbias].map(|tensor| to_f64(&tensor.to_vec::<T>().unwrap()));
                (all, launches)
            };
            if activation == Activation::Identity {
                assert_eq!(run(None).1, 4, "sums of biases in two launches, and two products");
                continue;
            }
            let ((again, launches), (given, fewer)) = (run(None), run(Some(&kept)));
            assert!(again == given && launches == fewer + 1, "{activation}, hopper {hopper}");
        }
    }
}

for_each_dtype!(z_is_computed_again);

/// Slopes at both ends and at 0: those of large sums, also where these are infinite; a NaN of z is one of its own gradient alone.
#[test]
fn slopes_of_sums_of_every_size() {
    let device = &device::shared().device;
    let upload = |data: &[f32], shape: [usize; 2]| Tensor::from_slice(device, data, shape, Layout::RowMajor).unwrap();
    let z = [0.0, -0.0, 60.0, -60.0, 3e38, -3e38, f32::INFINITY, f32::NEG_INFINITY, 1e-30, f32::NAN];
    let n = z.len();
    // The gradient of x is that of z.
    let identity: Vec<f32> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
    let (x, weight, dout) = (upload(&vec![1.0; n], [1, n]), upload(&identity, [n, n]), upload(&vec![2.0; n], [1, n]));
    let (weight, z) = (weight.view(), upload(&z, [1, n]));
    for (activation, at_zero) in [
        (Activation::Relu, [0.0, 0.0, 2.0]),
        (Activation::GeluTanh, [1.0; 3]),
        (Activation::GeluErf, [1.0; 3]),
        (Activation::Silu, [1.0; 3]),
    ] {
        let dense = Dense::new(&weight).with_activation(activation);
        // Of z alone: NaN times 0 of the product is NaN everywhere else.
        let bias = upload(&vec![0.0; n], [1, n]);
        let bias = bias.strided(0, [n], [1]).unwrap();
        let dense = dense.with_bias(&bias);
        let found = dense.backward(&x.view(), Some(&z.view()), &dout.view()).unwrap();
        let dz = found.dbias.expect("there are biases").to_vec::<f32>().unwrap();
        let near = |found: f32, expected: f32| (found - expected).abs() < 1e-5;
        assert!(near(dz[0], at_zero[0]) && near(dz[1], at_zero[1]), "{activation}: {dz:?}");
        let ends = dz[2..8].iter().zip([2.0, 0.0, 2.0, 0.0, 2.0, 0.0]);
        assert!(ends.into_iter().all(|(&found, expected)| near(found, expected)), "{activation}: {dz:?}");
        assert!(near(dz[8], at_zero[2]), "{activation}: {dz:?}");
        assert_eq!(dz[9].is_nan(), activation != Activation::Relu, "{activation}");
    }
}

/// Without rows: gradients of weights and biases are 0.
#[test]
fn no_rows_have_gradients_of_zero() {
    let device = &device::shared().device;
    let zeros =
        |shape: &[usize]| Tensor::zeros(device, DType::Bf16, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap();
    let (x, weight, bias, dout) = (zeros(&[0, 16]), zeros(&[24, 16]), zeros(&[24]), zeros(&[0, 24]));
    let weight = weight.view();
    for activation in [Activation::Identity, Activation::GeluErf] {
        let dense = Dense::new(&weight).with_bias(&bias.view()).with_activation(activation);
        let found = dense.backward(&x.view(), None, &dout.view()).unwrap();
        assert_eq!(found.dx.shape()[..], [0, 16]);
        let sums = [found.dweight, found.dbias.expect("there are biases")];
        assert!(sums.iter().all(|sums| sums.to_vec::<bf16>().unwrap().iter().all(|x| x.to_bits() == 0)));
    }
}

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &emulator(132);
    let zeros =
        |dtype, shape: &[usize]| Tensor::zeros(device, dtype, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap();
    let (x, weight) = (zeros(DType::Bf16, &[300, 64]), zeros(DType::Bf16, &[128, 64]));
    let (bias, dout) = (zeros(DType::Bf16, &[128]), zeros(DType::Bf16, &[300, 128]));
    let weight = weight.view();
    let layer = Dense::new(&weight).with_bias(&bias.view()).with_activation(Activation::GeluErf);
    let z = dout.view();
    let plan = layer.plan_backward(&x.view(), Some(&z), &dout.view()).unwrap();
    let symbols = ["dense_dz_bf16", "norm_parts_bf16", "dense_dx_hopper_bf16_128x128", "dense_dw_hopper_bf16_128x128"];
    assert_eq!((plan.symbols(), plan.name(), plan.pass), (symbols.to_vec(), "dense", "backward"), "{plan}");
    // dz, and what each part of the rows adds: 38 of eight rows.
    assert_eq!(plan.workspace_bytes(), 2 * 300 * 128 + 38 * 128 * 4, "{plan}");
    assert_eq!(plan.bytes(), 2 * (2 * 300 * 64 + 2 * 300 * 128 + 2 * 128 * 64 + 128));
    assert!(
        plan.reason().contains("gelu_erf; dx by products of warpgroups; dweight by products of warpgroups"),
        "{plan}"
    );
    device.prepare(&plan).unwrap();
    let again = layer.plan_backward(&x.view(), None, &dout.view()).unwrap();
    assert_eq!(
        (again.symbols()[0], again.workspace_bytes()),
        ("dense_hopper_bf16_128x128", plan.workspace_bytes() + 2 * 300 * 128)
    );
    // The identity has nothing to bend: without biases two products are all.
    let identity = Dense::new(&weight).plan_backward(&x.view(), None, &dout.view()).unwrap();
    assert_eq!((identity.symbols(), identity.workspace_bytes()), (symbols[2..].to_vec(), 0), "{identity}");
    // An odd number of sums: dz has rows of its own at multiples of 16 bytes.
    let (odd, dout) = (zeros(DType::Bf16, &[127, 64]), zeros(DType::Bf16, &[300, 127]));
    let odd = odd.view();
    let plan = Dense::new(&odd).with_activation(Activation::Relu).plan_backward(&x.view(), None, &dout.view()).unwrap();
    assert_eq!(plan.symbols()[2..], symbols[2..], "{plan}");
    let plan = Dense::new(&odd).plan_backward(&x.view(), None, &dout.view()).unwrap();
    assert!(plan.reason().contains("the row stride of dout is 254 bytes"), "{plan}");
}

/// Whatever the order of thread blocks and warps is.
#[test]
fn every_interleaving_has_the_same_bits() {
    if device::is_gpu() {
        return;
    }
    let of = |hopper, size, activation| {
        let mut case = Gradients::new(size, activation);
        case.layer.hopper = hopper;
        case
    };
    for case in [
        of(true, [300, 200, 264], Activation::GeluTanh),
        of(true, [300, 264, 136], Activation::SwiGlu),
        of(false, [130, 140, 72], Activation::SwiGlu),
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

/// What gradients refuse beyond what forward does.
#[test]
fn calls_that_mean_nothing() {
    let device = &device::shared().device;
    let zeros =
        |shape: &[usize]| Tensor::zeros(device, DType::F16, Dims::new(shape).unwrap(), Layout::RowMajor).unwrap();
    let (x, weight, dout) = (zeros(&[3, 16]), zeros(&[8, 16]), zeros(&[3, 8]));
    let (weight, dout) = (weight.view(), dout.view());
    let layer = Dense::new(&weight);
    let said = |found: ferroflash::Result<()>| found.expect_err("refused").to_string();
    let stream = device.default_stream();
    let none = layer.backward_into(&stream, &x.view(), None, &dout, &mut DenseGradientsViewMut::new());
    assert_eq!(said(none), "no gradient of dense is asked for; at least one of dx, dweight and dbias is needed");
    let identity = layer.backward(&x.view(), Some(&dout), &dout).map(|_| ());
    assert_eq!(said(identity), "z is given, and the call has no activation");
    let mut dbias = zeros(&[8]);
    let mut into = DenseGradientsViewMut::new().with_dbias(dbias.view_mut());
    let unbiased = layer.backward_into(&stream, &x.view(), None, &dout, &mut into);
    assert_eq!(said(unbiased), "dbias is given, and the call has no bias");
    let short = zeros(&[2, 8]);
    let shape = layer.backward(&x.view(), None, &short.view()).map(|_| ());
    assert_eq!(said(shape), "dout has shape [2, 8]; x makes it [3, 8]");
    let gated = layer.with_activation(Activation::SwiGlu);
    let half = zeros(&[3, 4]);
    let z = gated.backward(&x.view(), Some(&half.view()), &half.view()).map(|_| ());
    assert_eq!(said(z), "z has shape [3, 4]; x makes it [3, 8]");
    let mut both = zeros(&[8, 16]);
    let address = both.address();
    // SAFETY: the call is refused before anything is written.
    let over =
        unsafe { ferroflash::TensorViewMut::from_raw(device, address, 128, [3, 16], [16, 1], DType::F16).unwrap() };
    let mut into = DenseGradientsViewMut::new().with_dweight(both.view_mut()).with_dx(over);
    let found = layer.backward_into(&stream, &x.view(), None, &dout, &mut into).unwrap_err();
    let overlap = matches!(
        found,
        ferroflash::Error::OutputOverlaps { output: Operand::Dx, other: Operand::Dweight }
            | ferroflash::Error::OutputOverlaps { output: Operand::Dweight, other: Operand::Dx }
    );
    assert!(overlap, "{found:?}");
}
