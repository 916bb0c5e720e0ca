//! RMSNorm and LayerNorm, forward and backward, against their definitions. What they refuse is in `norms_errors`, what of their kernels may not go in
//! `norms_mutants`.

use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::lie::Lie;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{Norm, NormGradientsViewMut, NormOutputViewMut, NormSaved, Operation};
use ferroflash::reference::{ReferenceBranch, ReferenceNorm, max_abs_difference, tolerance};
use ferroflash::{DType, Device, Dropout, Element, EmulatorConfig, Layout, Tensor, bf16, f16};
use kernel_spec::families::norm::{Pass, VARIANTS};
use kernel_spec::families::rows::Sharing;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// Rows, options and memory of a call.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Axes of rows.
    pub(crate) outer: Vec<usize>,
    pub(crate) columns: usize,
    pub(crate) layer: bool,
    /// Weights, and whether they are f32.
    pub(crate) weight: Option<bool>,
    pub(crate) bias: bool,
    /// A residual, or a gradient with respect to the sum with one, and whether it is f32.
    pub(crate) residual: Option<bool>,
    /// Dropout of x before the residual is added.
    pub(crate) dropout: Option<Dropout>,
    /// Whether rows of x have a factor each.
    pub(crate) rowscale: bool,
    pub(crate) zero_centred: bool,
    pub(crate) clusters: bool,
    /// How x, the residual, and the outputs lie.
    pub(crate) lies: [Lie; 3],
    /// Elements before weights and biases.
    pub(crate) weight_offset: usize,
    /// Standard deviation of the rows, and their mean.
    pub(crate) deviation: f64,
    pub(crate) mean: f64,
    pub(crate) epsilon: f32,
    pub(crate) seed: u64,
}

impl Case {
    pub(crate) fn new(rows: usize, columns: usize, layer: bool) -> Case {
        Case {
            outer: vec![rows],
            columns,
            layer,
            weight: Some(false),
            bias: layer,
            residual: None,
            dropout: None,
            rowscale: false,
            zero_centred: false,
            clusters: true,
            lies: [Lie::default(); 3],
            weight_offset: 0,
            deviation: 1.0,
            mean: 0.0,
            epsilon: 1e-5,
            seed: 0,
        }
    }

    fn shape(&self) -> Vec<usize> {
        self.outer.iter().copied().chain([self.columns]).collect()
    }

    fn rows(&self) -> usize {
        self.outer.iter().product()
    }

