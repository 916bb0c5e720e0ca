//! Lists of tensors: a step of AdamW, and the norm of gradients.

use super::OperatorName;
use super::cell::Cell;
use super::compared::{Elements, Expected};
use super::problem::{self, Data, Input, Output, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::Result;
use ferroflash::operators::{AdamW, AdamWTensor, GradientNorm, Operation, StepNumber};
use ferroflash::reference::{ReferenceAdamW, ReferenceAdamWState};
use ferroflash::{Device, Element, Layout, Stream, Tensor, TensorView, TensorViewMut};
use kernel_spec::DType;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// What PyTorch's AdamW takes where nothing else is said, and a learning rate at which a step shows in 16 bits.
const RATE: f64 = 1e-2;
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;
const DECAY: f64 = 0.01;

/// The step that is checked: late enough that corrections differ from a first one's.
const STEP: u32 = 7;

/// The norm above which gradients are clipped: what training usually takes.
const MOST: f32 = 1.0;

/// Elements of the list that are compared with the reference, evenly spaced.
const COMPARED: usize = 1 << 16;

/// Gradients whose squares are added up before these sums are.
const CHUNK: usize = 1 << 10;

/// Whose parameters a list has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// GPT-2 small (Radford and others, 2019, table 2): 12 layers of 768 columns, 50257 tokens, 1024 positions. The last product has the weights of the
    /// table of tokens.
    Gpt2,
    /// A layer of Llama 3 8B (Dubey and others, 2024, table 3): 4096 columns, 14336 in its feed-forward part, 8 key-value heads of 128.
    Llama3Layer,
}

impl Model {
    pub(super) const ALL: [Model; 2] = [Model::Gpt2, Model::Llama3Layer];

    pub(super) fn name(self) -> &'static str {
        match self {
            Model::Gpt2 => "GPT-2 small",
            Model::Llama3Layer => "a layer of Llama 3 8B",
        }
    }

    /// Elements of each tensor, in the order of the model.
    pub(super) fn lengths(self) -> Vec<usize> {
        match self {
            Model::Gpt2 => {
                let d = 768;
                // Norms with biases around attention and the feed-forward part, each of two products with biases.
                let layer = [d, d, 3 * d * d, 3 * d, d * d, d, d, d, 4 * d * d, 4 * d, 4 * d * d, d];
                let tables = [50_257 * d, 1024 * d];
                tables.into_iter().chain(layer.repeat(12)).chain([d, d]).collect()
            }
            Model::Llama3Layer => {
                let (d, kv, inner) = (4096, 8 * 128, 14_336);
                // Norms without biases; queries, keys, values and output; gate, up and down.
                vec![d, d * d, kv * d, kv * d, d * d, d, inner * d, inner * d, inner * d]
            }
        }
    }
}

/// Bytes that must move: of a step, parameters and both moments, read and written, and gradients; of the norm, gradients.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let (elements, own) = (elements(cell) as u64, cell.dtype.bytes() as u64);
    match cell.operator {
        OperatorName::Adamw => elements * (3 * own + 4 * size_of::<f32>() as u64),
        _ => elements * own,
    }
}

fn lengths(cell: &Cell) -> Vec<usize> {
    cell.model.map_or_else(|| vec![cell.columns; cell.rows], Model::lengths)
}

fn elements(cell: &Cell) -> usize {
    cell.model.map_or(cell.rows * cell.columns, |_| cell.columns)
}

/// What a step overwrites and reads, each one after the other in one tensor. For the norm, gradients and its result.
struct Set {
    parameters: Option<Tensor>,
    gradients: Tensor,
    moments: Option<[Tensor; 2]>,
    norm: Option<Tensor>,
}

impl Set {
    /// Another with the same numbers. They are copied on the device: a model has gigabytes, for which the host takes seconds.
    fn copy(&self) -> Result<Set> {
        let like = |of: &Tensor| Tensor::uninit(of.device(), of.dtype(), of.shape(), Layout::RowMajor);
        let copy = |of: &Tensor| -> ferroflash::Result<Tensor> {
            let mut tensor = like(of)?;
            tensor.copy_from(&of.device().default_stream(), of)?;
            Ok(tensor)
        };
        Ok(Set {
            parameters: self.parameters.as_ref().map(copy).transpose()?,
            gradients: copy(&self.gradients)?,
            moments: match &self.moments {
                Some([moment, second_moment]) => Some([copy(moment)?, copy(second_moment)?]),
                None => None,
            },
            norm: self.norm.as_ref().map(like).transpose()?,
        })
    }
}

