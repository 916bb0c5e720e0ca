//! From a record to its figures.

mod errors;
mod group;
mod labels;
mod lines;
mod roofline;
#[cfg(test)]
mod tests;

use super::draw::plot_width;
use super::figure::{Axis, Figure, Mark, Panel};
use super::style::Style;
use crate::bench::record::{Cell, CellProblem, Measurement, Record};
use crate::format;
use group::{Group, columns, groups};
use labels::{bytes_label, count_label, seq_label, shown_name, wrapped};
use lines::side_by_side;
use std::collections::BTreeMap;

/// Panels of one picture: four rows of three still fit on a page.
const MAX_PANELS: usize = 12;

/// Every picture that the record has the data for, one element type after the other.
pub(crate) fn figures(record: &Record) -> Vec<Figure> {
    let mut dtypes: Vec<&str> = Vec::new();
    for cell in &record.cells {
        if !dtypes.contains(&cell.problem.dtype.as_str()) {
            dtypes.push(&cell.problem.dtype);
        }
    }
    let mut figures = Vec::new();
    for dtype in dtypes {
        let picture = Picture::new(record, dtype);
        let all = [
            picture.tflops(),
            picture.speedup(),
            picture.memory(),
            picture.errors(),
            picture.roofline(),
            picture.counter(
                "traffic",
                "Global memory traffic, counted by the emulator",
                "bytes read and written",
                &["global_bytes_read", "global_bytes_written"],
                bytes_label,
            ),
            picture.counter(
                "instructions",
                "Instructions, counted by the emulator",
                "instructions of all threads",
                &["lane_instructions"],
                count_label,
            ),
        ];
        figures.extend(all.into_iter().flatten().flat_map(split));
    }
    figures
}

/// Pictures of at most [`MAX_PANELS`] panels, numbered when there are several.
fn split(figure: Figure) -> Vec<Figure> {
    if figure.panels.len() <= MAX_PANELS {
        return vec![figure];
    }
    let pages = figure.panels.chunks(MAX_PANELS).enumerate().map(|(i, panels)| Figure {
        name: format!("{}-{}", figure.name, i + 1),
        panels: panels.to_vec(),
        ..figure.clone()
    });
    pages.collect()
}

/// The cells of one element type, and who ran on them.
struct Picture<'a> {
    record: &'a Record,
    dtype: &'a str,
    groups: Vec<Group<'a>>,
    columns: usize,
    /// Name, whether it is a peer, and look.
    implementations: Vec<(&'a str, bool, Style)>,
}

