//! Attention over sequences refuses outputs and caches that lie where it reads, and kernels, options and sizes that it does not take. What
//! does not fit in shapes and numbers is in `sequences_errors`.

use crate::support::device;
use ferroflash::{
    Attention, DType, Device, Error, Indices, IndicesView, Kernel, KernelChoice, KvCache, KvCacheMut, Layout, LseShape,
    LseViewMut, NewRows, Operand, PackedRows, PageTable, Problem, QueryRows, RawTensor, Rotary, Sequences,
    SequencesError, Splits, Strides, Tensor, TensorView, TensorViewMut, Unsupported,
};
use kernel_spec::families::sequences::VARIANTS;
use kernel_spec::{MAX_ROWS, Pass};
use std::collections::BTreeMap;

const DTYPE: DType = DType::F16;

/// An error of this kind, with these words.
macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?, $words:expr $(,)?) => {
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
        assert_eq!(error.to_string(), $words);
    };
}

/// Elements from one tensor of a [`Call`] to the next: further than any of them is long.
const FAR: usize = 4096;

/// A call that appends, with all of its tensors in one memory, in an order of our choice. Views of other frameworks' memory may overlap in
/// ways that borrowed Rust tensors cannot.
struct Call {
    device: Device,
    memory: Tensor,
    /// Place, shape and strides of each tensor.
    tensors: BTreeMap<&'static str, (usize, Vec<usize>, Vec<usize>)>,
    /// Whether rows are appended.
    appends: bool,
}

const ALL: [(Operand, &str, &[usize]); 8] = [
    (Operand::Q, "q", &[2, 3, 4, 32]),
    (Operand::K, "k", &[2, 16, 2, 32]),
    (Operand::V, "v", &[2, 16, 2, 32]),
    (Operand::Out, "out", &[2, 3, 4, 32]),
    (Operand::NewK, "the new k", &[2, 3, 2, 32]),
    (Operand::NewV, "the new v", &[2, 3, 2, 32]),
    (Operand::Cos, "cos", &[20, 16]),
    (Operand::Sin, "sin", &[20, 16]),
];

fn contiguous(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

impl Call {
    fn new(device: &Device, appends: bool) -> Call {
        let place = |(i, (_, name, shape)): (usize, &(Operand, &'static str, &[usize]))| {
            (*name, (i * FAR, shape.to_vec(), contiguous(shape)))
        };
        let mut memory = Tensor::zeros(device, DTYPE, [(ALL.len() + 1) * FAR], Layout::RowMajor).expect("a small one");
        memory.fill_bytes(0xff).unwrap();
        Call { device: device.clone(), memory, tensors: ALL.iter().enumerate().map(place).collect(), appends }
    }

    fn address(&self, place: usize) -> u64 {
        self.memory.address() + (place * DTYPE.bytes()) as u64
    }

    fn view(&self, name: &str) -> TensorView<'_> {
        let (place, shape, strides) = &self.tensors[name];
        let [shape, strides] = [shape, strides].map(|dims| ferroflash::Dims::new(dims).expect("few axes"));
        // SAFETY: the address lies within the memory, which lives, and nobody else uses it meanwhile.
        unsafe { TensorView::from_raw(&self.device, self.address(*place), FAR, shape, strides, DTYPE) }.unwrap()
    }

    fn view_mut(&self, name: &str) -> TensorViewMut<'_> {
        let (place, shape, strides) = &self.tensors[name];
        let [shape, strides] = [shape, strides].map(|dims| ferroflash::Dims::new(dims).expect("few axes"));
        // SAFETY: as in `view`.
        unsafe { TensorViewMut::from_raw(&self.device, self.address(*place), FAR, shape, strides, DTYPE) }.unwrap()
    }

    fn run(&self, lse: Option<usize>) -> ferroflash::Result<()> {
        let stream = self.device.default_stream();
        let lengths = Indices::from_slice(&self.device, &[5, 7]).unwrap();
        let shape = LseShape { batch: 2, heads: 4, rows: 3 };
        // SAFETY: as in `view`.
        let mut lse = lse.map(|place| unsafe {
            LseViewMut::from_raw(&self.device, self.address(place), FAR / 2, shape).expect("a legal place")
        });
        let (q, mut out) = (self.view("q"), self.view_mut("out"));
        if !self.appends {
            let cache = KvCache::new(&self.view("k"), &self.view("v")).with_lengths(lengths.view());
            return Attention::new().forward_cached_into(&stream, &q, None, &cache, &mut out, lse.as_mut());
        }
        let (cos, sin) = (self.view("cos"), self.view("sin"));
        let (new_k, new_v) = (self.view("the new k"), self.view("the new v"));
        let new = NewRows::new(&new_k, &new_v).with_rotary(Rotary::new(&cos, &sin));
        let mut cache = KvCacheMut::new(self.view_mut("k"), self.view_mut("v"));
        cache = cache.with(|cache| cache.with_lengths(lengths.view()));
        Attention::new().forward_appending_into(&stream, &q, None, &mut cache, &new, &mut out, lse.as_mut())
    }

    /// The error of the call with one tensor moved. Nothing may have been written.
    fn error(mut self, moved: &'static str, to: usize, lse: Option<usize>) -> Error {
        self.tensors.get_mut(moved).expect("a tensor of the call").0 = to;
        self.refused(lse)
    }

    fn refused(self, lse: Option<usize>) -> Error {
        let error = self.run(lse).expect_err("the call should be refused");
        assert!(self.memory.to_f64_vec().unwrap().iter().all(|x| x.is_nan()), "something was written");
        error
    }
}

