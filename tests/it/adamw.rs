//! AdamW over lists of tensors against its definition. What it refuses is in `adamw_errors`.

use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::edits::mutants;
use crate::support::lie::Lie;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{AdamW, AdamWTensor, Operation, StepNumber};
use ferroflash::reference::{ReferenceAdamW, ReferenceAdamWState};
use ferroflash::{DType, Device, Element, Indices, Layout, Tensor, bf16, f16};
use kernel_spec::families::adamw::{MAX_TENSORS, VARIANTS, find};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// A tensor of the list.
#[derive(Clone, Copy, Debug)]
struct Member {
    elements: usize,
    /// Gradients of f32.
    wide: bool,
    /// A master; none beside f32.
    master: bool,
    /// Elements before the first, of all its tensors.
    offset: usize,
}

#[derive(Clone, Debug)]
struct Case {
    members: Vec<Member>,
    rate: f64,
    betas: [f64; 2],
    epsilon: f64,
    decay: f64,
    gradient_scale: f32,
    /// A factor on the device.
    factor: Option<f32>,
    step: u32,
    /// The device counts the steps.
    on_device: bool,
    /// The device has the learning rate.
    device_rate: bool,
    seed: u64,
}

/// The tensors of a member on the device, and their numbers.
struct Held {
    lie: Lie,
    tensors: [Tensor; 4],
    master: Option<Tensor>,
    state: ReferenceAdamWState,
    gradient: Vec<f64>,
}

/// Of each element, the sum of the magnitudes that its weight, its moment and its second moment are sums of.
fn units(adamw: &ReferenceAdamW, state: &ReferenceAdamWState, gradient: &[f64]) -> [Vec<f64>; 3] {
    let [beta1, beta2] = adamw.betas;
    let [left1, left2] = adamw.betas.map(|beta| 1.0 - beta.powf(adamw.step.into()));
    let mut units = [Vec::new(), Vec::new(), Vec::new()];
    for (i, &gradient) in gradient.iter().enumerate() {
        let g = (gradient * adamw.gradient_scale).abs();
        let moment = beta1 * state.moment[i].abs() + (1.0 - beta1) * g;
        let second_moment = beta2 * state.second_moment[i] + (1.0 - beta2) * g * g;
        let step = adamw.rate / left1 * moment / ((second_moment / left2).sqrt() + adamw.epsilon);
        // Below its smallest normal number f16 has no relative precision, and nothing is measured in units of 0.
        let weight = (state.weight[i].abs() + step).max(2f64.powi(-14));
        let numbers = [weight, moment.max(1e-30), second_moment.max(1e-30)];
        units.iter_mut().zip(numbers).for_each(|(units, unit)| units.push(unit));
    }
    units
}

/// The largest difference, in these units.
fn largest(found: &[f64], exact: &[f64], units: &[f64]) -> f64 {
    let errors = found.iter().zip(exact).zip(units).map(|((found, exact), unit)| (found - exact).abs() / unit);
    // What is no number is larger than all.
    errors.fold(0.0, |largest, error| if error > largest || error.is_nan() { error } else { largest })
}

impl Case {
    fn new(members: Vec<Member>) -> Case {
        Case {
            members,
            rate: 0.25,
            betas: [0.9, 0.99],
            epsilon: 1e-3,
            decay: 0.1,
            gradient_scale: 1.0,
            factor: None,
            step: 3,
            on_device: false,
            device_rate: false,
            seed: 0,
        }
    }

