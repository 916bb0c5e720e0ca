//! Shapes and numbers of attention over sequences that do not fit get the error that names them, before anything is launched. What overlaps,
//! and what no kernel takes, is in `sequences_refusals`.

use crate::support::device;
use ferroflash::{
    Attention, DType, Device, Error, Indices, KvCache, KvCacheMut, Layout, Lse, LseShape, NewRows, Operand, PackedRows,
    PageTable, Rotary, SequencesError, Splits, Tensor,
};
use kernel_spec::Pass;
use kernel_spec::families::sequences::VARIANTS;

/// Where queries and keys are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Both packed.
    Packed,
    /// Two sequences with keys in a cache, contiguous.
    Cached,
    /// The same, with packed queries.
    CachedPacked,
}

/// A call whose parts the tests spoil one at a time. It has numbers of every kind that its form takes.
struct Call {
    form: Form,
    attention: Attention<'static>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Lse,
    q_starts: Indices,
    q_used: Indices,
    kv_starts: Indices,
    kv_used: Indices,
    first: Indices,
    entries: Option<Indices>,
    /// Table, width and stride.
    pages: Option<(Indices, usize, usize)>,
    new: Option<New>,
}

/// Rows to append.
struct New {
    k: Tensor,
    v: Tensor,
    starts: Option<Indices>,
    cos: Tensor,
    sin: Tensor,
    positions: Indices,
}

const DTYPE: DType = DType::F16;
const PACKED_Q: [usize; 3] = [5, 4, 32];
const PACKED_KV: [usize; 3] = [7, 2, 32];
const Q: [usize; 4] = [2, 3, 4, 32];
const CACHE: [usize; 4] = [2, 16, 2, 32];
const PAGES: [usize; 4] = [6, 16, 2, 32];
const NEW: [usize; 4] = [2, 3, 2, 32];
const TABLE: [usize; 2] = [20, 16];

fn tensor_of(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let shape = ferroflash::Dims::new(shape).expect("few axes");
    Tensor::zeros(device, dtype, shape, Layout::RowMajor).expect("a small tensor")
}

fn tensor(device: &Device, shape: &[usize]) -> Tensor {
    tensor_of(device, DTYPE, shape)
}

fn numbers(device: &Device, numbers: &[i32]) -> Indices {
    Indices::from_slice(device, numbers).expect("a few numbers")
}

impl Call {
    fn new(device: &Device, form: Form) -> Call {
        let (q, kv): (&[usize], &[usize]) = match form {
            Form::Packed => (&PACKED_Q, &PACKED_KV),
            Form::Cached => (&Q, &CACHE),
            Form::CachedPacked => (&PACKED_Q, &CACHE),
        };
        let lse = match form {
            Form::Cached => LseShape { batch: 2, heads: 4, rows: 3 },
            _ => LseShape { batch: 1, heads: 4, rows: 5 },
        };
        Call {
            form,
            attention: Attention::new(),
            q: tensor(device, q),
            k: tensor(device, kv),
            v: tensor(device, kv),
            out: tensor(device, q),
            lse: Lse::uninit(device, lse).expect("a small one"),
            q_starts: numbers(device, &[0, 3, 5]),
            q_used: numbers(device, &[3, 2]),
            kv_starts: numbers(device, &[0, 3, 7]),
            kv_used: numbers(device, &[3, 4]),
            first: numbers(device, &[1, 0]),
            entries: (form != Form::Packed).then(|| numbers(device, &[1, 0])),
            pages: None,
            new: None,
        }
    }

    fn appending(device: &Device) -> Call {
        let new = New {
            k: tensor(device, &NEW),
            v: tensor(device, &NEW),
            starts: None,
            cos: tensor(device, &TABLE),
            sin: tensor(device, &TABLE),
            positions: numbers(device, &[0, 7]),
        };
        Call { new: Some(new), ..Call::new(device, Form::Cached) }
    }

    fn paged(device: &Device) -> Call {
        Call {
            k: tensor(device, &PAGES),
            v: tensor(device, &PAGES),
            entries: None,
            pages: Some((numbers(device, &[0, 1, 2, 3, 4, 5]), 3, 3)),
            ..Call::new(device, Form::Cached)
        }
    }

