//! AdamW, and the norm of gradients.

use super::memory::{Views, Wanted, run, run_on, with_changed};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Error, Result, Storage, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use ferroflash::operators::{AdamWTensor, GradientNorm, StepNumber};
use ferroflash::{Operand, OperatorError};
use std::collections::HashSet;

const ADAMW: &str = "adamw";
const GRAD_NORM: &str = "grad-norm";

/// Variables of a launch. One of ferroflash takes 64, but each tensor that is overwritten is a call within a call of candle's (see `memory::changed`),
/// which without optimisation takes some 3 KiB of the stack: four of 32 variables leave room on that of a thread.
const AT_ONCE: usize = 32;

/// AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2) in candle_nn's place: its parameters, the same equation,
/// and a launch for 32 variables of one type in the place of some fifteen for each.
///
/// ```text
/// m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
/// w = (1 - lr weight_decay) w - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
/// ```
///
/// Variables are f16, bf16 or f32, on one device. Moments are f32 whatever the variables are, and all is computed in f32; candle_nn has both in the
/// type of the variable. [`AdamW::with_masters`] keeps variables of 16 bits in f32 as well. Variables are overwritten where they are.
///
/// ```
/// use candle_core::{Device, Var};
/// use candle_ferroflash::operators::AdamW;
/// use candle_nn::Optimizer;
///
/// candle_ferroflash::emulate_cpu(true);
/// let w = Var::new(&[3.0f32, -1.0], &Device::Cpu)?;
/// let mut adamw = AdamW::new_lr(vec![w.clone()], 0.1)?;
/// for _ in 0..3 {
///     adamw.backward_step(&w.sqr()?.sum_all()?)?;
/// }
/// // Steps of the learning rate towards 0.
/// assert!((w.to_vec1::<f32>()?[0] - 2.7).abs() < 0.02);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct AdamW {
    vars: Vec<Trained>,
    params: ParamsAdamW,
    /// The learning rate, where it is on the device.
    rate: Option<Tensor>,
    /// Steps that were taken.
    steps: u32,
}

/// A variable, and what is kept of it.
#[derive(Debug)]
struct Trained {
    var: Var,
    moment: Tensor,
    second_moment: Tensor,
    /// The variable in f32.
    master: Option<Tensor>,
}

impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    /// Integers among the variables are left alone, as candle_nn leaves them.
    ///
    /// # Errors
    /// [`crate::Error`]: [`ElementType`](crate::Error::ElementType), [`Repeated`](crate::Error::Repeated); or candle's own for variables on different
    /// devices.
    fn new(vars: Vec<Var>, params: ParamsAdamW) -> Result<AdamW> {
        let vars: Vec<Var> = vars.into_iter().filter(|var| var.dtype().is_float()).collect();
        for (index, var) in vars.iter().enumerate() {
            let (operand, found) = (Operand::Parameter(index), var.dtype());
            if !matches!(found, DType::F16 | DType::BF16 | DType::F32) {
                return Err(crate::Error::ElementType { op: ADAMW, operand, found }.into());
            }
            if let Some(first) = vars[..index].iter().position(|other| other.id() == var.id()) {
                return Err(crate::Error::Repeated { op: ADAMW, operand, first: Operand::Parameter(first) }.into());
            }
            let (lhs, rhs) = (vars[0].device().location(), var.device().location());
            if lhs != rhs {
                return Err(Error::DeviceMismatchBinaryOp { lhs, rhs, op: ADAMW }.bt());
            }
        }
        let trained = |var: Var| {
            let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
            let (moment, second_moment) = (zeros()?, zeros()?);
            Ok(Trained { var, moment, second_moment, master: None })
        };
        Ok(AdamW { vars: vars.into_iter().map(trained).collect::<Result<_>>()?, params, rate: None, steps: 0 })
    }

    /// Takes a step with these gradients. Variables without one stay as they are.
    ///
    /// # Errors
    /// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`RateType`](crate::Error::RateType), and what [`ferroflash::operators::AdamW::step`]
    /// refuses, before anything is launched.
    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.take_step(grads, None)
    }

    /// That of the parameters, whether or not one on the device has taken its place.
    fn learning_rate(&self) -> f64 {
        self.params.lr
    }

    /// It takes the place of one on the device, too.
    fn set_learning_rate(&mut self, lr: f64) {
        (self.params.lr, self.rate) = (lr, None);
    }
}

