//! Softmax and its logarithm, forward and backward, against their definitions. What they refuse is in `softmax_errors`, what of their kernels may not go in
//! `softmax_mutants`.

use crate::norms::lie;
use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::lie::Lie;
use crate::support::rule::check;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{Operation, Softmax};
use ferroflash::reference::{ReferenceSoftmax, max_abs_difference};
use ferroflash::{BoolTensor, DType, Device, Dims, Element, EmulatorConfig, Layout, Tensor, bf16, f16};
use kernel_spec::families::rows::Sharing;
use kernel_spec::families::softmax::{Pass, VARIANTS};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// Rows, options and memory of a call.
#[derive(Clone, Debug)]
struct Case {
    /// Axes of rows.
    outer: Vec<usize>,
    columns: usize,
    scale: f32,
    log: bool,
    causal: bool,
    /// A mask, whether it is f32, and whether all rows have the same.
    mask: Option<[bool; 2]>,
    /// Of booleans, in the place of numbers.
    bools: bool,
    clusters: bool,
    /// How x, the mask or `dout`, and the result lie.
    lies: [Lie; 3],
    /// Standard deviation of the rows.
    deviation: f64,
    seed: u64,
}

impl Case {
    fn new(rows: usize, columns: usize) -> Case {
        Case {
            outer: vec![rows],
            columns,
            scale: 1.0,
            log: false,
            causal: false,
            mask: None,
            bools: false,
            clusters: true,
            lies: [Lie::default(); 3],
            deviation: 2.0,
            seed: 0,
        }
    }

    fn shape(&self) -> Vec<usize> {
        self.outer.iter().copied().chain([self.columns]).collect()
    }

    fn rows(&self) -> usize {
        self.outer.iter().product()
    }

    /// What a result is likely to be: of many columns, each has little.
    fn unit(&self) -> f64 {
        if self.log { 1.0 } else { 1.0 / self.columns as f64 }
    }

    /// Elements that the error of the precision is taken over: the rows of the call first, and more of few. 256 rows, as far as these are a million elements.
    fn drawn(&self) -> usize {
        self.rows().max(256.min((1 << 20) / self.columns)).max(4096 / self.columns) * self.columns
    }

