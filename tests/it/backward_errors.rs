//! Every bad input of the backward pass gets the error that names it, before anything is launched.

use crate::support::{device, f16};
use ferroflash::{
    Attention, DType, Device, Error, GradientsViewMut, Kernel, Layout, Lse, LseShape, Operand, OutputGradients,
    RawTensor, Shape, Sizes, Strides, Tensor, Unsupported,
};
use kernel_spec::Arch;

/// A call whose parts the tests spoil one at a time.
struct Call {
    attention: Attention<'static>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Lse,
    dout: Tensor,
    dlse: Lse,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
}

const Q: Shape = Shape::new(2, 5, 4, 32);
const KV: Shape = Shape::new(2, 7, 2, 32);
const ROWS: LseShape = LseShape { batch: Q.batch, heads: Q.heads, rows: Q.rows };
const SIZES: Sizes =
    Sizes { batch: 2, q_rows: 5, kv_rows: 7, q_heads: 4, kv_heads: 2, head_dim: 32, dtype: DType::F16 };

fn tensor(device: &Device, dtype: DType, shape: Shape) -> Tensor {
    Tensor::zeros(device, dtype, shape, Layout::Bshd).expect("a small tensor")
}

fn rows(device: &Device, shape: LseShape) -> Lse {
    Lse::uninit(device, shape).expect("a small one")
}

impl Call {
    fn new(device: &Device) -> Call {
        let tensor = |shape| tensor(device, DType::F16, shape);
        Call {
            attention: Attention::new(),
            q: tensor(Q),
            k: tensor(KV),
            v: tensor(KV),
            out: tensor(Q),
            lse: rows(device, ROWS),
            dout: tensor(Q),
            dlse: rows(device, ROWS),
            dq: tensor(Q),
            dk: tensor(KV),
            dv: tensor(KV),
        }
    }

    /// The error of the call. The gradients must be untouched.
    fn error(&mut self) -> Error {
        for gradient in [&mut self.dq, &mut self.dk, &mut self.dv] {
            gradient.fill_bytes(0xff).unwrap();
        }
        let stream = self.q.device().default_stream();
        let upstream = OutputGradients::new(self.dout.view()).with_dlse(self.dlse.view());
        let mut into = GradientsViewMut::new(self.dq.view_mut(), self.dk.view_mut(), self.dv.view_mut());
        let (q, k, v) = (self.q.view(), self.k.view(), self.v.view());
        let result =
            self.attention.backward_into(&stream, &q, &k, &v, &self.out.view(), &self.lse.view(), upstream, &mut into);
        let error = result.expect_err("the call should be refused");
        for gradient in [&self.dq, &self.dk, &self.dv] {
            assert!(gradient.to_f64_vec().unwrap().iter().all(|x| x.is_nan()), "a gradient was written");
        }
        error
    }
}

/// The error of a call with one part changed.
fn error(spoil: impl FnOnce(&mut Call, &Device)) -> Error {
    let device = device::shared().device.clone();
    let mut call = Call::new(&device);
    spoil(&mut call, &device);
    call.error()
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
    };
}

/// A tensor of the call by its name.
fn part(call: &mut Call, operand: Operand) -> &mut Tensor {
    match operand {
        Operand::Q => &mut call.q,
        Operand::K => &mut call.k,
        Operand::V => &mut call.v,
        Operand::Out => &mut call.out,
        Operand::Dout => &mut call.dout,
        Operand::Dq => &mut call.dq,
        Operand::Dk => &mut call.dk,
        Operand::Dv => &mut call.dv,
        other => unreachable!("{other} is no tensor"),
    }
}

const ALL: [Operand; 8] =
    [Operand::Q, Operand::K, Operand::V, Operand::Out, Operand::Dout, Operand::Dq, Operand::Dk, Operand::Dv];

fn shape_of(operand: Operand) -> Shape {
    if matches!(operand, Operand::K | Operand::V | Operand::Dk | Operand::Dv) { KV } else { Q }
}