    pub(crate) fn draw<T: Element>(&self, what: u64, elements: usize, deviation: f64, mean: f64) -> Vec<T> {
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_mul(16) + what);
        (0..elements).map(|_| T::from_f64(mean + deviation * rng.sample::<f64, _>(StandardNormal))).collect()
    }

    /// Elements that the error of the precision is taken over: the rows of the call first, and more of few.
    fn drawn(&self) -> usize {
        self.rows().max(4096 / self.columns) * self.columns
    }

    fn reference<'a>(&self, weight: Option<&'a [f64]>, bias: Option<&'a [f64]>) -> ReferenceNorm<'a> {
        let epsilon = f64::from(self.epsilon);
        ReferenceNorm { columns: self.columns, takes_mean_off: self.layer, epsilon, weight, bias }
    }

    pub(crate) fn norm(&self) -> Norm<'static> {
        let norm = if self.layer { Norm::layer(self.epsilon) } else { Norm::rms(self.epsilon) };
        let norm = norm.with_clusters(self.clusters);
        self.dropout.map_or(norm, |dropout| norm.with_dropout(dropout))
    }

    /// Whether x is an addend as it is.
    fn plain_branch(&self) -> bool {
        !self.rowscale && self.dropout.is_none_or(|dropout| dropout.p() == 0.0)
    }

    /// Factors of so many rows on the device, in storage of NaN, and the numbers, which are those of the first rows.
    fn rowscales(&self, device: &Device, drawn: usize) -> (Tensor, Vec<f64>) {
        let factors = self.draw::<f32>(5, drawn, 1.0, 0.0);
        let line = Lie { offset: 5, ..Lie::default() };
        (line.upload(device, &self.outer, &factors[..self.rows()]), to_f64(&factors))
    }

    pub(crate) fn branch<'a>(&self, rowscale: Option<&'a [f64]>) -> ReferenceBranch<'a> {
        ReferenceBranch { columns: self.columns, dropout: self.dropout, rowscale }
    }

    /// A vector of weights or biases on the device, in storage of NaN, and its numbers.
    fn vector<T: Element>(&self, device: &Device, what: u64, wide: bool) -> (Tensor, Vec<f64>) {
        fn upload<U: Element>(device: &Device, offset: usize, values: &[U]) -> Tensor {
            Lie { offset, ..Lie::default() }.upload(device, &[values.len()], values)
        }
        if wide {
            let values = self.draw::<f32>(what, self.columns, 1.0, 0.0);
            (upload(device, self.weight_offset, &values), to_f64(&values))
        } else {
            let values = self.draw::<T>(what, self.columns, 1.0, 0.0);
            (upload(device, self.weight_offset, &values), to_f64(&values))
        }
    }

    pub(crate) fn forward<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        match self.residual {
            Some(true) => self.forward_with::<T, f32>(device),
            _ => self.forward_with::<T, T>(device),
        }
        .map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    /// Normalises into NaN, compares with the definition, and gives the output.
    fn forward_with<T: Element, R: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let shape = self.shape();
        let (elements, [in_lie, residual_lie, out_lie]) = (self.rows() * self.columns, self.lies);
        let x = self.draw::<T>(0, self.drawn(), self.deviation, self.mean);
        let residual = self.residual.map(|_| self.draw::<R>(1, self.drawn(), self.deviation, 0.0));
        let weight = self.weight.map(|wide| self.vector::<T>(device, 2, wide));
        let bias = self.bias.then(|| self.vector::<T>(device, 3, self.weight.unwrap_or(false)));
        let rowscale = self.rowscale.then(|| self.rowscales(device, self.drawn() / self.columns));
        let x_tensor = in_lie.upload(device, &shape, &x[..elements]);
        let residual_tensor = residual.as_ref().map(|data| residual_lie.upload(device, &shape, &data[..elements]));
        let mut norm = self.norm();
        if let Some((weight, _)) = &weight {
            norm = norm.with_weight(&weight.view());
        }
        if let Some((bias, _)) = &bias {
            norm = norm.with_bias(&bias.view());
        }
        if let Some(residual) = &residual_tensor {
            norm = norm.with_residual(&residual.view());
        }
        if let Some((rowscale, _)) = &rowscale {
            norm = norm.with_rowscale(&rowscale.view());
        }
        if self.zero_centred {
            norm = norm.zero_centred();
        }
        let has_sum = residual.is_some() || !self.plain_branch();
        let mut out = out_lie.poisoned::<T>(device, &shape);
        let mut sum = out_lie.poisoned::<R>(device, &shape);
        let line = Lie { offset: 3, ..Lie::default() };
        let [mut mean, mut rstd] = [0, 1].map(|_| line.poisoned::<f32>(device, &self.outer));
        {
            let mut into = NormOutputViewMut::new(out.view_mut()).with_rstd(rstd.view_mut());
            if has_sum {
                into = into.with_residual_out(sum.view_mut());
            }
            if self.layer {
                into = into.with_mean(mean.view_mut());
            }
            let stream = device.default_stream();
            norm.forward_into(&stream, &x_tensor.view(), &mut into).map_err(|error| error.to_string())?;
            stream.synchronize().map_err(|error| error.to_string())?;
        }
        let (x, residual) = (to_f64(&x), residual.map(|residual| to_f64(&residual)));
        let as_applied =
            |w: &Vec<f64>| w.iter().map(|w| w + f64::from(u8::from(self.zero_centred))).collect::<Vec<f64>>();
        let (weight, bias) = (weight.map(|(_, numbers)| as_applied(&numbers)), bias.map(|(_, numbers)| numbers));
        let reference = self.reference(weight.as_deref(), bias.as_deref());
        let rowscale = rowscale.map(|(_, numbers)| numbers);
        let branch = self.branch(rowscale.as_deref());
        let branched = branch.apply(&x).unwrap();
        let exact = reference.forward(&branched, residual.as_deref()).unwrap();
        // Numbers whose squares f32 does not hold are none for the simple program, which has the same ones times a power of two.
        let largest = branched.iter().zip(&x).map(|(h, x)| (h / x).abs()).filter(|factor| factor.is_finite());
        let unit = self.deviation.max(self.mean.abs()) * largest.fold(1.0, f64::max);
        let shrink = if unit > 1e15 { 2f64.powi(-100) } else { 1.0 };
        let shrunk = |x: &Vec<f64>| x.iter().map(|x| x * shrink).collect::<Vec<f64>>();
        let simple = ReferenceNorm { epsilon: reference.epsilon * shrink * shrink, ..reference };
        let mut rounded = simple
            .forward_rounded(
                &branch.apply_rounded(&shrunk(&x), DType::F32).unwrap(),
                residual.as_ref().map(shrunk).as_deref(),
                [T::DTYPE, R::DTYPE],
            )
            .unwrap();
        for x in rounded.sum.iter_mut().chain(&mut rounded.mean) {
            *x /= shrink;
        }
        let bound = |rounded: &[f64], exact: &[f64], unit: f64| tolerance(max_abs_difference(rounded, exact) / unit);
        let check = |name: &str, found: &[f64], exact: &[f64], rounded: &[f64], unit: f64| {
            let error = max_abs_difference(found, &exact[..found.len()]) / unit;
            let bound = bound(rounded, exact, unit);
            if error <= bound { Ok(()) } else { Err(format!("{name} is off by {error:e}, {bound:e} is accepted")) }
        };
        let found = out_lie.read::<T>("the output", &shape, &out)?;
        check("out", &found, &exact.out, &rounded.out, 1.0)?;
        if has_sum {
            check("residual_out", &out_lie.read::<R>("the sum", &shape, &sum)?, &exact.sum, &rounded.sum, unit)?;
        }
        if self.layer {
            check("mean", &line.read::<f32>("the means", &self.outer, &mean)?, &exact.mean, &rounded.mean, unit)?;
        }
        // Relative: deviations differ by orders of magnitude.
        let found_rstd = line.read::<f32>("the deviations", &self.outer, &rstd)?;
        for (found, exact) in found_rstd.iter().zip(&exact.rstd) {
            let error = (found / exact - 1.0).abs();
            // What is no number is not right either.
            if !error.le(&1e-4) {
                return Err(format!("rstd is {found:e}, {exact:e} is right"));
            }
        }
        Ok(found)
    }

    fn backward<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        match self.residual {
            Some(true) => self.backward_with::<T, f32>(device),
            _ => self.backward_with::<T, T>(device),
        }
        .map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    /// Gradients into NaN, for rows of `H` that were normalised; compares with the definition, and gives them all.
    fn backward_with<T: Element, H: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let shape = self.shape();
        let (elements, [in_lie, residual_lie, out_lie]) = (self.rows() * self.columns, self.lies);
        let h = self.draw::<H>(0, elements, self.deviation, self.mean);
        let dout = self.draw::<T>(1, elements, 1.0, 0.0);
        let dh = self.residual.map(|_| self.draw::<H>(4, elements, 1.0, 0.0));
        let weight = self.weight.map(|wide| self.vector::<T>(device, 2, wide));
        let bias = self.bias.then(|| self.vector::<T>(device, 3, self.weight.unwrap_or(false)));
        let wide = self.weight.unwrap_or(false);
        let weight_dtype = if wide { DType::F32 } else { T::DTYPE };
        let h_tensor = in_lie.upload(device, &shape, &h);
        let dout_tensor = residual_lie.upload(device, &shape, &dout);
        let dh_tensor = dh.as_ref().map(|data| in_lie.upload(device, &shape, data));
        let rowscale = self.rowscale.then(|| self.rowscales(device, self.rows()));
        let statistics = Case { dropout: None, ..self.clone() }
            .norm()
            .with_statistics(true)
            .forward(&h_tensor.view())
            .map_err(|error| error.to_string())?;
        let rstd = statistics.rstd.as_ref().expect("with statistics").view();
        let mut saved = NormSaved::new(&h_tensor.view(), &rstd);
        if let Some(mean) = &statistics.mean {
            saved = saved.with_mean(&mean.view());
        }
        let mut norm = self.norm();
        if let Some((weight, _)) = &weight {
            norm = norm.with_weight(&weight.view());
        }
        if let Some((bias, _)) = &bias {
            norm = norm.with_bias(&bias.view());
        }
        if let Some((rowscale, _)) = &rowscale {
            norm = norm.with_rowscale(&rowscale.view());
        }
        if self.zero_centred {
            norm = norm.zero_centred();
        }
        let line = Lie { offset: self.weight_offset, ..Lie::default() };
        let mut dx = out_lie.poisoned::<T>(device, &shape);
        let mut dresidual = out_lie.poisoned::<H>(device, &shape);
        let sums = || match wide {
            true => line.poisoned::<f32>(device, &[self.columns]),
            false => line.poisoned::<T>(device, &[self.columns]),
        };
        let [mut dweight, mut dbias] = [sums(), sums()];
        {
            let mut into = NormGradientsViewMut::new(dx.view_mut());
            if self.residual.is_some() {
                into = into.with_dresidual(dresidual.view_mut());
            }
            if weight.is_some() {
                into = into.with_dweight(dweight.view_mut());
            }
            if bias.is_some() {
                into = into.with_dbias(dbias.view_mut());
            }
            let stream = device.default_stream();
            let upstream = dh_tensor.as_ref().map(Tensor::view);
            norm.backward_into(&stream, &saved, &dout_tensor.view(), upstream.as_ref(), &mut into)
                .map_err(|error| error.to_string())?;
            stream.synchronize().map_err(|error| error.to_string())?;
        }
        let (h, dout, dh) = (to_f64(&h), to_f64(&dout), dh.map(|dh| to_f64(&dh)));
        let as_applied =
            |w: &Vec<f64>| w.iter().map(|w| w + f64::from(u8::from(self.zero_centred))).collect::<Vec<f64>>();
        let applied = weight.as_ref().map(|(_, numbers)| as_applied(numbers));
        let reference = self.reference(applied.as_deref(), None);
        let exact = reference.backward(&h, &dout, dh.as_deref()).unwrap();
        let rounded = reference.backward_rounded(&h, &dout, dh.as_deref(), [DType::F32, weight_dtype]).unwrap();
        let rowscale = rowscale.map(|(_, numbers)| numbers);
        let branch = self.branch(rowscale.as_deref());
        let (exact_dx, rounded_dx) =
            (branch.apply(&exact.dx).unwrap(), branch.apply_rounded(&rounded.dx, T::DTYPE).unwrap());
        let plain = ReferenceBranch { dropout: None, rowscale: None, ..branch };
        let rounded_dresidual = plain.apply_rounded(&rounded.dx, H::DTYPE).unwrap();
        let check = |name: &str, found: &[f64], exact: &[f64], rounded: &[f64]| {
            let (error, bound) = (max_abs_difference(found, exact), tolerance(max_abs_difference(rounded, exact)));
            if error <= bound { Ok(()) } else { Err(format!("{name} is off by {error:e}, {bound:e} is accepted")) }
        };
        let mut all = out_lie.read::<T>("dx", &shape, &dx)?;
        check("dx", &all, &exact_dx, &rounded_dx)?;
        if self.residual.is_some() {
            let found = out_lie.read::<H>("dresidual", &shape, &dresidual)?;
            check("dresidual", &found, &exact.dx, &rounded_dresidual)?;
            all.extend(found);
        }
        let read = |name: &str, tensor: &Tensor| match wide {
            true => line.read::<f32>(name, &[self.columns], tensor),
            false => line.read::<T>(name, &[self.columns], tensor),
        };
        for (given, name, tensor, exact, rounded) in [
            (weight.is_some(), "dweight", &dweight, &exact.dweight, &rounded.dweight),
            (bias.is_some(), "dbias", &dbias, &exact.dbias, &rounded.dbias),
        ] {
            if given {
                let found = read(name, tensor)?;
                check(name, &found, exact, rounded)?;
                all.extend(found);
            }
        }
        Ok(all)
    }
}

