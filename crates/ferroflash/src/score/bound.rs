//! Programs with the tensors that they read.

use super::blocks::{Blocks, FoundBlocks};
use super::derivative::derivative;
use super::evaluate::{HostData, HostTensor};
use super::hides::{hides, is_mask_only};
use super::lower::{self, Placed};
use super::op::{Axis, Op};
use super::scope::Declared;
use super::{Definition, ScoreProgram};
use crate::device::Device;
use crate::error::{Operand, ProgramError, Result};
use crate::tensor::overlap::Footprint;
use crate::tensor::{Dims, IndicesView, TensorView};
use kernel_spec::families::forward::features::{FIRST_WORD, PROGRAM, WORDS};
use kernel_spec::{DType, Features};
use std::sync::Arc;

/// A tensor that a program reads.
#[derive(Clone, Copy, Debug)]
pub enum ProgramTensor<'a> {
    /// Numbers, of any strides.
    Floats(TensorView<'a>),
    /// Whole numbers, contiguous.
    Ints {
        /// The numbers.
        numbers: IndicesView<'a>,
        /// Their shape, `[outer, .., inner]`.
        shape: Dims,
    },
}

impl<'a> ProgramTensor<'a> {
    /// Whole numbers of this shape.
    ///
    /// # Errors
    /// [`Error::DataLength`](crate::Error::DataLength) when there are not as many as the shape has.
    pub fn ints(numbers: IndicesView<'a>, shape: impl Into<Dims>) -> Result<ProgramTensor<'a>> {
        let shape = shape.into();
        let (expected, found) = (shape.iter().product(), numbers.len());
        if expected != found {
            return Err(crate::Error::DataLength { shape: shape.to_vec(), expected, found });
        }
        Ok(ProgramTensor::Ints { numbers, shape })
    }

    fn shape(&self) -> Dims {
        match self {
            ProgramTensor::Floats(view) => view.shape(),
            ProgramTensor::Ints { shape, .. } => *shape,
        }
    }

    /// Elements from one index of an axis to the next.
    fn strides(&self) -> Vec<usize> {
        match self {
            ProgramTensor::Floats(view) => view.strides().to_vec(),
            ProgramTensor::Ints { shape, .. } => {
                (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
            }
        }
    }

    fn dtype(&self) -> Option<DType> {
        match self {
            ProgramTensor::Floats(view) => Some(view.dtype()),
            ProgramTensor::Ints { .. } => None,
        }
    }

    fn device(&self) -> &'a Device {
        match self {
            ProgramTensor::Floats(view) => view.device(),
            ProgramTensor::Ints { numbers, .. } => numbers.device(),
        }
    }

    fn footprint(&self) -> Footprint {
        match self {
            ProgramTensor::Floats(view) => Footprint::of(view.geometry(), view.address()),
            ProgramTensor::Ints { numbers, .. } => {
                Footprint::contiguous(numbers.address(), (numbers.len() * size_of::<i32>()) as u128)
            }
        }
    }

    fn address(&self) -> u64 {
        match self {
            ProgramTensor::Floats(view) => view.address(),
            ProgramTensor::Ints { numbers, .. } => numbers.address(),
        }
    }
}

impl<'a> From<TensorView<'a>> for ProgramTensor<'a> {
    fn from(view: TensorView<'a>) -> ProgramTensor<'a> {
        ProgramTensor::Floats(view)
    }
}

/// What a slot of the parameters holds for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The address of the program's tensor of this number, a multiple of so many bytes.
    Address(usize, u64),
    /// The largest index along an axis in the low half, its stride in the high half.
    Axis(u64),
}

/// A [`ScoreProgram`] with the tensors that it reads: what [`Attention::with_program`](crate::Attention::with_program) takes.
#[derive(Clone)]
pub struct BoundProgram<'a> {
    program: ScoreProgram,
    tensors: Vec<ProgramTensor<'a>>,
    words: Vec<Word>,
    text: Arc<str>,
    gradient_text: Arc<str>,
    /// The PTX that says which keys are hidden whatever their scores are, if any are.
    hides_text: Option<Arc<str>>,
    /// Whether these differ from batch entry to batch entry, and from head to head.
    hides_by: [bool; 2],
    blocks: Option<Arc<Blocks>>,
}

/// The program as it prints, and the shapes of its tensors.
impl std::fmt::Debug for BoundProgram<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shapes = self.tensors.iter().map(|tensor| tensor.shape().to_vec());
        write!(f, "{} with tensors of {:?}", self.program, shapes.collect::<Vec<_>>())
    }
}

/// Equal programs on the same tensors, with the same blocks.
impl PartialEq for BoundProgram<'_> {
    fn eq(&self, other: &BoundProgram<'_>) -> bool {
        let addresses =
            |bound: &BoundProgram<'_>| -> Vec<u64> { bound.tensors.iter().map(ProgramTensor::address).collect() };
        self.program == other.program
            && self.words == other.words
            && self.text == other.text
            && addresses(self) == addresses(other)
            && self.blocks.as_ref().map(Arc::as_ptr) == other.blocks.as_ref().map(Arc::as_ptr)
    }
}

