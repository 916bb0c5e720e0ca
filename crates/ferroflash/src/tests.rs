//! What is decided before a launch: checks, plans, parameters, memory. On a device that records instead of computing.

use crate::backend::recording::{self, Launched};
use crate::*;
use kernel_spec::schedule::{Schedule, Work};
use kernel_spec::{Band, ForwardParams, NaiveParams, TensorMap, V3Params};

const SHAPE: Shape = Shape::new(2, 5, 4, 16);
const KV_SHAPE: Shape = Shape::new(2, 7, 2, 16);

struct Case {
    device: Device,
    launched: Launched,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
}

impl Case {
    fn new() -> Case {
        let (device, launched) = recording::device();
        let zeros = |shape| Tensor::zeros(&device, DType::F16, shape, Layout::Bshd).unwrap();
        let (q, k, v, out) = (zeros(SHAPE), zeros(KV_SHAPE), zeros(KV_SHAPE), zeros(SHAPE));
        Case { device, launched, q, k, v, out }
    }

    fn zeros(&self, shape: Shape) -> Tensor {
        Tensor::zeros(&self.device, DType::F16, shape, Layout::Bshd).unwrap()
    }

    /// The error of a call with these tensors, which must come before any launch.
    fn error(&self, q: &TensorView<'_>, k: &TensorView<'_>, v: &TensorView<'_>) -> Error {
        let error = Attention::new().forward(q, k, v).unwrap_err();
        assert!(self.launched.lock().unwrap().is_empty(), "{error}: launched all the same");
        error
    }

    fn error_into(&mut self, out: impl FnOnce(&mut Tensor) -> TensorViewMut<'_>) -> Error {
        let stream = self.device.default_stream();
        let (q, k, v) = (self.q.view(), self.k.view(), self.v.view());
        let error = Attention::new().forward_into(&stream, &q, &k, &v, &mut out(&mut self.out), None).unwrap_err();
        assert!(self.launched.lock().unwrap().is_empty(), "{error}: launched all the same");
        error
    }
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?, $message:expr) => {{
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
        assert_eq!(error.to_string(), $message);
    }};
}

#[test]
fn shapes_that_do_not_fit_together() {
    let case = Case::new();
    let (q, k, v) = (case.q.view(), case.k.view(), case.v.view());
    let other = case.zeros(Shape { batch: 3, ..KV_SHAPE });
    assert_error!(
        case.error(&q, &other.view(), &v),
        Error::BatchMismatch { tensor: Operand::K, .. },
        "k has batch 3, q has 2; they must be equal"
    );
    let other = case.zeros(Shape { rows: 6, ..KV_SHAPE });
    assert_error!(
        case.error(&q, &k, &other.view()),
        Error::RowsMismatch { tensor: Operand::V, .. },
        "v has 6 rows, k has 7; they must be equal"
    );
    let other = case.zeros(Shape { heads: 4, ..KV_SHAPE });
    assert_error!(
        case.error(&q, &k, &other.view()),
        Error::HeadsMismatch { tensor: Operand::V, .. },
        "v has 4 heads, k has 2; they must be equal"
    );
    let other = case.zeros(Shape { head_dim: 24, ..KV_SHAPE });
    assert_error!(
        case.error(&q, &k, &other.view()),
        Error::HeadDimMismatch { tensor: Operand::V, .. },
        "v has head_dim 24, q has 16; they must be equal"
    );
    let other = case.zeros(Shape { heads: 3, ..KV_SHAPE });
    assert_error!(
        case.error(&q, &other.view(), &other.view()),
        Error::HeadGroups { q_heads: 4, kv_heads: 3 },
        "4 query heads are no multiple of 3 key-value heads"
    );
    let other = Tensor::zeros(&case.device, DType::Bf16, KV_SHAPE, Layout::Bshd).unwrap();
    assert_error!(
        case.error(&q, &k, &other.view()),
        Error::DTypeMismatch { tensor: Operand::V, .. },
        "v holds bf16, q holds f16; they must be equal"
    );
    let (elsewhere, _) = recording::device();
    let other = Tensor::zeros(&elsewhere, DType::F16, KV_SHAPE, Layout::Bshd).unwrap();
    assert!(matches!(case.error(&q, &other.view(), &v), Error::DeviceMismatch { what, .. } if what == "k"));
}

