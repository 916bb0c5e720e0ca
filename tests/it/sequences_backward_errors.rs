//! Every bad input of the backward pass over packed sequences gets the error that names it, before anything is launched.

use crate::support::device;
use ferroflash::{
    Attention, DType, Device, Error, GradientsViewMut, Indices, Kernel, Layout, Lse, LseShape, Operand,
    OutputGradients, PackedRows, Problem, Sequences, SequencesError, Tensor, Unsupported,
};

/// A call whose parts the tests spoil one at a time.
struct Call {
    attention: Attention<'static>,
    /// q, k, v, out, dout, dq, dk, dv.
    tensors: [Tensor; 8],
    lse: Lse,
    dlse: Lse,
    q_starts: Indices,
    kv_starts: Indices,
    kv_used: Indices,
}

const NAMES: [Operand; 8] =
    [Operand::Q, Operand::K, Operand::V, Operand::Out, Operand::Dout, Operand::Dq, Operand::Dk, Operand::Dv];
const Q: [usize; 3] = [5, 4, 32];
const KV: [usize; 3] = [7, 2, 32];
const ROWS: LseShape = LseShape { batch: 1, heads: 4, rows: 5 };

fn shape_of(operand: Operand) -> [usize; 3] {
    if matches!(operand, Operand::K | Operand::V | Operand::Dk | Operand::Dv) { KV } else { Q }
}

fn tensor(device: &Device, dtype: DType, shape: impl Into<ferroflash::Dims>) -> Tensor {
    Tensor::zeros(device, dtype, shape, Layout::RowMajor).expect("a small tensor")
}

impl Call {
    fn new(device: &Device) -> Call {
        let rows = || Lse::from_slice(device, &[0.0; 4 * 5], ROWS).expect("a small one");
        let numbers = |numbers: &[i32]| Indices::from_slice(device, numbers).expect("a few");
        Call {
            attention: Attention::new(),
            tensors: NAMES.map(|name| tensor(device, DType::F16, shape_of(name))),
            lse: rows(),
            dlse: rows(),
            q_starts: numbers(&[0, 2, 5]),
            kv_starts: numbers(&[0, 3, 7]),
            kv_used: numbers(&[3, 2]),
        }
    }

    fn part(&mut self, operand: Operand) -> &mut Tensor {
        &mut self.tensors[NAMES.iter().position(|name| *name == operand).expect("a tensor")]
    }

    fn run(&mut self) -> ferroflash::Result<()> {
        let Call { attention, tensors: [q, k, v, out, dout, dq, dk, dv], lse, dlse, q_starts, kv_starts, kv_used } =
            self;
        let stream = q.device().default_stream();
        let upstream = OutputGradients::new(dout.view()).with_dlse(dlse.view());
        let mut into = GradientsViewMut::new(dq.view_mut(), dk.view_mut(), dv.view_mut());
        let q_rows = PackedRows::new(q_starts.view());
        let kv_rows = PackedRows::new(kv_starts.view()).with_used(kv_used.view());
        let (q, k, v, out, lse) = (q.view(), k.view(), v.view(), out.view(), lse.view());
        attention.backward_packed_into(&stream, &q, &k, &v, &out, &lse, upstream, &q_rows, &kv_rows, &mut into)
    }
}

/// The error of a call with one part changed. The gradients are untouched.
fn error(spoil: impl FnOnce(&mut Call, &Device)) -> Error {
    let shared = device::shared();
    let mut call = Call::new(&shared.device);
    spoil(&mut call, &shared.device);
    for gradient in &mut call.tensors[5..] {
        gradient.fill_bytes(0xff).unwrap();
    }
    let error = call.run().expect_err("the call should be refused");
    for gradient in &call.tensors[5..] {
        assert!(gradient.to_f64_vec().unwrap().iter().all(|x| x.is_nan()), "a gradient was written");
    }
    error
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
    };
}

#[test]
fn the_unspoiled_call_is_accepted() {
    Call::new(&device::shared().device).run().unwrap();
}

