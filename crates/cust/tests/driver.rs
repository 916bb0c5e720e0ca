//! The crate against a driver that is a test fixture: what is asked of it, and what its answers become.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use cust::sys::{
    CUresult, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle, REQUIRED,
};
use cust::{
    CaptureMode, CaptureStatus, Context, Device, DeviceAttribute, DeviceBuffer, Error, Event, EventFlags,
    FunctionAttribute, JitOptions, Launch, MemoryPool, Module, Stream, StreamFlags, TensorMapSpec, Version, launch,
};
use support::{count, log, with_driver};

mod support;

fn context(ordinal: u32) -> Context {
    Context::new(Device::get(ordinal).unwrap()).unwrap()
}

fn module(context: &Context) -> Module {
    Module::from_ptx(context, ".visible .entry double(", &JitOptions::default()).unwrap()
}

fn last() -> String {
    log().pop().unwrap()
}

#[test]
fn versions() {
    with_driver(&[], &[("FAKE_VERSION", "11030")], || {
        let error = Device::count().unwrap_err();
        assert_eq!(error.to_string(), "the CUDA driver supports CUDA 11.3; at least CUDA 11.4 is needed");
        assert!(matches!(error, Error::DriverTooOld { found: Version { major: 11, minor: 3 }, .. }));
    });
}

/// Every function that is required and missing is named, at once.
#[test]
fn missing_functions() {
    with_driver(&["lacks_pools"], &[], || {
        assert_eq!(Device::get(0).unwrap_err(), Error::MissingSymbols { symbols: vec!["cuMemPoolCreate"] });
        assert!(REQUIRED.contains(&"cuMemPoolCreate"));
    });
}

#[test]
fn devices() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        assert_eq!(cust::load().unwrap().version(), Version { major: 13, minor: 0 });
        assert_eq!(Device::count().unwrap(), 2);
        let (device, peer) = (Device::get(0).unwrap(), Device::get(1).unwrap());
        assert_eq!((device.name().unwrap().as_str(), device.total_memory().unwrap()), ("Fake GPU", 1 << 30));
        assert_eq!(device.attribute(DeviceAttribute::MULTIPROCESSOR_COUNT).unwrap(), 132);
        assert!(device.can_access_peer(peer).unwrap() && !device.can_access_peer(device).unwrap());
        assert_ne!(device, peer);
        for ordinal in [2, u32::MAX] {
            assert_eq!(Device::get(ordinal).unwrap_err().result(), Some(CUresult::INVALID_DEVICE));
        }
        // An attribute that is newer than the driver.
        let error = device.attribute(cust::sys::CUdevice_attribute(9999)).unwrap_err();
        assert_eq!(error.to_string(), "cuDeviceGetAttribute failed: CUDA_ERROR_FAKE (1): words of the driver");
    });
}

/// A code that the driver has no name for is told by its number.
#[test]
fn codes_without_a_name() {
    with_driver(&[], &[("FAKE_SYNCHRONIZE", "9999")], || {
        let error = context(0).synchronize().unwrap_err();
        assert_eq!(error.to_string(), "cuCtxSynchronize failed: CUresult 9999 (9999): CUresult 9999");
    });
}

/// The context of a call is popped when it ends, whatever came of it, on every thread.
#[test]
fn the_current_context_stays() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let (here, there) = (context(0), context(1));
        let current = || Context::current().unwrap();
        assert!(current().is_null());
        let entered = here.enter().unwrap();
        assert_eq!(current(), here.as_raw());
        {
            let _inner = there.enter().unwrap();
            assert_eq!(current(), there.as_raw());
        }
        assert_eq!(current(), here.as_raw());
        there.synchronize().unwrap();
        let stream = Stream::new(&there, StreamFlags::DEFAULT, None).unwrap();
        assert!(module(&there).get_function("other").is_err());
        std::thread::scope(|scope| scope.spawn(|| assert!(Context::current().unwrap().is_null())).join().unwrap());
        drop((stream, there));
        assert_eq!(current(), here.as_raw());
        drop(entered);
        assert!(current().is_null());
        drop(here);
        assert_eq!((count("retain"), count("release")), (2, 2));
    });
}

