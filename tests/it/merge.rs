//! The merge of partial results: against its definition, and against attention over all keys at once. What it refuses is in
//! `merge_errors`.

use crate::support::case::{Case as WholeCase, Computed, Memory, Reference, compare, nan, to_f64};
use crate::support::device;
use crate::support::draws::draws;
use crate::support::edits::mutants;
use ferroflash::reference::{self, ReferenceOutput};
use ferroflash::{
    Attention, DType, Device, Dims, Element, EmulatorConfig, Indices, KernelChoice, Layout, Lse, LseShape, LseViewMut,
    Mask, PackedRows, Part, Shape, Sizes, Tensor, TensorView, bf16, embedded_ptx, f16, merge, merge_into, plan_merge,
};
use kernel_spec::families::merge::{MAX_PARTS, VARIANTS};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;
use std::ops::Range;

/// Partial results that nobody computed, with their memory.
#[derive(Clone, Debug)]
struct Case {
    shape: Shape,
    /// Where each part lies.
    parts: Vec<Memory>,
    out: Memory,
    /// Tensors of three axes.
    packed: bool,
    /// How far log-sum-exps are apart.
    spread: f64,
    /// Share of the rows of a part that have seen no key; all of them, now and then.
    empty: f64,
    with_lse: bool,
    seed: u64,
}

/// A part: output `[batch, row, head, dim]`, log-sum-exp `[batch, head, row]`.
struct Given<T> {
    out: Vec<T>,
    lse: Vec<f32>,
}

/// NaN on both sides of the log-sum-exp.
const LSE_GUARD: usize = 16;

impl Case {
    fn new(shape: Shape, parts: usize) -> Case {
        let memory = Memory::contiguous(Layout::Bshd);
        Case {
            shape,
            parts: vec![memory; parts],
            out: memory,
            packed: false,
            spread: 2.0,
            empty: 0.2,
            with_lse: true,
            seed: 0,
        }
    }

    fn rows(&self) -> usize {
        self.shape.batch * self.shape.heads * self.shape.rows
    }

    fn lse_shape(&self) -> LseShape {
        LseShape { batch: self.shape.batch, heads: self.shape.heads, rows: self.shape.rows }
    }

    /// Normal values. Where a row has seen no key the output is NaN, which must not matter.
    fn inputs<T: Element>(&self) -> Vec<Given<T>> {
        let mut rng = SmallRng::seed_from_u64(self.seed);
        let Shape { rows, heads, head_dim, .. } = self.shape;
        let part = |memory: &Memory| {
            let mut out: Vec<T> = memory.draw(&mut rng, self.shape, 1.0);
            let mut lse: Vec<f32> =
                (0..self.rows()).map(|_| (self.spread * rng.sample::<f64, _>(StandardNormal)) as f32).collect();
            let share = if self.empty > 0.0 && rng.random_bool(0.1) { 1.0 } else { self.empty };
            for (index, row) in out.chunks_mut(head_dim).enumerate() {
                if rng.random_bool(share) {
                    let (head, row_index) = (index % heads, index / heads);
                    lse[(row_index / rows * heads + head) * rows + row_index % rows] = f32::NEG_INFINITY;
                    // Not where others are at the same place.
                    if !memory.one_batch && !memory.one_head {
                        row.fill(nan());
                    }
                }
            }
            Given { out, lse }
        };
        self.parts.iter().map(part).collect()
    }

    /// Merges on storage full of NaN around the parts and under the output, and checks that the NaN around the output is untouched.
    fn run<T: Element, Out: Element>(&self, device: &Device, given: &[Given<T>]) -> Result<Computed<Out>, String> {
        let (computed, storage) = self.launch::<T, Out>(device, given).map_err(|error| error.to_string())?;
        self.out.check_guards("the output", self.shape, &storage)?;
        Ok(computed)
    }

