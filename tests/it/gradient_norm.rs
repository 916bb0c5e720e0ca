//! The norm of gradients against its definition, and what it refuses.

use crate::mutants::planner;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::edits::mutants;
use crate::support::lie::Lie;
use crate::support::planned::Planned;
use ferroflash::operators::{AdamW, AdamWTensor, GradientNorm, Operation, StepNumber};
use ferroflash::{DType, Device, Error, Layout, Operand, OperatorError, Tensor, bf16, f16};
use kernel_spec::families::gradient_norm::{MAX_TENSORS, Pass, VARIANTS, find};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// A tensor of the list: its type, elements, and those before it.
type Member = (DType, usize, usize);

#[derive(Clone, Debug)]
struct Case {
    members: Vec<Member>,
    scale: f32,
    most: Option<f32>,
    seed: u64,
}

impl Case {
    fn new(members: Vec<Member>) -> Case {
        Case { members, scale: 1.0, most: None, seed: 0 }
    }

    /// Measures, compares with the definition, and gives norm and coefficient.
    fn run(&self, device: &Device) -> Result<Vec<f32>, String> {
        let mut rng = SmallRng::seed_from_u64(self.seed);
        let mut squares = 0.0;
        let mut tensors = Vec::new();
        for &(dtype, elements, offset) in &self.members {
            let lie = Lie { offset, ..Lie::default() };
            let data: Vec<f64> = (0..elements).map(|_| rng.sample::<f64, _>(StandardNormal)).collect();
            // Elements of 16 bits are numbers of f32 and f64 too.
            let halves: Vec<bf16> = data.iter().map(|&x| bf16::from_f64(x)).collect();
            squares += halves.iter().map(|x| x.to_f64() * x.to_f64()).sum::<f64>();
            let wide: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
            tensors.push(match dtype {
                DType::F32 => lie.upload(device, &[elements], &wide),
                DType::F16 => {
                    lie.upload(device, &[elements], &wide.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>())
                }
                _ => lie.upload(device, &[elements], &halves),
            });
        }
        let lie = Lie { offset: 3, ..Lie::default() };
        let mut result = lie.poisoned::<f32>(device, &[2]);
        let views: Vec<_> = tensors.iter().map(Tensor::view).collect();
        let stream = device.default_stream();
        GradientNorm::new()
            .with_gradient_scale(self.scale)
            .with_most(self.most)
            .measure(&stream, &views, &mut result.view_mut())
            .and_then(|()| stream.synchronize())
            .map_err(|error| error.to_string())?;
        let found = lie.read::<f32>("the norm", &[2], &result)?;
        let norm = squares.sqrt() * f64::from(self.scale).abs();
        let coefficient = self.most.map_or(1.0, |most| (f64::from(most) / (norm + 1e-6)).min(1.0));
        // What f16 rounds are numbers below its least normal one; a sum of n terms in pieces is off by less than a part in a million.
        let is_near = |found: f64, exact: f64| (found - exact).abs() <= 2e-6 * exact + 1e-7;
        if !(is_near(found[0], norm) && is_near(found[1], coefficient)) {
            return Err(format!("{found:?} in place of {norm} and {coefficient}\n{self:#?}"));
        }
        Ok(result.to_vec::<f32>().unwrap())
    }
}

/// Around the elements of a vector, a tile and a thread block.
#[test]
fn edges_of_thread_blocks() {
    let device = &device::shared().device;
    for dtype in DType::ALL {
        let row = find(Pass::Squares, dtype).expect("a row");
        let (vector, tile, block) = (16 / dtype.bytes(), row.tile.columns() as usize, row.block_elements() as usize);
        for elements in
            [1, vector - 1, vector, vector + 1, tile - 1, tile, tile + 1, block - 1, block, block + 1, 2 * block + 3]
        {
            for offset in [0, 1] {
                let case = Case { most: Some(1.0), ..Case::new(vec![(dtype, elements, offset)]) };
                case.run(device).unwrap_or_else(|wrong| panic!("{wrong}"));
            }
        }
    }
}

