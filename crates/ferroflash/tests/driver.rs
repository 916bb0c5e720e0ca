//! CUDA devices against a driver that is a test fixture: what is asked of it, in which order, and what its failures become.
#![cfg(all(feature = "cuda", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use fake::{count, log, with_driver};
use ferroflash::{
    Attention, DType, Device, DeviceKind, Error, Kernel, Layout, Shape, StreamOptions, Tensor, TensorView, Variant,
    Version,
};

#[path = "../../cust/tests/support/mod.rs"]
mod fake;

const SHAPE: Shape = Shape::new(2, 5, 4, 64);

fn variant(symbol: &str) -> &'static Variant {
    ferroflash::VARIANTS.iter().find(|variant| variant.entry.symbol == symbol).unwrap()
}

#[test]
fn a_driver_that_is_too_old() {
    with_driver(&[], &[("FAKE_VERSION", "11030")], || {
        let error = Device::cuda(0).unwrap_err();
        assert!(matches!(
            error,
            Error::DriverTooOld { found: Version { major: 11, minor: 3 }, least: Version { major: 11, minor: 4 } }
        ));
        assert_eq!(error.to_string(), "the CUDA driver supports CUDA 11.3; at least CUDA 11.4 is needed");
    });
}

#[test]
fn a_driver_without_a_function() {
    with_driver(&["lacks_pools"], &[], || {
        let error = Device::cuda(0).unwrap_err();
        assert!(
            matches!(&error, Error::DriverLacksSymbols { symbols } if symbols[..] == ["cuMemPoolCreate"]),
            "{error:?}"
        );
    });
}

#[test]
fn no_gpu() {
    with_driver(&[], &[("FAKE_GPUS", "0")], || {
        assert!(matches!(Device::cuda(0), Err(Error::NoGpu)));
        assert!(Device::list().iter().all(|info| info.is_emulator()));
    });
}

#[test]
fn a_gpu_that_is_too_old() {
    with_driver(&[], &[("FAKE_CAPABILITY", "75")], || {
        let error = Device::cuda(0).unwrap_err();
        assert_eq!(error.to_string(), "Fake GPU has compute capability 7.5; the kernels need at least 8.0");
        assert_eq!(count("retain"), 0);
        // Listed all the same, and not the best device.
        assert_eq!(Device::list()[0].id(), "cuda:0");
        assert!(Device::best().map_or(true, |device| device.info().is_emulator()));
    });
}

#[test]
fn properties_and_identity() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        assert!(matches!(Device::cuda(2), Err(Error::NoSuchGpu { ordinal: 2, count: 2 })));
        let device = Device::open("cuda:1").unwrap();
        let info = device.info();
        assert_eq!((info.name.as_str(), info.id().as_str()), ("Fake GPU", "cuda:1"));
        assert_eq!(
            (info.multiprocessors, info.memory_bytes, info.max_shared_bytes_per_block),
            (132, 1 << 30, 227 * 1024)
        );
        assert_eq!((info.l2_bytes, info.clock_khz), (50 << 20, Some(1_980_000)));
        assert_eq!(info.pci_bus_id.as_deref(), Some("0000:3b:00.0"));
        let version = |major, minor| Version { major, minor };
        let kind = DeviceKind::Cuda { ordinal: 1, driver_version: version(13, 0), compute_capability: version(9, 0) };
        assert_eq!(info.kind, kind);
        assert!(device == Device::cuda(1).unwrap() && device != Device::cuda(0).unwrap());
        assert_eq!(Device::best().unwrap().info().id(), "cuda:0");
    });
}

/// Memory goes to the device and back; tensors and streams are given back when they are dropped.
#[test]
fn memory_and_lifetimes() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let data: Vec<f32> = (0..2 * 5 * 4 * 64).map(|i| i as f32).collect();
        let mut tensor = Tensor::from_slice(&device, &data, SHAPE, Layout::Bshd).unwrap();
        assert_eq!(tensor.to_vec::<f32>().unwrap(), data);
        tensor.fill_bytes(0xff).unwrap();
        assert!(tensor.to_vec::<f32>().unwrap().iter().all(|x| x.is_nan()));
        assert_eq!(device.memory().live_bytes, 10240);
        let stream = device.stream().unwrap();
        assert_eq!(device.time(&stream, || Ok(())).unwrap().as_micros(), 1500);
        let output = Attention::new().forward(&tensor.view(), &tensor.view(), &tensor.view()).unwrap();
        drop((tensor, output));
        assert_eq!((device.memory().live_bytes, count("release")), (0, 0));
        drop((stream, device));
        assert_eq!(log().last().unwrap(), "destroy stream");
    });
}

