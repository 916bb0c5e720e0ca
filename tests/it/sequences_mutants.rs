//! What `mutants` does to the kernels of uniform sequences, done to those of packed and cached ones: every wait and barrier that is taken out
//! is reported, or the result has other bits; and the seed changes nothing.

use crate::mutants::{
    DTYPE, FIRST_QUERIES, LAST_VALUES, NEGATED_QUERIES, NOTES_CONVERGE, Needless, data, planner, unexcused,
};
use crate::support::device;
use crate::support::edits::{Edit, Mutant, mutants};
use ferroflash::{Attention, Mask, Operand, Plan, Problem, QueryRows, Sequences, Splits, Step, bf16};
use kernel_spec::families::sequences;
use kernel_spec::{FeatureSet, Pass, Variant};
use ptx_emu::{EmuError, Emulator, EmulatorOptions, Launch, Module};
use std::collections::BTreeMap;
use std::time::Duration;

const HEAD_DIM: usize = 64;
const Q_HEADS: usize = 2;
const KV_HEADS: usize = 1;

/// A call with two query heads over one of keys.
#[derive(Clone, Copy, Debug)]
struct Call {
    /// First row of each sequence, and the end of the last, of queries and of keys. The same number of rows where keys are in pages.
    q_starts: &'static [i32],
    kv_starts: &'static [i32],
    /// Rows of a page, of which each sequence has those that its rows need.
    page_rows: Option<usize>,
    mask: Mask,
    scale: f32,
    splits: u32,
    /// The last row of all has scores that f32 does not carry: it is computed again, and others of its tile are not.
    has_large_row: bool,
}

/// Packed and causal, in as many splits.
const fn call(q_starts: &'static [i32], kv_starts: &'static [i32], splits: u32) -> Call {
    Call { q_starts, kv_starts, page_rows: None, mask: Mask::Causal, scale: 0.125, splits, has_large_row: false }
}

/// Scores that f32 does not carry: every row is computed again. The negative factor makes the kernels change the queries.
const MENDED: Call = Call { scale: -1e6, ..call(&[0, 3, 5], &[0, 20, 90], 1) };

/// One row of a tile is computed again, whose warp is not the first.
const PARTLY_MENDED: Call = Call { has_large_row: true, ..call(&[0, 3, 5], &[0, 20, 90], 1) };

/// A window of pages: blocks at both of its ends have elements that are hidden.
const WINDOW: Mask = Mask::Window { left: Some(200), right: Some(0) };
const PAGES: Call = Call { page_rows: Some(16), mask: WINDOW, ..call(&[0, 8], &[0, 300], 1) };

/// Every warp has more tiles than slots, and the last has two that are masked; one sequence has fewer keys than there are warps, one has
/// none.
const DECODE_CALLS: [Call; 5] = [
    call(&[0, 8, 9, 10], &[0, 420, 440, 440], 1),
    Call { scale: -0.125, ..call(&[0, 1, 9], &[0, 70, 500], 3) },
    PAGES,
    MENDED,
    PARTLY_MENDED,
];

/// Twice as many warps, in two thread blocks and more.
const CLUSTER_CALLS: [Call; 5] = [
    call(&[0, 8, 9], &[0, 1108, 1118], 2),
    Call { scale: -0.125, ..call(&[0, 1, 9], &[0, 1, 300], 3) },
    Call { splits: 2, ..PAGES },
    Call { splits: 2, ..MENDED },
    Call { splits: 2, ..PARTLY_MENDED },
];

/// Tiles of 64 rows and keys in two slots.
const PREFILL_CALLS: [Call; 5] = [
    call(&[0, 70, 72, 73], &[0, 200, 203, 203], 1),
    Call { scale: -0.125, ..call(&[0, 40, 60], &[0, 20, 300], 3) },
    Call { q_starts: &[0, 70], ..PAGES },
    MENDED,
    PARTLY_MENDED,
];

/// Tiles of 128 rows and keys, on one thread block: every buffer is passed several times, tiles have one block of keys and several, some
/// none. One is split until splits have no keys. The negative scale makes the kernel change the queries.
const SPLIT_CALLS: [Call; 6] = [
    call(&[0, 200, 203, 204], &[0, 1300, 1303, 1303], 2),
    Call { scale: -0.125, mask: Mask::Full, ..call(&[0, 70, 200], &[0, 520, 540], 3) },
    Call { page_rows: Some(16), ..call(&[0, 130], &[0, 1100], 2) },
    Call { q_starts: &[0, 130], splits: 2, ..PAGES },
    call(&[0, 300], &[0, 3], 1),
    Call { splits: 2, ..MENDED },
];

