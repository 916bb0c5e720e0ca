//! One attention problem with its memory: how q, k, v and out lie in storage full of NaN, and what has to come out.

use ferroflash::reference::{self, ReferenceOutput};
use ferroflash::{
    Attention, DType, Device, Element, Error, Kernel, KernelChoice, Layout, LseShape, LseViewMut, Mask, Pass, Shape,
    Sizes, Strides, Tensor, VARIANTS, Variant,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// How a tensor lies in its storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) layout: Layout,
    /// Elements before the first one.
    pub(crate) offset: usize,
    /// Padding elements between neighbours on the inner of the two axes row, head.
    pub(crate) inner_gap: usize,
    /// Padding elements between neighbours on the outer of the two axes row, head.
    pub(crate) outer_gap: usize,
    /// Elements between batch entries.
    pub(crate) batch_gap: usize,
    /// Stride 0 along the batch: every entry is the same memory. For inputs only.
    pub(crate) one_batch: bool,
    /// Stride 0 along the heads: every head is the same memory. For inputs only.
    pub(crate) one_head: bool,
}

impl Memory {
    /// Whether all rows of a tensor of a 2-byte type start at multiples of 16 bytes, and none is there twice.
    pub(crate) fn is_in_pieces(&self) -> bool {
        let gaps = [self.offset, self.inner_gap, self.outer_gap, self.batch_gap];
        gaps.into_iter().all(|elements| elements.is_multiple_of(8)) && !self.one_batch && !self.one_head
    }

    pub(crate) fn contiguous(layout: Layout) -> Memory {
        Memory { layout, ..Memory::default() }
    }

    pub(crate) fn strides(&self, shape: Shape) -> Strides {
        let (inner_extent, outer_extent) = match self.layout {
            Layout::Bhsd => (shape.rows, shape.heads),
            _ => (shape.heads, shape.rows),
        };
        let heads_are_inner = self.layout == Layout::Bshd;
        let inner = if self.one_head && heads_are_inner { 0 } else { shape.head_dim + self.inner_gap };
        let inner_span = if inner == 0 { shape.head_dim } else { inner_extent * inner };
        let outer = if self.one_head && !heads_are_inner { 0 } else { inner_span + self.outer_gap };
        let outer_span = if outer == 0 { inner_span } else { outer_extent * outer };
        let batch = if self.one_batch { 0 } else { outer_span + self.batch_gap };
        let (row, head) = if heads_are_inner { (outer, inner) } else { (inner, outer) };
        Strides::new(batch, row, head)
    }

    /// Elements of storage, with room behind the last element that nobody may rely on.
    pub(crate) fn storage_elements(&self, shape: Shape) -> usize {
        let Strides { batch, row, head, .. } = self.strides(shape);
        if shape.elements() == Some(0) {
            return self.offset + TAIL;
        }
        let last = (shape.batch - 1) * batch + (shape.rows - 1) * row + (shape.heads - 1) * head + shape.head_dim;
        self.offset + last + TAIL
    }

    /// A tensor with these elements, in storage full of NaN.
    pub(crate) fn upload<T: Element>(&self, device: &Device, shape: Shape, data: &[T]) -> ferroflash::Result<Tensor> {
        let strides = self.strides(shape);
        let mut storage = vec![nan::<T>(); self.storage_elements(shape)];
        for (start, row) in places(shape, strides).zip(data.chunks_exact(shape.head_dim)) {
            storage[self.offset + start..][..shape.head_dim].copy_from_slice(row);
        }
        Tensor::from_slice_strided(device, &storage, self.offset, shape, strides)
    }

    /// A tensor of NaN, and NaN around it.
    pub(crate) fn poisoned<T: Element>(&self, device: &Device, shape: Shape) -> ferroflash::Result<Tensor> {
        let poison = vec![nan::<T>(); self.storage_elements(shape)];
        Tensor::from_slice_strided(device, &poison, self.offset, shape, self.strides(shape))
    }

