//! Gradients of a workload, and what they are compared with.
//!
//! A small problem is compared in full. Of a large one, whose reference would take minutes, three blocks of rows give all there is to give:
//! the launch that is checked gets a `dout` of 0 everywhere else, so that what it gives depends on nothing that is left out. Launches that
//! are timed get a full `dout`.

use super::Case;
use super::program::{Place, Scores};
use crate::bench::record::{Check, GradientCheck};
use anyhow::Result;
use ferroflash::reference::{self, ReferenceGradients};
use ferroflash::{Attention, Element, Sizes};
use kernel_spec::Mask;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

/// Below this many operations of a backward pass all of it is compared with the reference; some seconds of f64 on two cores.
const FULL_CHECK_FLOPS: f64 = 1e9;

/// Rows of a block: as many as a tile of the kernels, so that a block that starts anywhere lies in two.
const BLOCK_ROWS: usize = 64;

/// The gradients by name, as files and records have them.
pub(super) const NAMES: [&str; 3] = ["dq", "dk", "dv"];

/// Largest accepted errors, as multiples of the error of the precision: FlashAttention's suite has 2 for dq, and 3 for dk and dv.
const FACTORS: [f64; 3] = [2.0, 3.0, 3.0];

/// A part of the problem that is a problem itself, with its gradients.
struct Block {
    part: Part,
    exact: ReferenceGradients,
    /// The same by a straightforward program in the precision of the tensors.
    rounded: ReferenceGradients,
}

/// Rows of one head, or all there is, with the first keys.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    sizes: Sizes,
    batch: usize,
    q_head: usize,
    kv_head: usize,
    q_row: usize,
    /// Rows that are given a gradient; those behind them make the mask come out right.
    given: usize,
}

/// What the gradients of a problem are compared with.
pub(super) struct Reference {
    blocks: Vec<Block>,
}

/// A tensor `[batch, row, head, dim]` of a part, out of that of the problem; `place` is where its first row and head lie.
fn gather<T: Element>(
    data: &[T],
    [rows, heads, dim]: [usize; 3],
    place: [usize; 3],
    part: [usize; 3],
) -> impl Iterator<Item = T> {
    let [batch, first_row, first_head] = place;
    let [part_batch, part_rows, part_heads] = part;
    let all = (0..part_batch).flat_map(move |b| (0..part_rows).map(move |row| (b, row)));
    all.flat_map(move |(b, row)| {
        let start = (((batch + b) * rows + first_row + row) * heads + first_head) * dim;
        data[start..start + part_heads * dim].iter().copied()
    })
}

impl Part {
    fn whole(case: &Case) -> Part {
        Part { sizes: case.problem, batch: 0, q_head: 0, kv_head: 0, q_row: 0, given: case.problem.q_rows }
    }

    /// [`BLOCK_ROWS`] rows of a head from `q_row` on. Masks count from the last row and the last key: the part ends where its rows see
    /// nothing behind it.
    fn rows_of(case: &Case, batch: usize, q_head: usize, q_row: usize) -> Part {
        let Sizes { q_rows, kv_rows, q_heads, kv_heads, .. } = case.problem;
        let given = BLOCK_ROWS.min(q_rows - q_row);
        let last = q_row + given;
        let (end, keys) = match case.mask {
            Mask::Full => (last, kv_rows),
            Mask::Causal => (last, kv_rows - (q_rows - last)),
            Mask::Window { right: Some(right), .. } => {
                let end = last.saturating_add(right as usize).min(q_rows);
                (end, kv_rows - (q_rows - end))
            }
            _ => (q_rows, kv_rows),
        };
        let sizes = Sizes { batch: 1, q_rows: end - q_row, kv_rows: keys, q_heads: 1, kv_heads: 1, ..case.problem };
        Part { sizes, batch, q_head, kv_head: q_head / (q_heads / kv_heads), q_row, given }
    }