    fn run(&mut self) -> ferroflash::Result<()> {
        let stream = self.q.device().default_stream();
        let q_rows = PackedRows::new(self.q_starts.view()).with_used(self.q_used.view());
        let kv_rows = PackedRows::new(self.kv_starts.view()).with_used(self.kv_used.view());
        let q = self.q.view();
        let (mut out, mut lse) = (self.out.view_mut(), self.lse.view_mut());
        let (out, lse) = (&mut out, Some(&mut lse));
        if self.form == Form::Packed {
            let (k, v) = (self.k.view(), self.v.view());
            return self.attention.forward_packed_into(&stream, &q, &k, &v, &q_rows, &kv_rows, out, lse);
        }
        let q_rows = (self.form == Form::CachedPacked).then_some(&q_rows);
        let (lengths, first) = (self.kv_used.view(), self.first.view());
        let entries = self.entries.as_ref().map(Indices::view);
        let pages = self.pages.as_ref();
        let pages = pages.map(|(table, width, stride)| PageTable::new(table.view(), *width).with_stride(*stride));
        let Some(new) = &self.new else {
            let cache = KvCache::new(&self.k.view(), &self.v.view()).with_lengths(lengths).with_first(first);
            let cache = cache.with_entries(entries).with_pages(pages);
            return self.attention.forward_cached_into(&stream, &q, q_rows, &cache, out, lse);
        };
        let (cos, sin) = (new.cos.view(), new.sin.view());
        let rotary = Rotary::new(&cos, &sin).with_positions(new.positions.view());
        let (new_k, new_v) = (new.k.view(), new.v.view());
        let rows = NewRows::new(&new_k, &new_v).with_starts(new.starts.as_ref().map(Indices::view)).with_rotary(rotary);
        let mut cache = KvCacheMut::new(self.k.view_mut(), self.v.view_mut())
            .with(|cache| cache.with_lengths(lengths).with_first(first).with_entries(entries).with_pages(pages));
        self.attention.forward_appending_into(&stream, &q, q_rows, &mut cache, &rows, out, lse)
    }

    /// The error of the call. Outputs and cache must be untouched.
    fn error(mut self) -> Error {
        self.out.fill_bytes(0xff).unwrap();
        self.lse.fill_bytes(0xff).unwrap();
        for cache in [&mut self.k, &mut self.v] {
            cache.fill_bytes(0xff).unwrap();
        }
        let error = self.run().expect_err("the call should be refused");
        for (name, tensor) in [("output", &self.out), ("cache", &self.k), ("cache", &self.v)] {
            assert!(tensor.to_f64_vec().unwrap().iter().all(|x| x.is_nan()), "the {name} was written");
        }
        assert!(self.lse.to_vec().unwrap().iter().all(|x| x.is_nan()), "the log-sum-exp was written");
        error
    }
}

/// The error of a call with one part changed.
fn error(make: impl FnOnce(&Device) -> Call, spoil: impl FnOnce(&Device, &mut Call)) -> Error {
    let device = device::shared().device.clone();
    let mut call = make(&device);
    spoil(&device, &mut call);
    call.error()
}

fn packed(device: &Device) -> Call {
    Call::new(device, Form::Packed)
}

fn cached(device: &Device) -> Call {
    Call::new(device, Form::Cached)
}

fn cached_packed(device: &Device) -> Call {
    Call::new(device, Form::CachedPacked)
}

/// An error of this kind, with these words.
macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?, $words:expr $(,)?) => {
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
        assert_eq!(error.to_string(), $words);
    };
}

/// Without this, the refusals below could come from anything.
#[test]
fn the_unspoiled_calls_are_accepted() {
    let shared = device::shared();
    let device = &shared.device;
    for mut call in
        [packed(device), cached(device), cached_packed(device), Call::paged(device), Call::appending(device)]
    {
        call.out.fill_bytes(0xff).unwrap();
        call.run().unwrap_or_else(|error| panic!("{:?}: {error}", call.form));
        assert!(call.out.to_f64_vec().unwrap().iter().all(|&x| x == 0.0), "{:?}", call.form);
    }
}

/// The tensor of a call.
fn part(call: &mut Call, operand: Operand) -> &mut Tensor {
    match operand {
        Operand::Q => &mut call.q,
        Operand::K => &mut call.k,
        Operand::V => &mut call.v,
        Operand::Out => &mut call.out,
        Operand::NewK => &mut call.new.as_mut().expect("rows to append").k,
        Operand::NewV => &mut call.new.as_mut().expect("rows to append").v,
        Operand::Cos => &mut call.new.as_mut().expect("rows to append").cos,
        Operand::Sin => &mut call.new.as_mut().expect("rows to append").sin,
        other => unreachable!("{other} is no tensor"),
    }
}

