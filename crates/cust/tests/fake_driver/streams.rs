//! Streams, events, capture and graphs.

use crate::*;
use std::collections::BTreeMap;
use std::sync::MutexGuard;
use std::thread::ThreadId;

/// What a graph is made of.
#[derive(Clone)]
pub(crate) enum Node {
    Launch(String),
    Allocation(usize),
    Free,
    Copy,
    Fill,
}

struct Stream {
    flags: c_uint,
    capture: Option<Capture>,
}

struct Capture {
    mode: c_uint,
    thread: ThreadId,
    nodes: Vec<Node>,
    spoilt: bool,
}

struct State {
    streams: BTreeMap<usize, Stream>,
    /// Flags, and when each was recorded.
    events: BTreeMap<usize, (c_uint, Option<u32>)>,
    /// The handle that the next stream or event gets.
    next: usize,
    /// Recorded so far.
    recorded: u32,
}

static STATE: Mutex<State> =
    Mutex::new(State { streams: BTreeMap::new(), events: BTreeMap::new(), next: 5, recorded: 0 });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().expect("no panic")
}

const DISABLE_TIMING: c_uint = 2;
const GLOBAL: c_uint = 0;
const RELAXED: c_uint = 2;

/// What a call does that may wait for the device: it spoils the captures that forbid it, and fails.
pub(crate) fn refuse_in_capture() -> Result<(), u32> {
    let here = std::thread::current().id();
    let mut refused = false;
    for capture in state().streams.values_mut().filter_map(|stream| stream.capture.as_mut()) {
        if capture.mode == GLOBAL || capture.mode != RELAXED && capture.thread == here {
            capture.spoilt = true;
            refused = true;
        }
    }
    if refused { Err(CAPTURE_UNSUPPORTED) } else { Ok(()) }
}

/// Whether work on `stream` was written down instead of run. Work on the default stream spoils captures of the streams that are
/// ordered with it.
pub(crate) fn captured(stream: usize, node: impl FnOnce() -> Node) -> Result<bool, u32> {
    let mut state = state();
    if stream == 0 {
        let mut spoilt = false;
        for stream in state.streams.values_mut().filter(|stream| stream.flags == 0) {
            if let Some(capture) = &mut stream.capture {
                capture.spoilt = true;
                spoilt = true;
            }
        }
        return if spoilt { Err(CAPTURE_IMPLICIT) } else { Ok(false) };
    }
    match state.streams.get_mut(&stream).and_then(|stream| stream.capture.as_mut()) {
        Some(capture) if capture.spoilt => Err(CAPTURE_INVALIDATED),
        Some(capture) => {
            capture.nodes.push(node());
            Ok(true)
        }
        None => Ok(false),
    }
}