#[test]
fn shapes_and_types_that_do_not_fit() {
    for operand in NAMES[1..].iter() {
        let with = |shape: &[usize], dtype| {
            let shape = ferroflash::Dims::new(shape).unwrap();
            error(|call, device| *call.part(*operand) = tensor(device, dtype, shape))
        };
        let [rows, heads, dim] = shape_of(*operand);
        assert_error!(
            with(&[1, rows, heads, dim], DType::F16),
            Error::Sequences(SequencesError::AxisCount { tensor, found: 4, accepted: 3, is_packed: true }) if tensor == operand
        );
        assert_error!(
            with(&[rows, heads, dim], DType::Bf16),
            Error::DTypeMismatch { tensor, found: DType::Bf16, expected: DType::F16 } if tensor == operand
        );
        assert_error!(
            with(&[rows, heads, 40], DType::F16),
            Error::HeadDimMismatch { tensor, found: 40, expected: 32 } if tensor == operand
        );
        // Rows and heads of k are what those of v have to be.
        let named = if *operand == Operand::K { Operand::V } else { *operand };
        assert_error!(with(&[6, heads, dim], DType::F16), Error::RowsMismatch { tensor, .. } if *tensor == named);
        assert_error!(with(&[rows, 1, dim], DType::F16), Error::HeadsMismatch { tensor, .. } if *tensor == named);
    }
}

#[test]
fn rows_of_the_log_sum_exp_that_do_not_fit() {
    for operand in [Operand::Lse, Operand::Dlse] {
        let changed = |shape| {
            error(|call, device| {
                let rows = Lse::uninit(device, shape).unwrap();
                *(if operand == Operand::Lse { &mut call.lse } else { &mut call.dlse }) = rows;
            })
        };
        assert_error!(
            changed(LseShape { batch: 2, ..ROWS }),
            Error::BatchMismatch { tensor, found: 2, expected: 1 } if *tensor == operand
        );
        assert_error!(
            changed(LseShape { rows: 6, ..ROWS }),
            Error::RowsMismatch { tensor, found: 6, of: Operand::Q, expected: 5 } if *tensor == operand
        );
        assert_error!(
            changed(LseShape { heads: 2, ..ROWS }),
            Error::HeadsMismatch { tensor, found: 2, of: Operand::Q, expected: 4 } if *tensor == operand
        );
    }
}

#[test]
fn numbers_that_are_not_as_many_as_they_have_to_be() {
    assert_error!(
        error(|call, device| call.kv_starts = Indices::from_slice(device, &[0, 7]).unwrap()),
        Error::Sequences(SequencesError::IndexCount { what: Operand::KvStarts, found: 2, expected: 3 })
    );
    assert_error!(
        error(|call, device| call.kv_used = Indices::from_slice(device, &[7]).unwrap()),
        Error::Sequences(SequencesError::IndexCount { what: Operand::KvUsed, found: 1, expected: 2 })
    );
    assert_error!(
        error(|call, device| call.q_starts = Indices::from_slice(device, &[0]).unwrap()),
        Error::EmptyAxis { tensor: Operand::Q, axis: "batch" }
    );
}

#[test]
fn parts_on_other_devices() {
    if device::is_gpu() {
        return;
    }
    let other = Device::emulator().unwrap();
    for operand in &NAMES[1..] {
        assert_error!(
            error(|call, _| *call.part(*operand) = tensor(&other, DType::F16, shape_of(*operand))),
            Error::DeviceMismatch { what, .. } if *what == operand.to_string()
        );
    }
    assert_error!(
        error(|call, _| call.lse = Lse::uninit(&other, ROWS).unwrap()),
        Error::DeviceMismatch { what, .. } if what == "lse"
    );
    assert_error!(
        error(|call, _| call.q_starts = Indices::from_slice(&other, &[0, 2, 5]).unwrap()),
        Error::DeviceMismatch { what, .. } if *what == Operand::QStarts.to_string()
    );
}

#[test]
fn kernels_that_take_no_packed_sequences() {
    for kernel in [Kernel::Naive, Kernel::V1, Kernel::V3] {
        assert_error!(
            error(|call, _| call.attention = call.attention.with_kernel(kernel)),
            Error::KernelUnsupported { kernel: found, reason: Unsupported::Sequences { found: "packed", accepted: "uniform" } } if *found == kernel
        );
    }
}

#[test]
fn options_without_a_meaning() {
    assert_error!(error(|call, _| call.attention = call.attention.with_scale(f32::NAN)), Error::Scale { .. });
    assert_error!(error(|call, _| call.attention = call.attention.with_softcap(-1.0)), Error::Softcap { .. });
}