/// A pass with its calls.
struct Subject {
    pass: Pass,
    /// The pass whose kernel is edited: the same, or the merge behind it.
    edited: Pass,
    calls: &'static [Call],
    /// Seeds that a mutant is tried under.
    seeds: u64,
    /// Fewer broken copies mean that the edits no longer find what they look for.
    least_mutants: usize,
    /// Edits that break nothing.
    needless: &'static [Needless],
}

const DECODE: Subject = Subject {
    pass: Pass::Decode,
    edited: Pass::Decode,
    calls: &DECODE_CALLS,
    seeds: 8,
    least_mutants: 40,
    needless: &[
        (
            Edit::NoCopyWait,
            2,
            "behind the loop and before the output takes the queries' place: the groups that are open are empty",
        ),
        (
            Edit::LateCopyWait,
            3,
            "the same two, and before queries are negated: their group is the oldest of six, and all but two may be on their way",
        ),
        (
            Edit::NoBarrier,
            1,
            "before the output takes the queries' place: nobody reads them behind the loop, where there is a barrier",
        ),
    ],
};
/// The output leaves through no tile.
const CLUSTER: Subject = Subject {
    pass: Pass::ClusterDecode,
    edited: Pass::ClusterDecode,
    calls: &CLUSTER_CALLS,
    least_mutants: 40,
    needless: &[(Edit::NoCopyWait, 1, "behind the loop, as in decode"), (Edit::LateCopyWait, 2, "as in decode")],
    ..DECODE
};
const PREFILL: Subject = Subject {
    pass: Pass::Prefill,
    edited: Pass::Prefill,
    calls: &PREFILL_CALLS,
    least_mutants: 20,
    needless: &[],
    ..DECODE
};
/// Without mending, which the merge does.
const SPLIT_V3: Subject = Subject {
    pass: Pass::SplitV3,
    edited: Pass::SplitV3,
    calls: &SPLIT_CALLS,
    seeds: 8,
    least_mutants: 50,
    needless: &[LAST_VALUES, NEGATED_QUERIES, FIRST_QUERIES, NOTES_CONVERGE],
};
/// Rows that are computed again where their splits are put together.
const MERGE: Subject =
    Subject { edited: Pass::Merge, calls: &[Call { splits: 3, ..MENDED }], least_mutants: 1, needless: &[], ..DECODE };

impl Subject {
    fn row(&self) -> &'static Variant {
        Subject::find(self.pass)
    }

    fn find(pass: Pass) -> &'static Variant {
        sequences::find(pass, DTYPE, HEAD_DIM as u32, 0, FeatureSet::NONE).expect("a row of the list")
    }

    fn launches(&self) -> Vec<Planned> {
        self.calls.iter().map(|call| Planned::of(*call, self.row())).collect()
    }
}

/// A call with its plan.
struct Planned {
    call: Call,
    plan: Plan,
}

impl Planned {
    fn of(call: Call, row: &'static Variant) -> Planned {
        let Call { q_starts, kv_starts, page_rows, mask, scale, splits, .. } = call;
        let [q_rows, kv_rows] = [q_starts, kv_starts].map(|starts| starts[starts.len() - 1] as usize);
        let batch = q_starts.len() - 1;
        let sequences = match page_rows {
            None => Sequences::Packed { batch, q_rows, kv_rows },
            Some(page_rows) => {
                let width = kv_rows.div_ceil(page_rows);
                Sequences::Paged { batch, q_rows: QueryRows::Packed(q_rows), pages: width, page_rows, width }
            }
        };
        let problem = Problem::new(sequences, Q_HEADS, KV_HEADS, HEAD_DIM, DTYPE);
        let attention = Attention::new().with_kernel(row).with_mask(mask).with_scale(scale).with_lse(true);
        let plan = attention.with_splits(Splits::Count(splits)).plan(&planner(1), problem);
        Planned { call, plan: plan.unwrap_or_else(|error| panic!("{call:?}: {error}")) }
    }

