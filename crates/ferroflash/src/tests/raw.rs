//! Calls on plain addresses beside calls on views: what they launch, and what both refuse. The device looks at no address.

use super::*;
use std::ffi::c_void;
use std::ptr;

const SIZES: Sizes =
    Sizes { batch: 2, q_rows: 8, kv_rows: 9, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: DType::F16 };
const Q: Shape = Shape::new(2, 8, 4, 64);
const KV: Shape = Shape::new(2, 9, 2, 64);
const LSE: LseShape = LseShape { batch: 2, heads: 4, rows: 8 };

/// Where the tensors of a call start, by their operands.
#[derive(Clone, Copy)]
struct Places {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    lse: Option<u64>,
}

/// Further apart than any of them is long.
const APART: Places = Places { q: 1 << 20, k: 2 << 20, v: 3 << 20, out: 4 << 20, lse: Some(5 << 20) };

impl Places {
    fn at(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Q => self.q,
            Operand::K => self.k,
            Operand::V => self.v,
            Operand::Out => self.out,
            Operand::Lse => self.lse.expect("a call with it"),
            other => unreachable!("no operand of the forward pass: {other}"),
        }
    }

    fn with(mut self, operand: Operand, address: u64) -> Places {
        match operand {
            Operand::Q => self.q = address,
            Operand::K => self.k = address,
            Operand::V => self.v = address,
            Operand::Out => self.out = address,
            Operand::Lse => self.lse = Some(address),
            other => unreachable!("no operand of the forward pass: {other}"),
        }
        self
    }
}

/// Bytes of an operand, and of one of its elements.
fn bytes(operand: Operand) -> (u64, u64) {
    match operand {
        Operand::Q | Operand::Out => (2 * Q.elements().unwrap() as u64, 2),
        Operand::K | Operand::V => (2 * KV.elements().unwrap() as u64, 2),
        _ => (4 * (LSE.batch * LSE.heads * LSE.rows) as u64, 4),
    }
}

fn contiguous(shape: Shape) -> Strides {
    shape.contiguous(Layout::Bhsd).unwrap()
}

/// The call on addresses, with these strides of q, k, v and out.
fn call_raw(
    attention: &Attention,
    device: &Device,
    problem: impl Into<Problem>,
    places: Places,
    [q, k, v, out]: [Strides; 4],
) -> Result<()> {
    let stream: *mut c_void = ptr::null_mut();
    let raw = RawTensor::new;
    // SAFETY: the device writes down what it would launch, and touches no memory.
    unsafe {
        attention.forward_raw(
            device,
            stream,
            problem,
            raw(places.q, q),
            raw(places.k, k),
            raw(places.v, v),
            raw(places.out, out),
            places.lse,
        )
    }
}

const fn strides_of(q: Strides, kv: Strides) -> [Strides; 4] {
    [q, kv, kv, q]
}

fn forward_raw(device: &Device, places: Places) -> Result<()> {
    call_raw(&Attention::new().causal(), device, SIZES, places, strides_of(contiguous(Q), contiguous(KV)))
}

fn forward_into(device: &Device, places: Places) -> Result<()> {
    // SAFETY: as above.
    let view = |address, shape| unsafe {
        TensorView::from_raw(device, address, usize::MAX, shape, contiguous(shape), DType::F16).unwrap()
    };
    // SAFETY: as above.
    let mut out =
        unsafe { TensorViewMut::from_raw(device, places.out, usize::MAX, Q, contiguous(Q), DType::F16).unwrap() };
    // SAFETY: as above.
    let mut lse = places.lse.map(|lse| unsafe { LseViewMut::from_raw(device, lse, usize::MAX, LSE).unwrap() });
    let (q, k, v) = (view(places.q, Q), view(places.k, KV), view(places.v, KV));
    let stream = device.default_stream();
    Attention::new().causal().forward_into(&stream, &q, &k, &v, &mut out, lse.as_mut())
}

type Call = fn(&Device, Places) -> Result<()>;

const CALLS: [(&str, Call); 2] = [("forward_raw", forward_raw), ("forward_into", forward_into)];

/// Entry, grid and every byte of the parameters, with the addresses among them.
#[test]
fn addresses_launch_what_views_launch() {
    for compute_capability in [(8, 0), (9, 0)] {
        for places in [APART, Places { lse: None, ..APART }] {
            let launched = CALLS.map(|(name, call)| {
                let (device, launched) = recording::device_of(compute_capability);
                call(&device, places).unwrap_or_else(|error| panic!("{name}: {error}"));
                let launched = launched.lock().unwrap();
                assert_eq!(launched.len(), 1);
                launched[0].clone()
            });
            assert_eq!(launched[0], launched[1]);
        }
    }
}