#[test]
fn sizes_that_no_kernel_takes() {
    let case = Case::new();
    for head_dim in [0, 4, 12, 260, 264, 512] {
        let (q, kv) = (case.zeros(Shape { head_dim, ..SHAPE }), case.zeros(Shape { head_dim, ..KV_SHAPE }));
        assert_error!(
            case.error(&q.view(), &kv.view(), &kv.view()),
            Error::HeadDim { .. },
            format!("head_dim {head_dim} is not supported; accepted are the multiples of 8 from 8 to 256")
        );
    }
    let empty = [
        (Shape { batch: 0, ..SHAPE }, Shape { batch: 0, ..KV_SHAPE }, Operand::Q, "batch"),
        (Shape { rows: 0, ..SHAPE }, KV_SHAPE, Operand::Q, "rows"),
        (Shape { heads: 0, ..SHAPE }, KV_SHAPE, Operand::Q, "heads"),
        (SHAPE, Shape { heads: 0, ..KV_SHAPE }, Operand::K, "heads"),
    ];
    for (q, kv, tensor, axis) in empty {
        let (q, kv) = (case.zeros(q), case.zeros(kv));
        let error = case.error(&q.view(), &kv.view(), &kv.view());
        assert!(matches!(error, Error::EmptyAxis { tensor: t, axis: a } if (t, a) == (tensor, axis)), "{error:?}");
    }
    // 2^29 rows that are all the same row.
    let long = case.q.strided(0, Shape { rows: 1 << 29, ..SHAPE }, Strides::new(0, 0, 16)).unwrap();
    assert_error!(
        case.error(&long, &case.k.view(), &case.v.view()),
        Error::TooManyRows { tensor: Operand::Q, .. },
        "q has 536870912 rows; fewer than 536870912 are accepted"
    );
    let wide = case.q.strided(0, SHAPE, Strides { dim: 2, ..Strides::new(0, 0, 0) }).unwrap();
    assert_error!(
        case.error(&wide, &case.k.view(), &case.v.view()),
        Error::LastDimNotContiguous { tensor: Operand::Q, stride: 2 },
        "the last dim of q has stride 2; it must be contiguous (stride 1), the other strides are free"
    );
    let fast = Problem {
        dtype: DType::F16,
        batch: 1 << 20,
        q_rows: 1 << 20,
        kv_rows: 8,
        q_heads: 1 << 10,
        kv_heads: 1,
        head_dim: 8,
    };
    assert!(matches!(Attention::new().plan(&case.device, &fast), Err(Error::GridTooLarge { .. })));
}

#[test]
fn ranks() {
    assert_error!(
        Shape::from_dims(&[2, 3, 4], Layout::Bshd).unwrap_err(),
        Error::Rank { found: 3 },
        "a tensor has 4 axes (batch, row, head, dim); 3 were given"
    );
    assert_eq!(Shape::from_dims(&[2, 3, 4, 5], Layout::Bhsd).unwrap(), Shape::new(2, 4, 3, 5));
    assert!(matches!(Strides::from_dims(&[1; 5], Layout::Bshd), Err(Error::Rank { found: 5 })));
    assert_eq!(Strides::from_dims(&[60, 20, 5, 1], Layout::Bhsd).unwrap(), Strides::new(60, 5, 20));
}

#[test]
fn outputs_that_do_not_fit() {
    let mut case = Case::new();
    assert!(matches!(
        case.error_into(|out| out.view_mut().into_rows(1..4).unwrap()),
        Error::RowsMismatch { tensor: Operand::Out, found: 3, of: Operand::Q, expected: 5 }
    ));
    assert!(matches!(
        case.error_into(|out| out.view_mut().into_heads(0..2).unwrap()),
        Error::HeadsMismatch { tensor: Operand::Out, found: 2, of: Operand::Q, expected: 4 }
    ));
    assert!(matches!(
        case.error_into(|out| out.strided_mut(0, SHAPE, Strides::new(320, 0, 16)).unwrap()),
        Error::OutputOverlapsItself { .. }
    ));
    assert!(matches!(
        case.error_into(|out| out
            .strided_mut(0, SHAPE, Strides { dim: 0, ..SHAPE.contiguous(Layout::Bshd).unwrap() })
            .unwrap()),
        Error::LastDimNotContiguous { tensor: Operand::Out, stride: 0 }
    ));
}

#[test]
fn outputs_that_overlap() {
    let case = Case::new();
    let stream = case.device.default_stream();
    let attention = Attention::new();
    let overlapping = |tensor: &Tensor, expected: Operand| {
        // SAFETY: memory of the device, which records and computes nothing.
        let mut out = unsafe {
            let (strides, dtype) = (SHAPE.contiguous(Layout::Bshd).unwrap(), DType::F16);
            TensorViewMut::from_raw(&case.device, tensor.address() + 2, 10_000, SHAPE, strides, dtype).unwrap()
        };
        let error = attention.forward_into(&stream, &case.q.view(), &case.k.view(), &case.v.view(), &mut out, None);
        assert!(matches!(error, Err(Error::OutputOverlaps { output: Operand::Out, other }) if other == expected));
    };
    overlapping(&case.q, Operand::Q);
    let (q, k, v) = (case.q.view(), case.k.view(), case.v.view());
    let lse_at = |address| {
        let shape = LseShape { batch: 2, heads: 4, rows: 5 };
        // SAFETY: as above.
        unsafe { LseViewMut::from_raw(&case.device, address, 40, shape).unwrap() }
    };
    for (address, other) in [(case.out.address(), Operand::Out), (case.v.address() + 8, Operand::V)] {
        // SAFETY: as above.
        let mut out = unsafe {
            let (address, strides) = (case.out.address(), case.out.strides());
            TensorViewMut::from_raw(&case.device, address, 640, SHAPE, strides, DType::F16).unwrap()
        };
        let error = attention.forward_into(&stream, &q, &k, &v, &mut out, Some(&mut lse_at(address)));
        assert!(
            matches!(error, Err(Error::OutputOverlaps { output: Operand::Lse, other: o }) if o == other),
            "{error:?}"
        );
    }
    assert!(case.launched.lock().unwrap().is_empty());
}