    /// Launches the plan, with edited kernels where there are some; the bytes of output and log-sum-exp.
    fn run(&self, modules: &Modules, edited: &Modules, seed: u64) -> Result<Vec<u8>, EmuError> {
        let options = EmulatorOptions::default()
            .with_seed(seed)
            // A hundred times what the kernels take: a mutant that runs away is none that was reported.
            .with_instruction_limit(Some(100_000_000))
            .with_time_limit(Some(Duration::from_secs(60)));
        let memory = Emulator::new(options);
        let upload = |bytes: &[u8]| -> Result<u64, EmuError> {
            let address = memory.alloc(bytes.len() as u64)?;
            memory.write(address, bytes)?;
            Ok(address)
        };
        let Call { q_starts, kv_starts, page_rows, has_large_row, .. } = self.call;
        let [tokens, keys] = [q_starts, kv_starts].map(|starts| starts[starts.len() - 1] as usize);
        // Whole pages.
        let rows = page_rows.map_or(keys, |rows| keys.next_multiple_of(rows));
        let (q, kv) = (tokens * Q_HEADS * HEAD_DIM, rows * KV_HEADS * HEAD_DIM);
        let sizes = [2 * q, 4 * tokens * Q_HEADS];
        let out = memory.alloc(sizes[0] as u64)?;
        let lse = memory.alloc(sizes[1] as u64)?;
        // What no sequence writes is there to be read.
        memory.write(out, &vec![0; sizes[0]])?;
        memory.write(lse, &vec![0; sizes[1]])?;
        let mut q_data = data(q, 1);
        if has_large_row {
            let row = q_data.len() - 2 * Q_HEADS * HEAD_DIM;
            for x in q_data[row..].as_chunks_mut().0 {
                *x = bf16::from_f32(1e20 * bf16::from_le_bytes(*x).to_f32()).to_le_bytes();
            }
        }
        let pages: Vec<i32> = page_rows.map_or(Vec::new(), |page| (0..(rows / page) as i32).rev().collect());
        let lengths: Vec<i32> = kv_starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let operands = [
            (Operand::Q, upload(&q_data)?),
            (Operand::K, upload(&data(kv, 2))?),
            (Operand::V, upload(&data(kv, 3))?),
            (Operand::Out, out),
            (Operand::Lse, lse),
            (Operand::QStarts, upload(bytemuck::cast_slice(q_starts))?),
            (Operand::KvStarts, upload(bytemuck::cast_slice(kv_starts))?),
            (Operand::KvUsed, upload(bytemuck::cast_slice(&lengths))?),
            (Operand::Pages, upload(bytemuck::cast_slice(if pages.is_empty() { &[0] } else { &pages[..] }))?),
        ];
        let buffers = self.plan.buffers.iter().map(|buffer| memory.alloc(buffer.bytes));
        let buffers = buffers.collect::<Result<Vec<_>, _>>()?;
        for step in &self.plan.steps {
            // The memory is not the planner's: nothing but addresses goes into the parameters.
            let params = step.params(&planner(1), &operands, &buffers);
            let params = params.unwrap_or_else(|error| panic!("{:?}: {error}", self.call));
            let entry = step.kernel.entry;
            let launch = Launch::new([step.ctas, 1, 1], [entry.threads, 1, 1])
                .with_dynamic_shared_bytes(entry.shared_bytes)
                .with_param(&params);
            let launch = if step.cluster > 1 { launch.with_cluster([step.cluster, 1, 1]) } else { launch };
            let module = edited.0.get(&key(step)).unwrap_or_else(|| &modules.0[&key(step)]);
            memory.launch(module, entry.symbol, &launch)?;
        }
        let mut result = vec![0; sizes[0] + sizes[1]];
        let (out_result, lse_result) = result.split_at_mut(sizes[0]);
        memory.read(out, out_result)?;
        memory.read(lse, lse_result)?;
        Ok(result)
    }
}

fn text(step: &Step) -> String {
    step.kernel.text().expect("this build holds every row of the list")
}

/// Loaded texts, by symbol and features.
struct Modules(BTreeMap<Key, Module>);

