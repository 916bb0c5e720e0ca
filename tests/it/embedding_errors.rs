//! What embedding tables refuse, each with the error that names it, before anything is launched.

use crate::support::device;
use ferroflash::operators::Embedding;
use ferroflash::{DType, Device, Dims, Error, Indices, Layout, Operand, OperatorError, Tensor};

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, Dims::new(shape).expect("few axes"), Layout::RowMajor).expect("a small tensor")
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(found: ferroflash::Result<T>, expected: OperatorError, text: &str) {
    let found = found.expect_err("the call should be refused");
    assert_eq!(found.to_string(), text);
    assert!(matches!(&found, Error::Operator(found) if *found == expected), "{found:?}");
}

#[test]
fn options_that_mean_nothing() {
    let device = &device::shared().device;
    let ids = Indices::from_slice(device, &[0; 3]).unwrap();
    let table = tensor(device, DType::F16, &[5, 16]);
    let embedding = Embedding::new(&table.view());
    for found in [f32::INFINITY, f32::NEG_INFINITY] {
        let text = format!("scale {found} is not accepted; it must be finite");
        let expected = OperatorError::NotFinite { name: "scale", found };
        assert_refused(embedding.with_scale(found).forward(&ids.view()), expected, &text);
    }
    assert!(embedding.with_scale(f32::NAN).forward(&ids.view()).is_err());
    assert_refused(
        embedding.with_padding(5).forward(&ids.view()),
        OperatorError::Padding { found: 5, vocabulary: 5 },
        "padding is row 5; the table has 5, from 0 on",
    );
    let dout = tensor(device, DType::F16, &[3, 16]);
    assert_refused(
        embedding.with_accumulate(true).backward(&ids.view(), &dout.view()),
        OperatorError::Without { given: "accumulate", needed: "dtable" },
        "accumulate is given, and no dtable, without which it means nothing",
    );
}

#[test]
fn shapes_and_types_that_do_not_go_together() {
    let device = &device::shared().device;
    let stream = device.default_stream();
    let ids = Indices::from_slice(device, &[0; 6]).unwrap();
    let flat = tensor(device, DType::F16, &[5]);
    let accepted = "[vocabulary, columns]";
    assert_refused(
        Embedding::new(&flat.view()).forward(&ids.view()),
        OperatorError::AxisCount { tensor: Operand::Table, found: 1, accepted },
        "table has 1 axes; [vocabulary, columns] is accepted",
    );
    let none = tensor(device, DType::F16, &[0, 16]);
    let found = Embedding::new(&none.view()).forward(&ids.view());
    assert!(matches!(found, Err(Error::Operator(OperatorError::Vocabulary { found: 0, .. }))), "{found:?}");
    let none = tensor(device, DType::F16, &[5, 0]);
    let text = "rows have 0 columns; 1 to 16777216 are accepted";
    assert_refused(Embedding::new(&none.view()).forward(&ids.view()), OperatorError::Columns { found: 0 }, text);

    let table = tensor(device, DType::F16, &[5, 16]);
    let embedding = Embedding::new(&table.view());
    let mut fits = tensor(device, DType::F16, &[2, 3, 16]);
    assert!(embedding.forward_into(&stream, &ids.view(), &mut fits.view_mut()).is_ok());
    let rows = |tensor, found: &[usize]| OperatorError::RowsOf { tensor, found: found.to_vec(), rows: 6, columns: 16 };
    for shape in [&[5, 16][..], &[6, 15], &[16], &[2, 4, 16]] {
        let mut out = self::tensor(device, DType::F16, shape);
        let says = |tensor| format!("{tensor} has shape {shape:?}; [.., 16] is accepted, with 6 rows");
        let found = embedding.forward_into(&stream, &ids.view(), &mut out.view_mut());
        assert_refused(found, rows(Operand::Out, shape), &says("out"));
        let found = embedding.backward(&ids.view(), &out.view());
        assert_refused(found, rows(Operand::Dout, shape), &says("dout"));
    }
    let mut wide = tensor(device, DType::F32, &[6, 16]);
    let dtype = |tensor, accepted| OperatorError::DType { tensor, found: DType::F32, accepted };
    assert_refused(
        embedding.forward_into(&stream, &ids.view(), &mut wide.view_mut()),
        dtype(Operand::Out, vec![DType::F16]),
        "out holds f32; f16 is accepted",
    );
    assert_refused(
        embedding.backward(&ids.view(), &wide.view()),
        dtype(Operand::Dout, vec![DType::F16]),
        "dout holds f32; f16 is accepted",
    );
    let mut other = tensor(device, DType::Bf16, &[5, 16]);
    assert_refused(
        embedding.backward_into(&stream, &ids.view(), &fits.view(), &mut other.view_mut()),
        OperatorError::DType { tensor: Operand::Dtable, found: DType::Bf16, accepted: vec![DType::F16, DType::F32] },
        "dtable holds bf16; f16 or f32 is accepted",
    );
    let mut short = tensor(device, DType::F16, &[4, 16]);
    assert_refused(
        embedding.backward_into(&stream, &ids.view(), &fits.view(), &mut short.view_mut()),
        OperatorError::Shape { tensor: Operand::Dtable, found: vec![4, 16], of: Operand::Table, expected: vec![5, 16] },
        "dtable has shape [4, 16]; table makes it [5, 16]",
    );
}