#[test]
fn streams_and_events() {
    with_driver(&[], &[], || {
        let context = context(0);
        assert_eq!(context.stream_priorities().unwrap(), (-5, 0));
        let stream = Stream::new(&context, StreamFlags::NON_BLOCKING, Some(-3)).unwrap();
        assert_eq!(last(), format!("create stream {} flags 1 priority -3", stream.as_raw().addr()));
        let error = Stream::new(&context, StreamFlags::DEFAULT, Some(7)).unwrap_err();
        assert_eq!(error, Error::Priority { found: 7, greatest: -5, least: 0 });
        assert!(stream.is_done().unwrap());

        let event = |flags| Event::new(&context, flags).unwrap();
        let (start, end) = (event(EventFlags::DEFAULT), event(EventFlags::BLOCKING_SYNC));
        start.record(&stream).unwrap();
        end.record(&stream).unwrap();
        assert!(last().contains("flags 1 "));
        stream.wait_event(&end).unwrap();
        assert!(last().contains("waits for event"));
        end.synchronize().unwrap();
        assert!(end.is_done().unwrap());
        assert_eq!(end.elapsed_since(&start).unwrap().as_micros(), 1500);
        assert_eq!(start.elapsed_since(&end).unwrap_err(), Error::EventOrder { milliseconds: -1.5 });
        let untimed = event(EventFlags::DISABLE_TIMING | EventFlags::BLOCKING_SYNC);
        untimed.record(&stream).unwrap();
        assert!(last().contains("flags 3 "));
        assert_eq!(untimed.elapsed_since(&start).unwrap_err().result(), Some(CUresult::INVALID_HANDLE));
    });
}

#[test]
fn work_that_is_not_done() {
    with_driver(&[], &[("FAKE_BUSY", "1")], || {
        let context = context(0);
        assert!(!Stream::legacy(&context).is_done().unwrap());
        assert!(!Event::new(&context, EventFlags::DEFAULT).unwrap().is_done().unwrap());
    });
}

/// A stream is destroyed once, by its last owner; one of somebody else never.
#[test]
fn ownership_of_streams() {
    with_driver(&[], &[], || {
        let context = context(0);
        let stream = Stream::new(&context, StreamFlags::DEFAULT, None).unwrap();
        let clone = stream.clone();
        // SAFETY: `stream` outlives it.
        drop(unsafe { Stream::from_raw(&context, stream.as_raw()) });
        drop(stream);
        assert_eq!(count("destroy stream"), 0);
        let raw = clone.into_raw();
        assert_eq!(count("destroy stream"), 0);
        // SAFETY: nobody else owns it.
        let owned = unsafe { Stream::from_raw_owned(&context, raw) };
        drop(context);
        // It holds the context that it is destroyed in.
        assert_eq!((count("destroy stream"), count("release")), (0, 0));
        drop(owned);
        assert_eq!((count("destroy stream"), count("release")), (1, 1));
    });
}

#[test]
fn modules() {
    with_driver(&[], &[("FAKE_REJECT", "bad")], || {
        let context = context(0);
        let options = JitOptions::default().with_max_registers(64).with_optimization_level(3).with_line_info(true);
        let module = Module::from_ptx(&context, ".visible .entry double(", &options).unwrap();
        assert_eq!(log()[log().len() - 4..], ["option 0 64", "option 7 3", "option 13 1", "load double"]);
        let error = Module::from_ptx(&context, ".visible .entry bad(", &options).unwrap_err();
        assert_eq!(error.to_string(), "the driver rejects the module: CUDA_ERROR_INVALID_PTX ptxas error: line 7");
        assert_eq!(error.result(), Some(CUresult::INVALID_PTX));
        let nul = Module::from_ptx(&context, ".entry a\0b(", &options).unwrap_err();
        assert_eq!(nul, Error::Nul { what: "PTX", position: 8 });
        assert_eq!(module.get_function("other").unwrap_err().result(), Some(CUresult::NOT_FOUND));
        assert!(matches!(module.get_function("a\0"), Err(Error::Nul { .. })));

        let function = module.get_function("double").unwrap();
        // A function keeps its module loaded.
        drop(module);
        assert_eq!(count("unload"), 0);
        assert_eq!(function.attribute(FunctionAttribute::NUM_REGS).unwrap(), 104);
        function.set_max_dynamic_shared_bytes(200 << 10).unwrap();
        assert_eq!(last(), format!("shared double {}", 200 << 10));
        for bytes in [228 << 10, u32::MAX] {
            assert_eq!(
                function.set_max_dynamic_shared_bytes(bytes).unwrap_err().result(),
                Some(CUresult::INVALID_VALUE)
            );
        }
        assert_eq!(function.max_active_blocks(128, 0).unwrap(), 16);
        assert_eq!(function.max_active_blocks(128, 100 << 10).unwrap(), 2);
        drop(function);
        assert_eq!(last(), "unload double");

        // SAFETY: what the fixture takes for a cubin, and what it does not.
        let [good, bad] = [b"cubin sum\0", b"ELF image\0"].map(|bytes| unsafe { Module::from_cubin(&context, bytes) });
        assert!(good.unwrap().get_function("sum").is_ok());
        assert!(matches!(bad, Err(Error::ModuleRejected { result: CUresult::INVALID_IMAGE, .. })));
    });
}

