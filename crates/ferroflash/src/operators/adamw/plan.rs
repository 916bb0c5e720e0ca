//! The launches.

use super::super::list::{ListPlan, elements_of};
use super::{AdamW, AdamWTensor, StepNumber};
use crate::device::Device;
use crate::error::{Error, Operand, Result};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, MAX_GRID, Params, Step, check_device};
use crate::specialise::Specialised;
use kernel_spec::families::adamw::{AdamWParams, MAX_TENSORS, TensorParams, Variant, find};
use kernel_spec::{DType, FeatureSet, Features};
use std::mem::offset_of;

plain! {
    TensorParams { parameter, gradient, moment, second_moment, master, elements, first_block }
    AdamWParams {
        tensors, step, gradient_factor, device_rate, betas, moment, second_moment, rate, root, epsilon, decay, gradient_scale, count, features
    }
}

/// A launch that is being filled.
struct Launch {
    row: &'static Variant,
    tensors: Vec<usize>,
    params: [TensorParams; MAX_TENSORS as usize],
    blocks: u64,
}

fn elements(tensor: &AdamWTensor<'_>) -> u64 {
    elements_of(&tensor.gradient)
}

impl AdamW<'_> {
    pub(super) fn plan_of(
        &self,
        number: StepNumber<'_>,
        tensors: &[AdamWTensor<'_>],
        device: &Device,
    ) -> Result<ListPlan> {
        let mut launches: Vec<Launch> = Vec::new();
        for dtype in DType::ALL {
            let row = find(dtype).expect("every type has a row");
            let of_type = |(_, tensor): &(usize, &AdamWTensor<'_>)| {
                tensor.parameter.view().dtype() == dtype && elements(tensor) > 0
            };
            let mut own: Vec<Launch> = Vec::new();
            for (index, tensor) in tensors.iter().enumerate().filter(of_type) {
                let blocks = elements(tensor).div_ceil(row.tile.columns().into());
                // A tensor that no launch holds is refused below.
                let holds =
                    |launch: &Launch| launch.tensors.len() < MAX_TENSORS as usize && launch.blocks + blocks <= MAX_GRID;
                if !own.last().is_some_and(holds) {
                    let params = [TensorParams::NONE; MAX_TENSORS as usize];
                    own.push(Launch { row, tensors: Vec::new(), params, blocks: 0 });
                }
                let launch = own.last_mut().expect("pushed above");
                let wide = if tensor.gradient.dtype() == dtype { 0 } else { TensorParams::WIDE_GRADIENT };
                let (elements, first_block) = (elements(tensor), launch.blocks | wide);
                launch.params[launch.tensors.len()] = TensorParams { elements, first_block, ..TensorParams::NONE };
                launch.tensors.push(index);
                launch.blocks += blocks;
            }
            launches.append(&mut own);
        }
        let steps = launches.iter().map(|launch| self.launch(launch, &number, tensors, device));
        let bytes = tensors.iter().map(|tensor| {
            let parameter = tensor.parameter.view().dtype().bytes() as u64;
            let f32s = DType::F32.bytes() as u64;
            // Where there is a master, the parameter is written alone.
            let weight = if tensor.master.is_some() { parameter + 2 * f32s } else { 2 * parameter };
            elements(tensor) * (tensor.gradient.dtype().bytes() as u64 + weight + 4 * f32s)
        });
        Ok(ListPlan {
            name: "adamw",
            buffers: Vec::new(),
            steps: steps.collect::<Result<Vec<_>>>()?,
            tensors: launches.iter().map(|launch| launch.tensors.clone()).collect(),
            elements: tensors.iter().map(elements).sum(),
            bytes: bytes.sum(),
            reason: format!("up to {MAX_TENSORS} tensors of one type a launch, whose places are its parameters"),
        })
    }

    fn launch(
        &self,
        launch: &Launch,
        number: &StepNumber<'_>,
        tensors: &[AdamWTensor<'_>],
        device: &Device,
    ) -> Result<Step> {
        let Launch { row, blocks, .. } = *launch;
        check_device(&row.entry, device.info())?;
        if blocks > MAX_GRID {
            return Err(Error::GridTooLarge { symbol: row.entry.symbol, needed: blocks.into(), limit: MAX_GRID });
        }
        // In f64 until it is rounded for the kernel.
        let [correction, second_correction] = match number {
            StepNumber::Host(number) => self.betas.map(|beta| 1.0 - beta.powf((*number).into())),
            StepNumber::Device(_) => [1.0, 1.0],
        };
        // What a rate on the device is multiplied with, where there is one.
        let rate = if self.device_rate.is_some() { 1.0 } else { self.rate };
        let two = |beta: f64| [beta as f32, (1.0 - beta) as f32];
        let params = AdamWParams {
            tensors: launch.params,
            step: 0,
            gradient_factor: 0,
            device_rate: 0,
            betas: self.betas.map(f64::to_bits),
            moment: two(self.betas[0]),
            second_moment: two(self.betas[1]),
            rate: (rate / correction) as f32,
            root: (1.0 / second_correction.sqrt()) as f32,
            epsilon: self.epsilon as f32,
            decay: (rate * self.decay) as f32,
            gradient_scale: self.gradient_scale,
            count: launch.tensors.len() as u32,
            features: Features::OFF,
        };
        let mut holes = Params::new(bytes_of(&params));
        let wide = DType::F32.bytes() as u64;
        for (place, &index) in launch.tensors.iter().enumerate() {
            let tensor = &tensors[index];
            let first = offset_of!(AdamWParams, tensors) + place * size_of::<TensorParams>();
            let (own, gradient) = (row.tile.dtype.bytes() as u64, tensor.gradient.dtype().bytes() as u64);
            let master = tensor.master.as_ref();
            let master = master.map(|_| (offset_of!(TensorParams, master), Operand::Master(index), wide));
            let all = [
                (offset_of!(TensorParams, parameter), Operand::Parameter(index), own),
                (offset_of!(TensorParams, gradient), Operand::ParameterGradient(index), gradient),
                (offset_of!(TensorParams, moment), Operand::Moment(index), wide),
                (offset_of!(TensorParams, second_moment), Operand::SecondMoment(index), wide),
            ];
            for (offset, operand, alignment) in all.into_iter().chain(master) {
                holes = holes.address(first + offset, Binding::Operand(operand), alignment);
            }
        }
        if matches!(number, StepNumber::Device(_)) {
            holes = holes.address(offset_of!(AdamWParams, step), Binding::Operand(Operand::StepCount), wide);
        }
        if self.device_rate.is_some() {
            let binding = Binding::Operand(Operand::LearningRate);
            holes = holes.address(offset_of!(AdamWParams, device_rate), binding, wide);
        }
        if self.gradient_factor.is_some() {
            let binding = Binding::Operand(Operand::GradientFactor);
            holes = holes.address(offset_of!(AdamWParams, gradient_factor), binding, wide);
        }
        let tile = format!("{} elements a thread block: {}", row.tile.columns(), row.reason);
        let kernel = Specialised::with_features(&row.entry, FeatureSet::NONE);
        Ok(Step::new(kernel, blocks as u32, tile, holes))
    }
}
