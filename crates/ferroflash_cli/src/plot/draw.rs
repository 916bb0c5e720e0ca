//! Drawing a figure with plotters, as SVG and as PNG.

mod layout;
mod png;
mod svg;
mod text;

use super::figure::{Align, Figure, Mark, Panel};
use super::style::{AXIS, Dash, FAINT_TEXT, GRID, Ink, Marker, PAPER, Style, TEXT};
use ab_glyph::{Font, FontRef, Point, ScaleFont};
use anyhow::{Result, anyhow};
pub(super) use layout::plot_width;
use layout::{
    ABOVE, LEFT, LEGEND_KEY, LEGEND_LINE, LINE_HEIGHT, Layout, MARGIN, PLOT_HEIGHT, RIGHT, TEXT_SIZE, TICK_LINE,
    TICK_SIZE, TITLE_SIZE, label_lines,
};
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, DashedPathElement, PathElement, Polygon, Text};
use plotters::prelude::DrawingBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontFamily, FontStyle, ShapeStyle, TextStyle};
pub(crate) use png::png;
use std::cell::RefCell;
use svg::dash_mark;
pub(crate) use svg::{escape, inline_svg, svg};
use text::{Fonts, px_scale, text_width};

// In CSS pixels.
const MARKER_RADIUS: f64 = 4.6;
const CLOUD_RADIUS: f64 = 3.2;

fn plotters_error<E: std::error::Error + Send + Sync>(
    error: plotters::drawing::DrawingAreaErrorKind<E>,
) -> anyhow::Error {
    anyhow!("the picture cannot be drawn: {error}")
}

/// A drawing area, its pixels for one CSS pixel, and how it sets text.
struct Pen<'a, DB: DrawingBackend> {
    root: &'a DrawingArea<DB, Shift>,
    scale: f64,
    /// `None` for SVG, which leaves text and dashes to whoever shows the picture.
    fonts: Option<&'a Fonts>,
    /// Kinds of dashes in the order of their first use.
    dashes: RefCell<Vec<Dash>>,
}

/// The part of the picture that a panel's marks are drawn in.
#[derive(Clone, Copy)]
struct Frame<'a> {
    panel: &'a Panel,
    left: f64,
    top: f64,
    width: f64,
}

impl Frame<'_> {
    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let (x, y) = (self.panel.x.place(x), self.panel.y.place(y));
        (self.left + x * self.width, self.top + (1.0 - y) * PLOT_HEIGHT)
    }
}