#[test]
fn launches() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let context = context(0);
        let double = module(&context).get_function("double").unwrap();
        let stream = Stream::new(&context, StreamFlags::DEFAULT, None).unwrap();
        let data = DeviceBuffer::from_slice(&context, &[1.0f32, 2.0]).unwrap();
        // SAFETY: the fixture reads the first parameter, an address.
        unsafe { launch!(double<<<3, 128, 64, stream>>>(data.as_device_ptr(), data.len() as u32)) }.unwrap();
        let (stream_at, address) = (stream.as_raw().addr(), data.as_device_ptr().as_raw());
        assert_eq!(last(), format!("launch double grid 3 block 128 shared 64 stream {stream_at} param {address:#x}"));

        let launch = Launch::new(&double, &stream).grid((8, 2)).block([32, 4, 1]).shared_bytes(16).cluster(4);
        assert_eq!(launch.max_active_clusters().unwrap(), 33);
        // SAFETY: as above.
        unsafe { launch.programmatic_dependent(true).run((data.as_device_ptr(),)) }.unwrap();
        let expected = "launch double grid [8, 2, 1] block [32, 4, 1] shared 16 cluster [4, 1, 1] programmatic 1 ";
        assert!(last().starts_with(expected), "{}", last());
        // SAFETY: as above.
        unsafe { Launch::new(&double, &stream).grid(7).cooperative(true).run((data.as_device_ptr(),)) }.unwrap();
        assert!(
            last().starts_with("launch double grid [7, 1, 1] block [1, 1, 1] shared 0 cooperative 1 "),
            "{}",
            last()
        );

        // SAFETY: neither is launched.
        let refused = |launch: Launch<'_>| unsafe { launch.run((0u64,)) }.unwrap_err();
        assert_eq!(
            refused(Launch::new(&double, &stream).grid(0)),
            Error::EmptyLaunch { grid: [0, 1, 1], block: [1; 3], cluster: [1; 3] }
        );
        let elsewhere = Stream::legacy(&Context::new(Device::get(1).unwrap()).unwrap());
        assert_eq!(refused(Launch::new(&double, &elsewhere)), Error::OtherContext { what: "the stream" });
        assert_eq!(count("launch"), 3);
    });
}

#[test]
fn a_driver_without_clusters() {
    with_driver(&["lacks_clusters"], &[("FAKE_VERSION", "11040")], || {
        let context = context(0);
        let double = module(&context).get_function("double").unwrap();
        let stream = Stream::legacy(&context);
        let launch = Launch::new(&double, &stream);
        // SAFETY: the fixture reads the first parameter, a number.
        unsafe { launch.run((0u64,)) }.unwrap();
        // SAFETY: as above.
        let error = unsafe { launch.cluster(2).grid(2).run((0u64,)) }.unwrap_err();
        assert_eq!(error.to_string(), "the CUDA driver lacks cuLaunchKernelEx");
        assert!(matches!(launch.max_active_clusters(), Err(Error::MissingSymbols { .. })));
    });
}