impl AdamW {
    /// With this learning rate, and candle_nn's other parameters.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn new_lr(vars: Vec<Var>, learning_rate: f64) -> Result<AdamW> {
        AdamW::new(vars, ParamsAdamW { lr: learning_rate, ..ParamsAdamW::default() })
    }

    /// Keeps the variables of 16 bits in f32 as well, beginning with what they are now. A step reads and writes these masters, and the variables are
    /// what they round to: so steps that are too small for 16 bits add up.
    ///
    /// # Errors
    /// candle's own, when it has no memory.
    pub fn with_masters(mut self) -> Result<AdamW> {
        for trained in self.vars.iter_mut().filter(|trained| trained.var.dtype() != DType::F32) {
            trained.master = Some(trained.var.as_detached_tensor().to_dtype(DType::F32)?);
        }
        Ok(self)
    }

    /// With a learning rate on the device, one number of f32, in the place of that of the parameters. Each step reads what it is then, and the host does not: a
    /// variable that is set between steps makes a schedule without a wait.
    ///
    /// ```
    /// use candle_core::{Device, Tensor, Var};
    /// use candle_ferroflash::operators::AdamW;
    /// use candle_nn::Optimizer;
    ///
    /// candle_ferroflash::emulate_cpu(true);
    /// let w = Var::new(&[3.0f32, -1.0], &Device::Cpu)?;
    /// let rate = Var::new(0.1f32, &Device::Cpu)?;
    /// let mut adamw = AdamW::new_lr(vec![w.clone()], 1.0)?.with_device_rate(&rate);
    /// adamw.backward_step(&w.sqr()?.sum_all()?)?;
    /// rate.set(&(rate.as_tensor() * 0.0)?)?;
    /// adamw.backward_step(&w.sqr()?.sum_all()?)?;
    /// // One step of the learning rate, and one of 0.
    /// assert!((w.to_vec1::<f32>()?[0] - 2.9).abs() < 0.01);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn with_device_rate(mut self, rate: &Tensor) -> AdamW {
        self.rate = Some(rate.detach());
        self
    }

    /// The parameters.
    pub fn params(&self) -> &ParamsAdamW {
        &self.params
    }

    /// Other parameters from the next step on.
    pub fn set_params(&mut self, params: ParamsAdamW) {
        self.params = params;
    }

    /// [`Optimizer::step`] with gradients times `min(1, max_norm / (norm + 1e-6))`, where `norm` is that of all gradients of these variables together:
    /// what [`clip_grad_norm`] does before a step, without writing the gradients again. The norm, an f32 scalar on the device.
    ///
    /// # Errors
    /// As [`Optimizer::step`].
    pub fn step_clipped(&mut self, grads: &GradStore, max_norm: f32) -> Result<Tensor> {
        let vars: Vec<_> = self.vars.iter().map(|trained| &trained.var).collect();
        let Some(measured) = measure(&vars, grads, Some(max_norm))? else { return nothing(vars.first().copied()) };
        self.take_step(grads, Some(&measured.narrow(0, 1, 1)?))?;
        measured.get(0)
    }

    /// Takes a step with gradients times `factor`, `f32 (1)`.
    fn take_step(&mut self, grads: &GradStore, factor: Option<&Tensor>) -> Result<()> {
        let gradients = self.gradients(grads)?;
        let numbers = self.numbers(factor)?;
        let number = self.steps.saturating_add(1);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let group: Vec<_> = gradients.iter().filter(|(trained, _)| trained.var.dtype() == dtype).collect();
            for chunk in group.chunks(AT_ONCE) {
                self.launch(chunk, &numbers, number)?;
            }
        }
        self.steps = number;
        Ok(())
    }

    /// The numbers on the device that all variables share.
    fn numbers(&self, factor: Option<&Tensor>) -> Result<Vec<(Operand, Tensor)>> {
        let rate = self.rate.as_ref().map(|rate| {
            if rate.dtype() != DType::F32 {
                return Err(crate::Error::RateType { op: ADAMW, found: rate.dtype() }.into());
            }
            // candle's numbers have no axes, ferroflash's have one.
            let rate = if rate.rank() == 0 { rate.reshape(1)? } else { rate.clone() };
            Ok((Operand::LearningRate, apart(&self.places(), &rate)?))
        });
        let factor = factor.map(|factor| Ok((Operand::GradientFactor, factor.clone())));
        rate.into_iter().chain(factor).collect()
    }

    /// Where the variables are.
    fn places(&self) -> HashSet<*const Storage> {
        self.vars.iter().map(|trained| place(&trained.var)).collect()
    }

    /// The variables that have gradients, with these, all of them checked.
    fn gradients<'s>(&'s self, grads: &GradStore) -> Result<Vec<(&'s Trained, Tensor)>> {
        let places = self.places();
        let mut found = Vec::new();
        for (index, trained) in self.vars.iter().enumerate() {
            let Some(gradient) = grads.get(&trained.var) else { continue };
            if gradient.dims() != trained.var.dims() {
                let (tensor, of) = (Operand::ParameterGradient(index), Operand::Parameter(index));
                let (found, expected) = (gradient.dims().to_vec(), trained.var.dims().to_vec());
                let wrong = ferroflash::Error::from(OperatorError::Shape { tensor, found, of, expected });
                return Err(crate::Error::from(wrong).into());
            }
            if ![trained.var.dtype(), DType::F32].contains(&gradient.dtype()) {
                let (operand, found) = (Operand::ParameterGradient(index), gradient.dtype());
                return Err(crate::Error::ElementType { op: ADAMW, operand, found }.into());
            }
            let (lhs, rhs) = (trained.var.device().location(), gradient.device().location());
            if lhs != rhs {
                return Err(Error::DeviceMismatchBinaryOp { lhs, rhs, op: ADAMW }.bt());
            }
            if gradient.elem_count() == 0 {
                continue;
            }
            found.push((trained, apart(&places, gradient)?.contiguous()?));
        }
        Ok(found)
    }

    fn launch(&self, chunk: &[&(&Trained, Tensor)], numbers: &[(Operand, Tensor)], number: u32) -> Result<()> {
        let (mut changed, mut held) =
            (Vec::with_capacity(4 * chunk.len()), Vec::with_capacity(chunk.len() + numbers.len()));
        for (index, (trained, gradient)) in chunk.iter().enumerate() {
            changed.push((Operand::Parameter(index), trained.var.as_tensor()));
            changed.push((Operand::Moment(index), &trained.moment));
            changed.push((Operand::SecondMoment(index), &trained.second_moment));
            changed.extend(trained.master.as_ref().map(|master| (Operand::Master(index), master)));
            held.push((Operand::ParameterGradient(index), gradient));
        }
        held.extend(numbers.iter().map(|(operand, number)| (*operand, number)));
        with_changed(ADAMW, &changed, |changed| {
            run_on(ADAMW, &[], &held, changed, Vec::new(), |stream, views| {
                let tensor = |index| {
                    let parameter = views.out(Operand::Parameter(index));
                    let moments = [Operand::Moment(index), Operand::SecondMoment(index)].map(|of| views.out(of));
                    let (gradient, [m, v]) = (views.tensor(Operand::ParameterGradient(index)), moments);
                    let tensor = AdamWTensor::new(parameter, &gradient, m, v);
                    match views.find_out(Operand::Master(index)) {
                        Some(master) => tensor.with_master(master),
                        None => tensor,
                    }
                };
                let mut list: Vec<_> = (0..chunk.len()).map(tensor).collect();
                self.options(views).step(stream, StepNumber::Host(number), &mut list)
            })?;
            Ok(())
        })
    }

    /// The parameters as ferroflash's own options, with the factor and a learning rate of the device among the tensors of a call.
    fn options<'v>(&self, views: &Views<'v>) -> ferroflash::operators::AdamW<'v> {
        let ParamsAdamW { lr, beta1, beta2, eps, weight_decay } = self.params;
        let adamw = ferroflash::operators::AdamW::new(lr).with_betas(beta1, beta2).with_epsilon(eps);
        let adamw = adamw.with_decay(weight_decay);
        let adamw = views.find(Operand::LearningRate).map_or(adamw, |rate| adamw.with_device_rate(&rate));
        views.find(Operand::GradientFactor).map_or(adamw, |factor| adamw.with_gradient_factor(&factor))
    }
}