impl<'a> Picture<'a> {
    fn new(record: &'a Record, dtype: &'a str) -> Picture<'a> {
        let cells: Vec<&Cell> = record.cells.iter().filter(|cell| cell.problem.dtype == dtype).collect();
        let mut implementations: Vec<(&str, bool, Style)> = Vec::new();
        for result in cells.iter().flat_map(|cell| &cell.results).filter(|result| result.skipped.is_none()) {
            if !implementations.iter().any(|known| known.0 == result.name) {
                let style = Style::of(&result.name, result.peer, implementations.len());
                implementations.push((&result.name, result.peer, style));
            }
        }
        // Ours first, whoever came first in the cells.
        implementations.sort_by_key(|implementation| implementation.1);
        let groups = groups(&cells);
        let columns = columns(&groups);
        Picture { record, dtype, groups, columns, implementations }
    }

    /// The median speed of everybody.
    fn tflops(&self) -> Option<Figure> {
        let value = |_: &Cell, result: &Measurement| result.tflops;
        let y = Axis::from_zero("TFLOP/s", self.values(value));
        let title = format!("Speed of {}", self.record.method.pass.title());
        self.by_seq("tflops", &title, y, value, |_| Vec::new())
    }

    fn speedup(&self) -> Option<Figure> {
        let value = |_: &Cell, result: &Measurement| result.speedup_over_naive.filter(|_| result.name != "naive");
        let y =
            Axis::powers("times as fast as ferroflash naive", 2, self.values(value).chain([1.0]), |v| format!("{v}x"));
        let naive = Style::ceiling(None);
        let line = |x: &Axis| {
            let (from, to) = ((x.limits.0, 1.0), (x.limits.1, 1.0));
            vec![Mark::Rule { ink: naive.ink, from, to, dash: naive.dash, width: naive.width }]
        };
        let title = "Speedup over attention that writes its scores to memory";
        let mut figure = self.by_seq("speedup", title, y, value, line)?;
        figure.legend.push(("ferroflash naive (1x)".to_owned(), naive));
        Some(figure)
    }

    fn memory(&self) -> Option<Figure> {
        let value =
            |_: &Cell, result: &Measurement| result.extra_bytes.filter(|&bytes| bytes > 0).map(|bytes| bytes as f64);
        let y = Axis::powers("extra device memory", 2, self.values(value), bytes_label);
        let mut figure =
            self.by_seq("memory", "Memory of one call beyond q, k, v and out", y, value, |_| Vec::new())?;
        // Zero has no place on a logarithmic axis.
        let free = |name: &str| {
            let mut results =
                self.results().filter(|(_, result)| result.name == name).filter_map(|(_, r)| r.extra_bytes).peekable();
            results.peek().is_some() && results.any(|bytes| bytes == 0)
        };
        let free: Vec<_> = self.implementations.iter().filter(|i| free(i.0)).map(|i| shown_name(i.0, i.1)).collect();
        if !free.is_empty() {
            figure.notes.extend(wrapped(
                &format!("Not drawn where it needs no extra memory at all: {}.", free.join(", ")),
                self.columns,
            ));
        }
        Some(figure)
    }

    fn counter(
        &self,
        name: &str,
        title: &str,
        axis: &str,
        counters: &[&str],
        label: impl Fn(f64) -> String,
    ) -> Option<Figure> {
        let value = |_: &Cell, result: &Measurement| {
            let sum: u64 = counters.iter().filter_map(|counter| result.counters.get(*counter)).sum();
            (sum > 0).then_some(sum as f64)
        };
        // Labels of bytes are round in powers of two, those of counts in powers of ten.
        let base = if axis.contains("bytes") { 2 } else { 10 };
        let y = Axis::powers(axis, base, self.values(value), label);
        self.by_seq(name, title, y, value, |_| Vec::new())
    }

    fn results(&self) -> impl Iterator<Item = (&'a Cell, &'a Measurement)> {
        let cells = self.groups.iter().flat_map(|group| group.cells.iter().copied());
        cells.flat_map(|cell| cell.results.iter().map(move |result| (cell, result)))
    }

    fn values(&self, value: impl Fn(&Cell, &Measurement) -> Option<f64>) -> impl Iterator<Item = f64> {
        self.results().filter_map(move |(cell, result)| value(cell, result))
    }

    fn legend(&self, drawn: impl Fn(&str) -> bool) -> Vec<(String, Style)> {
        let drawn = self.implementations.iter().filter(|implementation| drawn(implementation.0));
        drawn.map(|&(name, peer, style)| (shown_name(name, peer), style)).collect()
    }

    /// A line over the sequence length for everybody, one panel for each group; `None` when nobody has the value.
    fn by_seq(
        &self,
        name: &str,
        title: &str,
        y: Axis,
        value: impl Fn(&Cell, &Measurement) -> Option<f64>,
        below: impl Fn(&Axis) -> Vec<Mark>,
    ) -> Option<Figure> {
        self.values(&value).next()?;
        let mut panels = Vec::new();
        let mut hidden = BTreeMap::new();
        for group in &self.groups {
            let seqs: Vec<f64> = group.cells.iter().map(|cell| cell.problem.seq as f64).collect();
            let x = Axis::at_values("sequence length (tokens)", &seqs, seq_label);
            let mut marks = below(&x);
            let mut lines = Vec::new();
            for (name, peer, style) in &self.implementations {
                let point = |cell: &&Cell| Some((cell.problem.seq as f64, value(cell, cell.result(name)?)?));
                let points: Vec<_> = group.cells.iter().filter_map(point).collect();
                if !points.is_empty() {
                    lines.push((shown_name(name, *peer), *style, points));
                }
            }
            let places = x.ticks.windows(2).map(|pair| x.place(pair[1].0) - x.place(pair[0].0));
            let spacing = places.fold(0.5, f64::min) * plot_width(self.columns);
            let (drawn, crowded) = side_by_side(&lines, &y, spacing);
            marks.extend(drawn);
            for names in crowded {
                hidden.entry(names).or_insert_with(Vec::new).push(group.title.as_str());
            }
            panels.push(Panel { title: group.title.clone(), x, y: y.clone(), marks });
        }
        let legend = self.legend(|name| self.results().any(|(cell, r)| r.name == name && value(cell, r).is_some()));
        let moved = |mark: &Mark| matches!(mark, Mark::Line { shift, .. } if *shift != 0.0);
        let mut notes = Vec::new();
        if panels.iter().flat_map(|panel| &panel.marks).any(moved) {
            notes.push("Markers side by side on one line: the same values.".to_owned());
        }
        for (names, titles) in hidden {
            let places = if titles.len() == panels.len() { String::new() } else { format!(" ({})", titles.join("; ")) };
            notes.extend(wrapped(
                &format!("On each other, the same values{places}: {}.", names.join(", ")),
                self.columns,
            ));
        }
        Some(self.figure(name, title, legend, self.columns, panels, notes))
    }

    fn figure(
        &self,
        name: &str,
        title: &str,
        legend: Vec<(String, Style)>,
        columns: usize,
        panels: Vec<Panel>,
        notes: Vec<String>,
    ) -> Figure {
        let environment = &self.record.environment;
        let subtitle = format!("{}, {}, {}", environment.device, self.dtype, self.sizes());
        let finding = self.finding(name).map(|finding| format!(" {finding}")).unwrap_or_default();
        let description = format!("{title} on {subtitle}.{finding}");
        Figure {
            name: format!("{name}-{}", self.dtype),
            title: title.to_owned(),
            subtitle,
            description,
            legend,
            panels,
            columns: columns.clamp(1, 3),
            wide: false,
            notes,
        }
    }

    /// The newest of our kernels in one sentence, for who does not see the picture and for who wants to know what to see in it.
    fn finding(&self, figure: &str) -> Option<String> {
        let (name, peer, _) = *self.implementations.iter().rfind(|implementation| !implementation.1)?;
        let newest = shown_name(name, peer);
        let of_newest = |value: fn(&Measurement) -> Option<f64>| {
            let values =
                self.results().filter(|(_, result)| result.name == name).filter_map(|(_, result)| value(result));
            let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), v| (low.min(v), high.max(v)));
            (low <= high).then_some((low, high))
        };
        let show = format::significant;
        match figure {
            "tflops" => {
                let (_, most) = of_newest(|result| result.tflops)?;
                let speed = format!("{newest} reaches up to {} TFLOP/s", show(most));
                Some(match of_newest(|result| result.ratio_to_best_peer) {
                    Some((low, high)) => {
                        format!("{speed}, {} to {} times the speed of the best peer.", show(low), show(high))
                    }
                    None => format!("{speed}."),
                })
            }
            "speedup" => {
                let (low, high) = of_newest(|result| result.speedup_over_naive)?;
                Some(format!("{newest} is {} to {} times as fast as naive.", show(low), show(high)))
            }
            "memory" => {
                let (_, most) = of_newest(|result| result.extra_bytes.map(|bytes| bytes as f64))?;
                let naive = self.results().filter(|(_, r)| r.name == "naive").filter_map(|(_, r)| r.extra_bytes).max();
                let naive =
                    naive.map(|bytes| format!(", ferroflash naive up to {}", format::bytes(bytes))).unwrap_or_default();
                Some(format!("{newest} needs up to {}{naive}.", format::bytes(most as u64)))
            }
            "errors" => {
                let share =
                    |result: &Measurement| result.check.as_ref().map(|check| 100.0 * check.max_error / check.bound);
                let (_, most) = of_newest(share)?;
                Some(format!("The largest error of {newest} is {most:.0} % of what is accepted."))
            }
            "roofline" => {
                let (low, high) = of_newest(|result| result.bound_fraction.map(|fraction| 100.0 * fraction))?;
                Some(format!("{newest} runs at {low:.0} to {high:.0} % of its ceiling."))
            }
            _ => None,
        }
    }

    /// What the cells have in common: tokens or batch, and heads.
    fn sizes(&self) -> String {
        let problems: Vec<&CellProblem> =
            self.groups.iter().flat_map(|group| &group.cells).map(|cell| &cell.problem).collect();
        let same = |value: fn(&CellProblem) -> usize| {
            let first = problems.first().map(|problem| value(problem))?;
            problems.iter().all(|problem| value(problem) == first).then_some(first)
        };
        let mut parts = Vec::new();
        if let Some(batch) = same(|problem| problem.batch) {
            parts.push(format!("batch {batch}"));
        } else if let Some(tokens) = same(|problem| problem.batch * problem.seq) {
            parts.push(format!("{tokens} tokens (batch = {tokens} / sequence length)"));
        }
        if let Some(heads) = same(|problem| problem.q_heads) {
            parts.push(format!("{heads} heads"));
        } else if let Some(width) = same(|problem| problem.q_heads * problem.head_dim) {
            parts.push(format!("heads = {width} / head dim"));
        }
        parts.join(", ")
    }
}