    /// Every byte around the elements of a tensor in `storage`, which [`Self::poisoned`] made, still is what it was.
    pub(crate) fn check_guards<T: Element>(&self, name: &str, shape: Shape, storage: &[T]) -> Result<(), String> {
        let mut is_element = vec![false; storage.len()];
        for start in places(shape, self.strides(shape)) {
            is_element[self.offset + start..][..shape.head_dim].fill(true);
        }
        let written = |x: &T| bytemuck::bytes_of(x).iter().any(|&byte| byte != 0xff);
        match storage.iter().zip(is_element).position(|(x, is_element)| !is_element && written(x)) {
            Some(place) => {
                Err(format!("element {place} of the storage of {name}, which is none of its own, was written"))
            }
            None => Ok(()),
        }
    }

    /// Normal values of this deviation in logical order `[batch, row, head, dim]`, equal along axes of stride 0.
    pub(crate) fn draw<T: Element>(&self, rng: &mut SmallRng, shape: Shape, deviation: f64) -> Vec<T> {
        let most = largest::<T>();
        let mut storage: Vec<T> = Vec::new();
        storage.resize_with(self.storage_elements(shape), || {
            let value = deviation * rng.sample::<f64, _>(StandardNormal);
            T::from_f64(value.clamp(-most, most))
        });
        places(shape, self.strides(shape)).flat_map(|start| storage[start..start + shape.head_dim].to_vec()).collect()
    }
}

/// NaN behind each tensor: more than one tile of rows of the smaller head dims, so that a kernel that reads past the end of the
/// keys or writes past the end of the output meets it.
const TAIL: usize = 64 * 64;

/// NaN on both sides of the log-sum-exp.
const LSE_GUARD: usize = 64;

/// One attention problem with its memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) problem: Sizes,
    pub(crate) attention: Attention<'static>,
    pub(crate) q: Memory,
    pub(crate) k: Memory,
    pub(crate) v: Memory,
    pub(crate) out: Memory,
    /// Standard deviation of the inputs.
    pub(crate) deviation: f64,
    /// What q, k and v are multiplied with on top; what the type does not hold becomes its largest number.
    pub(crate) magnitudes: [f64; 3],
    /// Whether some keys are hidden by an element of minus infinity, which every query meets with a positive one.
    pub(crate) minus_infinity: bool,
    pub(crate) seed: u64,
}

/// Values of q, k and v in logical order `[batch, row, head, dim]`.
#[derive(Clone)]
pub(crate) struct Inputs<T> {
    pub(crate) q: Vec<T>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
}

/// What a kernel computed: out in logical order `[batch, row, head, dim]`, lse `[batch, head, row]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Computed<T> {
    pub(crate) out: Vec<T>,
    pub(crate) lse: Vec<f32>,
}

impl Case {
    /// A problem with contiguous tensors and the default scale, for a kernel or one of its tiles.
    pub(crate) fn new(kernel: impl Into<KernelChoice>, problem: Sizes, mask: Mask) -> Case {
        let memory = Memory::contiguous(Layout::Bshd);
        let attention = Attention::new().with_kernel(kernel).with_mask(mask);
        Case {
            problem,
            attention,
            q: memory,
            k: memory,
            v: memory,
            out: memory,
            deviation: 1.0,
            magnitudes: [1.0; 3],
            minus_infinity: false,
            seed: 0,
        }
    }

    /// The same with every tensor in `layout`.
    pub(crate) fn with_layout(mut self, layout: Layout) -> Case {
        [self.q, self.k, self.v, self.out] = [Memory::contiguous(layout); 4];
        self
    }

    pub(crate) fn q_shape(&self) -> Shape {
        let Sizes { batch, q_rows, q_heads, head_dim, .. } = self.problem;
        Shape::new(batch, q_rows, q_heads, head_dim)
    }

    pub(crate) fn kv_shape(&self) -> Shape {
        let Sizes { batch, kv_rows, kv_heads, head_dim, .. } = self.problem;
        Shape::new(batch, kv_rows, kv_heads, head_dim)
    }

