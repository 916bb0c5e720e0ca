//! Compiles a small kernel crate and looks at its PTX.
//!
//! Needs the library source of rustc: where it is missing the test fails with the command that installs it.

use std::fs;
use std::path::{Path, PathBuf};

use cuda_builder::{Arch, CudaBuilder, Error, PtxVersion};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixture")
}

/// The folder outlives the test run, so that a second one does not compile `core` again.
fn builder() -> CudaBuilder {
    CudaBuilder::new(fixture()).target_dir(concat!(env!("CARGO_TARGET_TMPDIR"), "/cuda_builder"))
}

fn succeed<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn compiles_once_per_architecture_and_splits_by_entry() {
    let copies = tempfile::tempdir().unwrap();
    let stale = copies.path().join("sm_80/renamed.ptx");
    fs::create_dir(copies.path().join("sm_80")).unwrap();
    fs::write(&stale, "").unwrap();

    let builder = builder().arch(Arch::Sm80).arch(Arch::Sm90a).copy_to(copies.path()).deny_local_memory(true);
    let output = succeed(builder.build());
    assert!(!stale.exists());
    assert_eq!(output.modules.iter().map(|module| module.arch).collect::<Vec<_>>(), [Arch::Sm80, Arch::Sm90a]);
    for module in &output.modules {
        let mut names: Vec<_> = module.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        names.sort();
        let mut expected = vec!["calls_a_function", "checks_bounds", "reads_dynamic_shared"];
        if module.arch == Arch::Sm90a {
            expected.push("runs_on_hopper_only");
        }
        assert_eq!(names, expected);
        for kernel in &module.kernels {
            assert!(kernel.ptx.contains(&format!(".target {}", module.arch)), "{}", kernel.ptx);
            assert_eq!(kernel.ptx.matches(".visible .entry").count(), 1);
            let copy = copies.path().join(module.arch.name()).join(format!("{}.ptx", kernel.name));
            assert_eq!(fs::read_to_string(copy).unwrap(), kernel.ptx);
        }
        let kernel = |name| module.kernel(name).unwrap();
        let calls = kernel("calls_a_function");
        assert_eq!((calls.bounds.threads, calls.bounds.min_ctas), (Some([128, 1, 1]), Some(2)));
        assert!(calls.ptx.contains("\n.reqntid 128, 1, 1\n.minnctapersm 2\n"), "{}", calls.ptx);
        assert!(calls.ptx.contains("TABLE") && !calls.ptx.contains("dynamic_shared"), "{}", calls.ptx);
        let shared = &kernel("reads_dynamic_shared").ptx;
        assert!(shared.contains(".extern .shared .align 1024 .b8 dynamic_shared[];"), "{shared}");
        assert!(!shared.contains("TABLE") && !shared.contains("scratch"), "{shared}");
        let bounds = &kernel("checks_bounds").ptx;
        assert!(bounds.contains(".b8 scratch[256];") && bounds.contains("trap;"), "{bounds}");
    }
    for input in ["cuda_std_macros/src/lib.rs", "fixture/Cargo.toml", "fixture/src/lib.rs"] {
        assert!(output.inputs().iter().any(|path| path.ends_with(input)), "{input}: {:?}", output.inputs());
    }
    // Behind a feature that is off.
    let local = |inputs: &[PathBuf]| inputs.iter().any(|path| path.ends_with("fixture/src/local.rs"));
    assert!(!local(output.inputs()), "{:?}", output.inputs());
    assert!(local(succeed(self::builder().arch(Arch::Sm80).feature("local").build()).inputs()));

    let again = succeed(builder.build());
    assert!(again.modules.iter().all(|module| !module.compiled));
    assert_eq!(again.modules[0].kernels, output.modules[0].kernels);
}

#[test]
fn the_ptx_version_is_raised_on_request() {
    let version = PtxVersion::new(8, 3).unwrap();
    let output = succeed(builder().arch(Arch::Sm90a).ptx_version(Arch::Sm90a, version).build());
    assert!(output.modules[0].kernels.iter().all(|kernel| kernel.ptx.starts_with(".version 8.3\n")));
    let error = builder().arch(Arch::Sm100).ptx_version(Arch::Sm100, version).build().unwrap_err().to_string();
    assert!(error.contains("PTX 8.3 does not know sm_100, which needs PTX 8.6"), "{error}");
}

#[test]
fn local_memory_is_refused_when_asked() {
    let builder = builder().arch(Arch::Sm80).feature("local");
    let output = succeed(builder.build());
    let bounds = output.modules[0].kernel("indexes_an_array").unwrap().bounds;
    assert_eq!(bounds.max_threads, Some([16, 16, 1]));
    match builder.deny_local_memory(true).build() {
        Err(Error::LocalMemory { arch: Arch::Sm80, entries }) => assert_eq!(entries, ["indexes_an_array"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_compile_error_shows_what_rustc_wrote() {
    let error = builder().arch(Arch::Sm80).feature("missing").build().unwrap_err().to_string();
    assert!(error.contains("cargo rustc") && error.contains("missing"), "{error}");
}

#[test]
fn lints_are_errors_when_asked() {
    let builder = builder().arch(Arch::Sm80);
    succeed(builder.lint(&["-Dwarnings"]));
    let error = builder.feature("local").lint(&["-Dclippy::needless_range_loop"]).unwrap_err().to_string();
    assert!(error.contains("needless_range_loop"), "{error}");
}

#[test]
fn what_is_no_kernel_crate_is_refused_before_anything_is_compiled() {
    assert!(matches!(builder().build(), Err(Error::NoArch)));
    let none = CudaBuilder::new("/nonexistent").arch(Arch::Sm80).build();
    assert!(matches!(none, Err(Error::NoCrate { .. })), "{none:?}");
    let host = CudaBuilder::new(env!("CARGO_MANIFEST_DIR")).arch(Arch::Sm80).build().unwrap_err().to_string();
    assert!(host.contains("crate-type = [\"cdylib\"]"), "{host}");
}
