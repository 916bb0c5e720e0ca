//! Drawing a figure with plotters, as SVG and as PNG.

use super::figure::{Align, Axis, Figure, Mark, Panel};
use super::style::{AXIS, Dash, FAINT_TEXT, GRID, Ink, Marker, PAPER, Style, TEXT, dark_rules};
use ab_glyph::{Font, FontRef, Point, PxScale, ScaleFont};
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, DashedPathElement, PathElement, Polygon, Text};
use plotters::prelude::{BitMapBackend, DrawingBackend, IntoDrawingArea, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontFamily, FontStyle, ShapeStyle, TextStyle};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;

// All lengths are CSS pixels.
const WIDTH: f64 = 960.0;
/// A single column of panels would be too wide for its height.
const WIDTH_OF_ONE: f64 = 640.0;
const MARGIN: f64 = 20.0;
const PLOT_HEIGHT: f64 = 200.0;
/// Left of a plot: its tick labels.
const LEFT: f64 = 62.0;
/// Right of a plot: half of the last tick label.
const RIGHT: f64 = 14.0;
/// Above a plot: the panel's title and the title of the y axis.
const ABOVE: f64 = 42.0;
/// Below a plot: its title and the gap to the next row; and the lines of its tick labels.
const BELOW: f64 = 38.0;
const TITLE_SIZE: f64 = 19.0;
const TEXT_SIZE: f64 = 13.0;
const TICK_SIZE: f64 = 12.0;
const LINE_HEIGHT: f64 = 1.35;
const TICK_LINE: f64 = 1.15 * TICK_SIZE;
const MARKER_RADIUS: f64 = 4.6;
const CLOUD_RADIUS: f64 = 3.2;
/// Browsers have another sans-serif font than the one that widths are taken from; DejaVu Sans, the widest in use, is 15 % wider.
const WIDTH_SLACK: f64 = 1.15;

/// Steps of one CSS pixel that coordinates of an SVG are rounded to.
const SVG_STEPS: f64 = 10.0;
/// Pixels of a PNG for one CSS pixel: sharp on dense screens and in print.
const PNG_DENSITY: usize = 2;
/// The drawing library smooths no polygons: each pixel of a PNG is the mean of this many squared.
const SUPERSAMPLING: usize = 3;

/// Width of each plot of a figure with this many columns.
pub(super) fn plot_width(columns: usize) -> f64 {
    let width = if columns == 1 { WIDTH_OF_ONE } else { WIDTH };
    (width - 2.0 * MARGIN) / columns as f64 - LEFT - RIGHT
}

/// The figure as an SVG document that follows the reader's colour scheme, but has a background of its own on any page.
pub(crate) fn svg(figure: &Figure) -> Result<String> {
    let style = format!("<style>@media screen and (prefers-color-scheme:dark){{{}}}</style>\n", dark_rules(""));
    svg_element(figure, " xmlns=\"http://www.w3.org/2000/svg\"", &style)
}

/// The figure as an `svg` element for a page that has [`dark_rules`] itself.
pub(crate) fn inline_svg(figure: &Figure) -> Result<String> {
    svg_element(figure, "", "")
}

fn svg_element(figure: &Figure, namespace: &str, style: &str) -> Result<String> {
    let layout = Layout::new(figure);
    let (width, height) = (layout.width, layout.height);
    let size = ((width * SVG_STEPS) as u32, (height * SVG_STEPS) as u32);
    let mut drawn = String::new();
    let dashes;
    {
        let root = SVGBackend::with_string(&mut drawn, size).into_drawing_area();
        let pen = Pen { root: &root, scale: SVG_STEPS, fonts: None, dashes: RefCell::default() };
        pen.figure(figure, &layout)?;
        root.present().map_err(plotters_error)?;
        dashes = pen.dashes.take();
    }
    let mut drawn = drawn.replace(" opacity=\"1\"", "").replace("\n</text>", "</text>").replace(" \"/>", "\"/>");
    for (i, (dash, gap)) in dashes.iter().enumerate() {
        let (dash, gap) = ((dash * SVG_STEPS) as u32, (gap * SVG_STEPS) as u32);
        drawn =
            drawn.replace(&format!(" opacity=\"{}\"", dash_mark(i)), &format!(" stroke-dasharray=\"{dash} {gap}\""));
    }
    // The library's own first line has neither a title nor a size apart from the coordinates.
    let (_, body) = drawn.split_once('\n').ok_or_else(|| anyhow!("an SVG document has more than one line"))?;
    let mut text = String::new();
    write!(
        text,
        "<svg{namespace} width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{name}-title \
         {name}-desc\">\n<title id=\"{name}-title\">{}</title>\n<desc id=\"{name}-desc\">{}</desc>\n{style}\
         <rect width=\"{}\" height=\"{}\" rx=\"{}\" fill=\"#FFFFFF\"/>\n",
        size.0,
        size.1,
        escape(&figure.title),
        escape(&figure.description),
        size.0,
        size.1,
        8.0 * SVG_STEPS,
        name = figure.name,
    )?;
    text.push_str(body);
    Ok(text)
}

/// The opacity that stands for the `index`-th kind of dashes until the document is complete: the library knows no dashes, only one
/// element for each.
fn dash_mark(index: usize) -> f64 {
    f64::from(999 - index as u32) / 1000.0
}

