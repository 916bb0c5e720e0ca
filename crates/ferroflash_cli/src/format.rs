//! Numbers as people read them.

/// Bytes in the binary unit that leaves one to four digits before the point.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1000, not 1024: four digits before a point are hard to read.
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{} {}", significant(value), UNITS[unit]) }
}

/// A count in powers of a thousand: `12.3 M`.
pub(crate) fn count(count: u64) -> String {
    const UNITS: [&str; 5] = ["", " k", " M", " G", " T"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { count.to_string() } else { format!("{}{}", significant(value), UNITS[unit]) }
}

/// Milliseconds in the unit that leaves one to three digits before the point.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{} us", significant(ms * 1e3)),
        ms if ms < 1e3 => format!("{} ms", significant(ms)),
        ms => format!("{} s", significant(ms / 1e3)),
    }
}

/// Three significant digits, without an exponent; the digits before the point stay.
pub(crate) fn significant(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// An error or a bound: two significant digits with an exponent.
pub(crate) fn error(value: f64) -> String {
    format!("{value:.1e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_follow_the_size() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "0.98 KiB");
        assert_eq!(bytes(3 << 20), "3.00 MiB");
        assert_eq!(bytes(51 << 30), "51.0 GiB");
        assert_eq!(count(999), "999");
        assert_eq!(count(12_345_678), "12.3 M");
        assert_eq!(milliseconds(0.0123), "12.3 us");
        assert_eq!(milliseconds(4.5), "4.50 ms");
        assert_eq!(milliseconds(61_234.0), "61.2 s");
        assert_eq!(significant(672.4), "672");
        assert_eq!(significant(9.999), "10.0");
        assert_eq!(error(3.14e-4), "3.1e-4");
    }
}
