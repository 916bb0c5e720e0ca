//! The public face: modules, device memory and launches.

mod launch;
mod module;
mod options;
mod request;
mod residency;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

pub use module::{EntryInfo, Module, ParamInfo};
pub use options::{Checks, EmulatorOptions, Severity};
pub use request::{Launch, LaunchReport};

use crate::error::EmuError;
use crate::host::Printed;
use crate::memory::GlobalMemory;

struct State {
    memory: GlobalMemory,
    /// Addresses of each module's global variables.
    modules: HashMap<u64, Arc<Vec<u64>>>,
    /// What kernels printed and nobody has taken yet, and how many bytes of text that is.
    printed: (VecDeque<Printed>, usize),
}

/// Bytes of printed text that are kept; the oldest go first, as on a GPU.
const MOST_PRINTED: usize = 1 << 20;

impl State {
    fn print(&mut self, lines: Vec<Printed>) {
        let (kept, bytes) = &mut self.printed;
        for line in lines {
            *bytes += line.text.len();
            kept.push_back(line);
            while *bytes > MOST_PRINTED
                && let Some(oldest) = kept.pop_front()
            {
                *bytes -= oldest.text.len();
            }
        }
    }
}

/// A device: memory and a machine that runs kernels. Launches of different threads run one after the other.
pub struct Emulator {
    options: EmulatorOptions,
    state: Mutex<State>,
    running: Mutex<()>,
    pool: Option<rayon::ThreadPool>,
    simd: bool,
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Default for Emulator {
    fn default() -> Self {
        Emulator::new(EmulatorOptions::default())
    }
}

impl Emulator {
    /// A device with empty memory.
    pub fn new(options: EmulatorOptions) -> Emulator {
        // One thread is the caller's own: no pool to start and stop.
        let pool = (options.threads > 1)
            .then(|| rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().ok())
            .flatten();
        let state = State {
            memory: GlobalMemory::new(options.memory_limit),
            modules: HashMap::new(),
            printed: Default::default(),
        };
        Emulator { options, state: Mutex::new(state), running: Mutex::new(()), pool, simd: crate::alu::has_simd() }
    }

    /// The settings that the device was made with.
    pub fn options(&self) -> &EmulatorOptions {
        &self.options
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Allocates memory, aligned to 256 bytes; nobody wrote it yet. Addresses are never used again.
    ///
    /// # Errors
    /// [`EmuError::OutOfMemory`] when the memory limit does not allow it.
    pub fn alloc(&self, bytes: u64) -> Result<u64, EmuError> {
        self.state().memory.alloc(bytes)
    }

    /// Frees an allocation by its first address.
    ///
    /// # Errors
    /// [`EmuError::InvalidDeviceAddress`] when it is not the start of a live allocation.
    pub fn free(&self, ptr: u64) -> Result<(), EmuError> {
        self.state().memory.free(ptr)
    }

    /// Copies bytes to device memory.
    ///
    /// # Errors
    /// [`EmuError::InvalidDeviceAddress`] when the range is not inside of one allocation.
    pub fn write(&self, ptr: u64, bytes: &[u8]) -> Result<(), EmuError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let state = self.state();
        let (a, off) = state.memory.range(ptr, bytes.len() as u64)?;
        // Word by word where aligned, so that large tensors copy fast.
        let head = (8 - off % 8) as usize % 8;
        let head = head.min(bytes.len());
        let (h, rest) = bytes.split_at(head);
        let (body, tail) = rest.split_at(rest.len() / 8 * 8);
        let mut at = off;
        for part in [h, body, tail] {
            if part.len() % 8 == 0 && at % 8 == 0 && !part.is_empty() {
                a.store(at, part);
            } else {
                for (i, b) in part.iter().enumerate() {
                    a.store(at + i as u64, std::slice::from_ref(b));
                }
            }
            at += part.len() as u64;
        }
        a.mark_written(off, bytes.len() as u64);
        Ok(())
    }

