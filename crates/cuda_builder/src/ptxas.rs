//! Assembles entries for a real GPU, to see registers, spills and warnings without one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::at;
use crate::{Arch, Error, cache_dir, command};

/// NVIDIA's PTX assembler.
#[derive(Clone, Debug)]
pub struct Ptxas {
    path: PathBuf,
    version: String,
}

/// What ptxas says about one entry on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of the stack frame: local memory that the code asks for.
    pub stack_bytes: u32,
    /// Bytes of spill stores: registers that did not fit.
    pub spill_store_bytes: u32,
    /// Bytes of spill loads.
    pub spill_load_bytes: u32,
    /// Bytes of static shared memory; dynamic shared memory is an argument of the launch.
    pub shared_bytes: u32,
    /// Named barriers in use.
    pub barriers: u32,
    /// Warnings and advice, such as C7510 (wgmma was serialised).
    pub messages: Vec<Message>,
}

/// A warning or advice of ptxas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The code, such as `C7510`, if there is one.
    pub code: Option<String>,
    /// The text without prefix and code.
    pub text: String,
}

impl Message {
    /// Whether wgmma instructions were serialised, which costs up to half of the speed. Of the C75xx codes C7519 (a
    /// `warpgroup.arrive` was added) alone is harmless.
    pub fn is_serialization(&self) -> bool {
        self.code.as_deref().is_some_and(|code| code.starts_with("C75") && code != "C7519")
    }
}

impl Report {
    /// What makes the entry slow, one line per cause: spills, local memory, serialised wgmma. Empty when it is clean.
    pub fn defects(&self) -> Vec<String> {
        let mut defects = Vec::new();
        if self.spill_store_bytes + self.spill_load_bytes > 0 {
            let (stores, loads) = (self.spill_store_bytes, self.spill_load_bytes);
            defects.push(format!("spills registers: {stores} bytes stored, {loads} bytes loaded"));
        }
        if self.stack_bytes > 0 {
            defects.push(format!("{} bytes of local memory", self.stack_bytes));
        }
        for message in self.messages.iter().filter(|message| message.is_serialization()) {
            defects.push(format!("{}: {}", message.code.as_deref().unwrap_or_default(), message.text));
        }
        defects
    }
}

