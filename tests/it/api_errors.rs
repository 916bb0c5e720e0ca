//! Every bad input gets the error that names it, before anything is launched.

use crate::support::program;
use crate::support::stub_driver::{self, Function, returns, writes};
use crate::support::{device, f16};
use ferroflash::{
    Arch, Attention, DType, Device, Dims, Error, Kernel, Layout, Lse, LseShape, LseViewMut, Mask, Operand, Shape,
    Sizes, Strides, Tensor, TensorView, TensorViewMut,
};

/// A call whose parts the tests spoil one at a time.
struct Call {
    attention: Attention<'static>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Lse,
}

const Q: Shape = Shape::new(2, 5, 4, 32);
const KV: Shape = Shape::new(2, 7, 2, 32);

fn tensor(device: &Device, dtype: DType, shape: Shape) -> Tensor {
    Tensor::zeros(device, dtype, shape, Layout::Bshd).expect("a small tensor")
}

impl Call {
    fn new(device: &Device) -> Call {
        Call {
            attention: Attention::new(),
            q: tensor(device, DType::F16, Q),
            k: tensor(device, DType::F16, KV),
            v: tensor(device, DType::F16, KV),
            out: tensor(device, DType::F16, Q),
            lse: Lse::uninit(device, LseShape { batch: Q.batch, heads: Q.heads, rows: Q.rows })
                .expect("a small tensor"),
        }
    }

    /// The error of the call. The outputs must be untouched.
    fn error(&mut self) -> Error {
        self.out.fill_bytes(0xff).unwrap();
        self.lse.fill_bytes(0xff).unwrap();
        let stream = self.q.device().default_stream();
        let (q, k, v) = (self.q.view(), self.k.view(), self.v.view());
        let result =
            self.attention.forward_into(&stream, &q, &k, &v, &mut self.out.view_mut(), Some(&mut self.lse.view_mut()));
        let error = result.expect_err("the call should be refused");
        assert_untouched(&self.out);
        assert!(self.lse.to_vec().unwrap().iter().all(|x| x.is_nan()), "the log-sum-exp was written");
        error
    }
}

fn assert_untouched(out: &Tensor) {
    assert!(out.to_f64_vec().unwrap().iter().all(|x| x.is_nan()), "the output was written");
}

/// The error of a call with one part changed.
fn error_with(change: impl FnOnce(&Device, &mut Call)) -> Error {
    let shared = device::shared();
    let mut call = Call::new(&shared.device);
    change(&shared.device, &mut call);
    call.error()
}

/// The error that matches, or a panic that shows the one that came.
macro_rules! assert_error {
    ($error:expr, $pattern:pat) => {
        let error = &$error;
        assert!(matches!(error, $pattern), "{error:?}: {error}");
    };
}

/// Without this, the refusals below could come from anything.
#[test]
fn the_unspoiled_call_is_accepted() {
    let shared = device::shared();
    let mut call = Call::new(&shared.device);
    let stream = shared.device.default_stream();
    let (q, k, v) = (call.q.view(), call.k.view(), call.v.view());
    call.attention.forward_into(&stream, &q, &k, &v, &mut call.out.view_mut(), Some(&mut call.lse.view_mut())).unwrap();
    stream.synchronize().unwrap();
    assert!(call.out.to_f64_vec().unwrap().iter().all(|&x| x == 0.0));
    let ln7 = 7f32.ln();
    assert!(call.lse.to_vec().unwrap().iter().all(|x| (x - ln7).abs() < 1e-6));
}

#[test]
fn rank() {
    for layout in [Layout::Bshd, Layout::Bhsd] {
        assert_error!(Shape::from_dims(&[2, 5, 32], layout).unwrap_err(), Error::Rank { found: 3 });
        assert_error!(Shape::from_dims(&[1, 2, 5, 4, 32], layout).unwrap_err(), Error::Rank { found: 5 });
        assert_error!(Strides::from_dims(&[], layout).unwrap_err(), Error::Rank { found: 0 });
    }
}

