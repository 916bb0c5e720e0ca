//! Other implementations of attention, in a Python process beside this one.
//!
//! The process runs `tests/peers/peers.py`, which is part of this binary. It gets one request at a time on its standard input, and gives
//! one answer for each: so only one of the two processes has work on the GPU at any time. [`protocol`] is what they say. Tensors go
//! through files in memory.

mod list;
mod name;
mod protocol;

use super::record::Check;
use crate::workload::{Case, L2, Pass, Workload};
use anyhow::{Context, Result};
use ferroflash::DeviceKind;
pub(crate) use list::{ListArgs, list};
pub(crate) use name::{Operation, PeerName};
use protocol::{Answer, Import, Prepare, Request};
pub(crate) use protocol::{RowsInput, RowsProblem};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
use tempfile::TempDir;

/// The programs of the peers, of which the first is started: links to `tests/peers`, which a package of this crate holds as files.
const SCRIPTS: [(&str, &str); 7] = [
    ("peers.py", include_str!("peers/peers.py")),
    ("peer_attention.py", include_str!("peers/peer_attention.py")),
    ("peer_launch.py", include_str!("peers/peer_launch.py")),
    ("peer_packages.py", include_str!("peers/peer_packages.py")),
    ("peer_operators.py", include_str!("peers/peer_operators.py")),
    ("peer_programs.py", include_str!("peers/peer_programs.py")),
    ("peer_cute.py", include_str!("peers/peer_cute.py")),
];

/// Until the first answer: PyTorch takes seconds to import, and minutes from a cold disk.
const START_LIMIT: Duration = Duration::from_secs(240);

/// In the place of a device: nothing is to run.
const NO_DEVICE: &str = "-";

/// For any later answer: the longest are compilations.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);

/// How often a process that died is started again, in all of a run.
const MOST_RESTARTS: u32 = 3;

/// A running Python process.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<std::io::Result<String>>,
}

/// Other implementations on the GPU of this run.
pub(crate) struct Peers {
    python: PathBuf,
    /// The device as PyTorch calls it, or [`NO_DEVICE`].
    device: String,
    /// Who was asked for.
    names: Vec<PeerName>,
    /// Scripts and log.
    folder: TempDir,
    /// Tensors on their way.
    data: TempDir,
    process: Option<Process>,
    restarts: u32,
    /// The problem at hand.
    prepared: Option<Prepare>,
    /// Of what the peers run on, by name.
    pub(crate) versions: BTreeMap<String, String>,
    imports: BTreeMap<String, Import>,
}

/// What a peer did with the problem at hand.
pub(crate) struct Checked {
    pub(crate) extra_bytes: u64,
    /// Whether its launches are replays of a CUDA graph.
    pub(crate) graph: bool,
    pub(crate) check: Check,
    /// Milliseconds from the request to the first result of a program, and to the second one.
    pub(crate) first_ms: Option<f64>,
    pub(crate) second_ms: Option<f64>,
}

/// Either what was asked for, or why there is none.
pub(crate) type Outcome<T> = Result<T, String>;

impl Peers {
    /// Starts the process with this interpreter, or with the `python3` or `python` of the path, and lets it import these peers for
    /// this device. Otherwise the reason why there are no peers.
    ///
    /// # Errors
    /// A file system that takes no temporary files.
    pub(crate) fn start(python: Option<&Path>, device: &DeviceKind, names: &[PeerName]) -> Result<Outcome<Peers>> {
        let ordinal = match device {
            DeviceKind::Cuda { ordinal, .. } => *ordinal,
            _ => 0,
        };
        Peers::start_on(format!("cuda:{ordinal}"), python, names)
    }

    fn start_on(device: String, python: Option<&Path>, names: &[PeerName]) -> Result<Outcome<Peers>> {
        let folder = tempfile::Builder::new().prefix("ferroflash-peers-").tempdir().context("a temporary folder")?;
        for (name, script) in SCRIPTS {
            std::fs::write(folder.path().join(name), script).context("a temporary file")?;
        }
        let mut peers = Peers {
            python: PathBuf::new(),
            device,
            names: names.to_vec(),
            folder,
            data: data_folder()?,
            process: None,
            restarts: 0,
            prepared: None,
            versions: BTreeMap::new(),
            imports: BTreeMap::new(),
        };
        let candidates = python.map_or(vec!["python3".into(), "python".into()], |python| vec![python.to_owned()]);
        let mut reasons = Vec::new();
        for candidate in candidates {
            peers.python = candidate;
            match peers.launch() {
                Ok(()) => return Ok(Ok(peers)),
                Err(reason) => reasons.push(format!("{}: {reason}", peers.python.display())),
            }
        }
        Ok(Err(reasons.join("; ")))
    }

