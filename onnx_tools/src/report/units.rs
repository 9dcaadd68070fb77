//! Numbers for people.

use std::time::Duration;

/// Bytes with three digits and a binary unit: "512 B", "1.50 KiB", "23.4 MiB".
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        // 999.5 would round to four digits.
        if value < 999.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    match unit {
        "B" => format!("{n} B"),
        _ if value < 9.995 => format!("{value:.2} {unit}"),
        _ if value < 99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// A part of a whole in percent; "0 %" of nothing.
pub fn percent(part: f64, whole: f64) -> String {
    let percent = if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
    if percent > 0.0 && percent < 0.1 { "< 0.1 %".to_string() } else { format!("{percent:.1} %") }
}

/// A relative error in two digits: "1.2e-4", "0".
pub fn error(value: f64) -> String {
    if value == 0.0 { "0".to_string() } else { format!("{value:.1e}") }
}

/// A cosine near 1 with the digits that tell it from 1: "0.99998", "1".
pub fn cosine(value: f64) -> String {
    if value == 1.0 {
        return "1".to_string();
    }
    let digits = (2.0 - (1.0 - value).log10()).clamp(2.0, 12.0) as usize;
    format!("{value:.digits$}")
}

/// Elapsed time: "85 ms", "2.41 s", "3 min 20 s".
pub fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 0.009_995 => format!("{:.2} ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.2} s"),
        s => format!("{} min {} s", s as u64 / 60, s as u64 % 60),
    }
}

/// "1 weight", "2 weights".
pub fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A shape: "[768, 3072]".
pub fn shape(dims: &[u64]) -> String {
    format!("{dims:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1023), "1.00 KiB");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(24_536_000), "23.4 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn small_things_do_not_vanish() {
        assert_eq!(percent(1.0, 1e6), "< 0.1 %");
        assert_eq!(percent(0.0, 0.0), "0.0 %");
        assert_eq!(error(0.000_122), "1.2e-4");
        assert_eq!([cosine(1.0), cosine(0.5), cosine(0.999_987_6)].join(" "), "1 0.50 0.999988");
        assert_eq!(elapsed(Duration::from_millis(85)), "85 ms");
        assert_eq!(elapsed(Duration::from_secs(200)), "3 min 20 s");
    }
}
