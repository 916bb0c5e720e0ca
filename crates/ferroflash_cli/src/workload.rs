//! One attention problem on a device, with random inputs and a reference to compare results with.

mod case;

use crate::bench::record::{Check, ErrorQuantiles, LseCheck};
use crate::names::with_element;
use crate::values::Values;
use anyhow::{Context, Result, ensure};
pub(crate) use case::Case;
use clap::ValueEnum;
use ferroflash::reference::{self, Comparison, ReferenceOutput, Row};
use ferroflash::{Attention, Device, Element, Layout, Lse, LseShape, Shape, Sizes, Stream, Tensor};
use kernel_spec::{DType, Kernel};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;

/// Below this many operations the whole output is compared with the reference; about a second of f64 on two cores.
const FULL_CHECK_FLOPS: f64 = 1e9;

/// Rows drawn for the comparison of larger outputs, besides the first and last row of the first and last head.
const DRAWN_ROWS: usize = 128;

/// What a timed launch finds in the level-two cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum L2 {
    /// What the launch before it left there, as in a layer that has just been computed
    #[default]
    Warm,
    /// Nothing of its own: a copy of twice the cache goes before each launch, outside of the time
    Flush,
    /// Little of its own: launches go round several copies of the tensors, together twice the cache
    Rotate,
}

impl L2 {
    pub(crate) fn name(self) -> &'static str {
        match self {
            L2::Warm => "warm",
            L2::Flush => "flush",
            L2::Rotate => "rotate",
        }
    }
}

/// Bytes of one row of what is copied to flush the cache.
const FLUSH_ROW_BYTES: usize = 1024;

/// The tensors of one launch.
struct Set {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
}

/// Device buffers, and the rows that results are compared on.
pub(crate) struct Workload {
    case: Case,
    device: Device,
    stream: Stream,
    /// Never empty. Results are taken from the first.
    sets: Vec<Set>,
    lse: Lse,
    reference: Reference,
    /// Two tensors, each as large as the level-two cache: copying one to the other leaves nothing else there.
    flush: Option<[Tensor; 2]>,
    /// Of the bits that were last compared with the reference, by kernel.
    fingerprints: HashMap<Kernel, u64>,
}

/// What results are compared with: output and log-sum-exp of some rows, one after the other.
struct Reference {
    rows: Vec<Row>,
    exact: ReferenceOutput,
    /// The same formula in the precision of the tensors.
    rounded: ReferenceOutput,
}

impl Workload {
    /// Allocates q, k and v, fills them with `values`, and computes the reference.
    pub(crate) fn new(device: &Device, case: Case, values: Values, seed: u64) -> Result<Workload> {
        case.problem.validate()?;
        with_element!(case.problem.dtype, T => Workload::with::<T>(device, case, values, seed))
    }

    /// Prepares for launches that find this in the cache.
    pub(crate) fn with_l2(mut self, l2: L2) -> Result<Workload> {
        let cache = u64::from(self.device.info().l2_bytes);
        match l2 {
            L2::Warm => {}
            L2::Flush => {
                // A device without a cache has nothing to flush; the copy of one row keeps the path the same.
                let rows = (cache as usize).div_ceil(FLUSH_ROW_BYTES).max(1);
                let shape = Shape::new(1, rows, 1, FLUSH_ROW_BYTES / DType::F32.bytes());
                let zeros = || Tensor::zeros(&self.device, DType::F32, shape, Layout::Bshd);
                self.flush = Some([zeros()?, zeros()?]);
            }
            L2::Rotate => {
                for _ in 1..self.case.rotated_sets(cache) {
                    let first = &self.sets[0];
                    let copy = |tensor: &Tensor| -> ferroflash::Result<Tensor> {
                        let mut copy = Tensor::uninit(&self.device, tensor.dtype(), tensor.shape(), Layout::Bshd)?;
                        copy.copy_from(&self.stream, tensor)?;
                        Ok(copy)
                    };
                    let (q, k, v) = (copy(&first.q)?, copy(&first.k)?, copy(&first.v)?);
                    let out = Tensor::uninit(&self.device, first.out.dtype(), first.out.shape(), Layout::Bshd)?;
                    self.sets.push(Set { q, k, v, out });
                }
            }
        }
        Ok(self)
    }

