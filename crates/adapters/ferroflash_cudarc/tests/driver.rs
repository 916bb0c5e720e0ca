//! The functions on slices and streams of cudarc, against a driver that is a test fixture.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use cudarc::driver::sys::{CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError};
use fake::{count, log, with_driver};
use ferroflash::{Attention, Kernel, Layout, Operand, Shape, Strides, f16};
use ferroflash_cudarc::{Error, View, ViewMut, device, forward, plan};
use std::sync::Arc;

#[path = "../../../cust/tests/support/mod.rs"]
mod fake;
#[path = "../../support/symbols.rs"]
mod symbols;

const SHAPE: Shape = Shape::new(2, 5, 4, 64);
const ELEMENTS: usize = 2 * 5 * 4 * 64;

fn slices(stream: &Arc<CudaStream>) -> [CudaSlice<f16>; 4] {
    [0; 4].map(|_| stream.alloc_zeros::<f16>(ELEMENTS).unwrap())
}

fn contiguous(slice: &CudaSlice<f16>) -> View<'_, f16> {
    View::contiguous(slice, SHAPE, Layout::Bshd).unwrap()
}

fn v2() -> Attention<'static> {
    Attention::new().with_kernel(Kernel::V2)
}

fn address(slice: &CudaSlice<f16>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

/// The lines of the log from `start` on that are no copies and no allocations: what a stream was told.
fn told(start: usize) -> Vec<String> {
    let said = |line: &String| ["stream", "record", "launch", "load", "map"].iter().any(|word| line.starts_with(word));
    log().into_iter().skip(start).filter(said).collect()
}

/// A stream of cudarc's own waits for the writers of the inputs, and for readers and writers of the outputs, before the launch; behind it
/// the use is recorded in every slice.
#[test]
fn guards_are_held_over_the_launch() {
    with_driver(&[], &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let [q, k, v, mut out] = slices(&stream);
        let mut lse = stream.alloc_zeros::<f32>(2 * 4 * 5).unwrap();
        let prepared = plan(
            &v2().with_lse(true),
            &stream,
            contiguous(&q),
            contiguous(&k),
            contiguous(&v),
            &mut ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap(),
        );
        device(&context).unwrap().prepare(prepared.unwrap()).unwrap();
        let expected = format!("param {:#x}", address(&q));
        let start = log().len();
        let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        forward(&v2(), &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, Some(&mut lse)).unwrap();
        let lines = told(start);
        let launch = lines.iter().position(|line| line.starts_with("launch v2_f16_d64 ")).expect("a launch");
        assert!(lines[launch].contains("stream 5 ") && lines[launch].ends_with(&expected), "{lines:?}");
        let (before, after) = (&lines[..launch], &lines[launch + 1..]);
        // One event of each input; a reader's and a writer's of out and lse.
        assert_eq!(before.iter().filter(|line| line.starts_with("stream 5 waits for event")).count(), 3 + 2 + 2);
        assert_eq!(after.iter().filter(|line| line.starts_with("record event")).count(), 3 + 2, "{lines:?}");
        assert!(after.iter().all(|line| line.ends_with("on stream 5")), "{after:?}");
        assert_eq!(before.len() + after.len() + 1, lines.len());
    });
}

/// The default stream, the one of the thread, and those that wait for nothing else.
#[test]
fn every_stream_is_taken() {
    with_driver(&[], &[], || {
        let context = CudaContext::new(0).unwrap();
        for (stream, handle) in [
            (context.default_stream(), "stream 0 "),
            (context.per_thread_stream(), "stream 2 "),
            (context.new_stream().unwrap(), "stream 5 "),
        ] {
            let [q, k, v, mut out] = slices(&stream);
            let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
            forward(&v2(), &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, None).unwrap();
            let launch = log().into_iter().rfind(|line| line.starts_with("launch")).unwrap();
            assert!(launch.contains(handle), "{launch}");
        }
    });
}