    fn adamw(&self) -> AdamW<'static> {
        // Where the device has another, the host's counts for nothing.
        AdamW::new(if self.device_rate { 77.0 } else { self.rate })
            .with_betas(self.betas[0], self.betas[1])
            .with_epsilon(self.epsilon)
            .with_decay(self.decay)
            .with_gradient_scale(self.gradient_scale)
    }

    fn held<T: Element>(&self, device: &Device, index: usize) -> Held {
        let Member { elements, wide, master, offset } = self.members[index];
        let master = master && T::DTYPE != DType::F32;
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_mul(1024) + index as u64);
        let mut normal = || (0..elements).map(|_| rng.sample::<f64, _>(StandardNormal)).collect::<Vec<f64>>();
        fn of<U: Element>(numbers: &[f64]) -> Vec<U> {
            numbers.iter().map(|&x| U::from_f64(x)).collect()
        }
        let lie = Lie { offset, ..Lie::default() };
        let shape = [elements];
        let weight = normal();
        let parameter = lie.upload(device, &shape, &of::<T>(&weight));
        let (gradient_tensor, gradient) = if wide {
            let numbers = of::<f32>(&normal());
            (lie.upload(device, &shape, &numbers), to_f64(&numbers))
        } else {
            let numbers = of::<T>(&normal());
            (lie.upload(device, &shape, &numbers), to_f64(&numbers))
        };
        let moment = of::<f32>(&normal());
        let second_moment = of::<f32>(&normal().iter().map(|x| x * x).collect::<Vec<f64>>());
        let masters = of::<f32>(&weight);
        let weight = if master { to_f64(&masters) } else { to_f64(&of::<T>(&weight)) };
        Held {
            lie,
            tensors: [
                parameter,
                gradient_tensor,
                lie.upload(device, &shape, &moment),
                lie.upload(device, &shape, &second_moment),
            ],
            master: master.then(|| lie.upload(device, &shape, &masters)),
            state: ReferenceAdamWState { weight, moment: to_f64(&moment), second_moment: to_f64(&second_moment) },
            gradient,
        }
    }

    /// What a straightforward program is off by in the units of [`units`], of 4096 elements like those of the case: of few, the largest error is a matter of
    /// luck. A step is rounded more often than what it is taken off: half of the elements have small gradients, and steps that are larger than their weights.
    fn precision<T: Element>(&self, reference: &ReferenceAdamW, is_master: bool, dtype: DType) -> [f64; 3] {
        let mut rng = SmallRng::seed_from_u64(self.seed);
        let mut normal = || (0..4096).map(|_| rng.sample::<f64, _>(StandardNormal)).collect::<Vec<f64>>();
        let f32s = |numbers: Vec<f64>| numbers.into_iter().map(|x| f64::from(x as f32)).collect::<Vec<f64>>();
        let of = |numbers: Vec<f64>| numbers.into_iter().map(|x| T::from_f64(x).to_f64()).collect::<Vec<f64>>();
        let weight = if is_master { f32s(normal()) } else { of(normal()) };
        let (moment, second_moment, gradient) = (f32s(normal()), normal(), normal());
        // Powers of ten down to 1e-4, evenly.
        let small = |i: usize| 10f64.powf(-4.0 * (i % 64) as f64 / 64.0 * (i / 64 % 2) as f64);
        let scaled = |(i, x): (usize, f64)| small(i) * x;
        let second_moment = f32s(second_moment.into_iter().enumerate().map(|x| scaled(x).powi(2)).collect());
        let gradient = f32s(gradient.into_iter().enumerate().map(scaled).collect());
        let state = ReferenceAdamWState { weight, moment, second_moment };
        let units = units(reference, &state, &gradient);
        let exact = reference.step(&state, &gradient).unwrap();
        let rounded = reference.step_rounded(&state, &gradient, dtype).unwrap();
        // Weights may all be next to numbers of the type, but for one, whose rounding is half of the last place.
        let roundoff = match dtype {
            DType::F16 => 2f64.powi(-11),
            DType::Bf16 => 2f64.powi(-8),
            // Quotient and difference are rounded, whatever the order.
            _ => 2f64.powi(-23),
        };
        [
            largest(&rounded.weight, &exact.weight, &units[0]).max(roundoff),
            largest(&rounded.moment, &exact.moment, &units[1]),
            largest(&rounded.second_moment, &exact.second_moment, &units[2]),
        ]
    }

    fn run<T: Element>(&self, device: &Device) -> Result<(), String> {
        self.checked::<T>(device).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn checked<T: Element>(&self, device: &Device) -> Result<(), String> {
        let mut held: Vec<Held> = (0..self.members.len()).map(|index| self.held::<T>(device, index)).collect();
        let number = self.on_device.then(|| Indices::from_slice(device, &[self.step as i32]).unwrap());
        let factor = self.factor.map(|factor| Tensor::from_slice(device, &[factor], [1], Layout::RowMajor).unwrap());
        let mut adamw = self.adamw();
        if let Some(factor) = &factor {
            adamw = adamw.with_gradient_factor(&factor.view());
        }
        let rate = Tensor::from_slice(device, &[self.rate as f32], [1], Layout::RowMajor).unwrap();
        if self.device_rate {
            adamw = adamw.with_device_rate(&rate.view());
        }
        let stream = device.default_stream();
        {
            let mut list: Vec<AdamWTensor<'_>> = held
                .iter_mut()
                .map(|Held { tensors: [parameter, gradient, moment, second_moment], master, .. }| {
                    let tensor = AdamWTensor::new(
                        parameter.view_mut(),
                        &gradient.view(),
                        moment.view_mut(),
                        second_moment.view_mut(),
                    );
                    match master {
                        Some(master) => tensor.with_master(master.view_mut()),
                        None => tensor,
                    }
                })
                .collect();
            let number =
                number.as_ref().map_or(StepNumber::Host(self.step), |number| StepNumber::Device(number.view()));
            adamw
                .step(&stream, number, &mut list)
                .and_then(|()| stream.synchronize())
                .map_err(|error| error.to_string())?;
        }
        let reference = ReferenceAdamW {
            rate: self.rate,
            betas: self.betas,
            epsilon: self.epsilon,
            decay: self.decay,
            gradient_scale: f64::from(self.gradient_scale) * f64::from(self.factor.unwrap_or(1.0)),
            step: self.step,
        };
        for (index, Held { lie, tensors, master, state, gradient }) in held.iter().enumerate() {
            let shape = [gradient.len()];
            let exact = reference.step(state, gradient).unwrap();
            let units = units(&reference, state, gradient);
            let is_master = master.is_some();
            let [of_parameter, of_moment, of_second] = self.precision::<T>(&reference, is_master, T::DTYPE);
            let [of_master, ..] = self.precision::<T>(&reference, is_master, DType::F32);
            let check = |name: &str, found: &[f64], exact: &[f64], units: &[f64], precision: f64| {
                let (error, bound) = (largest(found, exact, units), 2.0 * precision);
                // What is no number is not right either.
                if error.le(&bound) {
                    Ok(())
                } else {
                    Err(format!("{name} {index} is off by {error:e} of its addends, {bound:e} is accepted"))
                }
            };
            let parameter = lie.read::<T>("the parameters", &shape, &tensors[0])?;
            check("parameter", &parameter, &exact.weight, &units[0], of_parameter)?;
            let moment = lie.read::<f32>("the moments", &shape, &tensors[2])?;
            check("moment", &moment, &exact.moment, &units[1], of_moment)?;
            let second_moment = lie.read::<f32>("the second moments", &shape, &tensors[3])?;
            check("second moment", &second_moment, &exact.second_moment, &units[2], of_second)?;
            if let Some(master) = master {
                let master = lie.read::<f32>("the master", &shape, master)?;
                check("master", &master, &exact.weight, &units[0], of_master)?;
                let is_rounded = |(&master, &parameter): (&f64, &f64)| T::from_f64(master).to_f64() == parameter;
                if !master.iter().zip(&parameter).all(is_rounded) {
                    return Err(format!("parameter {index} is not its master, rounded"));
                }
            }
        }
        Ok(())
    }
}

