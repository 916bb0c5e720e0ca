//! What is planned, and why.

use super::*;

fn plan(attention: &Attention, info: &DeviceInfo, sizes: &Sizes) -> Result<Plan> {
    crate::attention::plan::plan(attention, info, &sizes.into())
}

/// Every element type and head dim plans onto a variant that holds it, with what the variant list says.
#[test]
fn plans() {
    let info = recording::info(1 << 37, (9, 0));
    for kernel in Kernel::ALL {
        let dtypes = DType::ALL.into_iter().filter(|&dtype| kernel != Kernel::V3 || dtype != DType::F32);
        for dtype in dtypes {
            for head_dim in (8..=256).step_by(8) {
                let problem = Sizes { batch: 3, q_rows: 1000, kv_rows: 1001, q_heads: 6, kv_heads: 2, head_dim, dtype };
                let plan = plan(&Attention::new().with_kernel(kernel), &info, &problem).unwrap();
                assert_eq!((plan.kernel, plan.steps.len()), (kernel, kernel.passes().len()));
                for (step, pass) in plan.steps.iter().zip(kernel.passes()) {
                    let v = row(step);
                    assert_eq!((v.pass, v.dtype, step.kernel.entry.threads), (*pass, dtype, 32 * v.warps));
                    assert!(v.head_dim() as usize >= head_dim || *pass == Pass::Softmax);
                    let most = if kernel == Kernel::V3 { 227 * 1024 } else { 99 * 1024 };
                    assert!(step.kernel.entry.shared_bytes <= most && step.ctas > 0);
                }
                let scores = 3 * 6 * 1000 * 1008;
                let workspace = if kernel == Kernel::Naive { scores * (4 + dtype.bytes() as u64) } else { 0 };
                assert_eq!(plan.workspace_bytes(), workspace);
            }
        }
    }
}

/// A second tile of a head dim is for rows that see many keys.
#[test]
fn the_tile_follows_the_keys_that_rows_see() {
    let info = recording::info(1 << 37, (9, 0));
    let symbol = |head_dim, (q_rows, kv_rows), mask| {
        let problem = Sizes { batch: 1, q_rows, kv_rows, q_heads: 2, kv_heads: 2, head_dim, dtype: DType::F16 };
        plan(&Attention::new().with_mask(mask), &info, &problem).unwrap().symbols().next().unwrap()
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
        assert_eq!(symbol(head_dim, (rows, rows), mask), expected, "{head_dim} {rows} {mask:?}");
    }
    // As many keys as rows say little: the diagonal ends in the last corner, keys end where they end, and bounds count from the diagonal.
    // 2304 keys a row make the long tile the better one.
    let bounds = |left, right| Mask::Window { left, right };
    for (q_rows, kv_rows, mask, keys) in [
        // Early rows of many keys see nearly all of them; early rows of many queries see none.
        (128, 8192, Mask::Causal, 8128),
        (1, 2304, Mask::Causal, 2304),
        (1, 2303, Mask::Causal, 2303),
        (8192, 4096, Mask::Causal, 1024),
        (128, 8192, bounds(Some(1500), None), 1564),
        (128, 8192, bounds(None, Some(1 << 20)), 8192),
        (128, 8192, bounds(Some(2303), Some(0)), 2304),
        (128, 8192, bounds(Some(2302), Some(0)), 2303),
        (8192, 2304, bounds(None, Some(8191)), 2304),
        (8192, 2303, bounds(None, Some(8191)), 2303),
        (8192, 4096, bounds(Some(8191), Some(1)), 1024),
        (4096, 128, Mask::Full, 128),
        (128, 4096, Mask::Full, 4096),
        (8192, 8192, bounds(Some(1200), Some(1300)), 2350),
        (8192, 8192, bounds(Some(1100), Some(1200)), 2140),
    ] {
        let expected = if keys >= 2304 { "v3_f16_d128_long" } else { "v3_f16_d128" };
        assert_eq!(symbol(128, (q_rows, kv_rows), mask), expected, "{q_rows} x {kv_rows} {mask:?}");
    }
}

