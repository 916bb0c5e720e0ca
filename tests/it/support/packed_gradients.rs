//! Packed sequences of the backward pass with their memory: full of NaN wherever nothing may be read or written. What is in each sequence, and
//! what has to come out, says a [`BackwardCase`] of it alone.

use crate::support::case::nan;
use crate::support::gradients::{BackwardCase, BackwardInputs, Computed};
use ferroflash::{
    Attention, Device, Element, GradientsViewMut, Indices, Layout, Lse, LseShape, OutputGradients, PackedRows, Shape,
    Sizes, Tensor,
};

/// Packed sequences, by their rows of q and of k and v.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PackedCase {
    pub(crate) lengths: Vec<[usize; 2]>,
    /// Rows of no sequence before the first, of q and of k and v.
    pub(crate) before: [usize; 2],
    /// Rows behind those in use of each sequence, of q and of k and v.
    pub(crate) slack: [usize; 2],
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) attention: Attention<'static>,
    /// Whether heads lie before rows in memory.
    pub(crate) head_major: bool,
    /// Elements between what lies further apart, rows or heads, and before the first.
    pub(crate) gap: usize,
    pub(crate) with_dlse: bool,
    /// Whether outputs are those of each sequence alone, for the bits; else those of packed sequences.
    pub(crate) made_alone: bool,
    pub(crate) seed: u64,
}

/// How the rows of one tensor lie in memory.
#[derive(Clone, Copy)]
struct Place {
    rows: usize,
    heads: usize,
    dim: usize,
    strides: [usize; 3],
    gap: usize,
}

impl Place {
    fn len(&self) -> usize {
        self.gap + self.rows * self.heads * self.dim + (self.rows + self.heads) * self.gap
    }

    /// Where each head of some rows starts.
    fn starts(self, rows: std::ops::Range<usize>) -> impl Iterator<Item = usize> {
        let [row_stride, head_stride, _] = self.strides;
        rows.flat_map(move |row| (0..self.heads).map(move |head| self.gap + row * row_stride + head * head_stride))
    }

    fn tensor<T: Element>(&self, device: &Device, storage: &[T]) -> ferroflash::Result<Tensor> {
        Tensor::from_slice_strided(device, storage, self.gap, [self.rows, self.heads, self.dim], self.strides)
    }
}

/// What goes into a call: of each sequence.
pub(crate) struct Given<T> {
    pub(crate) cases: Vec<BackwardCase>,
    pub(crate) inputs: Vec<BackwardInputs<T>>,
}

/// Output and log-sum-exp of each sequence.
type Made<T> = (Vec<Vec<T>>, Vec<Vec<f32>>);

impl PackedCase {
    /// Two heads of queries, one of keys, and nothing but rows in use.
    pub(crate) fn new(lengths: Vec<[usize; 2]>) -> PackedCase {
        PackedCase {
            lengths,
            before: [0; 2],
            slack: [0; 2],
            q_heads: 2,
            kv_heads: 1,
            head_dim: 64,
            attention: Attention::new().causal(),
            head_major: false,
            gap: 0,
            with_dlse: false,
            made_alone: false,
            seed: 0,
        }
    }

    /// Each sequence alone. One without rows of q, which is no problem, has a row that plays no part.
    pub(crate) fn given<T: Element>(&self) -> Given<T> {
        let PackedCase { q_heads, kv_heads, head_dim, .. } = *self;
        let cases = self.lengths.iter().enumerate().map(|(i, &[q_rows, kv_rows])| {
            let sizes =
                Sizes { batch: 1, q_rows: q_rows.max(1), kv_rows, q_heads, kv_heads, head_dim, dtype: T::DTYPE };
            let mut case = BackwardCase::new(sizes, self.attention.mask);
            let kernel = case.forward.attention.kernel;
            case.forward.attention = self.attention.with_kernel(kernel);
            // Further draws of one are not those of another.
            case.forward.seed = self.seed.wrapping_add(1000 * i as u64);
            case.with_dlse = self.with_dlse;
            case
        });
        let cases: Vec<_> = cases.collect();
        let inputs = cases.iter().map(BackwardCase::inputs).collect();
        Given { cases, inputs }
    }

    /// First row of each sequence, and the end of the last: of q, or of k and v.
    pub(crate) fn starts(&self, side: usize) -> Vec<i32> {
        let mut starts = vec![self.before[side] as i32];
        for length in &self.lengths {
            starts.push(starts.last().unwrap() + (length[side] + self.slack[side]) as i32);
        }
        starts
    }