    /// Writes q, k and v as files of that name, element after element in the order `[batch, row, head, dim]`.
    pub(crate) fn write_inputs(&self, folder: &Path) -> Result<()> {
        let Set { q, k, v, .. } = &self.sets[0];
        for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
            let path = folder.join(name);
            let write = |bytes: &[u8]| std::fs::write(&path, bytes);
            with_element!(self.case.problem.dtype, T => write(bytemuck::cast_slice(&tensor.to_vec::<T>()?)))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn with<T: Element>(device: &Device, case: Case, values: Values, seed: u64) -> Result<Workload> {
        let [q, k, v] = [(case.q_shape(), 0), (case.kv_shape(), 1), (case.kv_shape(), 2)].map(|(shape, tensor)| {
            let elements = shape.elements().context("the tensors are larger than the address space")?;
            anyhow::Ok((values.draw::<T>(elements, seed.wrapping_mul(3).wrapping_add(tensor)), shape))
        });
        let (q, k, v) = (q?, k?, v?);
        let reference = Reference::new(&case, &q.0, &k.0, &v.0, seed)?;
        let upload = |(data, shape): &(Vec<T>, Shape)| Tensor::from_slice(device, data, *shape, Layout::Bshd);
        let Sizes { batch, q_heads: heads, q_rows: rows, dtype, .. } = case.problem;
        Ok(Workload {
            case,
            device: device.clone(),
            stream: device.default_stream(),
            sets: vec![Set {
                q: upload(&q)?,
                k: upload(&k)?,
                v: upload(&v)?,
                out: Tensor::uninit(device, dtype, case.q_shape(), Layout::Bshd)?,
            }],
            lse: Lse::uninit(device, LseShape { batch, heads, rows })?,
            reference,
            flush: None,
            fingerprints: HashMap::new(),
        })
    }

    /// The options that run `kernel` on this problem.
    pub(crate) fn attention(&self, kernel: Kernel) -> Attention {
        Attention::new().with_mask(self.case.mask).with_kernel(kernel).with_lse(true)
    }

    /// Milliseconds on the device for `launches` forward passes in a row, together. `lead`: one more goes ahead, outside of the time,
    /// so that a device at rest does not wait for the host inside of it.
    pub(crate) fn time_ms(&mut self, kernel: Kernel, launches: u32, lead: bool) -> ferroflash::Result<f64> {
        let attention = self.attention(kernel);
        let Workload { device, stream, sets, lse, flush, .. } = self;
        let mut lse = lse.view_mut();
        let mut launch = |i: u32| {
            let count = sets.len();
            let Set { q, k, v, out } = &mut sets[i as usize % count];
            attention.forward_into(stream, &q.view(), &k.view(), &v.view(), &mut out.view_mut(), Some(&mut lse))
        };
        if lead {
            launch(launches)?;
        }
        let elapsed = match flush {
            None => device.time(stream, || (0..launches).try_for_each(&mut launch))?,
            Some([to, from]) => {
                device.time_each(stream, launches, || to.copy_from(stream, from), || launch(0))?.iter().sum()
            }
        };
        Ok(elapsed.as_secs_f64() * 1e3)
    }

    /// Device memory at the peak of one allocating call, beyond q, k, v and out: measured, not computed.
    pub(crate) fn extra_bytes(&self, kernel: Kernel) -> ferroflash::Result<u64> {
        let before = self.device.memory().live_bytes;
        self.device.reset_peak();
        let Set { q, k, v, .. } = &self.sets[0];
        let output = self.attention(kernel).forward(&q.view(), &k.view(), &v.view())?;
        self.device.synchronize()?;
        let out_bytes = (output.out.storage_elements() * output.out.dtype().bytes()) as u64;
        Ok(self.device.memory().peak_bytes - before - out_bytes)
    }

    /// Runs `kernel` once over poisoned outputs and compares them with the reference.
    pub(crate) fn check(&mut self, kernel: Kernel) -> ferroflash::Result<Check> {
        with_element!(self.case.problem.dtype, T => self.check_as::<T>(kernel))
    }

    fn check_as<T: Element>(&mut self, kernel: Kernel) -> ferroflash::Result<Check> {
        // NaN in every type: an element that the kernel does not write stands out.
        let attention = self.attention(kernel);
        let Set { q, k, v, out } = &mut self.sets[0];
        out.fill_bytes(0xff)?;
        self.lse.fill_bytes(0xff)?;
        let mut lse = self.lse.view_mut();
        attention.forward_into(&self.stream, &q.view(), &k.view(), &v.view(), &mut out.view_mut(), Some(&mut lse))?;
        self.stream.synchronize()?;
        let (out, lse) = (out.to_vec::<T>()?, self.lse.to_vec()?);
        self.fingerprints.insert(kernel, fingerprint(&out, &lse));
        Ok(self.reference.compare(&self.case, &out, Some(&lse)))
    }

    /// Whether one more [check](Self::check) of `kernel` finds the bits of the one before.
    pub(crate) fn comes_again(&mut self, kernel: Kernel) -> ferroflash::Result<bool> {
        let before = self.fingerprints.get(&kernel).copied();
        self.check(kernel)?;
        Ok(before == self.fingerprints.get(&kernel).copied())
    }

    /// Compares an output that another program wrote to a file, in the order `[batch, row, head, dim]`, with the reference.
    pub(crate) fn check_file(&self, path: &Path) -> Result<Check> {
        with_element!(self.case.problem.dtype, T => self.check_file_of::<T>(path))
    }

    fn check_file_of<T: Element>(&self, path: &Path) -> Result<Check> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let expected = self.case.q_shape().elements().unwrap_or(usize::MAX).saturating_mul(size_of::<T>());
        ensure!(bytes.len() == expected, "the output has {} bytes instead of {expected}", bytes.len());
        let out: Vec<T> = bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
        Ok(self.reference.compare(&self.case, &out, None))
    }
}

