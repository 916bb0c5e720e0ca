//! One call over packed sequences or a cache: where its tensors and numbers lie, and who computes it.

use crate::call::{Memory, Options, Place, Tensor, check_places, check_row_values};
use crate::{emulated, errors};
use ferroflash::{
    Attention, Device, IndicesView, KvCache, KvCacheMut, LseShape, LseViewMut, NewRows, Operand, PackedRows, PageTable,
    Plan, Rotary, Stream, TensorView,
};
use pyo3::prelude::*;

/// The element type of lengths, starts and pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int32;

/// Numbers that say where sequences are.
pub(crate) type Numbers = Memory<Int32>;

/// The tensors of a call, in the order in which Python hands them over. All but the first four may be left out.
pub(crate) const TENSORS: [Operand; 9] = [
    Operand::Q,
    Operand::K,
    Operand::V,
    Operand::Out,
    Operand::Lse,
    Operand::NewK,
    Operand::NewV,
    Operand::Cos,
    Operand::Sin,
];

/// The numbers of a call, likewise; any may be left out. The last is `[batch, width]`, the others have one axis.
pub(crate) const NUMBERS: [Operand; 9] = [
    Operand::QStarts,
    Operand::QUsed,
    Operand::KvStarts,
    Operand::KvUsed,
    Operand::KvFirst,
    Operand::KvEntries,
    Operand::NewStarts,
    Operand::Positions,
    Operand::Pages,
];

/// A call over sequences. Keys are packed where there are numbers for [`Operand::KvStarts`], and in a cache elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) tensors: [Option<Tensor>; 9],
    pub(crate) numbers: [Option<Numbers>; 9],
    /// Rows of the longest sequence, of q and of k, where they are known.
    pub(crate) longest: [Option<usize>; 2],
    /// Whether neighbouring columns are turned together.
    pub(crate) interleaved: bool,
}

