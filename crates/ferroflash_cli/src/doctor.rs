//! `ferroflash doctor`: what this machine can run, and what to do about the rest.

use crate::bench::commit;
use crate::format;
use crate::names::Named;
use crate::output::say;
use crate::values::Values;
use crate::workload::{Case, Ours, Pass, Workload};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ferroflash::{Attention, DType, Device, DeviceKind, Error, Kernel, Mask, Sizes, embedded_entries, entries};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Checks driver, GPUs, emulator and kernels of this machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status 1 when no device works, a kernel is missing from this build or a first result is wrong. For a toolchain that
builds the kernels, see `cargo xtask doctor`.

Examples:
  ferroflash doctor
  ferroflash doctor --device cuda:1")]
pub(crate) struct DoctorArgs {
    /// Device of the first results: best, cuda, cuda:N or emulator
    #[arg(long, value_name = "DEVICE", default_value = "best", value_parser = crate::usage::device_name)]
    device: String,
    /// Compute one small result with this kernel, say so, and end
    #[arg(long, hide = true, value_name = "KERNEL")]
    first_result: Option<Named<Kernel>>,
}

/// What first results are computed of: every kernel takes it, on a device that it runs on.
const FIRST_PROBLEM: Sizes =
    Sizes { batch: 1, q_rows: 64, kv_rows: 64, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::F16 };

/// What the child process says once it has its first result.
const FIRST_RESULT: &str = "first result";

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    if let Some(kernel) = args.first_result {
        return first_result(&args.device, kernel.0);
    }
    let mut problems = Vec::new();
    line("ferroflash", &format!("{}, commit {}", env!("CARGO_PKG_VERSION"), commit().unwrap_or("unknown")))?;
    line("built with", env!("FERROFLASH_RUSTC"))?;
    driver_and_gpus()?;
    match Device::emulator() {
        Ok(_) => line("emulator", "in this build: runs the kernels' PTX on the CPU, on any machine"),
        Err(error) => line("emulator", &format!("not usable: {error}")),
    }?;
    let embedded = embedded_entries().count();
    let listed = entries().count();
    line("kernels", &format!("PTX of {embedded} of {listed} entry points is in this build"))?;
    if embedded < listed {
        problems.push("kernels are missing from this build; install rust-src with `cargo xtask setup` and build again");
    }
    match Device::open(&args.device) {
        Ok(device) => {
            line("device", &format!("`{}` is {}, {}", args.device, device.info().id(), device.info().name))?;
            for kernel in Kernel::ALL {
                let what = format!("{kernel}, start");
                let plan = Attention::new().with_kernel(kernel).plan(&device, FIRST_PROBLEM);
                if let Err(Error::KernelUnsupported { reason, .. }) = plan {
                    line(&what, &format!("not on this device: {reason}"))?;
                    continue;
                }
                match time_to_first_result(&device.info().id(), kernel) {
                    Ok(ms) => line(&what, &format!("{} from process start to first result", format::milliseconds(ms)))?,
                    Err(error) => {
                        line(&what, &format!("FAILED: {error:#}"))?;
                        problems.push("a kernel gives no right result on this device");
                    }
                }
            }
        }
        Err(error) => {
            line("device", &format!("`{}` is not usable: {error}", args.device))?;
            problems.push("the device does not work");
        }
    }
    problems.dedup();
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    say!("everything that this build needs is there")
}

fn line(what: &str, finding: &str) -> Result<()> {
    // As wide as the longest heading.
    say!("{what:<14}{finding}")
}

fn driver_and_gpus() -> Result<()> {
    let gpus = Device::list().into_iter().filter_map(|info| match info.kind {
        DeviceKind::Cuda { ordinal, driver_version, compute_capability } => {
            Some((info, ordinal, driver_version, compute_capability))
        }
        _ => None,
    });
    let mut none = true;
    for (info, ordinal, driver_version, compute_capability) in gpus {
        if none {
            line("CUDA driver", &format!("supports CUDA {driver_version}"))?;
        }
        none = false;
        let usable = match Device::cuda(ordinal) {
            Ok(_) => "usable".to_owned(),
            Err(error) => format!("not usable: {error}"),
        };
        let memory = format::bytes(info.memory_bytes);
        let (name, multiprocessors) = (&info.name, info.multiprocessors);
        line(
            &format!("cuda:{ordinal}"),
            &format!(
                "{name}, compute capability {compute_capability}, {multiprocessors} multiprocessors, {memory}, {usable}"
            ),
        )?;
    }
    if !none {
        return Ok(());
    }
    // Opening says why there is none.
    match Device::cuda(0) {
        Ok(device) => line("CUDA", &format!("{} opens but is not listed", device.info().name)),
        Err(error) => line("CUDA", &error.to_string()),
    }
}

/// Milliseconds from the start of a process to its first result: loading the driver, compiling the PTX, copies, the launch.
fn time_to_first_result(device: &str, kernel: Kernel) -> Result<f64> {
    let program = std::env::current_exe().context("the path of this program")?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(["doctor", "--device", device, "--first-result", kernel.name()])
        // What it says on standard error is its error.
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("a second process")?;
    let mut said = String::new();
    let stdout = child.stdout.take().context("the output of the second process")?;
    BufReader::new(stdout).read_line(&mut said)?;
    let elapsed = start.elapsed();
    let output = child.wait_with_output()?;
    if !output.status.success() || said.trim() != FIRST_RESULT {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: "));
    }
    Ok(elapsed.as_secs_f64() * 1e3)
}

/// Computes a small problem, says so as soon as the result is on the host, and then checks it.
fn first_result(device: &str, kernel: Kernel) -> Result<()> {
    let device = Device::open(device)?;
    let case = Case::new(FIRST_PROBLEM, Mask::Causal);
    let mut workload = Workload::new(&device, case, Pass::Forward, Values::Normal, 0)?;
    let check = workload.check(Ours::Kernel(kernel))?;
    say!("{FIRST_RESULT}")?;
    ensure!(check.within, "the result is wrong: error {:e}, accepted {:e}", check.max_error, check.bound);
    Ok(())
}
