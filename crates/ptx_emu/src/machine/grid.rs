//! All CTAs of a launch: one by one on several threads where they cannot talk to each other, else under one schedule.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::resident::Residents;
use super::shuffle::Shuffle;
use super::{Cta, LaunchCtx};
use crate::counters::Counters;
use crate::error::{Fault, FaultKind};

/// Runs all CTAs, on the calling thread alone if `serial`.
pub(crate) fn run_grid(ctx: &LaunchCtx<'_>, total: u32, serial: bool) -> (Counters, Option<Box<Fault>>) {
    if ctx.talk.talks { Residents::new(ctx, total).run() } else { run_apart(ctx, total, serial) }
}

/// Runs CTAs that cannot talk to each other; a worker keeps its machine from one CTA to the next. Of the
/// faults that were found when the others were stopped, the one whose CTA comes first in the order of the seed is reported.
fn run_apart(ctx: &LaunchCtx<'_>, total: u32, serial: bool) -> (Counters, Option<Box<Fault>>) {
    let order = Shuffle::new(total, ctx.seed);
    let idle: Mutex<Vec<Cta<'_>>> = Mutex::new(Vec::new());
    let faults: Mutex<Option<(u32, Box<Fault>)>> = Mutex::new(None);
    let lock = || idle.lock().unwrap_or_else(|e| e.into_inner());
    let run = |at| {
        if ctx.stop.load(Ordering::Relaxed) {
            return;
        }
        let cta = lock().pop();
        let mut cta = cta.unwrap_or_else(|| Cta::new(ctx));
        if let Err(f) = cta.run(order.at(at)) {
            let stopped = f.kind == FaultKind::TimeLimit && ctx.stop.load(Ordering::Relaxed);
            ctx.stop.store(true, Ordering::Relaxed);
            let mut first = faults.lock().unwrap_or_else(|e| e.into_inner());
            if !stopped && first.as_ref().is_none_or(|(i, _)| at < *i) {
                *first = Some((at, f));
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
    (counters, faults.into_inner().unwrap_or_else(|e| e.into_inner()).map(|(_, f)| f))
}