    fn launch<T: Element, Out: Element>(
        &self,
        device: &Device,
        given: &[Given<T>],
    ) -> ferroflash::Result<(Computed<Out>, Vec<Out>)> {
        let tensors = self.parts.iter().zip(given).map(|(memory, given)| memory.upload(device, self.shape, &given.out));
        let tensors = tensors.collect::<ferroflash::Result<Vec<Tensor>>>()?;
        let lses = given.iter().map(|given| Lse::from_slice(device, &given.lse, self.lse_shape()));
        let lses = lses.collect::<ferroflash::Result<Vec<Lse>>>()?;
        let mut out = self.out.poisoned::<Out>(device, self.shape)?;
        let guarded = self.rows() + 2 * LSE_GUARD;
        let mut lse = Tensor::uninit(device, DType::F32, [guarded], Layout::RowMajor)?;
        lse.fill_bytes(0xff)?;
        let stream = device.default_stream();
        {
            let (address, elements) = (lse.address() + LSE_GUARD as u64 * 4, self.rows() + LSE_GUARD);
            // SAFETY: the memory of `lse` from the guard on, used by nobody else until the stream is done.
            let mut lse = unsafe { LseViewMut::from_raw(device, address, elements, self.lse_shape())? };
            let three = |view: &TensorView<'_>| view.shape()[1..].to_vec();
            let views = tensors.iter().map(|tensor| {
                let view = tensor.view();
                if self.packed { view.reshape(Dims::new(&three(&view))?) } else { Ok(view) }
            });
            let views = views.collect::<ferroflash::Result<Vec<_>>>()?;
            let parts: Vec<_> = views.iter().zip(&lses).map(|(view, lse)| Part::new(view, &lse.view())).collect();
            let target = out.view_mut();
            let mut target = if self.packed {
                let dims = three(&target.view());
                target.into_reshaped(Dims::new(&dims)?)?
            } else {
                target
            };
            merge_into(&stream, &parts, &mut target, self.with_lse.then_some(&mut lse))?;
            stream.synchronize()?;
        }
        let lse = lse.storage_to_vec::<f32>()?;
        let (inner, outer) = (LSE_GUARD..LSE_GUARD + self.rows(), [&lse[..LSE_GUARD], &lse[LSE_GUARD + self.rows()..]]);
        assert!(outer.concat().iter().all(|x| x.to_bits() == u32::MAX), "memory around the log-sum-exp was written");
        let computed = Computed { out: out.to_vec()?, lse: lse[inner].to_vec() };
        Ok((computed, out.storage_to_vec()?))
    }

    /// Merges and compares with the definition.
    fn check<T: Element, Out: Element>(&self, device: &Device) -> Result<(), String> {
        let given = self.inputs::<T>();
        let mut computed = self.run::<T, Out>(device, &given).map_err(|wrong| format!("{wrong}\n{self:#?}"))?;
        let reference = self.reference::<T, Out>(&given);
        if !self.with_lse {
            assert!(computed.lse.iter().all(|x| x.to_bits() == u32::MAX), "a log-sum-exp that was not asked for");
            computed.lse = reference.lse.iter().map(|&x| x as f32).collect();
        }
        compare(&computed, &reference).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn reference<T: Element, Out: Element>(&self, given: &[Given<T>]) -> Reference {
        let numbers: Vec<_> = given.iter().map(|part| (to_f64(&part.out), to_f64(&part.lse))).collect();
        let parts: Vec<_> = numbers.iter().map(|(out, lse)| (&out[..], &lse[..])).collect();
        let exact = reference::merge(&parts, self.shape).expect("equal shapes");
        let rounded = reference::merge_rounded(&parts, self.shape, Out::DTYPE).expect("equal shapes");
        bounds(exact, &rounded)
    }
}

/// What has to come out, by the rule of `ferroflash::reference`.
fn bounds(exact: ReferenceOutput, rounded: &ReferenceOutput) -> Reference {
    let error = |a: &[f64], b: &[f64]| reference::max_abs_difference(a, b);
    let largest = exact.lse.iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()));
    Reference {
        bound: reference::tolerance(error(&rounded.out, &exact.out)),
        lse_bound: reference::tolerance(error(&rounded.lse, &exact.lse)) + 16.0 * f64::from(f32::EPSILON) * largest,
        out: exact.out,
        lse: exact.lse,
    }
}

