//! Flags that nouns share, docker's way with booleans, and the values of flags: durations, sizes, `KEY=value` pairs. Pure.

use std::{any::TypeId, collections::BTreeMap};

use clap::{Arg, ArgAction, Args, Command, ValueEnum};

/// What every `ls` takes.
#[derive(Debug, Args)]
pub(super) struct Listing {
    /// Only the ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Only what matches KEY=VALUE, such as name=web; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// How to print: table, json, or a template such as '{{.ID}} {{.Name}}' for each line
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// What a node is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Worker,
    Manager,
}

impl Role {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Availability {
    Active,
    Pause,
    Drain,
}

impl Availability {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// Lets every boolean flag be given as the docker client takes it: `--flag`, `--flag=true`, `--flag=false`, any number of
/// times, the last one counting; never with its value in the next word.
pub(super) fn with_docker_booleans(command: Command) -> Command {
    command.mut_args(docker_boolean).mut_subcommands(with_docker_booleans)
}

fn docker_boolean(arg: Arg) -> Arg {
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    if !switch && arg.get_value_parser().type_id() != TypeId::of::<bool>() {
        return arg;
    }
    let id = arg.get_id().clone();
    let arg = arg
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .overrides_with(id)
        .value_name("BOOL")
        .value_parser(boolean);
    if switch { arg.default_value("false").hide_default_value(true) } else { arg }
}

/// As Go reads a boolean.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}

/// A command line in one string, split as a shell would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words(pub Vec<String>);

/// Splits at spaces outside quotes; a backslash takes the next character as it is, though not between single quotes.
pub(super) fn words(text: &str) -> Result<Words, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None::<char>);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = chars.next().ok_or("ends with a backslash: give the character that it is to keep")?;
                let kept = quote.is_some() && !matches!(next, '"' | '\\' | '$' | '`');
                let word = word.get_or_insert_default();
                word.extend(kept.then_some(c));
                word.push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match quote {
        Some(open) => Err(format!("has an opening {open} and no closing one")),
        None => Ok(Words(words)),
    }
}

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

/// The entries of a file of variables, one on each line; blank lines and those that begin with `#` say nothing.
pub(super) fn environment_file(content: &str) -> Vec<String> {
    let lines = content.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_would() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(words(text).unwrap().0, expected, "{text}");
        };
        check("", &[]);
        check("sh  -c true", &["sh", "-c", "true"]);
        check(r#"sh -c "echo 'a b'" ''"#, &["sh", "-c", "echo 'a b'", ""]);
        check(r#"a\ b "c\"d\e" 'f\g'"#, &["a b", r#"c"d\e"#, r"f\g"]);
        assert!(words("'open").is_err());
        assert!(words("end\\").is_err());
    }

    #[test]
    fn a_file_of_variables_is_read_line_by_line() {
        assert_eq!(environment_file("# note\n\nA=1\n  B=x y\nC\n"), ["A=1", "B=x y", "C"]);
    }

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
