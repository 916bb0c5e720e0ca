//! Embedding tables, rows and gradients, against their definition. What they refuse is in `embedding_errors`, what of their kernels may not go in
//! `embedding_mutants`.

use crate::norms::lie;
use crate::support::case::to_f64;
use crate::support::device;
use crate::support::draws::draws;
use crate::support::lie::Lie;
use crate::support::rule::for_each_dtype;
use ferroflash::operators::{Embedding, Operation};
use ferroflash::reference::{ReferenceEmbedding, max_abs_difference, tolerance};
use ferroflash::{DType, Device, Element, EmulatorConfig, Indices, Layout, Tensor, bf16, f16};
use kernel_spec::families::embedding::{Pass, RUN, VARIANTS};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// Which rows tokens name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Named {
    /// Any of the table, and some numbers that name none.
    Any,
    /// The first ones most often, as words are.
    FewOften,
    /// One, all of them.
    One,
}

#[derive(Clone, Debug)]
struct Case {
    /// Axes of tokens.
    outer: Vec<usize>,
    vocabulary: usize,
    columns: usize,
    named: Named,
    scale: f32,
    padding: Option<usize>,
    /// A gradient of f32.
    wide: bool,
    accumulate: bool,
    /// How the table and its gradient, and the output and its gradient lie.
    lies: [Lie; 2],
    seed: u64,
}

/// Elements of a row of the table that the error of the precision is taken over.
const PRECISION_ELEMENTS: usize = 4096;

impl Case {
    fn new(tokens: usize, vocabulary: usize, columns: usize) -> Case {
        Case {
            outer: vec![tokens],
            vocabulary,
            columns,
            named: Named::FewOften,
            scale: 1.0,
            padding: None,
            wide: false,
            accumulate: false,
            lies: [Lie::default(); 2],
            seed: 0,
        }
    }

    fn tokens(&self) -> usize {
        self.outer.iter().product()
    }

    fn shape(&self) -> Vec<usize> {
        self.outer.iter().copied().chain([self.columns]).collect()
    }