/// A hash of all bits.
fn fingerprint<T: Element>(out: &[T], lse: &[f32]) -> u64 {
    // Piece by piece on all cores: an output has some hundred million bytes.
    let pieces = |bytes: &[u8]| -> Vec<u64> {
        let hash = |piece: &[u8]| {
            let mut hasher = DefaultHasher::new();
            hasher.write(piece);
            hasher.finish()
        };
        bytes.par_chunks(1 << 20).map(hash).collect()
    };
    let mut hasher = DefaultHasher::new();
    for piece in [pieces(bytemuck::cast_slice(out)), pieces(bytemuck::cast_slice(lse))].concat() {
        hasher.write_u64(piece);
    }
    hasher.finish()
}

impl Reference {
    fn new<T: Element>(case: &Case, q: &[T], k: &[T], v: &[T], seed: u64) -> Result<Reference> {
        let rows = compared_rows(case, seed);
        let [q, k, v] = [q, k, v].map(|data| data.par_iter().map(|x| x.to_f64()).collect::<Vec<_>>());
        let attention = Attention::new().with_mask(case.mask);
        let exact = reference::forward_rows(&q, &k, &v, case.problem, &attention, &rows)?;
        let rounded = reference::forward_rounded_rows(&q, &k, &v, case.problem, &attention, &rows)?;
        Ok(Reference { rows, exact, rounded })
    }

