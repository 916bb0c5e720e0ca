//! The tables and lists of a report, before they become Markdown or HTML.

use crate::bench::record::{Cell, CellProblem, Measurement, Record};
use crate::format;
use std::collections::BTreeSet;

/// One table.
pub(super) struct Table {
    pub(super) title: String,
    /// Heading and what it means, where the heading does not say it.
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<Field>>,
}

/// One field of a table.
pub(super) struct Field {
    pub(super) text: String,
    /// What a column is sorted by; text is sorted as text.
    pub(super) value: Option<f64>,
    /// Whether it reports something wrong.
    pub(super) bad: bool,
}

impl Field {
    fn number(text: impl Into<String>, value: f64) -> Field {
        Field { text: text.into(), value: Some(value), bad: false }
    }

    fn text(text: impl Into<String>) -> Field {
        Field { text: text.into(), value: None, bad: false }
    }

    fn optional<T: Copy>(value: Option<T>, number: fn(T) -> f64, show: impl FnOnce(T) -> String) -> Field {
        value.map_or_else(|| Field::text("-"), |value| Field::number(show(value), number(value)))
    }
}

/// Name and value pairs.
pub(super) struct List {
    pub(super) title: &'static str,
    pub(super) entries: Vec<(String, String)>,
}

/// What a report is about, in one line.
pub(super) fn heading(record: &Record) -> String {
    let kind = if counted(record) { "Attention in the emulator" } else { "Attention" };
    if counted(record) { kind.to_owned() } else { format!("{kind} on {}", record.environment.device) }
}

/// What a reader has to know before the first number.
pub(super) fn introduction(record: &Record) -> Vec<String> {
    let method = &record.method;
    let mut lines = Vec::new();
    if method.pass.has_backward() {
        lines.push(format!("What was measured is {}.", method.pass.title()));
    }
    if counted(record) {
        lines.push(
            "The compiled kernels ran in the PTX emulator. All numbers are counts of what they do, not times."
                .to_owned(),
        );
    } else {
        lines.push(format!(
            "Medians of {} samples {}, after {} s of warm-up; inputs {}. TFLOP/s count {}.",
            method.repeats,
            method.spacing(),
            method.warmup_seconds,
            method.inputs,
            method.flop_rule
        ));
    }
    lines.push(format!("A result is accepted when {}.", method.tolerance));
    let (checked, wrong) = record.verdict();
    lines.push(if wrong.is_empty() {
        format!("{checked} results of ferroflash were compared with an f64 reference, and all are accepted.")
    } else {
        format!("{} of {checked} results of ferroflash are NOT accepted: {}.", wrong.len(), wrong.join("; "))
    });
    if record.cells.len() < record.sweep.problems.len() {
        lines.push(format!(
            "The run was not finished: {} of {} problems are here.",
            record.cells.len(),
            record.sweep.problems.len()
        ));
    }
    lines
}

/// Whether there are counts in the place of times.
pub(super) fn counted(record: &Record) -> bool {
    record.environment.backend == "emulator"
}

/// Speeds side by side, one table for each element type and mask; none for counts.
pub(super) fn speeds(record: &Record) -> Vec<Table> {
    let mut tables = Vec::new();
    for (title, cells) in by_type_and_mask(record) {
        let names = names(&cells, |result| result.tflops.is_some());
        if names.is_empty() {
            continue;
        }
        let newest = names.iter().rfind(|name| !is_peer(&cells, name)).copied();
        let mut header = problem_header();
        header.extend(names.iter().map(|name| format!("{name} TFLOP/s")));
        let compared = newest.filter(|name| cells.iter().any(|cell| ratio(cell, name).is_some()));
        header.extend(compared.map(|name| format!("{name} over the best peer")));
        let rows = cells.iter().map(|cell| {
            let mut row = problem_fields(&cell.problem);
            row.extend(names.iter().map(|name| {
                let tflops = cell.result(name).and_then(|result| result.tflops);
                Field::optional(tflops, |v| v, format::significant)
            }));
            row.extend(compared.map(|name| Field::optional(ratio(cell, name), |v| v, |ratio| format!("{ratio:.2}"))));
            row
        });
        tables.push(Table { title, header, rows: rows.collect() });
    }
    tables
}

