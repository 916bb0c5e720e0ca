//! Fonts of pictures, and the width of their text.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};
use anyhow::Result;

/// Fonts of PNG pictures, part of the program: no machine needs any.
pub(super) struct Fonts {
    regular: FontRef<'static>,
    bold: FontRef<'static>,
}

impl Fonts {
    pub(super) fn new() -> Result<Fonts> {
        Ok(Fonts {
            regular: FontRef::try_from_slice(notosans::REGULAR_TTF)?,
            bold: FontRef::try_from_slice(notosans::BOLD_TTF)?,
        })
    }

    pub(super) fn get(&self, bold: bool) -> &FontRef<'static> {
        if bold { &self.bold } else { &self.regular }
    }
}

/// ab_glyph counts the height of a line where everybody else counts the em.
pub(super) fn px_scale(font: &FontRef<'_>, em: f64) -> PxScale {
    let units = font.units_per_em().unwrap_or(1000.0);
    PxScale::from(em as f32 * font.height_unscaled() / units)
}

/// Width of `text` at this size of the em.
pub(super) fn text_width(font: &FontRef<'_>, text: &str, em: f64) -> f64 {
    let scaled = font.as_scaled(px_scale(font, em));
    text.chars().map(|c| f64::from(scaled.h_advance(scaled.glyph_id(c)))).sum()
}