#[test]
fn a_row_of_the_variant_list_can_be_asked_for() {
    let info = recording::info(1 << 37, (9, 0));
    let variant = |symbol| VARIANTS.iter().find(|v| v.entry.symbol == symbol).unwrap();
    let problem = Sizes { batch: 1, q_rows: 9, kv_rows: 9, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::F16 };
    let plan = |symbol| plan(&Attention::new().with_kernel(variant(symbol)), &info, &problem);
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
        Sizes { batch: 1, q_rows: 300, kv_rows: 300, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::Bf16 };
    let (device, _) = recording::device();
    let plan = Attention::new().plan(&device, problem).unwrap();
    let text = plan.to_string();
    let [step] = &plan.steps[..] else { panic!("one launch") };
    let tile = format!("this tile  {} x {}: ", row(step).q_block, row(step).kv_block);
    let grid = format!("v2_bf16_d64 (sm_80): {} thread blocks of {} threads", step.ctas, step.kernel.entry.threads);
    for part in [
        "v2: the fastest of the kernels that run this, without v3: the device has compute capability 8.0",
        &tile,
        &grid,
        "scale 0.125",
        "0 bytes of workspace",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(step.ctas, 2 * 300u32.div_ceil(row(step).q_block));
    assert_eq!(plan.symbols().collect::<Vec<_>>(), ["v2_bf16_d64"]);
}

/// Each condition of v3: the error when it is asked for, the reason for v2 when it is not.
#[test]
fn what_v3_does_not_run() {
    let problem =
        Sizes { batch: 2, q_rows: 300, kv_rows: 300, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::Bf16 };
    let hopper = recording::info(1 << 37, (9, 0));
    let attention = Attention::new();
    let chosen = |info: &DeviceInfo, sizes: &Sizes| plan(&attention, info, sizes).unwrap();
    assert_eq!(chosen(&hopper, &problem).kernel, Kernel::V3);
    assert!(chosen(&hopper, &problem).to_string().starts_with("v3: the fastest of the kernels: "));
    let check = |info: &DeviceInfo, problem: Sizes, reason: &str| {
        let forced = attention.with_kernel(Kernel::V3);
        assert_error!(
            plan(&forced, info, &problem).unwrap_err(),
            Error::KernelUnsupported { kernel: Kernel::V3, .. },
            format!("kernel v3 cannot run this: {reason}")
        );
        let plan = chosen(info, &problem);
        assert_eq!(
            (plan.kernel, &plan.reason[..]),
            (Kernel::V2, &format!("the fastest of the kernels that run this, without v3: {reason}")[..])
        );
    };
    for found in ["8.0", "8.9", "9.1", "10.0", "12.0"] {
        let (major, minor) = found.split_once('.').unwrap();
        let info = recording::info(1 << 37, (major.parse().unwrap(), minor.parse().unwrap()));
        check(&info, problem, &format!("the device has compute capability {found}; 9.0 alone is accepted"));
    }
    let mut old_driver = hopper.clone();
    let DeviceKind::Cuda { driver_version, .. } = &mut old_driver.kind else { panic!("a GPU") };
    *driver_version = Version { major: 11, minor: 8 };
    check(&old_driver, problem, "the driver supports CUDA 11.8; at least CUDA 12.1 is needed");
    check(&hopper, Sizes { dtype: DType::F32, ..problem }, "the tensors hold f32; f16 and bf16 are accepted");
    check(&hopper, Sizes { kv_rows: 0, ..problem }, "k and v have no rows; at least 1 is needed");
    let many = Sizes { batch: 1 << 29, ..problem };
    check(
        &hopper,
        Sizes { batch: (1 << 27) + 1, q_heads: 2, q_rows: 200, ..many },
        "the problem has 536870916 blocks of rows; at most 536870912 are accepted",
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
            Some(format!("{name} starts at address {address:#x}; multiples of 16 bytes are accepted"))
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
    let problem =
        Sizes { batch: 1, q_rows: 1 << 20, kv_rows: 1 << 20, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
    let naive = Attention::new().with_kernel(Kernel::Naive);
    // 2^40 scores of 4 + 2 bytes.
    assert!(matches!(
        plan(&naive, &recording::info(1 << 37, (9, 0)), &problem),
        Err(Error::WorkspaceTooLarge { kernel: Kernel::Naive, needed, available }) if (needed, available) == (6 << 40, 1 << 37)
    ));
    assert!(plan(&Attention::new(), &recording::info(1 << 37, (9, 0)), &problem).is_ok());
    assert_error!(
        plan(&Attention::new(), &recording::info(1 << 37, (7, 5)), &problem).unwrap_err(),
        Error::GpuTooOld { .. },
        "recording has compute capability 7.5; the kernels need at least 8.0"
    );
    let mut small = recording::info(1 << 37, (8, 0));
    small.max_shared_bytes_per_block = 16 * 1024;
    let large_tiles = Sizes { head_dim: 128, ..problem };
    assert!(matches!(plan(&Attention::new(), &small, &large_tiles), Err(Error::SharedMemory { available: 16384, .. })));
}

/// One head of two rows, on a Hopper GPU that the test changes.
fn two_rows() -> (DeviceInfo, Sizes) {
    let sizes = Sizes { batch: 1, q_rows: 2, kv_rows: 2, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
    (recording::info(1 << 37, (9, 0)), sizes)
}

#[test]
fn the_first_driver_with_v3() {
    let (mut info, sizes) = two_rows();
    for (major, minor, expected) in [(11, 8, Kernel::V2), (12, 0, Kernel::V2), (12, 1, Kernel::V3)] {
        let DeviceKind::Cuda { driver_version, .. } = &mut info.kind else { panic!("a GPU") };
        *driver_version = Version { major, minor };
        assert_eq!(plan(&Attention::new(), &info, &sizes).unwrap().kernel, expected, "CUDA {major}.{minor}");
    }
}

#[test]
fn the_most_tiles_of_v3() {
    let (info, sizes) = two_rows();
    let v3 = Attention::new().with_kernel(Kernel::V3);
    let most = kernel_spec::schedule::MAX_TILES as usize;
    assert!(plan(&v3, &info, &Sizes { batch: most, ..sizes }).is_ok());
    let error = plan(&v3, &info, &Sizes { batch: most + 1, ..sizes }).unwrap_err();
    assert!(matches!(error, Error::KernelUnsupported { kernel: Kernel::V3, .. }), "{error:?}");
}

#[test]
fn the_least_shared_memory() {
    let (mut info, sizes) = two_rows();
    let v2 = Attention::new().with_kernel(Kernel::V2);
    let needed = plan(&v2, &info, &sizes).unwrap().steps[0].kernel.entry.shared_bytes;
    info.max_shared_bytes_per_block = needed;
    assert!(plan(&v2, &info, &sizes).is_ok());
    info.max_shared_bytes_per_block = needed - 1;
    assert!(matches!(plan(&v2, &info, &sizes), Err(Error::SharedMemory { .. })));
}

#[test]
fn the_least_memory_for_a_workspace() {
    let (mut info, sizes) = two_rows();
    let naive = Attention::new().with_kernel(Kernel::Naive);
    info.memory_bytes = plan(&naive, &info, &sizes).unwrap().workspace_bytes();
    assert!(plan(&naive, &info, &sizes).is_ok());
    info.memory_bytes -= 1;
    assert!(matches!(plan(&naive, &info, &sizes), Err(Error::WorkspaceTooLarge { .. })));
}