    /// Normal values, equal along axes of stride 0.
    pub(crate) fn inputs<T: Element>(&self) -> Inputs<T> {
        let mut rng = SmallRng::seed_from_u64(self.seed);
        let [q_magnitude, k_magnitude, v_magnitude] = self.magnitudes;
        let mut q: Vec<T> = self.q.draw(&mut rng, self.q_shape(), q_magnitude * self.deviation);
        let mut k: Vec<T> = self.k.draw(&mut rng, self.kv_shape(), k_magnitude * self.deviation);
        let v = self.v.draw(&mut rng, self.kv_shape(), v_magnitude * self.deviation);
        if self.minus_infinity {
            let dim = self.problem.head_dim;
            for q in q.iter_mut().step_by(dim) {
                // Never 0, whose product with infinity is NaN; and whatever the sign of the scale.
                let sign = if self.attention.scale.is_some_and(|scale| scale < 0.0) { -1.0 } else { 1.0 };
                *q = T::from_f64(sign * q.to_f64().abs().max(q_magnitude));
            }
            // Single keys, and runs of them that fill tiles.
            let rows = self.problem.kv_rows * self.problem.kv_heads;
            let run = rng.random_range(0..=rows);
            for (row, k) in k.iter_mut().step_by(dim).enumerate() {
                if row < run || rng.random_bool(0.1) {
                    *k = T::from_f64(f64::NEG_INFINITY);
                }
            }
        }
        Inputs { q, k, v }
    }

    /// Runs the kernel on storage full of NaN around the inputs and under the outputs, and checks that the NaN around the
    /// outputs is untouched.
    pub(crate) fn run<T: Element>(&self, device: &Device, inputs: &Inputs<T>) -> Computed<T> {
        self.try_run(device, inputs).unwrap_or_else(|wrong| panic!("{wrong}\n{self:#?}"))
    }

    fn try_run<T: Element>(&self, device: &Device, inputs: &Inputs<T>) -> Result<Computed<T>, String> {
        let (computed, out_storage, lse_storage) = self.launch(device, inputs).map_err(|error| error.to_string())?;
        self.check_guards(&out_storage, &lse_storage)?;
        Ok(computed)
    }

    /// The result, and everything in the storage of out and of the log-sum-exp.
    fn launch<T: Element>(
        &self,
        device: &Device,
        inputs: &Inputs<T>,
    ) -> ferroflash::Result<(Computed<T>, Vec<T>, Vec<f32>)> {
        let (q_shape, kv_shape) = (self.q_shape(), self.kv_shape());
        let q = self.q.upload(device, q_shape, &inputs.q)?;
        let k = self.k.upload(device, kv_shape, &inputs.k)?;
        let v = self.v.upload(device, kv_shape, &inputs.v)?;
        let mut out = self.out.poisoned::<T>(device, q_shape)?;

        let Sizes { batch, q_heads: heads, q_rows: rows, .. } = self.problem;
        let lse_shape = LseShape { batch, heads, rows };
        let lse_elements = batch * heads * rows;
        let guarded = Shape::new(1, lse_elements + 2 * LSE_GUARD, 1, 1);
        let mut lse = Tensor::uninit(device, DType::F32, guarded, Layout::Bshd)?;
        lse.fill_bytes(0xff)?;
        let lse_address = lse.address() + (LSE_GUARD * DType::F32.bytes()) as u64;
        let stream = device.default_stream();
        {
            // SAFETY: the memory of `lse` from the guard on, used by nobody else until the stream is done.
            let mut lse = unsafe { LseViewMut::from_raw(device, lse_address, lse_elements + LSE_GUARD, lse_shape)? };
            let (q, k, v) = (q.view(), k.view(), v.view());
            self.attention.forward_into(&stream, &q, &k, &v, &mut out.view_mut(), Some(&mut lse))?;
            stream.synchronize()?;
        }
        let lse = lse.storage_to_vec::<f32>()?;
        let values = lse[LSE_GUARD..LSE_GUARD + lse_elements].to_vec();
        Ok((Computed { out: out.to_vec()?, lse: values }, out.storage_to_vec()?, lse))
    }