/// Dropping the last handle of a GPU unloads nothing and waits for nothing, and opening it again loads nothing again.
#[test]
fn devices_stay_open() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let compute = || {
            let device = Device::cuda(0).unwrap();
            let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
            forward(Kernel::V2, &q.view());
            device.info().id()
        };
        assert_eq!(compute(), "cuda:0");
        let before = log();
        for gone in ["unload", "destroy", "release", "synchronize", "trim"] {
            assert!(!before.iter().any(|line| line.starts_with(gone)), "{before:?}");
        }
        compute();
        let again = &log()[before.len()..];
        assert!(matches!(again, [launch] if launch.starts_with("launch v2_f16_d64 ")), "{again:?}");
        // Another GPU is another device, with kernels of its own.
        let other = Device::cuda(1).unwrap();
        let q = Tensor::zeros(&other, DType::F16, SHAPE, Layout::Bshd).unwrap();
        forward(Kernel::V2, &q.view());
        assert_eq!((count("retain"), count("load v2_f16_d64")), (2, 2));
    });
}

/// Where there are no memory pools, allocation is plain and nothing else changes.
#[test]
fn a_gpu_without_memory_pools() {
    with_driver(&[], &[("FAKE_POOLS", "0")], || {
        let device = Device::cuda(0).unwrap();
        let tensor = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        assert_eq!(tensor.to_f64_vec().unwrap(), vec![0.0; 2 * 5 * 4 * 64]);
        drop(tensor);
        device.trim_memory().unwrap();
        assert_eq!((count("malloc 5120"), count("trim")), (1, 0));
    });
}

/// Memory that the pool keeps is used before the device is said to be full.
#[test]
fn out_of_memory() {
    with_driver(&[], &[("FAKE_MEMORY", "10000")], || {
        let device = Device::cuda(0).unwrap();
        let bytes = |n: usize| Tensor::uninit(&device, DType::F32, Shape::new(1, 1, 1, n / 4), Layout::Bshd);
        drop(bytes(8000).unwrap());
        let held = bytes(6000).unwrap();
        assert_eq!(count("trim"), 1);
        let error = bytes(6000).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { requested: 6000, free: 4000, total: 10000 }), "{error:?}");
        drop(held);
        assert_eq!(device.memory().live_bytes, 0);
    });
}

fn forward(kernel: Kernel, q: &TensorView<'_>) -> ferroflash::Output {
    Attention::new().with_kernel(kernel).forward(q, q, q).unwrap()
}

/// A kernel is loaded once, whoever needs it first, and launched as the variant list says.
#[test]
fn launches() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::Bf16, SHAPE, Layout::Bshd).unwrap();
        forward(Kernel::Naive, &q.view());
        let launched: Vec<_> = log().into_iter().filter(|line| line.starts_with("launch")).collect();
        for (line, symbol) in
            launched.iter().zip(["naive_scores_bf16_d64", "naive_softmax_bf16", "naive_output_bf16_d64"])
        {
            let v = variant(symbol);
            let (ctas, threads, shared) = (v.ctas(2, 4, 5, 5, 132), v.entry.threads, v.entry.shared_bytes);
            let expected = format!("launch {symbol} grid {ctas} block {threads} shared {shared} stream 0 param ");
            assert!(line.starts_with(&expected), "{line}");
        }
        assert_eq!(launched.len(), 3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| forward(Kernel::V2, &q.view()));
            }
        });
        assert_eq!((count("load v2_bf16_d64"), count("launch v2_bf16_d64")), (1, 8));
        assert!(log().last().unwrap().ends_with(&format!("param {:#x}", q.address())));
        let stream = device.stream().unwrap();
        let mut out = Tensor::uninit(&device, DType::Bf16, SHAPE, Layout::Bshd).unwrap();
        let (q, attention) = (q.view(), Attention::new());
        attention.forward_into(&stream, &q, &q, &q, &mut out.view_mut(), None).unwrap();
        let last = log().last().unwrap().clone();
        assert!(last.starts_with("launch v3_bf16_d64 ") && last.contains("stream 5"), "{last}");
    });
}