    /// Compares `out`, `[batch, row, head, dim]`, and `lse`, `[batch, head, row]`, if there is one, with the reference.
    fn compare<T: Element>(&self, case: &Case, out: &[T], lse: Option<&[f32]>) -> Check {
        let Sizes { batch, q_rows, q_heads, head_dim, .. } = case.problem;
        let mut found = Vec::new();
        for row in &self.rows {
            let start = ((row.batch * q_rows + row.q_row) * q_heads + row.q_head) * head_dim;
            found.extend(out[start..start + head_dim].iter().map(|x| x.to_f64()));
        }
        let comparison = Comparison::new(&found, &self.exact.out, &self.rounded.out);
        let lse_check = lse.map(|lse| {
            let place = |row: &Row| (row.batch * q_heads + row.q_head) * q_rows + row.q_row;
            let found: Vec<f64> = self.rows.iter().map(|row| lse[place(row)].into()).collect();
            LseCheck {
                max_error: reference::max_abs_difference(&found, &self.exact.lse),
                bound: lse_bound(&self.exact.lse, &self.rounded.lse),
            }
        });
        // Every row of these problems sees a key, so whatever is not finite was not written, or is wrong.
        let all_written =
            out.par_iter().all(|x| x.to_f64().is_finite()) && lse.is_none_or(|lse| lse.iter().all(|x| x.is_finite()));
        Check {
            rows: self.rows.len(),
            rows_total: batch * q_heads * q_rows,
            max_error: comparison.max_error,
            error_quantiles: error_quantiles(&found, &self.exact.out),
            rounded_error: comparison.rounded_error,
            bound: comparison.bound,
            lse: lse_check,
            within: comparison.within && lse_check.is_none_or(|lse| lse.max_error <= lse.bound) && all_written,
        }
    }
}

/// How `|found - exact|` is distributed; `None` when one of them is not finite.
fn error_quantiles(found: &[f64], exact: &[f64]) -> Option<ErrorQuantiles> {
    let mut errors: Vec<f64> = found.iter().zip(exact).map(|(found, exact)| (found - exact).abs()).collect();
    if errors.is_empty() || !errors.iter().all(|error| error.is_finite()) {
        return None;
    }
    errors.sort_unstable_by(f64::total_cmp);
    let at = |fraction: f64| errors[(fraction * (errors.len() - 1) as f64).round() as usize];
    Some(ErrorQuantiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999) })
}

/// Largest accepted error of the log-sum-exp: the rule of the output, and 16 units in the last place of the largest value, which
/// passes through a base-2 logarithm on the way.
fn lse_bound(exact: &[f64], rounded: &[f64]) -> f64 {
    let largest = exact.iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()));
    reference::tolerance(reference::max_abs_difference(rounded, exact)) + 16.0 * f64::from(f32::EPSILON) * largest
}

/// Every row of a small problem; of a large one the first and last row of the first and last head, and drawn ones.
fn compared_rows(case: &Case, seed: u64) -> Vec<Row> {
    let Sizes { batch, q_rows, q_heads, .. } = case.problem;
    if case.flops() <= FULL_CHECK_FLOPS {
        let rows = (0..batch * q_heads * q_rows).map(|i| Row {
            batch: i / q_rows / q_heads,
            q_head: i / q_rows % q_heads,
            q_row: i % q_rows,
        });
        return rows.collect();
    }
    let mut rows = Vec::new();
    for (batch, q_head) in [(0, 0), (batch - 1, q_heads - 1)] {
        rows.extend([0, q_rows - 1].map(|q_row| Row { batch, q_head, q_row }));
    }
    let mut rng = SmallRng::seed_from_u64(seed);
    rows.extend((0..DRAWN_ROWS).map(|_| Row {
        batch: rng.random_range(0..batch),
        q_head: rng.random_range(0..q_heads),
        q_row: rng.random_range(0..q_rows),
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::case::tests::case;
    use super::*;
    use kernel_spec::Mask;

    #[test]
    fn small_problems_are_compared_in_full() {
        let rows = compared_rows(&case(2, 3, 2, Mask::Full), 0);
        let distinct: std::collections::HashSet<_> = rows.iter().collect();
        assert_eq!((rows.len(), distinct.len()), (12, 12));
    }

    #[test]
    fn large_problems_are_compared_at_their_corners_and_drawn_rows() {
        let rows = compared_rows(&case(4, 4096, 8, Mask::Full), 0);
        assert_eq!(rows.len(), 4 + DRAWN_ROWS);
        assert!(rows.contains(&Row { batch: 3, q_head: 7, q_row: 4095 }));
        assert_ne!(rows, compared_rows(&case(4, 4096, 8, Mask::Full), 1));
    }
}