#[test]
fn tensors_of_other_numbers_of_axes() {
    let with = |make: fn(&Device) -> Call, operand: Operand, shape: &[usize]| {
        error(make, |device, call| *part(call, operand) = tensor(device, shape))
    };
    for operand in [Operand::Q, Operand::K, Operand::V, Operand::Out] {
        assert_error!(
            with(packed, operand, &CACHE),
            Error::Sequences(SequencesError::AxisCount { tensor, found: 4, accepted: 3, is_packed: true }) if *tensor == operand,
            format!("{operand} has 4 axes; 3 are accepted where rows are packed (row, head, dim)")
        );
        assert_error!(
            with(cached, operand, &PACKED_Q),
            Error::Sequences(SequencesError::AxisCount { tensor, found: 3, accepted: 4, is_packed: false }) if *tensor == operand,
            format!("{operand} has 3 axes; 4 are accepted (batch or page, row, head, dim)")
        );
    }
    for operand in [Operand::Q, Operand::Out] {
        assert_error!(
            with(cached_packed, operand, &Q),
            Error::Sequences(SequencesError::AxisCount { tensor, found: 4, accepted: 3, is_packed: true }) if *tensor == operand,
            format!("{operand} has 4 axes; 3 are accepted where rows are packed (row, head, dim)")
        );
    }
    for operand in [Operand::NewK, Operand::NewV] {
        assert_error!(
            with(Call::appending, operand, &[3, 2, 32]),
            Error::Sequences(SequencesError::AxisCount { tensor, found: 3, accepted: 4, is_packed: false }) if *tensor == operand,
            format!("{operand} has 3 axes; 4 are accepted (batch or page, row, head, dim)")
        );
    }
    assert_error!(
        error(Call::appending, |device, call| {
            call.new.as_mut().unwrap().starts = Some(numbers(device, &[0, 3, 6]));
        }),
        Error::Sequences(SequencesError::AxisCount { tensor: Operand::NewK, found: 4, accepted: 3, is_packed: true }),
        "the new k has 4 axes; 3 are accepted where rows are packed (row, head, dim)"
    );
}

/// The numbers of a call: where they are, how many are right, and calls that have them.
type Numbers = (Operand, usize, fn(&Device) -> Call, fn(&mut Call) -> &mut Indices);

const ARRAYS: [Numbers; 7] = [
    (Operand::QUsed, 2, packed, |call| &mut call.q_used),
    (Operand::KvStarts, 3, packed, |call| &mut call.kv_starts),
    (Operand::KvUsed, 2, packed, |call| &mut call.kv_used),
    (Operand::KvUsed, 2, cached, |call| &mut call.kv_used),
    (Operand::KvFirst, 2, cached, |call| &mut call.first),
    (Operand::KvEntries, 2, cached, |call| call.entries.as_mut().expect("a cache has them")),
    (Operand::Positions, 2, Call::appending, |call| &mut call.new.as_mut().expect("rows to append").positions),
];

#[test]
fn arrays_of_other_lengths() {
    for (operand, right, make, of) in ARRAYS {
        for wrong in [0, right - 1, right + 1] {
            assert_error!(
                error(make, |device, call| *of(call) = numbers(device, &vec![0; wrong])),
                Error::Sequences(SequencesError::IndexCount { what, found, expected })
                    if (*what, *found, *expected) == (operand, wrong, right),
                format!("{operand} holds {wrong} numbers; {right} are needed for the sequences of this call")
            );
        }
    }
    // The starts of q say how many sequences there are: it is the others that are too few then.
    assert_error!(
        error(packed, |device, call| call.q_starts = numbers(device, &[0, 3, 4, 5])),
        Error::Sequences(SequencesError::IndexCount { what: Operand::QUsed, found: 2, expected: 3 }),
        "the rows of q in use holds 2 numbers; 3 are needed for the sequences of this call"
    );
    assert_error!(
        error(Call::appending, |device, call| {
            let new = call.new.as_mut().unwrap();
            (new.k, new.v) = (tensor(device, &[6, 2, 32]), tensor(device, &[6, 2, 32]));
            new.starts = Some(numbers(device, &[0, 6]));
        }),
        Error::Sequences(SequencesError::IndexCount { what: Operand::NewStarts, found: 2, expected: 3 }),
        "the starts of the new rows holds 2 numbers; 3 are needed for the sequences of this call"
    );
    for starts in [&[][..], &[0]] {
        assert_error!(
            error(packed, |device, call| call.q_starts = numbers(device, starts)),
            Error::EmptyAxis { tensor: Operand::Q, axis: "batch" },
            "q has no batch; at least 1 is needed (only k and v may have 0 rows)"
        );
    }
}