#[test]
fn storage_and_addresses() {
    let (device, _) = recording::device();
    let data = [half::f16::ONE; 100];
    assert_error!(
        Tensor::from_slice(&device, &data, Shape::new(1, 2, 3, 16), Layout::Bshd).unwrap_err(),
        Error::DataLength { expected: 96, found: 100, .. },
        "shape [batch 1, rows 2, heads 3, head_dim 16] holds 96 elements, the slice holds 100"
    );
    let strided =
        |offset, strides| Tensor::from_slice_strided(&device, &data, offset, Shape::new(1, 2, 3, 16), strides);
    assert!(strided(4, Strides::new(0, 48, 16)).is_ok());
    assert_error!(
        strided(5, Strides::new(0, 48, 16)).unwrap_err(),
        Error::StorageTooSmall { needed: 101, available: 100, .. },
        "shape [batch 1, rows 2, heads 3, head_dim 16] with strides [batch 0, row 48, head 16, dim 1] needs 101 elements of storage, 100 are there"
    );
    for strides in [Strides::new(0, usize::MAX, 16), Strides::new(0, usize::MAX / 8, usize::MAX / 16)] {
        assert!(matches!(strided(0, strides), Err(Error::TooLarge { .. })));
    }
    assert!(matches!(strided(usize::MAX, Strides::new(0, 48, 16)), Err(Error::TooLarge { .. })));
    let huge = Shape::new(1 << 30, 1 << 30, 1 << 10, 8);
    assert!(matches!(Tensor::uninit(&device, DType::F16, huge, Layout::Bshd), Err(Error::TooLarge { .. })));
    let large = Shape::new(1, 1 << 20, 1 << 10, 8);
    assert!(matches!(Tensor::uninit(&device, DType::F16, large, Layout::Bshd), Err(Error::OutOfMemory { .. })));
    let (shape, strides) = (Shape::new(1, 1, 1, 8), Strides::new(8, 8, 8));
    // SAFETY: the view is not used.
    let view = unsafe { TensorView::from_raw(&device, 4097, 8, shape, strides, DType::F16) };
    assert_error!(
        view.unwrap_err(),
        Error::MisalignedAddress { address: 4097, bytes: 2, .. },
        "address 0x1001 is no multiple of the 2 bytes of one f16 element"
    );
    let tensor = Tensor::zeros(&device, DType::F16, shape, Layout::Bshd).unwrap();
    assert_error!(
        tensor.to_vec::<f32>().unwrap_err(),
        Error::ElementType { found: DType::F16, requested: DType::F32 },
        "the tensor holds f16, f32 was asked for"
    );
    assert!(matches!(tensor.view().rows(1..2), Err(Error::Range { axis: "rows", start: 1, end: 2, len: 1 })));
}

#[test]
fn scales() {
    let case = Case::new();
    let (q, k, v) = (case.q.view(), case.k.view(), case.v.view());
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let error = Attention::new().with_scale(scale).forward(&q, &k, &v).unwrap_err();
        assert!(matches!(error, Error::Scale { .. }), "{error:?}");
    }
    for scale in [0.0, -0.0, -3.5, 1e30, f32::MIN_POSITIVE] {
        let plan = Attention::new().with_scale(scale).forward(&q, &k, &v).unwrap().plan;
        assert_eq!(plan.scale, scale);
    }
}

#[test]
fn memory_order_and_logical_order() {
    let (device, _) = recording::device();
    let shape = Shape::new(2, 3, 2, 8);
    let value = |b: usize, r: usize, h: usize, d: usize| (b * 1000 + r * 100 + h * 10 + d) as f32;
    let mut logical = Vec::new();
    for (b, r) in (0..2).flat_map(|b| (0..3).map(move |r| (b, r))) {
        logical.extend((0..2).flat_map(|h| (0..8).map(move |d| value(b, r, h, d))));
    }
    let mut head_major = Vec::new();
    for (b, h) in (0..2).flat_map(|b| (0..2).map(move |h| (b, h))) {
        head_major.extend((0..3).flat_map(|r| (0..8).map(move |d| value(b, r, h, d))));
    }
    let bshd = Tensor::from_slice(&device, &logical, shape, Layout::Bshd).unwrap();
    let bhsd = Tensor::from_slice(&device, &head_major, shape, Layout::Bhsd).unwrap();
    assert_eq!(bshd.to_vec::<f32>().unwrap(), logical);
    assert_eq!(bhsd.to_vec::<f32>().unwrap(), logical);
    assert_eq!(bhsd.storage_to_vec::<f32>().unwrap(), head_major);
    let part = bhsd.view().rows(1..2).unwrap().heads(1..2).unwrap();
    assert_eq!(part.to_f64_vec().unwrap()[8..], (0..8).map(|d| 1110.0 + d as f64).collect::<Vec<_>>());
    // Columns two apart, from element 1 on: what lies between stays.
    let strides = Strides { batch: 100, row: 33, head: 16, dim: 2 };
    let mut odd = Tensor::from_slice_strided(&device, &[-1f32; 200], 1, shape, strides).unwrap();
    odd.write(&logical).unwrap();
    assert_eq!(odd.to_vec::<f32>().unwrap(), logical);
    let storage = odd.storage_to_vec::<f32>().unwrap();
    assert_eq!((storage[0], storage[1], storage[2], storage[3]), (-1.0, 0.0, -1.0, 1.0));
    assert_eq!(storage.iter().filter(|&&x| x == -1.0).count(), 200 - logical.len());
    assert!(matches!(odd.write(&[0f32; 3]), Err(Error::DataLength { .. })));
    // Broadcast: one row read three times.
    let repeated = bshd.strided(0, Shape { batch: 1, ..shape }, Strides::new(0, 0, 8)).unwrap();
    assert_eq!(repeated.to_vec::<f32>().unwrap(), logical[..16].repeat(3));
}

