//! Rotary embedding.

use crate::support::{DTYPES, Laid, Lie, check, f64s, values, weighted};
use candle_core::{DType, Device, Tensor};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{Rotary, rope, rope_i, rope_thd};
use ferroflash::reference::ReferenceRotary;

const BATCH: usize = 3;
const ROWS: usize = 7;
const HEADS: usize = 4;

/// Cosines and sines of the angles of so many positions and pairs.
fn tables(shape: &[usize], dtype: DType) -> [Tensor; 2] {
    let angles = values(shape, 9, DType::F32);
    [angles.cos(), angles.sin()].map(|table| table.unwrap().to_dtype(dtype).unwrap())
}

/// Turns x `[batch, rows, heads, columns]` by `turn` and compares with the reference, whose row `i` of batch entry `b` has this position.
fn compare(
    name: &str,
    [dtype, table_type]: [DType; 2],
    (columns, interleaved, lie): (usize, bool, Lie),
    [cos, sin]: [&Tensor; 2],
    position: impl Fn(usize, usize) -> usize,
    turn: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) {
    let of = DTYPES.iter().find(|(candle, _)| *candle == dtype).unwrap().1;
    let name = |what: &str| format!("{what} of {name}, {dtype:?} with tables of {table_type:?}, {columns} {lie:?}");
    let shape = [BATCH, ROWS, HEADS, columns];
    let x = Laid::new(&values(&shape, 1, dtype), lie);
    let out = turn(&x.view()).unwrap();
    let dout = values(&shape, 2, dtype);
    let gradients = weighted(&out, &dout).backward().unwrap();
    let tables = [cos, sin].map(f64s);
    let pairs = *cos.dims().last().unwrap();
    let reference = ReferenceRotary {
        heads: HEADS,
        columns,
        pairs,
        interleaved,
        conjugate: false,
        cos: &tables[0],
        sin: &tables[1],
    };
    let positions: Vec<_> = (0..BATCH * ROWS).map(|row| position(row / ROWS, row % ROWS)).collect();
    let numbers = f64s(&x.view());
    let exact = reference.forward(&numbers, &positions).unwrap();
    let rounded = reference.forward_rounded(&numbers, &positions, of).unwrap();
    check(&name("out"), &f64s(&out), &exact, &rounded, 1.0);
    let (back, dout) = (ReferenceRotary { conjugate: true, ..reference }, f64s(&dout));
    let exact = back.forward(&dout, &positions).unwrap();
    let rounded = back.forward_rounded(&dout, &positions, of).unwrap();
    check(&name("dx"), &x.gradient(&gradients), &exact, &rounded, 1.0);
}

/// The three functions of candle_nn, with tables of all batch entries and of each, longer than the rows; whole columns, and part of them.
#[test]
fn the_functions_in_every_type() {
    emulate_cpu(true);
    let heads_first = |x: &Tensor| x.transpose(1, 2);
    for (dtype, _) in DTYPES {
        for (table_type, columns, pairs, lie) in [
            (dtype, 32, 16, Lie::Whole),
            (DType::F32, 32, 16, Lie::Gaps(8, 8)),
            (dtype, 22, 11, Lie::Gaps(3, 0)),
            (DType::F32, 40, 12, Lie::Turned),
        ] {
            let types = [dtype, table_type];
            let [cos, sin] = tables(&[9, pairs], table_type);
            let layer = (columns, false, lie);
            compare("rope_thd", types, layer, [&cos, &sin], |_, row| row, |x| rope_thd(x, &cos, &sin));
            let turn = |x: &Tensor| heads_first(&rope(&heads_first(x)?, &cos, &sin)?);
            compare("rope", types, layer, [&cos, &sin], |_, row| row, turn);
            let turn = |x: &Tensor| heads_first(&rope_i(&heads_first(x)?, &cos, &sin)?);
            compare("rope_i", types, (columns, true, lie), [&cos, &sin], |_, row| row, turn);
            let [cos, sin] = tables(&[BATCH, 9, pairs], table_type);
            let turn = |x: &Tensor| rope_thd(x, &cos, &sin);
            compare("tables of each", types, layer, [&cos, &sin], |batch, row| 9 * batch + row, turn);
        }
    }
}

/// Positions of the host, of batch entries and of rows; tables that begin within others.
#[test]
fn positions() {
    emulate_cpu(true);
    let [cos, sin] = tables(&[50, 16], DType::F32);
    let (types, layer) = ([DType::F32; 2], (32, false, Lie::Whole));
    let rotary = Rotary::new(&cos, &sin);
    let turn = |x: &Tensor| rotary.clone().with_offset(20).forward(x);
    compare("an offset", types, layer, [&cos, &sin], |_, row| 20 + row, turn);
    let [from_20, sin_20] = [&cos, &sin].map(|table| table.narrow(0, 20, 9).unwrap());
    let turn = |x: &Tensor| rope_thd(x, &from_20, &sin_20);
    compare("part of a table", types, layer, [&cos, &sin], |_, row| 20 + row, turn);
    let offsets = Tensor::new(&[3u32, 40, 0], &Device::Cpu).unwrap();
    let turn = |x: &Tensor| rotary.clone().with_offsets(&offsets)?.forward(x);
    compare("offsets", types, layer, [&cos, &sin], |batch, row| [3, 40, 0][batch] + row, turn);
    let position = |batch: usize, row: usize| (batch * 17 + row * 5) % 50;
    let each = (0..BATCH * ROWS).map(|i| position(i / ROWS, i % ROWS) as i32);
    let each = Tensor::from_iter(each, &Device::Cpu).unwrap().reshape((BATCH, ROWS)).unwrap();
    let turn = |x: &Tensor| rotary.clone().with_positions(&each)?.forward(x);
    compare("each", types, layer, [&cos, &sin], position, turn);
}
