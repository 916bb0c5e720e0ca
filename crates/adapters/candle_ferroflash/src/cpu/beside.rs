//! What attention reads beside q, k and v, in the emulator's memory: slopes and sinks of the heads.

use crate::FlashAttn;
use crate::error::Error;
use crate::op::Options;
use candle_core::Result;
use ferroflash::score::{BoundProgram, ScoreProgram};
use ferroflash::{Attention, Device, Tensor};

/// Slopes of the heads in the emulator's memory, `[1, q_heads]`, where there are any.
pub(super) struct Slopes(Option<Tensor>);

impl Slopes {
    pub(super) fn new(device: &Device, options: &FlashAttn, op: &'static str, q_heads: usize) -> Result<Slopes> {
        let Some(slopes) = options.slopes(op, q_heads)? else { return Ok(Slopes(None)) };
        let (lhs, rhs) = (candle_core::DeviceLocation::Cpu, slopes.device().location());
        if rhs != lhs {
            return Err(candle_core::Error::DeviceMismatchBinaryOp { lhs, rhs, op }.bt());
        }
        let (data, layout) = (slopes.to_vec1::<f32>()?, ferroflash::Layout::RowMajor);
        let tensor = Tensor::from_slice(device, &data, [1, q_heads], layout);
        Ok(Slopes(Some(tensor.map_err(Error::from)?)))
    }

    pub(super) fn program(&self) -> crate::error::Result<Option<BoundProgram<'_>>> {
        let Some(slopes) = &self.0 else { return Ok(None) };
        Ok(Some(ScoreProgram::alibi().bind(&[("slopes", slopes.view().into())])?))
    }
}

/// Slopes and sinks of the heads in the emulator's memory.
pub(super) struct Beside {
    pub(super) slopes: Slopes,
    sink: Option<Tensor>,
}

impl Beside {
    pub(super) fn new(device: &Device, options: Options<'_>, op: &'static str, q_heads: usize) -> Result<Beside> {
        let slopes = Slopes::new(device, options.options, op, q_heads)?;
        let Some(sink) = options.sinks(op, q_heads)? else { return Ok(Beside { slopes, sink: None }) };
        let (lhs, rhs) = (candle_core::DeviceLocation::Cpu, sink.device().location());
        if rhs != lhs {
            return Err(candle_core::Error::DeviceMismatchBinaryOp { lhs, rhs, op }.bt());
        }
        let (data, layout) = (sink.to_vec1::<f32>()?, ferroflash::Layout::RowMajor);
        let sink = Tensor::from_slice(device, &data, [q_heads], layout).map_err(Error::from)?;
        Ok(Beside { slopes, sink: Some(sink) })
    }

    pub(super) fn with<'a>(&'a self, attention: Attention<'a>, program: Option<&'a BoundProgram<'a>>) -> Attention<'a> {
        let attention = with_program(attention, program);
        self.sink.as_ref().map_or(attention, |sink| attention.with_sink(&sink.view()))
    }
}

pub(super) fn with_program<'a>(attention: Attention<'a>, program: Option<&'a BoundProgram<'a>>) -> Attention<'a> {
    program.map_or(attention, |program| attention.with_program(program))
}
