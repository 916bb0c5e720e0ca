//! The CPU as a device: the kernels' PTX in ptx_emu.

use super::{Backend, Launch, RawStream};
use crate::device::{Device, DeviceInfo, DeviceKind, EmulatorConfig};
use crate::error::{Error, Result};
use crate::specialise::Specialised;
use crate::tensor_map::TensorGeometry;
use kernel_spec::{DType, TensorMap};
use ptx_emu::{
    Checks, Counters, EmuError, Emulator, EmulatorOptions, InstructionClass, Module, Swizzle, TensorDataType,
    TensorFill, TensorMapSpec,
};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

struct Emulated {
    emulator: Emulator,
    memory_limit: u64,
    modules: Mutex<Modules>,
    counters: Mutex<Counters>,
}

/// Properties of an emulator with these settings.
pub(crate) fn info(config: &EmulatorConfig) -> DeviceInfo {
    let options = EmulatorOptions::default();
    DeviceInfo {
        name: "PTX emulator on the CPU".to_owned(),
        kind: DeviceKind::Emulator,
        multiprocessors: config.multiprocessors.get(),
        memory_bytes: config.memory_bytes,
        max_shared_bytes_per_block: options.max_shared_bytes,
        l2_bytes: 0,
        clock_khz: None,
        pci_bus_id: None,
    }
}

pub(crate) fn open(config: EmulatorConfig) -> Result<Device> {
    let checks = if config.checks { Checks::all() } else { Checks::none() };
    let options =
        EmulatorOptions::default().with_checks(checks).with_seed(config.seed).with_memory_limit(config.memory_bytes);
    let info = info(&config);
    let backend = Emulated {
        emulator: Emulator::new(options),
        memory_limit: info.memory_bytes,
        modules: Mutex::default(),
        counters: Mutex::default(),
    };
    Ok(Device::from_inner(Device::inner(info, Box::new(backend))))
}

impl Emulated {
    fn module(&self, kernel: &Specialised) -> Result<Arc<Module>> {
        // Modules are inserted whole, so a panic while the lock was held leaves the map usable.
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.parsed.get(kernel) {
            return Ok(module.clone());
        }
        let symbol = kernel.entry.symbol;
        let span = tracing::info_span!("load", symbol, features = kernel.features.bits());
        let _entered = span.enter();
        let module =
            Module::parse(&kernel.text()?).map_err(|error| Error::PtxRejected { symbol, log: error.to_string() })?;
        let module = Arc::new(module);
        modules.keep(kernel, module.clone());
        Ok(module)
    }
}

/// Modules with programs that are kept, at most. Each takes some megabytes, and of entries there is no end of programs.
const PROGRAMS: usize = 32;

/// Parsed modules by entry point.
#[derive(Default)]
struct Modules {
    parsed: HashMap<Specialised, Arc<Module>>,
    /// Those with a program, the oldest first.
    with_program: VecDeque<Specialised>,
}

impl Modules {
    /// Keeps a module, in place of the oldest with a program where there are too many.
    fn keep(&mut self, kernel: &Specialised, module: Arc<Module>) {
        if kernel.program.is_some() {
            self.with_program.push_back(kernel.clone());
        }
        if self.with_program.len() > PROGRAMS {
            let oldest = self.with_program.pop_front();
            oldest.and_then(|oldest| self.parsed.remove(&oldest));
        }
        self.parsed.insert(kernel.clone(), module);
    }
}

impl Backend for Emulated {
    fn allocate(&self, bytes: u64, _stream: RawStream) -> Result<u64> {
        self.emulator.alloc(bytes).map_err(|error| match error {
            EmuError::OutOfMemory { requested, in_use, limit } => {
                Error::OutOfMemory { requested, free: limit.saturating_sub(in_use), total: self.memory_limit }
            }
            error => Error::Emulator(Box::new(error)),
        })
    }

    fn free(&self, address: u64, _stream: RawStream) {
        if let Err(error) = self.emulator.free(address) {
            tracing::error!(%error, "device memory is not freed");
        }
    }

    fn trim_memory(&self) -> Result<()> {
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.emulator.write(address, bytes).map_err(failed)
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.emulator.read(address, bytes).map_err(failed)
    }

    fn read_ranges(&self, address: u64, ranges: &[Range<usize>], bytes: &mut [u8]) -> Result<()> {
        // The emulator knows which bytes nobody wrote, and refuses to read those.
        ranges.iter().try_for_each(|range| self.read(address + range.start as u64, &mut bytes[range.clone()]))
    }

    fn write_ranges(&self, address: u64, ranges: &[Range<usize>], bytes: &[u8]) -> Result<()> {
        ranges.iter().try_for_each(|range| self.write(address + range.start as u64, &bytes[range.clone()]))
    }

    fn copy(&self, from: u64, to: u64, len: u64, _stream: RawStream) -> Result<()> {
        let mut bytes = vec![0; len as usize];
        self.read(from, &mut bytes)?;
        self.write(to, &bytes)
    }

    fn fill(&self, address: u64, byte: u8, len: u64) -> Result<()> {
        self.emulator.fill(address, byte, len).map_err(failed)
    }