    /// Where it begins, if it is not all there is.
    fn place(&self, case: &Case) -> Option<Place> {
        let Sizes { q_rows, kv_rows, .. } = case.problem;
        let position = self.q_row as i64 + kv_rows as i64 - q_rows as i64;
        (*self != Part::whole(case)).then_some(Place { batch: self.batch, head: self.q_head, position })
    }

    fn of_q<T: Element>(&self, case: &Case, data: &[T]) -> impl Iterator<Item = T> {
        let Sizes { q_rows, q_heads, head_dim, .. } = case.problem;
        let part = [self.sizes.batch, self.sizes.q_rows, self.sizes.q_heads];
        gather(data, [q_rows, q_heads, head_dim], [self.batch, self.q_row, self.q_head], part)
    }

    fn of_kv<T: Element>(&self, case: &Case, data: &[T]) -> impl Iterator<Item = T> {
        let Sizes { kv_rows, kv_heads, head_dim, .. } = case.problem;
        let part = [self.sizes.batch, self.sizes.kv_rows, self.sizes.kv_heads];
        gather(data, [kv_rows, kv_heads, head_dim], [self.batch, 0, self.kv_head], part)
    }

    /// Copies what this part gives from `dout` to `checked`.
    fn give<T: Element>(&self, case: &Case, dout: &[T], checked: &mut [T]) {
        let Sizes { q_rows, q_heads, head_dim, .. } = case.problem;
        for row in self.q_row..self.q_row + self.given {
            let start = ((self.batch * q_rows + row) * q_heads + self.q_head) * head_dim;
            checked[start..start + head_dim].copy_from_slice(&dout[start..start + head_dim]);
        }
    }
}

/// All of a small problem. Of a large one the first rows of the first head, the last rows of the last, and rows of one in between, as
/// far as there are heads of k and v that have nothing to do with each other.
fn parts(case: &Case, seed: u64) -> Vec<Part> {
    if super::Pass::Backward.flops(case) <= FULL_CHECK_FLOPS {
        return vec![Part::whole(case)];
    }
    let Sizes { batch, q_rows, q_heads, kv_heads, .. } = case.problem;
    let (group, heads, last_row) = (q_heads / kv_heads, batch * kv_heads, q_rows.saturating_sub(BLOCK_ROWS));
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut part = |head: usize, row: usize| {
        let q_head = head % kv_heads * group + rng.random_range(0..group);
        Part::rows_of(case, head / kv_heads, q_head, row)
    };
    let mut parts = vec![part(heads - 1, last_row)];
    if heads > 1 {
        parts.push(part(0, 0));
    }
    if heads > 2 {
        let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(1));
        parts.push(part(rng.random_range(1..heads - 1), rng.random_range(0..=last_row)));
    }
    parts
}

impl Reference {
    /// The reference, and the `dout` of launches that are compared with it, when that is not `dout`.
    pub(super) fn new<T: Element>(
        case: &Case,
        scores: &Scores,
        [q, k, v]: [&[T]; 3],
        dout: &[T],
        seed: u64,
    ) -> Result<(Reference, Option<Vec<T>>)> {
        let parts = parts(case, seed);
        let checked = (parts != [Part::whole(case)]).then(|| {
            let mut checked = vec![T::from_f64(0.0); dout.len()];
            parts.iter().for_each(|part| part.give(case, dout, &mut checked));
            checked
        });
        let dout = checked.as_deref().unwrap_or(dout);
        let block = |part: Part| {
            let bound = scores.bind(part.place(case))?;
            let attention = Attention::new().with_mask(case.mask);
            let attention = scores.apply_to_part(attention, bound.as_ref(), part.place(case))?;
            let of_q = |data: &[T]| part.of_q(case, data).map(|x| x.to_f64()).collect::<Vec<_>>();
            let of_kv = |data: &[T]| part.of_kv(case, data).map(|x| x.to_f64()).collect::<Vec<_>>();
            let (q, k, v, dout) = (of_q(q), of_kv(k), of_kv(v), of_q(dout));
            let inputs = [&q[..], &k, &v];
            let (exact, rounded) = rayon::join(
                || reference::backward(inputs, &dout, None, part.sizes, &attention),
                || reference::backward_rounded(inputs, &dout, None, part.sizes, &attention),
            );
            Ok(Block { part, exact: exact?, rounded: rounded? })
        };
        let blocks = parts.into_par_iter().map(block).collect::<Result<_>>()?;
        Ok((Reference { blocks }, checked))
    }

