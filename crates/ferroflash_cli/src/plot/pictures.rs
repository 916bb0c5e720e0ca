//! From a record to its figures.

use super::draw::plot_width;
use super::figure::{Align, Axis, Figure, Mark, Panel};
use super::style::{LIMIT, Style};
use crate::bench::record::{Ceiling, Cell, CellProblem, Check, ErrorQuantiles, Measurement, Record};
use crate::format;
use std::collections::{BTreeMap, BTreeSet};

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

/// Cells that one panel shows: they differ in sequence length only, but for the batch that keeps the number of tokens.
struct Group<'a> {
    title: String,
    cells: Vec<&'a Cell>,
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

/// What the legend and the axes call an implementation.
fn shown_name(name: &str, peer: bool) -> String {
    if peer { name.to_owned() } else { format!("ferroflash {name}") }
}

/// A sequence length as the papers write it: 512, 1k, 16k.
fn seq_label(seq: f64) -> String {
    let seq = seq as u64;
    if seq >= 1024 && seq.is_multiple_of(1024) { format!("{}k", seq / 1024) } else { seq.to_string() }
}

/// A power of two bytes without the digits after the point.
fn bytes_label(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value} {}", UNITS[unit])
}

/// A power of ten with the letter of its thousands.
fn count_label(count: f64) -> String {
    const UNITS: [&str; 5] = ["", " k", " M", " G", " T"];
    let (mut value, mut unit) = (count, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value}{}", UNITS[unit])
}

