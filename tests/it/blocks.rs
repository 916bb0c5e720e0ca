//! Blocks of keys that a program hides: passed over, without a difference to the result.

use crate::properties;
use crate::score_programs::lasting;
use crate::sinks;
use crate::support::case::{self, Case, to_f64};
use crate::support::draws;
use crate::support::programs::{Condition, NAMED, Number, condition, leak, random, tensors};
use crate::support::{bf16, device, f16};
use ferroflash::score::{BoundProgram, ScoreProgram, ScoreShape};
use ferroflash::{
    Attention, DType, Device, Element, Error, Kernel, KernelChoice, Mask, Problem, ProgramError, Sequences, Sizes,
    Unsupported, VARIANTS, Variant,
};
use kernel_spec::FeatureSet;
use kernel_spec::families::forward::features::MASK_ONLY;
use proptest::prelude::*;

/// The scores of a problem.
fn scores(sizes: Sizes) -> ScoreShape {
    let Sizes { batch, q_heads: heads, q_rows, kv_rows, .. } = sizes;
    ScoreShape { batch, heads, q_rows, kv_rows }
}

/// The program with its blocks, for as long as the tests run.
fn with_blocks(
    bound: &BoundProgram<'static>,
    device: &'static Device,
    sizes: Sizes,
) -> ferroflash::Result<&'static BoundProgram<'static>> {
    Ok(Box::leak(Box::new(bound.clone().with_blocks(device, scores(sizes))?)))
}

/// Whether a case runs the kernel that has lists.
fn has_v3<T: Element>(device: &Device) -> bool {
    case::v3_tiles::<T>(device).next().is_some()
}

/// Programs that only hide, and programs that do something else, too.
fn hiding() -> impl Strategy<Value = Number> {
    let masks = condition().prop_map(|condition| Number::Seen(Box::new(condition), Box::new(Number::Score)));
    let others = (condition(), random())
        .prop_map(|(condition, number): (Condition, Number)| Number::Seen(Box::new(condition), Box::new(number)));
    prop_oneof![2 => masks, 1 => others]
}

#[test]
fn random_masks_agree_with_the_reference_f16() {
    random_masks_agree_with_the_reference::<f16>();
}

#[test]
fn random_masks_agree_with_the_reference_bf16() {
    random_masks_agree_with_the_reference::<bf16>();
}

fn random_masks_agree_with_the_reference<T: Element>() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    if !has_v3::<T>(device) {
        return;
    }
    let cases = (properties::cases(Kernel::V3, T::DTYPE), hiding());
    draws::draws(file!(), device::cases(), 256).check(&cases, |(mut case, number)| {
        // The row with lists has its own tile, and at 64 dims no softcap.
        case.attention.kernel = KernelChoice::Kernel(Kernel::V3);
        let program = ScoreProgram::new("random", |p| number.write(p)).expect("random programs are legal");
        let all = tensors(device);
        // Only what the program reads may be bound.
        let read: Vec<_> =
            all.into_iter().filter(|(name, _)| program.to_string().contains(&format!("{name}:"))).collect();
        let bound = leak(program, read);
        case.attention.program = Some(match with_blocks(bound, device, case.problem) {
            // A condition may hold always.
            Err(Error::Program(ProgramError::HidesNothing { .. })) => bound,
            found => found.map_err(|error| error.to_string())?,
        });
        case.check::<T>(device)
    });
}