impl<DB: DrawingBackend> Pen<'_, DB> {
    fn figure(&self, figure: &Figure, layout: &Layout) -> Result<()> {
        let title = MARGIN + TITLE_SIZE;
        self.text((MARGIN, title), &figure.title, TITLE_SIZE, TEXT, Align::Left, true)?;
        let subtitle = title + TEXT_SIZE * LINE_HEIGHT + 3.0;
        self.text((MARGIN, subtitle), &figure.subtitle, TEXT_SIZE, FAINT_TEXT, Align::Left, false)?;
        for ((name, style), &(x, line)) in figure.legend.iter().zip(&layout.legend) {
            let y = layout.legend_top + (line as f64 + 0.5) * LEGEND_LINE;
            let middle = x + 0.5 * (LEGEND_KEY - 8.0);
            self.line(&[(x, y), (x + LEGEND_KEY - 8.0, y)], style.ink, style.width, style.dash)?;
            self.marker((middle, y), style, MARKER_RADIUS)?;
            self.text((x + LEGEND_KEY, y + 0.36 * TEXT_SIZE), name, TEXT_SIZE, TEXT, Align::Left, false)?;
        }
        for (i, panel) in figure.panels.iter().enumerate() {
            let (row, column) = ((i / figure.columns) as f64, (i % figure.columns) as f64);
            let frame = Frame {
                panel,
                left: MARGIN + column * layout.panel_width + LEFT,
                top: layout.panels_top + row * layout.row_height + ABOVE,
                width: layout.panel_width - LEFT - RIGHT,
            };
            self.panel(&frame)?;
        }
        for (i, note) in figure.notes.iter().enumerate() {
            let y = layout.notes_top + (i as f64 + 0.8) * TICK_SIZE * LINE_HEIGHT;
            self.text((MARGIN, y), note, TICK_SIZE, FAINT_TEXT, Align::Left, false)?;
        }
        Ok(())
    }

    fn panel(&self, frame: &Frame<'_>) -> Result<()> {
        let Frame { panel, left, top, width } = *frame;
        let (right, bottom) = (left + width, top + PLOT_HEIGHT);
        self.text((left, top - 25.0), &panel.title, TEXT_SIZE, TEXT, Align::Left, true)?;
        // Above the axis and not along it: nobody has to turn their head.
        self.text((left, top - 8.0), &panel.y.title, TICK_SIZE, FAINT_TEXT, Align::Left, false)?;
        for (value, label) in &panel.y.ticks {
            let y = bottom - panel.y.place(*value) * PLOT_HEIGHT;
            if panel.y.grid {
                self.line(&[(left, y), (right, y)], GRID, 1.0, None)?;
            }
            self.text((left - 7.0, y + 0.36 * TICK_SIZE), label, TICK_SIZE, FAINT_TEXT, Align::Right, false)?;
        }
        for (value, label) in &panel.x.ticks {
            let x = left + panel.x.place(*value) * width;
            if panel.x.grid {
                self.line(&[(x, top), (x, bottom)], GRID, 1.0, None)?;
            }
            self.line(&[(x, bottom), (x, bottom + 4.0)], AXIS, 1.0, None)?;
            for (i, line) in label.split('\n').enumerate() {
                let y = bottom + 6.0 + 0.9 * TICK_SIZE + i as f64 * TICK_LINE;
                self.text((x, y), line, TICK_SIZE, FAINT_TEXT, Align::Middle, false)?;
            }
        }
        self.line(&[(left, bottom), (right, bottom)], AXIS, 1.0, None)?;
        let y = bottom + 8.0 + label_lines(&panel.x) as f64 * TICK_LINE + TICK_SIZE;
        self.text((left + 0.5 * width, y), &panel.x.title, TICK_SIZE, FAINT_TEXT, Align::Middle, false)?;
        // All lines before all markers: no line hides the marker of another.
        for mark in &panel.marks {
            self.lines(frame, mark)?;
        }
        panel.marks.iter().try_for_each(|mark| self.markers(frame, mark))
    }

    fn lines(&self, frame: &Frame<'_>, mark: &Mark) -> Result<()> {
        match mark {
            Mark::Line { style, points, .. } => {
                let points: Vec<_> = points.iter().map(|&point| frame.at(point)).collect();
                self.line(&points, style.ink, style.width, style.dash)
            }
            Mark::Cloud { .. } => Ok(()),
            Mark::Rule { ink, from, to, dash, width } => {
                self.line(&[frame.at(*from), frame.at(*to)], *ink, *width, *dash)
            }
            Mark::Label { at, text, ink, align, above } => {
                let (x, y) = frame.at(*at);
                self.text((x, y - above), text, TICK_SIZE, *ink, *align, false)
            }
        }
    }

    fn markers(&self, frame: &Frame<'_>, mark: &Mark) -> Result<()> {
        match mark {
            Mark::Line { style, points, shift } => {
                let points: Vec<_> = points.iter().map(|&point| frame.at(point)).collect();
                (0..points.len()).try_for_each(|i| self.marker(along(&points, i, *shift), style, MARKER_RADIUS))
            }
            Mark::Cloud { style, points } => {
                points.iter().try_for_each(|&point| self.marker(frame.at(point), style, CLOUD_RADIUS))
            }
            Mark::Rule { .. } | Mark::Label { .. } => Ok(()),
        }
    }

    /// A point in the pixels of the drawing area.
    fn pixel(&self, (x, y): (f64, f64)) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    fn line(&self, points: &[(f64, f64)], ink: Ink, width: f64, dash: Option<Dash>) -> Result<()> {
        if points.len() < 2 {
            return Ok(());
        }
        let points = points.iter().map(|&point| self.pixel(point)).collect::<Vec<_>>();
        let mut style =
            ShapeStyle { color: ink.rgb().to_rgba(), filled: false, stroke_width: (width * self.scale) as u32 };
        if let (Some(dash), None) = (dash, self.fonts) {
            let mut dashes = self.dashes.borrow_mut();
            let index = dashes.iter().position(|known| *known == dash).unwrap_or_else(|| {
                dashes.push(dash);
                dashes.len() - 1
            });
            style.color = ink.rgb().mix(dash_mark(index));
        }
        match dash.filter(|_| self.fonts.is_some()) {
            None => self.root.draw(&PathElement::new(points, style)),
            Some((dash, gap)) => {
                let (dash, gap) = ((dash * self.scale) as i32, (gap * self.scale) as i32);
                self.root.draw(&DashedPathElement::new(points, dash, gap, style))
            }
        }
        .map_err(plotters_error)
    }

    /// A filled marker with a ring of paper around it, or a smaller hollow one: on top of a filled one both show.
    fn marker(&self, at: (f64, f64), style: &Style, radius: f64) -> Result<()> {
        let Some(marker) = style.marker else { return Ok(()) };
        if style.filled {
            self.shape(at, marker, radius + 1.1, PAPER)?;
            return self.shape(at, marker, radius, style.ink);
        }
        self.shape(at, marker, 0.88 * radius, style.ink)?;
        self.shape(at, marker, 0.88 * radius - 1.5, PAPER)
    }

    fn shape(&self, at: (f64, f64), marker: Marker, radius: f64, ink: Ink) -> Result<()> {
        let style = ink.rgb().filled();
        // Shapes of about the same area as the circle; corners as (right, up) in radii.
        let corners: &[(f64, f64)] = match marker {
            Marker::Circle => {
                let circle = Circle::new(self.pixel(at), (radius * self.scale) as i32, style);
                return self.root.draw(&circle).map_err(plotters_error);
            }
            Marker::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Marker::Triangle => &[(0.0, 1.3), (1.2, -0.75), (-1.2, -0.75)],
            Marker::Diamond => &[(0.0, 1.3), (1.3, 0.0), (0.0, -1.3), (-1.3, 0.0)],
            Marker::TriangleDown => &[(0.0, -1.3), (1.2, 0.75), (-1.2, 0.75)],
        };
        let corner = |&(x, y): &(f64, f64)| self.pixel((at.0 + x * radius, at.1 - y * radius));
        self.root.draw(&Polygon::new(corners.iter().map(corner).collect::<Vec<_>>(), style)).map_err(plotters_error)
    }

    /// Text whose baseline is at `at`.
    fn text(&self, at: (f64, f64), text: &str, em: f64, ink: Ink, align: Align, bold: bool) -> Result<()> {
        match self.fonts {
            Some(fonts) => self.glyphs(fonts.get(bold), at, text, em, ink, align),
            None => {
                // The library writes 1/1.24 of the size into the file, and moves text that hangs at its top down by 0.76 em.
                let font = (FontFamily::SansSerif, 1.24 * em * self.scale);
                let h_pos = match align {
                    Align::Left => HPos::Left,
                    Align::Middle => HPos::Center,
                    Align::Right => HPos::Right,
                };
                let color = ink.rgb();
                let mut style = TextStyle::from(font).color(&color).pos(Pos::new(h_pos, VPos::Top));
                if bold {
                    style.font = style.font.style(FontStyle::Bold);
                }
                let top = self.pixel((at.0, at.1 - 0.76 * em));
                self.root.draw(&Text::new(text, top, style)).map_err(plotters_error)
            }
        }
    }

    /// Sets text by itself: the library's own way drops the space in front of each letter.
    fn glyphs(&self, font: &FontRef<'_>, at: (f64, f64), text: &str, em: f64, ink: Ink, align: Align) -> Result<()> {
        let em = em * self.scale;
        let scale = px_scale(font, em);
        let scaled = font.as_scaled(scale);
        let width = text_width(font, text, em);
        let start = match align {
            Align::Left => 0.0,
            Align::Middle => 0.5 * width,
            Align::Right => width,
        };
        let mut x = (at.0 * self.scale - start) as f32;
        let baseline = (at.1 * self.scale).round() as f32;
        for c in text.chars() {
            let id = scaled.glyph_id(c);
            let glyph = id.with_scale_and_position(scale, Point { x, y: baseline });
            x += scaled.h_advance(id);
            let Some(outline) = font.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            let mut result = Ok(());
            outline.draw(|dx, dy, coverage| {
                let pixel = (corner.x as i32 + dx as i32, corner.y as i32 + dy as i32);
                if result.is_ok() && coverage > 0.0 {
                    result = self.root.draw_pixel(pixel, &ink.rgb().mix(f64::from(coverage.min(1.0))));
                }
            });
            result.map_err(plotters_error)?;
        }
        Ok(())
    }
}

/// The place on the line through `points` that is `shift` to the right of the `i`-th.
fn along(points: &[(f64, f64)], i: usize, shift: f64) -> (f64, f64) {
    let (x, y) = points[i];
    // The part of the line on that side; at the ends of the line the only one there is.
    let other = if shift < 0.0 { i.checked_sub(1) } else { Some(i + 1).filter(|&next| next < points.len()) };
    let other = other.or(if shift < 0.0 { Some(i + 1) } else { i.checked_sub(1) });
    let slope = other.and_then(|other| points.get(other)).map_or(0.0, |other| (other.1 - y) / (other.0 - x));
    (x + shift, y + slope * shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_marker_stays_on_its_line() {
        let points = [(0.0, 0.0), (10.0, 10.0), (20.0, 10.0)];
        assert_eq!(along(&points, 1, -4.0), (6.0, 6.0));
        assert_eq!(along(&points, 1, 4.0), (14.0, 10.0));
        assert_eq!(along(&points, 0, -4.0), (-4.0, -4.0));
        assert_eq!(along(&points, 2, 4.0), (24.0, 10.0));
        assert_eq!(along(&points[..1], 0, 4.0), (4.0, 0.0));
    }
}
