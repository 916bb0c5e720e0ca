//! What rotary embedding refuses, each with the error that names it, before anything is launched.

use crate::support::device;
use ferroflash::operators::{Rotary, RotaryPositions};
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
fn shapes_and_types_that_do_not_go_together() {
    let device = &device::shared().device;
    let table = tensor(device, DType::F32, &[8, 4]);
    let rotary = Rotary::new(&table.view(), &table.view());
    let accepted = "[batch, rows, heads, columns] or [rows, heads, columns]";
    for found in [2, 5] {
        let x = tensor(device, DType::F16, &vec![2; found]);
        let text = format!("x has {found} axes; {accepted} is accepted");
        assert_refused(
            rotary.forward(&x.view()),
            OperatorError::AxisCount { tensor: Operand::X, found, accepted },
            &text,
        );
    }
    let none = tensor(device, DType::F16, &[2, 3, 0]);
    let text = "rows have 0 columns; 1 to 16777216 are accepted";
    assert_refused(rotary.forward(&none.view()), OperatorError::Columns { found: 0 }, text);
    let x = tensor(device, DType::F16, &[2, 3, 8]);
    let bf16 = tensor(device, DType::Bf16, &[8, 4]);
    let dtype = |tensor, found, accepted| OperatorError::DType { tensor, found, accepted };
    assert_refused(
        Rotary::new(&bf16.view(), &bf16.view()).forward(&x.view()),
        dtype(Operand::Cos, DType::Bf16, vec![DType::F16, DType::F32]),
        "cos holds bf16; f16 or f32 is accepted",
    );
    let own = tensor(device, DType::F16, &[8, 4]);
    assert_refused(
        Rotary::new(&table.view(), &own.view()).forward(&x.view()),
        dtype(Operand::Sin, DType::F16, vec![DType::F32]),
        "sin holds f16; f32 is accepted",
    );
    let stream = device.default_stream();
    let mut other = tensor(device, DType::F32, &[2, 3, 8]);
    assert_refused(
        rotary.forward_into(&stream, &x.view(), &mut other.view_mut()),
        dtype(Operand::Out, DType::F32, vec![DType::F16]),
        "out holds f32; f16 is accepted",
    );
    let mut other = tensor(device, DType::F16, &[2, 4, 8]);
    assert_refused(
        rotary.backward_into(&stream, &x.view(), &mut other.view_mut()),
        OperatorError::Shape { tensor: Operand::Dx, found: vec![2, 4, 8], of: Operand::Dout, expected: vec![2, 3, 8] },
        "dx has shape [2, 4, 8]; dout makes it [2, 3, 8]",
    );
}

#[test]
fn tables_that_do_not_fit() {
    let device = &device::shared().device;
    let x = tensor(device, DType::F16, &[2, 3, 9]);
    let fits = tensor(device, DType::F32, &[8, 4]);
    assert!(Rotary::new(&fits.view(), &fits.view()).forward(&x.view()).is_ok());
    let refused = |tensor, shape: &[usize]| OperatorError::RotaryTable { tensor, shape: shape.to_vec(), columns: 9 };
    for shape in [&[8, 5][..], &[8, 0], &[0, 4], &[8], &[8, 1, 4]] {
        let table = self::tensor(device, DType::F32, shape);
        let text = format!(
            "cos has shape {shape:?}; [positions, turned columns / 2] is accepted, with 1 or more positions and 1 to 4 columns"
        );
        assert_refused(
            Rotary::new(&table.view(), &table.view()).forward(&x.view()),
            refused(Operand::Cos, shape),
            &text,
        );
    }
    let other = tensor(device, DType::F32, &[7, 4]);
    let text = "sin has shape [7, 4]; [positions, turned columns / 2] is accepted, with 1 or more positions and 1 to 4 columns";
    assert_refused(Rotary::new(&fits.view(), &other.view()).forward(&x.view()), refused(Operand::Sin, &[7, 4]), text);
    let apart = fits.strided(0, [4, 4], [8, 1]).unwrap();
    assert_refused(
        Rotary::new(&apart, &apart).forward(&x.view()),
        OperatorError::NotContiguous { tensor: Operand::Cos, shape: vec![4, 4], strides: vec![8, 1] },
        "cos has shape [4, 4] and strides [8, 1]; it must be contiguous",
    );
    let elsewhere = Device::emulator().unwrap();
    let far = tensor(&elsewhere, DType::F32, &[8, 4]);
    let (there, here) = (elsewhere.info().id(), device.info().id());
    assert_refused(
        Rotary::new(&far.view(), &fits.view()).forward(&x.view()),
        OperatorError::Device { tensor: Operand::Cos, found: there.clone(), of: Operand::X, expected: here.clone() },
        &format!("cos is on device {there}, x is on {here}; they must be on the same device"),
    );
    let array = Indices::from_slice(&elsewhere, &[0, 0]).unwrap();
    assert_refused(
        Rotary::new(&fits.view(), &fits.view()).with_positions(RotaryPositions::Each(array.view())).forward(&x.view()),
        OperatorError::Device {
            tensor: Operand::Positions,
            found: there.clone(),
            of: Operand::X,
            expected: here.clone(),
        },
        &format!("the positions is on device {there}, x is on {here}; they must be on the same device"),
    );
}

