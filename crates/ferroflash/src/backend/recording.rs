//! A device for unit tests: memory on the host, launches written down instead of run.

use super::{Backend, Launch, RawStream};
use crate::device::{Device, DeviceInfo, DeviceKind};
use crate::error::{Error, Result, Version};
use crate::specialise::Specialised;
use crate::tensor_map::TensorGeometry;
use kernel_spec::TensorMap;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was launched: entry point, thread blocks, parameter bytes.
pub(crate) type Launched = Arc<Mutex<Vec<(&'static str, u32, Vec<u8>)>>>;

struct Recording {
    launched: Launched,
    memory: Mutex<BTreeMap<u64, Vec<u8>>>,
    total: u64,
}

/// Properties of an H200 with this much memory and compute capability.
pub(crate) fn info(memory_bytes: u64, compute_capability: (u32, u32)) -> DeviceInfo {
    let version = |(major, minor)| Version { major, minor };
    DeviceInfo {
        name: "recording".to_owned(),
        kind: DeviceKind::Cuda {
            ordinal: 0,
            driver_version: version((13, 0)),
            compute_capability: version(compute_capability),
        },
        multiprocessors: 132,
        memory_bytes,
        max_shared_bytes_per_block: 227 * 1024,
        l2_bytes: 50 << 20,
        clock_khz: Some(1_980_000),
        pci_bus_id: None,
    }
}

/// A recording device with 1 GiB of memory, and its record, of compute capability 8.0.
pub(crate) fn device() -> (Device, Launched) {
    device_of((8, 0))
}

/// A recording device of this compute capability.
pub(crate) fn device_of(compute_capability: (u32, u32)) -> (Device, Launched) {
    let launched = Launched::default();
    let total = 1 << 30;
    let backend = Recording { launched: launched.clone(), memory: Mutex::default(), total };
    (Device::from_inner(Device::inner(info(total, compute_capability), Box::new(backend))), launched)
}

impl Recording {
    fn with<T>(&self, address: u64, len: usize, act: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut memory = self.memory.lock().unwrap();
        let (start, block) = memory.range_mut(..=address).next_back().expect("an allocated address");
        let offset = (address - start) as usize;
        act(&mut block[offset..offset + len])
    }
}

impl Backend for Recording {
    fn allocate(&self, bytes: u64, _stream: RawStream) -> Result<u64> {
        let mut memory = self.memory.lock().unwrap();
        let live: u64 = memory.values().map(|block| block.len() as u64).sum();
        if live + bytes > self.total {
            return Err(Error::OutOfMemory { requested: bytes, free: self.total - live, total: self.total });
        }
        let end = memory.last_key_value().map_or(4096, |(start, block)| start + block.len() as u64);
        let address = end.next_multiple_of(256);
        memory.insert(address, vec![0; bytes as usize]);
        Ok(address)
    }
    fn free(&self, address: u64, _stream: RawStream) {
        self.memory.lock().unwrap().remove(&address).expect("freed once");
    }
    fn trim_memory(&self) -> Result<()> {
        Ok(())
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.with(address, bytes.len(), |memory| memory.copy_from_slice(bytes));
        Ok(())
    }
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.with(address, bytes.len(), |memory| bytes.copy_from_slice(memory));
        Ok(())
    }
    fn copy(&self, from: u64, to: u64, len: u64, _stream: RawStream) -> Result<()> {
        let bytes = self.with(from, len as usize, |memory| memory.to_vec());
        self.write(to, &bytes)
    }
    fn fill(&self, address: u64, byte: u8, len: u64) -> Result<()> {
        self.with(address, len as usize, |memory| memory.fill(byte));
        Ok(())
    }
    fn tensor_map(&self, tensor: &TensorGeometry) -> Result<TensorMap> {
        let mut words = [0; 16];
        words[0] = tensor.address;
        words[1..5].copy_from_slice(&tensor.extents);
        words[5..8].copy_from_slice(&tensor.byte_strides);
        words[8..12].copy_from_slice(&tensor.box_extents.map(u64::from));
        words[12] = tensor.dtype as u64;
        Ok(TensorMap(words))
    }
    fn prepare(&self, _kernel: &Specialised) -> Result<()> {
        Ok(())
    }
    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        assert_eq!(launch.stream, RawStream::DEFAULT);
        self.launched.lock().unwrap().push((launch.kernel.entry.symbol, launch.ctas, launch.params.to_vec()));
        Ok(())
    }
    fn create_stream(&self, _non_blocking: bool, _priority: Option<i32>) -> Result<RawStream> {
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
        (0..count).map(|_| before().and_then(|()| work()).map(|()| Duration::ZERO)).collect()
    }
}
