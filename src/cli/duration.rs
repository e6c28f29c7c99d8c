//! Parses and prints durations as the docker client does, which uses Go's `time.ParseDuration` and
//! `Duration.String`. Pure.
//!
//! jiff holds the values, but it does not parse and print them. Its format allows days and units
//! written as words, which Go refuses. It also requires units in descending order and a fraction
//! only in the last unit, while Go accepts `1.5h30m` and `1s1h`.

use jiff::SignedDuration;

/// The units of Go's durations. The prefix micro is the micro sign (U+00B5) or the Greek letter mu
/// (U+03BC).
const UNITS: [(&str, SignedDuration); 8] = [
    ("ns", SignedDuration::from_nanos(1)),
    ("us", SignedDuration::from_micros(1)),
    ("\u{b5}s", SignedDuration::from_micros(1)),
    ("\u{3bc}s", SignedDuration::from_micros(1)),
    ("ms", SignedDuration::from_millis(1)),
    ("s", SignedDuration::from_secs(1)),
    ("m", SignedDuration::from_mins(1)),
    ("h", SignedDuration::from_hours(1)),
];
/// How many digits of a fraction are read. All further digits together are less than a nanosecond,
/// even if the unit is an hour.
const FRACTION_DIGITS: usize = 18;

/// Parses a duration such as `1h30m`, `-1.5h` or `300ms`. Fractions of a nanosecond are dropped.
/// The number of nanoseconds of the result fits into an `i64`.
///
/// # Errors
///
/// If the text is not a duration, or if the duration is too long. The message is the same as in Go.
pub(super) fn parse(text: &str) -> Result<SignedDuration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), split_digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let Some((_, length)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        nanos = multiply(whole, fraction, *length).and_then(|part| nanos.checked_add(part)).ok_or_else(invalid)?;
        rest = after;
    }
    let nanos = if is_negative { -nanos } else { nanos };
    i64::try_from(nanos).map(SignedDuration::from_nanos).map_err(|_| invalid())
}

/// The digits at the start of the text, and the rest.
fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Converts `whole.fraction` units to nanoseconds. `None` if the number is too large.
fn multiply(whole: &str, fraction: &str, unit: SignedDuration) -> Option<i128> {
    let number = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<i128>().ok() };
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    number(whole)?.checked_mul(unit.as_nanos())?.checked_add(number(fraction)? * unit.as_nanos() / scale)
}