#[test]
fn buffers() {
    with_driver(&[], &[], || {
        let context = context(0);
        let mut buffer = DeviceBuffer::<u32>::zeroed(&context, 3).unwrap();
        assert_eq!(buffer.to_vec().unwrap(), [0; 3]);
        buffer.copy_from(&[1, 2, 3]).unwrap();
        let mut back = [0; 3];
        buffer.copy_to(&mut back).unwrap();
        assert_eq!(back, [1, 2, 3]);
        assert_eq!(buffer.copy_from(&[1]).unwrap_err(), Error::CopyLength { from: 1, to: 3 });
        assert_eq!(buffer.copy_to(&mut [0; 4]).unwrap_err(), Error::CopyLength { from: 3, to: 4 });

        let stream = Stream::new(&context, StreamFlags::NON_BLOCKING, None).unwrap();
        let mut ordered = DeviceBuffer::<u32>::uninitialized_async(&stream, 3).unwrap();
        ordered.copy_from_buffer(&buffer).unwrap();
        assert_eq!(ordered.to_vec().unwrap(), [1, 2, 3]);
        // SAFETY: the fixture copies at once.
        unsafe {
            ordered.copy_from_async(&[7, 8, 9], &stream).unwrap();
            ordered.copy_to_async(&mut back, &stream).unwrap();
        }
        assert_eq!(back, [7, 8, 9]);
        assert_eq!((count("malloc 12"), count("free")), (1, 0));
        // The buffer keeps the stream that it is freed on.
        drop(stream);
        assert_eq!(count("destroy stream"), 0);
        drop((buffer, ordered));
        assert_eq!((count("free"), count("destroy stream")), (1, 1));

        let nothing = DeviceBuffer::<u32>::from_slice(&context, &[]).unwrap();
        assert!(nothing.is_empty() && nothing.to_vec().unwrap().is_empty() && nothing.as_device_ptr().as_raw() == 0);
        let error = DeviceBuffer::<u32>::uninitialized(&context, usize::MAX / 2).unwrap_err();
        assert_eq!(error, Error::TooLarge { elements: usize::MAX / 2, bytes: 4 });
        let error = DeviceBuffer::<u8>::uninitialized(&context, 1 << 31).unwrap_err();
        assert_eq!(error.result(), Some(CUresult::OUT_OF_MEMORY));
    });
}

#[test]
fn pools() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let (context, other) = (context(0), context(1));
        let pool = MemoryPool::new(&context).unwrap();
        pool.set_release_threshold(u64::MAX).unwrap();
        assert_eq!(last(), "pool attribute 4 0xffffffffffffffff");
        pool.allow_access(other.device()).unwrap();
        assert_eq!(last(), "pool access 1");
        let stream = Stream::new(&context, StreamFlags::DEFAULT, None).unwrap();
        let buffer = DeviceBuffer::<u64>::uninitialized_from_pool(&pool, &stream, 16).unwrap();
        assert_eq!((pool.used_bytes().unwrap(), pool.reserved_bytes().unwrap()), (128, 128));
        drop(buffer);
        assert_eq!((pool.used_bytes().unwrap(), pool.reserved_bytes().unwrap()), (0, 128));
        pool.trim_to(0).unwrap();
        assert_eq!(pool.reserved_bytes().unwrap(), 0);
        let error = pool.allocate(1, &Stream::legacy(&other)).unwrap_err();
        assert_eq!(error, Error::OtherContext { what: "the stream" });
        drop(pool);
        assert_eq!(last(), "destroy pool");
    });
}

#[test]
fn copies_between_gpus() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let (here, there) = (context(0), context(1));
        here.enable_peer_access(&there).unwrap();
        // Again: it is allowed already.
        here.enable_peer_access(&there).unwrap();
        let from = DeviceBuffer::from_slice(&there, &[1u16, 2, 3]).unwrap();
        let mut to = DeviceBuffer::<u16>::zeroed(&here, 3).unwrap();
        to.copy_from_buffer(&from).unwrap();
        assert_eq!((to.to_vec().unwrap(), last()), (vec![1, 2, 3], "peer copy 0xc1 to 0xc0: 6".to_owned()));
        let mut short = DeviceBuffer::<u16>::zeroed(&here, 2).unwrap();
        assert_eq!(short.copy_from_buffer(&from).unwrap_err(), Error::CopyLength { from: 3, to: 2 });
        // SAFETY: refused before anything is copied.
        let error = unsafe { to.copy_from_buffer_async(&from, &Stream::legacy(&there)) }.unwrap_err();
        assert_eq!(error, Error::OtherContext { what: "the stream" });
    });
}

#[test]
fn gpus_that_do_not_reach_each_other() {
    with_driver(&[], &[("FAKE_GPUS", "2"), ("FAKE_PEERS", "0")], || {
        let (here, there) = (context(0), context(1));
        assert!(!here.device().can_access_peer(there.device()).unwrap());
        let error = here.enable_peer_access(&there).unwrap_err();
        assert_eq!(error.result(), Some(CUresult::PEER_ACCESS_UNSUPPORTED));
    });
}

