//! What a picture shows, before anything is drawn: panels with axes and marks.

use super::style::{Dash, Ink, Style};

/// One picture.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// Stem of its files.
    pub(crate) name: String,
    pub(crate) title: String,
    /// Where and on what it was measured.
    pub(crate) subtitle: String,
    /// What a reader who does not see the picture is told.
    pub(crate) description: String,
    /// Who is drawn, in the order of the legend; empty when the axis names them.
    pub(crate) legend: Vec<(String, Style)>,
    pub(crate) panels: Vec<Panel>,
    /// Panels of one row.
    pub(crate) columns: usize,
    /// Whether a single column takes the whole width.
    pub(crate) wide: bool,
    /// Lines below the panels.
    pub(crate) notes: Vec<String>,
}

/// One pair of axes.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) marks: Vec<Mark>,
}

/// Something drawn in the coordinates of its panel.
#[derive(Clone, Debug)]
pub(crate) enum Mark {
    /// One implementation by its points, joined by a line, on which its markers are moved right by `shift` pixels.
    Line { style: Style, points: Vec<(f64, f64)>, shift: f64 },
    /// Many points of one implementation, smaller than those of a line.
    Cloud { style: Style, points: Vec<(f64, f64)> },
    /// A line that is no measurement.
    Rule { ink: Ink, from: (f64, f64), to: (f64, f64), dash: Option<Dash>, width: f64 },
    /// Text beside a rule, its baseline this many units above the point.
    Label { at: (f64, f64), text: String, ink: Ink, align: Align, above: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Middle,
    Right,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Log,
}

/// One axis: its scale, its limits and where its labels are.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) title: String,
    pub(crate) scale: Scale,
    pub(crate) limits: (f64, f64),
    /// Value and label; a label may have two lines.
    pub(crate) ticks: Vec<(f64, String)>,
    /// Whether lines run through the panel from its ticks.
    pub(crate) grid: bool,
}

impl Axis {
    /// From zero to a round number above every value.
    pub(crate) fn from_zero(title: &str, values: impl IntoIterator<Item = f64>) -> Axis {
        let largest = values.into_iter().fold(0.0, f64::max);
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let step = round_step(largest / 4.5);
        let steps = (largest / step * (1.0 - 1e-9)).ceil().max(1.0);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let ticks = (0..=steps as u32).map(|i| f64::from(i) * step).map(|v| (v, format!("{v:.decimals$}"))).collect();
        Axis { title: title.to_owned(), scale: Scale::Linear, limits: (0.0, steps * step), ticks, grid: true }
    }

    /// A logarithmic axis over every value, with ticks at powers of `base`, or of a power of it when those would be too many. Where fewer
    /// than three powers of ten fit, 2 and 5 times them have ticks too.
    pub(crate) fn powers(
        title: &str,
        base: u32,
        values: impl IntoIterator<Item = f64>,
        label: impl Fn(f64) -> String,
    ) -> Axis {
        let (low, high) = range(values);
        // A marker at a limit would lie on the frame.
        let margin = (high / low).powf(0.06).max(1.1);
        let mut limits = (low / margin, high * margin);
        let mut places = powers_between(limits, base, &[1.0]);
        if base == 10 && places.len() < 3 {
            places = powers_between(limits, base, &[1.0, 2.0, 5.0]);
        }
        if places.len() < 2 {
            // Values within one step leave the ticks around them.
            let around = (limits.0 / f64::from(base), limits.1 * f64::from(base));
            let factors: &[f64] = if base == 10 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let all = powers_between(around, base, factors);
            let below = all.iter().copied().rfind(|&place| place <= limits.0).unwrap_or(around.0);
            let above = all.iter().copied().find(|&place| place >= limits.1).unwrap_or(around.1);
            limits = (below, above);
            places = all.into_iter().filter(|place| (below..=above).contains(place)).collect();
        }
        // More than eight labels run into each other in a panel of this height.
        let every = (places.len().saturating_sub(1)).div_ceil(7).max(1) as i32;
        // Powers that `every` divides, so that 1 is among them.
        let exponent = |place: f64| (place.ln() / f64::from(base).ln()).round() as i32;
        let ticks = places.into_iter().filter(|&place| every == 1 || exponent(place).rem_euclid(every) == 0);
        let ticks = ticks.map(|v| (v, label(v))).collect();
        Axis { title: title.to_owned(), scale: Scale::Log, limits, ticks, grid: true }
    }