fn forward_params(bytes: &[u8]) -> ForwardParams {
    assert_eq!(bytes.len(), size_of::<ForwardParams>());
    // SAFETY: the bytes are those of a ForwardParams.
    unsafe { bytes.as_ptr().cast::<ForwardParams>().read_unaligned() }
}

#[test]
fn parameters_of_the_flash_kernels() {
    let case = Case::new();
    let attention = Attention::new().causal().with_scale(0.5).with_lse(true);
    let output = attention.forward(&case.q.view(), &case.k.view(), &case.v.view()).unwrap();
    let launched = case.launched.lock().unwrap();
    let [(symbol, ctas, params)] = &launched[..] else { panic!("one launch") };
    // Two sequences of four heads, five rows in one tile of 128.
    assert_eq!((*symbol, *ctas), ("v2_f16_d32", 8));
    let params = forward_params(params);
    assert_eq!(
        (params.q.address, params.q.batch_stride, params.q.row_stride, params.q.head_stride),
        (case.q.address(), 320, 64, 16)
    );
    assert_eq!((params.k.address, params.k.batch_stride, params.k.row_stride), (case.k.address(), 224, 32));
    assert_eq!((params.v.address, params.out.address), (case.v.address(), output.out.address()));
    assert_eq!(params.lse, output.lse.as_ref().unwrap().address());
    assert_eq!(
        (params.q_rows, params.kv_rows, params.q_heads, params.group, params.dim_qk, params.dim_v),
        (5, 7, 4, 2, 16, 16)
    );
    assert_eq!(params.band, Band { left: Band::UNBOUNDED, right: 0 });
    assert_eq!((params.scale_log2, params.aligned, params.out_aligned), (0.5 * std::f32::consts::LOG2_E, 1, 1));
    assert_eq!((output.plan.workspace_bytes, output.plan.lse_bytes, output.plan.extra_bytes()), (0, 160, 160));
}

#[test]
fn parameters_of_the_naive_kernel() {
    let case = Case::new();
    case.device.reset_peak();
    let before = case.device.memory();
    let attention = Attention::new().with_kernel(Kernel::Naive);
    let output = attention.forward(&case.q.view(), &case.k.view(), &case.v.view()).unwrap();
    let launched = case.launched.lock().unwrap();
    let symbols: Vec<_> = launched.iter().map(|&(symbol, ctas, _)| (symbol, ctas)).collect();
    // 40 score rows, four a thread block.
    assert_eq!(symbols, [("naive_scores_f16_d32", 8), ("naive_softmax_f16", 10), ("naive_output_f16_d32", 8)]);
    for (_, _, bytes) in launched.iter() {
        assert_eq!(bytes.len(), size_of::<NaiveParams>());
        // SAFETY: the bytes are those of a NaiveParams.
        let params = unsafe { bytes.as_ptr().cast::<NaiveParams>().read_unaligned() };
        assert_eq!((params.score_stride, params.score_rows), (8, 40));
        assert_eq!((params.scores % 256, params.probs % 256, params.forward.lse), (0, 0, 0));
        assert!(params.scores + 40 * 8 * 4 <= params.probs);
    }
    // f32 scores and f16 probabilities, gone again after the call.
    assert_eq!(output.plan.workspace_bytes, 40 * 8 * (4 + 2));
    let (after, out_bytes) = (case.device.memory(), 640 * 2);
    assert_eq!(after.live_bytes - before.live_bytes, out_bytes);
    assert_eq!(after.peak_bytes - before.live_bytes, out_bytes + output.plan.workspace_bytes);
}

#[test]
fn no_keys() {
    let case = Case::new();
    let none = case.zeros(Shape { rows: 0, ..KV_SHAPE });
    let launched = |kernel| {
        case.launched.lock().unwrap().clear();
        Attention::new().with_kernel(kernel).forward(&case.q.view(), &none.view(), &none.view()).unwrap();
        case.launched.lock().unwrap().iter().map(|launch| launch.0).collect::<Vec<_>>()
    };
    assert_eq!(launched(Kernel::V1), ["v1_f16_d32"]);
    assert_eq!(launched(Kernel::Naive), ["naive_softmax_f16", "naive_output_f16_d32"]);
}

/// Rows move in 16-byte pieces only when every one of them starts at a multiple of 16 bytes.
#[test]
fn alignment() {
    let case = Case::new();
    let storage = case.zeros(Shape::new(1, 40, 4, 16));
    let aligned = |offset, shape, strides| {
        case.launched.lock().unwrap().clear();
        let q = storage.strided(offset, shape, strides).unwrap();
        let kv = case.k.strided(0, Shape { batch: shape.batch, ..KV_SHAPE }, case.k.strides()).unwrap();
        Attention::new().forward(&q, &kv, &kv).unwrap();
        forward_params(&case.launched.lock().unwrap()[0].2).aligned == 1
    };
    assert!(aligned(0, SHAPE, Strides::new(320, 64, 16)));
    assert!(aligned(8, SHAPE, Strides::new(320, 64, 16)));
    assert!(!aligned(4, SHAPE, Strides::new(320, 64, 16)));
    assert!(!aligned(0, SHAPE, Strides::new(320, 68, 16)));
    assert!(!aligned(0, SHAPE, Strides::new(321, 64, 16)));
    assert!(!aligned(0, SHAPE, Strides::new(320, 80, 20)));
    // The stride of a single sequence is never used.
    assert!(aligned(0, Shape { batch: 1, ..SHAPE }, Strides::new(321, 64, 16)));
}