    fn launch(&mut self) -> Outcome<()> {
        let log = File::create(self.log()).map_err(|error| error.to_string())?;
        let names: Vec<&str> = self.names.iter().map(|name| name.key()).collect();
        let mut command = Command::new(&self.python);
        command
            .arg("-u")
            .arg(self.folder.path().join(SCRIPTS[0].0))
            .arg(&self.device)
            .arg(names.join(","))
            .arg(self.data.path());
        // What the compiler of the peers writes goes with the run.
        command.env("TORCHINDUCTOR_CACHE_DIR", self.folder.path().join("inductor"));
        command.env("TRITON_CACHE_DIR", self.folder.path().join("triton"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let (stdin, stdout) = (child.stdin.take().expect("it is piped"), child.stdout.take().expect("it is piped"));
        let (send, lines) = channel();
        // Ends with the process, or when nobody listens any more.
        std::thread::spawn(move || BufReader::new(stdout).lines().try_for_each(|line| send.send(line)));
        self.process = Some(Process { child, stdin, lines });
        match self.answer(START_LIMIT)? {
            Answer::Hello { versions, peers } => {
                self.versions = versions;
                self.imports = peers;
                Ok(())
            }
            Answer::Unavailable(reason) => {
                self.end();
                Err(reason)
            }
            _ => Err(self.died("its first answer is not the one expected")),
        }
    }

    /// The version of a peer that was asked for, or why it could not be imported.
    pub(crate) fn import(&self, name: PeerName) -> Outcome<&str> {
        match self.imports.get(name.key()) {
            Some(Import::Version(version)) => Ok(version),
            Some(Import::Missing(reason)) => Err(reason.clone()),
            None => Err("the Python process says nothing of it".to_owned()),
        }
    }

    /// Those of the peers asked for that could be imported.
    pub(crate) fn imported(&self) -> Vec<PeerName> {
        self.names.iter().copied().filter(|&name| self.import(name).is_ok()).collect()
    }

    /// The interpreter that runs.
    pub(crate) fn python(&self) -> &Path {
        &self.python
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Asks one question. The reason for no answer is one of the peer, which lives on, or of the process, which then is gone.
    fn ask(&mut self, request: &Request<'_>) -> Outcome<Answer> {
        if self.process.is_none() {
            self.restart()?;
        }
        let process = self.process.as_mut().expect("it was started");
        let mut line = serde_json::to_string(request).map_err(|error| error.to_string())?;
        line.push('\n');
        if let Err(error) = process.stdin.write_all(line.as_bytes()) {
            return Err(self.died(&error.to_string()));
        }
        match self.answer(ANSWER_LIMIT)? {
            Answer::Skipped(reason) => Err(reason),
            answer => Ok(answer),
        }
    }

    /// A new process, with the problem at hand.
    fn restart(&mut self) -> Outcome<()> {
        if self.restarts == MOST_RESTARTS {
            return Err(format!("the Python process ended {} times", MOST_RESTARTS + 1));
        }
        self.restarts += 1;
        self.launch()?;
        match self.prepared.clone() {
            Some(prepare) => self.ask(&Request::Prepare(Box::new(prepare))).map(|_| ()),
            None => Ok(()),
        }
    }

    fn answer(&mut self, limit: Duration) -> Outcome<Answer> {
        let process = self.process.as_ref().expect("somebody was asked");
        match process.lines.recv_timeout(limit) {
            Ok(Ok(line)) => serde_json::from_str(&line).map_err(|error| self.died(&format!("`{line}`: {error}"))),
            Ok(Err(error)) => Err(self.died(&error.to_string())),
            Err(RecvTimeoutError::Timeout) => Err(self.died(&format!("no answer in {} s", limit.as_secs()))),
            Err(RecvTimeoutError::Disconnected) => Err(self.died("no answer")),
        }
    }

    /// Ends the process and says why, with the last line of its log.
    fn died(&mut self, reason: &str) -> String {
        self.end();
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        match log.lines().rfind(|line| !line.trim().is_empty()) {
            Some(last) => format!("the Python process ended: {reason} ({})", last.trim()),
            None => format!("the Python process ended: {reason}"),
        }
    }

    fn end(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // It may have ended by itself.
        let _ = process.child.kill();
        let _ = process.child.wait();
    }

    /// Gives the peers the inputs of a problem.
    ///
    /// # Errors
    /// Inputs that cannot be read from the device or written to a file; within the outcome, a process that does not take them.
    pub(crate) fn prepare(
        &mut self,
        case: &Case,
        pass: Pass,
        workload: &Workload,
        l2: L2,
        l2_bytes: u64,
    ) -> Result<Outcome<()>> {
        self.write(|folder| workload.write_inputs(folder))?;
        let prepare = match Prepare::new(case, pass, self.data.path(), l2, l2_bytes, workload.calls()) {
            Ok(prepare) => prepare,
            Err(reason) => return Ok(Err(reason)),
        };
        // After a restart it is given again.
        self.prepared = None;
        let prepared = self.ask(&Request::Prepare(Box::new(prepare.clone()))).and_then(|answer| match answer {
            Answer::Prepared(true) => Ok(()),
            _ => Err(self.died("another question was answered")),
        });
        if prepared.is_ok() {
            self.prepared = Some(prepare);
        }
        Ok(prepared)
    }

    /// Has inputs written where the peers read them.
    fn write<T>(&mut self, write: impl Fn(&Path) -> Result<T>) -> Result<T> {
        write(self.data.path()).or_else(|_| {
            // Some systems keep little room in memory; the usual folder is slower.
            self.data = tempfile::tempdir().context("a temporary folder")?;
            write(self.data.path())
        })
    }

    /// Gives the peers rows, which `write` writes into a folder.
    ///
    /// # Errors
    /// As [`Peers::prepare`].
    pub(crate) fn prepare_rows(&mut self, write: impl Fn(&Path) -> Result<RowsProblem>) -> Result<Outcome<()>> {
        let problem = self.write(write)?;
        // A process that ended is started without it: its peers are left out from there on.
        self.prepared = None;
        let prepared = self.ask(&Request::PrepareRows(problem)).and_then(|answer| match answer {
            Answer::Prepared(true) => Ok(()),
            _ => Err(self.died("another question was answered")),
        });
        Ok(prepared)
    }

    /// Runs a peer once on the rows at hand, and gives the file that its results are beside.
    pub(crate) fn run_rows(&mut self, peer: PeerName) -> Outcome<PathBuf> {
        let out = self.data.path().join("out");
        match self.ask(&Request::Check { peer: peer.key(), out: out.clone() })? {
            Answer::Checked { .. } => Ok(out),
            _ => Err(self.died("another question was answered")),
        }
    }

    /// Runs a peer once on the problem at hand, and compares what it gave with the reference.
    pub(crate) fn check(&mut self, peer: PeerName, workload: &Workload) -> Outcome<Checked> {
        let out = self.data.path().join("out");
        match self.ask(&Request::Check { peer: peer.key(), out: out.clone() })? {
            Answer::Checked { extra_bytes, graph, first_ms, second_ms } => {
                let check = workload.check_files(&out).map_err(|error| format!("{error:#}"));
                // The next peer that writes nothing must not be judged by this one's.
                for file in workload.result_files(&out) {
                    let _ = std::fs::remove_file(file);
                }
                Ok(Checked { extra_bytes, graph, check: check?, first_ms, second_ms })
            }
            _ => Err(self.died("another question was answered")),
        }
    }

    /// Milliseconds of `launches` of the pass in a row, together. `lead`: one more goes ahead, outside of the time.
    pub(crate) fn time_ms(&mut self, peer: PeerName, launches: u32, lead: bool) -> Outcome<f64> {
        self.milliseconds(&Request::Time { peer: peer.key(), launches, lead })
    }

    /// Whether the launches that were timed give, over poisoned memory, what was compared with the reference: bit for bit in a forward pass,
    /// and up to the order of their sums in a backward pass, which most peers leave open; otherwise why not.
    pub(crate) fn verify(&mut self, peer: PeerName) -> Outcome<()> {
        match self.ask(&Request::Verify { peer: peer.key() })? {
            Answer::Verified(true) => Ok(()),
            _ => Err(self.died("another question was answered")),
        }
    }

    /// Milliseconds of this many products of two square matrices, together.
    pub(crate) fn matmul_ms(&mut self, dtype: &str, size: usize, launches: u32) -> Outcome<f64> {
        self.milliseconds(&Request::Matmul { dtype, size, launches })
    }

    /// Milliseconds of this many sums over so many bytes, together.
    pub(crate) fn read_ms(&mut self, bytes: u64, launches: u32) -> Outcome<f64> {
        self.milliseconds(&Request::Read { bytes, launches })
    }

    fn milliseconds(&mut self, request: &Request<'_>) -> Outcome<f64> {
        match self.ask(request)? {
            Answer::Ms(ms) if ms.is_finite() && ms > 0.0 => Ok(ms),
            Answer::Ms(ms) => Err(format!("{ms} ms is no time")),
            _ => Err(self.died("another question was answered")),
        }
    }

    /// Gives kept device memory back to the driver.
    pub(crate) fn trim(&mut self) -> Outcome<()> {
        match self.ask(&Request::Trim(true))? {
            Answer::Trimmed(true) => Ok(()),
            _ => Err(self.died("another question was answered")),
        }
    }

    /// Gives the memory of the problem at hand back. What went wrong here shows at the next question.
    pub(crate) fn release(&mut self) {
        self.prepared = None;
        if self.process.is_some() && !matches!(self.ask(&Request::Release(true)), Ok(Answer::Released(true))) {
            self.end();
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.end();
    }
}

/// A folder in memory where the system has one.
fn data_folder() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("ferroflash-");
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).context("a temporary folder")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    /// The scripts have their own table of the peers, and their own words for what these compute.
    #[test]
    fn the_scripts_know_every_peer() {
        let scripts = SCRIPTS.map(|(_, script)| script).concat();
        for peer in PeerName::value_variants() {
            assert!(scripts.contains(&format!("\"{peer}\": ")), "{peer}");
            assert!(scripts.contains(&format!("operation = \"{}\"", peer.operation())), "{peer}");
        }
    }
}
