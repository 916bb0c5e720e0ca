//! Lines that lie on each other.

use crate::plot::figure::{Axis, Mark};
use crate::plot::style::Style;
use std::collections::BTreeSet;

/// Pixels between the markers of lines that lie on each other.
pub(super) const SIDE_STEP: f64 = 10.5;

/// One line of a panel, and whose it is.
pub(super) type Line = (String, Style, Vec<(f64, f64)>);

/// The marks of lines, and the names of those that hide each other.
///
/// The markers of lines that cannot be told apart stand side by side, as long as they leave a gap to the next value, `spacing`
/// pixels away.
pub(super) fn side_by_side(lines: &[Line], y: &Axis, spacing: f64) -> (Vec<Mark>, BTreeSet<Vec<String>>) {
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