/// Every element type and head dim plans onto a variant that holds it, with what the variant list says.
#[test]
fn plans() {
    let info = recording::info(1 << 37, (9, 0));
    for kernel in Kernel::ALL {
        let dtypes = DType::ALL.into_iter().filter(|&dtype| kernel != Kernel::V3 || dtype != DType::F32);
        for dtype in dtypes {
            for head_dim in (8..=256).step_by(8) {
                let problem =
                    Problem { batch: 3, q_rows: 1000, kv_rows: 1001, q_heads: 6, kv_heads: 2, head_dim, dtype };
                let plan = plan::plan(&Attention::new().with_kernel(kernel), &info, &problem, &[]).unwrap();
                assert_eq!((plan.kernel, plan.steps.len()), (kernel, kernel.passes().len()));
                for (step, pass) in plan.steps.iter().zip(kernel.passes()) {
                    let v = step.variant;
                    assert_eq!((v.pass, v.dtype, step.threads), (*pass, dtype, 32 * v.warps));
                    assert!(v.head_dim() as usize >= head_dim || *pass == Pass::Softmax);
                    let most = if kernel == Kernel::V3 { 227 * 1024 } else { 99 * 1024 };
                    assert!(step.shared_bytes <= most && step.ctas > 0);
                }
                let scores = 3 * 6 * 1000 * 1008;
                let workspace = if kernel == Kernel::Naive { scores * (4 + dtype.bytes() as u64) } else { 0 };
                assert_eq!(plan.workspace_bytes, workspace);
            }
        }
    }
}

/// A second tile of a head dim is for rows that see many keys.
#[test]
fn the_tile_follows_the_keys_that_rows_see() {
    let info = recording::info(1 << 37, (9, 0));
    let symbol = |head_dim, rows, mask| {
        let problem =
            Problem { batch: 1, q_rows: rows, kv_rows: rows, q_heads: 2, kv_heads: 2, head_dim, dtype: DType::F16 };
        plan::plan(&Attention::new().with_mask(mask), &info, &problem, &[]).unwrap().symbols().next().unwrap()
    };
    let window = Mask::Window { left: Some(500), right: Some(500) };
    for (head_dim, rows, mask, expected) in [
        (128, 2303, Mask::Full, "v3_f16_d128"),
        (128, 2304, Mask::Full, "v3_f16_d128_long"),
        (128, 4096, Mask::Causal, "v3_f16_d128"),
        (128, 8192, Mask::Causal, "v3_f16_d128_long"),
        (128, 1 << 20, window, "v3_f16_d128"),
        (64, 1024, Mask::Full, "v3_f16_d64"),
        (64, 1151, Mask::Full, "v3_f16_d64"),
        (64, 1152, Mask::Full, "v3_f16_d64_long"),
        (96, 1535, Mask::Full, "v3_f16_d96"),
        (96, 1536, Mask::Full, "v3_f16_d96_long"),
        (192, 2048, Mask::Full, "v3_f16_d192_long"),
        (192, 2048, Mask::Causal, "v3_f16_d192"),
        (256, 1 << 20, Mask::Full, "v3_f16_d256"),
    ] {
        assert_eq!(symbol(head_dim, rows, mask), expected, "{head_dim} {rows} {mask:?}");
    }
}

#[test]
fn a_row_of_the_variant_list_can_be_asked_for() {
    let info = recording::info(1 << 37, (9, 0));
    let variant = |symbol| VARIANTS.iter().find(|v| v.entry.symbol == symbol).unwrap();
    let problem = Problem { batch: 1, q_rows: 9, kv_rows: 9, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::F16 };
    let plan = |symbol| plan::plan(&Attention::new().with_kernel(variant(symbol)), &info, &problem, &[]);
    for symbol in ["v3_f16_d64_long", "v3_f16_d128_long", "v2_f16_d256", "naive_output_f16_d96"] {
        assert!(plan(symbol).unwrap().symbols().any(|s| s == symbol), "{symbol}");
    }
    for symbol in ["v3_bf16_d64", "v2_f16_d32", "v1_f32_d64", "naive_scores_bf16_d64"] {
        let error = plan(symbol).unwrap_err();
        assert!(matches!(error, Error::VariantMismatch { symbol: found, .. } if found == symbol), "{error:?}");
    }
}