driver! {
    fn cuStreamCreateWithPriority(stream: *mut usize, flags: c_uint, priority: c_int) {
        need_context!();
        let mut state = state();
        *stream = state.next;
        state.next += 1;
        state.streams.insert(*stream, Stream { flags, capture: None });
        log(format!("create stream {} flags {flags} priority {priority}", *stream));
        0
    }
    /// What cudarc calls.
    fn cuStreamCreate(stream: *mut usize, flags: c_uint) { cuStreamCreateWithPriority(stream, flags, 0) }
    fn cuStreamDestroy_v2(stream: usize) {
        need_context!();
        if state().streams.remove(&stream).is_none() {
            return INVALID_HANDLE;
        }
        log("destroy stream".into());
        0
    }
    fn cuStreamQuery(_stream: usize) { need_context!(); if setting("FAKE_BUSY", 0) == 1 { NOT_READY } else { 0 } }
    fn cuStreamSynchronize(stream: usize) {
        need_context!();
        if state().streams.get(&stream).is_some_and(|stream| stream.capture.is_some()) {
            return CAPTURE_UNSUPPORTED;
        }
        get!(refuse_in_capture());
        0
    }
    fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) {
        need_context!();
        assert_eq!(flags, 0);
        log(format!("stream {stream} waits for event {event}"));
        0
    }
    fn cuStreamBeginCapture_v2(stream: usize, mode: c_uint) {
        need_context!();
        let mut state = state();
        let Some(stream) = state.streams.get_mut(&stream) else { return CAPTURE_UNSUPPORTED };
        if stream.capture.is_some() {
            return ILLEGAL_STATE;
        }
        stream.capture = Some(Capture { mode, thread: std::thread::current().id(), nodes: Vec::new(), spoilt: false });
        log(format!("begin capture mode {mode} flags {}", stream.flags));
        0
    }
    fn cuStreamIsCapturing(stream: usize, status: *mut c_uint) {
        need_context!();
        let state = state();
        let capture = state.streams.get(&stream).and_then(|stream| stream.capture.as_ref());
        *status = capture.map_or(0, |capture| if capture.spoilt { 2 } else { 1 });
        0
    }
    fn cuStreamEndCapture(stream: usize, graph: *mut *mut Vec<Node>) {
        need_context!();
        *graph = std::ptr::null_mut();
        let mut state = state();
        let Some(stream) = state.streams.get_mut(&stream) else { return ILLEGAL_STATE };
        let Some(capture) = stream.capture.take_if(|capture| {
            capture.mode == RELAXED || capture.thread == std::thread::current().id()
        }) else {
            return if stream.capture.is_some() { CAPTURE_WRONG_THREAD } else { ILLEGAL_STATE };
        };
        log(format!("end capture of {} nodes", capture.nodes.len()));
        if capture.spoilt {
            return CAPTURE_INVALIDATED;
        }
        *graph = Box::into_raw(Box::new(capture.nodes));
        0
    }
    fn cuGraphGetNodes(graph: *mut Vec<Node>, nodes: *mut c_void, count: *mut usize) {
        assert!(nodes.is_null());
        *count = (*graph).len();
        0
    }
    fn cuGraphInstantiateWithFlags(exec: *mut *mut Vec<Node>, graph: *mut Vec<Node>, flags: u64) {
        need_context!();
        assert_eq!(flags, 0);
        *exec = Box::into_raw(Box::new((*graph).clone()));
        0
    }
    fn cuGraphDestroy(graph: *mut Vec<Node>) { drop(Box::from_raw(graph)); log("destroy graph".into()); 0 }
    fn cuGraphExecDestroy(exec: *mut Vec<Node>) { drop(Box::from_raw(exec)); log("destroy executable graph".into()); 0 }
    fn cuGraphLaunch(exec: *mut Vec<Node>, stream: usize) {
        need_context!();
        for node in &*exec {
            log(match node {
                Node::Launch(launch) => format!("replay on {stream}: {launch}"),
                Node::Allocation(bytes) => format!("replay on {stream}: allocate {bytes}"),
                Node::Free => format!("replay on {stream}: free"),
                Node::Copy => format!("replay on {stream}: copy"),
                Node::Fill => format!("replay on {stream}: fill"),
            });
        }
        0
    }
    fn cuEventCreate(event: *mut usize, flags: c_uint) {
        need_context!();
        let mut state = state();
        *event = state.next;
        state.next += 1;
        state.events.insert(*event, (flags, None));
        0
    }
    fn cuEventDestroy_v2(event: usize) { need_context!(); if state().events.remove(&event).is_some() { 0 } else { INVALID_HANDLE } }
    fn cuEventRecord(event: usize, stream: usize) {
        need_context!();
        let mut state = state();
        state.recorded += 1;
        let now = state.recorded;
        let Some((flags, recorded)) = state.events.get_mut(&event) else { return INVALID_HANDLE };
        *recorded = Some(now);
        log(format!("record event {event} flags {flags} on stream {stream}"));
        0
    }
    fn cuEventQuery(_event: usize) { need_context!(); if setting("FAKE_BUSY", 0) == 1 { NOT_READY } else { 0 } }
    fn cuEventSynchronize(_event: usize) { need_context!(); 0 }
    fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) {
        let state = state();
        let recorded = |event| match state.events.get(&event) {
            Some(&(flags, Some(recorded))) if flags & DISABLE_TIMING == 0 => Ok(recorded),
            _ => Err(INVALID_HANDLE),
        };
        *milliseconds = if get!(recorded(start)) <= get!(recorded(end)) { 1.5 } else { -1.5 };
        0
    }
}