/// The copy engine is told of each tensor before v3 is launched, with at most one thread block a multiprocessor.
#[test]
fn launches_of_v3() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let shape = Shape::new(3, 500, 40, 64);
        for (dtype, data_type, symbol) in [(DType::Bf16, 9, "v3_bf16_d64"), (DType::F16, 6, "v3_f16_d64")] {
            let q = Tensor::zeros(&device, dtype, shape, Layout::Bshd).unwrap();
            let before = log().len();
            forward(Kernel::V3, &q.view());
            let v = variant(symbol);
            let geometry = "extents [64, 500, 40, 3] strides [5120, 128, 2560000]";
            let map = |address: u64, rows| {
                format!("map type {data_type} address {address:#x} {geometry} box [64, {rows}, 1, 1]")
            };
            let (address, shared) = (q.address(), v.entry.shared_bytes);
            let expected = [
                map(address, v.q_block),
                map(address, v.kv_block),
                map(address, v.kv_block),
                format!("load {symbol}"),
                format!("shared {symbol} {shared}"),
                // 360 tiles on 132 multiprocessors.
                format!(
                    "launch {symbol} grid 132 block {} shared {shared} stream 0 param {address:#x}",
                    v.entry.threads
                ),
            ];
            assert_eq!(log()[before..], expected);
        }
        // Two heads of one tile.
        let q = Tensor::zeros(&device, DType::F16, Shape::new(1, 5, 2, 64), Layout::Bshd).unwrap();
        forward(Kernel::V3, &q.view());
        assert!(log().last().unwrap().starts_with("launch v3_f16_d64 grid 2 "));
    });
}

#[test]
fn a_driver_without_tensor_maps() {
    with_driver(&["lacks_tensor_maps"], &[], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let attention = Attention::new().with_kernel(Kernel::V3);
        let error = attention.forward(&q.view(), &q.view(), &q.view()).unwrap_err();
        assert!(
            matches!(&error, Error::DriverLacksSymbols { symbols } if symbols[..] == ["cuTensorMapEncodeTiled"]),
            "{error:?}"
        );
        assert_eq!(count("launch"), 0);
        forward(Kernel::V2, &q.view());
    });
}

#[test]
fn a_tensor_map_that_the_driver_refuses() {
    with_driver(&[], &[("FAKE_MAP_FAILS", "1")], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let error = Attention::new().forward(&q.view(), &q.view(), &q.view()).unwrap_err();
        assert!(matches!(&error, Error::Cuda { call: "cuTensorMapEncodeTiled", code: 1, .. }), "{error:?}");
        assert_eq!(count("launch"), 0);
    });
}

/// A later GPU runs v2, and says so when v3 is asked for.
#[test]
fn a_gpu_that_does_not_run_v3() {
    with_driver(&[], &[("FAKE_CAPABILITY", "100")], || {
        let reason = "the device has compute capability 10.0; 9.0 alone is accepted";
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let q = q.view();
        let plan = Attention::new().forward(&q, &q, &q).unwrap().plan;
        assert!(plan.kernel == Kernel::V2 && plan.reason.ends_with(reason), "{plan}");
        let error = Attention::new().with_kernel(Kernel::V3).forward(&q, &q, &q).unwrap_err();
        assert_eq!(error.to_string(), format!("kernel v3 cannot run this: {reason}"));
        assert_eq!((count("map"), count("launch v3"), count("launch v2_f16_d64")), (0, 0, 1));
    });
}

#[test]
fn a_driver_that_is_too_old_for_v3() {
    with_driver(&[], &[("FAKE_VERSION", "11080")], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let plan = Attention::new().forward(&q.view(), &q.view(), &q.view()).unwrap().plan;
        assert!(plan.reason.ends_with("the driver supports CUDA 11.8; at least CUDA 12.1 is needed"), "{plan}");
    });
}

/// More than 48 KiB of shared memory has to be asked for.
#[test]
fn large_shared_memory() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let shape = Shape { head_dim: 256, ..SHAPE };
        let q = Tensor::zeros(&device, DType::F32, shape, Layout::Bshd).unwrap();
        forward(Kernel::V2, &q.view());
        let shared = variant("v2_f32_d256").entry.shared_bytes;
        assert!(shared > 48 * 1024);
        assert_eq!(count(&format!("shared v2_f32_d256 {shared}")), 1);
    });
}

