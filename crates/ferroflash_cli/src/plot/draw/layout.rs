//! Where the parts of a figure are.

use super::text::text_width;
use crate::plot::figure::{Axis, Figure};
use ab_glyph::FontRef;

// All lengths are CSS pixels.
const WIDTH: f64 = 960.0;
/// A single column of panels would be too wide for its height.
const WIDTH_OF_ONE: f64 = 640.0;
pub(super) const MARGIN: f64 = 20.0;
pub(super) const PLOT_HEIGHT: f64 = 200.0;
/// Left of a plot: its tick labels.
pub(super) const LEFT: f64 = 62.0;
/// Right of a plot: half of the last tick label.
pub(super) const RIGHT: f64 = 14.0;
/// Above a plot: the panel's title and the title of the y axis.
pub(super) const ABOVE: f64 = 42.0;
/// Below a plot: its title and the gap to the next row; and the lines of its tick labels.
const BELOW: f64 = 38.0;
pub(super) const TITLE_SIZE: f64 = 19.0;
pub(super) const TEXT_SIZE: f64 = 13.0;
pub(super) const TICK_SIZE: f64 = 12.0;
pub(super) const LINE_HEIGHT: f64 = 1.35;
pub(super) const TICK_LINE: f64 = 1.15 * TICK_SIZE;
/// Browsers have another sans-serif font than the one that widths are taken from; DejaVu Sans, the widest in use, is 15 % wider.
const WIDTH_SLACK: f64 = 1.15;

/// Width of each plot of a figure with this many columns.
pub(crate) fn plot_width(columns: usize) -> f64 {
    let width = if columns == 1 { WIDTH_OF_ONE } else { WIDTH };
    (width - 2.0 * MARGIN) / columns as f64 - LEFT - RIGHT
}

/// Where the parts of a figure are.
pub(super) struct Layout {
    pub(super) width: f64,
    pub(super) height: f64,
    /// Left end, line (0, 1 ...) and text of each entry of the legend.
    pub(super) legend: Vec<(f64, usize)>,
    pub(super) legend_top: f64,
    pub(super) panels_top: f64,
    pub(super) panel_width: f64,
    pub(super) row_height: f64,
    pub(super) notes_top: f64,
}

/// Line and marker before the name of a legend entry, and the gap behind the name.
pub(super) const LEGEND_KEY: f64 = 38.0;
const LEGEND_GAP: f64 = 18.0;
pub(super) const LEGEND_LINE: f64 = 21.0;

impl Layout {
    pub(super) fn new(figure: &Figure) -> Layout {
        let width = if figure.columns == 1 && !figure.wide { WIDTH_OF_ONE } else { WIDTH };
        let mut legend = Vec::new();
        let (mut x, mut line) = (MARGIN, 0);
        let font = FontRef::try_from_slice(notosans::REGULAR_TTF).ok();
        for (name, _) in &figure.legend {
            // Half an em for each letter stands in for the font, should it ever not parse; `png` then says so.
            let name = font.as_ref().map_or(0.5 * TEXT_SIZE * name.len() as f64, |f| text_width(f, name, TEXT_SIZE));
            let entry = LEGEND_KEY + name * WIDTH_SLACK;
            if x > MARGIN && x + entry > width - MARGIN {
                (x, line) = (MARGIN, line + 1);
            }
            legend.push((x, line));
            x += entry + LEGEND_GAP;
        }
        let legend_top = MARGIN + TITLE_SIZE * LINE_HEIGHT + TEXT_SIZE * LINE_HEIGHT + 8.0;
        let legend_lines = if legend.is_empty() { 0.0 } else { line as f64 + 1.0 };
        let panels_top = legend_top + legend_lines * LEGEND_LINE + 6.0;
        let rows = figure.panels.len().div_ceil(figure.columns) as f64;
        let label_lines = figure.panels.iter().map(|panel| label_lines(&panel.x)).max().unwrap_or(1) as f64;
        let row_height = ABOVE + PLOT_HEIGHT + label_lines * TICK_LINE + BELOW;
        let notes_top = panels_top + rows * row_height;
        let notes = figure.notes.len() as f64 * TICK_SIZE * LINE_HEIGHT;
        Layout {
            width,
            height: (notes_top + notes + MARGIN - 4.0).ceil(),
            legend,
            legend_top,
            panels_top,
            panel_width: (width - 2.0 * MARGIN) / figure.columns as f64,
            row_height,
            notes_top,
        }
    }
}

/// Lines of the tallest tick label.
pub(super) fn label_lines(axis: &Axis) -> usize {
    axis.ticks.iter().map(|tick| tick.1.split('\n').count()).max().unwrap_or(1)
}