/// Where a tensor is.
fn place(tensor: &Tensor) -> *const Storage {
    std::ptr::from_ref(&*tensor.storage_and_layout().0)
}

/// The tensor, or a copy where it has the memory of a variable, which would be read while it is locked for writing.
fn apart(places: &HashSet<*const Storage>, tensor: &Tensor) -> Result<Tensor> {
    if places.contains(&place(tensor)) { tensor.copy() } else { Ok(tensor.clone()) }
}

/// The norm of all gradients of these variables together, an f32 scalar on their device.
///
/// # Errors
/// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`ElementType`](crate::Error::ElementType), and what
/// [`ferroflash::operators::GradientNorm::measure`] refuses; or candle's own for gradients on different devices.
pub fn grad_norm(vars: &[Var], grads: &GradStore) -> Result<Tensor> {
    let vars: Vec<_> = vars.iter().collect();
    match measure(&vars, grads, None)? {
        Some(measured) => measured.get(0),
        None => nothing(vars.first().copied()),
    }
}

/// Multiplies the gradients of these variables with `min(1, max_norm / (norm + 1e-6))`, where `norm` is that of all of them together, and gives the
/// norm, an f32 scalar on their device; as `torch.nn.utils.clip_grad_norm_` does. [`AdamW::step_clipped`] has no need to write them.
///
/// # Errors
/// As [`grad_norm`].
pub fn clip_grad_norm(vars: &[Var], grads: &mut GradStore, max_norm: f32) -> Result<Tensor> {
    let vars: Vec<_> = vars.iter().collect();
    let Some(measured) = measure(&vars, grads, Some(max_norm))? else { return nothing(vars.first().copied()) };
    let coefficient = measured.get(1)?;
    for var in vars {
        let Some(gradient) = grads.get(var) else { continue };
        // The coefficient of 16 bits would be another one.
        let clipped = gradient.to_dtype(DType::F32)?.broadcast_mul(&coefficient)?.to_dtype(gradient.dtype())?;
        grads.insert(var, clipped);
    }
    measured.get(0)
}

/// The norm of the gradients of these variables, and the coefficient of clipping, `f32 (2)`; `None` where there are none.
fn measure(vars: &[&Var], grads: &GradStore, max_norm: Option<f32>) -> Result<Option<Tensor>> {
    let gradients = vars.iter().filter_map(|var| grads.get(var)).filter(|gradient| gradient.elem_count() > 0);
    let gradients = gradients.map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    if gradients.is_empty() {
        return Ok(None);
    }
    let name = |(index, gradient)| (Operand::ParameterGradient(index), gradient);
    let held: Vec<_> = gradients.iter().enumerate().map(name).collect();
    let wanted = vec![Wanted::new(Operand::Out, DType::F32, 2)];
    let mut made = run(GRAD_NORM, &[], &held, wanted, |stream, views| {
        let list: Vec<_> = held.iter().map(|&(operand, _)| views.tensor(operand)).collect();
        GradientNorm::new().with_most(max_norm).measure(stream, &list, &mut views.out(Operand::Out))
    })?;
    Ok(made.tensor(Operand::Out))
}

/// The norm of no gradients.
fn nothing(of: Option<&Var>) -> Result<Tensor> {
    Tensor::zeros((), DType::F32, of.map_or(&Device::Cpu, |var| var.device()))
}