    /// Whether the kernel does not run this case: never, but for v3, by the conditions that its errors name.
    pub(crate) fn is_refused(&self, device: &Device) -> bool {
        let Some(kernel) = self.attention.kernel.kernel() else { return false };
        !has_variant(device, kernel, self.problem.dtype)
            || kernel == Kernel::V3 && (self.problem.kv_rows == 0 || !self.has_16_byte_pieces())
    }

    /// Whether every tensor starts at a multiple of 16 bytes and steps along its axes by such multiples, of a 2-byte type.
    fn has_16_byte_pieces(&self) -> bool {
        let (q, kv) = (self.q_shape(), self.kv_shape());
        [(q, self.q), (kv, self.k), (kv, self.v), (q, self.out)].into_iter().all(|(shape, memory)| {
            let strides = memory.strides(shape);
            let axes = [(shape.batch, strides.batch), (shape.rows, strides.row), (shape.heads, strides.head)];
            memory.offset % 8 == 0 && axes.into_iter().all(|(extent, s)| extent == 1 || s > 0 && s % 8 == 0)
        })
    }

    /// That the call ends with the error that says why.
    pub(crate) fn check_refusal<T: Element>(&self, device: &Device, inputs: &Inputs<T>) -> Result<(), String> {
        match self.launch(device, inputs) {
            Err(Error::KernelUnsupported { kernel, .. }) if self.attention.kernel.kernel() == Some(kernel) => Ok(()),
            Err(error) => Err(format!("refused with another error: {error:?}")),
            Ok(_) => Err("a case that the kernel cannot run was run".to_owned()),
        }
    }

    /// Every byte around the elements of out and of the log-sum-exp still is what it was.
    fn check_guards<T: Element>(&self, out: &[T], lse: &[f32]) -> Result<(), String> {
        if lse[..LSE_GUARD].iter().chain(&lse[lse.len() - LSE_GUARD..]).any(|x| x.to_bits() != u32::MAX) {
            return Err("memory around the log-sum-exp was written".to_owned());
        }
        self.out.check_guards("the output", self.q_shape(), out)
    }

    /// What has to come out for these inputs.
    pub(crate) fn reference<T: Element>(&self, inputs: &Inputs<T>) -> Reference {
        self.reference_beside(inputs, |[q, k, v]| {
            reference::forward_rounded(q, k, v, self.problem, &self.attention).expect("a legal problem")
        })
    }

    /// What has to come out for these inputs of a computation that a straightforward program in the tensors' precision makes as `rounded`
    /// does.
    ///
    /// The error that the precision itself brings is a maximum over rows: of a few rows it is a matter of luck. Small problems
    /// take it from further draws of the same problem too, until they have enough rows that can tell.
    pub(crate) fn reference_beside<T: Element>(
        &self,
        inputs: &Inputs<T>,
        rounded: impl Fn([&[f64]; 3]) -> ReferenceOutput,
    ) -> Reference {
        let first = self.compute(inputs, &rounded);
        let rows = first.exact.lse.len().max(1);
        let (mut error, mut lse_error, mut telling) = (first.error(), first.lse_error(), first.telling_rows);
        let mut draw = self.clone();
        for drawn in 1..MOST_DRAWS.min(MOST_ROWS.div_ceil(rows)) {
            if telling >= ENOUGH_ROWS {
                break;
            }
            draw.seed = draw.seed.wrapping_add(1);
            let further = draw.compute(&draw.inputs::<T>(), &rounded);
            error = error.max(further.error());
            // In the log-sum-exp errors of scores do not cancel: every row can tell.
            if drawn * rows < ENOUGH_ROWS {
                lse_error = lse_error.max(further.lse_error());
            }
            telling += further.telling_rows;
        }
        // The absolute part of the rule is for values of about one, and the output scales with them.
        let unit = self.magnitudes[2].max(1.0);
        Reference {
            lse_bound: lse_bound(&first.exact.lse, lse_error),
            out: first.exact.out,
            lse: first.exact.lse,
            bound: unit * reference::tolerance(error / unit),
        }
    }

