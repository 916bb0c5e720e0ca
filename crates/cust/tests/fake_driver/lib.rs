//! A libcuda.so.1 without a GPU: keeps memory on the host, checks that a context is current wherever CUDA wants one, and writes
//! launches and whatever else tests ask about to the file that FAKE_LOG names. What it pretends to be comes from FAKE_* variables.
#![allow(non_snake_case, clippy::missing_safety_doc, reason = "the driver API")]

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io::Write;
use std::sync::Mutex;

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const INVALID_IMAGE: u32 = 200;
const INVALID_CONTEXT: u32 = 201;
const PEER_ACCESS_UNSUPPORTED: u32 = 217;
const INVALID_PTX: u32 = 218;
const INVALID_HANDLE: u32 = 400;
const ILLEGAL_STATE: u32 = 401;
const NOT_FOUND: u32 = 500;
const NOT_READY: u32 = 600;
const PEER_ACCESS_ALREADY_ENABLED: u32 = 704;
const CAPTURE_UNSUPPORTED: u32 = 900;
const CAPTURE_INVALIDATED: u32 = 901;
const CAPTURE_IMPLICIT: u32 = 906;
const CAPTURE_WRONG_THREAD: u32 = 908;

/// The handle of GPU 0's primary context; the others follow.
const CONTEXT: usize = 0xc0;

thread_local!(static CONTEXTS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) });

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn log(line: String) {
    let Some(path) = std::env::var_os("FAKE_LOG") else { return };
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("the log can be written");
    // One write, so that lines of several threads do not mix.
    file.write_all(format!("{line}\n").as_bytes()).expect("the log can be written");
}

fn current() -> usize {
    CONTEXTS.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

/// The number of the GPU whose primary context is current.
fn current_device() -> Option<usize> {
    current().checked_sub(CONTEXT).filter(|&device| device < setting("FAKE_GPUS", 1) as usize)
}

/// Returns an error where no primary context is current.
macro_rules! need_context {
    () => {
        if $crate::current_device().is_none() {
            return $crate::INVALID_CONTEXT;
        }
    };
}

/// Returns the error in `result`, a `Result<_, u32>`.
macro_rules! get {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(code) => return code,
        }
    };
}

macro_rules! driver {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$attribute])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
                // SAFETY: callers pass what the driver API asks for.
                #[allow(unused_unsafe, reason = "some functions only compute")]
                unsafe { $body }
            }
        )*
    };
}

mod memory;
mod modules;
mod streams;

static PEERS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

driver! {
    fn cuInit(_flags: c_uint) { if setting("FAKE_GPUS", 1) == 0 { 100 } else { 0 } }
    fn cuDriverGetVersion(version: *mut c_int) { *version = setting("FAKE_VERSION", 13000) as c_int; 0 }
    fn cuDeviceGetCount(count: *mut c_int) { *count = setting("FAKE_GPUS", 1) as c_int; 0 }
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        if !(0..setting("FAKE_GPUS", 1) as c_int).contains(&ordinal) {
            return 101;
        }
        *device = ordinal;
        0
    }
    fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) {
        let text = c"Fake GPU".to_bytes_with_nul();
        assert!(text.len() <= len as usize);
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len());
        0
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) { *bytes = setting("FAKE_MEMORY", 1 << 30) as usize; 0 }
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) {
        // Numbers of CUdevice_attribute.
        *value = match attribute {
            13 => 1_980_000,
            16 => 132,
            33 => 0x3b,
            34 | 50 => 0,
            38 => 50 << 20,
            75 => setting("FAKE_CAPABILITY", 90) as c_int / 10,
            76 => setting("FAKE_CAPABILITY", 90) as c_int % 10,
            97 => 227 * 1024,
            115 => setting("FAKE_POOLS", 1) as c_int,
            _ => return INVALID_VALUE,
        };
        0
    }
    fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) {
        *can = (device != peer && setting("FAKE_PEERS", 1) == 1).into();
        0
    }
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) { *context = CONTEXT + device as usize; log("retain".into()); 0 }
    fn cuDevicePrimaryCtxRelease_v2(_device: c_int) { log("release".into()); 0 }
    fn cuCtxGetCurrent(context: *mut usize) { *context = current(); 0 }
    fn cuCtxSetCurrent(context: usize) {
        CONTEXTS.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        0
    }
    fn cuCtxPushCurrent_v2(context: usize) { CONTEXTS.with_borrow_mut(|stack| stack.push(context)); 0 }
    fn cuCtxPopCurrent_v2(context: *mut usize) {
        match CONTEXTS.with_borrow_mut(Vec::pop) {
            Some(popped) => { *context = popped; 0 }
            None => INVALID_CONTEXT,
        }
    }
    fn cuCtxSynchronize() {
        need_context!();
        get!(streams::refuse_in_capture());
        log("synchronize".into());
        setting("FAKE_SYNCHRONIZE", 0) as u32
    }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) { need_context!(); (*least, *greatest) = (0, -5); 0 }
    fn cuCtxEnablePeerAccess(peer: usize, flags: c_uint) {
        need_context!();
        assert_eq!(flags, 0);
        if setting("FAKE_PEERS", 1) == 0 {
            return PEER_ACCESS_UNSUPPORTED;
        }
        let mut peers = PEERS.lock().expect("no panic");
        if peers.contains(&(current(), peer)) {
            return PEER_ACCESS_ALREADY_ENABLED;
        }
        peers.push((current(), peer));
        0
    }
    fn cuGetErrorName(code: u32, text: *mut *const c_char) {
        *text = match code {
            INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
            CAPTURE_INVALIDATED => c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
            _ => c"CUDA_ERROR_FAKE",
        }.as_ptr();
        // Codes that are newer than the driver have no name.
        if code == 9999 { *text = std::ptr::null(); INVALID_VALUE } else { 0 }
    }
    fn cuGetErrorString(code: u32, text: *mut *const c_char) {
        *text = c"words of the driver".as_ptr();
        if code == 9999 { INVALID_VALUE } else { 0 }
    }
}