/// That two tensors overlap, whichever of them is called the output.
fn overlap(error: Error, a: Operand, b: Operand) {
    let Error::OutputOverlaps { output, other } = error else { panic!("{error:?}") };
    assert!((output, other) == (a, b) || (output, other) == (b, a), "{error:?}");
    assert_eq!(error.to_string(), format!("{output} overlaps {other} in memory; outputs need memory of their own"));
}

#[test]
fn outputs_that_overlap_what_is_read() {
    let shared = device::shared();
    let device = &shared.device;
    let lse = ALL.len() * FAR;
    for appends in [false, true] {
        Call::new(device, appends).run(Some(lse)).unwrap_or_else(|error| panic!("appends {appends}: {error}"));
        let read = |of: &(Operand, &str, &[usize])| of.0 != Operand::Out && (appends || !of.1.starts_with("the new"));
        let tensors = ALL.iter().enumerate().filter(|(_, of)| read(of) && (appends || of.2.len() == 4));
        for (i, (operand, _, shape)) in tensors {
            let elements: usize = shape.iter().product();
            // At its start, and at its last 8 elements.
            for place in [i * FAR, i * FAR + elements - 8] {
                overlap(Call::new(device, appends).error("out", place, Some(lse)), Operand::Out, *operand);
                overlap(Call::new(device, appends).refused(Some(place)), Operand::Lse, *operand);
            }
        }
        overlap(Call::new(device, appends).error("out", lse, Some(lse)), Operand::Out, Operand::Lse);
    }
}

#[test]
fn caches_that_overlap_what_is_read() {
    let shared = device::shared();
    let device = &shared.device;
    for (name, operand) in [("k", Operand::K), ("v", Operand::V)] {
        for (i, (other, ..)) in ALL.iter().enumerate().filter(|(_, (other, ..))| *other != operand) {
            overlap(Call::new(device, true).error(name, i * FAR, None), operand, *other);
        }
    }
    // A cache that is read alone may be one tensor.
    let mut call = Call::new(device, false);
    call.tensors.get_mut("v").unwrap().0 = FAR;
    call.run(None).unwrap();
    // Keys beside values, row by row, share no element.
    let mut call = Call::new(device, true);
    let beside = vec![16 * 128, 128, 32, 1];
    call.tensors.insert("k", (FAR, vec![2, 16, 2, 32], beside.clone()));
    call.tensors.insert("v", (FAR + 64, vec![2, 16, 2, 32], beside));
    call.run(None).unwrap();
}

#[test]
fn outputs_and_caches_that_overlap_themselves() {
    let shared = device::shared();
    let device = &shared.device;
    let with = |name: &'static str, strides: &[usize], appends| {
        let mut call = Call::new(device, appends);
        call.tensors.get_mut(name).unwrap().2 = strides.to_vec();
        call
    };
    for (name, strides) in
        [("out", [0, 128, 32, 1]), ("out", [384, 128, 24, 1]), ("k", [0, 64, 32, 1]), ("v", [1024, 64, 0, 1])]
    {
        let shape = if name == "out" { [2, 3, 4, 32] } else { [2, 16, 2, 32] };
        assert_error!(
            with(name, &strides, true).refused(None),
            Error::OutputOverlapsItself { .. },
            format!(
                "an output of shape {shape:?} and strides {strides:?} overlaps itself; every element needs its own memory"
            )
        );
    }
    // What is only read may.
    with("k", &[0, 64, 32, 1], false).run(None).unwrap();
}

