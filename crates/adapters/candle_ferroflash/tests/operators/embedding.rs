//! Embedding tables.

use crate::support::{DTYPES, Laid, Lie, check, f64s, values, weighted};
use candle_core::{DType, Device, Tensor};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{Embedding, embedding};
use ferroflash::reference::ReferenceEmbedding;

/// Numbers of tokens, among them one that many name, one that nobody does, and two that name no row.
fn ids(tokens: usize, vocabulary: usize) -> Vec<i32> {
    let id = |token: usize| match token % 5 {
        0 => 3,
        _ if token == 11 => vocabulary as i32 + 4,
        _ if token == 12 => -1,
        _ => 4 + (token * 7 % (vocabulary - 5)) as i32,
    };
    (0..tokens).map(id).collect()
}

#[test]
fn rows_and_their_gradient_in_every_type() {
    emulate_cpu(true);
    let cases = [
        (vec![37], 50, 24, 1.0, None, Lie::Whole),
        (vec![4, 65], 300, 33, 5.5, Some(3), Lie::Gaps(1, 2)),
        (vec![2, 3, 5], 20, 64, 0.5, None, Lie::Gaps(8, 0)),
    ];
    for (dtype, of) in DTYPES {
        for (shape, vocabulary, columns, scale, padding, lie) in &cases {
            let (tokens, columns, vocabulary) = (shape.iter().product::<usize>(), *columns, *vocabulary);
            let name = |what: &str| format!("{what} of {dtype:?} {shape:?} of {vocabulary} {columns}");
            let table = Laid::new(&values(&[vocabulary, columns], 1, dtype), *lie);
            let ids = ids(tokens, vocabulary);
            let given = Tensor::from_slice(&ids, shape.as_slice(), &Device::Cpu).unwrap();
            let mut options = Embedding::new(&table.view()).with_scale(*scale as f32);
            if let Some(padding) = padding {
                options = options.with_padding(*padding);
            }
            let out = options.forward(&given).unwrap();
            let mut dout_shape = shape.clone();
            dout_shape.push(columns);
            let dout = values(&dout_shape, 2, dtype);
            let gradients = weighted(&out, &dout).backward().unwrap();
            let reference = ReferenceEmbedding { vocabulary, columns, scale: *scale, padding: *padding };
            let numbers = f64s(&table.view());
            let exact = reference.forward(&numbers, &ids).unwrap();
            let rounded = reference.forward_rounded(&numbers, &ids, of).unwrap();
            check(&name("out"), &f64s(&out), &exact, &rounded, 1.0);
            let dout = f64s(&dout);
            let exact = reference.backward(&ids, &dout, None).unwrap();
            let rounded = reference.backward_rounded(&ids, &dout, None, of).unwrap();
            check(&name("dtable"), &table.gradient(&gradients), &exact, &rounded, 1.0);
        }
    }
}

/// What candle's own lookup gives, to the bit, for numbers of u32 that are no run.
#[test]
fn candle_finds_the_same() {
    emulate_cpu(true);
    let table = values(&[9, 16], 1, DType::F32);
    let ids = Tensor::new(&[[1u32, 8, 0], [5, 1, 2]], &Device::Cpu).unwrap().t().unwrap();
    let theirs = table.index_select(&ids.flatten_all().unwrap(), 0).unwrap().reshape((3, 2, 16)).unwrap();
    let ours = embedding(&ids, &table).unwrap();
    assert_eq!((ours.dims(), f64s(&ours)), (theirs.dims(), f64s(&theirs)));
}
