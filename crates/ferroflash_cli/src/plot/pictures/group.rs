//! Which cells share a panel.

use crate::bench::record::{Cell, CellProblem, MaskName};

/// Cells that one panel shows: they differ in sequence length only, but for the batch that keeps the number of tokens.
pub(super) struct Group<'a> {
    pub(super) title: String,
    pub(super) cells: Vec<&'a Cell>,
}

/// Panels in the order of mask and head dim; the same sequence length twice in one panel makes two of it.
pub(super) fn groups<'a>(cells: &[&'a Cell]) -> Vec<Group<'a>> {
    type Key = (MaskName, usize, usize, usize, Option<String>, Option<String>);
    fn key(problem: &CellProblem) -> Key {
        let CellProblem { mask, head_dim, q_heads, kv_heads, sequences, program, .. } = problem;
        (*mask, *head_dim, *q_heads, *kv_heads, sequences.clone(), program.clone())
    }
    let mut keys: Vec<Key> = cells.iter().map(|cell| key(&cell.problem)).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut groups = Vec::new();
    for wanted in keys {
        let mut of_key: Vec<&'a Cell> = cells.iter().copied().filter(|cell| key(&cell.problem) == wanted).collect();
        of_key.sort_by_key(|cell| (cell.problem.seq, cell.problem.batch, cell.problem.kv_seq));
        let (mask, head_dim, q_heads, kv_heads, sequences, program) = wanted;
        let mut title = format!("head dim {head_dim}, {}", mask.title());
        if q_heads != kv_heads {
            title += &format!(", {q_heads} heads on {kv_heads}");
        }
        title.extend(sequences.into_iter().chain(program).map(|more| format!(", {more}")));
        let once = of_key.windows(2).all(|pair| pair[0].problem.seq != pair[1].problem.seq)
            && of_key.iter().all(|cell| cell.problem.seq == cell.problem.kv_seq);
        if once {
            groups.push(Group { title, cells: of_key });
            continue;
        }
        // Several batches, or queries that are not as many as keys.
        let mut rest: Vec<(usize, usize)> = of_key.iter().map(|cell| others(&cell.problem)).collect();
        rest.sort_unstable();
        rest.dedup();
        for (batch, kv_seq) in rest {
            let cells = of_key.iter().copied().filter(|cell| others(&cell.problem) == (batch, kv_seq)).collect();
            let keys = if kv_seq == 0 { String::new() } else { format!(", {kv_seq} keys") };
            groups.push(Group { title: format!("{title}, batch {batch}{keys}"), cells });
        }
    }
    groups
}

/// Batch, and the number of keys where it is not that of the queries (else 0).
fn others(problem: &CellProblem) -> (usize, usize) {
    (problem.batch, if problem.kv_seq == problem.seq { 0 } else { problem.kv_seq })
}

/// As many columns as every mask has panels, when that is a grid that fits.
pub(super) fn columns(groups: &[Group<'_>]) -> usize {
    let mut counts: Vec<(MaskName, usize)> = Vec::new();
    for mask in groups.iter().map(|group| group.cells[0].problem.mask) {
        match counts.iter_mut().find(|count| count.0 == mask) {
            Some(count) => count.1 += 1,
            None => counts.push((mask, 1)),
        }
    }
    let first = counts.first().map_or(1, |count| count.1);
    let even = counts.iter().all(|count| count.1 == first);
    // One panel for each of two masks stand side by side.
    if even && (2..=3).contains(&first) { first } else { groups.len().min(if groups.len() == 4 { 2 } else { 3 }) }
}