/// Everything of everybody, one table for each element type and mask.
pub(super) fn results(record: &Record) -> Vec<Table> {
    let mut tables = Vec::new();
    for (title, cells) in by_type_and_mask(record) {
        let counters: BTreeSet<&str> =
            cells.iter().flat_map(|cell| &cell.results).flat_map(|r| r.counters.keys().map(String::as_str)).collect();
        let timed = !counted(record);
        let bounded = cells.iter().any(|cell| cell.roofline.is_some());
        let mut header = problem_header();
        header.push("implementation".to_owned());
        let mut columns: Vec<String> = Vec::new();
        if timed {
            columns.extend(["median", "IQR", "TFLOP/s", "over naive", "over the best peer"].map(str::to_owned));
        }
        if bounded {
            columns.extend(["bound", "of the bound"].map(str::to_owned));
        }
        columns.extend(counters.iter().map(|counter| counter.replace('_', " ")));
        columns.extend(["extra memory", "saved", "largest error", "accepted error", "verdict"].map(str::to_owned));
        header.extend(columns);
        let mut rows = Vec::new();
        for cell in &cells {
            for result in &cell.results {
                let mut row = problem_fields(&cell.problem);
                row.push(Field::text(result.title()));
                if timed {
                    row.extend(time_fields(result));
                }
                if bounded {
                    row.push(Field::text(cell.roofline.as_ref().map_or("-", |roofline| roofline.bound.as_str())));
                    row.push(Field::optional(result.bound_fraction, |v| v, |v| format!("{:.0} %", 100.0 * v)));
                }
                row.extend(counters.iter().map(|counter| {
                    let count = result.counters.get(*counter).copied();
                    let show = if counter.contains("bytes") { format::bytes } else { format::count };
                    Field::optional(count, |v| v as f64, show)
                }));
                row.extend(check_fields(result));
                rows.push(row);
            }
        }
        tables.push(Table { title, header, rows });
    }
    tables
}

fn time_fields(result: &Measurement) -> [Field; 5] {
    let times = |ratio: Option<f64>| Field::optional(ratio, |v| v, |v| format!("{}x", format::significant(v)));
    [
        Field::optional(result.time_ms.map(|time| time.median), |v| v, format::milliseconds),
        Field::optional(result.time_ms.map(|time| time.range()), |v| v, format::milliseconds),
        Field::optional(result.tflops, |v| v, format::significant),
        times(result.speedup_over_naive),
        times(result.ratio_to_best_peer),
    ]
}

fn check_fields(result: &Measurement) -> [Field; 5] {
    let check = result.check.as_ref();
    let verdict = match (check, &result.skipped) {
        (_, Some(_)) => Field::text("not run"),
        (None, None) => Field::text("not checked"),
        (Some(check), None) if check.within => Field::text("accepted"),
        (Some(_), None) => Field { bad: true, ..Field::text("WRONG") },
    };
    [
        Field::optional(result.extra_bytes, |v| v as f64, format::bytes),
        Field::optional(result.saved_percent, |v| v, |v| format!("{v:.1} %")),
        Field::optional(check.map(|check| check.max_error), |v| v, format::error),
        Field::optional(check.map(|check| check.bound), |v| v, format::error),
        verdict,
    ]
}

/// What was not run and why, each reason once.
pub(super) fn left_out(record: &Record) -> Vec<String> {
    let mut lines = Vec::new();
    for cell in &record.cells {
        for result in &cell.results {
            if let Some(reason) = &result.skipped {
                lines.push(format!("{} on {}: {reason}", result.name, cell.problem));
            }
        }
    }
    lines
}