    /// Compares dq, dk and dv, `[batch, row, head, dim]`, with the reference. The numbers of the result are those of the gradient that comes
    /// nearest to its bound.
    pub(super) fn compare<T: Element>(&self, case: &Case, found: [&[T]; 3]) -> Check {
        let mut worst: Option<Check> = None;
        let mut gradients = Vec::new();
        let all_written = found.iter().all(|data| data.par_iter().all(|x| x.to_f64().is_finite()));
        let Sizes { batch, q_rows, q_heads, .. } = case.problem;
        let rows = self.blocks.iter().map(|Block { part, .. }| part.given * part.sizes.q_heads * part.sizes.batch);
        let rows: usize = rows.sum();
        for (i, name) in NAMES.into_iter().enumerate() {
            let [mut computed, mut exact, mut rounded] = [const { Vec::new() }; 3];
            for block in &self.blocks {
                match i {
                    0 => computed.extend(block.part.of_q(case, found[i]).map(|x| x.to_f64())),
                    _ => computed.extend(block.part.of_kv(case, found[i]).map(|x| x.to_f64())),
                }
                exact.extend_from_slice(tensor(&block.exact, i));
                rounded.extend_from_slice(tensor(&block.rounded, i));
            }
            let max_error = reference::max_abs_difference(&computed, &exact);
            let rounded_error = reference::max_abs_difference(&rounded, &exact);
            let bound = FACTORS[i] * rounded_error + 1e-5;
            gradients.push(GradientCheck { tensor: name.to_owned(), max_error, bound });
            let check = Check {
                rows,
                rows_total: batch * q_heads * q_rows,
                max_error,
                error_quantiles: super::output::error_quantiles(&computed, &exact),
                rounded_error,
                bound,
                lse: None,
                gradients: Vec::new(),
                within: max_error <= bound && max_error.is_finite(),
            };
            worst = Some(worst.map_or(check.clone(), |worst| nearest(worst, check)));
        }
        let worst = worst.expect("there are three gradients");
        Check { gradients, within: worst.within && all_written, ..worst }
    }
}

/// Of two comparisons the one whose error is nearer to what is accepted, or further outside; both have to be accepted.
pub(super) fn nearest(a: Check, b: Check) -> Check {
    let within = a.within && b.within;
    let part = |check: &Check| check.max_error / check.bound;
    let nearer = if part(&b) > part(&a) { b } else { a };
    Check { within, ..nearer }
}

fn tensor(gradients: &ReferenceGradients, i: usize) -> &[f64] {
    [&gradients.dq, &gradients.dk, &gradients.dv][i]
}

#[cfg(test)]
mod tests {
    use super::super::case::tests::case;
    use super::*;
    use crate::values::normal;
    use crate::workload::Program;
    use clap::ValueEnum;
    use ferroflash::reference::max_abs_difference;

    #[test]
    fn small_problems_are_compared_in_full_and_large_ones_in_blocks() {
        let small = case(2, 3, 2, Mask::Full);
        assert_eq!(parts(&small, 0), [Part::whole(&small)]);
        let blocks = parts(&case(4, 4096, 8, Mask::Causal), 0);
        assert_eq!(blocks.len(), 3);
        assert_eq!((blocks[0].batch, blocks[0].kv_head, blocks[0].q_row), (3, 7, 4096 - BLOCK_ROWS));
        assert_eq!((blocks[1].batch, blocks[1].kv_head, blocks[1].sizes.kv_rows), (0, 0, BLOCK_ROWS));
        assert_eq!(parts(&case(1, 1 << 15, 1, Mask::Full), 0).len(), 1);
    }