    /// The problem in f64, and in the tensors' precision.
    fn compute<T: Element>(&self, inputs: &Inputs<T>, rounded: impl Fn([&[f64]; 3]) -> ReferenceOutput) -> Draw {
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|data| to_f64(data));
        let exact = reference::forward(&q, &k, &v, self.problem, &self.attention).expect("a legal problem");
        let telling_rows = self.telling_rows([&q, &k, &v], &exact.lse);
        Draw { rounded: rounded([&q, &k, &v]), exact, telling_rows }
    }

    /// Rows that can tell the error of the precision, given their log-sum-exps.
    ///
    /// In 16-bit types the rounding of weights and outputs decides, in every row. In f32 it is the errors of the scores, which cancel in
    /// a row that gives all the weight to one key.
    pub(crate) fn telling_rows(&self, [q, k, v]: [&[f64]; 3], lse: &[f64]) -> usize {
        match self.problem.dtype {
            DType::F32 => self.sharing_rows(q, k, v, lse),
            _ => lse.len(),
        }
    }

    /// Rows in which keys share the weight.
    fn sharing_rows(&self, q: &[f64], k: &[f64], v: &[f64], lse: &[f64]) -> usize {
        // With doubled scores, log-sum-exp is the logarithm of the sum of squares: sum p^2 = exp(lse(2 s) - 2 lse(s)).
        let doubled: Vec<f64> = q.iter().map(|x| 2.0 * x).collect();
        // Among the keys: a sink is not doubled.
        let mut attention = self.attention;
        attention.sink = None;
        let of = |q: &[f64]| reference::forward(q, k, v, self.problem, &attention).expect("a legal problem");
        let squares = of(&doubled);
        let without_sink = self.attention.sink.map(|_| of(q).lse);
        let lse = without_sink.as_deref().unwrap_or(lse);
        let shares = |(lse, squares): &(&f64, &f64)| 1.0 - (*squares - 2.0 * *lse).exp() > SHARED;
        lse.iter().zip(&squares.lse).filter(shares).count()
    }

    /// Runs the kernel and compares output and log-sum-exp with the reference.
    ///
    /// # Errors
    /// What is wrong, with the case.
    pub(crate) fn check<T: Element>(&self, device: &Device) -> Result<(), String> {
        let inputs = self.inputs::<T>();
        if self.is_refused(device) {
            return self.check_refusal(device, &inputs).map_err(|wrong| format!("{wrong}\n{self:#?}"));
        }
        let computed = self.try_run(device, &inputs).map_err(|wrong| format!("{wrong}\n{self:#?}"))?;
        compare(&computed, &self.reference(&inputs)).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }
}

/// The largest number of a type.
pub(crate) fn largest<T: Element>() -> f64 {
    match T::DTYPE {
        DType::F32 => f32::MAX.into(),
        DType::F16 => ferroflash::f16::MAX.into(),
        DType::Bf16 => ferroflash::bf16::MAX.into(),
        other => unreachable!("no test has {other}"),
    }
}

/// Whether the device has the instructions of a variant of this kernel for this type.
fn has_variant(device: &Device, kernel: Kernel, dtype: DType) -> bool {
    let mut variants = VARIANTS.iter().filter(|variant| variant.pass.kernel() == kernel && variant.dtype == dtype);
    variants.any(|variant| device.info().runs(variant.entry.arch))
}

/// The tiles of v3 for this type that need no lists of blocks; none where the device does not run v3.
pub(crate) fn v3_tiles<T: Element>(device: &Device) -> impl Iterator<Item = &'static Variant> {
    let v3 = VARIANTS.iter().filter(|variant| variant.pass == Pass::V3 && variant.dtype == T::DTYPE);
    v3.filter(|variant| device.info().runs(variant.entry.arch) && !variant.is_listed())
}