    fn tensor_map(&self, tensor: &TensorGeometry) -> Result<TensorMap> {
        let (dims, strides, box_dims) = tensor.axes();
        let map = ptx_emu::TensorMap::encode(&TensorMapSpec {
            data_type: map_data_type(tensor.dtype),
            address: tensor.address,
            dims,
            strides,
            box_dims,
            swizzle: Swizzle::Bytes128,
            fill: TensorFill::Zero,
        })
        .map_err(failed)?;
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(map.as_bytes().as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Ok(TensorMap(words))
    }

    fn prepare(&self, kernel: &Specialised) -> Result<()> {
        self.module(kernel).map(drop)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let entry = launch.kernel.entry;
        let module = self.module(launch.kernel)?;
        let request = ptx_emu::Launch::new([launch.ctas, 1, 1], [entry.threads, 1, 1])
            .with_dynamic_shared_bytes(entry.shared_bytes)
            .with_param(launch.params);
        let request = if launch.cluster > 1 { request.with_cluster([launch.cluster, 1, 1]) } else { request };
        let report = self.emulator.launch(&module, entry.symbol, &request).map_err(failed)?;
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.add(&report.counters);
        Ok(())
    }

    fn create_stream(&self, _non_blocking: bool, _priority: Option<i32>) -> Result<RawStream> {
        // Launches run to their end before they return: every stream is the same one.
        Ok(RawStream::DEFAULT)
    }

    fn destroy_stream(&self, _stream: RawStream) {}

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn synchronize_stream(&self, _stream: RawStream) -> Result<()> {
        Ok(())
    }

    fn time_each(
        &self,
        _stream: RawStream,
        count: u32,
        before: &mut dyn FnMut() -> Result<()>,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        for _ in 0..count {
            before()?;
            let start = Instant::now();
            work()?;
            times.push(start.elapsed());
        }
        Ok(times)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = vec![
            ("warp_instructions", counters.warp_instructions),
            ("lane_instructions", counters.lane_instructions),
            ("f32_flops", counters.f32_flops),
            ("tensor_flops", counters.tensor_flops),
            ("special_functions", counters.special_functions),
            ("global_bytes_read", counters.global_bytes_read),
            ("global_bytes_written", counters.global_bytes_written),
            ("global_sectors_read", counters.global_sectors_read),
            ("global_sectors_written", counters.global_sectors_written),
            ("unique_bytes_read", counters.unique_bytes_read),
            ("unique_bytes_written", counters.unique_bytes_written),
            ("shared_bytes_read", counters.shared_bytes_read),
            ("shared_bytes_written", counters.shared_bytes_written),
            ("shared_wavefronts", counters.shared_wavefronts),
            ("shared_bank_conflicts", counters.shared_bank_conflicts),
            ("async_copies", counters.async_copies),
            ("thread_blocks", counters.ctas),
        ];
        list.extend(InstructionClass::ALL.map(|class| (class_name(class), counters.class(class))));
        list
    }

    fn reset_counters(&self) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = Counters::default();
    }
}

/// Name of the counter of a class of lane instructions.
fn class_name(class: InstructionClass) -> &'static str {
    match class {
        InstructionClass::Integer => "integer_instructions",
        InstructionClass::Float => "float_instructions",
        InstructionClass::Half => "half_instructions",
        InstructionClass::Double => "double_instructions",
        InstructionClass::Special => "special_instructions",
        InstructionClass::Convert => "convert_instructions",
        InstructionClass::Move => "move_instructions",
        InstructionClass::Predicate => "predicate_instructions",
        InstructionClass::Control => "control_instructions",
        InstructionClass::GlobalMemory => "global_memory_instructions",
        InstructionClass::SharedMemory => "shared_memory_instructions",
        InstructionClass::LocalMemory => "local_memory_instructions",
        InstructionClass::Atomic => "atomic_instructions",
        InstructionClass::Warp => "warp_exchange_instructions",
        InstructionClass::Barrier => "barrier_instructions",
        InstructionClass::Async => "async_instructions",
        InstructionClass::Tensor => "tensor_instructions",
    }
}

fn map_data_type(dtype: DType) -> TensorDataType {
    match dtype {
        DType::F32 => TensorDataType::Float32,
        DType::F16 => TensorDataType::Float16,
        DType::Bf16 => TensorDataType::Bfloat16,
        other => unreachable!("no kernel takes tensors of {other}"),
    }
}

fn failed(error: EmuError) -> Error {
    Error::Emulator(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of modules with programs the last are kept, and all others for good.
    #[test]
    fn modules_with_programs_do_not_pile_up() {
        let entry = crate::entries().next().expect("there are entries");
        let module = Arc::new(Module::parse(".version 7.4\n.target sm_80\n.address_size 64\n").expect("a module"));
        let mut modules = Modules::default();
        modules.keep(&Specialised::plain(entry), module.clone());
        let of = |i: usize| Specialised { program: Some(i.to_string().into()), ..Specialised::plain(entry) };
        for i in 0..3 * PROGRAMS {
            modules.keep(&of(i), module.clone());
        }
        assert_eq!(modules.parsed.len(), PROGRAMS + 1);
        assert!(modules.parsed.contains_key(&Specialised::plain(entry)));
        assert!(modules.parsed.contains_key(&of(2 * PROGRAMS)) && !modules.parsed.contains_key(&of(2 * PROGRAMS - 1)));
    }
}