    fn draw<T: Element>(&self, what: u64, elements: usize, deviation: f64) -> Vec<T> {
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_mul(16) + what);
        (0..elements).map(|_| T::from_f64(deviation * rng.sample::<f64, _>(StandardNormal))).collect()
    }

    /// A mask that hides one column of four, for all rows that are drawn.
    fn draw_mask<M: Element>(&self, shared: bool) -> Vec<M> {
        let elements = if shared { self.columns } else { self.drawn() };
        let hides: Vec<f32> = self.draw(2, elements, 1.0);
        let biases = self.draw::<M>(1, elements, 1.0).into_iter().zip(hides);
        // 0.674 is the upper quartile.
        let mask: Vec<M> =
            biases.map(|(bias, x)| if x > 0.674 { M::from_f64(f64::NEG_INFINITY) } else { bias }).collect();
        // What booleans show has no bias.
        let shown = |x: &M| if x.to_f64() == f64::NEG_INFINITY { *x } else { M::from_f64(0.0) };
        let mask: Vec<M> = if self.bools { mask.iter().map(shown).collect() } else { mask };
        if shared { mask.repeat(self.drawn() / self.columns) } else { mask }
    }

    /// The mask as booleans among others that are true, so that reading these would show; any byte but 0 is true. Where it starts, and its strides.
    fn bools<M: Element>(&self, device: &Device, mask: &[M]) -> (BoolTensor, usize, Vec<usize>) {
        let shape = self.shape();
        let (starts, strides) = match self.mask {
            Some([_, true]) => {
                // At a vector, or anywhere.
                let offset = (self.seed % 3) as usize * if self.seed.is_multiple_of(2) { 8 } else { 1 };
                let mut strides = vec![0; shape.len()];
                strides[shape.len() - 1] = 1;
                (vec![offset], strides)
            }
            _ => (self.lies[1].starts(&shape), self.lies[1].strides(&shape)),
        };
        let offset = starts[0];
        let mut bytes = vec![0xFF; starts.iter().max().expect("a row") + self.columns + 64];
        for (start, row) in starts.into_iter().zip(mask.chunks(self.columns)) {
            for (i, x) in row.iter().enumerate() {
                bytes[start + i] = if x.to_f64() == f64::NEG_INFINITY { 0 } else { 1 + (i % 255) as u8 };
            }
        }
        (BoolTensor::from_bytes(device, &bytes, [bytes.len()]).unwrap(), offset, strides)
    }

    fn reference(&self) -> ReferenceSoftmax {
        let queries = self.causal.then(|| *self.outer.last().expect("an axis of query rows"));
        ReferenceSoftmax { columns: self.columns, scale: self.scale.into(), log: self.log, queries }
    }

    fn softmax(&self) -> Softmax<'static> {
        let softmax = if self.log { Softmax::log() } else { Softmax::new() };
        softmax.with_scale(self.scale).causal(self.causal).with_clusters(self.clusters)
    }

    fn forward<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        match self.mask {
            Some([true, _]) => self.forward_with::<T, f32>(device),
            _ => self.forward_with::<T, T>(device),
        }
        .map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    /// The softmax into NaN; compares with the definition, and gives the output.
    fn forward_with<T: Element, M: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let shape = self.shape();
        let (elements, [in_lie, mask_lie, out_lie]) = (self.rows() * self.columns, self.lies);
        let x = self.draw::<T>(0, self.drawn(), self.deviation);
        let x_tensor = in_lie.upload(device, &shape, &x[..elements]);
        let mask = self.mask.map(|[_, shared]| self.draw_mask::<M>(shared));
        let mask_tensor = mask.as_ref().map(|mask| match self.mask {
            Some([_, true]) => {
                Tensor::from_slice(device, &mask[..self.columns], [self.columns], Layout::RowMajor).unwrap()
            }
            _ => mask_lie.upload(device, &shape, &mask[..elements]),
        });
        let mut softmax = self.softmax();
        if let Some(tensor) = &mask_tensor {
            let view = match self.mask {
                Some([_, true]) => {
                    let mut strides = vec![0; shape.len()];
                    strides[shape.len() - 1] = 1;
                    tensor.strided(0, Dims::new(&shape).unwrap(), Dims::new(&strides).unwrap()).unwrap()
                }
                _ => tensor.view(),
            };
            softmax = softmax.with_mask(&view);
        }
        let bools = mask.as_ref().filter(|_| self.bools).map(|mask| self.bools(device, mask));
        if let Some((bools, offset, strides)) = &bools {
            let view = bools.strided(*offset, Dims::new(&shape).unwrap(), Dims::new(strides).unwrap()).unwrap();
            softmax = self.softmax().with_bool_mask(&view);
        }
        let mut out = out_lie.poisoned::<T>(device, &shape);
        let stream = device.default_stream();
        softmax.forward_into(&stream, &x_tensor.view(), &mut out.view_mut()).map_err(|error| error.to_string())?;
        stream.synchronize().map_err(|error| error.to_string())?;
        let (x, mask) = (to_f64(&x), mask.map(|mask| to_f64(&mask)));
        let exact = self.reference().forward(&x, mask.as_deref()).unwrap();
        let rounded = self.reference().forward_rounded(&x, mask.as_deref(), T::DTYPE).unwrap();
        let found = out_lie.read::<T>("the output", &shape, &out)?;
        check("out", &found, &exact, &rounded, self.unit())?;
        Ok(found)
    }

    /// The gradient into NaN, of what a simple program gives for these rows; compares with the definition, and gives the gradient.
    fn backward<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let shape = self.shape();
        let (elements, [out_lie, dout_lie, dx_lie]) = (self.rows() * self.columns, self.lies);
        let x = to_f64(&self.draw::<T>(0, self.drawn(), self.deviation));
        let out = self.reference().forward_rounded(&x, None, T::DTYPE).unwrap();
        let as_stored: Vec<T> = out[..elements].iter().map(|&x| T::from_f64(x)).collect();
        let dout = self.draw::<T>(3, self.drawn(), 1.0);
        let out_tensor = out_lie.upload(device, &shape, &as_stored);
        let dout_tensor = dout_lie.upload(device, &shape, &dout[..elements]);
        let mut dx = dx_lie.poisoned::<T>(device, &shape);
        let stream = device.default_stream();
        let run = self.softmax().backward_into(&stream, &out_tensor.view(), &dout_tensor.view(), &mut dx.view_mut());
        run.and_then(|()| stream.synchronize()).map_err(|error| format!("{error}\n{self:#?}"))?;
        let dout = to_f64(&dout);
        let exact = self.reference().backward(&out, &dout).unwrap();
        let rounded = self.reference().backward_rounded(&out, &dout, T::DTYPE).unwrap();
        let found = dx_lie.read::<T>("dx", &shape, &dx)?;
        check("dx", &found, &exact, &rounded, self.unit()).map_err(|wrong| format!("{wrong}\n{self:#?}"))?;
        Ok(found)
    }
}

