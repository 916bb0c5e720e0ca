//! Compares the emulator with a GPU, instruction by instruction, and writes `VALIDATION.md`.
//!
//! `cargo run --release -p ptx_emu --example validation` runs every case of `tests/cases` on the emulator and, where
//! `libcuda.so.1` and a device are there, the same PTX with the same inputs on the GPU. The binary needs nothing of the source
//! tree but a place to write to:
//!
//! `validation [--out FILE] [--ptx FOLDER]`
//!
//! Each case runs in a process that a failing kernel may take down: the next case gets a new one, and the table says what failed.
//!
//! - `--out`: the table; by default `VALIDATION.md` of the source tree that the binary was built from.
//! - `--ptx`: also write each case's PTX there, for an assembler to check.

#[path = "../tests/cases/mod.rs"]
mod cases;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use cases::{Case, Compare, THREADS, Tensor, agrees};
use libloading::Library;
use ptx_emu::{Emulator, Launch, Module, TensorMap};

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

    /// What `cuTensorMapEncodeTiled` makes of a description.
    fn encode(&self, tensor: &Tensor, src: u64, dst: u64) -> Result<[u64; 16], Error> {
        /// `CUtensorMap` is aligned to 64 bytes.
        #[repr(C, align(64))]
        struct Map([u64; 16]);
        let mut map = Map([0; 16]);
        let spec = tensor.spec(src, dst);
        let element_strides = vec![1u32; spec.dims.len()];
        call!(
            self,
            "cuTensorMapEncodeTiled",
            fn(
                *mut Map,
                c_uint,
                c_uint,
                u64,
                *const u64,
                *const u64,
                *const u32,
                *const u32,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
            ),
            &mut map,
            spec.data_type as u32,
            spec.dims.len() as u32,
            spec.address,
            spec.dims.as_ptr(),
            spec.strides.as_ptr(),
            spec.box_dims.as_ptr(),
            element_strides.as_ptr(),
            // No interleave, no promotion in L2; the enums of swizzle and fill have the numbers of cuda.h.
            0,
            spec.swizzle as u32,
            0,
            spec.fill as u32
        )?;
        Ok(map.0)
    }

    fn run(&self, case: &Case, ptx: &str, entry: &str, input: &[u8]) -> Result<Vec<u8>, Error> {
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
        let (mut src, mut dst, mut map) = (0u64, 0u64, 0u64);
        let mut out = vec![0u8; 16 * THREADS];
        call!(self, "cuMemAlloc_v2", fn(*mut u64, usize), &mut src, input.len())?;
        call!(self, "cuMemAlloc_v2", fn(*mut u64, usize), &mut dst, out.len())?;
        call!(self, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize), src, input.as_ptr().cast(), input.len())?;
        call!(self, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize), dst, out.as_ptr().cast(), out.len())?;
        call!(self, "cuMemAlloc_v2", fn(*mut u64, usize), &mut map, 128)?;
        if let Some(tensor) = &case.tensor {
            let words = self.encode(tensor, src, dst)?;
            call!(self, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize), map, words.as_ptr().cast(), 128)?;
        }
        let mut params: [*mut c_void; 3] = [(&raw mut src).cast(), (&raw mut dst).cast(), (&raw mut map).cast()];
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
        call!(self, "cuMemFree_v2", fn(u64), map)?;
        call!(self, "cuModuleUnload", fn(*mut c_void), module)?;
        Ok(out)
    }
}