#[test]
fn plan_says_what_it_does_and_why() {
    let problem =
        Problem { batch: 1, q_rows: 300, kv_rows: 300, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::Bf16 };
    let (device, _) = recording::device();
    let plan = Attention::new().plan(&device, &problem).unwrap();
    let text = plan.to_string();
    let [step] = plan.steps[..] else { panic!("one launch") };
    let tile = format!("v2_bf16_d64 (sm_80): tile {} x {}", step.variant.q_block, step.variant.kv_block);
    let grid = format!("{} thread blocks of {} threads", step.ctas, step.threads);
    for part in [
        "v2: the fastest of the kernels that run this; the device has compute capability 8.0",
        &tile,
        &grid,
        "scale 0.125",
        "0 bytes of workspace",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(step.ctas, 2 * 300u32.div_ceil(step.variant.q_block));
    assert_eq!(plan.symbols().collect::<Vec<_>>(), ["v2_bf16_d64"]);
}

fn v3_params(bytes: &[u8]) -> V3Params {
    assert_eq!(bytes.len(), size_of::<V3Params>());
    // SAFETY: the bytes are those of a V3Params.
    unsafe { bytes.as_ptr().cast::<V3Params>().read_unaligned() }
}

/// What the recording device makes of a tensor map: its geometry as numbers.
fn map(
    address: u64,
    [dims, rows, heads, batch]: [u64; 4],
    [row, head, batch_stride]: [u64; 3],
    box_rows: u64,
) -> TensorMap {
    let dtype = DType::F16 as u64;
    TensorMap([address, dims, rows, heads, batch, row, head, batch_stride, 64, box_rows, 1, 1, dtype, 0, 0, 0])
}

#[test]
fn parameters_of_v3() {
    let (device, launched) = recording::device_of((9, 0));
    let zeros = |shape, layout| Tensor::zeros(&device, DType::F16, shape, layout).unwrap();
    // One sequence: its stride is never used, and stands as that of a row.
    let (q_shape, kv_shape) = (Shape::new(1, 700, 24, 40), Shape::new(1, 900, 8, 40));
    let (q, k, v) = (zeros(q_shape, Layout::Bshd), zeros(kv_shape, Layout::Bhsd), zeros(kv_shape, Layout::Bshd));
    let attention = Attention::new().causal().with_lse(true);
    let output = attention.forward(&q.view(), &k.view(), &v.view()).unwrap();
    let variant = output.plan.steps[0].variant;
    let (q_block, kv_block) = (u64::from(variant.q_block), u64::from(variant.kv_block));
    let launches = launched.lock().unwrap();
    let [(symbol, ctas, bytes)] = &launches[..] else { panic!("one launch") };
    let q_blocks = 700u32.div_ceil(variant.q_block);
    assert_eq!((*symbol, *ctas), ("v3_f16_d64", (24 * q_blocks).min(132)));
    let params = v3_params(bytes);
    assert_eq!(params.q, map(q.address(), [40, 700, 24, 1], [24 * 80, 80, 80], q_block));
    assert_eq!(params.k, map(k.address(), [40, 900, 8, 1], [80, 900 * 80, 80], kv_block));
    assert_eq!(params.v, map(v.address(), [40, 900, 8, 1], [8 * 80, 80, 80], kv_block));
    let forward = params.forward;
    assert_eq!(
        (forward.q_rows, forward.kv_rows, forward.q_heads, forward.group, forward.dim_qk, forward.dim_v),
        (700, 900, 24, 3, 40, 40)
    );
    let (out, heads) = (forward.out, 24);
    assert_eq!((out.address, out.row_stride, out.head_stride), (output.out.address(), heads * 40, 40));
    assert_eq!(forward.lse, output.lse.as_ref().unwrap().address());
    assert_eq!((forward.band, forward.aligned), (Band { left: Band::UNBOUNDED, right: 0 }, 1));
    let work = Work {
        batch: 1,
        q_heads: 24,
        group: 3,
        packed: 1,
        q_rows: 700,
        q_block: variant.q_block,
        kv_head_bytes: 2 * 900 * 40 * 2,
        uneven: true,
    };
    assert_eq!(params.schedule, Schedule::new(&work, *ctas));
    assert_eq!(output.plan.extra_bytes(), 24 * 700 * 4);
}

/// Few rows of several query heads for each key-value head: four heads share a tile, and a box of the copy engine.
#[test]
fn few_rows_share_tiles_of_v3() {
    let (device, launched) = recording::device_of((9, 0));
    let zeros = |rows, heads| Tensor::zeros(&device, DType::F16, Shape::new(2, rows, heads, 64), Layout::Bshd).unwrap();
    let (q, kv) = (zeros(40, 24), zeros(900, 2));
    let output = Attention::new().forward(&q.view(), &kv.view(), &kv.view()).unwrap();
    let step = output.plan.steps[0];
    let launches = launched.lock().unwrap();
    let params = v3_params(&launches[0].2);
    // Groups of twelve, four heads of 40 rows a tile: two sequences of six tiles of two.
    assert_eq!((step.packed_heads, step.ctas, launches[0].1), (4, 2 * 6 * 2, 24));
    assert!(output.plan.to_string().contains("4 query heads of a group share a tile"), "{}", output.plan);
    let row = 24 * 64 * 2;
    let TensorMap(words) = params.q;
    assert_eq!(words[..12], [q.address(), 64, 24, 40, 2, 128, row, 40 * row, 64, 4, 128 / 4, 1]);
    let work = Work {
        batch: 2,
        q_heads: 24,
        group: 12,
        packed: 4,
        q_rows: 40,
        q_block: 128,
        kv_head_bytes: 2 * 900 * 64 * 2,
        uneven: false,
    };
    assert_eq!(params.schedule, Schedule::new(&work, 24));
}

/// Tiles are uneven in length when the mask hides a key from some row.
#[test]
fn schedules_of_v3_follow_the_mask() {
    let (device, launched) = recording::device_of((9, 0));
    let zeros = |rows| Tensor::zeros(&device, DType::F16, Shape::new(1, rows, 300, 64), Layout::Bshd).unwrap();
    let schedule = |q_rows, kv_rows, mask| {
        let (q, kv) = (zeros(q_rows), zeros(kv_rows));
        launched.lock().unwrap().clear();
        Attention::new().with_mask(mask).forward(&q.view(), &kv.view(), &kv.view()).unwrap();
        v3_params(&launched.lock().unwrap()[0].2).schedule
    };
    let window = |left, right| Mask::Window { left, right };
    let expected = |q_rows: u32, kv_rows: u64, uneven| {
        let (batch, q_heads, group, packed, q_block, kv_head_bytes) = (1, 300, 1, 1, 128, kv_rows * 64 * 2 * 2);
        Schedule::new(&Work { batch, q_heads, group, packed, q_rows, q_block, kv_head_bytes, uneven }, 132)
    };
    for (q_rows, kv_rows, mask, uneven) in [
        (200, 300, Mask::Full, false),
        (200, 300, Mask::Causal, true),
        (1, 300, Mask::Causal, false),
        (200, 300, window(Some(299), Some(199)), false),
        (200, 300, window(Some(298), Some(199)), true),
        (200, 300, window(Some(299), Some(198)), true),
        (200, 300, window(None, None), false),
    ] {
        let found = schedule(q_rows as usize, kv_rows as usize, mask);
        assert_eq!(found, expected(q_rows, kv_rows, uneven), "{q_rows} x {kv_rows}, {mask:?}");
    }
}

/// Each condition of v3: the error when it is asked for, the reason for v2 when it is not.
#[test]
fn what_v3_does_not_run() {
    let problem =
        Problem { batch: 2, q_rows: 300, kv_rows: 300, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::Bf16 };
    let hopper = recording::info(1 << 37, (9, 0));
    let attention = Attention::new();
    let plan = |info: &DeviceInfo, problem: &Problem| plan::plan(&attention, info, problem, &[]).unwrap();
    assert_eq!(plan(&hopper, &problem).kernel, Kernel::V3);
    assert!(plan(&hopper, &problem).to_string().starts_with("v3: the fastest of the kernels: "));
    let check = |info: &DeviceInfo, problem: Problem, reason: &str| {
        let forced = attention.with_kernel(Kernel::V3);
        assert_error!(
            plan::plan(&forced, info, &problem, &[]).unwrap_err(),
            Error::KernelUnsupported { kernel: Kernel::V3, .. },
            format!("kernel v3 cannot run this: {reason}")
        );
        let plan = plan(info, &problem);
        assert_eq!(
            (plan.kernel, &plan.reason[..]),
            (Kernel::V2, &format!("the fastest of the kernels that run this; {reason}")[..])
        );
    };
    for found in ["8.0", "8.9", "9.1", "10.0", "12.0"] {
        let (major, minor) = found.split_once('.').unwrap();
        let info = recording::info(1 << 37, (major.parse().unwrap(), minor.parse().unwrap()));
        check(&info, problem, &format!("the device has compute capability {found}; v3 runs on 9.0 alone"));
    }
    let mut old_driver = hopper.clone();
    let DeviceKind::Cuda { driver_version, .. } = &mut old_driver.kind else { panic!("a GPU") };
    *driver_version = Version { major: 11, minor: 8 };
    check(&old_driver, problem, "the driver supports CUDA 11.8; v3 needs at least CUDA 12.0");
    check(&hopper, Problem { dtype: DType::F32, ..problem }, "the tensors hold f32; v3 takes f16 and bf16");
    check(&hopper, Problem { kv_rows: 0, ..problem }, "k and v have no rows; v3 takes at least 1");
    let many = Problem { batch: 1 << 29, ..problem };
    check(
        &hopper,
        Problem { batch: (1 << 27) + 1, q_heads: 2, q_rows: 200, ..many },
        "the problem has 536870916 blocks of query rows; v3 takes at most 536870912",
    );
}

/// Addresses and strides that the copy engine does not take, in each tensor.
#[test]
fn memory_that_v3_does_not_take() {
    let (device, launched) = recording::device_of((9, 0));
    let storage = Tensor::zeros(&device, DType::F16, Shape::new(1, 1, 1, 1 << 16), Layout::Bshd).unwrap();
    let shape = Shape::new(2, 5, 4, 64);
    let strides = shape.contiguous(Layout::Bshd).unwrap();
    let good = storage.strided(0, shape, strides).unwrap();
    let reason = |tensor: usize, bad: TensorView<'_>| {
        let mut views = [good; 4];
        views[tensor] = bad;
        let [q, k, v, out] = views;
        let plan = Attention::new().plan_for(&q, &k, &v, Some(&out)).unwrap();
        let forced = Attention::new().with_kernel(Kernel::V3).plan_for(&q, &k, &v, Some(&out));
        match forced {
            Ok(_) => assert_eq!(plan.kernel, Kernel::V3),
            Err(error) => {
                assert_eq!(plan.kernel, Kernel::V2);
                let reason = error.to_string().replace("kernel v3 cannot run this: ", "");
                assert!(plan.reason.ends_with(&reason), "{plan}");
                return Some(reason);
            }
        }
        None
    };
    for (tensor, name) in ["q", "k", "v", "out"].into_iter().enumerate() {
        let view = |offset, strides| storage.strided(offset, shape, strides).unwrap();
        assert_eq!(reason(tensor, view(8, strides)), None);
        let address = storage.address() + 8;
        assert_eq!(
            reason(tensor, view(4, strides)),
            Some(format!("{name} starts at address {address:#x}; v3 takes multiples of 16 bytes"))
        );
        for (axis, bad) in [
            ("batch", Strides { batch: 1284, ..strides }),
            ("row", Strides { row: 260, ..strides }),
            ("head", Strides { head: 68, row: 272, ..strides }),
            ("batch", Strides { batch: 0, ..strides }),
            ("row", Strides { row: 0, ..strides }),
            ("head", Strides { head: 0, ..strides }),
        ] {
            let found = reason(tensor, view(0, bad)).unwrap();
            assert!(found.starts_with(&format!("the {axis} stride of {name} is ")), "{found}");
        }
        // SAFETY: the view is only looked at.
        let far = unsafe {
            let strides = Strides { batch: 1 << 39, ..strides };
            TensorView::from_raw(&device, storage.address(), usize::MAX, shape, strides, DType::F16).unwrap()
        };
        assert!(reason(tensor, far).unwrap().contains(&format!("is {} bytes", 1u64 << 40)));
        // Along an axis of extent 1 nothing is stepped over.
        let single = Shape { batch: 1, ..shape };
        let views = [0, 1, 321].map(|batch| storage.strided(0, single, Strides { batch, ..strides }).unwrap());
        for view in views {
            assert_eq!(Attention::new().plan_for(&view, &view, &view, Some(&view)).unwrap().kernel, Kernel::V3);
        }
    }
    assert!(launched.lock().unwrap().is_empty());
}