/// A power of ten, or a small number as it is.
fn decimal_label(value: f64) -> String {
    if (1e-2..1e5).contains(&value) { format!("{value}") } else { format!("1e{}", value.log10().round()) }
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
        self.by_seq("tflops", "Speed of forward attention", y, value, |_| Vec::new())
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

    /// Every comparison with the reference, in units of what the tolerance rule accepts.
    fn errors(&self) -> Option<Figure> {
        let checks = || {
            self.results().filter_map(|(cell, result)| {
                let check = result.check.as_ref()?;
                (check.max_error.is_finite() && check.max_error > 0.0).then_some((cell, result, check))
            })
        };
        let names: Vec<_> = self.implementations.iter().filter(|i| checks().any(|(_, r, _)| r.name == i.0)).collect();
        if names.is_empty() {
            return None;
        }
        let has_quantiles = checks().any(|(_, _, check)| check.error_quantiles.is_some());
        // No lower than the median: what lies below is as good as exact, and would flatten the rest.
        let values = checks().flat_map(|(_, _, check)| {
            let median = check.error_quantiles.map(|quantiles| quantiles.p50).filter(|&p50| p50 > 0.0);
            [Some(check.max_error / check.bound), median.map(|p50| p50 / check.bound), Some(1.0)].into_iter().flatten()
        });
        let y =
            Axis::powers("|out - f64 reference| / what the rule accepts", 10, values.chain([0.1, 1.6]), decimal_label);
        let shown: Vec<String> = names.iter().map(|i| shown_name(i.0, i.1)).collect();
        let mut masks: Vec<&str> = Vec::new();
        for (cell, ..) in checks() {
            if !masks.contains(&cell.problem.mask.as_str()) {
                masks.push(&cell.problem.mask);
            }
        }
        let panels = masks.into_iter().map(|mask| {
            let x = Axis::names("", &shown);
            let mut marks = vec![
                Mark::Rule {
                    ink: LIMIT,
                    from: (x.limits.0, 1.0),
                    to: (x.limits.1, 1.0),
                    dash: Some((6.0, 3.0)),
                    width: 1.6,
                },
                Mark::Label {
                    at: (x.limits.1, 1.0),
                    text: "accepted".to_owned(),
                    ink: LIMIT,
                    align: Align::Right,
                    above: 5.0,
                },
            ];
            for (place, (name, _, style)) in names.iter().enumerate() {
                let of_name: Vec<_> =
                    checks().filter(|(cell, result, _)| cell.problem.mask == mask && result.name == *name).collect();
                marks.extend(spread(
                    place as f64,
                    *style,
                    &of_name.iter().map(|(_, _, check)| *check).collect::<Vec<_>>(),
                ));
            }
            Panel { title: mask_title(mask), x, y: y.clone(), marks }
        });
        let panels: Vec<_> = panels.collect();
        let mut notes = vec!["Each point: the largest error of one problem.".to_owned()];
        if has_quantiles {
            notes[0].push_str(
                " Thick bar: from the median to the 99th percentile of the errors of all elements; thin bar: to the 99.9th.",
            );
        }
        notes.push(format!("Accepted: {}.", self.record.method.tolerance));
        let figure = self.figure("errors", "Error against attention in f64", Vec::new(), 1, panels, notes);
        Some(Figure { wide: true, ..figure })
    }

    /// Speed over arithmetic intensity, below what the device's units allow.
    fn roofline(&self) -> Option<Figure> {
        let ceilings = self.record.ceilings.as_ref()?;
        let copy = ceilings.copy_bytes_per_second.value;
        let matmul = ceilings.matmul_flops.get(self.dtype)?.value;
        // FLOP for each byte that has to move.
        let intensity =
            |cell: &Cell| cell.roofline.as_ref().map(|roofline| cell.flops / (roofline.hbm_ms * 1e-3 * copy));
        let with_roofline =
            || self.results().filter(|(cell, result)| cell.roofline.is_some() && result.tflops.is_some());
        let mut intensities: Vec<f64> = with_roofline().filter_map(|(cell, _)| intensity(cell)).collect();
        if intensities.is_empty() {
            return None;
        }
        // The ridge, where the copy stops to be the limit, is in the picture.
        intensities.extend([matmul / copy, 0.4 * matmul / copy]);
        let x = Axis { grid: false, ..Axis::powers("arithmetic intensity (FLOP per byte)", 2, intensities, seq_label) };
        let tera = |flops: f64| flops / 1e12;
        let speeds = with_roofline().filter_map(|(_, result)| result.tflops);
        // The exponentials allow the same speed at every length: both they and the products grow with its square.
        let exp = |group: &Group<'_>| {
            group.cells.iter().find_map(|cell| cell.roofline.as_ref().map(|r| cell.flops / (r.exp_ms * 1e-3)))
        };
        let ceilings_of_all = self.groups.iter().filter_map(exp).chain([matmul, x.limits.0 * copy]).map(tera);
        let y = Axis::powers("TFLOP/s", 10, speeds.chain(ceilings_of_all), decimal_label);
        let (product, slope, exponentials) =
            (Style::ceiling(None), Style::ceiling(Some((8.0, 3.0))), Style::ceiling(Some((2.0, 3.0))));
        let mut panels = Vec::new();
        for group in &self.groups {
            let right = x.limits.1;
            let rule =
                |style: Style, from, to| Mark::Rule { ink: style.ink, from, to, dash: style.dash, width: style.width };
            let low = x.limits.0.max(y.limits.0 * 1e12 / copy);
            let ridge = matmul / copy;
            let mut marks = vec![
                rule(slope, (low, tera(low * copy)), (ridge, tera(matmul))),
                rule(product, (ridge, tera(matmul)), (right, tera(matmul))),
            ];
            marks.extend(
                exp(group).map(|exp| rule(exponentials, (exp.min(matmul) / copy, tera(exp)), (right, tera(exp)))),
            );
            for &(name, _, style) in &self.implementations {
                let points = group.cells.iter().filter_map(|cell| Some((intensity(cell)?, cell.result(name)?.tflops?)));
                let points: Vec<_> = points.collect();
                if !points.is_empty() {
                    marks.push(Mark::Line { style, points, shift: 0.0 });
                }
            }
            panels.push(Panel { title: group.title.clone(), x: x.clone(), y: y.clone(), marks });
        }
        let mut legend = self.legend(|name| with_roofline().any(|(_, result)| result.name == name));
        legend.push((format!("matrix product {:.0} TFLOP/s", tera(matmul)), product));
        legend.push((format!("copy {:.2} TB/s", tera(copy)), slope));
        legend.push((format!("exp2 {:.2} T/s", tera(ceilings.exp2_per_second.value)), exponentials));
        let how = |ceiling: &Ceiling| if ceiling.measured { "measured" } else { "from properties of the device" };
        let notes = vec![
            format!(
                "Ceilings: matrix product {}, copy {}, exp2 {}. A point further right is a longer sequence.",
                how(&ceilings.matmul_flops[self.dtype]),
                how(&ceilings.copy_bytes_per_second),
                how(&ceilings.exp2_per_second),
            ),
            "FLOP per byte that q, k, v, out and the log-sum-exp need at least; naive moves many more.".to_owned(),
        ];
        Some(self.figure("roofline", "Speed below the ceilings of the device", legend, self.columns, panels, notes))
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
                Some(format!("{newest} reaches {low:.0} to {high:.0} % of what its bound allows."))
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

/// Pixels between the markers of lines that lie on each other.
const SIDE_STEP: f64 = 10.5;

/// One line of a panel, and whose it is.
type Line = (String, Style, Vec<(f64, f64)>);

/// The marks of lines, and the names of those that hide each other.
///
/// The markers of lines that cannot be told apart stand side by side, as long as they leave a gap to the next value, `spacing`
/// pixels away.
fn side_by_side(lines: &[Line], y: &Axis, spacing: f64) -> (Vec<Mark>, BTreeSet<Vec<String>>) {
    // A tenth of a marker.
    let near = |a: f64, b: f64| (y.place(a) - y.place(b)).abs() < 0.004;
    let same = |a: &[(f64, f64)], b: &[(f64, f64)]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && near(a.1, b.1))
    };
    let (mut marks, mut hidden) = (Vec::new(), BTreeSet::new());
    for (i, (_, style, points)) in lines.iter().enumerate() {
        let alike: Vec<usize> = (0..lines.len()).filter(|&j| same(points, &lines[j].2)).collect();
        let place = alike.iter().position(|&j| j == i).unwrap_or(0) as f64;
        let mut shift = (place - 0.5 * (alike.len() as f64 - 1.0)) * SIDE_STEP;
        if alike.len() as f64 * SIDE_STEP > 0.8 * spacing {
            shift = 0.0;
            hidden.insert(alike.iter().map(|&j| lines[j].0.clone()).collect());
        }
        marks.push(Mark::Line { style: *style, points: points.clone(), shift });
    }
    (marks, hidden)
}