#[test]
fn memory_that_kernels_do_not_read_or_write() {
    let device = &device::shared().device;
    let stream = device.default_stream();
    let mut storage = tensor(device, DType::F16, &[4000]);
    let ids = Indices::from_slice(device, &[0; 16]).unwrap();
    let found = Embedding::new(&storage.strided(0, [5, 16], [40, 2]).unwrap()).forward(&ids.view()).unwrap_err();
    assert!(matches!(found, Error::LastDimNotContiguous { tensor: Operand::Table, stride: 2 }), "{found:?}");
    let table = tensor(device, DType::F16, &[5, 16]);
    let embedding = Embedding::new(&table.view());
    let mut four = storage.strided_mut(0, [2, 2, 2, 2, 16], [1000, 400, 150, 50, 1]).unwrap();
    assert_refused(
        embedding.forward_into(&stream, &ids.view(), &mut four),
        OperatorError::RowAxes { extents: vec![2; 4], found: 4 },
        "the axes before the last, of extents [2, 2, 2, 2], are 4 that cannot be read as one another's continuation in all tensors; up to 3 are \
         accepted",
    );
    let mut itself = storage.strided_mut(0, [16, 16], [8, 1]).unwrap();
    let found = embedding.forward_into(&stream, &ids.view(), &mut itself).unwrap_err();
    assert!(matches!(found, Error::OutputOverlapsItself { .. }), "{found:?}");
    // SAFETY: the calls are refused before anything is written.
    let over = |address: u64, rows: usize| unsafe {
        ferroflash::TensorViewMut::from_raw(device, address, rows * 16, [rows, 16], [16, 1], DType::F16).unwrap()
    };
    let found = embedding.forward_into(&stream, &ids.view(), &mut over(table.address() + 64, 16)).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Out, other: Operand::Table }), "{found:?}");
    let dout = tensor(device, DType::F16, &[16, 16]);
    let mut dtable = over(dout.address() + 64, 5);
    let found = embedding.backward_into(&stream, &ids.view(), &dout.view(), &mut dtable).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::Dtable, other: Operand::Dout }), "{found:?}");
    let elsewhere = Device::emulator().unwrap();
    let far = Indices::from_slice(&elsewhere, &[0; 3]).unwrap();
    let (there, here) = (elsewhere.info().id(), device.info().id());
    assert_refused(
        embedding.forward(&far.view()),
        OperatorError::Device {
            tensor: Operand::Ids,
            found: there.clone(),
            of: Operand::Table,
            expected: here.clone(),
        },
        &format!("ids is on device {there}, table is on {here}; they must be on the same device"),
    );
    let mut out = tensor(device, DType::F16, &[16, 16]);
    let found = embedding.forward_into(&elsewhere.default_stream(), &ids.view(), &mut out.view_mut()).unwrap_err();
    assert!(matches!(&found, Error::DeviceMismatch { what, .. } if what == "the stream"), "{found:?}");
}