/// Interleaved q, k and v in one slice, read where they are: v3 tells the copy engine their addresses and strides.
#[test]
fn views_with_strides() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let qkv = stream.alloc_zeros::<f16>(3 * ELEMENTS).unwrap();
        let mut out = stream.alloc_zeros::<f16>(ELEMENTS).unwrap();
        let strides = Strides::new(5 * 3 * 4 * 64, 3 * 4 * 64, 64);
        let parts = [0, 1, 2].map(|i| qkv.slice(i * 4 * 64..));
        let [q, k, v] = [&parts[0], &parts[1], &parts[2]].map(|part| View::new(part, SHAPE, strides));
        let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bhsd).unwrap();
        forward(&Attention::new().causal(), &stream, q, k, v, &mut o, None).unwrap();
        assert_eq!(count("launch v3_f16_d64 "), 1);
        let maps: Vec<_> = log().into_iter().filter(|line| line.starts_with("map")).collect();
        for i in 0..3 {
            let start = format!("address {:#x} ", address(&qkv) + i * 4 * 64 * 2);
            let map = maps.iter().find(|map| map.contains(&start)).unwrap_or_else(|| panic!("{start}: {maps:?}"));
            for bytes in [64 * 2, 3 * 4 * 64 * 2, 5 * 3 * 4 * 64 * 2] {
                assert!(map.contains(&bytes.to_string()), "{map}");
            }
        }
    });
}

#[test]
fn slices_that_are_too_short() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let [q, k, v, mut out] = slices(&stream);
        let too_small = |result: Result<(), Error>, expected: u64, found: u64| match result {
            Err(Error::Ferroflash(ferroflash::Error::StorageTooSmall { needed, available, .. })) => {
                assert_eq!((needed, available), (expected, found));
            }
            other => panic!("{other:?}"),
        };
        let short = k.slice(1..);
        let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        let k_view = View::contiguous(&short, SHAPE, Layout::Bshd).unwrap();
        let result = forward(&v2(), &stream, contiguous(&q), k_view, contiguous(&v), &mut o, None);
        too_small(result, ELEMENTS as u64, ELEMENTS as u64 - 1);
        let mut lse = stream.alloc_zeros::<f32>(2 * 4 * 5 - 1).unwrap();
        let result = forward(&v2(), &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, Some(&mut lse));
        too_small(result, 40, 39);
        let mut part = out.slice_mut(..ELEMENTS - 1);
        let mut o = ViewMut::contiguous(&mut part, SHAPE, Layout::Bshd).unwrap();
        let result = forward(&v2(), &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, None);
        too_small(result, ELEMENTS as u64, ELEMENTS as u64 - 1);
        assert_eq!(count("launch"), 0);
    });
}

/// What ferroflash refuses arrives as its own error.
#[test]
fn bad_input() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let [q, k, v, mut out] = slices(&stream);
        let fewer_rows = View::contiguous(&v, Shape { rows: 4, ..SHAPE }, Layout::Bshd).unwrap();
        let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        let error = forward(&v2(), &stream, contiguous(&q), contiguous(&k), fewer_rows, &mut o, None).unwrap_err();
        assert_eq!(error.to_string(), "v has 4 rows, k has 5; they must be equal");
        assert_eq!(count("launch"), 0);
    });
}