#[test]
fn devices_that_are_too_small_or_too_old() {
    let problem = Problem {
        batch: 1,
        q_rows: 1 << 20,
        kv_rows: 1 << 20,
        q_heads: 1,
        kv_heads: 1,
        head_dim: 64,
        dtype: DType::F16,
    };
    let naive = Attention::new().with_kernel(Kernel::Naive);
    // 2^40 scores of 4 + 2 bytes.
    assert!(matches!(
        plan::plan(&naive, &recording::info(1 << 37, (9, 0)), &problem, &[]),
        Err(Error::WorkspaceTooLarge { kernel: Kernel::Naive, needed, available }) if (needed, available) == (6 << 40, 1 << 37)
    ));
    assert!(plan::plan(&Attention::new(), &recording::info(1 << 37, (9, 0)), &problem, &[]).is_ok());
    assert_error!(
        plan::plan(&Attention::new(), &recording::info(1 << 37, (7, 5)), &problem, &[]).unwrap_err(),
        Error::GpuTooOld { .. },
        "recording has compute capability 7.5; the kernels need at least 8.0"
    );
    let mut small = recording::info(1 << 37, (8, 0));
    small.max_shared_bytes_per_block = 16 * 1024;
    let large_tiles = Problem { head_dim: 128, ..problem };
    assert!(matches!(
        plan::plan(&Attention::new(), &small, &large_tiles, &[]),
        Err(Error::SharedMemory { available: 16384, .. })
    ));
}

