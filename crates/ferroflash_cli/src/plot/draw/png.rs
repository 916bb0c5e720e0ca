//! A figure as PNG.

use super::text::Fonts;
use super::{Layout, Pen, plotters_error};
use crate::plot::figure::Figure;
use anyhow::Result;
use plotters::prelude::{BitMapBackend, IntoDrawingArea};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Pixels for one CSS pixel: sharp on dense screens and in print.
const PNG_DENSITY: usize = 2;
/// The drawing library smooths no polygons: each pixel is the mean of this many squared.
const SUPERSAMPLING: usize = 3;

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
