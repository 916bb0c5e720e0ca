//! What is launched: entry points, grids and parameter structs.

use super::*;
use kernel_spec::schedule::{Schedule, Work};
use kernel_spec::{Band, ForwardParams, NaiveParams, TensorMap, V3Params};

/// The bytes of a [`ForwardParams`] as what they are.
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
    assert_eq!((output.plan.workspace_bytes(), output.plan.lse_bytes, output.plan.extra_bytes()), (0, 160, 160));
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
    assert_eq!(output.plan.workspace_bytes(), 40 * 8 * (4 + 2));
    let (after, out_bytes) = (case.device.memory(), 640 * 2);
    assert_eq!(after.live_bytes - before.live_bytes, out_bytes);
    assert_eq!(after.peak_bytes - before.live_bytes, out_bytes + output.plan.workspace_bytes());
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
    let aligned = |offset, shape: Shape, strides: Strides| {
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
    let variant = row(&output.plan.steps[0]);
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
    let step = &output.plan.steps[0];
    let launches = launched.lock().unwrap();
    let params = v3_params(&launches[0].2);
    // Groups of twelve, four heads of 40 rows a tile: two sequences of six tiles of two.
    assert_eq!((output.plan.packed_heads, step.ctas, launches[0].1), (4, 2 * 6 * 2, 24));
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
    let of_bytes = |q_rows: u32, kv_head_bytes: u64, uneven| {
        let (batch, q_heads, group, packed, q_block) = (1, 300, 1, 1, 128);
        Schedule::new(&Work { batch, q_heads, group, packed, q_rows, q_block, kv_head_bytes, uneven }, 132)
    };
    // Two bytes an element, keys and values.
    let expected = |q_rows, kv_rows: u64, uneven| of_bytes(q_rows, kv_rows * 64 * 2 * 2, uneven);
    // What a head weighs decides how many share a section: here half of it, or twice, would give other sections.
    let weighed = [1, 2, 4].map(|twice| of_bytes(1700, 1700 * 64 * 2 * twice, true));
    assert!(weighed[0] != weighed[1] && weighed[1] != weighed[2], "{weighed:?}");
    for (q_rows, kv_rows, mask, uneven) in [
        (200, 300, Mask::Full, false),
        (200, 300, Mask::Causal, true),
        (1, 300, Mask::Causal, false),
        (200, 300, window(Some(299), Some(199)), false),
        (200, 300, window(Some(298), Some(199)), true),
        (200, 300, window(Some(299), Some(198)), true),
        (200, 300, window(None, None), false),
        (1700, 1700, Mask::Causal, true),
    ] {
        let found = schedule(q_rows as usize, kv_rows as usize, mask);
        assert_eq!(found, expected(q_rows, kv_rows, uneven), "{q_rows} x {kv_rows}, {mask:?}");
    }
}

#[test]
fn all_query_heads_share_the_only_key_value_head() {
    let case = Case::new();
    let kv = case.zeros(Shape { heads: 1, ..KV_SHAPE });
    Attention::new().forward(&case.q.view(), &kv.view(), &kv.view()).unwrap();
    assert_eq!(forward_params(&case.launched.lock().unwrap()[0].2).group, 4);
}

/// With a softcap the text is another one, and the factors that the kernel multiplies with say cap and scale.
#[test]
fn parameters_with_a_softcap() {
    let case = Case::new();
    let attention = Attention::new().with_softcap(50.0).with_scale(-0.5);
    for kernel in [Kernel::Naive, Kernel::V1, Kernel::V2] {
        case.launched.lock().unwrap().clear();
        let call = attention.with_kernel(kernel).forward(&case.q.view(), &case.k.view(), &case.v.view());
        let plan = call.unwrap().plan;
        assert!(plan.steps.iter().all(|step| step.kernel.features == FeatureSet::of(0)), "{plan:?}");
        for (_, _, bytes) in case.launched.lock().unwrap().iter() {
            // Every parameter struct ends in this one.
            let params = forward_params(&bytes[bytes.len() - size_of::<ForwardParams>()..]);
            assert!(params.features.has(0) && !params.features.has(1) && params.negate == 1);
            assert_eq!(f32::from_bits(params.features.value(0) as u32), 0.5 / 50.0);
            assert_eq!(params.scale_log2, (50.0 * std::f64::consts::LOG2_E) as f32);
        }
    }
}

/// A step gives the bytes that a call launches, for any addresses, and says which it wants.
#[test]
fn steps_bind_to_addresses() {
    let case = Case::new();
    let attention = Attention::new().causal().with_lse(true).with_kernel(Kernel::Naive);
    let output = attention.forward(&case.q.view(), &case.k.view(), &case.v.view()).unwrap();
    let launched = case.launched.lock().unwrap();
    // SAFETY: the bytes are those of a NaiveParams.
    let params = unsafe { launched[0].2.as_ptr().cast::<NaiveParams>().read_unaligned() };
    let operands = [
        (Operand::Q, case.q.address()),
        (Operand::K, case.k.address()),
        (Operand::V, case.v.address()),
        (Operand::Out, output.out.address()),
        (Operand::Lse, output.lse.as_ref().unwrap().address()),
    ];
    let buffers = [params.scores, params.probs];
    for (step, (symbol, ctas, bytes)) in output.plan.steps.iter().zip(launched.iter()) {
        assert_eq!((step.kernel.entry.symbol, step.ctas), (*symbol, *ctas));
        assert_eq!(&step.params(&case.device, &operands, &buffers).unwrap(), bytes);
    }
    let names: Vec<_> = output.plan.buffers.iter().map(|buffer| (buffer.name, buffer.bytes)).collect();
    assert_eq!(names, [("scores", 40 * 8 * 4), ("probabilities", 40 * 8 * 2)]);
    let step = &output.plan.steps[0];
    let bindings: Vec<_> = step.bindings().map(|binding| binding.to_string()).collect();
    assert_eq!(bindings, ["buffer 0", "buffer 1", "q", "k", "v", "out", "lse"]);
    assert_error!(
        step.params(&case.device, &operands[..4], &buffers).unwrap_err(),
        Error::Bind(BindError::Unbound { .. }),
        "naive_scores_f16_d32 takes the address of lse, which was not given"
    );
    assert!(matches!(
        step.params(&case.device, &operands, &buffers[..1]),
        Err(Error::Bind(BindError::Unbound { what, .. })) if what == "buffer 1"
    ));
    let mut odd = operands;
    odd[1].1 += 8;
    assert!(matches!(
        step.params(&case.device, &odd, &buffers),
        Err(Error::Bind(BindError::Alignment { what, needed: 16, .. })) if what == "k"
    ));
}