#[test]
fn tensors_and_arrays_of_other_devices() {
    let other = Device::emulator().expect("the emulator is built in");
    let is_of = |found: Error, operand: Operand| {
        let (there, here) = (other.info().id(), device::shared().device.info().id());
        assert!(matches!(&found, Error::DeviceMismatch { what, .. } if *what == operand.to_string()), "{found:?}");
        assert_eq!(
            found.to_string(),
            format!("{operand} is on device {there}, q is on {here}; they must be on the same device")
        );
    };
    for (operand, right, make, of) in ARRAYS {
        is_of(error(make, |_, call| *of(call) = numbers(&other, &vec![0; right])), operand);
    }
    is_of(error(packed, |_, call| call.q_starts = numbers(&other, &[0, 3, 5])), Operand::QStarts);
    let pages = |_: &Device, call: &mut Call| call.pages = Some((numbers(&other, &[0; 6]), 3, 3));
    is_of(error(Call::paged, pages), Operand::Pages);
    for (operand, shape) in [
        (Operand::K, &CACHE[..]),
        (Operand::V, &CACHE),
        (Operand::Out, &Q),
        (Operand::NewK, &NEW),
        (Operand::NewV, &NEW),
        (Operand::Cos, &TABLE),
        (Operand::Sin, &TABLE),
    ] {
        is_of(error(Call::appending, |_, call| *part(call, operand) = tensor(&other, shape)), operand);
    }
    let lse = LseShape { batch: 2, heads: 4, rows: 3 };
    is_of(error(cached, |_, call| call.lse = Lse::uninit(&other, lse).unwrap()), Operand::Lse);
}

#[test]
fn tables_of_pages_that_are_too_small() {
    // 2 sequences of 3 pages: the last needs no room behind it.
    for (count, width, stride) in
        [(5, 3, 3), (6, 3, 4), (0, 3, 3), (6, 3, 2), (6, 3, 0), (6, 7, 7), (2, usize::MAX, usize::MAX)]
    {
        assert_error!(
            error(Call::paged, |device, call| call.pages = Some((numbers(device, &vec![0; count]), width, stride))),
            Error::Sequences(SequencesError::PageTable { found, batch: 2, width: w, stride: s }) if (*found, *w, *s) == (count, width, stride),
            format!(
                "the table of pages holds {count} numbers; 2 sequences of {width} pages, {stride} apart, need more, or overlap"
            )
        );
    }
    let shared = device::shared();
    for (count, width, stride) in [(7, 3, 4), (6, 3, 3), (100, 3, 50)] {
        let mut call = Call::paged(&shared.device);
        call.pages = Some((numbers(&shared.device, &vec![0; count]), width, stride));
        call.run().unwrap_or_else(|error| panic!("{count} numbers: {error}"));
    }
}

#[test]
fn pages_and_entries() {
    assert_error!(
        error(Call::paged, |device, call| call.entries = Some(numbers(device, &[0, 1]))),
        Error::Sequences(SequencesError::PagesAndEntries),
        "a cache of pages takes no cache entries: the table of pages says where a sequence's keys are; give one of the two"
    );
}