#[test]
fn batch_sizes_differ() {
    let shape = Shape { batch: 3, ..KV };
    assert_error!(
        error_with(|device, call| call.k = tensor(device, DType::F16, shape)),
        Error::BatchMismatch { tensor: Operand::K, found: 3, expected: 2 }
    );
    assert_error!(
        error_with(|device, call| call.v = tensor(device, DType::F16, shape)),
        Error::BatchMismatch { tensor: Operand::V, found: 3, expected: 2 }
    );
    assert_error!(
        error_with(|device, call| call.out = tensor(device, DType::F16, Shape { batch: 1, ..Q })),
        Error::BatchMismatch { tensor: Operand::Out, found: 1, expected: 2 }
    );
    let lse = LseShape { batch: 1, heads: Q.heads, rows: Q.rows };
    assert_error!(
        error_with(|device, call| call.lse = Lse::uninit(device, lse).unwrap()),
        Error::BatchMismatch { tensor: Operand::Lse, found: 1, expected: 2 }
    );
}

#[test]
fn row_counts_differ() {
    assert_error!(
        error_with(|device, call| call.v = tensor(device, DType::F16, Shape { rows: 6, ..KV })),
        Error::RowsMismatch { tensor: Operand::V, found: 6, of: Operand::K, expected: 7 }
    );
    assert_error!(
        error_with(|device, call| call.out = tensor(device, DType::F16, Shape { rows: 6, ..Q })),
        Error::RowsMismatch { tensor: Operand::Out, found: 6, of: Operand::Q, expected: 5 }
    );
    let lse = LseShape { batch: Q.batch, heads: Q.heads, rows: 4 };
    assert_error!(
        error_with(|device, call| call.lse = Lse::uninit(device, lse).unwrap()),
        Error::RowsMismatch { tensor: Operand::Lse, found: 4, of: Operand::Q, expected: 5 }
    );
}

#[test]
fn head_counts_differ() {
    assert_error!(
        error_with(|device, call| call.v = tensor(device, DType::F16, Shape { heads: 4, ..KV })),
        Error::HeadsMismatch { tensor: Operand::V, found: 4, of: Operand::K, expected: 2 }
    );
    assert_error!(
        error_with(|device, call| call.out = tensor(device, DType::F16, Shape { heads: 2, ..Q })),
        Error::HeadsMismatch { tensor: Operand::Out, found: 2, of: Operand::Q, expected: 4 }
    );
    let lse = LseShape { batch: Q.batch, heads: 3, rows: Q.rows };
    assert_error!(
        error_with(|device, call| call.lse = Lse::uninit(device, lse).unwrap()),
        Error::HeadsMismatch { tensor: Operand::Lse, found: 3, of: Operand::Q, expected: 4 }
    );
}

#[test]
fn query_heads_are_no_multiple_of_key_value_heads() {
    for kv_heads in [3, 8] {
        let shape = Shape { heads: kv_heads, ..KV };
        let error = error_with(|device, call| {
            call.k = tensor(device, DType::F16, shape);
            call.v = tensor(device, DType::F16, shape);
        });
        assert!(matches!(error, Error::HeadGroups { q_heads: 4, kv_heads: found } if found == kv_heads), "{error:?}");
    }
}

#[test]
fn head_dims_differ() {
    assert_error!(
        error_with(|device, call| call.k = tensor(device, DType::F16, Shape { head_dim: 40, ..KV })),
        Error::HeadDimMismatch { tensor: Operand::K, found: 40, expected: 32 }
    );
    assert_error!(
        error_with(|device, call| call.v = tensor(device, DType::F16, Shape { head_dim: 24, ..KV })),
        Error::HeadDimMismatch { tensor: Operand::V, found: 24, expected: 32 }
    );
    assert_error!(
        error_with(|device, call| call.out = tensor(device, DType::F16, Shape { head_dim: 64, ..Q })),
        Error::HeadDimMismatch { tensor: Operand::Out, found: 64, expected: 32 }
    );
}