/// Every output over every other tensor: by its first element, by its last, in whole, and beside it on either side.
#[test]
fn outputs_have_memory_of_their_own() {
    let (device, launched) = recording::device();
    let inputs = [Operand::Q, Operand::K, Operand::V];
    let pairs = inputs.map(|input| (Operand::Out, input)).into_iter();
    let pairs = pairs.chain(inputs.map(|input| (Operand::Lse, input))).chain([(Operand::Lse, Operand::Out)]);
    for ((output, other), (name, call)) in pairs.flat_map(|pair| CALLS.map(|call| (pair, call))) {
        let start = APART.at(other);
        let ((length, element), (other_length, other_element)) = (bytes(output), bytes(other));
        let step = element.max(other_element);
        for address in [start, start + other_length - step, start + step - length, start + step] {
            let error = call(&device, APART.with(output, address)).expect_err(name);
            assert!(
                matches!(error, Error::OutputOverlaps { output: o, other: t } if (o, t) == (output, other)),
                "{name}, {output} over {other}: {error:?}"
            );
        }
        assert!(launched.lock().unwrap().is_empty());
        for address in [start + other_length, start - length] {
            call(&device, APART.with(output, address)).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert_eq!(launched.lock().unwrap().drain(..).count(), 2);
    }
}

/// Inputs may be one memory.
#[test]
fn inputs_may_overlap() {
    let (device, launched) = recording::device();
    for (name, call) in CALLS {
        let together = APART.with(Operand::K, APART.q).with(Operand::V, APART.q);
        call(&device, together).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_eq!(launched.lock().unwrap().len(), 2);
}

#[test]
fn addresses_between_elements() {
    let (device, launched) = recording::device();
    for operand in [Operand::Q, Operand::K, Operand::V, Operand::Out, Operand::Lse] {
        let (_, element) = bytes(operand);
        for off in 1..element {
            let at = APART.at(operand) + off;
            let error = forward_raw(&device, APART.with(operand, at)).unwrap_err();
            let dtype = if operand == Operand::Lse { DType::F32 } else { DType::F16 };
            assert!(
                matches!(error, Error::MisalignedAddress { address, bytes, dtype: d }
                    if (address, bytes as u64, d) == (at, element, dtype)),
                "{operand}: {error:?}"
            );
        }
        assert!(launched.lock().unwrap().is_empty());
        // The next element is as good as the first.
        forward_raw(&device, APART.with(operand, APART.at(operand) + element)).unwrap();
        launched.lock().unwrap().clear();
    }
}

/// What a call on views refuses, a call on addresses refuses too.
#[test]
fn what_addresses_cannot_be() {
    let (device, launched) = recording::device();
    let (q, kv) = (contiguous(Q), contiguous(KV));
    let call = |attention: Attention, sizes: Sizes, strides| {
        let error = call_raw(&attention, &device, sizes, APART, strides).unwrap_err();
        assert!(launched.lock().unwrap().is_empty(), "{error}: launched all the same");
        error
    };
    let plain = Attention::new();
    for (at, operand) in [Operand::Q, Operand::K, Operand::V, Operand::Out].into_iter().enumerate() {
        let mut strides = strides_of(q, kv);
        strides[at].dim = 2;
        let error = call(plain, SIZES, strides);
        assert!(matches!(error, Error::LastDimNotContiguous { tensor, stride: 2 } if tensor == operand), "{error:?}");
    }
    let one_row = [q, kv, kv, Strides { row: 0, ..q }];
    assert!(matches!(call(plain, SIZES, one_row), Error::OutputOverlapsItself { .. }));
    let strides = strides_of(q, kv);
    let sizes = |sizes| call(plain, sizes, strides);
    assert!(matches!(sizes(Sizes { q_heads: 3, ..SIZES }), Error::HeadGroups { q_heads: 3, kv_heads: 2 }));
    assert!(matches!(sizes(Sizes { head_dim: 12, ..SIZES }), Error::HeadDim { found: 12 }));
    assert!(matches!(sizes(Sizes { batch: 0, ..SIZES }), Error::EmptyAxis { tensor: Operand::Q, axis: "batch" }));
    assert!(matches!(call(plain.with_scale(f32::NAN), SIZES, strides), Error::Scale { .. }));
    let packed = Problem::new(Sequences::Packed { batch: 2, q_rows: 8, kv_rows: 9 }, 4, 2, 64, DType::F16);
    let error = call_raw(&plain, &device, packed, APART, strides).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
}