    /// Copies bytes from device memory.
    ///
    /// # Errors
    /// [`EmuError::InvalidDeviceAddress`] when the range is not inside of one allocation, or when the checks are on and
    /// a byte of it was never written.
    pub fn read(&self, ptr: u64, out: &mut [u8]) -> Result<(), EmuError> {
        if out.is_empty() {
            return Ok(());
        }
        let state = self.state();
        let n = out.len() as u64;
        let (a, off) = state.memory.range(ptr, n)?;
        if self.options.checks.uninitialized
            && let Some(o) = a.first_unknown(off, n)
        {
            return Err(EmuError::InvalidDeviceAddress {
                address: ptr,
                bytes: n,
                what: format!("byte {} of the range was never written", o - off),
            });
        }
        let head = (8 - off % 8) as usize % 8;
        let head = head.min(out.len());
        let (h, rest) = out.split_at_mut(head);
        let (body, tail) = rest.split_at_mut(rest.len() / 8 * 8);
        let mut at = off;
        for part in [h, body, tail] {
            if part.len() % 8 == 0 && at % 8 == 0 && !part.is_empty() {
                a.load(at, part);
            } else {
                for (i, b) in part.iter_mut().enumerate() {
                    a.load(at + i as u64, std::slice::from_mut(b));
                }
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// What kernels printed since the last call (`printf` of CUDA, `vprintf` of PTX), also those that ended with a fault: in the order of
    /// the CTAs, or in that of their calls where CTAs wait for each other. The last MiB of it is kept.
    pub fn take_printed(&self) -> Vec<Printed> {
        std::mem::take(&mut self.state().printed).0.into()
    }

    /// Sets a range of device memory to one byte value.
    ///
    /// # Errors
    /// [`EmuError::InvalidDeviceAddress`] when the range is not inside of one allocation.
    pub fn fill(&self, ptr: u64, byte: u8, len: u64) -> Result<(), EmuError> {
        self.state().memory.range(ptr, len)?;
        // In pieces, so that the host needs no second copy of a large range.
        let piece = vec![byte; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(1 << 20) as usize;
            self.write(ptr + done, &piece[..n])?;
            done += n as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Emulator>();
        shared::<Module>();
    }

    #[test]
    fn device_memory_round_trips_at_any_offset() {
        let e = Emulator::default();
        let p = e.alloc(100).unwrap();
        assert_eq!(p % 256, 0);
        e.fill(p, 7, 100).unwrap();
        let data: Vec<u8> = (0..90).collect();
        e.write(p + 3, &data).unwrap();
        let mut out = vec![0; 100];
        e.read(p, &mut out).unwrap();
        assert_eq!(&out[3..93], &data[..]);
        assert_eq!(&out[..3], &[7; 3]);
        assert!(e.write(p + 50, &[0; 51]).is_err());
        e.free(p).unwrap();
        assert!(e.free(p).is_err());
        assert!(e.read(p, &mut out).is_err());
        assert_ne!(e.alloc(100).unwrap(), p);
    }

    #[test]
    fn unwritten_memory_cannot_be_read_back() {
        let e = Emulator::default();
        let p = e.alloc(16).unwrap();
        e.write(p, &[1; 8]).unwrap();
        assert!(e.read(p, &mut [0; 8]).is_ok());
        assert!(e.read(p, &mut [0; 9]).is_err());
        let e = Emulator::new(EmulatorOptions::default().with_checks(Checks::none()));
        let p = e.alloc(16).unwrap();
        assert!(e.read(p, &mut [0; 9]).is_ok());
    }

    #[test]
    fn the_memory_limit_holds() {
        let e = Emulator::new(EmulatorOptions::default().with_memory_limit(1000));
        let p = e.alloc(900).unwrap();
        assert!(matches!(e.alloc(101), Err(EmuError::OutOfMemory { requested: 101, in_use: 900, limit: 1000 })));
        e.free(p).unwrap();
        assert!(e.alloc(1000).is_ok());
    }
}