/// Every row with lists, at the edges of its tiles, under every kind of mask.
#[test]
fn every_row_with_lists() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let rows = VARIANTS.iter().filter(|row| row.is_listed() && device.info().runs(row.entry.arch));
    let hides = NAMED.iter().filter(|named| ["documents", "prefix window", "neighbours"].contains(&named.name));
    let hides: Vec<_> = hides.collect();
    let decay = ScoreProgram::new("near, with a decay", |p| {
        let distance = (p.position() - p.key()).abs();
        distance.lt(p.int_constant(60)).select(p.score() - 0.1 * distance.to_float(), p.hidden())
    });
    let decay = leak(decay.expect("legal"), Vec::new());
    for (i, row) in rows.enumerate() {
        for j in [i, i + 1] {
            // Of a program that does more than to hide keys there are other rows.
            let masked = row.needs().contains(FeatureSet::of(MASK_ONLY));
            let bound = if masked { hides[j % hides.len()].bound(device) } else { decay };
            let (q, kv) = (row.q_block as usize, row.kv_block as usize);
            let (q_rows, kv_rows) = [(q + 1, kv + 1), (q - 1, 3 * kv), (2 * q + 65, 2 * kv - 7)][(i + j) % 3];
            let sizes = Sizes {
                batch: 2,
                q_rows,
                kv_rows,
                q_heads: 4,
                kv_heads: 2,
                head_dim: row.dim_qk as usize,
                dtype: row.dtype,
            };
            let masks = [Mask::Full, Mask::Causal, Mask::Window { left: Some(100), right: Some(30) }];
            let mut case = Case::new(Kernel::V3, sizes, masks[(2 * i + j) % 3]);
            case.attention.program = Some(with_blocks(bound, device, sizes).expect("blocks"));
            case.attention.scale = (j % 4 == 1).then_some(-0.3);
            if j % 2 == 1 {
                case.attention = case.attention.with_sink(&sinks::some(4, j as u64));
            }
            let plan = case.attention.plan(device, sizes).expect("a legal problem");
            assert!(plan.symbols().eq(["block_lists", row.entry.symbol]), "{plan}");
            let checked = if row.dtype == DType::F16 { case.check::<f16>(device) } else { case.check::<bf16>(device) };
            checked.unwrap_or_else(|wrong| panic!("{}, {}: {wrong}", row.entry.symbol, bound.program().name()));
        }
    }
}

/// Tiles that are hidden from all rows of a tile are not multiplied with.
#[test]
fn hidden_blocks_are_passed_over() {
    let device: &'static Device = Box::leak(Box::new(Device::emulator().expect("the emulator")));
    // Rows of a half see the keys of the same half.
    let halves = ScoreProgram::mask("halves", |p| p.row().div_floor(256).eq(p.key().div_floor(256))).expect("legal");
    let halves = leak(halves, Vec::new());
    // Of 4 tiles of 128 keys either half has 2.
    for head_dim in [64, 128] {
        let sizes = Sizes { batch: 1, q_rows: 512, kv_rows: 512, q_heads: 1, kv_heads: 1, head_dim, dtype: DType::F16 };
        let mut case = Case::new(Kernel::V3, sizes, Mask::Full);
        let inputs = case.inputs::<f16>();
        let products = || {
            let counters = device.counters();
            counters.iter().find(|(name, _)| *name == "tensor_flops").expect("counted").1
        };
        let mut of = |program| {
            case.attention.program = Some(program);
            let before = products();
            case.run(device, &inputs);
            products() - before
        };
        let rest = of(with_blocks(halves, device, sizes).expect("blocks"));
        // Two products of half of the scores.
        assert_eq!(rest, 2 * 2 * 512 * 512 / 2 * head_dim as u64, "{head_dim} dims");
    }
}

