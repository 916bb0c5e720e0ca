//! AdamW over a list of tensors.

mod call;
mod plan;

use crate::tensor::{IndicesView, TensorView, TensorViewMut};

/// Which step it is, the first of which is 1.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum StepNumber<'a> {
    /// The host counts.
    Host(u32),
    /// The device counts: one number, which a captured call reads anew each time. It is not read on the host; one below 1 is taken for 1.
    Device(IndicesView<'a>),
}

/// AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2; Kingma and Ba, "Adam", 2015, algorithm 1), a step for a list
/// of tensors in as few launches as their places fit:
///
/// ```text
/// g = scale gradient        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
/// w = (1 - rate decay) w - rate / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + epsilon)
/// ```
///
/// That is what `torch.optim.AdamW(fused=True)` computes. All is in f32; `w` is the master of a parameter where it has one, and the parameter is rounded from
/// it. Where it has none, the parameter itself is `w`.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::{AdamW, AdamWTensor, StepNumber};
/// use ferroflash::{Device, DType, Layout, Tensor};
/// let device = Device::emulator()?;
/// let mut weight = Tensor::from_slice(&device, &[1.0f32, -1.0, 2.0], [3], Layout::RowMajor)?;
/// let gradient = Tensor::from_slice(&device, &[0.5f32, -3.0, 0.0], [3], Layout::RowMajor)?;
/// let [mut moment, mut second] = [(); 2].map(|()| Tensor::zeros(&device, DType::F32, [3], Layout::RowMajor).unwrap());
/// let mut list = [AdamWTensor::new(weight.view_mut(), &gradient.view(), moment.view_mut(), second.view_mut())];
/// AdamW::new(0.1).with_decay(0.0).step(&device.default_stream(), StepNumber::Host(1), &mut list)?;
/// // The first step is the learning rate, in the direction of the gradient.
/// let weight = weight.to_vec::<f32>()?;
/// assert!((weight[0] - 0.9).abs() < 1e-6 && (weight[1] + 0.9).abs() < 1e-6 && weight[2] == 2.0);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct AdamW<'a> {
    rate: f64,
    betas: [f64; 2],
    epsilon: f64,
    decay: f64,
    gradient_scale: f32,
    gradient_factor: Option<TensorView<'a>>,
    device_rate: Option<TensorView<'a>>,
}

impl<'a> AdamW<'a> {
    /// With this learning rate, 0 or above; betas are 0.9 and 0.999, epsilon is 1e-8 and the weight decay 0.01.
    pub fn new(rate: f64) -> AdamW<'a> {
        AdamW {
            rate,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            decay: 0.01,
            gradient_scale: 1.0,
            gradient_factor: None,
            device_rate: None,
        }
    }

    /// With a learning rate on the device, one number of f32, which is not read on the host, and in the place of the one that the options were made with: a
    /// captured step with it and [`StepNumber::Device`] reads rate and step anew each time, as PyTorch's `capturable=True` does.
    pub fn with_device_rate(mut self, rate: &TensorView<'a>) -> AdamW<'a> {
        self.device_rate = Some(*rate);
        self
    }

    /// What is left of the moments after a step: from 0 to below 1.
    pub fn with_betas(mut self, beta1: f64, beta2: f64) -> AdamW<'a> {
        self.betas = [beta1, beta2];
        self
    }

    /// Is added to the root of the second moment: 0 or above.
    pub fn with_epsilon(mut self, epsilon: f64) -> AdamW<'a> {
        self.epsilon = epsilon;
        self
    }

    /// The weight decay, times the learning rate what a parameter loses of itself: 0 or above.
    pub fn with_decay(mut self, decay: f64) -> AdamW<'a> {
        self.decay = decay;
        self
    }

    /// Multiplies gradients with this number: 1 over the scale of the loss, for instance. Gradients stay as they are.
    pub fn with_gradient_scale(mut self, scale: f32) -> AdamW<'a> {
        self.gradient_scale = scale;
        self
    }

    /// Multiplies gradients with a number on the device too, one of f32, which is not read on the host: that of [`GradientNorm`](super::GradientNorm), for instance.
    pub fn with_gradient_factor(mut self, factor: &TensorView<'a>) -> AdamW<'a> {
        self.gradient_factor = Some(*factor);
        self
    }
}

/// Parameters of one shape, and what goes with them. All are contiguous.
#[derive(Debug)]
#[non_exhaustive]
pub struct AdamWTensor<'t> {
    /// The parameters: f32, f16 or bf16.
    pub parameter: TensorViewMut<'t>,
    /// Their gradient, in their type or f32.
    pub gradient: TensorView<'t>,
    /// The first moments `m`, f32: 0 before the first step.
    pub moment: TensorViewMut<'t>,
    /// The second moments `v`, f32: 0 before the first step.
    pub second_moment: TensorViewMut<'t>,
    /// The parameters in f32, where they are kept so beside parameters of 16 bits.
    pub master: Option<TensorViewMut<'t>>,
}

impl<'t> AdamWTensor<'t> {
    /// Without a master.
    pub fn new(
        parameter: TensorViewMut<'t>,
        gradient: &TensorView<'t>,
        moment: TensorViewMut<'t>,
        second_moment: TensorViewMut<'t>,
    ) -> AdamWTensor<'t> {
        AdamWTensor { parameter, gradient: *gradient, moment, second_moment, master: None }
    }

    /// And the parameters in f32, which the step reads in the place of those of 16 bits.
    pub fn with_master(mut self, master: TensorViewMut<'t>) -> AdamWTensor<'t> {
        self.master = Some(master);
        self
    }
}
