//! Compares the emulator with a GPU, instruction by instruction, and writes `VALIDATION.md`.
//!
//! `cargo run --release -p ptx_emu --example validation` runs every case of `tests/cases` on the emulator and, where
//! `libcuda.so.1` and a device are there, the same PTX with the same inputs on the GPU. With a folder as an argument it
//! also writes each case's PTX there, for an assembler to check.

#[path = "../tests/cases/mod.rs"]
mod cases;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fmt::Write as _;

use cases::{Case, Compare, THREADS, agrees};
use libloading::Library;
use ptx_emu::{Emulator, Launch, Module};

type Error = Box<dyn std::error::Error>;

/// The few driver functions that a launch takes.
struct Gpu {
    lib: Library,
    name: String,
    capability: u32,
}

/// Asserts that a driver call returned 0 (`CUDA_SUCCESS`).
fn ok(what: &str, status: c_int) -> Result<(), Error> {
    if status == 0 { Ok(()) } else { Err(format!("{what} returned {status}").into()) }
}

macro_rules! call {
    ($gpu:expr, $name:literal, fn($($t:ty),* $(,)?) $(, $arg:expr)* $(,)?) => {{
        // SAFETY: the signature is the one of cuda.h, and the arguments live across the call.
        let status = unsafe {
            let f: libloading::Symbol<'_, unsafe extern "C" fn($($t),*) -> c_int> =
                $gpu.lib.get(concat!($name, "\0").as_bytes())?;
            f($($arg),*)
        };
        ok($name, status)
    }};
}

impl Gpu {
    /// Device 0 with its primary context current; `None` without a driver or device.
    fn open() -> Result<Option<Gpu>, Error> {
        // SAFETY: the driver library's initialisers have no requirement on the caller.
        let Ok(lib) = (unsafe { Library::new("libcuda.so.1") }) else { return Ok(None) };
        let mut gpu = Gpu { lib, name: String::new(), capability: 0 };
        if call!(gpu, "cuInit", fn(c_uint), 0).is_err() {
            return Ok(None);
        }
        let mut device: c_int = 0;
        call!(gpu, "cuDeviceGet", fn(*mut c_int, c_int), &mut device, 0)?;
        let mut name: [c_char; 128] = [0; 128];
        call!(gpu, "cuDeviceGetName", fn(*mut c_char, c_int, c_int), name.as_mut_ptr(), 128, device)?;
        // SAFETY: the driver wrote a terminated string of at most 128 bytes.
        gpu.name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // Attributes 75 and 76 of cuda.h: the compute capability.
        call!(gpu, "cuDeviceGetAttribute", fn(*mut c_int, c_int, c_int), &mut major, 75, device)?;
        call!(gpu, "cuDeviceGetAttribute", fn(*mut c_int, c_int, c_int), &mut minor, 76, device)?;
        gpu.capability = (10 * major + minor) as u32;
        let mut context: *mut c_void = std::ptr::null_mut();
        call!(gpu, "cuDevicePrimaryCtxRetain", fn(*mut *mut c_void, c_int), &mut context, device)?;
        call!(gpu, "cuCtxSetCurrent", fn(*mut c_void), context)?;
        Ok(Some(gpu))
    }

    fn run(&self, ptx: &str, entry: &str, input: &[u8]) -> Result<Vec<u8>, Error> {
        let text = CString::new(ptx)?;
        let name = CString::new(entry)?;
        let mut module: *mut c_void = std::ptr::null_mut();
        call!(self, "cuModuleLoadData", fn(*mut *mut c_void, *const c_void), &mut module, text.as_ptr().cast())?;
        let mut function: *mut c_void = std::ptr::null_mut();
        call!(
            self,
            "cuModuleGetFunction",
            fn(*mut *mut c_void, *mut c_void, *const c_char),
            &mut function,
            module,
            name.as_ptr()
        )?;
        let (mut src, mut dst) = (0u64, 0u64);
        let mut out = vec![0u8; 16 * THREADS];
        call!(self, "cuMemAlloc_v2", fn(*mut u64, usize), &mut src, input.len())?;
        call!(self, "cuMemAlloc_v2", fn(*mut u64, usize), &mut dst, out.len())?;
        call!(self, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize), src, input.as_ptr().cast(), input.len())?;
        let mut params: [*mut c_void; 2] = [(&raw mut src).cast(), (&raw mut dst).cast()];
        call!(
            self,
            "cuLaunchKernel",
            fn(
                *mut c_void,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                *mut c_void,
                *mut *mut c_void,
                *mut *mut c_void,
            ),
            function,
            THREADS as u32 / 128,
            1,
            1,
            128,
            1,
            1,
            0,
            std::ptr::null_mut(),
            params.as_mut_ptr(),
            std::ptr::null_mut()
        )?;
        call!(self, "cuCtxSynchronize", fn())?;
        call!(self, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize), out.as_mut_ptr().cast(), dst, out.len())?;
        call!(self, "cuMemFree_v2", fn(u64), src)?;
        call!(self, "cuMemFree_v2", fn(u64), dst)?;
        call!(self, "cuModuleUnload", fn(*mut c_void), module)?;
        Ok(out)
    }
}