/// Every pair of types that there is a kernel for.
macro_rules! for_each_pair {
    ($check:ident) => {
        mod $check {
            use super::*;

            for_each_pair! { @tests $check
                f16 f16 f16, bf16 bf16 bf16, f32 f32 f32, f32_to_f16 f32 f16, f32_to_bf16 f32 bf16, f16_to_f32 f16 f32, bf16_to_f32 bf16 f32,
            }
        }
    };
    (@tests $check:ident $($name:ident $parts:ident $out:ident,)*) => {
        $(#[test]
        fn $name() {
            super::$check::<$parts, $out>();
        })*
    };
}

/// Heads dims around those whose threads fill a thread block, numbers of parts around what is read at a time and what a launch takes.
fn cases() -> impl Strategy<Value = Case> {
    let shape = (1usize..=3, prop_oneof![1usize..=3, 1usize..=70], 1usize..=5, (1usize..=32).prop_map(|n| 8 * n));
    let shape = shape.prop_map(|(batch, rows, heads, dim)| Shape::new(batch, rows, heads, dim));
    let most = MAX_PARTS as usize;
    let parts = prop_oneof![6 => 1usize..=9, 1 => most - 1..=most + 2, 1 => 2 * most..=2 * most + 1];
    let aligned = prop::sample::select(vec![Layout::Bshd, Layout::Bhsd]).prop_map(Memory::contiguous);
    let inputs = prop_oneof![1 => aligned.clone().boxed(), 1 => crate::properties::memory(true).boxed()];
    let out = prop_oneof![1 => aligned.boxed(), 1 => crate::properties::memory(false).boxed()];
    let numbers = (prop::sample::select(vec![0.0, 2.0, 40.0]), prop::sample::select(vec![0.0, 0.2, 0.9]));
    (shape, parts, prop::collection::vec(inputs, 7), out, numbers, (any::<bool>(), any::<bool>()), any::<u64>())
        .prop_map(|(mut shape, parts, memories, out, (spread, empty), (packed, with_lse), seed)| {
            if packed {
                shape.batch = 1;
            }
            if parts > 9 {
                // Each of many parts is an upload.
                shape.rows = shape.rows.min(3);
            }
            let parts = (0..parts).map(|i| memories[i % memories.len()]).collect();
            Case { shape, parts, out, packed, spread, empty, with_lse, seed }
        })
}

fn random_parts_agree_with_the_definition<T: Element, Out: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.check::<T, Out>(&shared.device));
}

for_each_pair!(random_parts_agree_with_the_definition);

