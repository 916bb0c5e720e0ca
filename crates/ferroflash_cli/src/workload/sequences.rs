//! Problems whose keys are in a cache or whose sequences are packed: the numbers that say which rows are whose, and the calls.

use super::{Case, Rows, Set};
use ferroflash::{
    Attention, Device, Graph, Indices, KvCache, Lse, PackedRows, PageTable, Plan, Result, Stream, Tensor, TensorView,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

/// Calls of a graph, at least: so many that starting it does not count beside them.
const GRAPH_CALLS: u32 = 20;

/// Calls of a graph on so many sets of tensors, each of which comes equally often.
pub(super) fn graph_calls(sets: usize) -> u32 {
    GRAPH_CALLS.next_multiple_of(sets as u32)
}

/// Which rows belong to which sequence, on the device.
pub(super) enum Numbers {
    /// Keys in a cache.
    Cached {
        /// Rows in use, of each sequence.
        lengths: Indices,
        /// Pages of the sequences, and how many each has.
        pages: Option<(Indices, usize)>,
    },
    /// Packed sequences.
    Packed {
        /// First row of each, and the end of the last.
        starts: Indices,
        longest: usize,
    },
}

/// Calls that were captured.
pub(super) struct Replay(Graph);

/// Pages of each sequence, one after the other, in a drawn order; `None` where there are no pages.
pub(super) fn page_table(case: &Case, seed: u64) -> Option<Vec<i32>> {
    let Rows::Pages(rows) = case.rows else { return None };
    let pages = case.problem.batch * case.problem.kv_rows.div_ceil(rows);
    let mut table: Vec<i32> = (0..pages as i32).collect();
    table.shuffle(&mut SmallRng::seed_from_u64(seed));
    Some(table)
}

impl Numbers {
    /// Those of a problem with this table of pages; `None` for equal sequences, which need none.
    pub(super) fn new(device: &Device, case: &Case, table: Option<&[i32]>) -> Result<Option<Numbers>> {
        // The library takes fewer than 2^31 rows.
        let numbers = |values: &[usize]| {
            let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
            Indices::from_slice(device, &values)
        };
        let batch = case.problem.batch;
        Ok(match case.rows {
            Rows::Equal => None,
            Rows::Packed(lengths) => {
                Some(Numbers::Packed { starts: numbers(&lengths.starts())?, longest: lengths.longest() })
            }
            Rows::Cache | Rows::Pages(_) => Some(Numbers::Cached {
                lengths: numbers(&vec![case.problem.kv_rows; batch])?,
                pages: match table {
                    Some(table) => Some((Indices::from_slice(device, table)?, table.len() / batch)),
                    None => None,
                },
            }),
        })
    }

    /// Those that other programs get, by the names of their files.
    pub(super) fn files(&self) -> Vec<(&'static str, &Indices)> {
        match self {
            Numbers::Packed { starts, .. } => vec![("starts", starts)],
            Numbers::Cached { lengths, pages } => {
                let pages = pages.iter().map(|(pages, _)| ("pages", pages));
                std::iter::once(("lengths", lengths)).chain(pages).collect()
            }
        }
    }

    pub(super) fn plan(&self, attention: &Attention, set: &Set) -> Result<Plan> {
        let (q, k, v) = (set.q.view(), set.k.view(), set.v.view());
        match self {
            Numbers::Packed { starts, longest } => {
                let rows = PackedRows::new(starts.view()).with_longest(*longest);
                attention.plan_packed(&packed(&q)?, &packed(&k)?, &packed(&v)?, &rows, &rows)
            }
            Numbers::Cached { lengths, pages } => {
                attention.plan_cached(&q, None, &cache(&k, &v, lengths, pages.as_ref()), None)
            }
        }
    }

    /// A call that allocates what comes out.
    pub(super) fn forward(&self, attention: &Attention, set: &Set) -> Result<(Tensor, Option<Lse>)> {
        let (q, k, v) = (set.q.view(), set.k.view(), set.v.view());
        let output = match self {
            Numbers::Packed { starts, longest } => {
                let rows = PackedRows::new(starts.view()).with_longest(*longest);
                attention.forward_packed(&packed(&q)?, &packed(&k)?, &packed(&v)?, &rows, &rows)?
            }
            Numbers::Cached { lengths, pages } => {
                attention.forward_cached(&q, None, &cache(&k, &v, lengths, pages.as_ref()))?
            }
        };
        Ok((output.out, output.lse))
    }

    /// A call into the tensors of a set.
    pub(super) fn launch(&self, attention: &Attention, stream: &Stream, set: &mut Set, lse: &mut Lse) -> Result<()> {
        let Set { q, k, v, out, .. } = set;
        let (q, k, v) = (q.view(), k.view(), v.view());
        let mut lse = lse.view_mut();
        match self {
            Numbers::Packed { starts, longest } => {
                let rows = PackedRows::new(starts.view()).with_longest(*longest);
                let shape = rows_first(&out.view());
                let mut out = out.view_mut().into_reshaped(shape)?;
                let (q, k, v) = (packed(&q)?, packed(&k)?, packed(&v)?);
                attention.forward_packed_into(stream, &q, &k, &v, &rows, &rows, &mut out, Some(&mut lse))
            }
            Numbers::Cached { lengths, pages } => {
                let cache = cache(&k, &v, lengths, pages.as_ref());
                attention.forward_cached_into(stream, &q, None, &cache, &mut out.view_mut(), Some(&mut lse))
            }
        }
    }

    /// Captures so many calls, in turns on the sets.
    pub(super) fn capture(
        &self,
        attention: &Attention,
        device: &Device,
        calls: u32,
        sets: &mut [Set],
        lse: &mut Lse,
    ) -> Result<Replay> {
        device.prepare(&self.plan(attention, &sets[0])?)?;
        let count = sets.len();
        let graph = device.capture(|stream| {
            (0..calls as usize).try_for_each(|call| self.launch(attention, stream, &mut sets[call % count], lse))
        })?;
        Ok(Replay(graph))
    }
}

impl Replay {
    /// Queues all calls.
    ///
    /// # Safety
    /// The tensors that they were captured on are as they were, and nobody else works on them.
    pub(super) unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: the caller vouches for the memory.
        unsafe { self.0.launch(stream) }
    }
}

/// A tensor of one batch entry as `[row, head, dim]`.
fn packed<'a>(view: &TensorView<'a>) -> Result<TensorView<'a>> {
    view.reshape(rows_first(view))
}

fn rows_first(view: &TensorView<'_>) -> [usize; 3] {
    let shape = view.shape();
    [shape[1], shape[2], shape[3]]
}

fn cache<'a>(
    k: &TensorView<'a>,
    v: &TensorView<'a>,
    lengths: &'a Indices,
    pages: Option<&'a (Indices, usize)>,
) -> KvCache<'a> {
    let pages = pages.map(|(pages, width)| PageTable::new(pages.view(), *width));
    KvCache::new(k, v).with_lengths(lengths.view()).with_pages(pages)
}

#[cfg(test)]
mod tests {
    use super::super::case::tests::case;
    use super::*;
    use kernel_spec::Mask;

    #[test]
    fn every_page_belongs_to_one_sequence() {
        let mut paged = case(3, 40, 2, Mask::Causal);
        assert_eq!(page_table(&paged, 1), None);
        paged.rows = Rows::Pages(16);
        let table = page_table(&paged, 1).unwrap();
        assert_eq!(table.len(), 3 * 3);
        assert_ne!(Some(&table), page_table(&paged, 2).as_ref());
        let mut sorted = table.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..9) && sorted != table, "{table:?}");
    }
}