#[test]
fn last_dims_that_are_not_contiguous() {
    let shared = device::shared();
    let tensors = ALL.iter().filter(|(.., shape)| shape.len() == 4);
    for (operand, name, shape) in tensors {
        let mut call = Call::new(&shared.device, true);
        call.tensors.get_mut(name).unwrap().2 = contiguous(shape).iter().map(|stride| 2 * stride).collect();
        assert_error!(
            call.refused(None),
            Error::LastDimNotContiguous { tensor, stride: 2 } if tensor == operand,
            format!(
                "the last dim of {operand} has stride 2; it must be contiguous (stride 1), the other strides are free"
            )
        );
    }
}

/// Tensors of two packed sequences.
struct Packed {
    q: Tensor,
    kv: Tensor,
    starts: Indices,
}

impl Packed {
    fn new(device: &Device) -> Packed {
        let tensor = |heads| Tensor::zeros(device, DTYPE, [5, heads, 32], Layout::RowMajor).expect("a small one");
        Packed { q: tensor(4), kv: tensor(2), starts: Indices::from_slice(device, &[0, 3, 5]).expect("a few") }
    }

    /// The call into poison, which stays.
    fn error(&self, attention: Attention<'static>) -> Error {
        let device = self.q.device();
        let rows = PackedRows::new(self.starts.view());
        let mut out = Tensor::zeros(device, DTYPE, [5, 4, 32], Layout::RowMajor).unwrap();
        out.fill_bytes(0xff).unwrap();
        let (stream, q, kv) = (device.default_stream(), self.q.view(), self.kv.view());
        let result = attention.forward_packed_into(&stream, &q, &kv, &kv, &rows, &rows, &mut out.view_mut(), None);
        assert!(out.to_f64_vec().unwrap().iter().all(|x| x.is_nan()), "the output was written");
        let planned = attention.plan_packed(&q, &kv, &kv, &rows, &rows).expect_err("a plan is refused as well");
        let error = result.expect_err("the call should be refused");
        assert_eq!(planned.to_string(), error.to_string());
        error
    }
}

#[test]
fn kernels_that_take_no_sequences() {
    let shared = device::shared();
    let device = &shared.device;
    let packed = Packed::new(device);
    let is_refused = |error: Error, asked: Kernel, kind: &str| {
        assert_error!(
            error,
            Error::KernelUnsupported { kernel, reason: Unsupported::Sequences { .. } } if *kernel == asked,
            format!("kernel {asked} cannot run this: the sequences are {kind}; uniform ones are accepted")
        );
    };
    let problem = |sequences| Problem::new(sequences, 4, 2, 32, DTYPE);
    let each = QueryRows::Each(1);
    let problems = [
        ("packed", problem(Sequences::Packed { batch: 2, q_rows: 5, kv_rows: 5 })),
        ("cached", problem(Sequences::Cached { batch: 2, q_rows: each, capacity: 16 })),
        ("paged", problem(Sequences::Paged { batch: 2, q_rows: each, pages: 6, page_rows: 16, width: 3 })),
    ];
    let dense = kernel_spec::VARIANTS.iter().filter(|row| row.holds(DTYPE, [32; 2]));
    let others = VARIANTS.iter().filter(|row| matches!(row.pass, Pass::Merge | Pass::Append) && row.dtype == DTYPE);
    let rows = dense.chain(others).map(KernelChoice::Variant);
    // v3 has rows of its own for sequences: see `sequences_v3`.
    let choices = rows.chain([Kernel::Naive, Kernel::V1].map(KernelChoice::Kernel));
    let choices: Vec<_> = choices.collect();
    assert!(choices.len() > 6, "{} kernels", choices.len());
    for choice in choices {
        let (attention, kernel) = (Attention::new().with_kernel(choice), choice.kernel().expect("one is asked for"));
        is_refused(packed.error(attention), kernel, "packed");
        for (kind, problem) in problems {
            is_refused(attention.plan(device, problem).unwrap_err(), kernel, kind);
        }
    }
    for (_, problem) in problems {
        assert_eq!(Attention::new().with_kernel(Kernel::V2).plan(device, problem).unwrap().kernel, Kernel::V2);
    }
}