/// Every head dim, with one row less and one more than a thread block has.
fn every_head_dim_at_the_edges_of_thread_blocks<T: Element, Out: Element>() {
    let shared = device::shared();
    for dim in (8..=256).step_by(8) {
        let block_rows = 256 / (dim / 4);
        for rows in [block_rows - 1, block_rows, block_rows + 1] {
            let case = Case { seed: dim as u64, ..Case::new(Shape::new(1, rows, 1, dim), 3) };
            case.check::<T, Out>(&shared.device).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

for_each_pair!(every_head_dim_at_the_edges_of_thread_blocks);

/// Keys of a random problem split into 1 to 7 parts, some without keys.
#[derive(Clone, Debug)]
struct Split {
    sizes: Sizes,
    /// Where the keys are cut, ascending: a part more than there are numbers.
    cuts: Vec<usize>,
    scale: Option<f32>,
    seed: u64,
}

fn splits(dtype: DType) -> impl Strategy<Value = Split> {
    let heads = prop::sample::select(vec![[1usize, 1], [4, 2], [3, 1]]);
    let dims = (1usize..=32).prop_map(|n| 8 * n);
    let scale = prop::sample::select(vec![None, Some(0.0f32), Some(-0.3)]);
    (
        1usize..=2,
        1usize..=40,
        0usize..=150,
        heads,
        dims,
        prop::collection::vec(any::<prop::sample::Index>(), 0..7),
        scale,
        any::<u64>(),
    )
        .prop_map(move |(batch, q_rows, kv_rows, [q_heads, kv_heads], head_dim, cuts, scale, seed)| {
            let sizes = Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype };
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(kv_rows + 1)).collect();
            cuts.sort_unstable();
            Split { sizes, cuts, scale, seed }
        })
}

impl Split {
    /// Attention over each part of the keys, merged, is attention over all of them.
    fn check<T: Element>(&self, device: &Device) -> Result<(), String> {
        self.compare::<T>(device).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    /// The keys of each part.
    fn parts(&self) -> Vec<Range<usize>> {
        let starts = [0].into_iter().chain(self.cuts.iter().copied());
        starts.zip(self.cuts.iter().copied().chain([self.sizes.kv_rows])).map(|(start, end)| start..end).collect()
    }

    /// The parts and their merge as a straightforward program in the tensors' precision computes them. What each part is rounded to counts:
    /// values of few keys cancel less than those of all, so that a part can be several times the whole, and its rounding with it.
    fn rounded(&self, attention: &Attention<'_>, [q, k, v]: [&[f64]; 3]) -> ReferenceOutput {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = self.sizes;
        let key = kv_heads * head_dim;
        let part = |keys: Range<usize>| {
            let own = |x: &[f64]| -> Vec<f64> {
                (0..batch)
                    .flat_map(|b| &x[(b * kv_rows + keys.start) * key..(b * kv_rows + keys.end) * key])
                    .copied()
                    .collect()
            };
            let sizes = Sizes { kv_rows: keys.len(), ..self.sizes };
            reference::forward_rounded(q, &own(k), &own(v), sizes, attention).expect("a legal problem")
        };
        let parts: Vec<_> = self.parts().into_iter().map(part).collect();
        let parts: Vec<_> = parts.iter().map(|part| (&part.out[..], &part.lse[..])).collect();
        reference::merge_rounded(&parts, Shape::new(batch, q_rows, q_heads, head_dim), dtype).expect("equal shapes")
    }

    fn compare<T: Element>(&self, device: &Device) -> Result<(), String> {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = self.sizes;
        let mut attention = Attention::new().with_lse(true);
        attention.scale = self.scale;
        let mut whole = WholeCase::new(KernelChoice::Auto, self.sizes, Mask::Full);
        whole.attention = attention;
        whole.seed = self.seed;
        let inputs = whole.inputs::<T>();
        let q_shape = Shape::new(batch, q_rows, q_heads, head_dim);
        let kv_shape = Shape::new(batch, kv_rows, kv_heads, head_dim);
        let upload = |data: &[T], shape| Tensor::from_slice(device, data, shape, Layout::Bshd).expect("a small tensor");
        let (q, k, v) = (upload(&inputs.q, q_shape), upload(&inputs.k, kv_shape), upload(&inputs.v, kv_shape));
        let parts = self.parts().into_iter().map(|keys| {
            let [k, v] = [&k, &v].map(|tensor| tensor.view().narrow(1, keys.clone()).expect("a range of keys"));
            attention.forward(&q.view(), &k, &v).expect("a legal problem")
        });
        let parts: Vec<_> = parts.collect();
        let parts: Vec<_> = parts.iter().map(|output| output.part().expect("with lse")).collect();
        let merged = merge(&parts, None).map_err(|error| error.to_string())?;
        let computed = Computed {
            out: merged.out.to_vec::<T>().expect("the same type"),
            lse: merged.lse.to_vec().expect("a small one"),
        };
        compare(&computed, &whole.reference_beside(&inputs, |given| self.rounded(&attention, given)))
    }
}

fn parts_of_the_keys_make_the_whole<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases().div_ceil(2), 256).check(&splits(T::DTYPE), |case| case.check::<T>(&shared.device));
}

#[test]
fn parts_of_the_keys_make_the_whole_f32() {
    parts_of_the_keys_make_the_whole::<f32>();
}

#[test]
fn parts_of_the_keys_make_the_whole_f16() {
    parts_of_the_keys_make_the_whole::<f16>();
}