/// Device, software, method, ceilings and noise.
pub(super) fn lists(record: &Record) -> Vec<List> {
    let environment = &record.environment;
    let mut entries = Vec::new();
    let mut add = |name: &str, value: Option<String>| entries.extend(value.map(|value| (name.to_owned(), value)));
    add("device", Some(environment.device.clone()));
    add("compute capability", environment.compute_capability.clone());
    add("multiprocessors", (environment.multiprocessors > 0).then(|| environment.multiprocessors.to_string()));
    add("device memory", (environment.memory_bytes > 0).then(|| format::bytes(environment.memory_bytes)));
    add("level-two cache", environment.l2_bytes.map(format::bytes));
    add("driver for CUDA", environment.driver.clone());
    add("driver release", environment.driver_release.clone());
    if let Some(nvml) = &environment.nvml {
        add("NVML", Some(nvml.version.clone()));
        add("highest clock of the multiprocessors", nvml.sm_clock_max_mhz.map(|mhz| format!("{mhz} MHz")));
        add("highest clock of the memory", nvml.memory_clock_max_mhz.map(|mhz| format!("{mhz} MHz")));
        add("power limit", nvml.power_limit_watts.map(|watts| format!("{watts} W")));
        add("error correction of the memory", nvml.ecc.map(on_or_off));
        add("persistence mode", nvml.persistence.map(on_or_off));
    }
    add("no NVML", environment.nvml_missing.clone());
    add("host processor", environment.cpu.clone());
    add("ferroflash", Some(environment.ferroflash.clone()));
    add("commit", environment.commit.clone());
    add("compiler", Some(environment.rustc.clone()));
    add("ptxas", environment.ptxas.clone());
    for (name, version) in &environment.peers {
        add(name, Some(version.clone()));
    }
    add("no peers", environment.peers_missing.clone());
    add("date", Some(environment.date.clone()));
    let mut lists = vec![List { title: "Environment", entries }, method(record)];
    lists.extend(telemetry(record));
    lists.extend(ceilings(record));
    lists
}