#[test]
fn positions_that_do_not_fit() {
    let device = &device::shared().device;
    let table = tensor(device, DType::F32, &[8, 4]);
    let rotary = Rotary::new(&table.view(), &table.view());
    let x = tensor(device, DType::F16, &[2, 3, 1, 8]);
    assert!(rotary.with_positions(RotaryPositions::Offset(5)).forward(&x.view()).is_ok());
    assert_refused(
        rotary.with_positions(RotaryPositions::Offset(6)).forward(&x.view()),
        OperatorError::PastTable { first: 6, last: 8, positions: 8 },
        "rows from position 6 on reach position 8; the tables have 8, from 0 on",
    );
    assert!(rotary.with_positions(RotaryPositions::Offset(usize::MAX)).forward(&x.view()).is_err());
    let array = Indices::from_slice(device, &[0; 3]).unwrap();
    let count = |tensor, expected| OperatorError::IndexCount { tensor, found: 3, expected };
    assert_refused(
        rotary.with_positions(RotaryPositions::Offsets(array.view())).forward(&x.view()),
        count(Operand::Offsets, 2),
        "the offsets holds 3 numbers; 2 are needed",
    );
    assert_refused(
        rotary.with_positions(RotaryPositions::Each(array.view())).forward(&x.view()),
        count(Operand::Positions, 6),
        "the positions holds 3 numbers; 6 are needed",
    );
    // Packed sequences: two of them.
    let accepted = "[rows, heads, columns], of packed sequences,";
    assert_refused(
        rotary.with_starts(array.view()).forward(&x.view()),
        OperatorError::AxisCount { tensor: Operand::X, found: 4, accepted },
        "x has 4 axes; [rows, heads, columns], of packed sequences, is accepted",
    );
    let packed = tensor(device, DType::F16, &[3, 1, 8]);
    let rotary = rotary.with_starts(array.view());
    assert_refused(
        rotary.with_positions(RotaryPositions::Offsets(array.view())).forward(&packed.view()),
        count(Operand::Offsets, 2),
        "the offsets holds 3 numbers; 2 are needed",
    );
    assert_refused(
        rotary.with_positions(RotaryPositions::Each(array.view())).forward(&packed.view()),
        OperatorError::Both { first: "starts", second: "a position for each row" },
        "starts and a position for each row are given; one of the two is accepted",
    );
    assert_refused(
        rotary.with_positions(RotaryPositions::Offset(8)).forward(&packed.view()),
        OperatorError::PastTable { first: 8, last: 8, positions: 8 },
        "rows from position 8 on reach position 8; the tables have 8, from 0 on",
    );
    for found in [0, 1] {
        let array = Indices::from_slice(device, &vec![0; found]).unwrap();
        assert_refused(
            rotary.with_starts(array.view()).forward(&packed.view()),
            OperatorError::IndexCount { tensor: Operand::Starts, found, expected: 2 },
            &format!("the starts of the sequences holds {found} numbers; 2 are needed"),
        );
    }
}

#[test]
fn memory_that_is_written() {
    let device = &device::shared().device;
    let stream = device.default_stream();
    let table = tensor(device, DType::F16, &[8, 4]);
    let rotary = Rotary::new(&table.view(), &table.view());
    let mut storage = tensor(device, DType::F16, &[1000]);
    let found = rotary.forward(&storage.strided(0, [2, 3, 8], [100, 30, 2]).unwrap()).unwrap_err();
    assert!(matches!(found, Error::LastDimNotContiguous { tensor: Operand::X, stride: 2 }), "{found:?}");
    let found = rotary.in_place(&stream, &mut storage.strided_mut(0, [2, 3, 8], [4, 30, 1]).unwrap()).unwrap_err();
    assert!(matches!(found, Error::OutputOverlapsItself { .. }), "{found:?}");
    let address = storage.address();
    let over = |offset: u64| {
        // SAFETY: the calls are refused before anything is written.
        unsafe {
            ferroflash::TensorViewMut::from_raw(device, address + offset, 100, [2, 3, 8], [24, 8, 1], DType::F16)
                .unwrap()
        }
    };
    let x = storage.strided(0, [2, 3, 8], [24, 8, 1]).unwrap();
    // Exactly itself is no way to say "in place": that is a call of its own.
    for offset in [0, 16] {
        let found = rotary.forward_into(&stream, &x, &mut over(offset)).unwrap_err();
        assert!(matches!(found, Error::OutputOverlaps { output: Operand::Out, other: Operand::X }), "{found:?}");
    }
    let own = storage.strided(40, [8, 4], [4, 1]).unwrap();
    let found = Rotary::new(&own, &table.view()).in_place(&stream, &mut over(0)).unwrap_err();
    assert!(matches!(found, Error::OutputOverlaps { output: Operand::X, other: Operand::Cos }), "{found:?}");
    let elsewhere = Device::emulator().unwrap();
    let found = rotary.in_place(&elsewhere.default_stream(), &mut over(0)).unwrap_err();
    assert!(matches!(&found, Error::DeviceMismatch { what, .. } if what == "the stream"), "{found:?}");
}