    /// What a part gives is what it gives to the whole.
    #[test]
    fn gradients_of_a_part_are_those_of_the_whole() {
        let device = ferroflash::Device::emulator().unwrap();
        let window = |left, right| Mask::Window { left, right };
        let plain =
            [Mask::Full, Mask::Causal, window(Some(9), Some(5)), window(Some(20), None), window(None, Some(200))];
        let plain = plain.map(|mask| (mask, None));
        let programs = Program::value_variants().iter().zip([Mask::Full, Mask::Causal].into_iter().cycle());
        for (mask, program) in plain.into_iter().chain(programs.map(|(&program, mask)| (mask, Some(program)))) {
            let mut case = Case { program, ..case(2, 150, 4, mask) };
            (case.problem.kv_heads, case.problem.kv_rows, case.problem.head_dim) = (2, 170, 8);
            let draw = |rows: usize, heads: usize, seed| normal::<f32>(2 * rows * heads * 8, seed);
            let (q, dout, k, v) = (draw(150, 4, 0), draw(150, 4, 1), draw(170, 2, 2), draw(170, 2, 3));
            let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let scores = Scores::new(&device, &case, 7).unwrap();
            let bound = scores.bind(None).unwrap();
            let attention = scores.apply(Attention::new().with_mask(mask), bound.as_ref());
            for part in [Part::rows_of(&case, 1, 3, 0), Part::rows_of(&case, 0, 1, 40), Part::rows_of(&case, 1, 2, 86)]
            {
                let mut given = vec![0.0f32; dout.len()];
                part.give(&case, &dout, &mut given);
                let inputs = [&wide(&q)[..], &wide(&k), &wide(&v)];
                let whole = reference::backward(inputs, &wide(&given), None, case.problem, &attention).unwrap();
                let cut_q = |data: &[f32]| wide(&part.of_q(&case, data).collect::<Vec<_>>());
                let cut_kv = |data: &[f32]| wide(&part.of_kv(&case, data).collect::<Vec<_>>());
                let inputs = [&cut_q(&q)[..], &cut_kv(&k), &cut_kv(&v)];
                let bound = scores.bind(part.place(&case)).unwrap();
                let attention = Attention::new().with_mask(mask);
                let attention = scores.apply_to_part(attention, bound.as_ref(), part.place(&case)).unwrap();
                let own = reference::backward(inputs, &cut_q(&given), None, part.sizes, &attention).unwrap();
                let narrow = |data: &[f64]| data.iter().map(|&x| x as f32).collect::<Vec<_>>();
                for (found, own) in [
                    (cut_q(&narrow(&whole.dq)), own.dq),
                    (cut_kv(&narrow(&whole.dk)), own.dk),
                    (cut_kv(&narrow(&whole.dv)), own.dv),
                ] {
                    assert!(max_abs_difference(&found, &own) < 1e-6, "{mask:?} {program:?} {part:?}");
                    assert!(own.iter().any(|x| x.abs() > 1e-2));
                }
                // And nothing is given outside of it.
                let sum = |data: &[f64]| data.iter().map(|x| x.abs()).sum::<f64>();
                assert!((sum(&whole.dv) - sum(&wide(&cut_kv_f32(&part, &case, &whole.dv)))).abs() < 1e-3);
            }
        }
    }

    fn cut_kv_f32(part: &Part, case: &Case, data: &[f64]) -> Vec<f32> {
        let data: Vec<f32> = data.iter().map(|&x| x as f32).collect();
        part.of_kv(case, &data).collect()
    }
}