/// What one implementation's errors look like at its place of the axis.
fn spread(place: f64, style: Style, checks: &[&Check]) -> Vec<Mark> {
    let mut marks = Vec::new();
    // Over the cells: the median of each quantile.
    let median = |quantile: fn(&ErrorQuantiles) -> f64| {
        let mut values: Vec<f64> =
            checks.iter().filter_map(|check| Some(quantile(check.error_quantiles.as_ref()?) / check.bound)).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().filter(|&value| value > 0.0)
    };
    // Left of the middle, with the points right of it.
    let at = place - 0.28;
    if let (Some(p50), Some(p99), Some(p999)) = (median(|q| q.p50), median(|q| q.p99), median(|q| q.p999)) {
        marks.push(Mark::Rule { ink: style.ink, from: (at, p50), to: (at, p999), dash: None, width: 1.6 });
        marks.push(Mark::Rule { ink: style.ink, from: (at, p50), to: (at, p99), dash: None, width: 6.0 });
    }
    let step = 0.5 / checks.len().max(2) as f64;
    let point = |(i, check): (usize, &&Check)| (place - 0.14 + step * i as f64, check.max_error / check.bound);
    let points = checks.iter().enumerate().map(point).collect();
    marks.push(Mark::Cloud { style, points });
    marks
}