#[test]
fn head_dims_that_no_kernel_takes() {
    for head_dim in [1, 4, 12, 100, 260, 264, 512] {
        let error = error_with(|device, call| {
            call.q = tensor(device, DType::F16, Shape { head_dim, ..Q });
            call.k = tensor(device, DType::F16, Shape { head_dim, ..KV });
            call.v = tensor(device, DType::F16, Shape { head_dim, ..KV });
            call.out = tensor(device, DType::F16, Shape { head_dim, ..Q });
        });
        assert!(matches!(error, Error::HeadDim { found } if found == head_dim), "{error:?}");
    }
}

#[test]
fn element_types_differ() {
    assert_error!(
        error_with(|device, call| call.k = tensor(device, DType::Bf16, KV)),
        Error::DTypeMismatch { tensor: Operand::K, found: DType::Bf16, expected: DType::F16 }
    );
    assert_error!(
        error_with(|device, call| call.v = tensor(device, DType::F32, KV)),
        Error::DTypeMismatch { tensor: Operand::V, found: DType::F32, expected: DType::F16 }
    );
    assert_error!(
        error_with(|device, call| call.out = tensor(device, DType::F32, Q)),
        Error::DTypeMismatch { tensor: Operand::Out, found: DType::F32, expected: DType::F16 }
    );
}

#[test]
fn empty_axes() {
    let empty = |q: Shape, kv: Shape| {
        error_with(|device, call| {
            call.q = tensor(device, DType::F16, q);
            call.k = tensor(device, DType::F16, kv);
            call.v = tensor(device, DType::F16, kv);
            call.out = tensor(device, DType::F16, q);
        })
    };
    assert_error!(
        empty(Shape { batch: 0, ..Q }, Shape { batch: 0, ..KV }),
        Error::EmptyAxis { tensor: Operand::Q, axis: "batch" }
    );
    assert_error!(empty(Shape { rows: 0, ..Q }, KV), Error::EmptyAxis { tensor: Operand::Q, axis: "rows" });
    assert_error!(
        empty(Shape { heads: 0, ..Q }, Shape { heads: 0, ..KV }),
        Error::EmptyAxis { tensor: Operand::Q, axis: "heads" }
    );
    assert_error!(empty(Q, Shape { heads: 0, ..KV }), Error::EmptyAxis { tensor: Operand::K, axis: "heads" });
    assert_error!(
        empty(Shape { head_dim: 0, ..Q }, Shape { head_dim: 0, ..KV }),
        Error::HeadDim { found: 0 } | Error::EmptyAxis { .. }
    );
}

#[test]
fn scales_that_are_no_number() {
    // The largest finite scale overflows when the kernels multiply it with log2(e).
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let error = error_with(|_, call| call.attention = Attention::new().with_scale(scale));
        assert!(matches!(error, Error::Scale { found } if found.to_bits() == scale.to_bits()), "{error:?}");
    }
}

#[test]
fn the_last_dim_is_not_contiguous() {
    let shared = device::shared();
    let device = &shared.device;
    let storage = tensor(device, DType::F16, Shape::new(1, 1, 1, 4096));
    let sparse = |shape: Shape| {
        let strides = Strides { dim: 2, ..Strides::new(shape.rows * shape.heads * 64, shape.heads * 64, 64) };
        storage.strided(0, shape, strides).unwrap()
    };
    let mut call = Call::new(device);
    let plain = (call.q.view(), call.k.view(), call.v.view());
    let stream = device.default_stream();
    for (operand, (q, k, v)) in [
        (Operand::Q, (sparse(Q), plain.1, plain.2)),
        (Operand::K, (plain.0, sparse(KV), plain.2)),
        (Operand::V, (plain.0, plain.1, sparse(KV))),
    ] {
        let error = call.attention.forward_into(&stream, &q, &k, &v, &mut call.out.view_mut(), None).unwrap_err();
        assert!(matches!(error, Error::LastDimNotContiguous { tensor, stride: 2 } if tensor == operand), "{error:?}");
    }
    let mut wide = tensor(device, DType::F16, Shape::new(1, 1, 1, 4096));
    let strides = Strides { dim: 2, ..Strides::new(5 * 4 * 64, 4 * 64, 64) };
    let mut out = wide.strided_mut(0, Q, strides).unwrap();
    let error = call.attention.forward_into(&stream, &plain.0, &plain.1, &plain.2, &mut out, None).unwrap_err();
    assert_error!(error, Error::LastDimNotContiguous { tensor: Operand::Out, stride: 2 });
}