/// Every row of the list is what runs at its edges, with one row of the tensor less, and more, than a thread block has.
fn every_row_at_its_edges<T: Element>() {
    let shared = device::shared();
    let device = &shared.device;
    let mut visited = 0;
    for clusters in [false, true] {
        let rows = VARIANTS.iter().filter(|row| row.tile.dtype == T::DTYPE && device.info().runs(row.entry.arch));
        // On a GPU without clusters there is nothing else to visit.
        for row in rows.filter(|row| clusters == row.tile.in_clusters()) {
            let vector = 16 / T::DTYPE.bytes();
            let most = row.tile.columns() as usize;
            // What the rows before this one in the list take.
            let before = VARIANTS.iter().take_while(|other| *other != row).filter(|other| {
                let runs = clusters || other.tile.sharing == Sharing::Alone;
                other.pass == row.pass && other.tile.dtype == row.tile.dtype && runs
            });
            let taken = before.map(|other| other.tile.most_columns() as usize).max().unwrap_or(0);
            let columns = match row.tile.sharing {
                Sharing::Alone => vec![most - vector, most - 1, most],
                // Thread blocks of which the last has little; and as many as there can be.
                Sharing::Cluster | Sharing::Kept => vec![taken + vector, taken + 3, row.tile.most_columns() as usize],
                Sharing::Again => vec![taken + vector, taken + 1],
            };
            for (i, &columns) in columns.iter().enumerate() {
                let at_once = row.tile.block_rows() as usize;
                let rows = if i == 0 { at_once + 1 } else { (at_once - 1).max(1) };
                for log in [false, true] {
                    let mask = [None, Some([false, true]), Some([true, false])][(i + usize::from(log)) % 3];
                    let causal = (i == 1) != log;
                    let (bools, seed) = (log == causal, i as u64);
                    let case = Case { clusters, log, causal, mask, bools, seed, ..Case::new(rows, columns) };
                    let run = match row.pass {
                        Pass::Forward => case.forward::<T>(device),
                        Pass::Backward => case.backward::<T>(device),
                    };
                    run.unwrap_or_else(|wrong| panic!("{}: {wrong}", row.entry.symbol));
                    let x = Tensor::zeros(device, T::DTYPE, [1, columns], Layout::RowMajor).unwrap();
                    let plan = match row.pass {
                        Pass::Forward => case.softmax().plan(&x.view()),
                        Pass::Backward => case.softmax().plan_backward(&x.view(), &x.view()),
                    };
                    assert_eq!(plan.expect("a legal problem").symbols(), [row.entry.symbol], "{columns} columns");
                }
                visited += 1;
            }
        }
    }
    assert!(visited >= if device.info().runs(kernel_spec::Arch::Sm90a) { 52 } else { 40 }, "{visited}");
}

for_each_dtype!(every_row_at_its_edges);