    /// A logarithmic axis with a tick at each of these values.
    pub(crate) fn at_values(title: &str, values: &[f64], label: impl Fn(f64) -> String) -> Axis {
        let (low, high) = range(values.iter().copied());
        // A third of an octave on both sides, so that no marker lies on the frame; a lonely value stays in the middle.
        let margin = if low == high { 2.0 } else { 2f64.powf(0.33) };
        let every = values.len().div_ceil(8);
        let ticks = values.iter().step_by(every).map(|&v| (v, label(v))).collect();
        Axis { title: title.to_owned(), scale: Scale::Log, limits: (low / margin, high * margin), ticks, grid: false }
    }

    /// One place for each name, at 0, 1, 2 ...
    pub(crate) fn names(title: &str, names: &[String]) -> Axis {
        let ticks = names.iter().enumerate().map(|(i, name)| (i as f64, name.replacen(' ', "\n", 1))).collect();
        let limits = (-0.5, names.len() as f64 - 0.5);
        Axis { title: title.to_owned(), scale: Scale::Linear, limits, ticks, grid: false }
    }

    /// Where `value` lies between the limits, 0 to 1.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let (low, high) = self.limits;
        match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Log => (value / low).ln() / (high / low).ln(),
        }
    }
}

/// Least and greatest of positive values; 1 to 2 when there are none.
fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.into_iter().fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), v| (low.min(v), high.max(v)));
    if low <= high { (low, high) } else { (1.0, 2.0) }
}

/// These factors times powers of `base`, from the lower to the upper limit.
fn powers_between((low, high): (f64, f64), base: u32, factors: &[f64]) -> Vec<f64> {
    let base = f64::from(base);
    let power = |value: f64| value.ln() / base.ln();
    let exponents = power(low).floor() as i32..=power(high).ceil() as i32;
    let places = exponents.flat_map(|k| factors.iter().map(move |factor| factor * base.powi(k)));
    // A limit that is a power of the base is one, whatever rounding says.
    places.filter(|place| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(place)).collect()
}

/// The least of 1, 2, 2.5 and 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&s| s >= step).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.1.as_str()).collect()
    }

    #[test]
    fn a_linear_axis_ends_at_a_round_number() {
        let axis = Axis::from_zero("t", [3.0, 692.0]);
        assert_eq!(labels(&axis), ["0", "200", "400", "600", "800"]);
        assert_eq!(axis.limits, (0.0, 800.0));
        assert_eq!(labels(&Axis::from_zero("t", [0.9])), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(Axis::from_zero("t", []).limits.0, 0.0);
        assert_eq!(axis.place(400.0), 0.5);
    }

    #[test]
    fn a_logarithmic_axis_has_few_ticks_and_holds_its_values() {
        let axis = Axis::powers("t", 2, [0.6, 14.0], |v| format!("{v}"));
        assert_eq!(labels(&axis), ["0.5", "1", "2", "4", "8", "16"]);
        let axis = Axis::powers("t", 10, [155.0, 1755.0], |v| format!("{v}"));
        assert_eq!(labels(&axis), ["200", "500", "1000", "2000"]);
        assert_eq!(labels(&Axis::powers("t", 10, [0.3, 0.4], |v| format!("{v}"))), ["0.2", "0.5"]);
        for (low, high) in [(16384.0, 8e9), (1.0, 1.0), (3e-5, 0.9), (1000.0, 1001.0), (0.3, 0.4)] {
            for base in [2, 10] {
                let axis = Axis::powers("t", base, [low, high], |v| format!("{v}"));
                assert!((2..=9).contains(&axis.ticks.len()), "{axis:?}");
                assert!(axis.limits.0 < low && high < axis.limits.1, "{axis:?}");
                assert!(axis.ticks.iter().all(|tick| (-1e-9..=1.0 + 1e-9).contains(&axis.place(tick.0))), "{axis:?}");
            }
        }
    }

    #[test]
    fn ticks_at_values_leave_room_on_both_sides() {
        let axis = Axis::at_values("t", &[512.0, 1024.0, 2048.0], |v| format!("{v}"));
        assert_eq!(labels(&axis), ["512", "1024", "2048"]);
        assert!((axis.place(1024.0) - 0.5).abs() < 1e-12);
        assert!(axis.place(512.0) > 0.05 && axis.place(2048.0) < 0.95);
        assert!((Axis::at_values("t", &[512.0], |v| format!("{v}")).place(512.0) - 0.5).abs() < 1e-12);
    }
}
