//! Processes of their own that run cases on the GPU: what a failing kernel breaks ends with its process.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::cases::{self, Case};
use super::gpu::Gpu;
use super::{Error, input_bytes, words};

/// A process of its own that runs cases from `first` on, one line for each: what a failing kernel breaks ends with the process.
/// The first line is the device.
pub(super) fn worker(first: usize) -> Result<(), Error> {
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
pub(super) enum Outcome {
    Words(Vec<u32>),
    Failed(String),
    Skipped,
}

/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The device, and an outcome for each case that has run.
pub(super) type Run = (String, Vec<Option<Outcome>>);

/// The device and the outcomes of all cases, through as many worker processes as it takes; `None` without a device. `progress` is
/// called with what there is after each process.
pub(super) fn run_on_gpu(
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