#[test]
fn parts_of_the_keys_make_the_whole_bf16() {
    parts_of_the_keys_make_the_whole::<bf16>();
}

/// Sequences that share a prompt: the prompt once for all of them, packed, and what each has of its own. As attention of each over both.
#[test]
fn a_shared_prefix_is_attended_to_once() {
    let device = &device::shared().device;
    const DIM: usize = 64;
    let (heads, prompt_keys) = (2, 150);
    let own_keys = [0, 1, 70, 33];
    let mut rng = SmallRng::seed_from_u64(7);
    let mut draw = |rows: usize| -> Vec<f32> { (0..rows * heads * DIM).map(|_| rng.sample(StandardNormal)).collect() };
    // Two rows of q for each sequence, which are the last of its tokens but for the sequence without keys of its own.
    let (q, prompt, own) = (draw(2 * 4), [draw(prompt_keys), draw(prompt_keys)], [draw(104), draw(104)]);
    let upload = |data: &[f32]| {
        Tensor::from_slice(device, data, [data.len() / heads / DIM, heads, DIM], Layout::RowMajor).unwrap()
    };
    let starts = |numbers: &[i32]| Indices::from_slice(device, numbers).unwrap();
    let (all, each, prompt_starts, own_starts) =
        (starts(&[0, 8]), starts(&[0, 2, 4, 6, 8]), starts(&[0, 150]), starts(&[0, 0, 1, 71, 104]));
    let q_tensor = upload(&q);
    let attend = |attention: Attention<'static>, kv: &[Vec<f32>; 2], q_rows: &Indices, kv_rows: &Indices| {
        let [k, v] = [upload(&kv[0]), upload(&kv[1])];
        let rows = [q_rows, kv_rows].map(|starts| PackedRows::new(starts.view()));
        attention.with_lse(true).forward_packed(&q_tensor.view(), &k.view(), &v.view(), &rows[0], &rows[1]).unwrap()
    };
    let shared = attend(Attention::new(), &prompt, &all, &prompt_starts);
    let rest = attend(Attention::new().causal(), &own, &each, &own_starts);
    let merged = merge(&[shared.part().unwrap(), rest.part().unwrap()], None).unwrap();
    let (out, lse) = (merged.out.to_vec::<f32>().unwrap(), merged.lse.to_vec().unwrap());

    let mut end = 0;
    for (sequence, keys) in own_keys.into_iter().enumerate() {
        let row = heads * DIM;
        let first = end;
        end += keys;
        let kv = |i: usize| to_f64(&[&prompt[i][..], &own[i][first * row..(first + keys) * row]].concat());
        let rows = to_f64(&q[2 * sequence * row..][..2 * row]);
        // With one key of its own, the first row sees that of nobody: the diagonal lies in the prompt.
        for of in 0..2 {
            let sees = prompt_keys + (keys + of).saturating_sub(1).min(keys);
            let sizes = Sizes {
                batch: 1,
                q_rows: 1,
                kv_rows: sees,
                q_heads: heads,
                kv_heads: heads,
                head_dim: DIM,
                dtype: DType::F32,
            };
            let [k, v] = [kv(0), kv(1)].map(|kv| kv[..sees * row].to_vec());
            let expected = reference::forward(&rows[of * row..][..row], &k, &v, sizes, &Attention::new()).unwrap();
            let token = 2 * sequence + of;
            let found = to_f64(&out[token * row..][..row]);
            assert!(reference::max_abs_difference(&found, &expected.out) < 1e-5, "sequence {sequence}, row {of}");
            for head in 0..heads {
                assert!(
                    (f64::from(lse[head * 8 + token]) - expected.lse[head]).abs() < 1e-5,
                    "sequence {sequence}, row {of}"
                );
            }
        }
    }
}