#[test]
fn an_output_that_overlaps_itself() {
    let shared = device::shared();
    let mut call = Call::new(&shared.device);
    let stream = shared.device.default_stream();
    let mut storage = tensor(&shared.device, DType::F16, Shape::new(1, 1, 1, 4096));
    // Heads 24 apart, 32 wide; all batch entries in one place.
    for strides in [Strides::new(5 * 128, 128, 24), Strides::new(0, 128, 32)] {
        storage.fill_bytes(0xff).unwrap();
        let mut out = storage.strided_mut(0, Q, strides).unwrap();
        let (q, k, v) = (call.q.view(), call.k.view(), call.v.view());
        let error = call.attention.forward_into(&stream, &q, &k, &v, &mut out, None).unwrap_err();
        assert!(
            matches!(&error, Error::OutputOverlapsItself { strides: found, .. } if found[..] == Dims::from(strides)[..]),
            "{error:?}"
        );
        assert_untouched(&storage);
    }
    call.lse.fill_bytes(0).unwrap();
}

/// Views of other frameworks' memory may overlap in ways that borrowed Rust tensors cannot.
#[test]
fn outputs_that_overlap_other_tensors() {
    let shared = device::shared();
    let device = &shared.device;
    let call = Call::new(device);
    let mut storage = tensor(device, DType::F16, Shape::new(1, 1, 1, 8192));
    let base = storage.address();
    let at = |elements: usize| base + (elements * DType::F16.bytes()) as u64;
    let strides = |shape: Shape| shape.contiguous(Layout::Bshd).unwrap();
    let view = |elements, shape: Shape| {
        // SAFETY: the address lies within `storage`, which lives, and nobody else uses it meanwhile.
        unsafe { TensorView::from_raw(device, at(elements), 8192 - elements, shape, strides(shape), DType::F16) }
            .unwrap()
    };
    let out_at = |elements| {
        // SAFETY: as above.
        unsafe { TensorViewMut::from_raw(device, at(elements), 8192 - elements, Q, strides(Q), DType::F16) }.unwrap()
    };
    let stream = device.default_stream();
    let (q_elements, kv_elements) = (Q.elements().unwrap(), KV.elements().unwrap());
    let (q, k, v) = (view(0, Q), view(q_elements, KV), view(q_elements + kv_elements, KV));
    let free = q_elements + 2 * kv_elements;
    let forward = |out: usize, lse: Option<u64>| {
        let shape = LseShape { batch: Q.batch, heads: Q.heads, rows: Q.rows };
        // SAFETY: as above.
        let mut lse = lse.map(|address| unsafe { LseViewMut::from_raw(device, address, 40, shape).unwrap() });
        call.attention.forward_into(&stream, &q, &k, &v, &mut out_at(out), lse.as_mut())
    };
    let overlap = |out, lse| match forward(out, lse).unwrap_err() {
        Error::OutputOverlaps { output, other } => (output, other),
        error => panic!("{error:?}"),
    };
    assert_eq!(overlap(0, None), (Operand::Out, Operand::Q));
    // The last element of q, and the first of k with it.
    assert_eq!(overlap(q_elements - 8, None).0, Operand::Out);
    assert_eq!(overlap(q_elements + kv_elements - 8, None), (Operand::Out, Operand::K));
    assert_eq!(overlap(free - 8, None), (Operand::Out, Operand::V));
    assert_eq!(overlap(free, Some(at(free + q_elements - 2))), (Operand::Lse, Operand::Out));
    assert_eq!(overlap(free, Some(at(0))), (Operand::Lse, Operand::Q));
    assert_eq!(overlap(free, Some(at(q_elements))), (Operand::Lse, Operand::K));
    assert_eq!(overlap(free, Some(at(q_elements + kv_elements))), (Operand::Lse, Operand::V));
    // Side by side is fine, and shows that the refusals were for the overlap.
    forward(free, Some(at(free + q_elements))).unwrap();
    stream.synchronize().unwrap();
    storage.fill_bytes(0).unwrap();
}