#[test]
fn streams_belong_to_their_device() {
    let mut case = Case::new();
    let (elsewhere, _) = recording::device();
    let stream = elsewhere.default_stream();
    let (q, k, v) = (case.q.view(), case.k.view(), case.v.view());
    let error = Attention::new().forward_into(&stream, &q, &k, &v, &mut case.out.view_mut(), None).unwrap_err();
    assert!(matches!(error, Error::DeviceMismatch { what, .. } if what == "the stream"));
    assert!(case.device.time(&stream, || Ok(())).is_err());
}

#[test]
fn names_of_devices() {
    for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
        assert!(matches!(Device::open(name), Err(Error::UnknownDevice { name: n }) if n == name));
    }
    assert_eq!(recording::info(1, (8, 0)).id(), "cuda:0");
}

/// A machine without a driver gets an error that says so, not a failure to start.
#[cfg(cuda)]
#[test]
fn no_driver() {
    let opened = Device::cuda(usize::MAX);
    match cust::load() {
        Err(_) => assert!(matches!(opened, Err(Error::NoDriver { reason }) if reason.contains("libcuda"))),
        Ok(_) => assert!(matches!(
            opened,
            Err(Error::NoSuchGpu { ordinal: usize::MAX, .. } | Error::NoGpu | Error::DriverTooOld { .. })
        )),
    }
}

#[test]
fn output_has_the_layout_of_q() {
    let case = Case::new();
    let q = Tensor::zeros(&case.device, DType::F16, SHAPE, Layout::Bhsd).unwrap();
    let forward =
        |q: &TensorView<'_>| Attention::new().forward(q, &case.k.view(), &case.v.view()).unwrap().out.strides();
    assert_eq!(forward(&q.view()), q.strides());
    assert_eq!(forward(&case.q.view()), case.q.strides());
}

#[test]
fn handles_go_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<(Device, Stream, Tensor, Lse, Plan, Error)>();
    check::<(TensorView<'_>, TensorViewMut<'_>, LseViewMut<'_>)>();
}

/// The library's own checks stand without a device too.
#[test]
fn problems_without_a_device() {
    let problem =
        Problem { batch: 1, q_rows: 1, kv_rows: 0, q_heads: 1, kv_heads: 1, head_dim: 256, dtype: DType::F32 };
    assert!(problem.validate().is_ok());
    assert!(matches!(Problem { head_dim: 264, ..problem }.validate(), Err(Error::HeadDim { found: 264 })));
    assert!(matches!(
        Problem { kv_rows: 1 << 29, ..problem }.validate(),
        Err(Error::TooManyRows { tensor: Operand::K, .. })
    ));
}

#[test]
fn all_query_heads_share_the_only_key_value_head() {
    let case = Case::new();
    let kv = case.zeros(Shape { heads: 1, ..KV_SHAPE });
    Attention::new().forward(&case.q.view(), &kv.view(), &kv.view()).unwrap();
    assert_eq!(forward_params(&case.launched.lock().unwrap()[0].2).group, 4);
}