/// A note in lines that fit below a picture with this many columns of panels.
fn wrapped(note: &str, columns: usize) -> Vec<String> {
    // Letters are about half as wide as the text is high.
    let letters = if columns == 1 { 85 } else { 130 };
    let mut lines = vec![String::new()];
    for word in note.split(' ') {
        let last = lines.last_mut().expect("there is a first line");
        if last.is_empty() {
            last.push_str(word);
        } else if last.len() + 1 + word.len() <= letters {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn mask_title(mask: &str) -> String {
    match mask {
        "full" => "no mask".to_owned(),
        mask => format!("{mask} mask"),
    }
}

/// Panels in the order of mask and head dim; the same sequence length twice in one panel makes two of it.
fn groups<'a>(cells: &[&'a Cell]) -> Vec<Group<'a>> {
    type Key<'k> = (bool, &'k str, usize, usize, usize);
    fn key(problem: &CellProblem) -> Key<'_> {
        let CellProblem { mask, head_dim, q_heads, kv_heads, .. } = problem;
        (mask != "full", mask, *head_dim, *q_heads, *kv_heads)
    }
    let mut keys: Vec<Key<'_>> = cells.iter().map(|cell| key(&cell.problem)).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut groups = Vec::new();
    for wanted in keys {
        let mut of_key: Vec<&'a Cell> = cells.iter().copied().filter(|cell| key(&cell.problem) == wanted).collect();
        of_key.sort_by_key(|cell| (cell.problem.seq, cell.problem.batch, cell.problem.kv_seq));
        let (_, mask, head_dim, q_heads, kv_heads) = wanted;
        let mut title = format!("head dim {head_dim}, {}", mask_title(mask));
        if q_heads != kv_heads {
            title += &format!(", {q_heads} heads on {kv_heads}");
        }
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
fn columns(groups: &[Group<'_>]) -> usize {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for mask in groups.iter().map(|group| group.cells[0].problem.mask.as_str()) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::samples::{sample, sample_cell};
    use crate::bench::record::{Ceilings, Roofline};
    use crate::plot::figure::Scale;

    const TIMES: [(&str, f64); 4] = [("naive", 4.0), ("v2", 1.0), ("v3", 0.5), ("torch cudnn", 0.6)];

    /// Two masks, two head dims, three lengths, with everything measured.
    fn full() -> Record {
        let mut cells = Vec::new();
        for mask in ["full", "causal"] {
            for head_dim in [64, 128] {
                for seq in [512, 1024, 2048] {
                    let mut cell = sample_cell("bf16", seq, &TIMES);
                    cell.problem.mask = mask.to_owned();
                    cell.problem.head_dim = head_dim;
                    let ms = |share: f64| share * cell.flops / 1e12;
                    let (matmul_ms, exp_ms, hbm_ms) = (ms(1.0), ms(0.5), ms(0.1));
                    let bound = "tensor".to_owned();
                    cell.roofline = Some(Roofline { bound, bound_ms: matmul_ms, matmul_ms, exp_ms, hbm_ms });
                    for result in &mut cell.results {
                        result.speedup_over_naive = result.time_ms.map(|time| 4.0 / time.median);
                        result.extra_bytes = Some(if result.name == "naive" { 1 << 30 } else { 1 << 12 });
                    }
                    cells.push(cell);
                }
            }
        }
        let ceiling = |value| Ceiling { value, measured: true, how: "a test".to_owned() };
        Record {
            ceilings: Some(Ceilings {
                copy_bytes_per_second: ceiling(4e12),
                matmul_flops: BTreeMap::from([("bf16".to_owned(), ceiling(8e14))]),
                exp2_per_second: ceiling(4e12),
            }),
            ..sample("GPU", "cuda", cells)
        }
    }

    fn names(record: &Record) -> Vec<String> {
        figures(record).into_iter().map(|figure| figure.name).collect()
    }

    fn figure(record: &Record, name: &str) -> Figure {
        figures(record).into_iter().find(|figure| figure.name == name).unwrap()
    }

    /// Whether everything lies between the limits of the axes.
    fn holds_its_marks(panel: &Panel) -> bool {
        let inside = |axis: &Axis, value: f64| {
            (axis.scale == Scale::Linear || value > 0.0) && (-1e-9..=1.0 + 1e-9).contains(&axis.place(value))
        };
        let both = |&(x, y): &(f64, f64)| inside(&panel.x, x) && inside(&panel.y, y);
        panel.marks.iter().all(|mark| match mark {
            Mark::Line { points, .. } | Mark::Cloud { points, .. } => points.iter().all(both),
            Mark::Rule { from, to, .. } => both(from) && both(to),
            Mark::Label { at, .. } => both(at),
        })
    }

    #[test]
    fn a_full_record_has_every_picture_and_every_point() {
        let record = full();
        assert_eq!(names(&record), ["tflops-bf16", "speedup-bf16", "memory-bf16", "errors-bf16", "roofline-bf16"]);
        for figure in figures(&record) {
            assert!(figure.panels.iter().all(holds_its_marks), "{}", figure.name);
            let points = figure.panels.iter().flat_map(|panel| &panel.marks).map(|mark| match mark {
                Mark::Line { points, .. } | Mark::Cloud { points, .. } => points.len(),
                _ => 0,
            });
            // Naive is the unit of the speedup.
            let implementations = if figure.name.starts_with("speedup") { 3 } else { 4 };
            assert_eq!(points.sum::<usize>(), 12 * implementations, "{}", figure.name);
        }
        let panels = figure(&record, "tflops-bf16").panels;
        let titles: Vec<&str> = panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(
            titles,
            ["head dim 64, no mask", "head dim 128, no mask", "head dim 64, causal mask", "head dim 128, causal mask"]
        );
        assert_eq!(figure(&record, "tflops-bf16").columns, 2);
    }

    #[test]
    fn what_was_not_measured_is_not_drawn() {
        let record = sample("GPU", "cuda", vec![sample_cell("f16", 512, &TIMES)]);
        // Neither memory nor ceilings nor speedups; one length makes a picture too.
        assert_eq!(names(&record), ["tflops-f16", "errors-f16"]);
        assert!(figures(&record).iter().flat_map(|figure| &figure.panels).all(holds_its_marks));
        let mut cell = sample_cell("bf16", 64, &[("v2", 1.0)]);
        let result = &mut cell.results[0];
        (result.time_ms, result.tflops, result.check) = (None, None, None);
        result.counters =
            [("global_bytes_read", 4096), ("lane_instructions", 1000)].map(|(name, n)| (name.to_owned(), n)).into();
        let record = sample("emulator", "emulator", vec![cell]);
        assert_eq!(names(&record), ["traffic-bf16", "instructions-bf16"]);
        assert!(figures(&record).iter().flat_map(|figure| &figure.panels).all(holds_its_marks));
    }

    #[test]
    fn lines_on_each_other_are_moved_apart() {
        let memory = figure(&full(), "memory-bf16");
        let shifts: Vec<f64> = memory.panels[0]
            .marks
            .iter()
            .filter_map(|mark| if let Mark::Line { shift, .. } = mark { Some(*shift) } else { None })
            .collect();
        assert_eq!(shifts, [0.0, -SIDE_STEP, 0.0, SIDE_STEP]);
    }

    #[test]
    fn lines_that_find_no_place_side_by_side_are_named() {
        let axis = Axis::from_zero("t", [1.0]);
        let style = Style::of("v2", false, 0);
        let line = |name: &str, value| (name.to_owned(), style, vec![(512.0, value), (1024.0, value)]);
        let lines = [line("a", 0.5), line("b", 0.5), line("c", 0.5), line("d", 0.9)];
        let names = |spacing| side_by_side(&lines, &axis, spacing).1.into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(names(100.0), [""; 0]);
        assert_eq!(names(30.0), ["a", "b", "c"]);
        let long = wrapped("word ".repeat(60).trim(), 1);
        assert!(long.len() == 4 && long.iter().all(|line| line.len() <= 85), "{long:?}");
    }

    #[test]
    fn memory_of_zero_bytes_is_told_and_not_drawn() {
        let mut record = full();
        for result in record.cells.iter_mut().flat_map(|cell| &mut cell.results).filter(|result| result.peer) {
            result.extra_bytes = Some(0);
        }
        let memory = figure(&record, "memory-bf16");
        assert!(memory.notes.last().unwrap().ends_with("no extra memory at all: torch cudnn."), "{:?}", memory.notes);
        assert!(memory.legend.iter().all(|(name, _)| name != "torch cudnn"));
    }

    #[test]
    fn the_same_length_twice_makes_two_panels() {
        let mut cells = vec![sample_cell("bf16", 512, &TIMES), sample_cell("bf16", 512, &TIMES)];
        cells[1].problem.batch = 8;
        let tflops = figure(&sample("GPU", "cuda", cells.clone()), "tflops-bf16");
        let titles: Vec<&str> = tflops.panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles, ["head dim 64, no mask, batch 2", "head dim 64, no mask, batch 8"]);
        cells[1].problem.batch = 2;
        cells[1].problem.kv_seq = 4096;
        let tflops = figure(&sample("GPU", "cuda", cells), "tflops-bf16");
        assert_eq!(tflops.panels[1].title, "head dim 64, no mask, batch 2, 4096 keys");
    }

    #[test]
    fn many_panels_are_several_pictures() {
        let cells = (1..=13).map(|i| {
            let mut cell = sample_cell("bf16", 512, &TIMES);
            cell.problem.head_dim = 8 * i;
            cell
        });
        let record = sample("GPU", "cuda", cells.collect());
        assert_eq!(names(&record)[..2], ["tflops-bf16-1", "tflops-bf16-2"]);
    }

    #[test]
    fn the_finding_says_how_the_newest_compares() {
        let mut record = full();
        for (i, cell) in record.cells.iter_mut().enumerate() {
            cell.results[2].ratio_to_best_peer = Some(1.0 + 0.01 * i as f64);
        }
        let description = figure(&record, "tflops-bf16").description;
        assert!(description.contains("ferroflash v3 reaches up to"), "{description}");
        assert!(description.ends_with("1.00 to 1.11 times the speed of the best peer."), "{description}");
        let speedup = figure(&record, "speedup-bf16").description;
        assert!(speedup.contains("v3 is 8.00 to 8.00 times as fast as naive"), "{speedup}");
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([512.0, 1024.0, 1000.0, 16384.0].map(seq_label), ["512", "1k", "1000", "16k"]);
        assert_eq!([2.0, 4096.0, 2f64.powi(31)].map(bytes_label), ["2 B", "4 KiB", "2 GiB"]);
        assert_eq!([100.0, 1e4, 1e6, 1e12].map(count_label), ["100", "10 k", "1 M", "1 T"]);
        assert_eq!([1e-6, 0.01, 1000.0, 1e6].map(decimal_label), ["1e-6", "0.01", "1000", "1e6"]);
    }
}