#[test]
fn tensors_on_different_devices() {
    let shared = device::shared();
    // Every emulator is a device of its own.
    let other = Device::emulator().expect("the tests are built with the emulator");
    assert_error!(error_with(|_, call| call.k = tensor(&other, DType::F16, KV)), Error::DeviceMismatch { .. });
    assert_error!(
        error_with(|_, call| call.lse =
            Lse::uninit(&other, LseShape { batch: Q.batch, heads: Q.heads, rows: Q.rows }).unwrap()),
        Error::DeviceMismatch { .. }
    );
    let mut call = Call::new(&shared.device);
    let (q, k, v) = (call.q.view(), call.k.view(), call.v.view());
    let error =
        call.attention.forward_into(&other.default_stream(), &q, &k, &v, &mut call.out.view_mut(), None).unwrap_err();
    assert!(error.to_string().contains("the stream"), "{error}");
    assert_error!(shared.device.time(&other.default_stream(), || Ok(())).unwrap_err(), Error::DeviceMismatch { .. });
    let stream = shared.device.default_stream();
    let mut copy = tensor(&shared.device, DType::F16, KV);
    for (dtype, device, shape) in
        [(DType::F16, &other, KV), (DType::Bf16, &shared.device, KV), (DType::F16, &shared.device, Q)]
    {
        let error = copy.copy_from(&stream, &tensor(device, dtype, shape)).unwrap_err();
        assert!(matches!(error, Error::CopyMismatch { .. }), "{error}");
    }
    let error = copy.copy_from(&other.default_stream(), &tensor(&shared.device, DType::F16, KV)).unwrap_err();
    assert!(matches!(error, Error::DeviceMismatch { .. }), "{error}");
}

#[test]
fn too_many_rows() {
    let shared = device::shared();
    let call = Call::new(&shared.device);
    let rows = 1 << 29;
    // One row of memory, seen over and over.
    let repeated = call.k.strided(0, Shape { rows, ..KV }, Strides::new(0, 0, 32)).unwrap();
    let error = call.attention.forward(&call.q.view(), &repeated, &repeated).unwrap_err();
    assert!(matches!(error, Error::TooManyRows { tensor: Operand::K, found } if found == rows), "{error:?}");
}

fn plan(kernel: Kernel, problem: Sizes) -> ferroflash::Result<ferroflash::Plan> {
    let shared = device::shared();
    Attention::new().with_kernel(kernel).plan(&shared.device, problem)
}

const PROBLEM: Sizes =
    Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: DType::F16 };

#[test]
fn grids_and_workspaces_that_are_too_large() {
    let many_rows = (1 << 29) - 1;
    for problem in [Sizes { batch: 1 << 32, ..PROBLEM }, Sizes { batch: usize::MAX, q_heads: 2, ..PROBLEM }] {
        for kernel in [Kernel::Naive, Kernel::V1, Kernel::V2] {
            // More heads than a grid has thread blocks.
            assert_error!(plan(kernel, problem).unwrap_err(), Error::GridTooLarge { .. });
        }
        // Its grid is never larger than the GPU, but its schedule counts tiles.
        assert_error!(plan(Kernel::V3, problem).unwrap_err(), Error::KernelUnsupported { kernel: Kernel::V3, .. });
    }
    assert_error!(
        plan(Kernel::Naive, Sizes { q_rows: many_rows, kv_rows: many_rows, ..PROBLEM }).unwrap_err(),
        Error::GridTooLarge { .. }
    );
    // 2^20 x 2^20 scores of four bytes, and their probabilities.
    let rows = 1 << 20;
    assert_error!(
        plan(Kernel::Naive, Sizes { q_rows: rows, kv_rows: rows, ..PROBLEM }).unwrap_err(),
        Error::WorkspaceTooLarge { kernel: Kernel::Naive, needed: 6_597_069_766_656, .. }
    );
    assert!(plan(Kernel::V2, Sizes { q_rows: rows, kv_rows: rows, ..PROBLEM }).is_ok());
}

