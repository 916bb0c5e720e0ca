//! Words and numbers as the pictures show them.

use crate::workload::Ours;

/// What the legend and the axes call an implementation.
pub(super) fn shown_name(name: &str, peer: bool) -> String {
    // What the library chooses has its name already.
    if peer || name == Ours::Chosen.name() { name.to_owned() } else { format!("ferroflash {name}") }
}

/// A sequence length as the papers write it: 512, 1k, 16k.
pub(super) fn seq_label(seq: f64) -> String {
    let seq = seq as u64;
    if seq >= 1024 && seq.is_multiple_of(1024) { format!("{}k", seq / 1024) } else { seq.to_string() }
}

/// A power of two bytes without the digits after the point.
pub(super) fn bytes_label(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value} {}", UNITS[unit])
}

/// A power of ten with the letter of its thousands.
pub(super) fn count_label(count: f64) -> String {
    const UNITS: [&str; 5] = ["", " k", " M", " G", " T"];
    let (mut value, mut unit) = (count, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value}{}", UNITS[unit])
}

/// A number of one digit that is not 0, as it is or with an exponent.
pub(super) fn decimal_label(value: f64) -> String {
    // Without what rounding left behind that digit.
    let exponential = format!("{value:.0e}");
    if !(1e-2..1e5).contains(&value) {
        return exponential;
    }
    exponential.parse::<f64>().map_or(exponential, |value| value.to_string())
}

/// A note in lines that fit below a picture with this many columns of panels.
pub(super) fn wrapped(note: &str, columns: usize) -> Vec<String> {
    // Letters are about half as wide as the text is high.
    let letters = if columns == 1 { 85 } else { 130 };
    let mut lines = vec![String::new()];
    for word in note.split(' ') {
        let last = lines.last_mut().expect("there is a first line");
        if last.is_empty() {
            last.push_str(word);
        } else if last.len() + 1 + word.len() <= letters {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