#[test]
fn tiles_for_tensors_of_another_kind() {
    let packed = Packed::new(&device::shared().device);
    for row in VARIANTS.iter().filter(|row| matches!(row.pass, Pass::Decode | Pass::Prefill)) {
        if row.holds(DTYPE, [32; 2]) {
            continue;
        }
        let (symbol, dtype, head_dim) = (row.entry.symbol, row.dtype, row.dim_qk);
        assert_error!(
            packed.error(Attention::new().with_kernel(row)),
            Error::VariantMismatch { .. },
            format!(
                "{symbol} is for {dtype} and head dims up to {head_dim}; the problem is 2 packed sequences, q_rows 5, kv_rows 5, \
                 heads 4/2, head_dim 32, f16"
            )
        );
    }
}

#[test]
fn options_without_a_meaning() {
    let packed = Packed::new(&device::shared().device);
    for scale in [f32::NAN, f32::INFINITY, f32::MAX] {
        assert_error!(
            packed.error(Attention::new().with_scale(scale)),
            Error::Scale { .. },
            format!("scale {scale} is not accepted; it must be finite, also after multiplication with log2(e) in f32")
        );
    }
    let error = packed.error(Attention::new().with_softcap(-30.0));
    assert!(matches!(error, Error::Softcap { found: -30.0, .. }), "{error:?}");
    assert!(error.to_string().starts_with("softcap -30 is not accepted with scale "), "{error}");
}

#[test]
fn problems_that_are_too_large() {
    let shared = device::shared();
    let plan = |attention: Attention<'static>, batch, q_rows, q_heads| {
        let sequences = Sequences::Cached { batch, q_rows, capacity: 1 << 14 };
        attention.plan(&shared.device, Problem::new(sequences, q_heads, q_heads, 256, DTYPE)).unwrap_err()
    };
    let each = QueryRows::Each;
    let limit = MAX_ROWS as usize;
    for (batch, rows) in [(1, each(limit)), (limit, each(1)), (limit / 2, each(2)), (2, QueryRows::Packed(limit))] {
        assert_error!(
            plan(Attention::new(), batch, rows, 1),
            Error::TooManyRows { tensor: Operand::Q, found } if *found == limit,
            format!("q has {limit} rows; fewer than {limit} are accepted")
        );
    }
    let split = Attention::new().with_kernel(Kernel::V2).with_splits(Splits::Count(128));
    let error = plan(split, 1 << 20, each(64), 64);
    assert!(matches!(error, Error::GridTooLarge { symbol: "prefill_f16_d256", limit: 0x7fff_ffff, .. }), "{error:?}");
    // Every split has sums of every row.
    let error = plan(split, 1 << 16, each(64), 64);
    let rows = 128 * (1u128 << 16) * 64 * 64;
    assert_error!(
        error,
        Error::WorkspaceTooLarge { kernel: Kernel::V2, needed, .. } if *needed == rows * (256 * 4 + 8),
        format!(
            "kernel v2 needs {} bytes of workspace; the device has {} bytes of memory",
            rows * (256 * 4 + 8),
            shared.device.info().memory_bytes
        )
    );
}

