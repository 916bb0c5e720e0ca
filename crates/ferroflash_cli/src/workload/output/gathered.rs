//! The reference of sequences whose keys are in a cache or which are packed: a cache is too large for numbers of 64 bits, so that each
//! sequence and head is gathered by itself, as far as a row of it is compared.

use super::super::{Case, Rows};
use anyhow::Result;
use ferroflash::reference::{self, ReferenceOutput, Row};
use ferroflash::{Attention, Element, Sizes};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Output and log-sum-exp of these rows, exact and as the precision of the tensors has them. `table` has the pages of the sequences.
pub(super) fn forward_rows<T: Element>(
    case: &Case,
    tensors: [&[T]; 3],
    table: Option<&[i32]>,
    rows: &[Row],
) -> Result<[ReferenceOutput; 2]> {
    let mut of_head: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    let places: Vec<(usize, usize)> = rows.iter().map(|row| place(case, row)).collect();
    for (i, &(sequence, _)) in places.iter().enumerate() {
        of_head.entry((sequence, rows[i].q_head)).or_default().push(i);
    }
    let of_head: Vec<_> = of_head.into_iter().collect();
    let results = of_head.par_iter().map(|((sequence, q_head), indices)| {
        let [q, k, v] = gather(case, tensors, table, *sequence, *q_head);
        let head_dim = case.problem.head_dim;
        let (q_rows, kv_rows) = (q.len() / head_dim, k.len() / head_dim);
        let problem = Sizes { batch: 1, q_rows, kv_rows, q_heads: 1, kv_heads: 1, ..case.problem };
        let attention = Attention::new().with_mask(case.mask);
        let rows: Vec<Row> = indices.iter().map(|&i| Row { batch: 0, q_head: 0, q_row: places[i].1 }).collect();
        let exact = reference::forward_rows(&q, &k, &v, problem, &attention, &rows)?;
        Ok([exact, reference::forward_rounded_rows(&q, &k, &v, problem, &attention, &rows)?])
    });
    let results = results.collect::<Result<Vec<_>>>()?;
    let head_dim = case.problem.head_dim;
    let mut outputs =
        [(); 2].map(|()| ReferenceOutput { out: vec![0.0; rows.len() * head_dim], lse: vec![0.0; rows.len()] });
    for ((_, indices), results) in of_head.iter().zip(results) {
        for (output, result) in outputs.iter_mut().zip(results) {
            for (&i, (row, lse)) in indices.iter().zip(result.out.chunks_exact(head_dim).zip(result.lse)) {
                output.out[i * head_dim..][..head_dim].copy_from_slice(row);
                output.lse[i] = lse;
            }
        }
    }
    Ok(outputs)
}

/// The sequence of a row of the tensors, and which of its rows it is.
fn place(case: &Case, row: &Row) -> (usize, usize) {
    let Rows::Packed(lengths) = case.rows else { return (row.batch, row.q_row) };
    let starts = lengths.starts();
    let sequence = starts.partition_point(|&start| start <= row.q_row) - 1;
    (sequence, row.q_row - starts[sequence])
}

