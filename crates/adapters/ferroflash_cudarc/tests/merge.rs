//! The merge of partial results on slices and streams of cudarc, against a driver that is a test fixture.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use cudarc::driver::{CudaContext, CudaSlice, DevicePtr};
use fake::{log, with_driver};
use ferroflash::{Layout, MergeError, Operand, Shape, bf16};
use ferroflash_cudarc::{Error, Part, View, ViewMut, merge};

#[path = "../../../cust/tests/support/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod fake;

const SHAPE: Shape = Shape::new(1, 9, 4, 64);
const ELEMENTS: usize = 9 * 4 * 64;
const ROWS: usize = 9 * 4;

fn contiguous(slice: &CudaSlice<f32>) -> View<'_, f32> {
    View::contiguous(slice, SHAPE, Layout::Bshd).unwrap()
}

fn launches() -> Vec<String> {
    log().into_iter().filter(|line| line.starts_with("launch")).collect()
}

/// One launch, which is told where the parts lie; before it the stream waits for their writers, and behind it the use is recorded.
#[test]
fn parts_are_read_where_they_lie() {
    with_driver(&[], &[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let [parts, lses] = [ELEMENTS, ROWS].map(|len| [0; 3].map(|_| stream.alloc_zeros::<f32>(len).unwrap()));
        let (mut out, mut lse) =
            (stream.alloc_zeros::<bf16>(ELEMENTS).unwrap(), stream.alloc_zeros::<f32>(ROWS).unwrap());
        let told: Vec<_> = parts.iter().zip(&lses).map(|(part, lse)| Part::new(contiguous(part), lse)).collect();
        let mut out = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        // Kernels are loaded by the first.
        merge(&stream, &told, &mut out, Some(&mut lse)).unwrap();
        let start = log().len();
        merge(&stream, &told, &mut out, Some(&mut lse)).unwrap();
        let lines: Vec<String> = log().into_iter().skip(start).collect();
        let launch = lines.iter().position(|line| line.starts_with("launch")).unwrap();
        // What the kernel is told first is where the first part is.
        let first = format!("param {:#x}", parts[0].device_ptr(&stream).0);
        assert!(lines[launch].contains("merge_parts_f32_bf16") && lines[launch].ends_with(&first), "{}", lines[launch]);
        let count = |lines: &[String], start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(count(&lines, "launch"), 1, "{lines:?}");
        assert_eq!(count(&lines[..launch], "stream 5 waits for event"), 2 * 3 + 2 * 2, "{lines:?}");
        assert_eq!(count(&lines[launch..], "record event"), 2 * 3 + 2, "{lines:?}");
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    with_driver(&[], &[("FAKE_GPUS", "2")], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let [part, lse] = [ELEMENTS, ROWS].map(|len| stream.alloc_zeros::<f32>(len).unwrap());
        let mut out = stream.alloc_zeros::<bf16>(ELEMENTS).unwrap();
        let mut out = ViewMut::contiguous(&mut out, SHAPE, Layout::Bshd).unwrap();
        let whole = Part::new(contiguous(&part), &lse);

        let short = stream.alloc_zeros::<f32>(ROWS - 1).unwrap();
        let found = merge(&stream, &[whole, Part::new(contiguous(&part), &short)], &mut out, None).unwrap_err();
        assert!(matches!(found, Error::Ferroflash(ferroflash::Error::StorageTooSmall { .. })), "{found:?}");
        let found = merge::<f32, bf16>(&stream, &[], &mut out, None).unwrap_err();
        assert!(matches!(found, Error::Ferroflash(ferroflash::Error::Merge(MergeError::NoParts))), "{found:?}");
        let fewer = View::contiguous(&part, Shape::new(1, 8, 4, 64), Layout::Bshd).unwrap();
        let found = merge(&stream, &[whole, Part::new(fewer, &lse)], &mut out, None).unwrap_err();
        let Error::Ferroflash(ferroflash::Error::Merge(found)) = found else { panic!("{found:?}") };
        assert!(matches!(found, MergeError::Shape { tensor: Operand::Part(1), .. }), "{found:?}");

        let far = CudaContext::new(1).unwrap().new_stream().unwrap().alloc_zeros::<f32>(ROWS).unwrap();
        let found = merge(&stream, &[whole, Part::new(contiguous(&part), &far)], &mut out, None).unwrap_err();
        assert!(
            matches!(found, Error::ContextMismatch { operand: Operand::PartLse(1), found: 1, expected: 0 }),
            "{found:?}"
        );
        assert_eq!(
            found.to_string(),
            "the log-sum-exp of part 1 is in a context of cuda:1, the stream in another, of cuda:0; they must be in the same"
        );
        assert!(launches().is_empty());
    });
}