/// The entries for bindings take uniform sequences alone, and the backward pass those and packed ones.
#[test]
fn calls_for_uniform_sequences() {
    let shared = device::shared();
    let device = &shared.device;
    let problem = |sequences| Problem::new(sequences, 4, 2, 32, DTYPE);
    let each = QueryRows::Each(1);
    for (kind, problem) in [
        ("packed", problem(Sequences::Packed { batch: 2, q_rows: 5, kv_rows: 5 })),
        ("cached", problem(Sequences::Cached { batch: 2, q_rows: each, capacity: 16 })),
        ("paged", problem(Sequences::Paged { batch: 2, q_rows: each, pages: 6, page_rows: 16, width: 3 })),
    ] {
        let attention = Attention::new();
        // Nothing is wrong with it, but that these calls take others.
        problem.validate().unwrap();
        // Never looked at.
        let raw = |place: u64| RawTensor::new(place << 20, Strides::new(4096, 128, 32));
        let [q, k, v, out, dout, dq, dk, dv] = [1, 2, 3, 4, 5, 6, 7, 8].map(raw);
        let null = std::ptr::null_mut();
        // Packed sequences have gradients, by a call of their own.
        assert_eq!(attention.backward_plan(device, problem).is_ok(), kind == "packed");
        for error in [
            problem.sizes().unwrap_err(),
            // SAFETY: nothing is launched.
            unsafe { attention.forward_raw(device, null, problem, q, k, v, out, Some(9 << 20)) }.unwrap_err(),
            // SAFETY: as above.
            unsafe {
                attention.backward_raw(device, null, problem, q, k, v, out, 9 << 20, dout, None, dq, dk, dv, None)
            }
            .unwrap_err(),
        ] {
            assert_error!(
                error,
                Error::Unsupported(Unsupported::Sequences { found, accepted: "uniform" }) if *found == kind,
                format!("not supported: the sequences are {kind}; uniform ones are accepted")
            );
        }
    }
}

#[test]
fn numbers_that_are_not_where_or_as_many_as_they_have_to_be() {
    let shared = device::shared();
    let device = &shared.device;
    for odd in 1..4 {
        // SAFETY: nothing is read.
        let error = unsafe { IndicesView::from_raw(device, (1 << 20) + odd, 3) }.unwrap_err();
        assert!(matches!(error, Error::MisalignedAddress { bytes: 4, .. }), "{error:?}");
    }
    let mut three = Indices::from_slice(device, &[1, 2, 3]).unwrap();
    for wrong in [&[][..], &[1, 2], &[1, 2, 3, 4]] {
        let error = three.write(wrong).unwrap_err();
        assert_error!(
            error,
            Error::DataLength { expected: 3, .. },
            format!("shape [3] holds 3 elements, the slice holds {}", wrong.len())
        );
    }
    assert_eq!(three.to_vec().unwrap(), [1, 2, 3]);
    // A table of pages is as good as any other numbers.
    assert_eq!(PageTable::new(three.view(), 3).stride, 3);
}

#[test]
fn streams_of_other_devices() {
    let shared = device::shared();
    let other = Device::emulator().expect("the emulator is built in");
    let packed = Packed::new(&shared.device);
    let rows = PackedRows::new(packed.starts.view());
    let mut out = Tensor::zeros(&shared.device, DTYPE, [5, 4, 32], Layout::RowMajor).unwrap();
    let (stream, q, kv) = (other.default_stream(), packed.q.view(), packed.kv.view());
    let result = Attention::new().forward_packed_into(&stream, &q, &kv, &kv, &rows, &rows, &mut out.view_mut(), None);
    assert_error!(
        result.unwrap_err(),
        Error::DeviceMismatch { .. },
        format!(
            "the stream is on device {}, q is on {}; they must be on the same device",
            other.info().id(),
            shared.device.info().id()
        )
    );
}

/// Splits of so many keys of packed sequences: one may have all keys, unless the call says otherwise.
#[test]
fn more_splits_of_packed_keys_than_are_merged() {
    let device = &device::shared().device;
    let tensor = |rows, heads| Tensor::zeros(device, DTYPE, [rows, heads, 32], Layout::RowMajor).unwrap();
    let (q, kv, starts) = (tensor(5, 4), tensor(128 * 64 + 1, 2), Indices::from_slice(device, &[0, 3, 5]).unwrap());
    let plan = |longest: Option<usize>| {
        let rows = PackedRows::new(starts.view());
        let attention = Attention::new().with_splits(Splits::Keys(64));
        let (q, kv) = (q.view(), kv.view());
        attention.plan_packed(&q, &kv, &kv, &rows, &rows.with_longest(longest)).map(|plan| plan.splits)
    };
    assert_error!(
        plan(None).unwrap_err(),
        Error::Sequences(SequencesError::Splits { needed: 129, most: 128, of_all: true, .. }),
        "splits of 64 keys are not accepted: splits of a multiple of 64 keys, or 1 to 128 splits, are; the keys would need 129, \
         counted over all packed keys: `PackedRows::with_longest` says how many the longest sequence has"
    );
    assert_eq!([1, 64, 65, 8192].map(|longest| plan(Some(longest)).unwrap()), [1, 1, 2, 128]);
}
