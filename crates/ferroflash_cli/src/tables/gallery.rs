//! The committed records, and the pictures that are committed beside them.

use crate::bench::operators::record::{OPERATORS_KIND, OperatorRecord};
use crate::bench::record::{BENCH_KIND, Record};
use crate::plot;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One record of docs/benchmarks and its pictures.
pub(super) struct Entry {
    /// Name of its file without `.json`.
    pub(super) stem: String,
    pub(super) record: Record,
    pub(super) pictures: Vec<Picture>,
}

/// One picture of a record.
pub(super) struct Picture {
    /// Name of its file without `.svg`.
    pub(super) stem: String,
    /// What it shows, and what is to be seen in it.
    pub(super) description: String,
}

/// Files by name, and what they hold.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What `generate` makes, and what anybody makes of a record with `report`; anything else of these in the folder is left over.
const GENERATED: [&str; 3] = ["svg", "png", "html"];

/// Reads the records of `folder`, in the order of their names; none when there is no folder. JSON files of another kind, such as the
/// counts that the tests compare with, are not the bench's.
pub(super) fn read(folder: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (stem, path) in records(folder, BENCH_KIND)? {
        let record = Record::read("the record", &path)?;
        let figures = plot::figures(&record);
        // One element type is enough to look at; a report has all.
        let first = record.cells.first().map(|cell| format!("-{}", cell.problem.dtype)).unwrap_or_default();
        let pictures = figures
            .iter()
            .filter(|figure| figure.name.contains(&first))
            .map(|figure| Picture { stem: format!("{stem}-{}", figure.name), description: figure.description.clone() });
        let pictures = pictures.collect();
        entries.push(Entry { stem, record, pictures });
    }
    Ok(entries)
}

/// The same of operators, which have no pictures.
pub(super) fn read_operators(folder: &Path) -> Result<Vec<(String, OperatorRecord)>> {
    let records = records(folder, OPERATORS_KIND)?.into_iter();
    records.map(|(stem, path)| Ok((stem, OperatorRecord::read("the record", &path)?))).collect()
}

/// The files that say that they are records of this kind, of whatever version, and their names without `.json`.
fn records(folder: &Path, kind: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut records = Vec::new();
    for name in names(folder, &["json"])? {
        let path = folder.join(&name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let value: serde_json::Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if value["kind"] == kind {
            records.push((name.trim_end_matches(".json").to_owned(), path));
        }
    }
    Ok(records)
}

/// Every file that belongs beside the records.
pub(super) fn generate(entries: &[Entry]) -> Result<Files> {
    let mut files = Files::new();
    for entry in entries {
        for figure in plot::figures(&entry.record) {
            let stem = format!("{}-{}", entry.stem, figure.name);
            if entry.pictures.iter().any(|picture| picture.stem == stem) {
                files.insert(format!("{stem}.svg"), plot::svg(&figure)?.into_bytes());
            }
        }
    }
    Ok(files)
}

/// Brings `folder` in line with `files`.
pub(super) fn write(folder: &Path, files: &Files) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for name in differing(folder, files)? {
        let path = folder.join(&name);
        match files.get(&name) {
            Some(content) => std::fs::write(&path, content),
            None => std::fs::remove_file(&path),
        }
        .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Names of files that are missing, of other content, or left over.
pub(super) fn differing(folder: &Path, files: &Files) -> Result<Vec<String>> {
    let mut differing: BTreeSet<String> =
        names(folder, &GENERATED)?.into_iter().filter(|name| !files.contains_key(name)).collect();
    for (name, content) in files {
        if std::fs::read(folder.join(name)).ok().as_ref() != Some(content) {
            differing.insert(name.clone());
        }
    }
    Ok(differing.into_iter().collect())
}

/// Names of files with one of these extensions, sorted.
fn names(folder: &Path, extensions: &[&str]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.rsplit_once('.').is_some_and(|(_, extension)| extensions.contains(&extension)) {
                names.insert(name);
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::samples::{sample, sample_cell};

    #[test]
    fn pictures_follow_their_records() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let put = |ms: f64| {
            let cells = ["bf16", "f16"].map(|dtype| sample_cell(dtype, 512, &[("v2", ms), ("torch flash", 2.0)]));
            let record = sample("GPU", "cuda", cells.to_vec());
            std::fs::write(at("a.json"), serde_json::to_string(&record).unwrap()).unwrap();
        };
        let files = || generate(&read(folder.path()).unwrap()).unwrap();
        put(1.0);
        std::fs::write(at("counters.json"), "{}").unwrap();
        let left_over = ["a-tflops-bf16.png", "a.html", "old-tflops-bf16.svg"];
        left_over.iter().for_each(|name| std::fs::write(at(name), "left over").unwrap());
        let names: Vec<String> = files().into_keys().collect();
        let expected = ["a-errors-bf16.svg", "a-tflops-bf16.svg"];
        assert_eq!(names, expected);
        assert_eq!(differing(folder.path(), &files()).unwrap().len(), 5);
        write(folder.path(), &files()).unwrap();
        assert!(left_over.iter().all(|name| !at(name).exists()));
        assert_eq!(differing(folder.path(), &files()).unwrap(), [""; 0]);
        // Another time, other pictures: the errors stay.
        put(0.5);
        assert_eq!(differing(folder.path(), &files()).unwrap(), ["a-tflops-bf16.svg"]);
        assert!(read(&at("absent")).unwrap().is_empty());
        std::fs::write(at("cut.json"), "{").unwrap();
        assert!(read(folder.path()).is_err());
    }
}
