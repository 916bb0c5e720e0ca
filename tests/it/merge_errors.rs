//! Parts that do not fit together get the error that names them, before anything is launched.

use crate::support::device;
use ferroflash::{
    DType, Device, Dims, Error, Layout, Lse, LseShape, LseView, MergeError, Operand, Part, Tensor, TensorView, merge,
    merge_into, plan_merge,
};

/// A call that is right, and that the tests spoil.
struct Call {
    parts: Vec<(Tensor, Lse)>,
    out: Tensor,
    lse: Lse,
}

const SHAPE: [usize; 4] = [2, 5, 4, 32];
const LSE: LseShape = LseShape { batch: 2, heads: 4, rows: 5 };

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let shape = Dims::new(shape).expect("few axes");
    Tensor::zeros(device, dtype, shape, Layout::RowMajor).expect("a small tensor")
}

/// The error of a call with one thing changed. The output must be untouched.
fn error(change: impl FnOnce(&Device, &mut Call)) -> Error {
    let shared = device::shared();
    let device = &shared.device;
    let part = || (tensor(device, DType::F16, &SHAPE), Lse::uninit(device, LSE).unwrap());
    let (out, lse) = part();
    let mut call = Call { parts: vec![part(), part(), part()], out, lse };
    change(device, &mut call);
    call.out.fill_bytes(0xff).unwrap();
    call.lse.fill_bytes(0xff).unwrap();
    let parts: Vec<_> = call.parts.iter().map(|(out, lse)| Part::new(&out.view(), &lse.view())).collect();
    let stream = device.default_stream();
    let error = merge_into(&stream, &parts, &mut call.out.view_mut(), Some(&mut call.lse.view_mut()));
    let error = error.expect_err("the call should be refused");
    assert!(call.out.to_f64_vec().unwrap().iter().all(|x| x.is_nan()), "the output was written");
    assert!(call.lse.to_vec().unwrap().iter().all(|x| x.is_nan()), "the log-sum-exp was written");
    error
}

fn assert_merge_error(found: Error, expected: MergeError, text: &str) {
    assert_eq!(found.to_string(), text);
    assert!(matches!(&found, Error::Merge(found) if *found == expected), "{found:?}");
}

#[test]
fn parts_that_do_not_fit_together() {
    assert_merge_error(
        error(|_, call| call.parts.clear()),
        MergeError::NoParts,
        "no partial results were given; a merge takes 1 or more",
    );
    assert!(matches!(merge(&[], None), Err(Error::Merge(MergeError::NoParts))));
    assert!(matches!(plan_merge(&[], None), Err(Error::Merge(MergeError::NoParts))));
    assert_merge_error(
        error(|device, call| call.parts[2].0 = tensor(device, DType::F16, &[40, 32])),
        MergeError::AxisCount { tensor: Operand::Part(2), found: 2 },
        "part 2 has 2 axes; 4 are accepted (batch, row, head, dim), or 3 of packed rows (row, head, dim)",
    );
    for shape in [[2, 6, 4, 32], [1, 5, 4, 32], [2, 5, 2, 32], [2, 5, 4, 40]] {
        assert_merge_error(
            error(|device, call| call.parts[1].0 = tensor(device, DType::F16, &shape)),
            MergeError::Shape { tensor: Operand::Part(1), found: shape.to_vec(), expected: SHAPE.to_vec() },
            &format!("part 1 has shape {shape:?}, part 0 has [2, 5, 4, 32]; they must be equal"),
        );
        assert_merge_error(
            error(|device, call| call.out = tensor(device, DType::F16, &shape)),
            MergeError::Shape { tensor: Operand::Out, found: shape.to_vec(), expected: SHAPE.to_vec() },
            &format!("out has shape {shape:?}, part 0 has [2, 5, 4, 32]; they must be equal"),
        );
    }
    // Packed rows beside a batch.
    assert_merge_error(
        error(|device, call| call.parts[1].0 = tensor(device, DType::F16, &[10, 4, 32])),
        MergeError::Shape { tensor: Operand::Part(1), found: vec![10, 4, 32], expected: SHAPE.to_vec() },
        "part 1 has shape [10, 4, 32], part 0 has [2, 5, 4, 32]; they must be equal",
    );
    for (batch, heads, rows) in [(2, 5, 4), (1, 4, 5), (2, 4, 6)] {
        let (found, expected) = ([batch, heads, rows], [2, 4, 5]);
        let lse = |device: &Device| Lse::uninit(device, LseShape { batch, heads, rows }).unwrap();
        assert_merge_error(
            error(|device, call| call.parts[1].1 = lse(device)),
            MergeError::Lse { tensor: Operand::PartLse(1), found, expected },
            &format!(
                "the log-sum-exp of part 1 is [batch, head, row] = {found:?}; that of part 0 is {expected:?}, and so it must be"
            ),
        );
        assert_merge_error(
            error(|device, call| call.lse = lse(device)),
            MergeError::Lse { tensor: Operand::Lse, found, expected },
            &format!("lse is [batch, head, row] = {found:?}; that of part 0 is {expected:?}, and so it must be"),
        );
    }
    for head_dim in [264, 12] {
        let shape = [2, 5, 4, head_dim];
        let found = error(|device, call| {
            call.parts.iter_mut().for_each(|(part, _)| *part = tensor(device, DType::F16, &shape));
            call.out = tensor(device, DType::F16, &shape);
        });
        assert!(matches!(found, Error::HeadDim { found } if found == head_dim), "{found:?}");
    }
}