    fn draw<T: Element>(&self, what: u64, elements: usize) -> Vec<T> {
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_mul(16) + what);
        (0..elements).map(|_| T::from_f64(rng.sample::<f64, _>(StandardNormal))).collect()
    }

    fn ids(&self) -> Vec<i32> {
        let mut rng = SmallRng::seed_from_u64(self.seed.wrapping_mul(16) + 9);
        let vocabulary = self.vocabulary as i32;
        let one = rng.random_range(0..vocabulary);
        let mut id = || match self.named {
            Named::Any => match rng.random_range(0..20) {
                0 => [-1, i32::MIN, i32::MAX, vocabulary][rng.random_range(0..4)],
                _ => rng.random_range(0..vocabulary),
            },
            Named::FewOften => {
                let share: f64 = rng.random();
                (f64::from(vocabulary) * share.powi(4)) as i32
            }
            Named::One => one,
        };
        (0..self.tokens()).map(|_| id()).collect()
    }

    fn reference(&self) -> ReferenceEmbedding {
        let Case { vocabulary, columns, scale, padding, .. } = *self;
        ReferenceEmbedding { vocabulary, columns, scale: scale.into(), padding }
    }

    fn run<T: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let forward = self.forward::<T>(device);
        let backward = forward
            .and_then(|()| if self.wide { self.backward::<T, f32>(device) } else { self.backward::<T, T>(device) });
        backward.map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn embedding<'a>(&self, table: &'a Tensor) -> Embedding<'a> {
        Embedding::new(&table.view()).with_scale(self.scale).with_padding(self.padding).with_accumulate(self.accumulate)
    }

    fn forward<T: Element>(&self, device: &Device) -> Result<(), String> {
        let [table_lie, out_lie] = self.lies;
        let (ids, data) = (self.ids(), self.draw::<T>(0, self.vocabulary * self.columns));
        let table = table_lie.upload(device, &[self.vocabulary, self.columns], &data);
        let mut out = out_lie.poisoned::<T>(device, &self.shape());
        let on_device = Indices::from_slice(device, &ids).unwrap();
        let stream = device.default_stream();
        self.embedding(&table)
            .forward_into(&stream, &on_device.view(), &mut out.view_mut())
            .and_then(|()| stream.synchronize())
            .map_err(|error| error.to_string())?;
        let found = out_lie.read::<T>("the output", &self.shape(), &out)?;
        // One product, rounded once: there is nothing to differ in.
        let expected = self.reference().forward_rounded(&to_f64(&data), &ids, T::DTYPE).unwrap();
        if found == expected { Ok(()) } else { Err("the output is not the rows of the table".to_owned()) }
    }

    /// The gradient into NaN, or onto what is there; compares with the definition, and gives it.
    fn backward<T: Element, G: Element>(&self, device: &Device) -> Result<Vec<f64>, String> {
        let [table_lie, out_lie] = self.lies;
        let (ids, shape) = (self.ids(), [self.vocabulary, self.columns]);
        let dout = self.draw::<T>(1, self.tokens() * self.columns);
        let before = self.accumulate.then(|| self.draw::<G>(2, self.vocabulary * self.columns));
        let table = Tensor::zeros(device, T::DTYPE, shape, Layout::RowMajor).unwrap();
        let dout_tensor = out_lie.upload(device, &self.shape(), &dout);
        let mut dtable = match &before {
            Some(before) => table_lie.upload(device, &shape, before),
            None => table_lie.poisoned::<G>(device, &shape),
        };
        let on_device = Indices::from_slice(device, &ids).unwrap();
        let stream = device.default_stream();
        self.embedding(&table)
            .backward_into(&stream, &on_device.view(), &dout_tensor.view(), &mut dtable.view_mut())
            .and_then(|()| stream.synchronize())
            .map_err(|error| error.to_string())?;
        let found = table_lie.read::<G>("the gradient", &shape, &dtable)?;
        let (dout, before) = (to_f64(&dout), before.map(|before| to_f64(&before)));
        let exact = self.reference().backward(&ids, &dout, before.as_deref()).unwrap();
        let rounded = self.reference().backward_rounded(&ids, &dout, before.as_deref(), G::DTYPE).unwrap();
        let mut precision = max_abs_difference(&rounded, &exact);
        // Of few elements the largest error is a matter of luck, and one row may have most of the tokens: more are drawn, of the same tokens.
        let draws = PRECISION_ELEMENTS.div_ceil(self.columns);
        for more in 0..draws.min((1 << 22) / (self.columns * self.tokens().max(1))) as u64 {
            let dout = to_f64(&self.draw::<T>(100 + 2 * more, self.tokens() * self.columns));
            let before =
                self.accumulate.then(|| to_f64(&self.draw::<G>(101 + 2 * more, self.vocabulary * self.columns)));
            let exact = self.reference().backward(&ids, &dout, before.as_deref()).unwrap();
            let rounded = self.reference().backward_rounded(&ids, &dout, before.as_deref(), G::DTYPE).unwrap();
            precision = precision.max(max_abs_difference(&rounded, &exact));
        }
        let (error, bound) = (max_abs_difference(&found, &exact), tolerance(precision));
        // What is no number is not right either.
        if !error.le(&bound) {
            return Err(format!("the gradient is off by {error:e}, {bound:e} is accepted"));
        }
        // A row that nobody adds to is exactly what it was.
        let nearest = |&id: &i32| (id.max(0) as usize).min(self.vocabulary - 1);
        let mut is_named = vec![false; self.vocabulary];
        ids.iter().map(nearest).filter(|&row| self.padding != Some(row)).for_each(|row| is_named[row] = true);
        let is_same = |index: &usize| found[*index] == before.as_ref().map_or(0.0, |before| before[*index]);
        match (0..found.len()).filter(|index| !is_named[index / self.columns]).find(|index| !is_same(index)) {
            Some(index) => Err(format!("row {} is named by nobody, and is written", index / self.columns)),
            None => Ok(found),
        }
    }
}

/// Rows of the list at the edges of their tiles, and behind them.
fn every_row_at_its_edges<T: Element>() {
    let shared = device::shared();
    let mut visited = 0;
    for row in VARIANTS.iter().filter(|row| row.tile.dtype == T::DTYPE && matches!(row.pass, Pass::Gather | Pass::Sum))
    {
        let (most, vector) = (row.columns() as usize, 16 / T::DTYPE.bytes());
        for columns in [most - vector, most - 1, most, most + vector, 2 * most + 1] {
            visited += 1;
            let case = Case {
                wide: visited % 2 == 0,
                accumulate: visited % 3 == 0,
                scale: [1.0, 1.25][visited % 2],
                seed: visited as u64,
                ..Case::new(2 * row.tile.block_rows() as usize + 1, 9, columns)
            };
            case.run::<T>(&shared.device).unwrap_or_else(|wrong| panic!("{}: {wrong}", row.entry.symbol));
        }
    }
    assert!(visited >= 20, "{visited}");
}

for_each_dtype!(every_row_at_its_edges);