#[test]
fn rotary_tables_that_do_not_fit() {
    let with = |operand, dtype, shape: &[usize]| {
        error(Call::appending, |device, call| *part(call, operand) = tensor_of(device, dtype, shape))
    };
    let is_refused = |found: Error, operand: Operand, shape: &[usize]| {
        assert!(
            matches!(&found, Error::Sequences(SequencesError::RotaryTable { tensor, shape: s, head_dim: 32, .. }) if *tensor == operand && s == shape),
            "{found:?}"
        );
        let words = found.to_string();
        let given = format!("{operand} has shape {shape:?} and strides ");
        assert!(words.starts_with(&given), "{words}");
        for accepted in
            ["; contiguous [positions, turned_dims / 2] is accepted, the same for both, with", "1 to 16 columns"]
        {
            assert!(words.contains(accepted), "{words}");
        }
    };
    // No axes too many or few, no columns, no positions, more columns than half a head has.
    for shape in [&[20][..], &[20, 4, 4], &[20, 0], &[0, 16], &[20, 17], &[20, 32]] {
        is_refused(with(Operand::Cos, DTYPE, shape), Operand::Cos, shape);
    }
    for shape in [[19, 16], [20, 8]] {
        is_refused(with(Operand::Sin, DTYPE, &shape), Operand::Sin, &shape);
    }
    for operand in [Operand::Cos, Operand::Sin] {
        assert_error!(
            with(operand, DType::F32, &TABLE),
            Error::DTypeMismatch { tensor, found: DType::F32, expected: DType::F16 } if *tensor == operand,
            format!("{operand} holds f32, q holds f16; they must be equal")
        );
    }
    // Rows further apart, and columns for rows.
    for (shape, strides) in [([20, 16], [24, 1]), ([20, 16], [1, 20])] {
        for operand in [Operand::Cos, Operand::Sin] {
            let found = error(Call::appending, |device, call| {
                let table = Tensor::from_slice_strided(device, &[ferroflash::f16::ZERO; 480], 0, shape, strides);
                *part(call, operand) = table.unwrap();
            });
            let given = format!("{operand} has shape {shape:?} and strides {strides:?};");
            assert!(found.to_string().starts_with(&given), "{found}");
            is_refused(found, operand, &shape);
        }
    }
}

#[test]
fn splits_that_are_not_merged() {
    let with = |make: fn(&Device) -> Call, splits| {
        error(make, |_, call| call.attention = Attention::new().with_splits(splits))
    };
    for count in [0, 129, u32::MAX] {
        for make in [packed, cached, Call::paged] {
            assert_error!(
                with(make, Splits::Count(count)),
                Error::Sequences(SequencesError::Splits { most: 128, needed, .. }) if *needed == count as usize,
                format!(
                    "{count} splits are not accepted: splits of a multiple of 64 keys, or 1 to 128 splits, are; the keys would \
                     need {count}"
                )
            );
        }
    }
    for (keys, needed) in [(0, 16), (1, 16), (63, 1), (65, 1), (u32::MAX, 1)] {
        assert_error!(
            with(cached, Splits::Keys(keys)),
            Error::Sequences(SequencesError::Splits { most: 128, needed: found, .. }) if *found == needed,
            format!(
                "splits of {keys} keys are not accepted: splits of a multiple of 64 keys, or 1 to 128 splits, are; the keys would \
                 need {needed}"
            )
        );
    }
    // 129 of them, because the cache has room for so many: its lengths are not looked at.
    let large = |rows: usize| {
        move |device: &Device| Call {
            k: tensor(device, &[2, rows, 2, 32]),
            v: tensor(device, &[2, rows, 2, 32]),
            ..cached(device)
        }
    };
    let spoil = |_: &Device, call: &mut Call| call.attention = Attention::new().with_splits(Splits::Keys(64));
    assert_error!(
        error(large(128 * 64 + 1), spoil),
        Error::Sequences(SequencesError::Splits { most: 128, needed: 129, .. }),
        "splits of 64 keys are not accepted: splits of a multiple of 64 keys, or 1 to 128 splits, are; the keys would need 129"
    );
    let shared = device::shared();
    let mut call = large(128 * 64)(&shared.device);
    spoil(&shared.device, &mut call);
    call.run().unwrap();
    // A cluster has fewer.
    let row = VARIANTS.iter().find(|row| row.pass == Pass::ClusterDecode && row.dtype == DTYPE).unwrap();
    if shared.device.info().runs(row.entry.arch) {
        let (most, count) = (row.entry.max_cluster, row.entry.max_cluster + 1);
        let attention = Attention::new().with_kernel(row).with_splits(Splits::Count(count));
        assert_error!(
            error(cached, |_, call| call.attention = attention),
            Error::Sequences(SequencesError::Splits { .. }),
            format!(
                "{count} splits are not accepted: splits of a multiple of 64 keys, or 1 to {most} splits, are; the keys would need \
                 {count}"
            )
        );
    }
}

