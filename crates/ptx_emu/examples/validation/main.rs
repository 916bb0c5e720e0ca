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

#[path = "../../tests/cases/mod.rs"]
mod cases;
mod gpu;
mod table;
mod workers;

use std::path::PathBuf;

use cases::{Case, THREADS};
use ptx_emu::{Emulator, Launch, Module, TensorMap};
use table::table;
use workers::{Outcome, run_on_gpu, worker};

type Error = Box<dyn std::error::Error>;

/// What the emulator made of a case.
enum Emulated {
    Words(Vec<u32>),
    /// The first line of its error.
    Failed(String),
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
            Ok(out) => Emulated::Words(words(&out)),
            Err(error) => Emulated::Failed(error.to_string().lines().next().unwrap_or_default().to_owned()),
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
