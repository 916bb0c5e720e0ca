//! How far results are from the reference.

use super::Picture;
use super::labels::{decimal_label, shown_name};
use crate::bench::record::{Check, ErrorQuantiles, MaskName};
use crate::plot::figure::{Align, Axis, Figure, Mark, Panel};
use crate::plot::style::{LIMIT, Style};

impl Picture<'_> {
    /// Every comparison with the reference, in units of what the tolerance rule accepts.
    pub(super) fn errors(&self) -> Option<Figure> {
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
        let mut masks: Vec<MaskName> = Vec::new();
        for (cell, ..) in checks() {
            if !masks.contains(&cell.problem.mask) {
                masks.push(cell.problem.mask);
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
            Panel { title: mask.title(), x, y: y.clone(), marks }
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
