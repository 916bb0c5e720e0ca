//! CUDA devices against a driver that is a test fixture: what is asked of it, in which order, and what its failures become.
#![cfg(all(feature = "cuda", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use ferroflash::{
    Attention, DType, Device, DeviceKind, Error, Kernel, Layout, Shape, Tensor, TensorView, Variant, Version,
};
use std::path::{Path, PathBuf};
use std::process::Command;

const SHAPE: Shape = Shape::new(2, 5, 4, 64);

/// Runs `body` in a process of its own, for which libcuda.so.1 is the fixture, set up by `settings`.
///
/// The process is this test again: the driver library is opened once in the life of a process.
fn with_driver(cfgs: &[&str], settings: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os("FAKE_LOG").is_some() {
        return body();
    }
    let test = std::thread::current().name().expect("the harness names the thread after the test").to_owned();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{test}"));
    std::fs::create_dir_all(&folder).unwrap();
    let log = folder.join("log");
    std::fs::write(&log, "").unwrap();
    let library = build_driver(&folder, cfgs);
    let mut search = library.parent().unwrap().as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH") {
        search.push(":");
        search.push(rest);
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture"])
        .env("LD_LIBRARY_PATH", search)
        .env("FAKE_LOG", &log)
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn build_driver(folder: &Path, cfgs: &[&str]) -> PathBuf {
    let library = folder.join("libcuda.so.1");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_driver/lib.rs");
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "cuda", "-o"]);
    command.arg(&library).arg(source);
    for cfg in cfgs {
        command.args(["--cfg", cfg]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

/// What the fixture wrote down.
fn log() -> Vec<String> {
    let path = std::env::var_os("FAKE_LOG").unwrap();
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn count(line: &str) -> usize {
    log().iter().filter(|found| found.starts_with(line)).count()
}

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

/// Memory goes to the device and back; tensors, streams, modules, pool and context are given back at the end.
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
        let end = ["destroy stream", "unload v2_f32_d64", "destroy pool", "release"];
        assert_eq!(log()[log().len() - 4..], end);
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
            let (v, address) = (variant(symbol), q.address());
            let (ctas, threads, shared) = (v.ctas(2, 4, 5, 5, 132), v.entry.threads, v.entry.shared_bytes);
            assert_eq!(
                line,
                &format!("launch {symbol} grid {ctas} block {threads} shared {shared} stream 0 q {address:#x}")
            );
        }
        assert_eq!(launched.len(), 3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| forward(Kernel::V2, &q.view()));
            }
        });
        assert_eq!((count("load v2_bf16_d64"), count("launch v2_bf16_d64")), (1, 8));
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
                format!("launch {symbol} grid 132 block {} shared {shared} stream 0 q {address:#x}", v.entry.threads),
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
        let reason = "the device has compute capability 10.0; v3 runs on 9.0 alone";
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
        assert!(plan.reason.ends_with("the driver supports CUDA 11.8; v3 needs at least CUDA 12.0"), "{plan}");
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
        // The driver API's functions, as another framework in the process would call them.
        let driver = cuda_loader::load().unwrap();
        // SAFETY: the types are those of the driver API.
        let (push, get) = unsafe {
            let push = driver.symbol::<unsafe extern "C" fn(usize) -> u32>(c"cuCtxPushCurrent_v2").unwrap();
            (push, driver.symbol::<unsafe extern "C" fn(*mut usize) -> u32>(c"cuCtxGetCurrent").unwrap())
        };
        let current = || {
            let mut context = 0;
            // SAFETY: the pointer is valid for the call.
            assert_eq!(unsafe { get(&mut context) }, 0);
            context
        };
        // SAFETY: the fixture takes any number for a context.
        assert_eq!(unsafe { push(0x77) }, 0);
        let device = Device::cuda(0).unwrap();
        assert_eq!(current(), 0x77);
        let q = Tensor::zeros(&device, DType::F16, SHAPE, Layout::Bshd).unwrap();
        forward(Kernel::V1, &q.view());
        assert!(device.time(&device.default_stream(), || Err(Error::NoGpu)).is_err());
        drop((q, device));
        assert_eq!(current(), 0x77);
    });
}