#[test]
fn contexts() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
        let stream = first.new_stream().unwrap();
        let [q, k, v, mut out] = slices(&stream);
        let [other, _, _, mut other_out] = slices(&second.default_stream());
        let mut other_lse = second.default_stream().alloc_zeros::<f32>(2 * 4 * 5).unwrap();
        let call = |q, k, v, out: &mut CudaSlice<f16>, lse: Option<&mut CudaSlice<f32>>| {
            let mut o = ViewMut::contiguous(out, SHAPE, Layout::Bshd).unwrap();
            let result = match lse {
                Some(lse) => forward(&v2(), &stream, contiguous(q), contiguous(k), contiguous(v), &mut o, Some(lse)),
                None => forward(&v2(), &stream, contiguous(q), contiguous(k), contiguous(v), &mut o, None),
            };
            match result {
                Err(Error::ContextMismatch { operand, found: 1, expected: 0 }) => operand,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(call(&other, &k, &v, &mut out, None), Operand::Q);
        assert_eq!(call(&q, &other, &v, &mut out, None), Operand::K);
        assert_eq!(call(&q, &k, &other, &mut out, None), Operand::V);
        assert_eq!(call(&q, &k, &v, &mut other_out, None), Operand::Out);
        assert_eq!(call(&q, &k, &v, &mut out, Some(&mut other_lse)), Operand::Lse);

        // A second handle of the same context is the same context.
        let again = CudaContext::new(0).unwrap().default_stream();
        let [q, k, v, mut out] = slices(&again);
        let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        forward(&v2(), &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, None).unwrap();
        assert_eq!((device(&first).unwrap(), count("launch")), (device(again.context()).unwrap(), 1));
    });
}

#[test]
fn contexts_beside_the_primary_one() {
    with_driver(&[], &[], || {
        let primary = CudaContext::new(0).unwrap();
        // SAFETY: the handle is a live context of GPU 0, and what would destroy it, the end of the value, never comes.
        let foreign = unsafe { CudaContext::from_raw_context(0, primary.cu_device(), primary.cu_ctx()) }.unwrap();
        std::mem::forget(foreign.clone());
        let error = device(&foreign).unwrap_err();
        assert!(matches!(error, Error::NotPrimary { ordinal: 0 }), "{error:?}");
        let stream = foreign.default_stream();
        let [q, k, v, mut out] = slices(&stream);
        let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        let result = forward(&v2(), &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, None);
        assert!(matches!(result, Err(Error::NotPrimary { .. })), "{result:?}");
    });
}

/// cudarc keeps what went wrong where there was no result to return; whoever is next reports it.
#[test]
fn errors_that_cudarc_kept() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let [q, k, v, mut out] = slices(&stream);
        let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        stream.context().record_err::<()>(Err(DriverError(CUresult::CUDA_ERROR_INVALID_HANDLE)));
        let result = forward(&v2(), &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, None);
        assert!(matches!(result, Err(Error::Cudarc(DriverError(CUresult::CUDA_ERROR_INVALID_HANDLE)))), "{result:?}");
        assert_eq!(count("launch"), 0);
        forward(&v2(), &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, None).unwrap();
    });
}

/// cudarc's own capture: the kernel has to be there, and the graph launches what was captured.
#[test]
fn capture_by_cudarc() {
    with_driver(&[], &[], || {
        let context = CudaContext::new(0).unwrap();
        // SAFETY: one stream is all that works on these slices.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let [q, k, v, mut out] = slices(&stream);
        let mut o = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        let attention = Attention::new().causal();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

        stream.begin_capture(mode).unwrap();
        let result = forward(&attention, &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, None);
        assert!(
            matches!(result, Err(Error::Ferroflash(ferroflash::Error::KernelNotLoaded { symbol: "v3_f16_d64" }))),
            "{result:?}"
        );
        drop(stream.end_capture(cudarc::driver::sys::CUgraphInstantiate_flags(0)));

        let plan = plan(&attention, &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o).unwrap();
        device(&context).unwrap().prepare(&plan).unwrap();
        stream.begin_capture(mode).unwrap();
        forward(&attention, &stream, contiguous(&q), contiguous(&k), contiguous(&v), &mut o, None).unwrap();
        let graph = stream.end_capture(cudarc::driver::sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
        assert_eq!(count("launch"), 0);
        graph.launch().unwrap();
        graph.launch().unwrap();
        assert_eq!(count("replay on 5: launch v3_f16_d64 "), 2);
    });
}

/// Linking this crate and cudarc defines no symbol of the driver.
#[test]
fn no_symbols_of_the_driver() {
    symbols::assert_none_of_the_driver("ferroflash_cudarc");
}
