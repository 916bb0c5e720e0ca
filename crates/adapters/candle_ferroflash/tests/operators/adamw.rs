//! AdamW, and the norm of gradients.

use crate::support::{DTYPES, f64s, values};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{AdamW, clip_grad_norm, grad_norm};
use candle_nn::{Optimizer, ParamsAdamW};
use ferroflash::reference::{ReferenceAdamW, ReferenceAdamWState};

const PARAMS: ParamsAdamW = ParamsAdamW { lr: 0.0625, beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.1 };

fn variable(shape: &[usize], seed: usize, dtype: DType) -> Var {
    Var::from_tensor(&values(shape, seed, dtype)).unwrap()
}

/// Gradients of nothing that is a variable of a test.
fn empty() -> GradStore {
    Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap()
}

/// Gradients of these variables.
fn gradients(vars: &[Var], seed: usize) -> GradStore {
    let mut store = empty();
    for (index, var) in vars.iter().enumerate() {
        store.insert(var, values(var.dims(), seed + index, var.dtype()));
    }
    store
}

fn reference(step: u32, gradient_scale: f64) -> ReferenceAdamW {
    let ParamsAdamW { lr, beta1, beta2, eps, weight_decay } = PARAMS;
    ReferenceAdamW { rate: lr, betas: [beta1, beta2], epsilon: eps, decay: weight_decay, gradient_scale, step }
}

/// What variables are to become, in f64.
struct Expected(Vec<ReferenceAdamWState>);

impl Expected {
    fn of(vars: &[Var]) -> Expected {
        let state = |var: &Var| {
            let weight = f64s(var);
            let zeros = vec![0.0; weight.len()];
            ReferenceAdamWState { weight, moment: zeros.clone(), second_moment: zeros }
        };
        Expected(vars.iter().map(state).collect())
    }

    fn step(&mut self, vars: &[Var], grads: &GradStore, step: u32, scale: f64) {
        self.step_at(PARAMS.lr, vars, grads, step, scale);
    }

    /// A step with another learning rate than that of the parameters.
    fn step_at(&mut self, rate: f64, vars: &[Var], grads: &GradStore, step: u32, scale: f64) {
        for (state, var) in self.0.iter_mut().zip(vars) {
            if let Some(gradient) = grads.get(var) {
                let reference = ReferenceAdamW { rate, ..reference(step, scale) };
                *state = reference.step(state, &f64s(gradient)).unwrap();
            }
        }
    }

    /// Each of so many `roundings` to the type of the variable is half a unit of what the weight was then, which steps of a sixteenth have moved since.
    fn check(&self, name: &str, vars: &[Var], roundings: f64) {
        for (index, (state, var)) in self.0.iter().zip(vars).enumerate() {
            let half_unit = match var.dtype() {
                DType::F32 => 0.0,
                DType::F16 => 2f64.powi(-11),
                _ => 2f64.powi(-8),
            };
            for (found, exact) in f64s(var).iter().zip(&state.weight) {
                let most = exact.abs() + 0.125 * (roundings - 1.0);
                let (error, bound) = ((found - exact).abs(), roundings * half_unit * most + 1e-5);
                assert!(error <= bound, "{name}: variable {index} is {found} for {exact}, {bound:e} is accepted");
            }
        }
    }
}

/// Variables of all types, some without a gradient, over several steps.
#[test]
fn steps_in_every_type() {
    emulate_cpu(true);
    let vars: Vec<_> = DTYPES
        .iter()
        .flat_map(|&(dtype, _)| [variable(&[3, 5], 1, dtype), variable(&[1030], 2, dtype), variable(&[], 3, dtype)])
        .collect();
    let idle = variable(&[7], 4, DType::F32);
    let before = f64s(&idle);
    let mut all = vars.clone();
    all.extend([idle.clone(), Var::from_tensor(&Tensor::new(&[1u32], &Device::Cpu).unwrap()).unwrap()]);
    let mut adamw = AdamW::new(all, PARAMS).unwrap();
    let mut expected = Expected::of(&vars);
    for step in 1..=3 {
        let grads = gradients(&vars, 10 * step as usize);
        adamw.step(&grads).unwrap();
        expected.step(&vars, &grads, step, 1.0);
        expected.check("without masters", &vars, step.into());
    }
    assert_eq!(f64s(&idle), before);
}

/// More variables than a launch has, with masters: they are rounded once, whatever the number of steps.
#[test]
fn masters_keep_small_steps() {
    emulate_cpu(true);
    let vars: Vec<_> = (0..70).map(|index| variable(&[1 + index % 9], index, DType::BF16)).collect();
    let mut adamw = AdamW::new(vars.clone(), PARAMS).unwrap().with_masters().unwrap();
    let mut expected = Expected::of(&vars);
    for step in 1..=5 {
        let grads = gradients(&vars, 100 * step as usize);
        adamw.step(&grads).unwrap();
        expected.step(&vars, &grads, step, 1.0);
    }
    expected.check("with masters", &vars, 1.0);
}