/// Lists that one launch holds, and longer ones; empty tensors, and no tensors.
#[test]
fn lists_are_cut_where_parameters_end() {
    let device = &device::shared().device;
    let most = MAX_TENSORS as usize;
    for count in [0, 1, most, most + 1, 3 * most] {
        let member = |index: usize| (DType::ALL[usize::from(index.is_multiple_of(7))], index * 5 % 17, 0);
        Case::new((0..count).map(member).collect()).run(device).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    // More sums than the threads of the last thread block have on their way.
    let block = find(Pass::Squares, DType::F32).expect("a row").block_elements() as usize;
    if device::is_gpu() {
        Case::new(vec![(DType::F32, 9000 * block, 0)]).run(device).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

#[test]
fn random_lists_agree_with_the_definition() {
    let shared = device::shared();
    let member = (prop::sample::select(DType::ALL.to_vec()), 0usize..=3000, 0usize..9);
    let scale = prop::sample::select(vec![1.0f32, -0.25, 0.0, 1e-3]);
    let most = prop::option::of(prop::sample::select(vec![0.0f32, 0.5, 1e9]));
    let cases = (prop::collection::vec(member, 0..6), scale, most, any::<u64>())
        .prop_map(|(members, scale, most, seed)| Case { members, scale, most, seed });
    draws(file!(), device::cases(), 256).check(&cases, |case| case.run(&shared.device).map(|_| ()));
}

/// What is no number makes both results none; squares that f32 does not hold clip everything.
#[test]
fn extreme_gradients() {
    let device = &device::shared().device;
    let measure = |value: f32| {
        let gradient = Tensor::from_slice(device, &[1.0, value, 1.0], [3], Layout::RowMajor).unwrap();
        let mut result = Tensor::zeros(device, DType::F32, [2], Layout::RowMajor).unwrap();
        let norm = GradientNorm::new().with_most(1.0);
        norm.measure(&device.default_stream(), &[gradient.view()], &mut result.view_mut()).unwrap();
        result.to_vec::<f32>().unwrap()
    };
    assert!(measure(f32::NAN).iter().all(|x| x.is_nan()));
    assert_eq!(measure(1e30), [f32::INFINITY, 0.0]);
    assert_eq!(measure(f32::NEG_INFINITY), [f32::INFINITY, 0.0]);
}

/// The coefficient stays on the device, and the step takes it there.
#[test]
fn a_step_takes_the_coefficient() {
    let device = &device::shared().device;
    let stream = device.default_stream();
    let tensor = |value: f32| Tensor::from_slice(device, &[value; 4], [4], Layout::RowMajor).unwrap();
    let [mut parameter, gradient, mut moment, mut second_moment] = [1.0, 3.0, 0.0, 0.0].map(tensor);
    let mut result = Tensor::zeros(device, DType::F32, [2], Layout::RowMajor).unwrap();
    GradientNorm::new().with_most(1.5).measure(&stream, &[gradient.view()], &mut result.view_mut()).unwrap();
    let coefficient = result.view().narrow(0, 1..2).unwrap();
    let list = AdamWTensor::new(parameter.view_mut(), &gradient.view(), moment.view_mut(), second_moment.view_mut());
    AdamW::new(0.1).with_gradient_factor(&coefficient).step(&stream, StepNumber::Host(1), &mut [list]).unwrap();
    // The norm is 6, a quarter of which is left: 0.75, of which the first moment gets a tenth.
    assert!(moment.to_vec::<f32>().unwrap().iter().all(|m| (m - 0.075).abs() < 1e-6));
}

#[test]
fn plans_and_refusals() {
    let device = &device::shared().device;
    let tensor = |dtype, elements: usize| Tensor::zeros(device, dtype, [elements], Layout::RowMajor).unwrap();
    let (a, b) = (tensor(DType::Bf16, 9000), tensor(DType::F32, 10));
    let list = [a.view(), b.view()];
    let mut result = tensor(DType::F32, 2);
    let norm = GradientNorm::new();
    let plan = norm.plan(&list, &result.view_mut()).unwrap();
    assert_eq!(plan.symbols(), ["squares_f32", "squares_bf16", "squares_norm"], "{plan}");
    assert_eq!((plan.name(), plan.bytes(), plan.workspace_bytes()), ("gradient norm", 18_000 + 40 + 8, 3 * 4));
    assert!(plan.to_string().contains("sums of squares"), "{plan}");
    device.prepare(&plan).unwrap();

    let refused = |found: ferroflash::Result<ferroflash::operators::ListPlan>, text: &str| {
        assert_eq!(found.expect_err("the call should be refused").to_string(), text);
    };
    for most in [-1.0, f32::INFINITY] {
        let text = format!("largest norm {most} is not accepted; it must be 0 or above and finite");
        refused(norm.with_most(most).plan(&list, &result.view_mut()), &text);
    }
    assert!(norm.with_most(f32::NAN).plan(&list, &result.view_mut()).is_err());
    refused(
        norm.with_gradient_scale(f32::INFINITY).plan(&list, &result.view_mut()),
        "gradient scale inf is not accepted; it must be finite",
    );
    refused(norm.plan(&list, &tensor(DType::F32, 3).view_mut()), "out has shape [3]; out makes it [2]");
    refused(norm.plan(&list, &tensor(DType::F16, 2).view_mut()), "out holds f16; f32 is accepted");
    let apart = b.strided(0, [4], [2]).unwrap();
    let found = norm.plan(&[apart], &result.view_mut());
    assert!(matches!(
        found,
        Err(Error::Operator(OperatorError::NotContiguous { tensor: Operand::ParameterGradient(0), .. }))
    ));
    let address = result.address();
    // SAFETY: the call is refused before anything is written.
    let own = unsafe { ferroflash::TensorView::from_raw(device, address, 2, [2], [1], DType::F32).unwrap() };
    let found = norm.plan(&[a.view(), own], &result.view_mut());
    let expected = (Operand::Out, Operand::ParameterGradient(1));
    assert!(matches!(found, Err(Error::OutputOverlaps { output, other }) if (output, other) == expected));
    let elsewhere = Device::emulator().unwrap();
    let far = Tensor::zeros(&elsewhere, DType::F32, [2], Layout::RowMajor).unwrap();
    let found = norm.plan(&[far.view()], &result.view_mut());
    assert!(matches!(found, Err(Error::Operator(OperatorError::Device { tensor: Operand::ParameterGradient(0), .. }))));
    let found = norm.measure(&elsewhere.default_stream(), &list, &mut result.view_mut()).unwrap_err();
    assert!(matches!(&found, Error::DeviceMismatch { what, .. } if what == "the stream"), "{found:?}");
}

/// Without the barrier at which the sums of warps meet, the emulator reports a race, or the result has other bits: in either launch.
#[test]
fn every_barrier_is_needed() {
    if device::is_gpu() {
        return;
    }
    let device = planner(2);
    let numbers: Vec<bf16> = (0..20_000).map(|i| bf16::from_f32((i * 37 % 97) as f32 / 32.0 - 1.0)).collect();
    let gradient = Tensor::from_slice(&device, &numbers, [numbers.len()], Layout::RowMajor).unwrap();
    let mut result = Tensor::zeros(&device, DType::F32, [2], Layout::RowMajor).unwrap();
    let plan = GradientNorm::new().with_most(1.0).plan(&[gradient.view()], &result.view_mut()).unwrap();
    assert_eq!(plan.symbols(), ["squares_bf16", "squares_norm"], "{plan}");
    let operands = vec![
        (Operand::ParameterGradient(0), bytemuck::cast_slice(&numbers).to_vec(), false),
        (Operand::Out, vec![0xff; 8], true),
    ];
    let planned = Planned::new(device.clone(), plan, operands);
    let wrong = planned.barriers(0, 1, &[]) + &planned.barriers(1, 1, &[]);
    assert!(wrong.is_empty(), "{wrong}");
}

/// There is no other than those of [`every_barrier_is_needed`], in the entries of other types either.
#[test]
fn entries_wait_once_and_have_no_local_memory() {
    for row in VARIANTS {
        let text = ferroflash::embedded_ptx(&row.entry).expect("every build has it");
        assert!(!text.contains(".local"), "{}", row.entry.symbol);
        assert_eq!(mutants(&text).len(), 1, "{}", row.entry.symbol);
    }
}