/// What a tensor is like, changed along one axis.
fn changed<const N: usize>(mut shape: [usize; N], axis: usize, to: usize) -> [usize; N] {
    shape[axis] = to;
    shape
}

#[test]
fn types_and_head_dims_that_differ() {
    let shapes =
        [(Operand::K, &CACHE), (Operand::V, &CACHE), (Operand::Out, &Q), (Operand::NewK, &NEW), (Operand::NewV, &NEW)];
    for (operand, shape) in shapes {
        let with = |dtype, shape: &[usize]| {
            error(Call::appending, |device, call| *part(call, operand) = tensor_of(device, dtype, shape))
        };
        assert_error!(
            with(DType::Bf16, shape),
            Error::DTypeMismatch { tensor, found: DType::Bf16, expected: DType::F16 } if *tensor == operand,
            format!("{operand} holds bf16, q holds f16; they must be equal")
        );
        assert_error!(
            with(DTYPE, &changed(*shape, 3, 40)),
            Error::HeadDimMismatch { tensor, found: 40, expected: 32 } if *tensor == operand,
            format!("{operand} has head_dim 40, q has 32; they must be equal")
        );
    }
    for head_dim in [0, 4, 12, 264] {
        assert_error!(
            error(packed, |device, call| {
                for operand in [Operand::Q, Operand::K, Operand::V, Operand::Out] {
                    let shape = if matches!(operand, Operand::K | Operand::V) { PACKED_KV } else { PACKED_Q };
                    *part(call, operand) = tensor(device, &changed(shape, 2, head_dim));
                }
            }),
            Error::HeadDim { found } if *found == head_dim,
            format!("head_dim {head_dim} is not supported; accepted are the multiples of 8 from 8 to 256")
        );
    }
}

#[test]
fn heads_that_differ() {
    for (operand, of, shape, expected) in [
        (Operand::V, Operand::K, CACHE, 2),
        (Operand::Out, Operand::Q, Q, 4),
        (Operand::NewK, Operand::NewV, NEW, 2),
        (Operand::NewV, Operand::NewK, NEW, 2),
    ] {
        let found = error(Call::appending, |device, call| {
            *part(call, operand) = tensor(device, &changed(shape, 2, 8));
        });
        // Of the new k and v, v is the one that is compared.
        let (tensor, of, [given, expected]) =
            if operand == Operand::NewK { (of, operand, [2, 8]) } else { (operand, of, [8, expected]) };
        assert_error!(
            found,
            Error::HeadsMismatch { tensor: t, of: o, .. } if (*t, *o) == (tensor, of),
            format!("{tensor} has {given} heads, {of} has {expected}; they must be equal")
        );
    }
    // Both have as many, and the cache other ones.
    assert_error!(
        error(Call::appending, |device, call| {
            for operand in [Operand::NewK, Operand::NewV] {
                *part(call, operand) = tensor(device, &changed(NEW, 2, 1));
            }
        }),
        Error::HeadsMismatch { tensor: Operand::NewK, found: 1, of: Operand::K, expected: 2 },
        "the new k has 1 heads, k has 2; they must be equal"
    );
    for kv_heads in [3, 8] {
        assert_error!(
            error(packed, |device, call| {
                for operand in [Operand::K, Operand::V] {
                    *part(call, operand) = tensor(device, &changed(PACKED_KV, 1, kv_heads));
                }
            }),
            Error::HeadGroups { q_heads: 4, kv_heads: found } if *found == kv_heads,
            format!("4 query heads are no multiple of {kv_heads} key-value heads")
        );
    }
    assert_error!(
        error(packed, |device, call| {
            for operand in [Operand::K, Operand::V] {
                *part(call, operand) = tensor(device, &changed(PACKED_KV, 1, 0));
            }
        }),
        Error::EmptyAxis { tensor: Operand::K, axis: "heads" },
        "k has no heads; at least 1 is needed (only k and v may have 0 rows)"
    );
}