#[test]
fn ptx_that_the_driver_rejects() {
    with_driver(&[], &[("FAKE_REJECT", "v2_f16_d64")], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let attention = Attention::new().with_kernel(Kernel::V2);
        let error = attention.forward(&q.view(), &q.view(), &q.view()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the driver rejects the PTX of v2_f16_d64: CUDA_ERROR_INVALID_PTX ptxas error: line 7 (the driver supports CUDA 13.0)"
        );
        assert_eq!(count("launch"), 0);
    });
}

/// The thread's own context is current again after every call.
#[test]
fn contexts_of_others_stay_current() {
    with_driver(&[], &[], || {
        // As another framework in the process would.
        let driver = cust::load().unwrap();
        let current = || cust::Context::current().unwrap().addr();
        // SAFETY: the fixture takes any number for a context.
        assert_eq!(unsafe { (driver.cuCtxPushCurrent)(std::ptr::without_provenance_mut(0x77)) }.0, 0);
        let device = Device::cuda(0).unwrap();
        assert_eq!(current(), 0x77);
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        forward(Kernel::V1, &q.view());
        assert!(device.time(&device.default_stream(), || Err(Error::NoGpu)).is_err());
        drop((q, device));
        assert_eq!(current(), 0x77);
    });
}

/// Streams are ordered with the default stream unless the caller says otherwise, and have the priorities of the GPU.
#[test]
fn streams_with_options() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let create = |options: &StreamOptions| device.stream_with(options).map(|stream| stream.as_raw());
        device.stream().unwrap();
        create(&StreamOptions::new().with_priority(-5)).unwrap();
        // SAFETY: nothing works on it.
        create(&unsafe { StreamOptions::new().non_blocking() }).unwrap();
        let created: Vec<_> = log().into_iter().filter(|line| line.starts_with("create")).collect();
        let flags = ["flags 0 priority 0", "flags 0 priority -5", "flags 1 priority 0"];
        assert!(
            created.len() == 3 && created.iter().zip(flags).all(|(line, flags)| line.ends_with(flags)),
            "{created:?}"
        );
        for found in [1, -6] {
            let error = create(&StreamOptions::new().with_priority(found)).unwrap_err();
            assert!(matches!(error, Error::StreamPriority { found: f, greatest: -5, least: 0 } if f == found));
        }
        assert_eq!((count("create stream"), count("destroy stream")), (3, 3));
    });
}

#[test]
fn events_order_streams() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let device = Device::cuda(0).unwrap();
        let (one, other) = (device.stream().unwrap(), device.stream().unwrap());
        let first = one.record().unwrap();
        let second = one.record().unwrap();
        other.wait(&first).unwrap();
        assert!(second.is_done().unwrap());
        assert_eq!(second.elapsed_since(&first).unwrap().as_micros(), 1500);
        assert!(matches!(first.elapsed_since(&second), Err(Error::EventOrder)));
        let lines = log();
        let recorded = format!("record event 7 flags 0 on stream {}", one.as_raw().addr());
        let waits = format!("stream {} waits for event 7", other.as_raw().addr());
        let at = |line: &String| lines.iter().position(|found| found == line).expect(line);
        assert!(at(&recorded) < at(&waits));
        // A stream of another GPU may wait too; times of two GPUs are not compared.
        let far = Device::cuda(1).unwrap().stream().unwrap();
        far.wait(&first).unwrap();
        let error = far.record().unwrap().elapsed_since(&first).unwrap_err();
        assert!(matches!(&error, Error::DeviceMismatch { found, .. } if found == "cuda:0"), "{error:?}");
    });
}

/// What is launched on the stream of a capture is written down, workspaces too, and runs when the graph is launched.
#[test]
fn graphs() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let mut out = Tensor::uninit(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let q = q.view();
        let attention = Attention::new().with_kernel(Kernel::Naive);
        device.prepare(attention.plan_for(&q, &q, &q, None).unwrap()).unwrap();
        let graph =
            device.capture(|stream| attention.forward_into(stream, &q, &q, &q, &mut out.view_mut(), None)).unwrap();
        // Two workspaces come and go around three passes.
        assert_eq!((graph.node_count(), count("launch"), count("load")), (7, 0, 3));
        // The stream of a capture is nobody else's, and ordered with nobody's.
        assert_eq!(count("begin capture mode 1 flags 1"), 1);
        let stream = device.stream().unwrap();
        for _ in 0..2 {
            // SAFETY: the tensors are there.
            unsafe { graph.launch(&stream) }.unwrap();
        }
        let replayed = format!("replay on {}: launch naive_scores_f16_d64 ", stream.as_raw().addr());
        assert_eq!((count(&replayed), count("replay"), count("launch")), (2, 14, 0));
        drop(graph);
        assert_eq!((count("destroy graph"), count("destroy executable graph")), (1, 1));
        assert_eq!(device.memory().live_bytes, 2 * 5120);
    });
}