/// Gradients share memory with nothing that is read, nor with each other, nor with themselves.
#[test]
fn gradients_that_overlap() {
    let shared = device::shared();
    let device = &shared.device;
    let mut call = Call::new(device);
    let memory = tensor(device, DType::F16, [4096]);
    let at = |offset: u64, shape: [usize; 3], strides: [usize; 3]| {
        // SAFETY: inside the tensor, which no kernel runs on: the call is refused.
        unsafe {
            ferroflash::TensorViewMut::from_raw(device, memory.address() + offset, 4096, shape, strides, DType::F16)
        }
        .unwrap()
    };
    let contiguous = |[_, heads, dim]: [usize; 3]| [heads * dim, dim, 1];
    let starts = Indices::from_slice(device, &[0, 2, 5]).unwrap();
    let kv_starts = Indices::from_slice(device, &[0, 3, 7]).unwrap();
    let (q_rows, kv_rows) = (PackedRows::new(starts.view()), PackedRows::new(kv_starts.view()));
    let mut run = |dq: ferroflash::TensorViewMut<'_>, dk: ferroflash::TensorViewMut<'_>| {
        let Call { attention, tensors: [q, k, v, out, dout, .., dv], lse, .. } = &mut call;
        let stream = q.device().default_stream();
        let mut into = GradientsViewMut::new(dq, dk, dv.view_mut());
        let (q, k, v, out, dout, lse) = (q.view(), k.view(), v.view(), out.view(), dout.view(), lse.view());
        let result =
            attention.backward_packed_into(&stream, &q, &k, &v, &out, &lse, dout, &q_rows, &kv_rows, &mut into);
        result.expect_err("the call should be refused")
    };
    assert_error!(
        run(at(0, Q, contiguous(Q)), at(0, KV, contiguous(KV))),
        Error::OutputOverlaps { output: Operand::Dk, other: Operand::Dq }
    );
    assert_error!(run(at(0, Q, [0, 32, 1]), at(4096, KV, contiguous(KV))), Error::OutputOverlapsItself { .. });
    for (name, address) in
        [(Operand::QStarts, starts.view().address()), (Operand::KvStarts, kv_starts.view().address())]
    {
        // SAFETY: nothing is written: the call is refused.
        let dq = unsafe {
            ferroflash::TensorViewMut::from_raw(device, address, 4096, Q, contiguous(Q), DType::F16).unwrap()
        };
        assert_error!(
            run(dq, at(0, KV, contiguous(KV))),
            Error::OutputOverlaps { output: Operand::Dq, other } if *other == name
        );
    }
}

#[test]
fn problems_that_are_too_large() {
    let shared = device::shared();
    let plan = |batch, q_rows, heads| {
        let sequences = Sequences::Packed { batch, q_rows, kv_rows: 1 };
        Attention::new().backward_plan(&shared.device, Problem::new(sequences, heads, 1, 64, DType::F16))
    };
    assert_error!(
        plan(1 << 25, 128, 1).unwrap_err(),
        Error::Sequences(SequencesError::TooMany { found: 0x200_0000, rows: 128, limit: 0x1ff_fffe })
    );
    assert_error!(plan(0x1ff_fffe, 128, 100).unwrap_err(), Error::GridTooLarge { .. });
    assert_error!(plan(1, 1 << 29, 1).unwrap_err(), Error::TooManyRows { tensor: Operand::Q, .. });
    if !device::is_gpu() {
        assert_error!(plan(0x1ff_fffe, 128, 8).unwrap_err(), Error::WorkspaceTooLarge { kernel: Kernel::V2, .. });
    }
}

/// What has no gradients says so.
#[test]
fn sequences_in_caches() {
    let shared = device::shared();
    let each = ferroflash::QueryRows::Each(1);
    for (kind, sequences) in [
        ("cached", Sequences::Cached { batch: 2, q_rows: each, capacity: 100 }),
        ("paged", Sequences::Paged { batch: 2, q_rows: each, pages: 6, page_rows: 16, width: 3 }),
    ] {
        let error =
            Attention::new().backward_plan(&shared.device, Problem::new(sequences, 1, 1, 64, DType::F16)).unwrap_err();
        let words = format!("not supported: the sequences are {kind}; uniform and packed ones are accepted");
        assert_eq!(error.to_string(), words);
        assert_error!(error, Error::Unsupported(Unsupported::Sequences { found, .. }) if *found == kind);
    }
}
