//! Tensors, views and the memory behind them.

use super::*;

#[test]
fn ranks() {
    assert_error!(
        Shape::from_dims(&[2, 3, 4], Layout::Bshd).unwrap_err(),
        Error::Rank { found: 3 },
        "attention takes tensors of 4 axes (batch, row, head, dim); 3 were given"
    );
    assert_eq!(Shape::from_dims(&[2, 3, 4, 5], Layout::Bhsd).unwrap(), Shape::new(2, 4, 3, 5));
    assert!(matches!(Strides::from_dims(&[1; 5], Layout::Bshd), Err(Error::Rank { found: 5 })));
    assert_eq!(Strides::from_dims(&[60, 20, 5, 1], Layout::Bhsd).unwrap(), Strides::new(60, 5, 20));
}

#[test]
fn storage_and_addresses() {
    let (device, _) = recording::device();
    let data = [half::f16::ONE; 100];
    assert_error!(
        Tensor::from_slice(&device, &data, Shape::new(1, 2, 3, 16), Layout::Bshd).unwrap_err(),
        Error::DataLength { expected: 96, found: 100, .. },
        "shape [1, 2, 3, 16] holds 96 elements, the slice holds 100"
    );
    let strided =
        |offset, strides| Tensor::from_slice_strided(&device, &data, offset, Shape::new(1, 2, 3, 16), strides);
    assert!(strided(4, Strides::new(0, 48, 16)).is_ok());
    assert_error!(
        strided(5, Strides::new(0, 48, 16)).unwrap_err(),
        Error::StorageTooSmall { needed: 101, available: 100, .. },
        "shape [1, 2, 3, 16] with strides [0, 48, 16, 1] needs 101 elements of storage, 100 are there"
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
    assert!(matches!(
        tensor.view().as_heads(Layout::Bshd).unwrap().rows(1..2),
        Err(Error::Range { axis: "rows", start: 1, end: 2, len: 1 })
    ));
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
    let part = bhsd.view().as_heads(Layout::Bshd).unwrap().rows(1..2).unwrap().heads(1..2).unwrap();
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

/// A copy is one of bytes: everything that says where elements lie must be the same.
#[test]
fn copies_need_the_same_place_in_memory() {
    let (device, _) = recording::device();
    let stream = device.default_stream();
    let shape = Shape::new(1, 2, 1, 8);
    let tensor = |dtype: DType, length: usize, offset, shape, strides| match dtype {
        DType::Bf16 => {
            let data: Vec<_> = (0..length).map(|i| half::bf16::from_f32(i as f32)).collect();
            Tensor::from_slice_strided(&device, &data, offset, shape, strides).unwrap()
        }
        _ => {
            let data: Vec<_> = (0..length).map(|i| half::f16::from_f32(i as f32)).collect();
            Tensor::from_slice_strided(&device, &data, offset, shape, strides).unwrap()
        }
    };
    let strides = Strides::new(0, 16, 0);
    let source = tensor(DType::F16, 64, 8, shape, strides);
    for (what, mut target) in [
        ("offset", tensor(DType::F16, 64, 0, shape, strides)),
        ("stride", tensor(DType::F16, 64, 8, shape, Strides { row: 8, ..strides })),
        ("shape", tensor(DType::F16, 64, 8, Shape { rows: 1, ..shape }, strides)),
        ("element type", tensor(DType::Bf16, 64, 8, shape, strides)),
        ("storage", tensor(DType::F16, 65, 8, shape, strides)),
    ] {
        target.fill_bytes(0).unwrap();
        let error = target.copy_from(&stream, &source).expect_err(what);
        assert!(matches!(error, Error::CopyMismatch { .. }), "{what}: {error:?}");
        assert!(target.to_f64_vec().unwrap().iter().all(|&x| x == 0.0), "another {what}: copied all the same");
    }
    let mut target = tensor(DType::F16, 64, 8, shape, strides);
    target.fill_bytes(0).unwrap();
    target.copy_from(&stream, &source).unwrap();
    let all = |tensor: &Tensor| tensor.storage_to_vec::<half::f16>().unwrap();
    assert_eq!(all(&target), all(&source));
}

/// Views of any rank read and write what strides say, and attention takes those of four axes.
#[test]
fn tensors_of_any_rank() {
    let (device, _) = recording::device();
    let data: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let mut tensor = Tensor::from_slice(&device, &data, [2, 3, 4], Layout::RowMajor).unwrap();
    let columns = tensor.view().permute(&[2, 0, 1]).unwrap().narrow(0, 1..3).unwrap();
    assert_eq!((columns.shape().to_vec(), columns.strides().to_vec()), (vec![2, 2, 3], vec![1, 12, 4]));
    assert_eq!(columns.to_vec::<f32>().unwrap(), [1., 5., 9., 13., 17., 21., 2., 6., 10., 14., 18., 22.]);
    assert!(columns.reshape([12]).is_err() && columns.reshape([2, 2, 3, 1]).is_ok());
    tensor.view_mut().into_narrow(2, 3..4).unwrap().into_reshaped([6]).unwrap().write(&[-1f32; 6]).unwrap();
    let found = tensor.to_vec::<f32>().unwrap();
    assert!(found.iter().enumerate().all(|(i, &x)| x == if i % 4 == 3 { -1.0 } else { i as f32 }), "{found:?}");
    let scalar = Tensor::from_slice(&device, &[7f32], [], Layout::RowMajor).unwrap();
    assert_eq!(scalar.to_vec::<f32>().unwrap(), [7.0]);
    assert_error!(
        Tensor::zeros(&device, DType::F16, [2, 3], Layout::Bhsd).unwrap_err(),
        Error::Rank { found: 2 },
        "attention takes tensors of 4 axes (batch, row, head, dim); 2 were given"
    );
    let flat = tensor.view();
    assert!(matches!(Attention::new().forward(&flat, &flat, &flat), Err(Error::Rank { found: 3 })));
    assert!(matches!(flat.as_heads(Layout::Bshd), Err(Error::Rank { found: 3 })));
    assert!(matches!(tensor.strided(0, [4], [1, 1]), Err(Error::Axes(AxesError::Strides { .. }))));
    let (shape, bhsd) = (Shape::new(2, 3, 4, 8), [2, 4, 3, 8]);
    let heads = Tensor::zeros(&device, DType::F16, bhsd, Layout::RowMajor).unwrap();
    let read = heads.view().as_heads(Layout::Bhsd).unwrap();
    assert_eq!((read.shape(), read.strides()), (shape, shape.contiguous(Layout::Bhsd).unwrap()));
}