fn on_or_off(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

fn method(record: &Record) -> List {
    let (method, sweep) = (&record.method, &record.sweep);
    let mut entries = vec![("sweep".to_owned(), sweep.name.clone())];
    entries.extend(sweep.scaled.clone().map(|scaled| ("made smaller".to_owned(), scaled)));
    if method.pass.has_backward() {
        entries.push(("pass".to_owned(), method.pass.name().to_owned()));
    }
    entries.push(("timer".to_owned(), method.timer.clone()));
    if !counted(record) {
        entries.push(("samples of each implementation".to_owned(), method.repeats.to_string()));
        entries.push(("length of a sample".to_owned(), format!("{} ms", method.sample_ms)));
        entries.push(("samples follow each other".to_owned(), method.spacing()));
        entries.push(("warm-up".to_owned(), format!("{} s", method.warmup_seconds)));
        entries.push(("level-two cache before a launch".to_owned(), method.l2.clone()));
    }
    entries.push(("order".to_owned(), format!("{}, seed {}", method.order, method.order_seed)));
    entries.push(("inputs".to_owned(), format!("{}, seed {}", method.inputs, method.seed)));
    entries.push(("FLOP of one pass".to_owned(), method.flop_rule.clone()));
    entries.push(("accepted".to_owned(), method.tolerance.clone()));
    if let Some(noise) = &record.noise {
        let value = format!("{:.2} % between two runs of the same kernel", noise.floor_percent);
        entries.push((format!("largest of {} differences", noise.pairs.len()), value));
    }
    List { title: "Method", entries }
}

/// What NVML saw over all cells.
fn telemetry(record: &Record) -> Option<List> {
    let cells: Vec<_> = record.cells.iter().filter_map(|cell| cell.telemetry.as_ref()).collect();
    if cells.is_empty() {
        return None;
    }
    let mut entries = vec![("samples".to_owned(), cells.iter().map(|t| t.samples).sum::<usize>().to_string())];
    type Get = fn(&crate::bench::record::Telemetry) -> Option<crate::bench::record::Range>;
    let quantities: [(&str, &str, Get); 4] = [
        ("clock of the multiprocessors", "MHz", |t| t.sm_clock_mhz),
        ("clock of the memory", "MHz", |t| t.memory_clock_mhz),
        ("power", "W", |t| t.power_watts),
        ("temperature", "degrees Celsius", |t| t.temperature_celsius),
    ];
    for (name, unit, get) in quantities {
        let ranges: Vec<_> = cells.iter().filter_map(|telemetry| get(telemetry)).collect();
        let low = ranges.iter().map(|range| range.min).fold(f64::INFINITY, f64::min);
        let high = ranges.iter().map(|range| range.max).fold(f64::NEG_INFINITY, f64::max);
        if low <= high {
            entries.push((name.to_owned(), format!("{low:.0} to {high:.0} {unit}")));
        }
    }
    let reasons: BTreeSet<&str> = cells.iter().flat_map(|t| t.throttle_reasons.iter().map(String::as_str)).collect();
    let throttled = cells.iter().filter(|telemetry| !telemetry.throttle_reasons.is_empty()).count();
    let reasons = reasons.into_iter().collect::<Vec<_>>().join(", ");
    let throttling = if throttled == 0 {
        "never".to_owned()
    } else {
        format!("in {throttled} of {} problems: {reasons}", cells.len())
    };
    entries.push(("lowered clocks".to_owned(), throttling));
    Some(List { title: "While it ran", entries })
}

fn ceilings(record: &Record) -> Option<List> {
    let ceilings = record.ceilings.as_ref()?;
    let how = |ceiling: &crate::bench::record::Ceiling| {
        format!("{}: {}", if ceiling.measured { "measured" } else { "from properties of the device" }, ceiling.how)
    };
    let mut entries = Vec::new();
    for (dtype, ceiling) in &ceilings.matmul_flops {
        let name = format!("matrix product, {dtype}");
        entries.push((name, format!("{} TFLOP/s, {}", format::significant(ceiling.value / 1e12), how(ceiling))));
    }
    let copy = &ceilings.copy_bytes_per_second;
    entries.push(("copy".to_owned(), format!("{} TB/s, {}", format::significant(copy.value / 1e12), how(copy))));
    let exp2 = &ceilings.exp2_per_second;
    let rate = format::significant(exp2.value / 1e12);
    entries.push(("exp2".to_owned(), format!("{rate} T/s, {}", how(exp2))));
    Some(List { title: "Ceilings", entries })
}

fn by_type_and_mask(record: &Record) -> Vec<(String, Vec<&Cell>)> {
    let mut groups: Vec<(String, Vec<&Cell>)> = Vec::new();
    for cell in &record.cells {
        let CellProblem { dtype, mask, .. } = &cell.problem;
        let title = format!("{dtype}, {}", mask.title());
        match groups.iter_mut().find(|group| group.0 == title) {
            Some(group) => group.1.push(cell),
            None => groups.push((title, vec![cell])),
        }
    }
    groups
}

/// Implementations with a result that is wanted, in the order of the cells.
fn names<'a>(cells: &[&'a Cell], wanted: impl Fn(&Measurement) -> bool) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for result in cells.iter().flat_map(|cell| &cell.results).filter(|result| wanted(result)) {
        if !names.contains(&result.name.as_str()) {
            names.push(&result.name);
        }
    }
    names
}

fn is_peer(cells: &[&Cell], name: &str) -> bool {
    cells.iter().any(|cell| cell.result(name).is_some_and(|result| result.peer))
}

fn ratio(cell: &Cell, name: &str) -> Option<f64> {
    cell.result(name)?.ratio_to_best_peer
}

fn problem_header() -> Vec<String> {
    ["head dim", "seq", "batch x heads"].map(str::to_owned).to_vec()
}

fn problem_fields(problem: &CellProblem) -> Vec<Field> {
    let CellProblem { head_dim, seq, kv_seq, batch, q_heads, kv_heads, sequences, program, .. } = problem;
    let mut seqs = if kv_seq == seq { seq.to_string() } else { format!("{seq}/{kv_seq}") };
    seqs.extend(sequences.iter().chain(program).map(|more| format!(" {more}")));
    let heads = if kv_heads == q_heads { q_heads.to_string() } else { format!("{q_heads}/{kv_heads}") };
    vec![
        Field::number(head_dim.to_string(), *head_dim as f64),
        Field::number(seqs, *seq as f64),
        Field::number(format!("{batch} x {heads}"), (batch * q_heads) as f64),
    ]
}
