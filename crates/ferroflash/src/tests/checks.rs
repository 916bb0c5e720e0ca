//! What is refused before a launch.

use super::*;
use crate::attention::QueryRows;

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
    let fast = Sizes {
        dtype: DType::F16,
        batch: 1 << 20,
        q_rows: 1 << 20,
        kv_rows: 8,
        q_heads: 1 << 10,
        kv_heads: 1,
        head_dim: 8,
    };
    assert!(matches!(Attention::new().plan(&case.device, fast), Err(Error::GridTooLarge { .. })));
}

#[test]
fn outputs_that_do_not_fit() {
    let mut case = Case::new();
    assert!(matches!(
        case.error_into(|out| out.view_mut().into_narrow(1, 1..4).unwrap()),
        Error::RowsMismatch { tensor: Operand::Out, found: 3, of: Operand::Q, expected: 5 }
    ));
    assert!(matches!(
        case.error_into(|out| out.view_mut().into_narrow(2, 0..2).unwrap()),
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
    let problem = Sizes { batch: 1, q_rows: 1, kv_rows: 0, q_heads: 1, kv_heads: 1, head_dim: 256, dtype: DType::F32 };
    assert!(problem.validate().is_ok());
    assert!(matches!(Sizes { head_dim: 264, ..problem }.validate(), Err(Error::HeadDim { found: 264 })));
    assert!(matches!(
        Sizes { kv_rows: 1 << 29, ..problem }.validate(),
        Err(Error::TooManyRows { tensor: Operand::K, .. })
    ));
}

#[test]
fn softcaps() {
    let case = Case::new();
    let (q, k, v) = (case.q.view(), case.k.view(), case.v.view());
    for cap in [-1.0, f32::NAN, f32::INFINITY, f32::MAX, f32::from_bits(1)] {
        let error = Attention::new().with_softcap(cap).forward(&q, &k, &v).unwrap_err();
        assert!(
            matches!(error, Error::Softcap { found, scale: 0.25 } if found.to_bits() == cap.to_bits()),
            "{error:?}"
        );
    }
    assert!(case.launched.lock().unwrap().is_empty());
    for cap in [None, Some(0.0), Some(-0.0), Some(50.0)] {
        let plan = Attention::new().with_softcap(cap).forward(&q, &k, &v).unwrap().plan;
        assert_eq!(plan.softcap, cap.filter(|&cap| cap > 0.0));
        assert_eq!(plan.to_string().contains("softcap 50"), cap == Some(50.0), "{plan}");
    }
}

/// What is wrong with sequences of every kind is said without a device, in the words of the plan.
#[test]
fn problems_are_checked_without_a_device() {
    let (device, _) = recording::device();
    let (batch, q_rows, kv_rows, too_many) = (2, 5, 7, 1 << 29);
    let problem = |sequences| Problem::new(sequences, 4, 2, 16, DType::F16);
    let packed = problem(Sequences::Packed { batch, q_rows, kv_rows });
    let cached = |batch, rows, capacity| problem(Sequences::Cached { batch, q_rows: QueryRows::Each(rows), capacity });
    let paged = |pages, page_rows, width| {
        problem(Sequences::Paged { batch, q_rows: QueryRows::Packed(q_rows), pages, page_rows, width })
    };
    // No rows of q are a call that computes nothing, and no keys one that gives zeros.
    for legal in [problem(Sequences::Packed { batch, q_rows: 0, kv_rows: 0 }), cached(1, 0, 0), paged(1, 1, 0)] {
        legal.validate().unwrap();
        Attention::new().plan(&device, legal).unwrap();
    }
    let [no_heads, no_kv_heads, groups, dim] = [(0, 2, 16), (4, 0, 16), (4, 3, 16), (4, 2, 20)]
        .map(|(q_heads, kv_heads, head_dim)| Problem::new(packed.sequences, q_heads, kv_heads, head_dim, DType::F16));
    for (problem, expected) in [
        (
            problem(Sequences::Packed { batch: 0, q_rows, kv_rows }),
            "q has no batch; at least 1 is needed (only k and v may have 0 rows)",
        ),
        (
            problem(Sequences::Packed { batch, q_rows: too_many, kv_rows }),
            "q has 536870912 rows; fewer than 536870912 are accepted",
        ),
        (
            problem(Sequences::Packed { batch, q_rows, kv_rows: too_many }),
            "k has 536870912 rows; fewer than 536870912 are accepted",
        ),
        (
            problem(Sequences::Packed { batch: too_many, q_rows, kv_rows }),
            "q has 536870912 rows; fewer than 536870912 are accepted",
        ),
        (cached(1 << 15, 1 << 15, 64), "q has 1073741824 rows; fewer than 536870912 are accepted"),
        (cached(2, 1, too_many), "k has 536870912 rows; fewer than 536870912 are accepted"),
        (paged(0, 16, 4), "k has no batch; at least 1 is needed (only k and v may have 0 rows)"),
        (paged(9, 0, 4), "k has no rows; at least 1 is needed (only k and v may have 0 rows)"),
        (paged(9, 1 << 20, 1 << 20), "k has 1099511627776 rows; fewer than 536870912 are accepted"),
        (no_heads, "q has no heads; at least 1 is needed (only k and v may have 0 rows)"),
        (no_kv_heads, "k has no heads; at least 1 is needed (only k and v may have 0 rows)"),
        (groups, "4 query heads are no multiple of 3 key-value heads"),
        (dim, "head_dim 20 is not supported; accepted are the multiples of 8 from 8 to 256"),
        (packed.with_dim_v(8), "not supported: v and out have 8 dims, q and k 16; equal numbers are accepted"),
        (packed.with_out_dtype(DType::F32), "not supported: out holds f32, the inputs f16; equal types are accepted"),
    ] {
        assert_eq!(problem.validate().unwrap_err().to_string(), expected, "{problem}");
        assert_eq!(Attention::new().plan(&device, problem).unwrap_err().to_string(), expected, "{problem}");
    }
}

/// Kinds of problems that no kernel takes yet: an error that says what was asked for. Sequences of other kinds have plans.
#[test]
fn problems_of_other_kinds() {
    let (device, _) = recording::device();
    let (batch, q_rows, kv_rows) = (2, 5, 7);
    let problem = |sequences| Problem::new(sequences, 4, 2, 16, DType::F16);
    let uniform = problem(Sequences::Uniform { batch, q_rows, kv_rows });
    assert!(Attention::new().plan(&device, uniform).is_ok());
    for sequences in [
        Sequences::Packed { batch, q_rows, kv_rows },
        Sequences::Cached { batch, q_rows: QueryRows::Each(q_rows), capacity: 64 },
        Sequences::Paged { batch, q_rows: QueryRows::Packed(q_rows), pages: 9, page_rows: 16, width: 4 },
    ] {
        let plan = Attention::new().plan(&device, problem(sequences)).unwrap();
        assert_eq!(plan.problem.sequences, sequences, "{plan}");
        problem(sequences).validate().unwrap();
        assert!(plan.symbols().count() > 0);
    }
    for (problem, expected) in [
        (
            uniform.with_dim_v(8),
            "not supported: v and out have 8 dims, q and k 16; equal numbers are accepted".to_owned(),
        ),
        (
            uniform.with_out_dtype(DType::F32),
            "not supported: out holds f32, the inputs f16; equal types are accepted".to_owned(),
        ),
    ] {
        let error = Attention::new().plan(&device, problem).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
        assert_eq!(error.to_string(), expected);
        assert_eq!(problem.validate().unwrap_err().to_string(), expected);
    }
}
