//! `ferroflash serve`: timed launches on request, so that a script can alternate them with those of another program.
//!
//! One JSON object a line in, one out:
//! ```text
//! {"prepare": {"kernels": ["v2"], "dtype": "bf16", "head_dim": 128, "seq": 4096, "batch": 4, "heads": 16, "causal": true}}
//!   {"ready": [{"kernel": "v2", "check": {..}, "extra_bytes": 0}]}
//! {"go": {"kernel": "v2", "launches": 10}}
//!   {"ms": 0.73}                                    milliseconds of one launch, the mean of those
//! {"release": true}
//!   {"released": true}
//! ```
//! What cannot be done is answered with `{"error": "why"}`; a kernel whose memory does not fit, or that does not run the problem, is
//! answered within `ready`.
//! The end of the input ends the program.

use crate::bench::record::{Check, Environment};
use crate::bench::{DTypeName, KernelName, environment};
use crate::workload::{Case, Workload};
use anyhow::{Context, Result, ensure};
use clap::Args;
use ferroflash::{Device, Error, Kernel, Mask, Problem};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};

/// Answers requests for timed launches, one JSON object a line.
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Device: best, cuda, cuda:N or emulator
    #[arg(long, value_name = "DEVICE", default_value = "best")]
    device: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Prepare(Prepare),
    Go(Go),
    Release(bool),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prepare {
    kernels: Vec<KernelName>,
    dtype: DTypeName,
    head_dim: usize,
    seq: usize,
    batch: usize,
    heads: usize,
    kv_heads: Option<usize>,
    causal: bool,
    #[serde(default)]
    seed: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Go {
    kernel: KernelName,
    launches: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Hello(Box<Environment>),
    Ready(Vec<Prepared>),
    Ms(f64),
    Released(bool),
    Error(String),
}

#[derive(Serialize)]
struct Prepared {
    kernel: String,
    /// Why the kernel cannot run here.
    skipped: Option<String>,
    check: Option<Check>,
    extra_bytes: Option<u64>,
}

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let device = Device::open(&args.device)?;
    let mut workload = None;
    let mut stdout = std::io::stdout().lock();
    answer(&mut stdout, &Answer::Hello(Box::new(environment(device.info()))))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("standard input")?;
        let reply = serde_json::from_str(&line)
            .context("the request is not understood")
            .and_then(|request| serve(&device, &mut workload, request));
        answer(&mut stdout, &reply.unwrap_or_else(|error| Answer::Error(format!("{error:#}"))))?;
    }
    Ok(())
}

fn answer(stdout: &mut impl Write, answer: &Answer) -> Result<()> {
    serde_json::to_writer(&mut *stdout, answer)?;
    writeln!(stdout)?;
    stdout.flush()?;
    Ok(())
}

fn serve(device: &Device, workload: &mut Option<Workload>, request: Request) -> Result<Answer> {
    match request {
        Request::Prepare(prepare) => {
            // The last one's memory first: two large problems need not fit side by side.
            *workload = None;
            device.trim_memory()?;
            let Prepare { kernels, dtype, head_dim, seq, batch, heads, kv_heads, causal, seed } = prepare;
            let problem = Problem {
                batch,
                q_rows: seq,
                kv_rows: seq,
                q_heads: heads,
                kv_heads: kv_heads.unwrap_or(heads),
                head_dim,
                dtype: dtype.into(),
            };
            let case = Case { problem, mask: if causal { Mask::Causal } else { Mask::Full } };
            let workload = workload.insert(Workload::new(device, case, seed)?);
            let ready = kernels.into_iter().map(|kernel| prepared(device, workload, kernel.into()));
            Ok(Answer::Ready(ready.collect::<Result<_>>()?))
        }
        Request::Go(Go { kernel, launches }) => {
            ensure!(launches > 0, "0 launches take no time; at least 1 is needed");
            let workload = workload.as_mut().context("nothing is prepared")?;
            Ok(Answer::Ms(workload.time_ms(kernel.into(), launches)? / f64::from(launches)))
        }
        Request::Release(trim) => {
            *workload = None;
            if trim {
                device.trim_memory()?;
            }
            Ok(Answer::Released(true))
        }
    }
}

fn prepared(device: &Device, workload: &mut Workload, kernel: Kernel) -> Result<Prepared> {
    let mut prepared = Prepared { kernel: kernel.name().to_owned(), skipped: None, check: None, extra_bytes: None };
    let run = || -> ferroflash::Result<()> {
        prepared.extra_bytes = Some(workload.extra_bytes(kernel)?);
        prepared.check = Some(workload.check(kernel)?);
        Ok(())
    }();
    match run {
        Ok(()) => {}
        Err(
            error @ (Error::OutOfMemory { .. } | Error::WorkspaceTooLarge { .. } | Error::KernelUnsupported { .. }),
        ) => {
            device.trim_memory()?;
            prepared.skipped = Some(error.to_string());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(prepared)
}