    fn used(&self, side: usize) -> Vec<i32> {
        self.lengths.iter().map(|length| length[side] as i32).collect()
    }

    /// Rows in use of a sequence.
    fn rows(&self, side: usize, index: usize) -> std::ops::Range<usize> {
        let start = self.starts(side)[index] as usize;
        start..start + self.lengths[index][side]
    }

    fn place(&self, side: usize) -> Place {
        let rows = *self.starts(side).last().unwrap() as usize;
        let (heads, dim) = ([self.q_heads, self.kv_heads][side], self.head_dim);
        let strides = match self.head_major {
            true => [dim, rows * dim + self.gap, 1],
            false => [heads * dim + self.gap, dim, 1],
        };
        Place { rows, heads, dim, strides, gap: self.gap }
    }

    /// A tensor with the rows of each sequence, and NaN elsewhere.
    fn laid<T: Element>(&self, side: usize, each: &[&[T]]) -> Vec<T> {
        let place = self.place(side);
        let mut storage = vec![nan::<T>(); place.len()];
        for (i, data) in each.iter().enumerate() {
            for (to, from) in place.starts(self.rows(side, i)).zip(data.chunks_exact(self.head_dim)) {
                storage[to..][..self.head_dim].copy_from_slice(from);
            }
        }
        storage
    }

    /// Numbers of rows `[head, row]` of each sequence, in `[head, token]`, and NaN elsewhere.
    fn laid_rows(&self, each: &[Vec<f32>]) -> Vec<f32> {
        let tokens = self.place(0).rows;
        let mut all = vec![f32::NAN; tokens * self.q_heads];
        for (i, data) in each.iter().enumerate().filter(|(i, _)| self.lengths[*i][0] > 0) {
            for (head, from) in data.chunks_exact(self.lengths[i][0]).enumerate() {
                all[head * tokens + self.rows(0, i).start..][..from.len()].copy_from_slice(from);
            }
        }
        all
    }

    /// The output and the log-sum-exp of each sequence alone.
    fn alone<T: Element>(&self, device: &Device, given: &Given<T>) -> ferroflash::Result<Made<T>> {
        let each = given.cases.iter().zip(&given.inputs).map(|(case, inputs)| {
            let ([q, k, v, _], _) = inputs.data();
            let upload = |data: &[T], shape: Shape| Tensor::from_slice(device, data, shape, Layout::Bshd);
            let (q_shape, kv_shape) = (case.forward.q_shape(), case.forward.kv_shape());
            let (q, k, v) = (upload(q, q_shape)?, upload(k, kv_shape)?, upload(v, kv_shape)?);
            let made = case.forward.attention.with_lse(true).forward(&q.view(), &k.view(), &v.view())?;
            Ok((made.out.to_vec::<T>()?, made.lse.expect("asked for").to_vec()?))
        });
        Ok(each.collect::<ferroflash::Result<Vec<_>>>()?.into_iter().unzip())
    }

    /// Runs forward and backward kernels of packed sequences on storage full of NaN, and checks that the NaN around the gradients of rows in
    /// use is untouched. The gradients of each sequence.
    pub(crate) fn run<T: Element>(&self, device: &Device, given: &Given<T>) -> Result<Vec<Computed<T>>, String> {
        let starts = [0, 1].map(|side| self.starts(side));
        let storages = self.run_with(device, given, [&starts[0], &starts[1]]).map_err(|error| error.to_string())?;
        let mut computed = vec![[Vec::new(), Vec::new(), Vec::new()]; self.lengths.len()];
        for (which, mut storage) in storages.into_iter().enumerate() {
            let side = usize::from(which > 0);
            for (i, computed) in computed.iter_mut().enumerate() {
                for start in self.place(side).starts(self.rows(side, i)) {
                    computed[which].extend_from_slice(&storage[start..][..self.head_dim]);
                    storage[start..][..self.head_dim].fill(nan::<T>());
                }
            }
            if bytemuck::cast_slice::<T, u8>(&storage).iter().any(|&byte| byte != 0xff) {
                return Err(format!("{} was written where no row in use is", ["dq", "dk", "dv"][which]));
            }
        }
        Ok(computed)
    }