/// Blocks that differ from head to head and from batch entry to batch entry, and those that do not, which serve any number of them.
#[test]
fn blocks_of_heads_and_batch_entries() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    if !has_v3::<f16>(device) {
        return;
    }
    let programs = [
        ScoreProgram::mask("by head", |p| p.key().div_floor(128).eq(p.head())),
        ScoreProgram::mask("by batch", |p| p.key().div_floor(128).ne(p.batch())),
        ScoreProgram::mask("by both", |p| {
            (p.key().div_floor(64) + p.head() + p.batch()).rem_floor(3).ne(p.int_constant(1))
        }),
        ScoreProgram::mask("by none", |p| p.key().div_floor(128).rem_floor(2).eq(p.int_constant(0))),
    ];
    let sizes = Sizes { batch: 3, q_rows: 140, kv_rows: 400, q_heads: 4, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
    for program in programs {
        let program = program.expect("legal");
        let bound = leak(program, Vec::new());
        let mut case = Case::new(Kernel::V3, sizes, Mask::Full);
        case.attention.program = Some(with_blocks(bound, device, sizes).expect("blocks"));
        case.check::<f16>(device).unwrap_or_else(|wrong| panic!("{}: {wrong}", bound.program().name()));
        // Of one head and batch entry for all.
        let one = with_blocks(bound, device, Sizes { batch: 1, q_heads: 1, kv_heads: 1, ..sizes }).expect("blocks");
        case.attention.program = Some(one);
        match case.attention.plan(device, sizes) {
            Ok(_) => assert_eq!(bound.program().name(), "by none"),
            Err(Error::Program(ProgramError::BlocksShape { found, expected, .. })) => {
                assert_eq!((found, expected), ([3, 4, 140, 400], [1, 1, 140, 400]));
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        case.check::<f16>(device).unwrap_or_else(|wrong| panic!("{}: {wrong}", bound.program().name()));
    }
}

/// Kernels without lists visit every block, and say so.
#[test]
fn other_kernels_give_the_same() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let documents = NAMED.iter().find(|named| named.name == "documents").expect("there");
    let documents = documents.bound(device);
    for kernel in [Kernel::Naive, Kernel::V1, Kernel::V2] {
        let sizes =
            Sizes { batch: 2, q_rows: 70, kv_rows: 90, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: DType::F16 };
        let mut case = Case::new(kernel, sizes, Mask::Causal);
        let inputs = case.inputs::<f16>();
        case.attention.program = Some(documents);
        let without = case.run(device, &inputs);
        case.attention.program = Some(with_blocks(documents, device, sizes).expect("blocks"));
        let with = case.run(device, &inputs);
        assert_eq!((to_f64(&without.out), without.lse), (to_f64(&with.out), with.lse), "{kernel}");
        let plan = case.attention.plan(device, sizes).expect("a legal problem");
        assert!(plan.reason.contains("only v3 passes over them"), "{plan}");
    }
}

/// Blocks that are kept apart serve the same mask, bound anew, and programs that have it beside a function of scores.
#[test]
fn known_blocks_serve_programs_with_the_mask() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let mask = |by| ScoreProgram::mask("band", move |p| (p.row() - p.key()).abs().lt(p.int_constant(by)));
    let band = || mask(50).expect("legal").bind(&[]).expect("no tensors");
    let halved = ScoreProgram::new("band of halves", |p| {
        let sees = (p.row() - p.key()).abs().lt(p.int_constant(50));
        sees.select(p.score() * 0.5, p.hidden())
    });
    let halved = leak(halved.expect("legal"), Vec::new());
    let sizes = Sizes { batch: 1, q_rows: 300, kv_rows: 300, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::F16 };
    let found = band().with_blocks(device, scores(sizes)).expect("blocks").found_blocks().expect("they were found");
    assert!(band().found_blocks().is_none());
    for without in [leak(mask(50).expect("legal"), Vec::new()), halved] {
        let with = without.clone().with_known_blocks(&found).expect("the same mask");
        let mut case = Case::new(Kernel::V2, sizes, Mask::Full);
        case.attention.kernel = KernelChoice::Auto;
        let inputs = case.inputs::<f16>();
        case.attention.program = Some(with_blocks(without, device, sizes).expect("blocks"));
        let expected = case.run(device, &inputs);
        case.attention.program = Some(Box::leak(Box::new(with)));
        let again = case.run(device, &inputs);
        assert_eq!((to_f64(&expected.out), expected.lse), (to_f64(&again.out), again.lse));
        let plan = case.attention.plan(device, sizes).expect("a legal problem");
        assert_eq!(plan.symbols().any(|symbol| symbol == "block_lists"), has_v3::<f16>(device), "{plan}");
    }
    // What a program that only hides keys hides of a block is left to the blocks: they have to be its own.
    let wider = mask(51).expect("legal").bind(&[]).expect("no tensors");
    let hides_nothing = ScoreProgram::new("half", |p| p.score() * 0.5).expect("legal").bind(&[]).expect("no tensors");
    for (program, name) in [(wider, "band"), (hides_nothing, "half")] {
        let error = program.with_known_blocks(&found).unwrap_err();
        let words = format!(
            "the blocks were found for a program that hides other keys than {name}; those of the same mask are accepted, and those of a mask that a \
             program has beside a function of scores"
        );
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn refusals() {
    let shared = device::shared();
    let device = lasting(&shared.device);
    let sizes = Sizes { batch: 1, q_rows: 100, kv_rows: 100, q_heads: 2, kv_heads: 2, head_dim: 64, dtype: DType::F16 };
    // A key that is hidden for its score, not for its place.
    let by_score = ScoreProgram::new("by score", |p| p.score().lt(p.constant(0.0)).select(p.hidden(), p.score()));
    let error = with_blocks(leak(by_score.expect("legal"), Vec::new()), device, sizes).unwrap_err();
    let words = "by score hides no key whatever its score is, so that there is no block to pass over; programs that give minus infinity where a \
                 condition on the place holds are accepted";
    assert_eq!(error.to_string(), words);

    let odd = ScoreProgram::mask("odd", |p| p.key().rem_floor(2).eq(p.int_constant(1))).expect("legal");
    let odd = leak(odd, Vec::new());
    let too_many = Sizes { q_rows: 1 << 29, ..sizes };
    assert!(matches!(with_blocks(odd, device, too_many), Err(Error::TooManyRows { .. })));
    let too_many = Sizes { q_rows: (1 << 29) - 1, kv_rows: (1 << 29) - 1, ..sizes };
    let Err(Error::Program(ProgramError::TooManyBlocks { found, .. })) = with_blocks(odd, device, too_many) else {
        panic!("accepted")
    };
    assert_eq!(found, 1 << 47);

    let blocks = with_blocks(odd, device, sizes).expect("blocks");
    let attention = Attention::new().with_program(blocks);
    let error = attention.plan(device, Sizes { kv_rows: 101, ..sizes }).unwrap_err();
    let words = "the blocks of odd are those of scores [1, 2, 100, 100], [batch, heads, q_rows, kv_rows]; the call has [1, 2, 100, 101]";
    assert_eq!(error.to_string(), words);
    let error = attention.backward_plan(device, Sizes { q_rows: 99, ..sizes }).unwrap_err();
    assert!(matches!(error, Error::Program(ProgramError::BlocksShape { .. })), "{error}");
    attention.backward_plan(device, sizes).expect("gradients visit all blocks");

    let packed = Sequences::Packed { batch: 2, q_rows: 100, kv_rows: 100 };
    let packed = Problem::new(packed, sizes.q_heads, sizes.kv_heads, sizes.head_dim, sizes.dtype);
    for error in [attention.plan(device, packed).unwrap_err(), attention.backward_plan(device, packed).unwrap_err()] {
        assert!(matches!(error, Error::Program(ProgramError::BlocksOfSequences { found: "packed", .. })), "{error}");
    }

    // A row with lists, and nothing to list.
    let listed: &'static Variant = VARIANTS.iter().find(|row| row.is_listed()).expect("there");
    for program in [None, Some(odd)] {
        let mut attention = Attention::new().with_kernel(listed);
        attention.program = program;
        let head_dim = listed.dim_qk as usize;
        let error = attention.plan(device, Sizes { head_dim, dtype: listed.dtype, ..sizes }).unwrap_err();
        let Error::KernelUnsupported { kernel: Kernel::V3, reason: Unsupported::NoBlocks { symbol } } = error else {
            panic!("{error}")
        };
        assert_eq!(symbol, listed.entry.symbol);
    }
}