#[test]
fn rows_and_batches_that_differ() {
    let with =
        |operand, shape: &[usize]| error(Call::appending, |device, call| *part(call, operand) = tensor(device, shape));
    for (operand, of, shape, expected) in
        [(Operand::V, Operand::K, CACHE, 16), (Operand::Out, Operand::Q, Q, 3), (Operand::NewV, Operand::NewK, NEW, 3)]
    {
        assert_error!(
            with(operand, &changed(shape, 1, 5)),
            Error::RowsMismatch { tensor, found: 5, of: o, .. } if (*tensor, *o) == (operand, of),
            format!("{operand} has 5 rows, {of} has {expected}; they must be equal")
        );
        let found = with(operand, &changed(shape, 0, 1));
        if of == Operand::Q {
            assert_error!(
                found,
                Error::BatchMismatch { tensor, found: 1, expected: 2 } if *tensor == operand,
                format!("{operand} has batch 1, q has 2; they must be equal")
            );
        } else {
            assert_error!(
                found,
                Error::Sequences(SequencesError::EntriesMismatch { tensor, found: 1, expected: 2, .. }) if *tensor == operand,
                format!("{operand} has 1 entries or pages, {of} has 2; they must be equal")
            );
        }
    }
    // A cache whose entries are not named has one for each sequence. Packed or not.
    for make in [cached, cached_packed] {
        assert_error!(
            error(make, |device, call| {
                call.entries = None;
                for operand in [Operand::K, Operand::V] {
                    *part(call, operand) = tensor(device, &changed(CACHE, 0, 3));
                }
            }),
            Error::BatchMismatch { tensor: Operand::K, found: 3, expected: 2 },
            "k has batch 3, q has 2; they must be equal"
        );
    }
    assert_error!(
        error(Call::appending, |device, call| {
            for operand in [Operand::NewK, Operand::NewV] {
                *part(call, operand) = tensor(device, &changed(NEW, 0, 3));
            }
        }),
        Error::BatchMismatch { tensor: Operand::NewK, found: 3, expected: 2 },
        "the new k has batch 3, q has 2; they must be equal"
    );
    for (make, [batch, rows]) in [(packed as fn(&Device) -> Call, [1, 5]), (cached, [2, 3]), (cached_packed, [1, 5])] {
        let right = LseShape { batch, heads: 4, rows };
        let with = |shape| error(make, |device, call| call.lse = Lse::uninit(device, shape).unwrap());
        assert_error!(
            with(LseShape { batch: 3, ..right }),
            Error::BatchMismatch { tensor: Operand::Lse, found: 3, .. },
            format!("lse has batch 3, q has {batch}; they must be equal")
        );
        assert_error!(
            with(LseShape { rows: 4, ..right }),
            Error::RowsMismatch { tensor: Operand::Lse, found: 4, of: Operand::Q, .. },
            format!("lse has 4 rows, q has {rows}; they must be equal")
        );
        assert_error!(
            with(LseShape { heads: 2, ..right }),
            Error::HeadsMismatch { tensor: Operand::Lse, found: 2, of: Operand::Q, expected: 4 },
            "lse has 2 heads, q has 4; they must be equal"
        );
    }
}

#[test]
fn axes_that_are_empty() {
    let empty = |q: [usize; 4], kv: [usize; 4]| {
        error(cached, |device, call| {
            call.entries = None;
            for operand in [Operand::Q, Operand::K, Operand::V, Operand::Out] {
                let shape = if matches!(operand, Operand::K | Operand::V) { kv } else { q };
                *part(call, operand) = tensor(device, &shape);
            }
            for of in [&mut call.kv_used, &mut call.first] {
                *of = numbers(device, &vec![0; q[0]]);
            }
            call.lse = Lse::uninit(device, LseShape { batch: q[0], heads: q[2], rows: q[1] }).unwrap();
        })
    };
    assert_error!(
        empty(changed(Q, 0, 0), changed(CACHE, 0, 0)),
        Error::EmptyAxis { tensor: Operand::Q, axis: "batch" },
        "q has no batch; at least 1 is needed (only k and v may have 0 rows)"
    );
    assert_error!(
        empty(changed(Q, 2, 0), CACHE),
        Error::EmptyAxis { tensor: Operand::Q, axis: "heads" },
        "q has no heads; at least 1 is needed (only k and v may have 0 rows)"
    );
    for (operand, shape) in [("batch", changed(PAGES, 0, 0)), ("rows", changed(PAGES, 1, 0))] {
        assert_error!(
            error(Call::paged, |device, call| {
                (call.k, call.v) = (tensor(device, &shape), tensor(device, &shape));
            }),
            Error::EmptyAxis { tensor: Operand::K, axis } if *axis == operand,
            format!("k has no {operand}; at least 1 is needed (only k and v may have 0 rows)")
        );
    }
}