/// Columns around those that the first rows of the list hold, and some of the others; axes of rows; whatever options there are.
fn cases() -> impl Strategy<Value = Case> {
    let columns =
        prop_oneof![4 => 1usize..=140, 3 => 1usize..=1100, 2 => (1usize..=140).prop_map(|n| 8 * n), 1 => 1usize..=5000];
    let outer = prop_oneof![
        (1usize..=20).prop_map(|rows| vec![rows]),
        (1usize..=4, 1usize..=5).prop_map(|(a, b)| vec![a, b]),
        (1usize..=3, 1usize..=3, 1usize..=3).prop_map(|(a, b, c)| vec![a, b, c]),
        Just(vec![]),
    ];
    let options = (any::<bool>(), any::<bool>(), any::<Option<[bool; 2]>>(), prop::bool::weighted(0.4));
    let numbers =
        (prop::sample::select(vec![1.0f32, 0.125, -1.5, 0.0, 3.0]), prop::sample::select(vec![1e-3, 1.0, 5.0, 50.0]));
    (outer, columns, options, [lie(), lie(), lie()], numbers, any::<u64>()).prop_map(
        |(outer, columns, (log, causal, mask, bools), lies, (scale, deviation), seed)| {
            let causal = causal && !outer.is_empty();
            Case { outer, columns, scale, log, causal, mask, bools, clusters: true, lies, deviation, seed }
        },
    )
}

fn random_rows_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.forward::<T>(&shared.device).map(|_| ()));
}

for_each_dtype!(random_rows_agree_with_the_definition);

fn random_gradients_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.backward::<T>(&shared.device).map(|_| ()));
}

for_each_dtype!(random_gradients_agree_with_the_definition);

/// What forward gives is what its gradient takes: the two together are the derivative of the definition.
#[test]
fn gradients_of_what_forward_gives() {
    let device = &device::shared().device;
    for (log, columns) in [(false, 100), (true, 100), (false, 3000), (true, 3000)] {
        let case = Case { log, causal: true, scale: 0.5, ..Case::new(4, columns) };
        let x: Vec<f32> = case.draw(0, 4 * columns, 2.0);
        let dout: Vec<f32> = case.draw(1, 4 * columns, 1.0);
        let tensor = |data: &[f32]| Tensor::from_slice(device, data, [4, columns], Layout::RowMajor).unwrap();
        let (x_tensor, dout_tensor) = (tensor(&x), tensor(&dout));
        let out = case.softmax().forward(&x_tensor.view()).unwrap().out;
        let dx = case.softmax().backward(&out.view(), &dout_tensor.view()).unwrap().dx;
        let exact = case.reference().forward(&to_f64(&x), None).unwrap();
        let exact = case.reference().backward(&exact, &to_f64(&dout)).unwrap();
        let error = max_abs_difference(&to_f64(&dx.to_vec::<f32>().unwrap()), &exact);
        assert!(error < 1e-5, "{columns} columns, log {log}: {error:e}");
    }
}

/// Query rows are aligned to the end: with more of them than columns, the first see nothing, and are zeros.
#[test]
fn causal_rows_see_no_later_column() {
    let device = &device::shared().device;
    for (queries, columns) in [(4, 4), (3, 70), (90, 7), (5, 700), (2, 3000)] {
        for log in [false, true] {
            let softmax = if log { Softmax::log() } else { Softmax::new() };
            // Two axes of rows before the columns: each of the first has query rows of its own.
            let x = Tensor::zeros(device, DType::F32, [2, queries, columns], Layout::RowMajor).unwrap();
            let out = softmax.causal(true).forward(&x.view()).unwrap().out.to_vec::<f32>().unwrap();
            for (i, &found) in out.iter().enumerate() {
                let (query, column) = (i / columns % queries, i % columns);
                let seen = (query + 1 + columns).saturating_sub(queries);
                let share = if column < seen { 1.0 / seen as f32 } else { 0.0 };
                let expected = if log { share.ln() } else { share };
                let right = found == expected || (found - expected).abs() < 1e-6;
                assert!(right, "{queries} x {columns}, log {log}: element {i} is {found}, {expected} is right");
            }
        }
    }
}