/// A kernel that is not loaded is an error that says what to call; the capture ends, and the device works on.
#[test]
fn a_capture_of_a_kernel_that_is_not_loaded() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let mut out = Tensor::uninit(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let (q, attention) = (q.view(), Attention::new().with_kernel(Kernel::V2));
        let mut capture =
            || device.capture(|stream| attention.forward_into(stream, &q, &q, &q, &mut out.view_mut(), None));
        let error = capture().unwrap_err();
        assert!(matches!(error, Error::KernelNotLoaded { symbol: "v2_f16_d64" }), "{error:?}");
        assert!(error.to_string().contains("`Device::prepare`"), "{error}");
        assert_eq!((count("load"), count("end capture")), (0, 1));
        // A plain launch loads too.
        forward(Kernel::V2, &q);
        assert_eq!(capture().unwrap().node_count(), 1);
    });
}

/// So it is on a stream that somebody else captures.
#[test]
fn a_capture_of_somebody_else() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let mut out = Tensor::uninit(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let (q, attention) = (q.view(), Attention::new().with_kernel(Kernel::V3));
        let context = cust::Context::new(cust::Device::get(0).unwrap()).unwrap();
        let theirs = cust::Stream::new(&context, cust::StreamFlags::NON_BLOCKING, None).unwrap();
        // SAFETY: it is a stream of the device's primary context, and outlives this one.
        let stream = unsafe { ferroflash::Stream::from_raw(&device, theirs.as_raw()) };
        let mut run = || attention.forward_into(&stream, &q, &q, &q, &mut out.view_mut(), None);
        let error = theirs.capture(cust::CaptureMode::GLOBAL, || {
            assert!(matches!(run(), Err(Error::KernelNotLoaded { symbol: "v3_f16_d64" })));
            Ok::<_, cust::Error>(())
        });
        assert_eq!(error.unwrap().node_count().unwrap(), 0);
        run().unwrap();
        let captured = theirs.capture(cust::CaptureMode::GLOBAL, || {
            run().unwrap();
            Ok::<_, cust::Error>(())
        });
        assert_eq!((captured.unwrap().node_count().unwrap(), count("launch v3_f16_d64")), (1, 1));
    });
}

/// What waits for the device cannot be captured: the driver's refusal comes out, and the capture is over.
#[test]
fn a_capture_that_is_spoilt() {
    with_driver(&[], &[], || {
        let device = Device::cuda(0).unwrap();
        let error = device.capture(|_| device.synchronize()).unwrap_err();
        assert!(matches!(error, Error::Cuda { call: "cuCtxSynchronize", code: 900, .. }), "{error:?}");
        // Swallowing the error does not bring the capture back.
        let error = device
            .capture(|_| {
                let _ = device.synchronize();
                Ok(())
            })
            .unwrap_err();
        assert!(matches!(error, Error::Cuda { call: "cuStreamEndCapture", code: 901, .. }), "{error:?}");
        assert_eq!((count("begin capture"), count("end capture"), count("destroy stream")), (2, 2, 2));
        device.synchronize().unwrap();
    });
}

/// Without memory pools a workspace would be free again when the graph uses it.
#[test]
fn a_capture_without_memory_pools() {
    with_driver(&[], &[("FAKE_POOLS", "0")], || {
        let device = Device::cuda(0).unwrap();
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let mut out = Tensor::uninit(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        let q = q.view();
        let mut capture = |kernel| {
            let attention = Attention::new().with_kernel(kernel);
            device.prepare(attention.plan_for(&q, &q, &q, None).unwrap()).unwrap();
            device.capture(|stream| attention.forward_into(stream, &q, &q, &q, &mut out.view_mut(), None))
        };
        assert!(matches!(capture(Kernel::Naive), Err(Error::CaptureUnsupported { .. })));
        assert_eq!(capture(Kernel::V2).unwrap().node_count(), 1);
    });
}