#[test]
fn shapes_and_types_that_do_not_fit() {
    for operand in &ALL[1..] {
        let shape = shape_of(*operand);
        let with = |shape, dtype| error(|call, device| *part(call, *operand) = tensor(device, dtype, shape));
        let changed = |change: fn(&mut Shape)| {
            let mut shape = shape;
            change(&mut shape);
            with(shape, DType::F16)
        };
        assert_error!(
            with(shape, DType::Bf16),
            Error::DTypeMismatch { tensor, found: DType::Bf16, expected: DType::F16 } if tensor == operand
        );
        assert_error!(
            changed(|shape| shape.batch = 3),
            Error::BatchMismatch { tensor, found: 3, expected: 2 } if tensor == operand
        );
        assert_error!(
            changed(|shape| shape.head_dim = 40),
            Error::HeadDimMismatch { tensor, found: 40, expected: 32 } if tensor == operand
        );
        // Rows and heads of k are what those of v have to be.
        if *operand == Operand::K {
            continue;
        }
        assert_error!(changed(|shape| shape.rows = 6), Error::RowsMismatch { tensor, found: 6, .. } if tensor == operand);
        assert_error!(changed(|shape| shape.heads = 8), Error::HeadsMismatch { tensor, found: 8, .. } if tensor == operand);
    }
    for (dlse, operand) in [(false, Operand::Lse), (true, Operand::Dlse)] {
        let changed =
            |shape| error(|call, device| *(if dlse { &mut call.dlse } else { &mut call.lse }) = rows(device, shape));
        assert_error!(
            changed(LseShape { batch: 3, ..ROWS }),
            Error::BatchMismatch { tensor, found: 3, expected: 2 } if *tensor == operand
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
fn tensors_of_other_devices() {
    let other = Device::emulator().expect("the emulator is built in");
    for operand in &ALL[1..] {
        assert_error!(
            error(|call, _| *part(call, *operand) = tensor(&other, DType::F16, shape_of(*operand))),
            Error::DeviceMismatch { what, .. } if *what == operand.to_string()
        );
    }
    assert_error!(
        error(|call, _| call.dlse = rows(&other, ROWS)),
        Error::DeviceMismatch { what, .. } if what == "dlse"
    );
}

#[test]
fn options_that_have_no_gradient_or_no_meaning() {
    assert_error!(
        error(|call, _| call.attention = Attention::new().with_softcap(-30.0)),
        Error::Softcap { found: -30.0, .. }
    );
    // Where it does not run at all that is the reason.
    if device::shared().device.info().runs(Arch::Sm90a) {
        let fused = Attention::new().with_softcap(30.0).with_kernel(Kernel::V3);
        assert_error!(
            fused.backward_plan(&device::shared().device, SIZES).unwrap_err(),
            Error::KernelUnsupported {
                kernel: Kernel::V3,
                reason: Unsupported::Feature { feature: "softcap", dtype: DType::F16, .. }
            }
        );
    }
    assert_error!(error(|call, _| call.attention = Attention::new().with_scale(f32::NAN)), Error::Scale { .. });
    let head_dim = Attention::new().backward_plan(&device::shared().device, Sizes { head_dim: 264, ..SIZES });
    assert_error!(head_dim.unwrap_err(), Error::HeadDim { found: 264 });
    let rows = Sizes { batch: 1 << 20, q_rows: 1 << 20, ..SIZES };
    assert_error!(
        Attention::new().backward_plan(&device::shared().device, rows).unwrap_err(),
        Error::GridTooLarge { .. }
    );
}

#[test]
fn more_scores_than_the_device_holds() {
    let device = &device::shared().device;
    let naive = Attention::new().with_kernel(Kernel::Naive);
    let rows = 1 << 22;
    let found = naive.backward_plan(device, Sizes { q_rows: rows, kv_rows: rows - 1, ..SIZES }).unwrap_err();
    // Six bytes a score, with rows of whole 16 bytes, and two numbers a row.
    let expected = 2 * 4 * ((rows * rows) as u128 * 6 + rows as u128 * 8);
    assert_error!(
        found,
        Error::WorkspaceTooLarge { kernel: Kernel::Naive, needed, available }
            if (*needed, *available) == (expected, device.info().memory_bytes)
    );
    // Those who recompute hold none.
    Attention::new().backward_plan(device, Sizes { q_rows: rows, kv_rows: rows - 1, ..SIZES }).unwrap();
}

/// Addresses that never hold anything: every call is refused before it looks.
#[test]
fn gradients_that_overlap() {
    let device = &device::shared().device;
    let strides = |shape: Shape| shape.contiguous(Layout::Bshd).unwrap();
    // Further apart than any of them is long.
    let places = |operand: Operand| ((ALL.iter().position(|&of| of == operand).unwrap() + 1) << 20) as u64;
    let (lse, dlse) = (100 << 20, 101 << 20);
    let call = |moved: Operand, to: u64, moved_strides: Option<Strides>| {
        let raw = |operand| {
            let shape = shape_of(operand);
            let address = if operand == moved { to } else { places(operand) };
            let own = moved_strides.filter(|_| operand == moved);
            RawTensor::new(address, own.unwrap_or_else(|| strides(shape)))
        };
        let [q, k, v, out, dout, dq, dk, dv] = ALL.map(raw);
        let null = std::ptr::null_mut();
        // SAFETY: nothing is launched.
        unsafe {
            Attention::new().backward_raw(device, null, SIZES, q, k, v, out, lse, dout, Some(dlse), dq, dk, dv, None)
        }
        .unwrap_err()
    };
    for gradient in [Operand::Dq, Operand::Dk, Operand::Dv] {
        for other in ALL.into_iter().filter(|&other| other != gradient) {
            assert_error!(
                call(gradient, places(other), None),
                Error::OutputOverlaps { output, other: o } if [*output, *o] == [gradient, other] || [*o, *output] == [gradient, other]
            );
        }
        for (address, other) in [(lse, Operand::Lse), (dlse, Operand::Dlse)] {
            assert_error!(
                call(gradient, address, None),
                Error::OutputOverlaps { output, other: o } if (*output, *o) == (gradient, other)
            );
        }
        assert_error!(
            call(gradient, places(gradient), Some(Strides::new(0, 32, 32))),
            Error::OutputOverlapsItself { .. }
        );
        assert_error!(
            call(gradient, places(gradient), Some(Strides { dim: 2, ..Strides::new(4096, 256, 64) })),
            Error::LastDimNotContiguous { tensor, stride: 2 } if *tensor == gradient
        );
        assert_error!(call(gradient, places(gradient) + 1, None), Error::MisalignedAddress { .. });
    }
    // The element type is one of the library's, not a number of this file.
    assert_eq!(SIZES.dtype, <f16 as ferroflash::Element>::DTYPE);
}