/// Numbers of every size that f32 has, and what is no number, in rows of every kind.
#[test]
fn numbers_of_every_size() {
    let device = &device::shared().device;
    let hidden = f32::NEG_INFINITY;
    for (columns, clusters) in [(5, true), (64, true), (700, true), (3000, true), (20_000, true), (20_000, false)] {
        for log in [false, true] {
            let case = Case { log, clusters, ..Case::new(1, columns) };
            let run = |x: &[f32], scale: f32| {
                let rows = x.len() / columns;
                let x = Tensor::from_slice(device, x, [rows, columns], Layout::RowMajor).unwrap();
                case.softmax().with_scale(scale).forward(&x.view()).unwrap().out.to_vec::<f32>().unwrap()
            };
            for large in [100.0, 1e4, 1e30, 3e38, -1e30, -3e38] {
                // A row of one large number, and one that two share, the first and the last.
                let mut x = vec![0.0; 3 * columns];
                x[columns / 2] = large;
                x[columns..2 * columns].fill(hidden);
                (x[columns], x[2 * columns - 1]) = (large, large);
                x[2 * columns..].fill(large);
                for scale in [1.0, 0.5, -1.0] {
                    // What is minus infinity behind the scale hides.
                    let hides = |x: f32| if x == hidden { x.copysign(-scale) } else { x };
                    let x: Vec<f32> = x.iter().map(|&x| hides(x)).collect();
                    let found: Vec<f64> = to_f64(&run(&x, scale));
                    let reference = ReferenceSoftmax { scale: scale.into(), ..case.reference() };
                    let exact = reference.forward(&to_f64(&x), None).unwrap();
                    for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                        // Of a logarithm, the score itself is rounded.
                        let bound = if log && exact.is_finite() { 1e-5 + 1e-6 * exact.abs() } else { 1e-6 };
                        let right = found == exact || (found - exact).abs() <= bound;
                        assert!(
                            right,
                            "{large} in {columns} columns times {scale}, log {log}: element {i} is {found}, {exact} is right"
                        );
                    }
                }
            }
            let nothing = if log { hidden } else { 0.0 };
            assert!(run(&vec![hidden; columns], 1.0).iter().all(|&x| x == nothing), "{columns} columns");
        }
    }
}

/// A NaN or plus infinity makes its row NaN and no other; one that a row does not see is nothing to it.
#[test]
fn what_is_no_number_stays_in_its_row() {
    let device = &device::shared().device;
    for columns in [48, 64, 128, 700, 3000, 20_000] {
        let rows = 9;
        let mut x: Vec<f32> = Case::new(rows, columns).draw(0, rows * columns, 1.0);
        let run = |x: &[f32], softmax: Softmax<'_>| {
            let tensor = Tensor::from_slice(device, x, [rows, columns], Layout::RowMajor).unwrap();
            softmax.forward(&tensor.view()).unwrap().out.to_vec::<f32>().unwrap()
        };
        for softmax in [Softmax::new(), Softmax::log(), Softmax::new().causal(true)] {
            let clean = run(&x, softmax);
            for value in [f32::NAN, f32::INFINITY] {
                for place in [4 * columns + columns / 3, 5 * columns - 1] {
                    let before = std::mem::replace(&mut x[place], value);
                    // The last column is for the last query row alone.
                    let is_seen = clean[place] != 0.0;
                    for (i, (found, clean)) in run(&x, softmax).iter().zip(&clean).enumerate() {
                        let right = if i / columns == 4 && is_seen { found.is_nan() } else { found == clean };
                        assert!(right, "{value} in {columns} columns, {softmax:?}: element {i} is {found}");
                    }
                    x[place] = before;
                }
            }
        }
    }
}