pub(super) struct Subject {
    cell: Cell,
    lengths: Vec<usize>,
    wide_lengths: Vec<i64>,
    sets: Vec<Set>,
    /// What steps begin with: nobody overwrites these.
    first: Set,
}

impl Subject {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        with_element!(cell.dtype, T => Subject::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        let elements = elements(&cell);
        let is_step = cell.operator == OperatorName::Adamw;
        let seed = seed.wrapping_mul(8);
        let gradients = values.draw::<T>(elements, seed);
        let (mut parameters, mut moments) = (Vec::new(), [Vec::new(), Vec::new()]);
        if is_step {
            parameters = values.draw::<T>(elements, seed + 1);
            let second_moment = values.draw::<f32>(elements, seed + 3).into_iter().map(|x| x * x).collect();
            moments = [values.draw::<f32>(elements, seed + 2), second_moment];
        }
        let of_step = |data: &[f32]| Tensor::from_slice(device, data, [elements], Layout::RowMajor);
        let [moment, second_moment] = &moments;
        let first = Set {
            parameters: is_step
                .then(|| Tensor::from_slice(device, &parameters, [elements], Layout::RowMajor))
                .transpose()?,
            gradients: Tensor::from_slice(device, &gradients, [elements], Layout::RowMajor)?,
            moments: match is_step {
                true => Some([of_step(moment)?, of_step(second_moment)?]),
                false => None,
            },
            norm: match is_step {
                true => None,
                false => Some(Tensor::uninit(device, DType::F32, [2], Layout::RowMajor)?),
            },
        };
        let sets = (0..problem::sets(device, bytes(&cell))).map(|_| first.copy()).collect::<Result<Vec<_>>>()?;
        let lengths = lengths(&cell);
        let wide_lengths = lengths.iter().map(|&length| length as i64).collect();
        Ok(Subject { cell, lengths, wide_lengths, sets, first })
    }

    /// The tensors of the list in one of them.
    fn members<'t>(&self, of: &'t Tensor) -> ferroflash::Result<Vec<TensorView<'t>>> {
        let starts = self.lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + length)));
        starts.zip(&self.lengths).map(|(start, &length)| of.strided(start, [length], [1])).collect()
    }

    fn list<'t>(&self, device: &'t Device, set: &'t Set) -> ferroflash::Result<Vec<AdamWTensor<'t>>> {
        let (Some(parameters), Some([moment, second])) = (&set.parameters, &set.moments) else { return Ok(Vec::new()) };
        let written = |view: TensorView<'t>| {
            let (length, dtype) = (view.shape()[0], view.dtype());
            // SAFETY: nobody else works on these tensors, and calls are in the order of one stream.
            unsafe { TensorViewMut::from_raw(device, view.address(), length, [length], [1], dtype) }
        };
        let own = self.members(parameters)?.into_iter().zip(self.members(&set.gradients)?);
        let moments = self.members(moment)?.into_iter().zip(self.members(second)?);
        own.zip(moments)
            .map(|((parameter, gradient), (moment, second))| {
                Ok(AdamWTensor::new(written(parameter)?, &gradient, written(moment)?, written(second)?))
            })
            .collect()
    }

    fn adamw() -> AdamW<'static> {
        AdamW::new(RATE).with_betas(BETAS[0], BETAS[1]).with_epsilon(EPSILON).with_decay(DECAY)
    }

    fn clipping() -> GradientNorm {
        GradientNorm::new().with_most(MOST)
    }
}

/// The norm of gradients, and what clips it.
fn norm<T: Element>(gradients: &[T]) -> Expected {
    let clipped = |norm: f64| vec![norm, (f64::from(MOST) / (norm + 1e-6)).min(1.0)];
    let chunks = gradients.par_chunks(CHUNK);
    let exact: f64 = chunks.map(|chunk| chunk.iter().map(|x| x.to_f64().powi(2)).sum::<f64>()).sum();
    // A straightforward program adds up squares in f32, in chunks as everybody has to.
    let square = |x: &T| x.to_f64() as f32 * x.to_f64() as f32;
    let chunks: Vec<f32> = gradients.par_chunks(CHUNK).map(|chunk| chunk.iter().map(square).sum()).collect();
    let rounded = f64::from(chunks.into_iter().sum::<f32>().sqrt());
    let exact = clipped(exact.sqrt());
    // Errors of the norm are of its size.
    let units = vec![exact[0].max(f64::MIN_POSITIVE), 1.0];
    Expected::new(Elements::all(2), exact, clipped(rounded)).in_units(units)
}