fn emulate(ptx: &str, entry: &str, input: &[u8]) -> Result<Vec<u8>, Error> {
    let module = Module::parse(ptx)?;
    let device = Emulator::default();
    let (src, dst) = (device.alloc(input.len() as u64)?, device.alloc(16 * THREADS as u64)?);
    device.write(src, input)?;
    let launch = Launch::new([THREADS as u32 / 128, 1, 1], [128, 1, 1]).with_ptr(src).with_ptr(dst);
    device.launch(&module, entry, &launch)?;
    let mut out = vec![0; 16 * THREADS];
    device.read(dst, &mut out)?;
    Ok(out)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

fn main() -> Result<(), Error> {
    let folder = std::env::args().nth(1);
    let gpu = Gpu::open()?;
    let mut families: BTreeMap<&str, Vec<(usize, Case)>> = BTreeMap::new();
    for (i, c) in cases::all().into_iter().enumerate() {
        families.entry(c.family).or_default().push((i, c));
    }
    let mut text = String::from(
        "# What of the emulator was compared, and how\n\n\
         Written by `cargo run --release -p ptx_emu --example validation`; do not edit.\n\n",
    );
    match &gpu {
        Some(g) => writeln!(text, "GPU: {} (sm_{}), the same PTX and inputs on both.\n", g.name, g.capability)?,
        None => writeln!(text, "No GPU was there: the last column is empty.\n")?,
    }
    writeln!(
        text,
        "{THREADS} threads run each instruction, on corner values and random bits. *Definition* counts the instructions\n\
         that a test compares bit for bit with an independent definition on the host.\n"
    )?;
    writeln!(text, "| family | instructions | definition | compared by | GPU: agree | GPU: differ |")?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- |")?;
    let mut differences = String::new();
    for (family, list) in &families {
        let (mut agree, mut differ) = (0, 0);
        let mut by = Vec::new();
        for (i, case) in list {
            let how = match case.compare {
                Compare::Bits => "bits".to_owned(),
                Compare::Ulps(n) => format!("{n} ulp"),
                Compare::Absolute(d) => format!("{d:e} absolute"),
                Compare::Lg2 => "2^-22 absolute in (0.5, 2) and relative elsewhere".to_owned(),
            };
            if !by.contains(&how) {
                by.push(how);
            }
            let (ptx, entry) = (case.module(*i), Case::entry(*i));
            if let Some(folder) = &folder {
                std::fs::write(format!("{folder}/{entry}.{}.ptx", case.sm), &ptx)?;
            }
            let input: Vec<u8> = case.inputs().iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
            let ours = words(&emulate(&ptx, &entry, &input)?);
            let Some(gpu) = &gpu else { continue };
            if case.sm == "sm_90a" && gpu.capability != 90 {
                continue;
            }
            let theirs = match gpu.run(&ptx, &entry, &input) {
                Ok(out) => words(&out),
                Err(e) => {
                    writeln!(differences, "- `{}`: {e}", case.body.replace('\n', " "))?;
                    differ += 1;
                    continue;
                }
            };
            let all_inputs = case.inputs();
            let wrong: Vec<usize> =
                (0..ours.len()).filter(|&k| !agrees(case.compare, &all_inputs[k / 4], ours[k], theirs[k])).collect();
            let Some(&k) = wrong.first() else {
                agree += 1;
                continue;
            };
            differ += 1;
            writeln!(
                differences,
                "- `{}`: {} of {} words, first in thread {}, inputs {:x?}, word {}: emulator {:#x}, GPU {:#x}",
                case.body.replace('\n', " "),
                wrong.len(),
                ours.len(),
                k / 4,
                all_inputs[k / 4],
                k % 4,
                ours[k],
                theirs[k]
            )?;
        }
        let defined = list.iter().filter(|(_, c)| c.reference.is_some()).count();
        let (a, d) = if gpu.is_some() { (agree.to_string(), differ.to_string()) } else { Default::default() };
        writeln!(text, "| {family} | {} | {defined} | {} | {a} | {d} |", list.len(), by.join(", "))?;
    }
    if !differences.is_empty() {
        write!(text, "\n## Differences\n\n{differences}")?;
    }
    text.push_str(
        "\n## Covered by other tests\n\n\
         Global, shared and local memory, races, mbarriers, bulk and tensor copies, `wgmma`, named barriers and the\n\
         orderings between CTAs are run by `tests/mutations.rs`: six kernels with exact results under 1000 seeds each, and\n\
         broken in more than sixty ways.\n",
    );
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/VALIDATION.md"), &text)?;
    print!("{text}");
    Ok(())
}