/// Parts that have seen no key leave the bits of the others alone, wherever they stand; one part alone comes out as it is.
#[test]
fn parts_without_keys_change_no_bit() {
    let device = &device::shared().device;
    let case = Case { empty: 0.0, ..Case::new(Shape::new(2, 5, 3, 40), 1) };
    let given = case.inputs::<f32>();
    let given = &given[0];
    let none = || Given { out: vec![f32::NAN; given.out.len()], lse: vec![f32::NEG_INFINITY; given.lse.len()] };
    for place in 0..10 {
        let parts: Vec<_> = (0..10)
            .map(|i| if i == place { Given { out: given.out.clone(), lse: given.lse.clone() } } else { none() })
            .collect();
        let case = Case { parts: vec![case.parts[0]; 10], ..case.clone() };
        let found = case.run::<f32, f32>(device, &parts).unwrap();
        assert!((&found.out, &found.lse) == (&given.out, &given.lse), "the part in place {place} of 10");
    }
    let empty =
        Case { parts: vec![case.parts[0]; 3], ..case }.run::<f32, f32>(device, &[none(), none(), none()]).unwrap();
    assert!(empty.out.iter().all(|x| x.to_bits() == 0) && empty.lse.iter().all(|&x| x == f32::NEG_INFINITY));
}

/// NaN in one part's row that has seen keys, or in its log-sum-exp, is in that row of the result and in no other.
#[test]
fn nan_stays_in_its_row() {
    let device = &device::shared().device;
    let case = Case { empty: 0.0, ..Case::new(Shape::new(1, 6, 2, 24), 9) };
    let clean = case.inputs::<f32>();
    let expected = case.run::<f32, f32>(device, &clean).unwrap();
    for spoiled in [0, 5, 8] {
        for value in [f32::NAN, f32::INFINITY] {
            let mut given = case.inputs::<f32>();
            // Row 4 of head 1.
            given[spoiled].lse[6 + 4] = value;
            let found = case.run::<f32, f32>(device, &given).unwrap();
            for (index, (found, expected)) in found.out.chunks(24).zip(expected.out.chunks(24)).enumerate() {
                let right = if index == 2 * 4 + 1 { found.iter().all(|x| x.is_nan()) } else { found == expected };
                assert!(right, "log-sum-exp {value} in part {spoiled}: row {index}");
            }
            assert!(found.lse[6 + 4].is_nan());
        }
        let mut given = case.inputs::<f32>();
        given[spoiled].out[(2 * 4 + 1) * 24 + 3] = f32::NAN;
        let found = case.run::<f32, f32>(device, &given).unwrap();
        assert_eq!(found.lse, expected.lse);
        let nans: Vec<_> = (0..found.out.len()).filter(|&i| found.out[i].is_nan()).collect();
        assert_eq!(nans, [(2 * 4 + 1) * 24 + 3], "NaN in part {spoiled}");
    }
}