/// Every row of the list is what runs at its edges, with one row of the tensor less, and more, than a thread block has.
fn every_row_at_its_edges<T: Element>() {
    let shared = device::shared();
    let device = &shared.device;
    let mut visited = 0;
    for clusters in [false, true] {
        let rows = VARIANTS
            .iter()
            .filter(|row| row.tile.dtype == T::DTYPE && matches!(row.pass, Pass::Forward | Pass::Backward));
        // On a GPU without clusters there is nothing else to visit.
        for row in rows.filter(|row| device.info().runs(row.entry.arch) && clusters == row.tile.in_clusters()) {
            let vector = 16 / T::DTYPE.bytes();
            let most = row.tile.columns() as usize;
            let columns = match row.tile.sharing {
                Sharing::Alone => vec![most - vector, most - 1, most],
                // A little more than the rows before it take, and as much as there can be.
                Sharing::Cluster | Sharing::Kept => {
                    let before = VARIANTS.iter().take_while(|other| *other != row);
                    let before = before.filter(|other| other.pass == row.pass && other.tile.dtype == row.tile.dtype);
                    let least =
                        before.map(|other| other.tile.most_columns()).max().expect("rows without clusters") as usize;
                    vec![least + vector, least + 3, row.tile.most_columns() as usize]
                }
                Sharing::Again => {
                    let first = VARIANTS.iter().filter(|other| {
                        other.pass == row.pass
                            && other.tile.dtype == row.tile.dtype
                            && other.tile.sharing == Sharing::Alone
                    });
                    let first = first.map(|other| other.tile.columns()).max().expect("rows that are held") as usize;
                    vec![first + vector, first + 1]
                }
            };
            for (i, &columns) in columns.iter().enumerate() {
                let at_once = row.tile.block_rows() as usize;
                let rows = if i == 0 { at_once + 1 } else { (at_once - 1).max(1) };
                for layer in [false, true] {
                    let residual = [None, Some(false), Some(true)][(i + usize::from(layer)) % 3];
                    // Whatever the residual is, with and without what x is multiplied with.
                    let dropout = (i % 2 == usize::from(layer)).then(|| Dropout::new(0.3, 7 + i as u64, u64::MAX - 2));
                    let rowscale = i == 1;
                    let seed = i as u64;
                    let case = Case { clusters, residual, dropout, rowscale, seed, ..Case::new(rows, columns, layer) };
                    let run = match row.pass {
                        Pass::Forward => case.forward::<T>(device),
                        _ => case.backward::<T>(device),
                    };
                    run.unwrap_or_else(|wrong| panic!("{}: {wrong}", row.entry.symbol));
                    let x = Tensor::zeros(device, T::DTYPE, [1, columns], Layout::RowMajor).unwrap();
                    let statistics = Tensor::zeros(device, DType::F32, [1], Layout::RowMajor).unwrap();
                    let saved = NormSaved::new(&x.view(), &statistics.view());
                    let saved = if layer { saved.with_mean(&statistics.view()) } else { saved };
                    let plan = match row.pass {
                        Pass::Forward => case.norm().with_statistics(true).plan(&x.view()),
                        _ => case.norm().plan_backward(&saved, &x.view(), None),
                    };
                    let plan = plan.expect("a legal problem");
                    if row.tile.sharing != Sharing::Alone || i == 2 {
                        assert_eq!(plan.symbols()[0], row.entry.symbol, "{columns} columns: {plan}");
                    }
                }
                visited += 1;
            }
        }
    }
    assert!(visited >= 36, "{visited}");
}