/// The duration as Go prints it, such as `1h30m0s`, `1.5s` or `300ms`.
pub(super) fn format(duration: SignedDuration) -> String {
    let sign = if duration.is_negative() { "-" } else { "" };
    let length = duration.unsigned_abs();
    let (seconds, nanos) = (length.as_secs(), length.subsec_nanos());
    let text = match (seconds, nanos) {
        (0, 0) => "0s".to_owned(),
        (0, ..1_000) => format!("{nanos}ns"),
        (0, ..1_000_000) => decimal(0, nanos, 3) + "\u{b5}s",
        (0, _) => decimal(0, nanos, 6) + "ms",
        _ => {
            let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
            let seconds = decimal(seconds % 60, nanos, 9) + "s";
            match (hours, minutes) {
                (0, 0) => seconds,
                (0, _) => format!("{minutes}m{seconds}"),
                _ => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

/// Prints the sum of `whole` and `nanos / 10^digits` as a decimal number without zeros at the end.
fn decimal(whole: u64, nanos: u32, digits: u32) -> String {
    let scale = 10_u32.pow(digits);
    let whole = whole + u64::from(nanos / scale);
    let width = digits as usize;
    let text = format!("{whole}.{:0width$}", nanos % scale);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The duration in nanoseconds, the unit of the API.
pub(super) fn nanos(duration: SignedDuration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(if duration.is_negative() { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check_parse(text: &str, expected: Result<i64, &str>) {
        assert_eq!(parse(text).map(nanos), expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn parses_what_go_parses() {
        check_parse("0", Ok(0));
        check_parse("-0", Ok(0));
        check_parse("10s", Ok(10_000_000_000));
        check_parse("1h30m", Ok(5_400_000_000_000));
        check_parse("1.5h", Ok(5_400_000_000_000));
        check_parse("-1.5h", Ok(-5_400_000_000_000));
        check_parse("+300ms", Ok(300_000_000));
        check_parse("1\u{b5}s", Ok(1_000));
        check_parse("1\u{3bc}s", Ok(1_000));
        check_parse("1us", Ok(1_000));
        check_parse(".5s", Ok(500_000_000));
        check_parse("1.s", Ok(1_000_000_000));
        check_parse("1s1h1s", Ok(3_602_000_000_000));
        check_parse("1.5h1.5m", Ok(5_490_000_000_000));
        check_parse("1.9ns", Ok(1));
        check_parse("0.0000000000001h", Ok(0));
        check_parse("00000000000000000000000000000000000000000000000001s", Ok(1_000_000_000));
        check_parse("9223372036854775807ns", Ok(i64::MAX));
        check_parse("-9223372036854775808ns", Ok(i64::MIN));
        check_parse("-2562047h47m16.854775808s", Ok(i64::MIN));
    }

    #[test]
    fn refuses_other_texts_with_the_messages_of_go() {
        check_parse("", Err("time: invalid duration \"\""));
        check_parse("-", Err("time: invalid duration \"-\""));
        check_parse("s", Err("time: invalid duration \"s\""));
        check_parse(".s", Err("time: invalid duration \".s\""));
        check_parse("1s-1s", Err("time: unknown unit \"s-\" in duration \"1s-1s\""));
        check_parse("--1s", Err("time: invalid duration \"--1s\""));
        check_parse("10", Err("time: missing unit in duration \"10\""));
        check_parse("1s10", Err("time: missing unit in duration \"1s10\""));
        check_parse("1.2.3s", Err("time: missing unit in duration \"1.2.3s\""));
        check_parse("1x", Err("time: unknown unit \"x\" in duration \"1x\""));
        check_parse("1d", Err("time: unknown unit \"d\" in duration \"1d\""));
        check_parse("1S", Err("time: unknown unit \"S\" in duration \"1S\""));
        check_parse("1h 30m", Err("time: unknown unit \"h \" in duration \"1h 30m\""));
        check_parse("9223372036854775808ns", Err("time: invalid duration \"9223372036854775808ns\""));
        check_parse("3000000h", Err("time: invalid duration \"3000000h\""));
        let long = "9".repeat(60) + "s";
        check_parse(&long, Err(&format!("time: invalid duration {long:?}")));
    }

    #[test]
    fn formats_as_go_formats() {
        for (nanos, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (500_000_000, "500ms"),
            (3_300_000_000, "3.3s"),
            (60_000_000_000, "1m0s"),
            (245_000_000_000, "4m5s"),
            (5_400_000_000_000, "1h30m0s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (480_000_000_001, "8m0.000000001s"),
            (-1_500_000_000, "-1.5s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(format(SignedDuration::from_nanos(nanos)), expected);
        }
    }

    /// The grammar of `time.ParseDuration`, without its limits.
    fn is_in_the_grammar_of_go(text: &str) -> bool {
        fn is_number(text: &str) -> bool {
            text.contains(|c: char| c.is_ascii_digit())
                && text.chars().all(|c| c.is_ascii_digit() || c == '.')
                && text.matches('.').count() <= 1
        }
        fn are_components(text: &str) -> bool {
            let starts_with_component = |number: &str, after: &str| {
                is_number(number)
                    && UNITS
                        .iter()
                        .filter_map(|(unit, _)| after.strip_prefix(unit))
                        .any(|rest| rest.is_empty() || are_components(rest))
            };
            text.char_indices().any(|(at, _)| starts_with_component(&text[..at], &text[at..]))
        }
        let text = text.strip_prefix(['-', '+']).unwrap_or(text);
        text == "0" || are_components(text)
    }

    proptest! {
        #[test]
        fn accepts_the_grammar_of_go_and_nothing_else(
            text in "[-+]?([0-9.]{0,4}(ns|us|\u{b5}s|\u{3bc}s|ms|s|m|h|d|x| |-)?){0,4}"
        ) {
            prop_assert_eq!(parse(&text).is_ok(), is_in_the_grammar_of_go(&text));
        }

        #[test]
        fn accepts_every_sequence_of_components(
            sign in "[-+]?",
            components in prop::collection::vec((0_u32..1_000, "(\\.[0-9]{0,20})?", 0..UNITS.len()), 1..6)
        ) {
            let written = components.iter().map(|(whole, fraction, unit)| format!("{whole}{fraction}{}", UNITS[*unit].0));
            let text = written.collect::<String>();
            let length = components.iter().map(|(whole, fraction, unit)| {
                let number: f64 = format!("{whole}{fraction}").trim_end_matches('.').parse().expect("a number");
                number * UNITS[*unit].1.as_secs_f64()
            });
            let expected = length.sum::<f64>() * if sign == "-" { -1.0 } else { 1.0 };
            let parsed = parse(&format!("{sign}{text}")).expect("a duration").as_secs_f64();
            prop_assert!((parsed - expected).abs() < 1e-6, "{} is {}, not {}", text, parsed, expected);
        }

        #[test]
        fn parses_what_it_formats(nanos: i64) {
            let duration = SignedDuration::from_nanos(nanos);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