/// What v3 does not run: an error when it is asked for, and the reason for v2 when the library chooses.
#[test]
fn what_v3_does_not_run() {
    let shared = device::shared();
    let device = &shared.device;
    let (half, single) =
        (tensor(device, DType::F16, Shape::new(1, 64, 8, 64)), tensor(device, DType::F32, Shape::new(1, 64, 8, 64)));
    let contiguous = |tensor, shape: Shape| view(tensor, 0, shape, shape.contiguous(Layout::Bshd).unwrap());
    fn view(tensor: &Tensor, offset: usize, shape: Shape, strides: Strides) -> TensorView<'_> {
        tensor.strided(offset, shape, strides).unwrap()
    }
    let (q, kv) = (contiguous(&half, Q), contiguous(&half, KV));
    let runs = device.info().runs(Arch::Sm90a);
    let chosen = Attention::new().plan_for(&q, &kv, &kv, None).unwrap();
    assert_eq!(chosen.kernel, if runs { Kernel::V3 } else { Kernel::V2 }, "{chosen}");

    let strides = KV.contiguous(Layout::Bshd).unwrap();
    let (moved, none) = (view(&half, 4, Q, Q.contiguous(Layout::Bshd).unwrap()), Shape { rows: 0, ..KV });
    let with = |strides| view(&half, 0, KV, strides);
    let (odd_rows, one_batch) = (with(Strides { row: 68, ..strides }), with(Strides { batch: 0, ..strides }));
    let (one_head, odd_batch) = (with(Strides { head: 0, ..strides }), with(Strides { batch: 449, ..strides }));
    let stride = |tensor: &str, axis: &str, bytes: usize| {
        format!(
            "the {axis} stride of {tensor} is {bytes} bytes; multiples of 16 bytes from 16 to below 2^40 are accepted (0, which \
             repeats memory, is none of them)"
        )
    };
    let address = |tensor: &str| {
        format!("{tensor} starts at address {:#x}; multiples of 16 bytes are accepted", half.address() + 8)
    };
    let (q32, kv32) = (contiguous(&single, Q), contiguous(&single, KV));
    let empty = contiguous(&half, none);
    let cases = [
        (q32, kv32, kv32, None, "the tensors hold f32; f16 and bf16 are accepted".to_owned()),
        (q, empty, empty, None, "k and v have no rows; at least 1 is needed".to_owned()),
        (moved, kv, kv, None, address("q")),
        (q, kv, kv, Some(moved), address("out")),
        (q, odd_rows, kv, None, stride("k", "row", 136)),
        (q, kv, odd_batch, None, stride("v", "batch", 898)),
        (q, one_batch, kv, None, stride("k", "batch", 0)),
        (q, kv, one_head, None, stride("v", "head", 0)),
    ];
    for (q, k, v, out, reason) in cases {
        let reason = if runs {
            reason
        } else {
            let found = device.info().compute_capability();
            format!("the device has compute capability {found}; 9.0 alone is accepted")
        };
        let forced = Attention::new().with_kernel(Kernel::V3);
        let error = forced.plan_for(&q, &k, &v, out.as_ref()).unwrap_err();
        assert_error!(error, Error::KernelUnsupported { kernel: Kernel::V3, .. });
        assert_eq!(error.to_string(), format!("kernel v3 cannot run this: {reason}"));
        if out.is_none() {
            assert_eq!(forced.forward(&q, &k, &v).unwrap_err().to_string(), error.to_string());
        }
        let plan = Attention::new().plan_for(&q, &k, &v, out.as_ref()).unwrap();
        assert_eq!(plan.kernel, Kernel::V2);
        assert_eq!(plan.reason, format!("the fastest of the kernels that run this, without v3: {reason}"));
    }
}

#[test]
fn more_memory_than_there_is() {
    let shared = device::shared();
    // 2^44 bytes: more than any device has.
    let shape = Shape::new(1 << 20, 1 << 16, 1, 128);
    let error = Tensor::uninit(&shared.device, DType::F16, shape, Layout::Bshd).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { requested, .. } if requested == 1 << 44), "{error:?}");
    let shape = Shape::new(usize::MAX, 2, 2, 2);
    let error = Tensor::uninit(&shared.device, DType::F16, shape, Layout::Bshd).unwrap_err();
    assert_error!(error, Error::TooLarge { .. });
}