/// The mean of the largest numbers is such a number, and log-sum-exps of any size have weights.
#[test]
fn numbers_of_every_size() {
    fn check<T: Element>(device: &Device, largest: f64) {
        let shape = Shape::new(1, 1, 1, 8);
        for parts in [2, 7, 64, 65, 130] {
            for lse in [0.0, 1e30, -3e38] {
                let case = Case::new(shape, parts);
                let value = T::from_f64(largest);
                let given: Vec<_> = (0..parts).map(|_| Given { out: vec![value; 8], lse: vec![lse] }).collect();
                let found = case.run::<T, T>(device, &given).unwrap();
                let close = |x: &T| (x.to_f64() / value.to_f64() - 1.0).abs() < 1e-6;
                assert!(found.out.iter().all(close), "{parts} parts of {largest:e}: {:e}", found.out[0].to_f64());
                let expected = lse + (parts as f32).ln();
                assert!(
                    (found.lse[0] - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                    "{} {expected}",
                    found.lse[0]
                );
            }
        }
    }
    let device = &device::shared().device;
    check::<f32>(device, 3e38);
    check::<f16>(device, 65504.0);
    check::<bf16>(device, bf16::MAX.to_f64());
}

/// More parts than a launch takes: groups of equal size, whose results stay in f32.
#[test]
fn the_plan_says_how_many_launches_and_why() {
    let device = &device::shared().device;
    let out = Tensor::zeros(device, DType::Bf16, [3, 5, 2, 24], Layout::RowMajor).unwrap();
    let lse = Lse::from_slice(device, &[0.0; 30], LseShape { batch: 3, heads: 2, rows: 5 }).unwrap();
    let plan = |parts: usize, dtype: Option<DType>| {
        plan_merge(&vec![Part::new(&out.view(), &lse.view()); parts], dtype).unwrap()
    };
    let one = plan(64, None);
    assert_eq!((one.symbols().collect::<Vec<_>>(), one.workspace_bytes()), (vec!["merge_parts_bf16"], 0), "{one}");
    // 6 threads a row, 42 rows a thread block.
    assert_eq!(one.steps[0].ctas, 1, "{one}");
    assert!(one.to_string().contains("64 parts of 30 rows, head_dim 24, bf16, out bf16"), "{one}");
    let two = plan(65, Some(DType::F32));
    let symbols = ["merge_parts_bf16_f32", "merge_parts_bf16_f32", "merge_parts_f32"];
    assert_eq!((two.symbols().collect::<Vec<_>>(), two.workspace_bytes()), (symbols.to_vec(), 2 * 30 * (24 + 1) * 4));
    assert!(two.steps[0].tile.ends_with("32 parts") && two.steps[1].tile.ends_with("33 parts"), "{two}");
    assert!(two.reason.contains("groups of them in 2 launches"), "{two}");
    // Two levels of groups.
    assert_eq!(plan(64 * 64 + 1, None).steps.len(), 65 + 2 + 1);
    device.prepare(&two).unwrap();
    // Nothing to do.
    let none = Tensor::zeros(device, DType::F32, [0, 2, 24], Layout::RowMajor).unwrap();
    let lse = Lse::from_slice(device, &[], LseShape { batch: 1, heads: 2, rows: 0 }).unwrap();
    let merged = merge(&[Part::new(&none.view(), &lse.view())], None).unwrap();
    assert_eq!((merged.plan.steps[0].ctas, merged.out.shape()[..].to_vec()), (0, vec![0, 2, 24]));
}

/// The order of axes of the first part is that of the result.
#[test]
fn a_new_output_is_like_the_first_part() {
    let device = &device::shared().device;
    let shape = Shape::new(2, 3, 4, 16);
    let lse = Lse::from_slice(device, &[0.0; 24], LseShape { batch: 2, heads: 4, rows: 3 }).unwrap();
    for layout in [Layout::Bshd, Layout::Bhsd] {
        let first = Tensor::zeros(device, DType::F32, shape, layout).unwrap();
        let second = Tensor::zeros(device, DType::F32, shape, Layout::Bshd).unwrap();
        let parts = [&first, &second].map(|tensor| Part::new(&tensor.view(), &lse.view()));
        let merged = merge(&parts, DType::F16).unwrap();
        assert_eq!((merged.out.dtype(), merged.out.strides()), (DType::F16, first.strides()), "{layout:?}");
    }
}

/// There is no wait that `mutants` could take out.
#[test]
fn no_thread_waits_for_another() {
    for row in VARIANTS {
        let text = embedded_ptx(&row.entry).expect("every build has it");
        assert!(mutants(&text).is_empty() && !text.contains(".local"), "{}", row.entry.symbol);
    }
}

/// Whatever the order of thread blocks and threads is: no thread waits for another, or reads what another writes.
#[test]
fn every_interleaving_has_the_same_bits() {
    let case = Case { parts: vec![Memory::contiguous(Layout::Bhsd); 67], ..Case::new(Shape::new(1, 9, 3, 96), 67) };
    let given = case.inputs::<bf16>();
    let with_seed =
        |seed| Device::emulator_with(EmulatorConfig::default().with_seed(seed)).expect("the emulator is built in");
    let results: Vec<_> =
        (0..device::seeds(6).into()).map(|seed| case.run::<bf16, bf16>(&with_seed(seed), &given).unwrap()).collect();
    assert!(results.windows(2).all(|two| two[0] == two[1]));
}