impl problem::Subject for Subject {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn plan(&self) -> Result<Box<dyn Operation>> {
        let set = &self.sets[0];
        let device = set.gradients.device();
        let Some(norm) = &set.norm else {
            return Ok(Box::new(Subject::adamw().plan(StepNumber::Host(STEP), &self.list(device, set)?)?));
        };
        let gradients = self.members(&set.gradients)?;
        Ok(Box::new(Subject::clipping().plan(&gradients, &written(device, norm)?)?))
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let set = &self.sets[set];
        let Some(norm) = &set.norm else {
            return Subject::adamw().step(stream, StepNumber::Host(STEP), &mut self.list(device, set)?);
        };
        Subject::clipping().measure(stream, &self.members(&set.gradients)?, &mut written(device, norm)?)
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let given = |name, tensor| Input { name, data: Data::Elements(tensor), own: true, differentiated: false };
        let Set { parameters, gradients, moments, .. } = &self.first;
        let mut inputs: Vec<Input<'_>> = parameters.iter().map(|tensor| given("parameter", tensor)).collect();
        inputs.push(given("gradient", gradients));
        if let Some([moment, second_moment]) = moments {
            inputs.extend([given("moment", moment), given("second_moment", second_moment)]);
        }
        let lengths = Data::Whole(&self.wide_lengths);
        inputs.push(Input { name: "lengths", data: lengths, own: false, differentiated: false });
        inputs
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let Set { parameters, moments, norm, .. } = &self.sets[0];
        let mut outputs: Vec<Output<'_>> = norm.iter().map(|tensor| Output { name: "out", tensor }).collect();
        outputs.extend(parameters.iter().map(|tensor| Output { name: "out", tensor }));
        if let Some([moment, second_moment]) = moments {
            outputs.push(Output { name: "moment", tensor: moment });
            outputs.push(Output { name: "second_moment", tensor: second_moment });
        }
        outputs
    }

    fn poison(&mut self) -> ferroflash::Result<()> {
        let Set { parameters, moments, norm, .. } = &mut self.sets[0];
        if let Some(norm) = norm {
            norm.fill_bytes(0xff)?;
        }
        let (first, stream) = (&self.first, self.first.gradients.device().default_stream());
        let again = parameters.iter_mut().zip(&first.parameters);
        let moments = moments.iter_mut().flatten().zip(first.moments.iter().flatten());
        for (to, from) in again.chain(moments) {
            to.copy_from(&stream, from)?;
        }
        Ok(())
    }

    fn numbers(&self) -> BTreeMap<&'static str, f64> {
        match self.cell.operator {
            OperatorName::Adamw => BTreeMap::from([
                ("rate", RATE),
                ("beta1", BETAS[0]),
                ("beta2", BETAS[1]),
                ("epsilon", EPSILON),
                ("decay", DECAY),
                ("step", STEP.into()),
            ]),
            _ => BTreeMap::from([("most", MOST.into())]),
        }
    }

    fn expected(&self) -> Result<Vec<Expected>> {
        let Set { parameters, gradients, moments, .. } = &self.first;
        let (Some(parameters), Some([moment, second])) = (parameters, moments) else {
            return Ok(vec![with_element!(self.cell.dtype, T => norm(&gradients.to_vec::<T>()?))]);
        };
        let elements = Elements::spaced(elements(&self.cell), COMPARED);
        let state = ReferenceAdamWState {
            weight: elements.of_tensor(parameters)?,
            moment: elements.of_tensor(moment)?,
            second_moment: elements.of_tensor(second)?,
        };
        let gradient = elements.of_tensor(gradients)?;
        let reference = ReferenceAdamW {
            rate: RATE,
            betas: BETAS,
            epsilon: EPSILON,
            decay: DECAY,
            gradient_scale: 1.0,
            step: STEP,
        };
        let exact = reference.step(&state, &gradient)?;
        let rounded = reference.step_rounded(&state, &gradient, self.cell.dtype)?;
        Ok(vec![
            Expected::new(elements.clone(), exact.weight, rounded.weight),
            Expected::new(elements.clone(), exact.moment, rounded.moment),
            Expected::new(elements, exact.second_moment, rounded.second_moment),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::Model;

    /// What the models are said to have: GPT-2 small 124 million parameters in 148 tensors, and Llama 3 8B 32 of these layers beside two tables of 128256 tokens
    /// and a norm.
    #[test]
    fn models_have_their_parameters() {
        let sum = |model: Model| model.lengths().iter().sum::<usize>();
        assert_eq!((Model::Gpt2.lengths().len(), sum(Model::Gpt2)), (148, 124_439_808));
        assert_eq!(32 * sum(Model::Llama3Layer) + 2 * 128_256 * 4096 + 4096, 8_030_261_248);
    }
}