#[test]
fn graphs() {
    with_driver(&[], &[], || {
        let context = context(0);
        let double = module(&context).get_function("double").unwrap();
        let stream = Stream::new(&context, StreamFlags::NON_BLOCKING, None).unwrap();
        let graph = stream
            .capture(CaptureMode::GLOBAL, || {
                assert_eq!(stream.capture_status()?, CaptureStatus::ACTIVE);
                // SAFETY: nothing runs before the graph does, and the fixture reads the first parameter.
                unsafe { launch!(double<<<1, 32, 0, stream>>>(0u64)) }
            })
            .unwrap();
        assert_eq!((graph.node_count().unwrap(), count("launch")), (1, 0));
        let exec = graph.instantiate().unwrap();
        drop(graph);
        let legacy = Stream::legacy(&context);
        // SAFETY: the module is loaded.
        unsafe { exec.launch(&legacy) }.unwrap();
        assert!(last().starts_with("replay on 0: launch double "), "{}", last());

        assert_eq!(legacy.begin_capture(CaptureMode::RELAXED).unwrap_err(), Error::CaptureOfDefaultStream);
        assert_eq!(stream.end_capture().unwrap_err().result(), Some(CUresult(401)));
    });
}

/// A capture ends with its closure, however that ends; what spoils it is told.
#[test]
fn captures_end() {
    with_driver(&[], &[], || {
        let context = context(0);
        let stream = Stream::new(&context, StreamFlags::DEFAULT, None).unwrap();
        let none = || assert_eq!(stream.capture_status().unwrap(), CaptureStatus::NONE);
        let error = stream.capture(CaptureMode::THREAD_LOCAL, || context.synchronize()).unwrap_err();
        assert_eq!(error.result(), Some(CUresult::STREAM_CAPTURE_UNSUPPORTED));
        none();
        let error = stream
            .capture(CaptureMode::GLOBAL, || {
                // Work on the default stream would have to wait for the captured work.
                let refused = DeviceBuffer::<u8>::uninitialized_async(&Stream::legacy(&context), 1).unwrap_err();
                assert_eq!(refused.result(), Some(CUresult::STREAM_CAPTURE_IMPLICIT));
                assert_eq!(stream.capture_status()?, CaptureStatus::INVALIDATED);
                Ok::<_, Error>(())
            })
            .unwrap_err();
        assert_eq!(error.result(), Some(CUresult::STREAM_CAPTURE_INVALIDATED));
        none();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            stream.capture(CaptureMode::GLOBAL, || -> Result<(), Error> { panic!("on purpose") })
        }));
        assert!(panicked.is_err());
        none();
        assert_eq!((count("begin capture"), count("end capture")), (3, 3));
    });
}

#[test]
fn tensor_maps() {
    with_driver(&[], &[], || {
        let context = context(0);
        let spec = TensorMapSpec {
            data_type: CUtensorMapDataType::BFLOAT16,
            address: 0x1000,
            extents: &[64, 10, 2, 1],
            byte_strides: &[128, 1280, 2560],
            box_extents: &[64, 8, 1, 1],
            element_strides: &[1; 4],
            interleave: CUtensorMapInterleave::NONE,
            swizzle: CUtensorMapSwizzle::BYTES_128,
            l2_promotion: CUtensorMapL2promotion::BYTES_128,
            fill: CUtensorMapFloatOOBfill::NONE,
        };
        assert_eq!(spec.encode(&context).unwrap().0[0], 0x1000);
        let strides = TensorMapSpec { byte_strides: &[128], ..spec };
        assert_eq!(
            strides.encode(&context).unwrap_err(),
            Error::TensorMapRank { rank: 4, what: "strides", expected: 3, found: 1 }
        );
        let boxes = TensorMapSpec { box_extents: &[64], ..spec };
        assert!(matches!(boxes.encode(&context), Err(Error::TensorMapRank { what: "box extents", .. })));
        let elements = TensorMapSpec { element_strides: &[], ..spec };
        assert!(matches!(elements.encode(&context), Err(Error::TensorMapRank { what: "element strides", .. })));
        assert_eq!(count("map"), 1);
    });
}

#[test]
fn a_driver_without_tensor_maps() {
    with_driver(&["lacks_tensor_maps"], &[], || {
        let spec = TensorMapSpec {
            data_type: CUtensorMapDataType::FLOAT16,
            address: 0,
            extents: &[],
            byte_strides: &[],
            box_extents: &[],
            element_strides: &[],
            interleave: CUtensorMapInterleave::NONE,
            swizzle: CUtensorMapSwizzle::NONE,
            l2_promotion: CUtensorMapL2promotion::NONE,
            fill: CUtensorMapFloatOOBfill::NONE,
        };
        let error = spec.encode(&context(0)).unwrap_err();
        assert_eq!(error.to_string(), "the CUDA driver lacks cuTensorMapEncodeTiled");
    });
}