/// A call whose tensors are where ferroflash may look at them.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, for the time of a call")]
enum Described<'a> {
    Packed { keys: [TensorView<'a>; 2], q_rows: PackedRows<'a>, kv_rows: PackedRows<'a> },
    Cached { cache: KvCache<'a>, q_rows: Option<PackedRows<'a>>, new: Option<NewRows<'a>> },
}

impl Call {
    /// Checks everything, and launches it on `stream` (on the CPU: computes it), without the interpreter's lock.
    pub(crate) fn run(&self, py: Python<'_>, stream: usize, options: &Options) -> PyResult<()> {
        let place = self.check(py)?;
        options.check(py, place)?;
        let result = match place {
            Place::Cpu => {
                emulated::warn(py)?;
                py.detach(|| emulated::sequences(options, self))
            }
            Place::Cuda(ordinal) => py.detach(|| self.on_gpu(options, ordinal, stream)),
        };
        result.map_err(|error| errors::raise(py, error))
    }

    fn find<E: Copy>(order: [Operand; 9], all: &[Option<E>; 9], operand: Operand) -> Option<E> {
        order.iter().position(|&of| of == operand).and_then(|index| all[index])
    }

    /// A tensor, if it is given.
    pub(crate) fn tensor(&self, operand: Operand) -> Option<Tensor> {
        Self::find(TENSORS, &self.tensors, operand)
    }

    fn array(&self, operand: Operand) -> Option<Numbers> {
        Self::find(NUMBERS, &self.numbers, operand)
    }

    /// A tensor that [`Self::check`] has found.
    pub(crate) fn given(&self, operand: Operand) -> Tensor {
        self.tensor(operand).expect("checked by `check`")
    }

    /// Whether the cache is written.
    pub(crate) fn appends(&self) -> bool {
        self.tensor(Operand::NewK).is_some()
    }

    /// Checks what the library does not see, and gives the place of all of it.
    fn check(&self, py: Python<'_>) -> PyResult<Place> {
        let is_given = |operand| self.tensor(operand).is_some() || self.array(operand).is_some();
        let input = |message: String| Err(errors::of_input(py, message));
        for (given, needed) in [
            // Every call has these four.
            (Operand::K, Operand::Q),
            (Operand::Q, Operand::K),
            (Operand::Q, Operand::V),
            (Operand::Q, Operand::Out),
            (Operand::QUsed, Operand::QStarts),
            (Operand::KvStarts, Operand::QStarts),
            (Operand::NewV, Operand::NewK),
            (Operand::NewK, Operand::NewV),
            // All rows of a cache without lengths are in use: there is no room for more.
            (Operand::NewK, Operand::KvUsed),
            (Operand::NewStarts, Operand::NewK),
            (Operand::Cos, Operand::NewK),
            (Operand::Cos, Operand::Sin),
            (Operand::Sin, Operand::Cos),
            (Operand::Positions, Operand::Cos),
        ] {
            if is_given(given) && !is_given(needed) {
                return input(format!("{given}: {needed} must be given, too"));
            }
        }
        if is_given(Operand::KvStarts) {
            for operand in [Operand::NewK, Operand::KvFirst, Operand::KvEntries, Operand::Pages] {
                if is_given(operand) {
                    return input(format!("{operand}: it is of a cache, and packed keys are in none"));
                }
            }
        }
        let Some(q) = self.tensor(Operand::Q) else { return input("q is needed".to_owned()) };
        let places = TENSORS.into_iter().zip(self.tensors.iter().map(|tensor| tensor.map(|x| x.place)));
        let places = places.chain(NUMBERS.into_iter().zip(self.numbers.iter().map(|numbers| numbers.map(|x| x.place))));
        check_places(q.place, places).map_err(|error| errors::raise(py, error))?;
        for (operand, numbers) in NUMBERS.into_iter().zip(&self.numbers) {
            numbers.as_ref().map_or(Ok(()), |numbers| self.check_numbers(py, operand, numbers))?;
        }
        let Some(lse) = self.tensor(Operand::Lse) else { return Ok(q.place) };
        check_row_values(py, Operand::Lse, &lse)?;
        let (axes, names) = if is_given(Operand::QStarts) { (2, "(head, row)") } else { (3, "(batch, head, row)") };
        if lse.shape.len() != axes {
            return input(format!("lse has {} axes; {axes} {names} are accepted", lse.shape.len()));
        }
        Ok(q.place)
    }

    fn check_numbers(&self, py: Python<'_>, operand: Operand, numbers: &Numbers) -> PyResult<()> {
        let Memory { shape, strides, .. } = numbers;
        let input = |message: String| Err(errors::of_input(py, message));
        if operand != Operand::Pages {
            return check_one_axis(py, operand, numbers);
        }
        let [batch, width] = shape[..] else {
            return input(format!("{operand} has {} axes; 2 (batch, page) are accepted", shape.len()));
        };
        if width > 1 && strides[1] != 1 {
            return input(format!(
                "the last axis of {operand} has stride {}; it must be contiguous (stride 1)",
                strides[1]
            ));
        }
        let sequences = self.sequences();
        if batch != sequences {
            return input(format!("{operand} is for {batch} sequences, q has {sequences}; they must be equal"));
        }
        Ok(())
    }

    /// Sequences of the call, as q has them.
    fn sequences(&self) -> usize {
        match self.array(Operand::QStarts) {
            Some(starts) => starts.shape[0].saturating_sub(1),
            None => self.given(Operand::Q).shape.first().copied().unwrap_or(0),
        }
    }

    fn on_gpu(&self, options: &Options, ordinal: usize, stream: usize) -> ferroflash::Result<()> {
        let device = Device::cuda(ordinal)?;
        // SAFETY: a live stream of the GPU's primary context by the word of the caller of Python, and a handle that is gone when this function
        // returns.
        let stream = unsafe { Stream::from_raw(&device, std::ptr::with_exposed_provenance_mut(stream)) };
        options.with_attention(&device, |attention| self.launch(&device, &stream, attention))
    }

    /// What would be launched on tensors in the memory of `device`. Nothing is launched, and no number looked at.
    pub(crate) fn plan(&self, device: &Device, attention: &Attention) -> ferroflash::Result<Plan> {
        let q = self.view(device, Operand::Q)?;
        match self.described(device)? {
            Described::Packed { keys: [k, v], q_rows, kv_rows } => attention.plan_packed(&q, &k, &v, &q_rows, &kv_rows),
            Described::Cached { cache, q_rows, new } => {
                attention.plan_cached(&q, q_rows.as_ref(), &cache, new.as_ref())
            }
        }
    }

    /// Launches it on tensors in the memory of `device`.
    pub(crate) fn launch(&self, device: &Device, stream: &Stream, attention: &Attention) -> ferroflash::Result<()> {
        let q = self.view(device, Operand::Q)?;
        // SAFETY: as for `view`; the outputs are the caller's to write.
        let mut out = unsafe { self.given(Operand::Out).view_mut(device) }?;
        let lse = self.tensor(Operand::Lse).map(|lse| {
            let shape = match lse.shape[..] {
                [batch, heads, rows] => LseShape { batch, heads, rows },
                [heads, rows] => LseShape { batch: 1, heads, rows },
                _ => unreachable!("checked by `check`"),
            };
            // SAFETY: as for the output.
            unsafe { LseViewMut::from_raw(device, lse.address, usize::MAX, shape) }
        });
        let mut lse = lse.transpose()?;
        let lse = lse.as_mut();
        match self.described(device)? {
            Described::Packed { keys: [k, v], q_rows, kv_rows } => {
                attention.forward_packed_into(stream, &q, &k, &v, &q_rows, &kv_rows, &mut out, lse)
            }
            Described::Cached { cache, q_rows, new: None } => {
                attention.forward_cached_into(stream, &q, q_rows.as_ref(), &cache, &mut out, lse)
            }
            Described::Cached { cache, q_rows, new: Some(new) } => {
                // SAFETY: as for the output: a cache that is appended to is the caller's to write.
                let [k, v] = [Operand::K, Operand::V].map(|of| unsafe { self.given(of).view_mut(device) });
                let mut cache = KvCacheMut::new(k?, v?).with(|_| cache);
                attention.forward_appending_into(stream, &q, q_rows.as_ref(), &mut cache, &new, &mut out, lse)
            }
        }
    }

    fn view<'a>(&self, device: &'a Device, operand: Operand) -> ferroflash::Result<TensorView<'a>> {
        // SAFETY: the tensors are memory of this device by what their owners say, or are planned with and never launched with. The arguments
        // of the call hold them until it returns, and from then on their frameworks give memory back in the order of the stream.
        unsafe { self.given(operand).view(device) }
    }

    fn described<'a>(&self, device: &'a Device) -> ferroflash::Result<Described<'a>> {
        let view = |operand| self.view(device, operand);
        let indices = |operand| {
            let view = |numbers: Numbers| {
                // SAFETY: as for tensors.
                unsafe { IndicesView::from_raw(device, numbers.address, reached(&numbers)) }
            };
            self.array(operand).map(view).transpose()
        };
        let q_rows = match indices(Operand::QStarts)? {
            Some(starts) => {
                Some(PackedRows::new(starts).with_used(indices(Operand::QUsed)?).with_longest(self.longest[0]))
            }
            None => None,
        };
        let (k, v, used) = (view(Operand::K)?, view(Operand::V)?, indices(Operand::KvUsed)?);
        if let (Some(q_rows), Some(starts)) = (q_rows, indices(Operand::KvStarts)?) {
            let kv_rows = PackedRows::new(starts).with_used(used).with_longest(self.longest[1]);
            return Ok(Described::Packed { keys: [k, v], q_rows, kv_rows });
        }
        let pages = self.array(Operand::Pages).zip(indices(Operand::Pages)?).map(|(table, numbers)| {
            let (width, stride) = (table.shape[1], row_stride(&table));
            PageTable::new(numbers, width).with_stride(stride)
        });
        let cache = KvCache::new(&k, &v)
            .with_lengths(used)
            .with_first(indices(Operand::KvFirst)?)
            .with_entries(indices(Operand::KvEntries)?)
            .with_pages(pages);
        if !self.appends() {
            return Ok(Described::Cached { cache, q_rows, new: None });
        }
        let mut new =
            NewRows::new(&view(Operand::NewK)?, &view(Operand::NewV)?).with_starts(indices(Operand::NewStarts)?);
        if self.tensor(Operand::Cos).is_some() {
            let rotary = Rotary::new(&view(Operand::Cos)?, &view(Operand::Sin)?)
                .with_interleaved(self.interleaved)
                .with_positions(indices(Operand::Positions)?);
            new = new.with_rotary(rotary);
        }
        Ok(Described::Cached { cache, q_rows, new: Some(new) })
    }
}

/// Checks numbers that are no table of pages.
pub(crate) fn check_one_axis(py: Python<'_>, operand: Operand, numbers: &Numbers) -> PyResult<()> {
    let Memory { shape, strides, .. } = numbers;
    if shape.len() == 1 && numbers.is_contiguous() {
        return Ok(());
    }
    let message = format!("{operand} of shape {shape:?} and strides {strides:?}: one contiguous axis is accepted");
    Err(errors::of_input(py, message))
}

/// Numbers from one sequence of a table of pages to the next one; that of a single sequence says nothing.
fn row_stride(table: &Numbers) -> usize {
    if table.shape[0] > 1 { table.strides[0] } else { table.shape[1] }
}

/// Numbers from the first to one past the last.
pub(crate) fn reached(numbers: &Numbers) -> usize {
    match numbers.shape[..] {
        [batch, width] if batch > 0 => (batch - 1).saturating_mul(row_stride(numbers)).saturating_add(width),
        [_, _] => 0,
        _ => numbers.shape[0],
    }
}