#[test]
fn data_and_storage_of_the_wrong_size() {
    let shared = device::shared();
    let device = &shared.device;
    let error = Tensor::from_slice(device, &[0f32; 9], Shape::new(1, 1, 1, 8), Layout::Bshd).unwrap_err();
    assert_error!(error, Error::DataLength { expected: 8, found: 9, .. });
    let mut tensor = tensor(device, DType::F32, Shape::new(1, 2, 1, 8));
    assert_error!(tensor.write(&[0f32; 8]).unwrap_err(), Error::DataLength { expected: 16, found: 8, .. });
    let two_rows = Shape::new(1, 2, 1, 8);
    let error = tensor.strided(1, two_rows, Strides::new(0, 8, 0)).unwrap_err();
    assert_error!(error, Error::StorageTooSmall { needed: 17, available: 16, .. });
    let error = Tensor::from_slice_strided(device, &[0f32; 16], 0, two_rows, Strides::new(0, 9, 0)).unwrap_err();
    assert_error!(error, Error::StorageTooSmall { needed: 17, available: 16, .. });
    let error = tensor.strided(0, two_rows, Strides::new(0, usize::MAX, 0)).unwrap_err();
    assert_error!(error, Error::TooLarge { .. } | Error::StorageTooSmall { .. });
    assert_error!(tensor.to_vec::<f16>().unwrap_err(), Error::ElementType { found: DType::F32, requested: DType::F16 });
    assert_error!(
        tensor.write(&[f16::ZERO; 16]).unwrap_err(),
        Error::ElementType { found: DType::F32, requested: DType::F16 }
    );
    let heads = tensor.view().as_heads(Layout::Bshd).unwrap();
    assert_error!(heads.rows(1..3).unwrap_err(), Error::Range { axis: "rows", start: 1, end: 3, len: 2 });
    assert_error!(heads.heads(0..2).unwrap_err(), Error::Range { axis: "heads", start: 0, end: 2, len: 1 });
}

#[test]
fn addresses_between_elements() {
    let shared = device::shared();
    let tensor = tensor(&shared.device, DType::F32, Shape::new(1, 1, 1, 16));
    let shape = Shape::new(1, 1, 1, 8);
    let address = tensor.address() + 2;
    // SAFETY: the address lies within `tensor`; the view is refused.
    let error = unsafe {
        TensorView::from_raw(&shared.device, address, 8, shape, Strides::new(0, 0, 0), DType::F32).unwrap_err()
    };
    assert!(
        matches!(error, Error::MisalignedAddress { bytes: 4, address: found, .. } if found == address),
        "{error:?}"
    );
    let lse = LseShape { batch: 1, heads: 1, rows: 8 };
    // SAFETY: as above.
    let error = unsafe { LseViewMut::from_raw(&shared.device, address, 8, lse).unwrap_err() };
    assert_error!(error, Error::MisalignedAddress { dtype: DType::F32, .. });
    // SAFETY: as above.
    let error = unsafe { LseViewMut::from_raw(&shared.device, tensor.address(), 7, lse).unwrap_err() };
    assert_error!(error, Error::StorageTooSmall { needed: 8, available: 7, .. });
}

#[test]
fn device_names() {
    for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA:0", "emulator:0"] {
        let error = Device::open(name).expect_err(name);
        assert!(matches!(&error, Error::UnknownDevice { name: found } if found == name), "{name}: {error:?}");
    }
}

#[test]
fn a_gpu_that_does_not_exist() {
    match Device::cuda(4096) {
        Err(Error::NoSuchGpu { ordinal: 4096, count }) => assert!(count > 0 && Device::cuda(0).is_ok()),
        // A machine without a driver, or without a GPU, says that instead.
        Err(Error::NoDriver { .. } | Error::NoGpu) => assert!(Device::cuda(0).is_err()),
        other => panic!("{other:?}"),
    }
}