/// Tensors around the elements of a vector and of a thread block, at any place, with and without masters and gradients of f32.
fn edges_of_thread_blocks<T: Element>() {
    let shared = device::shared();
    let (block, vector) = (find(T::DTYPE).expect("a row").tile.columns() as usize, 16 / T::DTYPE.bytes());
    let sizes = [1, vector - 1, vector, vector + 1, block - vector, block - 1, block, block + 1, 2 * block + vector];
    for offset in [0, 1, 8] {
        for (wide, master) in [(false, false), (true, false), (false, true), (true, true)] {
            let members = sizes.iter().map(|&elements| Member { elements, wide, master, offset }).collect();
            Case::new(members).run::<T>(&shared.device).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

for_each_dtype!(edges_of_thread_blocks);

/// Lists that one launch holds, and longer ones; empty tensors among them.
#[test]
fn lists_are_cut_where_parameters_end() {
    let device = &device::shared().device;
    let most = MAX_TENSORS as usize;
    for count in [most - 1, most, most + 1, 2 * most + 3] {
        let member = |index: usize| Member {
            elements: index * 7 % 23,
            wide: index.is_multiple_of(2),
            master: index.is_multiple_of(3),
            offset: 0,
        };
        let case = Case { on_device: count % 2 == 0, ..Case::new((0..count).map(member).collect()) };
        case.run::<bf16>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let elements = prop_oneof![3 => 0usize..=40, 2 => (0usize..=40).prop_map(|n| 8 * n), 1 => 2000usize..=4200];
    let member = (elements, any::<bool>(), any::<bool>(), prop_oneof![Just(0usize), Just(8), 0usize..9])
        .prop_map(|(elements, wide, master, offset)| Member { elements, wide, master, offset });
    let options = (
        prop::sample::select(vec![0.0, 1e-3, 0.25, 2.0]),
        prop::sample::select(vec![[0.0, 0.0], [0.9, 0.999], [0.5, 0.95]]),
        prop::sample::select(vec![1e-8, 1e-3, 1.0]),
        prop::sample::select(vec![0.0, 0.01, 0.5]),
    );
    let gradients =
        (prop::sample::select(vec![1.0f32, -0.5, 64.0]), prop::option::of(prop::sample::select(vec![0.25f32, 1.0])));
    let step = prop_oneof![1u32..=3, 4u32..=100_000];
    let of_device = (any::<bool>(), any::<bool>());
    (prop::collection::vec(member, 0..8), options, gradients, step, of_device, any::<u64>()).prop_map(
        |(members, (rate, betas, epsilon, decay), (gradient_scale, factor), step, (on_device, device_rate), seed)| {
            Case { members, rate, betas, epsilon, decay, gradient_scale, factor, step, on_device, device_rate, seed }
        },
    )
}

fn random_lists_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.run::<T>(&shared.device));
}

for_each_dtype!(random_lists_agree_with_the_definition);

/// The same plan, which a graph would hold, takes other steps when the numbers on the device change: as the host's numbers would have it.
#[test]
fn rate_and_step_of_the_device_change_between_steps() {
    let device = &device::shared().device;
    let stream = device.default_stream();
    let tensor = |value: f32| Tensor::from_slice(device, &[value; 9], [9], Layout::RowMajor).unwrap();
    let run = |on_device: bool| {
        let [mut parameter, gradient, mut moment, mut second_moment] = [1.0, 0.5, 0.0, 0.0].map(tensor);
        let mut rate = Tensor::from_slice(device, &[0.0f32], [1], Layout::RowMajor).unwrap();
        let mut count = Indices::from_slice(device, &[0]).unwrap();
        let mut plans = Vec::new();
        for (step, of_step) in [(1, 0.5f32), (2, 0.125), (3, 0.0)] {
            rate.write(&[of_step]).unwrap();
            count.write(&[step]).unwrap();
            let (rate, count) = (rate.view(), count.view());
            let (adamw, number) = match on_device {
                true => (AdamW::new(0.0).with_device_rate(&rate), StepNumber::Device(count)),
                false => (AdamW::new(of_step.into()), StepNumber::Host(step as u32)),
            };
            let adamw = adamw.with_decay(0.25);
            let mut list =
                [AdamWTensor::new(parameter.view_mut(), &gradient.view(), moment.view_mut(), second_moment.view_mut())];
            plans.push(adamw.plan(number, &list).unwrap());
            adamw.step(&stream, number, &mut list).unwrap();
        }
        assert_eq!(plans.windows(2).all(|plans| plans[0] == plans[1]), on_device);
        to_f64(&parameter.to_vec::<f32>().unwrap())[0]
    };
    let [on_host, on_device] = [run(false), run(true)];
    assert!((on_host - on_device).abs() < 1e-6 && on_host != 1.0, "{on_host} {on_device}");
}

/// What the device counts and what the host counts is one step.
#[test]
fn a_step_of_the_device_is_that_of_the_host() {
    let device = &device::shared().device;
    let stream = device.default_stream();
    let step = |number: StepNumber<'_>| {
        let tensor = |value: f32| Tensor::from_slice(device, &[value; 9], [9], Layout::RowMajor).unwrap();
        let [mut parameter, gradient, mut moment, mut second_moment] = [1.0, 0.5, 0.25, 0.125].map(tensor);
        let list =
            AdamWTensor::new(parameter.view_mut(), &gradient.view(), moment.view_mut(), second_moment.view_mut());
        AdamW::new(0.5).step(&stream, number, &mut [list]).unwrap();
        f64::from(parameter.to_vec::<f32>().unwrap()[0])
    };
    for number in [1, 2, 3, 1000, 1_000_000, i32::MAX as u32] {
        let counted = Indices::from_slice(device, &[number as i32]).unwrap();
        let [on_host, on_device] = [step(StepNumber::Host(number)), step(StepNumber::Device(counted.view()))];
        assert!((on_host - on_device).abs() < 1e-6, "step {number}: {on_host} {on_device}");
    }
    // A number that no step has is taken for the first.
    let first = step(StepNumber::Host(1));
    for number in [0, -1, i32::MIN] {
        let counted = Indices::from_slice(device, &[number]).unwrap();
        assert!((step(StepNumber::Device(counted.view())) - first).abs() < 1e-6);
    }
}

/// A gradient that is no number makes its element none, and no other.
#[test]
fn extreme_gradients_stay_where_they_are() {
    let device = &device::shared().device;
    let mut gradient = [1.0f32; 16];
    (gradient[3], gradient[5], gradient[7]) = (f32::NAN, f32::INFINITY, 1e30);
    let tensor = |data: &[f32]| Tensor::from_slice(device, data, [16], Layout::RowMajor).unwrap();
    let (mut parameter, gradient) = (tensor(&[2.0; 16]), tensor(&gradient));
    let [mut moment, mut second_moment] = [tensor(&[0.0; 16]), tensor(&[0.0; 16])];
    let list = AdamWTensor::new(parameter.view_mut(), &gradient.view(), moment.view_mut(), second_moment.view_mut());
    AdamW::new(0.5).with_decay(0.0).step(&device.default_stream(), StepNumber::Host(1), &mut [list]).unwrap();
    let found = parameter.to_vec::<f32>().unwrap();
    assert!(found[3].is_nan() && found[5].is_nan(), "{found:?}");
    // Its square is no number of f32: an infinite deviation leaves the parameter where it is.
    assert_eq!(found[7], 2.0);
    assert!((0..16).filter(|i| ![3, 5, 7].contains(i)).all(|i| (found[i] - 1.5).abs() < 1e-6), "{found:?}");
}

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &device::shared().device;
    let tensor = |dtype, elements: usize| Tensor::zeros(device, dtype, [elements], Layout::RowMajor).unwrap();
    let sizes = [5000usize, 0, 10, 4096];
    let dtypes = [DType::Bf16, DType::Bf16, DType::F32, DType::Bf16];
    let mut held: Vec<[Tensor; 5]> = sizes
        .iter()
        .zip(dtypes)
        .map(|(&n, dtype)| {
            [tensor(dtype, n), tensor(dtype, n), tensor(DType::F32, n), tensor(DType::F32, n), tensor(DType::F32, n)]
        })
        .collect();
    let list: Vec<AdamWTensor<'_>> = held
        .iter_mut()
        .enumerate()
        .map(|(index, [parameter, gradient, moment, second_moment, master])| {
            let tensor =
                AdamWTensor::new(parameter.view_mut(), &gradient.view(), moment.view_mut(), second_moment.view_mut());
            if index == 3 { tensor.with_master(master.view_mut()) } else { tensor }
        })
        .collect();
    let plan = AdamW::new(1e-3).plan(StepNumber::Host(1), &list).unwrap();
    assert_eq!(plan.symbols(), ["adamw_f32", "adamw_bf16"], "{plan}");
    assert_eq!(plan.tensors, [vec![2], vec![0, 3]]);
    assert_eq!(plan.steps().iter().map(|step| step.ctas).collect::<Vec<_>>(), [1, 3 + 2]);
    assert_eq!((plan.name(), plan.workspace_bytes()), ("adamw", 0));
    assert_eq!(plan.bytes(), 5000 * 22 + 10 * 28 + 4096 * 28);
    assert!(plan.to_string().starts_with("adamw: up to 64 tensors") && plan.reason().contains("one type"), "{plan}");
    device.prepare(&plan).unwrap();
    let nothing = AdamW::new(1e-3).plan(StepNumber::Host(1), &[]).unwrap();
    assert!(nothing.steps().is_empty() && nothing.to_string().contains("no tensors"));
    AdamW::new(1e-3).step(&device.default_stream(), StepNumber::Host(1), &mut []).unwrap();
}

/// Nobody waits for anybody, and no number is kept in local memory.
#[test]
fn no_entry_has_local_memory_or_waits() {
    for row in VARIANTS {
        let text = ferroflash::embedded_ptx(&row.entry).expect("every build has it");
        assert!(!text.contains(".local") && mutants(&text).is_empty(), "{}", row.entry.symbol);
    }
}