type Key = (&'static str, u32);

fn key(step: &Step) -> Key {
    (step.kernel.entry.symbol, step.kernel.features.bits())
}

impl Modules {
    /// Of all steps, as they are.
    fn of(launches: &[Planned]) -> Modules {
        let steps = launches.iter().flat_map(|launch| &launch.plan.steps);
        Modules(steps.map(|step| (key(step), parse(&text(step)))).collect())
    }
}

fn parse(text: &str) -> Module {
    Module::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

/// All broken copies of a text. Beside those of every kernel, a barrier that also says whether any thread has something to say: without
/// it, each thread hears itself alone.
fn broken(text: &str) -> Vec<Mutant> {
    const VOTE: &str = " bar.red.or.pred p, 0, p;";
    let mut list = mutants(text);
    for (place, _) in text.match_indices(VOTE) {
        let line = text[..place].matches('\n').count() + 1;
        let ptx = format!("{}{}", &text[..place], &text[place + VOTE.len()..]);
        list.push(Mutant { edit: Edit::NoBarrier, line, statement: VOTE.trim().to_owned(), ptx });
    }
    list
}

/// Every mutant is reported or changes bits, but for those that the subject says are needless.
fn check_mutants(subject: &Subject) {
    if device::is_gpu() {
        return;
    }
    let launches = subject.launches();
    let modules = Modules::of(&launches);
    let none = Modules(BTreeMap::new());
    let sound = |launch: &Planned| launch.run(&modules, &none, 0).unwrap_or_else(|error| panic!("{error}"));
    let sound: Vec<_> = launches.iter().map(sound).collect();
    // A text for each set of features: the same statements in the same places.
    let symbol = Subject::find(subject.edited).entry.symbol;
    let steps = launches.iter().flat_map(|launch| &launch.plan.steps).filter(|step| key(step).0 == symbol);
    let texts: BTreeMap<Key, String> = steps.map(|step| (key(step), text(step))).collect();
    let lists: Vec<(Key, Vec<Mutant>)> = texts.iter().map(|(key, text)| (*key, broken(text))).collect();
    let list = &lists[0].1;
    assert!(list.len() >= subject.least_mutants, "{} mutants of {symbol}", list.len());
    assert!(lists.iter().all(|(_, other)| other.len() == list.len()));
    let mut unnoticed: BTreeMap<Edit, Vec<&Mutant>> = BTreeMap::new();
    for (i, mutant) in list.iter().enumerate() {
        let edited = lists.iter().map(|(key, list)| {
            assert!(list[i].edit == mutant.edit && list[i].statement == mutant.statement);
            (*key, parse(&list[i].ptx))
        });
        let edited = Modules(edited.collect());
        let is_noticed = (0..subject.seeds).any(|seed| {
            launches.iter().zip(&sound).any(|(launch, sound)| match launch.run(&modules, &edited, seed) {
                Ok(result) => result != *sound,
                Err(EmuError::Fault(_)) => true,
                Err(error) => panic!("{:?} of line {}: {error}", mutant.edit, mutant.line),
            })
        });
        if !is_noticed {
            unnoticed.entry(mutant.edit).or_default().push(mutant);
        }
    }
    let wrong = unexcused(unnoticed, subject.needless);
    assert!(wrong.is_empty(), "{symbol}: {wrong}");
}

#[test]
fn every_wait_of_decode_is_needed() {
    check_mutants(&DECODE);
}

#[test]
fn every_wait_of_cluster_decode_is_needed() {
    check_mutants(&CLUSTER);
}

#[test]
fn every_wait_of_prefill_is_needed() {
    check_mutants(&PREFILL);
}

#[test]
fn every_wait_of_split_v3_is_needed() {
    check_mutants(&SPLIT_V3);
}

#[test]
fn every_wait_of_merge_is_needed() {
    check_mutants(&MERGE);
}

/// The calls of the mutants, as the kernels are: no report, and the same bits under every interleaving.
#[test]
fn the_seed_changes_nothing() {
    if device::is_gpu() {
        return;
    }
    for subject in [&DECODE, &CLUSTER, &PREFILL, &SPLIT_V3, &MERGE] {
        let launches = subject.launches();
        let (modules, none) = (Modules::of(&launches), Modules(BTreeMap::new()));
        for launch in &launches {
            let run = |seed| launch.run(&modules, &none, seed).unwrap_or_else(|error| panic!("{error}"));
            let in_order = run(0);
            for seed in 1..=device::seeds(8).into() {
                let symbol = subject.row().entry.symbol;
                assert!(run(seed) == in_order, "{symbol} with seed {seed}, {:?}", launch.call);
            }
        }
    }
}
