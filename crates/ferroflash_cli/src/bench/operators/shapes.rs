//! Which problems a run has.

use super::cell::Cell;
use super::lists::Model;
use super::{BenchArgs, OperatorArgs, OperatorName};
use crate::workload::Pass;
use anyhow::{Result, ensure};
use kernel_spec::DType;

/// Rows and columns without `--rows` and `--columns`: 32 and 128 MiB in 16 bits, from a head's columns to a vocabulary's.
const SHAPES: [[usize; 2]; 8] = [
    [131_072, 128],
    [65_536, 1024],
    [32_768, 2048],
    [16_384, 4096],
    [8192, 8192],
    [4096, 16_384],
    [2048, 65_536],
    [1024, 131_072],
];

/// The same for the emulator.
const EMULATED_SHAPES: [[usize; 2]; 2] = [[16, 128], [4, 1000]];

/// Rows, columns and depth of dense layers without `--rows` and `--columns`: products that fill a GPU, long, and with a short sum; then the layers of models,
/// for 8192 tokens: queries, keys and values together, the output of attention, and the two of the MLP.
const PRODUCTS: [[usize; 3]; 15] = [
    [16_384, 16_384, 4096],
    [8192, 8192, 8192],
    [16_384, 4096, 1024],
    [4096, 4096, 16_384],
    // LLaMA 3 8B (Dubey and others, "The Llama 3 Herd of Models", 2024, table 3).
    [8192, 6144, 4096],
    [8192, 4096, 4096],
    [8192, 14_336, 4096],
    [8192, 4096, 14_336],
    // LLaMA 3 70B (the same), whose output of attention is the second above.
    [8192, 10_240, 8192],
    [8192, 28_672, 8192],
    [8192, 8192, 28_672],
    // GPT-2 XL (Radford and others, "Language Models are Unsupervised Multitask Learners", 2019, table 2).
    [8192, 4800, 1600],
    [8192, 1600, 1600],
    [8192, 6400, 1600],
    [8192, 1600, 6400],
];

/// The same of losses, whose columns are classes: large and small vocabularies, an odd one, and few rows of the largest.
const LOSSES: [[usize; 3]; 4] =
    [[16_384, 131_072, 4096], [8192, 32_000, 4096], [8192, 50_257, 1024], [1024, 262_144, 2048]];

/// The same for the emulator.
const EMULATED_PRODUCTS: [[usize; 3]; 2] = [[16, 24, 64], [130, 40, 72]];

/// The problems of a run, operator by operator.
pub(super) fn cells(args: &BenchArgs, emulator: bool) -> Result<Vec<Cell>> {
    let OperatorArgs { operator, rows, columns, depth } = &args.operators;
    ensure!(args.pass != Pass::Both, "--pass both is not accepted with --operator; forward and backward are");
    let mut shapes: Vec<[usize; 2]> = if emulator { EMULATED_SHAPES.to_vec() } else { SHAPES.to_vec() };
    if !rows.is_empty() {
        shapes = columns.iter().flat_map(|&columns| rows.iter().map(move |&rows| [rows, columns])).collect();
    }
    ensure!(
        shapes.iter().flatten().all(|&extent| extent > 0),
        "--rows and --columns of 0 are not accepted; 1 or more are"
    );
    let dtypes = args.sweep.dtypes_or(&[DType::Bf16]);
    let mut cells = Vec::new();
    for &operator in operator {
        ensure!(
            !operator.is_list() || args.pass == Pass::Forward,
            "{} has one pass, which is called forward",
            operator.name()
        );
        let problems: Vec<(usize, usize, Option<usize>, Option<Model>)> = if operator.is_product() {
            products(args, operator, emulator)?
                .into_iter()
                .map(|(rows, columns, depth)| (rows, columns, depth, None))
                .collect()
        } else if operator.is_list() && rows.is_empty() && !emulator {
            let of = |model: Model| {
                let lengths = model.lengths();
                (lengths.len(), lengths.iter().sum(), None, Some(model))
            };
            Model::ALL.map(of).to_vec()
        } else {
            shapes.iter().map(|&[rows, columns]| (rows, columns, None, None)).collect()
        };
        for &dtype in &dtypes {
            cells.extend(problems.iter().map(|&(rows, columns, depth, model)| Cell {
                operator,
                pass: args.pass,
                dtype,
                rows,
                columns,
                depth,
                model,
            }));
        }
    }
    let products = operator.iter().filter(|operator| operator.is_product()).count();
    ensure!(depth.is_empty() || products == operator.len(), "--depth is for dense layers alone");
    Ok(cells)
}

/// Rows, columns and depths of dense layers.
fn products(args: &BenchArgs, operator: OperatorName, emulator: bool) -> Result<Vec<(usize, usize, Option<usize>)>> {
    let OperatorArgs { rows, columns, depth, .. } = &args.operators;
    if rows.is_empty() {
        let products = match operator {
            _ if emulator => &EMULATED_PRODUCTS[..],
            OperatorName::LinearCrossEntropy => &LOSSES,
            _ => &PRODUCTS,
        };
        return Ok(products.iter().map(|&[rows, columns, depth]| (rows, columns, Some(depth))).collect());
    }
    ensure!(
        !depth.is_empty() && !depth.contains(&0),
        "dense layers need --depth, 1 or more, beside --rows and --columns"
    );
    let all = depth.iter().flat_map(|&depth| columns.iter().map(move |&columns| (columns, depth)));
    Ok(all.flat_map(|(columns, depth)| rows.iter().map(move |&rows| (rows, columns, Some(depth)))).collect())
}