#[test]
fn types_that_do_not_go_together() {
    assert_merge_error(
        error(|device, call| call.parts[1].0 = tensor(device, DType::F32, &SHAPE)),
        MergeError::PartDType { tensor: Operand::Part(1), found: DType::F32, expected: DType::F16 },
        "part 1 holds f32, part 0 holds f16; they must be equal",
    );
    assert_merge_error(
        error(|device, call| call.out = tensor(device, DType::Bf16, &SHAPE)),
        MergeError::OutDType { parts: DType::F16, out: DType::Bf16 },
        "parts of f16 do not go into an output of bf16; their own type and f32 are accepted",
    );
}

#[test]
fn memory_that_does_not_go_together() {
    let shared = device::shared();
    let device = &shared.device;
    let stream = device.default_stream();
    let mut both = tensor(device, DType::F32, &[2, 3, 2, 16]);
    let mut lse = Lse::from_slice(device, &[0.0; 12], LseShape { batch: 2, heads: 2, rows: 3 }).unwrap();
    let (address, lse_address) = (both.address(), lse.address());
    let raw = |address| {
        // SAFETY: the memory of `both`, which lives longer; the call is refused before it is touched.
        unsafe { TensorView::from_raw(device, address, 192, [2, 3, 2, 16], [96, 32, 16, 1], DType::F32).unwrap() }
    };
    // SAFETY: as above, of `lse`.
    let raw_lse =
        unsafe { LseView::from_raw(device, lse_address, 12, LseShape { batch: 2, heads: 2, rows: 3 }).unwrap() };
    let other = tensor(device, DType::F32, &[2, 3, 2, 16]);
    let other_lse = Lse::from_slice(device, &[0.0; 12], LseShape { batch: 2, heads: 2, rows: 3 }).unwrap();
    let parts = [Part::new(&other.view(), &other_lse.view()), Part::new(&raw(address), &other_lse.view())];
    let found = merge_into(&stream, &parts, &mut both.view_mut(), None).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Out, other: Operand::Part(1) }), "{found:?}");
    assert_eq!(found.to_string(), "out overlaps part 1 in memory; outputs need memory of their own");
    let parts = [Part::new(&other.view(), &raw_lse)];
    let found = merge_into(&stream, &parts, &mut both.view_mut(), Some(&mut lse.view_mut())).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Lse, other: Operand::PartLse(0) }), "{found:?}");

    let parts = [Part::new(&other.view(), &other_lse.view())];
    let mut one_row = both.strided_mut(0, [2, 3, 2, 16], [96, 0, 16, 1]).unwrap();
    let found = merge_into(&stream, &parts, &mut one_row, None).unwrap_err();
    assert!(matches!(found, Error::OutputOverlapsItself { .. }), "{found:?}");
    let turned = other.strided(0, [2, 3, 2, 8], [96, 32, 16, 2]).unwrap();
    let found = merge(&[Part::new(&turned, &other_lse.view())], None).unwrap_err();
    assert!(matches!(found, Error::LastDimNotContiguous { tensor: Operand::Part(0), stride: 2 }), "{found:?}");

    // Another device, whose memory this one does not have.
    let elsewhere = Device::emulator().unwrap();
    let far = tensor(&elsewhere, DType::F32, &[2, 3, 2, 16]);
    let far_lse = Lse::from_slice(&elsewhere, &[0.0; 12], LseShape { batch: 2, heads: 2, rows: 3 }).unwrap();
    for (part, operand) in [
        (Part::new(&far.view(), &other_lse.view()), Operand::Part(1)),
        (Part::new(&other.view(), &far_lse.view()), Operand::PartLse(1)),
    ] {
        let found = merge(&[parts[0], part], None).unwrap_err();
        let (there, here) = (elsewhere.info().id(), device.info().id());
        let text = format!("{operand} is on device {there}, part 0 is on {here}; they must be on the same device");
        assert_merge_error(found, MergeError::Device { tensor: operand, found: there, expected: here }, &text);
    }
    let found = merge_into(&elsewhere.default_stream(), &parts, &mut both.view_mut(), None).unwrap_err();
    assert!(matches!(&found, Error::DeviceMismatch { what, .. } if what == "the stream"), "{found:?}");
}

/// More rows than a launch counts, of memory that is the same for all of them.
#[test]
fn more_rows_than_a_grid_has() {
    let device = &device::shared().device;
    let one = tensor(device, DType::F16, &[8]);
    let (batch, heads, rows) = (1 << 10, 1 << 11, 1 << 10);
    let all = one.strided(0, [batch, rows, heads, 8], [0, 0, 0, 1]).unwrap();
    let shape = LseShape { batch, heads, rows };
    // SAFETY: the call is refused before anything is read.
    let lse = unsafe { LseView::from_raw(device, one.address() & !3, batch * heads * rows, shape).unwrap() };
    let found = plan_merge(&[Part::new(&all, &lse)], None).unwrap_err();
    assert!(matches!(found, Error::GridTooLarge { symbol: "merge_parts_f16", .. }), "{found:?}");
}
