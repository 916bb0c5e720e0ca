//! A figure as SVG.

use super::{Layout, Pen, plotters_error};
use crate::plot::figure::Figure;
use crate::plot::style::dark_rules;
use anyhow::{Result, anyhow};
use plotters::prelude::{IntoDrawingArea, SVGBackend};
use std::cell::RefCell;
use std::fmt::Write;

/// Steps of one CSS pixel that coordinates are rounded to.
const SVG_STEPS: f64 = 10.0;

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
pub(super) fn dash_mark(index: usize) -> f64 {
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
