//! All CTAs of a launch.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::{Cta, LaunchCtx};
use crate::counters::Counters;
use crate::error::{Fault, FaultKind};

/// Runs all CTAs, on the calling thread alone if `serial`; a worker keeps its machine from one CTA to the next.
pub(crate) fn run_grid(ctx: &LaunchCtx<'_>, total: u32, serial: bool) -> (Counters, Option<(u32, Box<Fault>)>) {
    let idle: Mutex<Vec<Cta<'_>>> = Mutex::new(Vec::new());
    let faults: Mutex<Option<(u32, Box<Fault>)>> = Mutex::new(None);
    let lock = || idle.lock().unwrap_or_else(|e| e.into_inner());
    let run = |index| {
        if ctx.stop.load(Ordering::Relaxed) {
            return;
        }
        let cta = lock().pop();
        let mut cta = cta.unwrap_or_else(|| Cta::new(ctx));
        if let Err(f) = cta.run(index) {
            let stopped = f.kind == FaultKind::TimeLimit && ctx.stop.load(Ordering::Relaxed);
            ctx.stop.store(true, Ordering::Relaxed);
            let mut first = faults.lock().unwrap_or_else(|e| e.into_inner());
            if !stopped && first.as_ref().is_none_or(|(i, _)| index < *i) {
                *first = Some((index, f));
            }
        }
        lock().push(cta);
    };
    if serial {
        (0..total).for_each(run);
    } else {
        (0..total).into_par_iter().with_max_len(16).for_each(run);
    }
    let mut counters = Counters::default();
    for c in idle.into_inner().unwrap_or_else(|e| e.into_inner()) {
        counters.add(&c.counters);
    }
    (counters, faults.into_inner().unwrap_or_else(|e| e.into_inner()))
}