/// What the program says about a machine whose driver library is `functions`.
fn error_under_driver(functions: &[Function]) -> String {
    let folder = tempfile::tempdir().unwrap();
    stub_driver::install(folder.path(), functions);
    error_with_library_folder(folder.path())
}

fn error_with_library_folder(folder: &std::path::Path) -> String {
    let output = program::ferroflash()
        .args(["bench", "--device", "cuda"])
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .expect("the program starts");
    let stderr = program::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    stderr
}

#[test]
fn no_driver() {
    let folder = tempfile::tempdir().unwrap();
    // A file that is no library: what the machine itself has is not looked at.
    std::fs::write(folder.path().join("libcuda.so.1"), "no library").unwrap();
    let error = error_with_library_folder(folder.path());
    assert!(error.contains("no CUDA driver: ") && error.contains("libcuda.so.1"), "{error}");
    assert!(error.contains("the device `emulator` needs none"), "{error}");
}

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: u16 = 100;

/// A driver with every function that the library asks for: these, and others that find no GPU.
fn driver(version: u16, functions: &[Function]) -> Vec<Function> {
    let mut driver = vec![writes("cuDriverGetVersion", version)];
    driver.extend_from_slice(functions);
    let others = cust::sys::REQUIRED.iter().filter(|&&symbol| driver.iter().all(|function| function.name != symbol));
    let others: Vec<_> = others.map(|symbol| returns(symbol, NO_DEVICE)).collect();
    driver.extend(others);
    driver
}

#[test]
fn a_driver_that_is_too_old() {
    let error = error_under_driver(&driver(9020, &[returns("cuInit", 0)]));
    assert!(error.contains("the CUDA driver supports CUDA 9.2; at least CUDA 11.4"), "{error}");
    // It is too old first, whatever else it lacks.
    let error = error_under_driver(&[writes("cuDriverGetVersion", 11030)]);
    assert!(error.contains("the CUDA driver supports CUDA 11.3; at least CUDA 11.4"), "{error}");
}

#[test]
fn a_driver_that_lacks_functions() {
    let mut functions = driver(12040, &[returns("cuInit", 0)]);
    functions.retain(|function| !["cuMemPoolCreate", "cuGraphLaunch"].contains(&function.name));
    let error = error_under_driver(&functions);
    assert!(error.contains("the CUDA driver lacks cuGraphLaunch, cuMemPoolCreate;"), "{error}");
    let error = error_under_driver(&[returns("no_driver", 0)]);
    assert!(error.contains("the CUDA driver lacks cuDriverGetVersion;"), "{error}");
}

#[test]
fn a_driver_without_a_gpu() {
    let error = error_under_driver(&driver(12040, &[returns("cuInit", NO_DEVICE)]));
    assert!(error.contains("the CUDA driver finds no GPU"), "{error}");
    let error = error_under_driver(&driver(12040, &[returns("cuInit", 0), writes("cuDeviceGetCount", 0)]));
    assert!(error.contains("the CUDA driver finds no GPU"), "{error}");
}

#[test]
fn a_gpu_that_is_too_old() {
    let functions = driver(
        12040,
        &[
            returns("cuInit", 0),
            writes("cuDeviceGetCount", 1),
            writes("cuDeviceGet", 0),
            // Every attribute is 7: compute capability 7.7.
            writes("cuDeviceGetAttribute", 7),
            // The letter G.
            writes("cuDeviceGetName", 0x47),
            writes("cuDeviceTotalMem_v2", 1),
        ],
    );
    let error = error_under_driver(&functions);
    assert!(error.contains("G has compute capability 7.7; the kernels need at least 8.0"), "{error}");
}

#[test]
fn masks_of_any_bounds_are_no_error() {
    let shared = device::shared();
    let call = Call::new(&shared.device);
    for (left, right) in [(Some(u32::MAX), Some(u32::MAX)), (Some(0), Some(0)), (None, Some(1 << 30))] {
        let attention = Attention::new().with_mask(Mask::Window { left, right });
        attention.forward(&call.q.view(), &call.k.view(), &call.v.view()).unwrap();
    }
}