    /// The storage of the gradients, for starts that may be others than those of the case.
    pub(crate) fn run_with<T: Element>(
        &self,
        device: &Device,
        given: &Given<T>,
        starts: [&[i32]; 2],
    ) -> ferroflash::Result<[Vec<T>; 3]> {
        let tensors = |side: usize, which: usize| -> ferroflash::Result<Tensor> {
            let each: Vec<&[T]> = given.inputs.iter().map(|inputs| inputs.data().0[which]).collect();
            self.place(side).tensor(device, &self.laid(side, &each))
        };
        let (q, k, v, dout) = (tensors(0, 0)?, tensors(1, 1)?, tensors(1, 2)?, tensors(0, 3)?);
        let (q, k, v, dout) = (q.view(), k.view(), v.view(), dout.view());
        let numbers = |numbers: &[i32]| Indices::from_slice(device, numbers);
        let (q_starts, kv_starts) = (numbers(starts[0])?, numbers(starts[1])?);
        let (q_used, kv_used) = (numbers(&self.used(0))?, numbers(&self.used(1))?);
        let of = |side: usize, starts, used| PackedRows::new(starts).with_used((self.slack[side] > 0).then_some(used));
        let q_rows = of(0, q_starts.view(), q_used.view());
        let kv_rows = of(1, kv_starts.view(), kv_used.view());
        let shape = LseShape { batch: 1, heads: self.q_heads, rows: self.place(0).rows };
        let stream = device.default_stream();
        let (out, lse) = if self.made_alone {
            let (out, lse) = self.alone(device, given)?;
            let out: Vec<_> = out.iter().map(Vec::as_slice).collect();
            let out = self.place(0).tensor(device, &self.laid(0, &out))?;
            (out, Lse::from_slice(device, &self.laid_rows(&lse), shape)?)
        } else {
            let mut out = self.place(0).tensor(device, &vec![nan::<T>(); self.place(0).len()])?;
            let mut lse = Lse::uninit(device, shape)?;
            lse.fill_bytes(0xff)?;
            let (mut into, mut lse_into) = (out.view_mut(), lse.view_mut());
            let attention = self.attention;
            attention.forward_packed_into(&stream, &q, &k, &v, &q_rows, &kv_rows, &mut into, Some(&mut lse_into))?;
            (out, lse)
        };
        let dlse: Vec<Vec<f32>> = given.inputs.iter().map(|x| x.data().1.unwrap_or_default().to_vec()).collect();
        let dlse = self.with_dlse.then(|| Lse::from_slice(device, &self.laid_rows(&dlse), shape)).transpose()?;
        let mut upstream = OutputGradients::new(dout);
        if let Some(dlse) = &dlse {
            upstream = upstream.with_dlse(dlse.view());
        }
        let poisoned = |side: usize| self.place(side).tensor(device, &vec![nan::<T>(); self.place(side).len()]);
        let (mut dq, mut dk, mut dv) = (poisoned(0)?, poisoned(1)?, poisoned(1)?);
        let mut into = GradientsViewMut::new(dq.view_mut(), dk.view_mut(), dv.view_mut());
        let (out, lse) = (out.view(), lse.view());
        self.attention.backward_packed_into(&stream, &q, &k, &v, &out, &lse, upstream, &q_rows, &kv_rows, &mut into)?;
        stream.synchronize()?;
        Ok([dq.storage_to_vec()?, dk.storage_to_vec()?, dv.storage_to_vec()?])
    }

    /// Runs the kernels and compares the gradients with the reference of each sequence alone.
    ///
    /// # Errors
    /// What is wrong, with the case.
    pub(crate) fn check<T: Element>(&self, device: &Device) -> Result<(), String> {
        let given = self.given::<T>();
        let found = self.run(device, &given).and_then(|computed| self.compare(given, computed));
        found.map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn compare<T: Element>(&self, given: Given<T>, computed: Vec<Computed<T>>) -> Result<(), String> {
        let (mut cases, mut inputs, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for (i, ((case, given), computed)) in given.cases.into_iter().zip(given.inputs).zip(computed).enumerate() {
            if self.lengths[i][0] > 0 {
                cases.push(case);
                inputs.push(given);
                found.push(computed);
            } else if computed[1].iter().chain(&computed[2]).any(|x| x.to_f64() != 0.0) {
                return Err(format!("dk or dv of sequence {i}, which has no row of q, is not 0"));
            }
        }
        BackwardCase::compare_together(&cases, &inputs, &found)
    }
}