/// Whether the device runs this kernel on this type. Where it does not, a call has been seen to say so.
pub(crate) fn runs<T: Element>(device: &Device, kernel: Kernel) -> bool {
    if has_variant(device, kernel, T::DTYPE) {
        return true;
    }
    let problem = Sizes { batch: 1, q_rows: 3, kv_rows: 2, q_heads: 1, kv_heads: 1, head_dim: 8, dtype: T::DTYPE };
    let case = Case::new(kernel, problem, Mask::Full);
    case.check_refusal(device, &case.inputs::<T>()).unwrap_or_else(|wrong| panic!("{kernel}: {wrong}"));
    false
}

/// Rows that can tell the error of the precision, over which it is taken, at least.
const ENOUGH_ROWS: usize = 256;

/// Weight that is not with one key alone, `1 - sum p^2`, from which a row counts: two keys with 5 and 95 percent. Of an error of the
/// scores, that much reaches the output.
const SHARED: f64 = 0.1;

/// Draws for problems of very few rows, at most.
const MOST_DRAWS: usize = 64;

/// Rows of all draws together, at most, unless one has more: with them the reference costs some tenths of a second.
const MOST_ROWS: usize = 64 * 256;

/// One draw of a problem.
struct Draw {
    exact: ReferenceOutput,
    rounded: ReferenceOutput,
    /// Rows that can tell the error of the precision.
    telling_rows: usize,
}

impl Draw {
    fn error(&self) -> f64 {
        reference::max_abs_difference(&self.rounded.out, &self.exact.out)
    }

    fn lse_error(&self) -> f64 {
        reference::max_abs_difference(&self.rounded.lse, &self.exact.lse)
    }
}

/// What has to come out, and how exactly.
pub(crate) struct Reference {
    /// `[batch, row, head, dim]`.
    pub(crate) out: Vec<f64>,
    /// `[batch, head, row]`.
    pub(crate) lse: Vec<f64>,
    /// Largest accepted error of the output: twice that of the tensors' precision and 1e-5.
    pub(crate) bound: f64,
    /// Largest accepted error of the log-sum-exp.
    pub(crate) lse_bound: f64,
}

/// Compares output and log-sum-exp with the reference. NaN, and infinities that differ, are infinite errors.
pub(crate) fn compare<T: Element>(computed: &Computed<T>, reference: &Reference) -> Result<(), String> {
    let check = |what, found: &[f64], expected: &[f64], bound: f64| {
        let error = reference::max_abs_difference(found, expected);
        if error <= bound && error.is_finite() {
            return Ok(());
        }
        Err(format!("{what}: max error {error:.3e} is outside the bound {bound:.3e}"))
    };
    check("out", &to_f64(&computed.out), &reference.out, reference.bound)?;
    check("lse", &to_f64(&computed.lse), &reference.lse, reference.lse_bound)
}

/// Largest accepted error of the log-sum-exp: the rule of the output, and 16 units in the last place of the largest value. The
/// kernels sum in another order than the rounded reference and convert from base 2, each a few units of f32.
fn lse_bound(exact: &[f64], rounded_error: f64) -> f64 {
    let largest = exact.iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()));
    reference::tolerance(rounded_error) + 16.0 * f64::from(f32::EPSILON) * largest
}

pub(crate) fn to_f64<T: Element>(data: &[T]) -> Vec<f64> {
    data.iter().map(|x| x.to_f64()).collect()
}

/// The NaN whose bytes are all 0xff.
pub(crate) fn nan<T: Element>() -> T {
    bytemuck::pod_read_unaligned(&[0xff; 4][..size_of::<T>()])
}

/// Where each run of columns starts, in logical order `[batch, row, head]`.
fn places(shape: Shape, strides: Strides) -> impl Iterator<Item = usize> {
    let rows = move |b| (0..shape.rows).map(move |r| (b, r));
    let heads = move |(b, r)| (0..shape.heads).map(move |h| b * strides.batch + r * strides.row + h * strides.head);
    (0..shape.batch).flat_map(rows).flat_map(heads)
}
