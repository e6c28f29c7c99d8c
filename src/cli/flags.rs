//! Values of flags: durations, sizes, `KEY=value` pairs. Pure.

use std::collections::BTreeMap;

/// A duration as Go writes it: `1h30m`, `10s`, `500ms`. In nanoseconds, as the API counts.
pub(super) fn duration_ns(text: &str) -> Result<i64, String> {
    let wrong = || format!("invalid duration {text:?}: give one like 10s, 500ms or 1h30m");
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut total: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3_600e9,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * scale;
        rest = tail;
    }
    if text.is_empty() || total > i64::MAX as f64 { Err(wrong()) } else { Ok(total as i64) }
}

/// A size in bytes: `512m`, `1g`, `1GiB`, `1048576`.
pub(super) fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("invalid size {text:?}: give bytes or a number with k, m, g or t");
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift: u32 = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Ok((number * (1_u64 << shift) as f64) as i64)
}

/// CPUs: `0.5`. In units of 1e-9, as the API counts.
pub(super) fn nano_cpus(text: &str) -> Result<i64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.0..=1e6).contains(&cpus) => Ok((cpus * 1e9).round() as i64),
        _ => Err(format!("invalid CPUs {text:?}: give a number like 0.5")),
    }
}

/// A failure ratio between 0 and 1.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|r| (0.0..=1.0).contains(r))
        .ok_or_else(|| format!("invalid ratio {text:?}: give a number from 0 to 1"))
}

/// `KEY=value`, or `KEY` for an empty value.
pub(super) fn pairs(texts: &[String]) -> BTreeMap<String, String> {
    texts
        .iter()
        .map(|text| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

/// `KEY=value` of the environment; a bare `KEY` takes this process's value, and is left out where there is none.
pub(super) fn environment(texts: &[String]) -> Vec<String> {
    texts
        .iter()
        .filter_map(|text| {
            if text.contains('=') {
                Some(text.clone())
            } else {
                std::env::var(text).ok().map(|v| format!("{text}={v}"))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, ns) in [
            ("0", 0),
            ("10s", 10_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            ("250ms", 250_000_000),
        ] {
            assert_eq!(duration_ns(text), Ok(ns), "{text}");
        }
        for text in ["", "10", "s", "1x", "-1s"] {
            assert!(duration_ns(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, n) in [("1024", 1024), ("512m", 512 << 20), ("1g", 1 << 30), ("1.5GiB", 3 << 29), ("2TB", 2 << 40)] {
            assert_eq!(bytes(text), Ok(n), "{text}");
        }
        assert!(bytes("many").is_err());
    }
}
