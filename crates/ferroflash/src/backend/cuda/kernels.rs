//! The kernels that a GPU has loaded.

use super::error::version;
use crate::error::{Error, Result};
use crate::specialise::Specialised;
use cust::{CaptureStatus, Context, Function, FunctionAttribute, JitOptions, Module, Stream};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};

/// Dynamic shared memory that a kernel gets without asking, on every GPU.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

/// Thread blocks of a cluster that every GPU with clusters has; a kernel with more has to ask.
const EVERY_CLUSTER: u32 = 8;

/// Kernels are loaded when they are first needed, once, and never unloaded.
pub(super) struct Kernels {
    context: Context,
    loaded: RwLock<HashMap<Specialised, Function>>,
    /// Held while a kernel is compiled, so that none is compiled twice and the loaded ones stay available.
    loading: Mutex<()>,
}

impl Kernels {
    pub(super) fn new(context: &Context) -> Kernels {
        Kernels { context: context.clone(), loaded: RwLock::default(), loading: Mutex::default() }
    }

    /// The loaded kernel, compiled by the driver at the first call; `stream` is where it is going to be launched.
    pub(super) fn load(&self, kernel: &Specialised, stream: Option<&Stream>) -> Result<Function> {
        // A panic while a lock was held leaves the map usable: functions are inserted whole.
        let loaded = || self.loaded.read().unwrap_or_else(PoisonError::into_inner).get(kernel).cloned();
        if let Some(function) = loaded() {
            return Ok(function);
        }
        if let Some(stream) = stream
            && is_captured(stream)?
        {
            // Loading is no work that a graph could hold, and would spoil the capture.
            return Err(Error::KernelNotLoaded { symbol: kernel.entry.symbol });
        }
        let _guard = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have loaded it while this one waited.
        if let Some(function) = loaded() {
            return Ok(function);
        }
        let function = self.compile(kernel)?;
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).insert(kernel.clone(), function.clone());
        Ok(function)
    }

    fn compile(&self, kernel: &Specialised) -> Result<Function> {
        let entry = kernel.entry;
        let symbol = entry.symbol;
        let span = tracing::info_span!("load", symbol, features = kernel.features.bits());
        let _entered = span.enter();
        let text = kernel.text()?;
        let module = Module::from_ptx(&self.context, &text, &JitOptions::default()).map_err(|error| match error {
            cust::Error::ModuleRejected { name, log, .. } => {
                Error::PtxRejected { symbol, log: format!("{name} {log}{}", driver_note()) }
            }
            cust::Error::Nul { .. } => Error::PtxRejected { symbol, log: error.to_string() },
            error => error.into(),
        })?;
        let function = module.get_function(symbol)?;
        if entry.shared_bytes > DEFAULT_SHARED_BYTES {
            function.set_max_dynamic_shared_bytes(entry.shared_bytes)?;
        }
        if entry.max_cluster > EVERY_CLUSTER {
            function.set_attribute(FunctionAttribute::NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
        }
        tracing::debug!(ptx_bytes = text.len(), shared_bytes = entry.shared_bytes, "kernel loaded");
        Ok(function)
    }
}

/// What PTX a driver takes is a matter of its version.
fn driver_note() -> String {
    cust::load()
        .map_or_else(|_| String::new(), |driver| format!(" (the driver supports CUDA {})", version(driver.version())))
}

/// Whether what is queued on the stream is written down instead of run, by whomever.
pub(super) fn is_captured(stream: &Stream) -> Result<bool> {
    Ok(!stream.is_legacy() && stream.capture_status()? != CaptureStatus::NONE)
}
