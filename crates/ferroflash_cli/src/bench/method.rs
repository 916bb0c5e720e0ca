//! How a run measures, as its record says it.

use super::record::Method;
use super::sweep::Sweep;
use super::{BenchArgs, Clock};
use crate::workload::{Pass, Rows};
use ferroflash::Mask;

pub(super) fn method(args: &BenchArgs, timed: bool, sweep: &Sweep) -> Method {
    let timer = match (timed, args.clock) {
        (false, _) => "none: the emulator counts",
        (true, Clock::Device) => "events of the device around the launches of a sample",
        (true, Clock::Host) => "for tests: whatever the device offers, on the emulator the clock of the host",
    };
    let order = if timed {
        "cells in a drawn order; in each round of samples the implementations in a drawn order; what holds more than a \
         sixteenth of device memory after the others, alone"
    } else {
        "as listed"
    };
    let programs = timed && sweep.cases.iter().any(|case| case.program.is_some());
    Method {
        pass: args.pass,
        timer: if timed && sweep.cases.iter().any(|case| case.rows.cached()) {
            format!("{timer}; calls on a cache are replayed from graphs of 20 or more on a GPU")
        } else {
            timer.to_owned()
        },
        repeats: if timed { args.repeats } else { 0 },
        sample_ms: if timed { args.sample } else { 0.0 },
        rest_ms: if timed { args.rest } else { 0 },
        warmup_seconds: if timed { args.warmup as f64 / 1e3 } else { 0.0 },
        l2: args.l2().name().to_owned(),
        driver_cache: programs.then(|| std::env::var_os("CUDA_CACHE_DISABLE").is_none_or(|value| value != "1")),
        order: order.to_owned(),
        order_seed: args.order_seed,
        seed: args.seed,
        inputs: args.values.description().to_owned(),
        flop_rule: flop_rule(args.pass, sweep),
        tolerance: tolerance(args.pass),
    }
}

/// How operations of these cells are counted. Sweeps without windows say what they said before there were any, and forward passes what
/// they said before there were others.
fn flop_rule(pass: Pass, sweep: &Sweep) -> String {
    let windows = sweep.cases.iter().any(|case| matches!(case.mask, Mask::Window { .. }));
    let of_windows = if windows { "; of windows 4 * batch * heads * visible scores * head_dim" } else { "" };
    let sequences = sweep.cases.iter().any(|case| case.rows != Rows::Equal);
    let of_sequences = if sequences {
        "; of caches and packed sequences 4 * heads * visible scores * head_dim, over all sequences"
    } else {
        ""
    };
    let forward =
        format!("4 * batch * heads * seq * kv_seq * head_dim, half of it when causal{of_windows}{of_sequences}");
    match pass {
        Pass::Forward => forward,
        Pass::Backward => format!("{forward}; {} times that, for five products instead of two", pass.flop_factor()),
        Pass::Both => format!("{forward}; {} times that, for seven products instead of two", pass.flop_factor()),
    }
}

fn tolerance(pass: Pass) -> String {
    let forward = "max|out - f64| <= 2 * max|naive in the same precision - f64| + 1e-5";
    let backward = "max|gradient - f64| <= f * max|the same formula in the same precision - f64| + 1e-5, where f is 2 for dq, and 3 \
                    for dk and dv";
    match pass {
        Pass::Forward => forward.to_owned(),
        Pass::Backward => backward.to_owned(),
        Pass::Both => format!("{forward}; {backward}"),
    }
}