for_each_dtype!(every_row_at_its_edges);

pub(crate) fn lie() -> impl Strategy<Value = Lie> {
    let apart =
        (0usize..20, 0usize..20, any::<bool>()).prop_map(|(offset, gap, reversed)| Lie { offset, gap, reversed });
    let whole = (0usize..3, 0usize..3, any::<bool>()).prop_map(|(offset, gap, reversed)| Lie {
        offset: 8 * offset,
        gap: 8 * gap,
        reversed,
    });
    prop_oneof![2 => Just(Lie::default()), 2 => whole, 1 => apart]
}

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
    let options = (any::<bool>(), any::<Option<bool>>(), any::<bool>(), any::<Option<bool>>(), any::<bool>());
    let numbers = (
        prop::sample::select(vec![1e-3, 1.0, 50.0]),
        prop::sample::select(vec![0.0, 0.0, 3.0]),
        prop::sample::select(vec![1e-5f32, 1e-3, 1.0]),
    );
    let dropped = (prop_oneof![1 => Just(0.1f32), 2 => 0.0f32..0.9], any::<u64>(), any::<u64>());
    let branch = (prop::option::of(dropped), prop::bool::weighted(0.25));
    (outer, columns, options, [lie(), lie(), lie()], 0usize..9, (numbers, branch), any::<u64>()).prop_map(
        |(
            outer,
            columns,
            (layer, weight, bias, residual, zero),
            lies,
            weight_offset,
            ((deviation, mean, epsilon), (dropped, rowscale)),
            seed,
        )| {
            let dropout = dropped.map(|(p, seed, offset)| Dropout::new(p, seed, offset));
            let zero_centred = zero && weight.is_some();
            let clusters = true;
            let weight_offset = weight_offset * if seed % 2 == 0 { 8 } else { 1 };
            Case {
                outer,
                columns,
                layer,
                weight,
                bias,
                residual,
                dropout,
                rowscale,
                zero_centred,
                clusters,
                lies,
                weight_offset,
                deviation,
                mean,
                epsilon,
                seed,
            }
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
    // What a mean leaves of a small deviation is a matter of the forward pass.
    let cases = cases().prop_map(|case| Case { deviation: 1.0, mean: 0.0, ..case });
    draws(file!(), device::cases(), 256).check(&cases, |case| case.backward::<T>(&shared.device).map(|_| ()));
}

for_each_dtype!(random_gradients_agree_with_the_definition);

/// Gradients of a training step: what forward saved, whatever type the residual has.
#[test]
fn what_forward_saves_is_what_gradients_need() {
    let device = &device::shared().device;
    let (rows, columns) = (5, 48);
    let case = Case::new(rows, columns, true);
    let tensor = |what| {
        let data: Vec<bf16> = case.draw(what, rows * columns, 1.0, 0.0);
        Tensor::from_slice(device, &data, [rows, columns], Layout::RowMajor).unwrap()
    };
    let (x, dout) = (tensor(0), tensor(1));
    let stream: Vec<f32> = case.draw(2, rows * columns, 1.0, 0.0);
    let stream = Tensor::from_slice(device, &stream, [rows, columns], Layout::RowMajor).unwrap();
    let weight = Tensor::from_slice(device, &vec![1.5f32; columns], [columns], Layout::RowMajor).unwrap();
    let norm = Norm::layer(1e-5).with_weight(&weight.view()).with_bias(&weight.view()).with_residual(&stream.view());
    assert!(norm.forward(&x.view()).unwrap().saved(&x.view()).is_none());
    let normed = norm.with_statistics(true).forward(&x.view()).unwrap();
    let sum = normed.residual_out.as_ref().unwrap();
    assert_eq!((sum.dtype(), normed.out.dtype()), (DType::F32, DType::Bf16));
    let gradients = norm.backward(&normed.saved(&x.view()).unwrap(), &dout.view(), Some(&stream.view())).unwrap();
    // Both addends of one sum have one gradient.
    let (dx, dresidual) =
        (gradients.dx.to_vec::<bf16>().unwrap(), gradients.dresidual.unwrap().to_vec::<f32>().unwrap());
    assert!(dx.iter().zip(&dresidual).all(|(a, &b)| *a == bf16::from_f32(b)));
    let [dweight, dbias] = [gradients.dweight, gradients.dbias].map(|sum| sum.unwrap());
    assert_eq!([dweight.dtype(), dbias.dtype()], [DType::F32; 2]);
    // Without a residual of its own there is none to give a gradient of, and one tensor is enough in one type.
    let plain = Norm::rms(1e-5).with_statistics(true);
    let normed = plain.forward(&x.view()).unwrap();
    let gradients = plain.backward(&normed.saved(&x.view()).unwrap(), &dout.view(), None).unwrap();
    assert!(gradients.dresidual.is_none() && gradients.dweight.is_none() && gradients.dbias.is_none());
    assert_eq!(gradients.plan.workspace_bytes(), 0);
}

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &device::shared().device;
    let x = Tensor::zeros(device, DType::Bf16, [4, 10, 96], Layout::RowMajor).unwrap();
    let weight = Tensor::zeros(device, DType::F32, [96], Layout::RowMajor).unwrap();
    let norm = Norm::rms(1e-6).with_weight(&weight.view()).with_statistics(true);
    let plan = norm.plan(&x.view()).unwrap();
    // 32 rows a thread block; x and out, weights and one statistic.
    assert_eq!((plan.symbols(), plan.steps()[0].ctas, plan.workspace_bytes()), (vec!["norm_bf16_4x4"], 2, 0));
    assert_eq!((plan.name(), plan.bytes()), ("rmsnorm", 2 * 3840 * 2 + 96 * 4 + 40 * 4));
    assert!(
        plan.to_string().starts_with("rmsnorm forward: a row is read once") && plan.reason().contains("registers"),
        "{plan}"
    );
    device.prepare(&plan).unwrap();
    let normed = norm.forward(&x.view()).unwrap();
    let plan = norm.plan_backward(&normed.saved(&x.view()).unwrap(), &x.view(), None).unwrap();
    assert_eq!(plan.symbols(), ["norm_backward_bf16_8x2", "norm_parts_f32"], "{plan}");
    assert_eq!((plan.steps()[0].ctas, plan.workspace_bytes()), (3, 3 * 96 * 4));
    // Nothing to do, and nothing that the gradients of weights add up.
    let none = Tensor::zeros(device, DType::Bf16, [0, 96], Layout::RowMajor).unwrap();
    let normed = norm.forward(&none.view()).unwrap();
    assert_eq!((normed.plan.steps()[0].ctas, normed.out.shape()[..].to_vec()), (0, vec![0, 96]));
    let gradients = norm.backward(&normed.saved(&none.view()).unwrap(), &none.view(), None).unwrap();
    assert_eq!(gradients.dweight.unwrap().to_vec::<f32>().unwrap(), [0.0; 96]);
}

/// Whatever the order of thread blocks and warps is.
#[test]
fn every_interleaving_has_the_same_bits() {
    if device::is_gpu() {
        return;
    }
    let cases = [
        Case { residual: Some(true), ..Case::new(70, 100, true) },
        Case::new(3, 1000, false),
        Case { residual: Some(false), ..Case::new(3, 3000, true) },
        Case::new(5, 17_000, true),
        Case { clusters: false, ..Case::new(2, 33_000, true) },
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