/// Runs of tokens at their edges, digits of the sort at theirs, and so many tokens that thread blocks share them out.
#[test]
fn runs_digits_and_thread_blocks_at_their_edges() {
    let device = &device::shared().device;
    let run = RUN as usize;
    for tokens in [run - 1, run, run + 1, 2 * run, 3 * run + 5] {
        for named in [Named::One, Named::FewOften] {
            let case = Case { named, seed: tokens as u64, ..Case::new(tokens, 5, 24) };
            case.run::<bf16>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
            // A row of padding has runs too.
            let case = Case { padding: Some(0), accumulate: true, wide: true, ..case };
            case.run::<bf16>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
    for vocabulary in [1, 2, 255, 256, 257, 65_535, 65_536, 65_537] {
        let case = Case { named: Named::Any, seed: 1, ..Case::new(60, vocabulary, 2) };
        case.run::<f32>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    for (tokens, vocabulary) in [(511, 70), (512, 70), (513, 70), (1500, 300), (2100, 3)] {
        let case = Case { seed: 2, ..Case::new(tokens, vocabulary, 8) };
        case.run::<f16>(device).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let columns = prop_oneof![2 => 1usize..=40, 2 => (1usize..=20).prop_map(|n| 8 * n), 1 => 1usize..=2100];
    let outer = prop_oneof![
        (0usize..=300).prop_map(|tokens| vec![tokens]),
        (1usize..=4, 1usize..=60).prop_map(|(a, b)| vec![a, b]),
        (1usize..=3, 1usize..=5, 1usize..=9).prop_map(|(a, b, c)| vec![a, b, c]),
    ];
    let vocabulary = prop_oneof![1usize..=20, 200usize..=600];
    let named = prop::sample::select(vec![Named::Any, Named::FewOften, Named::FewOften, Named::One]);
    let options = (any::<bool>(), any::<bool>(), any::<bool>(), prop::sample::select(vec![1.0f32, -0.5, 22.6, 0.0]));
    (outer, vocabulary, columns, named, options, [lie(), lie()], any::<u64>()).prop_map(
        |(outer, vocabulary, columns, named, (has_padding, wide, accumulate, scale), lies, seed)| {
            // Long rows of few tokens: the emulator has minutes, not hours.
            let vocabulary = if columns > 200 { vocabulary.min(30) } else { vocabulary };
            let padding = has_padding.then_some(seed as usize % vocabulary);
            Case { outer, vocabulary, columns, named, scale, padding, wide, accumulate, lies, seed }
        },
    )
}

fn random_tables_agree_with_the_definition<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 256).check(&cases(), |case| case.run::<T>(&shared.device).map(|_| ()));
}

for_each_dtype!(random_tables_agree_with_the_definition);

#[test]
fn plans_say_what_is_launched_and_why() {
    let device = &device::shared().device;
    let table = Tensor::zeros(device, DType::Bf16, [1000, 64], Layout::RowMajor).unwrap();
    let ids = Indices::from_slice(device, &[0; 300]).unwrap();
    let embedding = Embedding::new(&table.view());
    let plan = embedding.plan(&ids.view()).unwrap();
    assert_eq!((plan.symbols(), plan.steps()[0].ctas, plan.workspace_bytes()), (vec!["embedding_bf16_16x1"], 38, 0));
    assert_eq!((plan.name(), plan.bytes()), ("embedding", 2 * 300 * 128 + 300 * 4));
    let rows = embedding.forward(&ids.view()).unwrap().out;
    assert_eq!(rows.shape()[..], [300, 64]);
    let plan = embedding.plan_backward(&ids.view(), &rows.view()).unwrap();
    // Ten bits are two digits; two whole runs of the tokens.
    let sort = ["embedding_count", "embedding_place"].repeat(2);
    let sums = ["embedding_bounds", "embedding_runs_bf16_16x1", "embedding_sum_bf16_16x1"];
    assert_eq!(plan.symbols(), [&sort[..], &sums].concat(), "{plan}");
    let ctas: Vec<u32> = plan.steps().iter().map(|step| step.ctas).collect();
    assert_eq!(ctas, [1, 1, 1, 1, 4, 1, 125]);
    assert_eq!(plan.workspace_bytes(), 4 * (4 * 300 + 256 + 1001 + 2 * 64));
    assert_eq!(plan.bytes(), 300 * 128 + 1000 * 128 + 300 * 4);
    assert!(plan.to_string().contains("sorted by the row that they name"), "{plan}");
    device.prepare(&plan).unwrap();
    // Without tokens the gradient is 0.
    let none = Indices::from_slice(device, &[]).unwrap();
    let nothing = embedding.forward(&none.view()).unwrap();
    assert_eq!((nothing.out.shape()[..].to_vec(), nothing.plan.steps()[0].ctas), (vec![0, 64], 0));
    let dtable = embedding.backward(&none.view(), &nothing.out.view()).unwrap().dtable;
    assert!(dtable.to_vec::<bf16>().unwrap().iter().all(|x| x.to_f32() == 0.0));
}

/// Whatever the order of thread blocks and warps is.
#[test]
fn every_interleaving_has_the_same_bits() {
    if device::is_gpu() {
        return;
    }
    let cases = [
        Case::new(1100, 300, 8),
        Case { named: Named::One, ..Case::new(400, 3, 40) },
        Case { accumulate: true, wide: true, ..Case::new(40, 9, 1500) },
    ];
    for case in cases {
        let run = |seed: u64| {
            let device =
                Device::emulator_with(EmulatorConfig::default().with_seed(seed)).expect("the emulator is built in");
            case.run::<bf16>(&device).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"))
        };
        let first = run(0);
        assert!((1..device::seeds(4).into()).all(|seed| run(seed) == first), "{case:?}");
    }
}