impl ScoreProgram {
    /// The program with these tensors, by name. All that it reads have to be there, with as many axes as it gives indices, and no others.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::score::ScoreProgram;
    /// use ferroflash::{Attention, Device, Layout, Shape, Tensor};
    /// let device = Device::emulator()?;
    /// let slopes = Tensor::from_slice(&device, &[0.5f32, 0.25], [1, 2], Layout::RowMajor)?;
    /// let bound = ScoreProgram::alibi().bind(&[("slopes", slopes.view().into())])?;
    /// let q = Tensor::zeros(&device, ferroflash::DType::F32, Shape::new(1, 3, 2, 32), Layout::Bshd)?;
    /// let attention = Attention::new().with_program(&bound).with_lse(true);
    /// let output = attention.forward(&q.view(), &q.view(), &q.view())?;
    /// // The scores of the last row of head 0: 0, and less half the distance.
    /// let expected = ((-1f32).exp() + (-0.5f32).exp() + 1.0).ln();
    /// assert!((output.lse.unwrap().to_vec()?[2] - expected).abs() < 1e-5);
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ProgramError`]: a tensor that is missing, unknown, given twice, of another rank or kind, on another device, or too large; more
    /// tensors and axes than the kernels' parameters hold.
    pub fn bind<'a>(&self, tensors: &[(&str, ProgramTensor<'a>)]) -> Result<BoundProgram<'a>> {
        let Definition { tensors: declared, code, .. } = &*self.0;
        let names = || declared.iter().map(|tensor| tensor.name.clone()).collect();
        for (i, (name, _)) in tensors.iter().enumerate() {
            if !declared.iter().any(|tensor| tensor.name == *name) {
                return Err(ProgramError::Unknown { name: (*name).to_owned(), accepted: names() }.into());
            }
            if tensors[..i].iter().any(|(other, _)| other == name) {
                return Err(ProgramError::GivenTwice { name: (*name).to_owned() }.into());
            }
        }
        let mut bound = Vec::with_capacity(declared.len());
        let (mut words, mut placed) = (Vec::new(), Vec::new());
        for of in declared {
            let name = of.name.clone();
            let found = tensors.iter().find(|(name, _)| *name == of.name).map(|(_, tensor)| *tensor);
            let tensor = found.ok_or(ProgramError::Missing { name: name.clone() })?;
            check(of, &tensor, bound.first())?;
            let bytes = tensor.dtype().map_or(size_of::<i32>(), DType::bytes) as u64;
            placed.push(Placed { dtype: tensor.dtype(), word: words.len() });
            words.push(Word::Address(bound.len(), bytes));
            let shape = tensor.shape();
            for (axis, (&extent, stride)) in shape.iter().zip(tensor.strides()).enumerate() {
                let largest = match extent {
                    0 => return Err(ProgramError::EmptyAxis { name, axis }.into()),
                    // One element, whatever the index.
                    1 => u32::MAX as usize,
                    _ => extent - 1,
                };
                let stride = if extent == 1 { 0 } else { stride };
                if largest.max(stride) > u32::MAX as usize {
                    return Err(ProgramError::AxisTooLarge { name, axis, extent, stride }.into());
                }
                words.push(Word::Axis(largest as u64 | (stride as u64) << 32));
            }
            bound.push(tensor);
        }
        if words.len() > WORDS {
            return Err(ProgramError::TooManyWords { found: words.len(), limit: WORDS }.into());
        }
        let text = lower::lower(code, &placed).into();
        let gradient_text = lower::lower_with_derivative(&derivative(code), code.result, &placed).into();
        let hides = hides(code);
        let hides_by =
            [Axis::Batch, Axis::Head].map(|axis| hides.iter().any(|code| code.ops.contains(&Op::Axis(axis))));
        let hides_text = hides.map(|code| lower::lower(&code, &placed).into());
        Ok(BoundProgram {
            program: self.clone(),
            tensors: bound,
            words,
            text,
            gradient_text,
            hides_text,
            hides_by,
            blocks: None,
        })
    }
}

/// Whether a tensor is what the program says, on the device of the others.
fn check(of: &Declared, tensor: &ProgramTensor<'_>, first: Option<&ProgramTensor<'_>>) -> Result<()> {
    let name = || of.name.clone();
    if tensor.shape().len() != of.rank {
        let (found, accepted) = (tensor.shape().len(), of.rank);
        return Err(ProgramError::Rank { name: name(), found, accepted }.into());
    }
    if tensor.dtype().is_none() != of.is_int {
        let kind = |is_int| if is_int { "whole numbers" } else { "numbers" };
        return Err(ProgramError::Kind { name: name(), found: kind(!of.is_int), accepted: kind(of.is_int) }.into());
    }
    match first.map(ProgramTensor::device) {
        Some(device) if device != tensor.device() => {
            let (found, expected) = (tensor.device().info().id(), device.info().id());
            Err(ProgramError::Device { name: name(), found, expected }.into())
        }
        _ => Ok(()),
    }
}

impl BoundProgram<'_> {
    /// The program.
    pub fn program(&self) -> &ScoreProgram {
        &self.program
    }

    /// The PTX in place of every score hook of a kernel, see `kernel_spec::specialise`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The blocks that [`BoundProgram::with_blocks`] has found, to be kept where the program and its tensors cannot be; `None` without any.
    ///
    /// Their memory is freed with the last of them on the default stream: keep one until calls on other streams have ended.
    pub fn found_blocks(&self) -> Option<FoundBlocks> {
        let (blocks, hides_text) = (self.blocks.clone()?, self.hides_text.clone()?);
        Some(FoundBlocks { blocks, hides_text })
    }

    /// The program with blocks that were found before, of a program that hides no key which this one shows: of the same mask with tensors that hold
    /// the same numbers, or of a mask that this program has beside a function of scores. That they do is the caller's word: keys of blocks that are
    /// passed over have no weight.
    ///
    /// # Errors
    /// [`ProgramError::BlocksOfAnother`] when this program only hides keys, and by other operations: what it hides of a block is then left to the
    /// blocks. On scores of another shape a call gives [`ProgramError::BlocksShape`], on another device
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch).
    pub fn with_known_blocks(self, found: &FoundBlocks) -> Result<Self> {
        let hides = self.hides_text.as_ref();
        if hides.is_none_or(|text| self.is_mask_only() && *text != found.hides_text) {
            return Err(ProgramError::BlocksOfAnother { name: self.program.name().to_owned() }.into());
        }
        Ok(self.with_found_blocks(found.blocks.clone()))
    }

    pub(crate) fn shared_text(&self) -> Arc<str> {
        self.text.clone()
    }

    /// The PTX in place of the hooks of the backward pass.
    pub(crate) fn gradient_text(&self) -> Arc<str> {
        self.gradient_text.clone()
    }

    pub(crate) fn hides_text(&self) -> Option<Arc<str>> {
        self.hides_text.clone()
    }

    pub(crate) fn hides_by(&self) -> [bool; 2] {
        self.hides_by
    }

    /// Whether it gives the score that it gets, or minus infinity.
    pub(crate) fn is_mask_only(&self) -> bool {
        is_mask_only(&self.program.0.code)
    }

    pub(crate) fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_deref()
    }

    pub(crate) fn with_found_blocks(self, blocks: Arc<Blocks>) -> Self {
        BoundProgram { blocks: Some(blocks), ..self }
    }

    /// The words in their slots, where values are known, and which addresses belong where.
    pub(crate) fn fill<const SLOTS: usize>(&self, features: Features<SLOTS>, factor: f32) -> Features<SLOTS> {
        let features = features.with(PROGRAM, factor.to_bits().into());
        (FIRST_WORD..).zip(&self.words).fold(features, |features, (slot, word)| {
            // Addresses are not known yet.
            features.with_word(slot, if let Word::Axis(axis) = *word { axis } else { 0 })
        })
    }

    pub(crate) fn words(&self) -> &[Word] {
        &self.words
    }

    /// Name and device of each tensor, and of the blocks.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (&str, &Device)> {
        let tensors = self.named().map(|(name, tensor)| (name, tensor.device()));
        tensors.chain(self.blocks().map(|blocks| ("the program's blocks", blocks.device())))
    }

    /// The address of each tensor, and of the blocks.
    pub(crate) fn operands(&self) -> impl Iterator<Item = (Operand, u64)> {
        let tensors = self.tensors.iter().enumerate().map(|(i, tensor)| (Operand::ProgramTensor(i), tensor.address()));
        tensors.chain(self.blocks().map(Blocks::operand))
    }

    /// Name and bytes of each tensor, which outputs must not touch.
    pub(crate) fn footprints(&self) -> impl Iterator<Item = (&str, Footprint)> {
        self.named().map(|(name, tensor)| (name, tensor.footprint()))
    }

    fn named(&self) -> impl Iterator<Item = (&str, &ProgramTensor<'_>)> {
        self.program.0.tensors.iter().map(|of| of.name.as_str()).zip(&self.tensors)
    }

    /// The tensors, read from the device.
    pub(crate) fn to_host(&self) -> Result<Vec<HostTensor>> {
        let host = self.tensors.iter().map(|tensor| {
            let data = match tensor {
                ProgramTensor::Floats(view) => HostData::Floats(view.to_f64_vec()?),
                ProgramTensor::Ints { numbers, .. } => HostData::Ints(numbers.to_vec()?),
            };
            Ok(HostTensor { shape: tensor.shape().to_vec(), data })
        });
        host.collect()
    }
}