fn emulate(case: &Case, ptx: &str, entry: &str, input: &[u8]) -> Result<Vec<u8>, Error> {
    let module = Module::parse(ptx)?;
    let device = Emulator::default();
    let (src, dst) = (device.alloc(input.len() as u64)?, device.alloc(16 * THREADS as u64)?);
    device.write(src, input)?;
    device.fill(dst, 0, 16 * THREADS as u64)?;
    let map = device.alloc(128)?;
    if let Some(tensor) = &case.tensor {
        device.write(map, TensorMap::encode(&tensor.spec(src, dst))?.as_bytes())?;
    }
    let launch = Launch::new([THREADS as u32 / 128, 1, 1], [128, 1, 1]).with_ptr(src).with_ptr(dst).with_ptr(map);
    device.launch(&module, entry, &launch)?;
    let mut out = vec![0; 16 * THREADS];
    device.read(dst, &mut out)?;
    Ok(out)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

/// The bytes that a case's kernel reads.
fn input_bytes(case: &Case) -> Vec<u8> {
    case.inputs().iter().flatten().flat_map(|w| w.to_le_bytes()).collect()
}

/// A process of its own that runs cases from `first` on, one line for each: what a failing kernel breaks ends with the process.
/// The first line is the device.
fn worker(first: usize) -> Result<(), Error> {
    let Some(gpu) = Gpu::open()? else {
        println!("none");
        return Ok(());
    };
    println!("{} {}", gpu.capability, gpu.name);
    for (i, case) in cases::all().iter().enumerate().skip(first) {
        if case.sm == "sm_90a" && gpu.capability != 90 {
            println!("{i} skipped");
            continue;
        }
        match gpu.run(case, &case.module(i), &Case::entry(i), &input_bytes(case)) {
            Ok(out) => {
                let hex: String = words(&out).iter().map(|w| format!("{w:08x}")).collect();
                println!("{i} ok {hex}");
            }
            Err(error) => {
                // Every later call of this process would fail, too.
                println!("{i} failed {error}");
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What the GPU made of a case.
enum Outcome {
    Words(Vec<u32>),
    Failed(String),
    Skipped,
}

/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The device, and an outcome for each case that has run.
type Run = (String, Vec<Option<Outcome>>);

/// The device and the outcomes of all cases, through as many worker processes as it takes; `None` without a device. `progress` is
/// called with what there is after each process.
fn run_on_gpu(
    count: usize,
    mut progress: impl FnMut(&str, &[Option<Outcome>]) -> Result<(), Error>,
) -> Result<Option<Run>, Error> {
    let mut outcomes: Vec<Option<Outcome>> = (0..count).map(|_| None).collect();
    let mut device = None;
    let mut next = 0;
    while next < count {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--worker", &next.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().ok_or("the worker has no output")?);
        let reader = std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
        let mut why = "the process ended".to_owned();
        let first = next;
        let mut named = false;
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if !named && line == "none" => {
                    child.wait()?;
                    return Ok(None);
                }
                Ok(line) if !named => {
                    named = true;
                    let (capability, name) = line.split_once(' ').ok_or("the worker did not name its device")?;
                    device.get_or_insert_with(|| format!("{name} (sm_{capability})"));
                }
                Ok(line) => {
                    let mut parts = line.splitn(3, ' ');
                    let index: usize = parts.next().unwrap_or_default().parse()?;
                    let (kind, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                    outcomes[index] = Some(match kind {
                        "ok" => {
                            let word = |c: &[u8]| u32::from_str_radix(&String::from_utf8_lossy(c), 16);
                            Outcome::Words(rest.as_bytes().chunks(8).map(word).collect::<Result<_, _>>()?)
                        }
                        "failed" => Outcome::Failed(rest.to_owned()),
                        _ => Outcome::Skipped,
                    });
                    next = index + 1;
                }
                Err(RecvTimeoutError::Timeout) => {
                    why = format!("no result within {} s", PATIENCE.as_secs());
                    child.kill()?;
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = child.wait()?;
        // The reader ends with the process; a closed channel is no error.
        let _ = reader.join();
        if !named {
            return Err(format!("the worker ended before it named its device: {status}").into());
        }
        if !status.success() && next < count || next == first {
            outcomes[next] = Some(Outcome::Failed(format!("{why} ({status})")));
            next += 1;
        }
        progress(device.as_deref().unwrap_or_default(), &outcomes)?;
    }
    Ok(device.map(|device| (device, outcomes)))
}

/// Differing words that the table shows of one case.
const EXAMPLES: usize = 8;

/// The table, of the outcomes that there are.
fn table(list: &[Case], emulated: &[Vec<u32>], gpu: Option<(&str, &[Option<Outcome>])>) -> Result<String, Error> {
    let mut families: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, c) in list.iter().enumerate() {
        families.entry(c.family).or_default().push(i);
    }
    let mut text = String::from(
        "# What of the emulator was compared, and how\n\n\
         Written by `cargo run --release -p ptx_emu --example validation`; do not edit.\n\n",
    );
    match gpu {
        Some((device, _)) => writeln!(text, "GPU: {device}, the same PTX and inputs on both.\n")?,
        None => writeln!(text, "No GPU was there: the last columns are empty.\n")?,
    }
    writeln!(
        text,
        "{THREADS} threads run each instruction, on corner values and random bits. *Definition* counts the instructions\n\
         that a test compares bit for bit with an independent definition on the host.\n"
    )?;
    writeln!(text, "| family | instructions | definition | compared by | GPU: agree | GPU: differ |")?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- |")?;
    let mut differences = String::new();
    for (family, indices) in &families {
        let (mut agree, mut differ) = (0, 0);
        let mut by = Vec::new();
        for &i in indices {
            let case = &list[i];
            let how = match case.compare {
                Compare::Bits => "bits".to_owned(),
                Compare::Ulps(n) => format!("{n} ulp"),
                Compare::HalfUlps { units, .. } => format!("{units} ulp"),
                Compare::Absolute(d) => format!("{d:e} absolute"),
                Compare::Refused => "refusal".to_owned(),
                Compare::Lg2 => "2^-22 absolute in (0.5, 2) and relative elsewhere".to_owned(),
            };
            if !by.contains(&how) {
                by.push(how);
            }
            let Some((_, outcomes)) = gpu else { continue };
            let name = format!("case {i}, `{}`", shorten(case));
            let theirs = match &outcomes[i] {
                None | Some(Outcome::Skipped) => continue,
                Some(Outcome::Failed(_)) if case.compare == Compare::Refused => {
                    agree += 1;
                    continue;
                }
                Some(Outcome::Failed(why)) => {
                    differ += 1;
                    writeln!(differences, "- {name}: {why}")?;
                    continue;
                }
                Some(Outcome::Words(_)) if case.compare == Compare::Refused => {
                    differ += 1;
                    writeln!(differences, "- {name}: the emulator refuses it, the GPU runs it")?;
                    continue;
                }
                Some(Outcome::Words(words)) => words,
            };
            let (ours, inputs) = (&emulated[i], case.inputs());
            let wrong: Vec<usize> =
                (0..ours.len()).filter(|&k| !agrees(case.compare, &inputs[k / 4], ours[k], theirs[k])).collect();
            if wrong.is_empty() {
                agree += 1;
                continue;
            }
            differ += 1;
            writeln!(differences, "- {name}: {} of {} words", wrong.len(), ours.len())?;
            // One line for each pair of words, as far as a reader wants to go.
            let mut shown = BTreeSet::new();
            for k in wrong.into_iter().filter(|&k| shown.insert((k % 4, ours[k], theirs[k]))).take(EXAMPLES) {
                writeln!(
                    differences,
                    "  - thread {}, inputs {:x?}, word {}: emulator {:#x}, GPU {:#x}",
                    k / 4,
                    inputs[k / 4],
                    k % 4,
                    ours[k],
                    theirs[k]
                )?;
            }
        }
        let defined = indices.iter().filter(|&&i| list[i].reference.is_some()).count();
        let (a, d) = if gpu.is_some() { (agree.to_string(), differ.to_string()) } else { Default::default() };
        writeln!(text, "| {family} | {} | {defined} | {} | {a} | {d} |", indices.len(), by.join(", "))?;
    }
    if !differences.is_empty() {
        write!(text, "\n## Differences\n\n{differences}")?;
    }
    text.push_str(
        "\n## Covered by other tests\n\n\
         Races, missing waits and fences, deadlocks, and the orderings between threads, warps and CTAs are no matter of bits:\n\
         `tests/mutations.rs` runs six kernels with exact results under 1000 seeds each, and breaks them in more than sixty\n\
         ways. `tests/hopper.rs` compares tensor copies and `wgmma` with plain definitions.\n",
    );
    Ok(text)
}

/// A body on one line; of a long one only what makes it differ from others of its family.
fn shorten(case: &Case) -> String {
    const TELLING: [&str; 4] = ["wgmma.mma_async", "bulk", "add.s64 %la, %lb", "add.s64 %lb, %lb"];
    let whole = case.body.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut line = whole.clone();
    if whole.len() > 400 {
        let telling =
            whole.split_inclusive(';').filter(|s| TELLING.iter().any(|t| s.contains(t)) && !s.contains("t_group"));
        // The accumulators' names say nothing.
        let telling = telling.map(|s| match (s.find("{%w0"), s.find("}, ")) {
            (Some(from), Some(to)) if from < to => format!("{}{{..{}", &s[..from], &s[to..]),
            _ => s.to_owned(),
        });
        line = telling.collect::<String>().trim().to_owned();
    }
    if let Some(tensor) = &case.tensor {
        write!(line, " of {tensor:?}").expect("a string takes all");
    }
    line
}

fn main() -> Result<(), Error> {
    let mut out = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/VALIDATION.md"));
    let mut folder = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--out" => out = value()?.into(),
            "--ptx" => folder = Some(PathBuf::from(value()?)),
            "--worker" => return worker(value()?.parse()?),
            _ => return Err(format!("`{arg}` is not accepted; usage: validation [--out FILE] [--ptx FOLDER]").into()),
        }
    }
    let list = cases::all();
    let mut emulated = Vec::new();
    for (i, case) in list.iter().enumerate() {
        let (ptx, entry) = (case.module(i), Case::entry(i));
        if let Some(folder) = &folder {
            std::fs::write(folder.join(format!("{entry}.{}.ptx", case.sm)), &ptx)?;
        }
        emulated.push(match emulate(case, &ptx, &entry, &input_bytes(case)) {
            Err(_) if case.compare == Compare::Refused => Vec::new(),
            Ok(_) if case.compare == Compare::Refused => {
                return Err(format!("the emulator runs `{}`", case.body).into());
            }
            out => words(&out?),
        });
    }
    let write = |gpu: Option<(&str, &[Option<Outcome>])>| -> Result<String, Error> {
        let text = table(&list, &emulated, gpu)?;
        std::fs::write(&out, &text).map_err(|error| format!("{}: {error}", out.display()))?;
        Ok(text)
    };
    // Written as it goes, so that a run that is cut short leaves what it found.
    let gpu = run_on_gpu(list.len(), |device, outcomes| write(Some((device, outcomes))).map(|_| ()))?;
    print!("{}", write(gpu.as_ref().map(|(device, outcomes)| (device.as_str(), outcomes.as_slice())))?);
    Ok(())
}
