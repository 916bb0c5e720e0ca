//! Pictures of a record.

mod draw;
mod figure;
mod pictures;
mod style;

use crate::bench::record::Record;
use crate::files;
use anyhow::{Context, Result, ensure};
pub(crate) use draw::{escape, inline_svg, png, svg};
pub(crate) use pictures::figures;
use std::path::{Path, PathBuf};
pub(crate) use style::dark_rules;

/// Writes every picture of the record as `NAME.svg` and `NAME.png` into `folder`, which is made when it is not there.
///
/// The same record gives the same bytes.
pub(crate) fn write(record: &Record, folder: &Path) -> Result<Vec<PathBuf>> {
    let figures = figures(record);
    ensure!(!figures.is_empty(), "the record holds nothing to draw");
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut written = Vec::new();
    for figure in &figures {
        for (extension, bytes) in [("svg", svg(figure)?.into_bytes()), ("png", png(figure)?)] {
            let path = folder.join(format!("{}.{extension}", figure.name));
            files::write(&path, bytes)?;
            written.push(path);
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::samples::{sample, sample_cell};

    fn record() -> Record {
        let times = [("naive", 4.0), ("v3", 0.5), ("torch cudnn", 0.6)];
        sample("GPU <1> & \"2\"", "cuda", [512, 1024].map(|seq| sample_cell("bf16", seq, &times)).to_vec())
    }

    #[test]
    fn the_same_record_gives_the_same_bytes() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let files = folders.each_ref().map(|folder| {
            let paths = write(&record(), &folder.path().join("new")).unwrap();
            paths
                .iter()
                .map(|path| (path.file_name().unwrap().to_owned(), std::fs::read(path).unwrap()))
                .collect::<Vec<_>>()
        });
        assert_eq!(files[0].len(), 4);
        assert!(files[0] == files[1]);
    }

    #[test]
    fn a_png_is_whole_and_has_the_size_of_the_svg_twice() {
        for figure in figures(&record()) {
            let svg = svg(&figure).unwrap();
            let size = |name: &str| -> u32 {
                let (_, rest) = svg.split_once(&format!(" {name}=\"")).unwrap();
                rest.split_once('"').unwrap().0.parse().unwrap()
            };
            let file = png(&figure).unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(&file)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((info.width, info.height), (2 * size("width"), 2 * size("height")), "{}", figure.name);
            // Paper at the corners, ink somewhere.
            let first = pixels[0];
            assert!(pixels.ends_with(&[first]) && pixels.iter().any(|&pixel| pixel != first));
        }
    }

    #[test]
    fn an_svg_is_complete_and_escaped() {
        for figure in figures(&record()) {
            let svg = svg(&figure).unwrap();
            assert!(svg.starts_with("<svg xmlns=") && svg.trim_end().ends_with("</svg>"));
            assert!(svg.contains("GPU &lt;1&gt; &amp; ") && !svg.contains("GPU <1>"));
            // Nothing of the marks that stand for dashes is left.
            assert!(!svg.contains("opacity="), "{}", figure.name);
            assert_eq!(
                svg.contains("stroke-dasharray="),
                figure.name.starts_with("tflops") || figure.name.starts_with("errors")
            );
            assert!(!inline_svg(&figure).unwrap().contains("http"));
        }
    }

    #[test]
    fn a_record_without_results_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&sample("GPU", "cuda", Vec::new()), folder.path()).unwrap_err();
        assert!(error.to_string().contains("nothing to draw"));
    }
}
