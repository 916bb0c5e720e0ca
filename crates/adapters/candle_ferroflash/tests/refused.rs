//! What is refused, and how. Nobody asks for the emulator here, unless a test does so in a process of its own.

use candle_core::{DType, Device, Tensor};
use candle_ferroflash::{self as flash, Error, Feature, v3};
use std::process::Command;

#[cfg(target_os = "linux")]
#[path = "../../support/symbols.rs"]
mod symbols;

fn tensor(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
}

fn q() -> Tensor {
    tensor(&[1, 4, 2, 64], DType::F16)
}

/// What `look` makes of the error of this crate in candle's.
fn refused<T: std::fmt::Debug, R>(result: candle_core::Result<T>, look: impl FnOnce(&Error) -> R) -> R {
    let error = result.unwrap_err();
    look(Error::find(&error).unwrap_or_else(|| panic!("{error}")))
}

fn message<T: std::fmt::Debug>(result: candle_core::Result<T>) -> String {
    refused(result, Error::to_string)
}

/// Runs `body` in a process of its own, with this environment: whether the emulator is asked for is a matter of the whole process.
fn in_a_process(variable: Option<&str>, body: impl FnOnce()) {
    if std::env::var_os("IN_A_PROCESS").is_some() {
        return body();
    }
    let test = std::thread::current().name().expect("the harness names the thread after the test").to_owned();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture"]).env("IN_A_PROCESS", "1").env_remove("CANDLE_FERROFLASH_CPU");
    command.envs(variable.map(|value| ("CANDLE_FERROFLASH_CPU", value)));
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn cpu_tensors() {
    in_a_process(None, || {
        let q = q();
        assert_eq!(
            message(flash::flash_attn(&q, &q, &q, 0.125, false)),
            "no cpu support for flash-attn, which is for tensors on a GPU; CANDLE_FERROFLASH_CPU=emulator or \
             `candle_ferroflash::emulate_cpu(true)` runs those on the CPU in an emulator"
        );
        let is_v3 = |error: &Error| matches!(error, Error::CpuTensors { op: "flash-attn-v3" });
        assert!(refused(v3::flash_attn(&q, &q, &q, 0.125, false, false), is_v3));
        let is_softmax = |error: &Error| matches!(error, Error::CpuTensors { op: "softmax" });
        assert!(refused(flash::operators::softmax_last_dim(&q), is_softmax));
        let (q, starts) = (q.squeeze(0).unwrap(), Tensor::new(&[0u32, 4], &Device::Cpu).unwrap());
        let said = message(flash::flash_attn_varlen(&q, &q, &q, &starts, &starts, 4, 4, 0.125, false));
        assert!(said.starts_with("no cpu support for flash-attn-varlen, which is for tensors on a GPU"), "{said}");
    });
}

#[cfg(feature = "emulator")]
#[test]
fn the_environment_asks_for_the_emulator() {
    in_a_process(Some("emulator"), || {
        let q = q();
        assert_eq!(flash::flash_attn(&q, &q, &q, 0.125, false).unwrap().dims(), q.dims());
        flash::emulate_cpu(false);
        let is_cpu = |error: &Error| matches!(error, Error::CpuTensors { .. });
        assert!(refused(flash::flash_attn(&q, &q, &q, 0.125, false), is_cpu));
    });
}

#[test]
fn the_environment_asks_for_something_else() {
    in_a_process(Some("1"), || {
        let q = q();
        let said = message(flash::flash_attn(&q, &q, &q, 0.125, false));
        assert_eq!(said, "CANDLE_FERROFLASH_CPU is `1`; `emulator` is accepted");
    });
}

#[test]
fn features_that_are_to_come() {
    let x = &q();
    let (w, l, s) = (Some(1), 4, 0.125);
    let ranges = || flash::flash_attn_varlen_paged_windowed(x, x, x, x, x, x, Some(x), l, l, s, w, w, 32, None);
    let missing = |error: &Error| match error {
        Error::Missing { op, feature } => (*op, *feature),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(ranges(), missing), ("flash_attn_varlen_paged_windowed", Feature::PrefixRanges));
    assert_eq!(
        message(ranges()),
        "flash_attn_varlen_paged_windowed: ranges of keys that every row sees (mm_prefix_ranges) is not supported by ferroflash yet"
    );
}

#[cfg(feature = "emulator")]
#[test]
fn bad_input() {
    in_a_process(Some("emulator"), || {
        let (q, attend) = (q(), flash::flash_attn);
        let says = |q: &Tensor, k: &Tensor, v: &Tensor, expected: &str| {
            assert_eq!(message(attend(q, k, v, 0.125, false)), expected);
        };
        let shaped = |shape: &[usize]| tensor(shape, DType::F16);
        let flat = shaped(&[4, 2, 64]);
        says(&q, &flat, &q, "flash-attn expects k of rank 4 (batch, rows, heads, head_dim); it has rank 3");
        let doubles = tensor(&[1, 4, 2, 64], DType::F64);
        says(&doubles, &doubles, &doubles, "flash-attn is only supported for f16, bf16 and f32; q holds F64");
        let heads = shaped(&[1, 4, 3, 64]);
        says(&q, &heads, &heads, "2 query heads are no multiple of 3 key-value heads");
        says(&q, &shaped(&[1, 5, 2, 64]), &q, "v has 4 rows, k has 5; they must be equal");
        says(&q, &shaped(&[2, 4, 2, 64]), &q, "k has batch 2, q has 1; they must be equal");
        let wide = shaped(&[1, 4, 2, 264]);
        let multiples = "accepted are the multiples of 8 from 8 to 256";
        says(&wide, &wide, &wide, &format!("head_dim 264 is not supported; {multiples}"));
        let odd = shaped(&[1, 4, 2, 20]);
        says(&odd, &odd, &odd, &format!("head_dim 20 is not supported; {multiples}"));
        let spread = shaped(&[1, 4, 64, 2]).transpose(2, 3).unwrap();
        says(
            &q,
            &spread,
            &q,
            "the last dim of k has stride 2; it must be contiguous (stride 1), the other strides are free",
        );
        // candle's own errors come as they are.
        let other = attend(&q, &tensor(&[1, 4, 2, 64], DType::F32), &q, 0.125, false).unwrap_err();
        assert!(other.to_string().starts_with("unexpected dtype, expected: F16, got: F32"), "{other}");
        let capped = |softcap| flash::flash_attn_alibi_windowed_softcap(&q, &q, &q, None, 0.1, None, None, softcap);
        let is_softcap = |error: &Error| matches!(error, Error::Ferroflash(ferroflash::Error::Softcap { .. }));
        assert!(refused(capped(-1.0), is_softcap));
    });
}

#[cfg(feature = "emulator")]
#[test]
fn bad_input_of_packed_sequences() {
    in_a_process(Some("emulator"), || {
        let numbers = |numbers: &[u32]| Tensor::new(numbers, &Device::Cpu).unwrap();
        let (q, starts) = (tensor(&[5, 2, 64], DType::F16), numbers(&[0, 2, 5]));
        let says = |[q, k, v]: [&Tensor; 3], [q_starts, kv_starts]: [&Tensor; 2], expected: &str| {
            let result = flash::flash_attn_varlen(q, k, v, q_starts, kv_starts, 3, 3, 0.125, false);
            assert_eq!(message(result), expected);
        };
        let uniform = self::q();
        let four = "flash-attn-varlen expects q of rank 3 (rows, heads, head_dim); it has rank 4";
        says([&uniform, &q, &q], [&starts, &starts], four);
        let table = numbers(&[0, 1]).unsqueeze(0).unwrap();
        let two = "flash-attn-varlen expects the starts of k and v of rank 1 (batch + 1); it has rank 2";
        says([&q, &q, &q], [&starts, &table], two);
        let fewer = "the starts of k and v holds 2 numbers; 3 are needed for the sequences of this call";
        says([&q, &q, &q], [&starts, &numbers(&[0, 5])], fewer);
        let floats = starts.to_dtype(DType::F32).unwrap();
        let kind = "flash-attn-varlen expects the starts of q to hold u32 or i32; it holds F32";
        says([&q, &q, &q], [&floats, &starts], kind);
        let heads = tensor(&[5, 3, 64], DType::F16);
        says([&q, &heads, &heads], [&starts, &starts], "2 query heads are no multiple of 3 key-value heads");

        let pages = tensor(&[4, 32, 2, 64], DType::F16);
        let paged = |k: &Tensor, table: &Tensor, page_rows| {
            let (starts, window) = (&starts, None);
            flash::flash_attn_varlen_paged_windowed(
                &q, k, k, starts, starts, table, None, 3, 3, 0.125, window, window, page_rows, None,
            )
        };
        let sizes = "flash-attn-varlen: page_block_size is 16, k has pages of 32 rows; they must be equal";
        assert_eq!(message(paged(&pages, &table, 16)), sizes);
        let rank = "flash-attn-varlen expects k of rank 4 (pages, page_rows, heads, head_dim); it has rank 3";
        assert_eq!(message(paged(&q, &table, 32)), rank);
        assert!(message(paged(&pages, &table, 32)).starts_with("the table of pages holds 2 numbers"));
        let flat = "flash-attn-varlen expects the table of pages of rank 2 (batch, pages); it has rank 1";
        assert_eq!(message(paged(&pages, &starts, 32)), flat);

        // A gradient through pages is refused when candle asks for it.
        let (x, window) = (candle_core::Var::from_tensor(&q).unwrap(), None);
        let table = Tensor::zeros((2, 1), candle_core::DType::U32, q.device()).unwrap();
        let out = flash::flash_attn_varlen_paged_windowed(
            &x, &pages, &pages, &starts, &starts, &table, None, 3, 3, 0.125, window, window, 32, None,
        )
        .unwrap();
        let is_gradient = |error: &Error| matches!(error, Error::Missing { feature: Feature::PagedGradients, .. });
        assert!(refused(out.sum_all().unwrap().backward().map(|_| ()), is_gradient));
    });
}

/// Linking this crate and candle defines no symbol of the driver.
#[cfg(target_os = "linux")]
#[test]
fn no_symbols_of_the_driver() {
    symbols::assert_none_of_the_driver("candle_ferroflash");
}