/// What booleans hide is nothing to its row, whatever it is; what they show is. The gradient of what is hidden is 0.
#[test]
fn booleans_hide_what_is_no_number() {
    let device = &device::shared().device;
    for columns in [5, 64, 700, 20_000] {
        for (clusters, log) in [(true, false), (false, true)] {
            let case = Case { log, clusters, ..Case::new(3, columns) };
            let seen: Vec<bool> = (0..columns).map(|column| column % 3 == 1).collect();
            let bools = BoolTensor::from_slice(device, &seen, [columns]).unwrap();
            let softmax = case.softmax().with_bool_mask(&bools.strided(0, [3, columns], [0, 1]).unwrap());
            let clean: Vec<f32> = case.draw(0, 3 * columns, 1.0);
            let mut wild = clean.clone();
            let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX];
            let hidden = (0..wild.len()).filter(|i| !seen[i % columns]);
            hidden.for_each(|i| wild[i] = values[i % values.len()]);
            let run = |x: &[f32]| {
                let x = Tensor::from_slice(device, x, [3, columns], Layout::RowMajor).unwrap();
                softmax.forward(&x.view()).unwrap().out
            };
            let out = run(&clean);
            let nothing = if log { f32::NEG_INFINITY } else { 0.0 };
            let found = out.to_vec::<f32>().unwrap();
            assert!(found.iter().enumerate().all(|(i, &x)| (x == nothing) != seen[i % columns]), "{columns} columns");
            assert_eq!(run(&wild).to_vec::<f32>().unwrap(), found, "{columns} columns");
            let dx = softmax.backward(&out.view(), &out.view()).unwrap().dx.to_vec::<f32>().unwrap();
            assert!(dx.iter().enumerate().all(|(i, &dx)| seen[i % columns] || dx == 0.0), "{columns} columns");
            wild[columns + 1] = f32::NAN;
            let spoilt = run(&wild).to_vec::<f32>().unwrap();
            // Of a logarithm, minus infinity less a NaN is one, too.
            assert!((0..columns).all(|i| spoilt[columns + i].is_nan() && spoilt[i] == found[i]), "{columns} columns");
        }
    }
}

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &device::shared().device;
    let x = Tensor::zeros(device, DType::Bf16, [2, 20, 96], Layout::RowMajor).unwrap();
    let mask = Tensor::zeros(device, DType::F32, [2, 20, 96], Layout::RowMajor).unwrap();
    let softmax = Softmax::new().with_mask(&mask.view()).causal(true);
    let plan = softmax.plan(&x.view()).unwrap();
    // 32 rows a thread block; x and out, and a mask of twice the bytes.
    assert_eq!((plan.symbols(), plan.steps()[0].ctas, plan.workspace_bytes()), (vec!["softmax_bf16_4x4"], 2, 0));
    assert_eq!((plan.name(), plan.bytes()), ("softmax", 4 * 3840 * 2));
    assert!(plan.to_string().starts_with("softmax forward: a row is read once"), "{plan}");
    let bools = BoolTensor::from_bytes(device, &[1; 97], [97]).unwrap();
    // A byte an element, at a multiple of 8 of them or not.
    for (offset, pieces) in [(0, false), (1, true)] {
        let view = bools.strided(offset, [2, 20, 96], [0, 0, 1]).unwrap();
        let plan = Softmax::new().with_bool_mask(&view).plan(&x.view()).unwrap();
        assert_eq!((plan.bytes(), plan.to_string().contains("single elements")), (5 * 3840, pieces), "{plan}");
    }
    device.prepare(&plan).unwrap();
    let log = Softmax::log().plan_backward(&x.view(), &x.view()).unwrap();
    assert_eq!(
        (log.name(), log.symbols(), log.bytes()),
        ("log_softmax", vec!["softmax_backward_bf16_8x2"], 3 * 3840 * 2)
    );
    // Nothing to do.
    for shape in [[0, 4, 96], [4, 0, 96]] {
        let none = Tensor::zeros(device, DType::Bf16, shape, Layout::RowMajor).unwrap();
        let found = Softmax::new().causal(true).forward(&none.view()).unwrap();
        assert_eq!((found.plan.steps()[0].ctas, found.out.shape()[..].to_vec()), (0, shape.to_vec()));
        assert_eq!(Softmax::new().backward(&none.view(), &none.view()).unwrap().plan.steps()[0].ctas, 0);
    }
}

/// Whatever the order of thread blocks and warps is.
#[test]
fn every_interleaving_has_the_same_bits() {
    if device::is_gpu() {
        return;
    }
    let cases = [
        Case { mask: Some([true, false]), ..Case::new(70, 100) },
        Case { causal: true, ..Case::new(3, 1000) },
        Case { log: true, ..Case::new(3, 3000) },
        Case::new(2, 17_000),
        Case { clusters: false, ..Case::new(2, 33_000) },
    ];
    for case in cases {
        let run = |seed: u64| {
            let device =
                Device::emulator_with(EmulatorConfig::default().with_seed(seed)).expect("the emulator is built in");
            let unwrap =
                |result: Result<Vec<f64>, String>| result.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            [unwrap(case.forward::<bf16>(&device)), unwrap(case.backward::<bf16>(&device))]
        };
        let first = run(0);
        assert!((1..device::seeds(4).into()).all(|seed| run(seed) == first), "{case:?}");
    }
}