/// A step with clipped gradients is one with gradients that were clipped, and either has the coefficient of the norm of all.
#[test]
fn clipping() {
    emulate_cpu(true);
    let vars = |seed| [variable(&[40], seed, DType::F32), variable(&[3, 9], seed + 1, DType::F32)];
    let (clipped, scaled) = (vars(1), vars(1));
    let grads = gradients(&clipped, 5);
    let norm = clipped.iter().flat_map(|var| f64s(grads.get(var).unwrap())).map(|x| x * x).sum::<f64>().sqrt();
    let close = |found: &Tensor| assert!((f64::from(found.to_scalar::<f32>().unwrap()) / norm - 1.0).abs() < 1e-6);
    close(&grad_norm(&clipped, &grads).unwrap());
    for (most, coefficient) in [(1.5f32, 1.5 / (norm + 1e-6)), (1e3, 1.0)] {
        let mut expected = Expected::of(&clipped);
        let mut adamw = AdamW::new(clipped.to_vec(), PARAMS).unwrap();
        close(&adamw.step_clipped(&grads, most).unwrap());
        expected.step(&clipped, &grads, 1, coefficient);
        expected.check("clipped", &clipped, 1.0);

        let mut own = gradients(&scaled, 5);
        close(&clip_grad_norm(&scaled, &mut own, most).unwrap());
        for (of, var) in clipped.iter().zip(&scaled) {
            for (found, gradient) in f64s(own.get(var).unwrap()).iter().zip(f64s(grads.get(of).unwrap())) {
                assert!((found - gradient * coefficient).abs() < 1e-6, "{found} {gradient} {coefficient}");
            }
        }
    }
    let none = empty();
    assert_eq!(grad_norm(&clipped, &none).unwrap().to_scalar::<f32>().unwrap(), 0.0);
}

/// What lies in the memory of a variable, or in no order, is a gradient as any other.
#[test]
fn gradients_in_other_places() {
    emulate_cpu(true);
    let vars = [variable(&[6, 4], 1, DType::F32), variable(&[4, 6], 2, DType::F32)];
    let mut grads = empty();
    grads.insert(&vars[0], vars[0].as_detached_tensor());
    grads.insert(&vars[1], values(&[6, 4], 3, DType::F32).t().unwrap());
    let mut expected = Expected::of(&vars);
    expected.step(&vars, &grads, 1, 1.0);
    AdamW::new(vars.to_vec(), PARAMS).unwrap().step(&grads).unwrap();
    expected.check("in other places", &vars, 1.0);
}

/// Each step reads the rate of its time, in tensors of either shape, with the gradients clipped too, and in the memory of a variable; one of the host
/// takes its place.
#[test]
fn rates_on_the_device() {
    emulate_cpu(true);
    let vars = [variable(&[40], 1, DType::F32), variable(&[3, 9], 2, DType::BF16)];
    let rates = [0.0625f32, 0.03125, 0.5];
    for shape in [&[][..], &[1]] {
        let rate = Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        // The rate of the parameters is far off.
        let params = ParamsAdamW { lr: 1e3, ..PARAMS };
        let mut adamw = AdamW::new(vars.to_vec(), params).unwrap().with_masters().unwrap().with_device_rate(&rate);
        assert_eq!(adamw.learning_rate(), 1e3);
        let mut expected = Expected::of(&vars);
        for (step, now) in (1..).zip(rates) {
            rate.set(&Tensor::full(now, shape, &Device::Cpu).unwrap()).unwrap();
            let grads = gradients(&vars, 10 * step as usize);
            adamw.step_clipped(&grads, 1e3).unwrap();
            expected.step_at(now.into(), &vars, &grads, step, 1.0);
        }
        expected.check("rates on the device", &vars, 1.0);
        adamw.set_learning_rate(0.125);
        let grads = gradients(&vars, 40);
        adamw.step(&grads).unwrap();
        expected.step_at(0.125, &vars, &grads, 4, 1.0);
        expected.check("a rate of the host again", &vars, 1.0);
    }

    let of_itself = [Var::from_tensor(&Tensor::new(&[0.25f32], &Device::Cpu).unwrap()).unwrap()];
    let mut adamw = AdamW::new(of_itself.to_vec(), PARAMS).unwrap().with_device_rate(&of_itself[0]);
    let mut expected = Expected::of(&of_itself);
    let grads = gradients(&of_itself, 3);
    adamw.step(&grads).unwrap();
    expected.step_at(0.25, &of_itself, &grads, 1, 1.0);
    expected.check("its own rate", &of_itself, 1.0);
}