/// q, k and v of one head of a sequence, `[row, dim]`.
fn gather<T: Element>(
    case: &Case,
    [q, k, v]: [&[T]; 3],
    table: Option<&[i32]>,
    sequence: usize,
    q_head: usize,
) -> [Vec<f64>; 3] {
    let Sizes { q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = case.problem;
    let kv_head = q_head / (q_heads / kv_heads);
    let of = |tensor: &[T], heads: usize, head: usize, rows: &[usize]| -> Vec<f64> {
        let row = |row: &usize| tensor[(row * heads + head) * head_dim..][..head_dim].iter().map(|x| x.to_f64());
        rows.iter().flat_map(row).collect()
    };
    let (q_places, kv_places): (Vec<usize>, Vec<usize>) = match case.rows {
        Rows::Packed(lengths) => {
            let starts = lengths.starts();
            let rows: Vec<usize> = (starts[sequence]..starts[sequence + 1]).collect();
            (rows.clone(), rows)
        }
        rows => {
            let of_page = |page_rows: usize, table: &[i32], row: usize| {
                let page = table[sequence * kv_rows.div_ceil(page_rows) + row / page_rows];
                page as usize * page_rows + row % page_rows
            };
            let kv = (0..kv_rows).map(|row| match (rows, table) {
                (Rows::Pages(page_rows), Some(table)) => of_page(page_rows, table, row),
                _ => sequence * kv_rows + row,
            });
            ((0..q_rows).map(|row| sequence * q_rows + row).collect(), kv.collect())
        }
    };
    [of(q, q_heads, q_head, &q_places), of(k, kv_heads, kv_head, &kv_places), of(v, kv_heads, kv_head, &kv_places)]
}

#[cfg(test)]
mod tests {
    use super::super::super::Lengths;
    use super::super::super::case::tests::case;
    use super::*;
    use ferroflash::DType;
    use ferroflash::reference::SequenceRows;
    use kernel_spec::Mask;

    /// Against the reference of whole sequences, whose rows are said by number.
    fn agrees(case: &Case, table: Option<&[i32]>, tensors: [&[f32]; 3], sequences: &[SequenceRows]) {
        let Sizes { batch, q_rows, q_heads, head_dim, .. } = case.problem;
        let [q, k, v] = tensors.map(|data| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let attention = Attention::new().with_mask(case.mask);
        let whole = reference::forward_sequences([&q, &k, &v], sequences, case.problem, &attention).unwrap();
        // Backwards, so that their order counts.
        let rows: Vec<Row> = (0..batch * q_rows * q_heads)
            .rev()
            .map(|i| Row { batch: i / q_heads / q_rows, q_head: i % q_heads, q_row: i / q_heads % q_rows })
            .collect();
        let [exact, rounded] = forward_rows(case, tensors, table, &rows).unwrap();
        for (i, row) in rows.iter().enumerate() {
            let token = row.batch * q_rows + row.q_row;
            let expected = &whole.out[(token * q_heads + row.q_head) * head_dim..][..head_dim];
            assert_eq!(&exact.out[i * head_dim..][..head_dim], expected, "{row:?}");
            assert_eq!(exact.lse[i], whole.lse[row.q_head * batch * q_rows + token], "{row:?}");
            assert!(reference::max_abs_difference(&rounded.out[i * head_dim..][..head_dim], expected) < 1e-4);
        }
    }

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 48.0 - 1.0).collect()
    }

    #[test]
    fn rows_of_packed_sequences_and_of_pages_are_found() {
        let mut of = case(1, 9, 4, Mask::Causal);
        (of.problem.kv_heads, of.problem.dtype, of.problem.head_dim) = (2, DType::F32, 8);
        of.rows = Rows::Packed(Lengths { name: "three", rows: &[4, 2, 3] });
        let (q, k, v) = (values(9 * 4 * 8, 0), values(9 * 2 * 8, 1), values(9 * 2 * 8, 2));
        let packed = [0..4, 4..6, 6..9].map(|q| SequenceRows { kv: q.clone().collect(), q });
        agrees(&of, None, [&q, &k, &v], &packed);

        // Two sequences of two rows and five keys, in pages of two.
        (of.problem.batch, of.problem.q_rows, of.problem.kv_rows) = (2, 2, 5);
        of.rows = Rows::Pages(2);
        let table = [4, 0, 3, 5, 1, 2];
        let (q, k, v) = (values(4 * 4 * 8, 0), values(12 * 2 * 8, 1), values(12 * 2 * 8, 2));
        let pages = [(0..2, vec![8, 9, 0, 1, 6]), (2..4, vec![10, 11, 2, 3, 4])];
        agrees(&of, Some(&table), [&q, &k, &v], &pages.map(|(q, kv)| SequenceRows { q, kv }));

        of.rows = Rows::Cache;
        let cache = [(0..2, (0..5).collect()), (2..4, (5..10).collect())];
        agrees(&of, None, [&q, &k[..160], &v[..160]], &cache.map(|(q, kv)| SequenceRows { q, kv }));
    }
}