/// Text of XML and HTML, in elements and in attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The figure as a PNG file on a white page.
pub(crate) fn png(figure: &Figure) -> Result<Vec<u8>> {
    let layout = Layout::new(figure);
    let (width, height) = (layout.width as usize * PNG_DENSITY, layout.height as usize * PNG_DENSITY);
    let fine = (width * SUPERSAMPLING, height * SUPERSAMPLING);
    let mut pixels = vec![0xff; 3 * fine.0 * fine.1];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (fine.0 as u32, fine.1 as u32)).into_drawing_area();
        let fonts = Fonts::new()?;
        let pen = Pen {
            root: &root,
            scale: (PNG_DENSITY * SUPERSAMPLING) as f64,
            fonts: Some(&fonts),
            dashes: RefCell::default(),
        };
        pen.figure(figure, &layout)?;
        root.present().map_err(plotters_error)?;
    }
    let pixels = downsample(&pixels, width, height);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_compression(png::Compression::High);
    let (palette, data) = indexed(&pixels);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(palette);
    // A filter makes sense of neighbouring amounts, not of neighbouring numbers of colours.
    encoder.set_filter(png::Filter::NoFilter);
    // 96 CSS pixels are an inch, 39.37 inches a metre.
    let density = (96.0 * 39.37 * PNG_DENSITY as f64) as u32;
    encoder.set_pixel_dims(Some(png::PixelDimensions { xppu: density, yppu: density, unit: png::Unit::Meter }));
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&data)?;
    writer.finish()?;
    Ok(file)
}

/// The mean of each square of [`SUPERSAMPLING`] pixels.
fn downsample(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut small = Vec::with_capacity(3 * width * height);
    let row = 3 * width * SUPERSAMPLING;
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let mut sum = 0u32;
                for dy in 0..SUPERSAMPLING {
                    let start = (y * SUPERSAMPLING + dy) * row + 3 * x * SUPERSAMPLING + channel;
                    sum += (0..SUPERSAMPLING).map(|dx| u32::from(pixels[start + 3 * dx])).sum::<u32>();
                }
                small.push((sum / (SUPERSAMPLING * SUPERSAMPLING) as u32) as u8);
            }
        }
    }
    small
}

/// The 256 most frequent colours of an image, and for each pixel the index of the nearest: a quarter of the bytes of full colours,
/// and what is not among them is the smoothing of some edge.
fn indexed(pixels: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let pixels = || pixels.chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    let mut counts: BTreeMap<[u8; 3], u32> = BTreeMap::new();
    for pixel in pixels() {
        *counts.entry(pixel).or_default() += 1;
    }
    let mut colours: Vec<[u8; 3]> = counts.keys().copied().collect();
    // The sort is stable: equally frequent colours stay in the order of the map, so that the file is the same each time.
    colours.sort_by_key(|colour| std::cmp::Reverse(counts[colour]));
    colours.truncate(256);
    let distance =
        |a: &[u8; 3], b: &[u8; 3]| -> u32 { a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum() };
    let nearest = |colour| (0..colours.len()).min_by_key(|&i| distance(&colours[i], colour)).unwrap_or(0) as u8;
    let indices: BTreeMap<_, u8> = counts.keys().map(|colour| (*colour, nearest(colour))).collect();
    let mut last = ([0; 3], indices.get(&[0; 3]).copied());
    let index = |pixel: [u8; 3]| {
        // Neighbours are mostly alike.
        if last.0 != pixel || last.1.is_none() {
            last = (pixel, indices.get(&pixel).copied());
        }
        last.1.unwrap_or(0)
    };
    (colours.iter().copied().flatten().collect(), pixels().map(index).collect())
}

fn plotters_error<E: std::error::Error + Send + Sync>(
    error: plotters::drawing::DrawingAreaErrorKind<E>,
) -> anyhow::Error {
    anyhow!("the picture cannot be drawn: {error}")
}

/// Fonts of PNG pictures, part of the program: no machine needs any.
struct Fonts {
    regular: FontRef<'static>,
    bold: FontRef<'static>,
}

impl Fonts {
    fn new() -> Result<Fonts> {
        Ok(Fonts {
            regular: FontRef::try_from_slice(notosans::REGULAR_TTF)?,
            bold: FontRef::try_from_slice(notosans::BOLD_TTF)?,
        })
    }

    fn get(&self, bold: bool) -> &FontRef<'static> {
        if bold { &self.bold } else { &self.regular }
    }
}

/// ab_glyph counts the height of a line where everybody else counts the em.
fn px_scale(font: &FontRef<'_>, em: f64) -> PxScale {
    let units = font.units_per_em().unwrap_or(1000.0);
    PxScale::from(em as f32 * font.height_unscaled() / units)
}

/// Width of `text` at this size of the em.
fn text_width(font: &FontRef<'_>, text: &str, em: f64) -> f64 {
    let scaled = font.as_scaled(px_scale(font, em));
    text.chars().map(|c| f64::from(scaled.h_advance(scaled.glyph_id(c)))).sum()
}

/// Where the parts of a figure are.
struct Layout {
    width: f64,
    height: f64,
    /// Left end, line (0, 1 ...) and text of each entry of the legend.
    legend: Vec<(f64, usize)>,
    legend_top: f64,
    panels_top: f64,
    panel_width: f64,
    row_height: f64,
    notes_top: f64,
}

/// Line and marker before the name of a legend entry, and the gap behind the name.
const LEGEND_KEY: f64 = 38.0;
const LEGEND_GAP: f64 = 18.0;
const LEGEND_LINE: f64 = 21.0;

impl Layout {
    fn new(figure: &Figure) -> Layout {
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

fn label_lines(axis: &Axis) -> usize {
    axis.ticks.iter().map(|tick| tick.1.split('\n').count()).max().unwrap_or(1)
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
