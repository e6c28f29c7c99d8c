//! Parses the values of flags: command lines, durations, sizes, numbers of CPUs, ratios and
//! `KEY=value` pairs. Pure, except that [`environment`] and [`environment_of_file`] read the
//! environment of this process, and that [`point_in_time`] reads its clock and its time zone.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};

use super::duration;

/// The words of a command that the user wrote as one string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShellWords(pub Vec<String>);

/// Splits a command into words as a POSIX shell does: at spaces, tabs and newlines outside of
/// quotes; `#` starts a comment.
///
/// The docker client splits with google/shlex, which differs from a shell in a few rare cases. The
/// test `splits_as_a_shell_where_the_docker_client_does_not` lists them.
///
/// # Errors
///
/// If a quote is not closed, or if the text ends with a backslash.
pub(super) fn shell_words(text: &str) -> Result<ShellWords, String> {
    shlex::split(text)
        .map(ShellWords)
        .ok_or_else(|| "a quote is not closed, or nothing follows a backslash: complete the command".to_owned())
}

/// Reads a duration in Go's form, such as `1h30m`, `10s` or `500ms`.
pub(super) fn duration(text: &str) -> Result<SignedDuration, String> {
    duration::parse(text).map_err(|error| format!("{error}: give one like 10s, 500ms or 1h30m"))
}

/// Reads a point in time as the docker client does, and returns it as Unix seconds with a fraction.
/// It may be a duration before now, such as `42m`, a time of RFC 3339, a local time without an
/// offset, or Unix seconds.
pub(super) fn point_in_time(text: &str) -> Result<String, String> {
    point_in_time_from(text, Timestamp::now())
}

fn point_in_time_from(text: &str, now: Timestamp) -> Result<String, String> {
    let is_seconds = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit() || octet == b'.');
    if is_seconds && text.parse::<f64>().is_ok() {
        return Ok(text.to_owned());
    }
    let local = || text.parse::<DateTime>().ok()?.to_zoned(TimeZone::system()).ok();
    let time = match duration::parse(text) {
        Ok(age) => now.checked_sub(age).ok(),
        Err(_) => text.parse().ok().or_else(|| local().map(|zoned| zoned.timestamp())),
    };
    // Before 1970 nothing was logged.
    let time = time.ok_or_else(|| {
        format!("invalid time {text:?}: give one like 2026-01-02T15:04:05Z, Unix seconds, or a duration like 42m")
    })?;
    let time = time.max(Timestamp::UNIX_EPOCH);
    Ok(format!("{}.{:09}", time.as_second(), time.subsec_nanosecond()))
}

/// Reads a size such as `512m`, `1g`, `1GiB` or `1048576`, in bytes. All units are powers of 1024.
pub(super) fn bytes(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size {text:?}: give bytes or a number with k, m, g or t");
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let shift: u32 = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(invalid()),
    };
    let number: f64 = number.parse().map_err(|_| invalid())?;
    Ok((number * (1_u64 << shift) as f64) as i64)
}

/// Reads a number of CPUs such as `0.5`. Returns it in units of 1e-9 CPUs, as the API expects.
pub(super) fn nano_cpus(text: &str) -> Result<i64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.0..=1e6).contains(&cpus) => Ok((cpus * 1e9).round() as i64),
        _ => Err(format!("invalid CPUs {text:?}: give a number like 0.5")),
    }
}

/// Reads a failure ratio from 0 to 1.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|r| (0.0..=1.0).contains(r))
        .ok_or_else(|| format!("invalid ratio {text:?}: give a number from 0 to 1"))
}