impl Ptxas {
    /// ptxas on PATH, else of the toolkit in `CUDA_HOME` or `CUDA_PATH`, else the one that `cargo xtask setup --ptxas` installed.
    ///
    /// # Errors
    /// [`Error::NoPtxas`] lists the places; [`Error::Start`] or [`Error::Command`] when the one found does not run.
    pub fn find() -> Result<Self, Error> {
        let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
        let toolkits =
            ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|dir| PathBuf::from(dir).join("bin"));
        let searched: Vec<PathBuf> = Vec::into_iter(on_path)
            .chain(toolkits)
            .chain(Self::cached())
            .map(|dir: PathBuf| dir.join("ptxas"))
            .collect();
        match searched.iter().find(|path| path.is_file()) {
            Some(path) => Self::at(path),
            None => Err(Error::NoPtxas { searched }),
        }
    }

    /// Folder with the ptxas that `cargo xtask setup --ptxas` installs; `None` without a home folder.
    pub fn cached() -> Option<PathBuf> {
        Some(cache_dir()?.join("ptxas").join("bin"))
    }

    /// The ptxas at `path`.
    ///
    /// # Errors
    /// [`Error::Start`] or [`Error::Command`] when it does not run.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let text = command::output(Command::new(path).arg("--version"))?;
        // "Cuda compilation tools, release 13.0, V13.0.88"
        let version = text.split_whitespace().find_map(|word| {
            word.strip_prefix('V').filter(|version| version.starts_with(|c: char| c.is_ascii_digit()))
        });
        let unexpected = || Error::Output { command: "ptxas --version".into(), reason: "no version".into() };
        Ok(Ptxas { path: path.to_path_buf(), version: version.ok_or_else(unexpected)?.to_string() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, such as `13.0.88`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Assembles the module of one entry for a real GPU and reads the report.
    ///
    /// # Errors
    /// [`Error::Command`] when the PTX is refused, with what ptxas says; [`Error::Output`] when the report has no such entry.
    pub fn assemble(&self, entry: &str, ptx: &str, arch: Arch) -> Result<Report, Error> {
        // Several threads of several processes assemble at once.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let input = env::temp_dir().join(format!("cuda_builder-{}-{number}.ptx", std::process::id()));
        fs::write(&input, ptx).map_err(at(&input))?;
        let result = command::streams(
            Command::new(&self.path).args(["-v", "--output-file", "/dev/null", "--gpu-name", arch.name()]).arg(&input),
        );
        fs::remove_file(&input).map_err(at(&input))?;
        let (stdout, stderr) = result?;
        parse(entry, &format!("{stdout}\n{stderr}")).ok_or_else(|| Error::Output {
            command: "ptxas -v".into(),
            reason: format!("no figures for `{entry}`\n{stderr}"),
        })
    }
}

/// Reads the lines of `ptxas -v` that belong to `entry`.
fn parse(entry: &str, text: &str) -> Option<Report> {
    let mut report = Report::default();
    let mut has_registers = false;
    // Lines follow the entry or function that they are about. A stack frame or spill of a called function counts too: it is on
    // the stack of the entry's thread.
    let mut is_entry = false;
    for line in text.lines().map(str::trim) {
        let info = line.strip_prefix("ptxas info").map(|rest| rest.trim_start_matches([' ', ':']));
        if let Some(info) = info.filter(|info| !info.starts_with('(')) {
            if let Some(name) = info.strip_prefix("Compiling entry function '") {
                is_entry = name.split('\'').next() == Some(entry);
            } else if let Some(figures) = info.strip_prefix("Used ").filter(|_| is_entry) {
                has_registers = true;
                for figure in figures.split(',').map(str::trim) {
                    let number: u32 = figure.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0);
                    if figure.contains("registers") {
                        report.registers = number;
                    } else if figure.contains("barriers") {
                        report.barriers = number;
                    } else if figure.contains("smem") {
                        report.shared_bytes = number;
                    }
                }
            }
        } else if let Some(message) = message(line) {
            report.messages.push(message);
        } else if line.contains("bytes stack frame") {
            for figure in line.split(',').map(str::trim) {
                let number: u32 = figure.split_whitespace().next().and_then(|word| word.parse().ok())?;
                if figure.contains("stack frame") {
                    report.stack_bytes += number;
                } else if figure.contains("spill stores") {
                    report.spill_store_bytes += number;
                } else if figure.contains("spill loads") {
                    report.spill_load_bytes += number;
                }
            }
        }
    }
    has_registers.then_some(report)
}

/// A warning or advice: `ptxas warning : text`, `ptxas info    : (C7510) text`, or a file position before either.
fn message(line: &str) -> Option<Message> {
    let is_warning = line.starts_with("ptxas warning") || line.contains("; warning") || line.contains(" warning :");
    let coded = line.find("(C").filter(|&at| line[at + 2..].starts_with(|c: char| c.is_ascii_digit()));
    if !is_warning && coded.is_none() {
        return None;
    }
    let (code, text) = match coded {
        Some(at) => {
            let (code, text) = line[at + 1..].split_once(')')?;
            (Some(code.to_string()), text)
        }
        None => (None, line.split_once(':').map_or(line, |(_, text)| text)),
    };
    Some(Message { code, text: text.trim().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 3 barriers, 256 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 3.2 ms
";

    const DEFECTIVE: &str = "\
ptxas info    : (C7519) warpgroup.arrive is injected in around line 100 by compiler to allow use of registers in GMMA in function 'one'
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient registers in function 'one'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    64 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, 400 bytes cmem[0]
ptxas info    : Function properties for helper
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas warning : Stack size for entry function 'one' cannot be statically determined
";

    #[test]
    fn figures_are_read() {
        let report = parse("one", CLEAN).unwrap();
        let expected = Report { registers: 168, barriers: 3, shared_bytes: 256, ..Report::default() };
        assert_eq!(report, expected);
        assert!(report.defects().is_empty());
        assert!(parse("two", CLEAN).is_none());
    }

    #[test]
    fn defects_are_named() {
        let report = parse("one", DEFECTIVE).unwrap();
        assert_eq!((report.registers, report.stack_bytes), (255, 96));
        assert_eq!((report.spill_store_bytes, report.spill_load_bytes), (12, 16));
        assert_eq!(report.messages.len(), 3);
        assert_eq!(report.messages[2].text, "Stack size for entry function 'one' cannot be statically determined");
        let defects = report.defects().join("\n");
        assert!(defects.contains("12 bytes stored, 16 bytes loaded"), "{defects}");
        assert!(defects.contains("96 bytes of local memory") && defects.contains("C7510"), "{defects}");
        assert!(!defects.contains("C7519"), "{defects}");
    }
}