/// Splits each text `KEY=value`. A text without `=` is a key with an empty value.
pub(super) fn pairs(texts: &[String]) -> BTreeMap<String, String> {
    texts
        .iter()
        .map(|text| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

/// Completes environment variables. `KEY` without a value gets the value of this variable in the
/// environment of this process. If this process does not have the variable, `KEY` alone remains,
/// and tasks do not get a variable of this name from their image.
pub(super) fn environment(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| complete(text).unwrap_or_else(|| text.clone())).collect()
}

/// Completes the variables of a file. As in the docker client, `KEY` without a value is left out if
/// this process does not have the variable.
pub(super) fn environment_of_file(content: &str) -> Vec<String> {
    environment_file(content).iter().filter_map(|text| complete(text)).collect()
}

/// The text with a value. `None` if it has none, and this process does not have the variable.
fn complete(text: &str) -> Option<String> {
    match text.contains('=') {
        true => Some(text.to_owned()),
        false => std::env::var(text).ok().map(|value| format!("{text}={value}")),
    }
}

/// Reads a file that has one environment variable on each line. Skips empty lines and lines that
/// begin with `#`.
fn environment_file(content: &str) -> Vec<String> {
    let lines = content.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_words(text: &str, expected: &[&str]) {
        assert_eq!(shell_words(text).expect("a complete command").0, expected, "{text}");
    }

    #[test]
    fn splits_a_command_as_the_docker_client_does() {
        check_words("", &[]);
        check_words("sh  -c true", &["sh", "-c", "true"]);
        check_words("sh\t-c\ntrue", &["sh", "-c", "true"]);
        check_words(r#"sh -c "echo 'a b'" ''"#, &["sh", "-c", "echo 'a b'", ""]);
        check_words(r#"a\ b "c\"d\\e" 'f\g'"#, &["a b", r#"c"d\e"#, r"f\g"]);
        check_words(r#"--flag="a b"'c d'"#, &["--flag=a bc d"]);
        check_words("sh #1 not a word\n-c a#b", &["sh", "-c", "a#b"]);
        check_words("größe\u{a0}x", &["größe\u{a0}x"]);
        for incomplete in ["'open", "\"open", "end\\", "\"end\\"] {
            assert!(shell_words(incomplete).is_err(), "{incomplete}");
        }
    }

    /// The comment above each line shows the result of google/shlex e7afc7fbc510, the version that
    /// docker/cli uses.
    #[test]
    fn splits_as_a_shell_where_the_docker_client_does_not() {
        // ["cdn"]: in double quotes, a backslash before any character is removed.
        check_words(r#""c\d\n""#, &[r"c\d\n"]);
        // ["a\nb"]: a newline after a backslash is kept. A shell removes both.
        check_words("a\\\nb", &["ab"]);
        check_words("\"a\\\nb\"", &["ab"]);
        // ["a", "b"]: a carriage return separates words.
        check_words("a\rb", &["a\rb"]);
    }

    #[test]
    fn reads_one_variable_from_each_line_of_a_file() {
        assert_eq!(environment_file("# note\n\nA=1\n  B=x y\nC\n"), ["A=1", "B=x y", "C"]);
    }

    #[test]
    fn a_variable_that_is_not_set_is_unset_by_a_flag_and_left_out_of_a_file() {
        let path = std::env::var("PATH").expect("tests have a PATH");
        let texts = ["A=", "PATH", "WEFT_TEST_NO_SUCH_VARIABLE"].map(str::to_owned);
        let set = ["A=".to_owned(), format!("PATH={path}")];
        assert_eq!(environment(&texts), [&set[..], &texts[2..]].concat());
        assert_eq!(environment_of_file(&texts.join("\n")), set);
    }

    #[test]
    fn reads_durations_in_the_form_of_go() {
        assert_eq!(duration("1h30m"), Ok(SignedDuration::from_mins(90)));
        let error = duration("10").expect_err("it has no unit");
        assert!(error.contains("missing unit in duration \"10\"") && error.contains("give one like"), "{error}");
    }

    #[test]
    fn reads_points_in_time_as_the_docker_client_does() {
        let now = Timestamp::from_second(1_700_000_000).expect("a time");
        let read = |text: &str| point_in_time_from(text, now);
        for (text, seconds) in [
            ("42m", "1699997480.000000000"),
            ("1.5s", "1699999998.500000000"),
            ("-1h", "1700003600.000000000"),
            ("2023-11-14T22:13:20Z", "1700000000.000000000"),
            ("2023-11-15T00:13:20.25+02:00", "1700000000.250000000"),
            ("1700000000", "1700000000"),
            ("1700000000.5", "1700000000.5"),
            ("0", "0"),
            ("1960-01-01T00:00:00Z", "0.000000000"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(seconds), "{text}");
        }
        // The time zone is that of the machine.
        for text in ["2023-11-14", "2023-11-14T22:13", "2023-11-14T22:13:20"] {
            let seconds: f64 = read(text).expect(text).parse().expect("seconds");
            assert!((seconds - 1_700_000_000.0).abs() < 2.0 * 86_400.0, "{text}: {seconds}");
        }
        for text in ["", "yesterday", "1.2.3", ".", "2023-13-01"] {
            let error = read(text).expect_err(text);
            assert!(error.contains("a duration like 42m"), "{error}");
        }
    }

    #[test]
    fn reads_sizes_in_bytes_or_with_a_unit() {
        for (text, n) in [("1024", 1024), ("512m", 512 << 20), ("1g", 1 << 30), ("1.5GiB", 3 << 29), ("2TB", 2 << 40)] {
            assert_eq!(bytes(text), Ok(n), "{text}");
        }
        assert!(bytes("many").is_err());
    }
}
