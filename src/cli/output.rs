//! Writing to standard output and error, and the docker client's form of tables, ages and sizes. What is written is decided
//! elsewhere; all but [`out`], [`out_line`], [`write()`] and [`note`] is pure: text in, text out.

use std::{
    fmt::Display,
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Space between two columns, and the narrowest column.
const PADDING: usize = 3;
const NARROWEST: usize = 7;

/// The other end of a pipe that is written to is closed.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads what is printed")]
pub(super) struct Unread;

/// Prints what users ask for; [`Unread`] where nobody reads it.
pub(super) fn out(text: impl Display) -> Result<()> {
    write(&mut io::stdout().lock(), text.to_string().as_bytes())
}

/// The same, with the end of the line.
pub(super) fn out_line(text: impl Display) -> Result<()> {
    out(format_args!("{text}\n"))
}

/// Prints what users should know besides, on standard error. There is nowhere to say that this failed.
pub(super) fn note(text: impl Display) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Writes everything, through to the reader.
pub(super) fn write(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Unread.into()),
        outcome => Ok(outcome?),
    }
}

/// How much is shown of ids and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Short,
    Whole,
}

impl Cut {
    /// Lengths in characters, as in the docker client.
    const ID: usize = 12;
    const ERROR: usize = 30;

    /// What `--no-trunc` asks for.
    pub(super) fn unless(no_trunc: bool) -> Self {
        if no_trunc { Self::Whole } else { Self::Short }
    }

    pub(super) fn id(self, id: &str) -> String {
        match self {
            Self::Short => id.chars().take(Self::ID).collect(),
            Self::Whole => id.to_owned(),
        }
    }

    /// In quotes; empty where there is no error.
    pub(super) fn error(self, error: &str) -> String {
        match self {
            _ if error.is_empty() => String::new(),
            Self::Short if error.chars().count() > Self::ERROR => {
                format!("\"{}…\"", error.chars().take(Self::ERROR - 1).collect::<String>())
            }
            _ => format!("\"{error}\""),
        }
    }
}

/// `ready` → `Ready`.
pub(super) fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// What `ls` and `ps` print.
#[derive(Debug)]
pub(super) struct Table {
    /// Heading, and the name of the field in `--format`.
    pub columns: Vec<(&'static str, &'static str)>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// As `--format` says: a table where it is absent, `json`, or a template of `{{.Field}}`s for each row.
    pub(super) fn render(&self, format: Option<&str>) -> Result<String> {
        match format {
            None | Some("table") => Ok(self.plain()),
            Some("json") => Ok(self.rows.iter().map(|row| self.json(row).to_string() + "\n").collect()),
            Some(template) => {
                let lines: Result<Vec<String>> = self.rows.iter().map(|row| self.fill(template, row)).collect();
                Ok(lines?.into_iter().map(|line| line + "\n").collect())
            }
        }
    }

    fn plain(&self) -> String {
        let headings: Vec<String> = self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&headings]).map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(NARROWEST) + PADDING
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let last = row.len() - 1;
            let cells = row.iter().zip(&widths).enumerate();
            let line: String = cells
                .map(|(i, (cell, &width))| if i == last { cell.clone() } else { format!("{cell:<width$}") })
                .collect();
            line + "\n"
        };
        [&headings].into_iter().chain(&self.rows).map(line).collect()
    }

    fn json(&self, row: &[String]) -> Value {
        let fields = self.columns.iter().zip(row);
        Value::Object(
            fields.map(|((_, name), cell)| ((*name).to_owned(), Value::from(cell.as_str()))).collect::<Map<_, _>>(),
        )
    }

    fn fill(&self, template: &str, row: &[String]) -> Result<String> {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((field, after)) = after.split_once("}}") else {
                bail!("template {template:?} has a {{{{ without its }}}}")
            };
            let name = field.trim().trim_start_matches('.');
            let Some(at) = self.columns.iter().position(|(_, known)| *known == name) else {
                let known: Vec<&str> = self.columns.iter().map(|(_, name)| *name).collect();
                bail!("template {template:?} names {name:?}: the fields are {}", known.join(", "))
            };
            out += &before.replace("\\t", "\t").replace("\\n", "\n");
            out += &row[at];
            rest = after;
        }
        Ok(out + &rest.replace("\\t", "\t").replace("\\n", "\n"))
    }
}

/// `5 minutes ago`, of an RFC 3339 time; empty where it is none.
pub(super) fn ago(time: &str) -> String {
    let Ok(then) = time.parse::<Timestamp>() else { return String::new() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let then = u64::try_from(then.as_second()).unwrap_or(0);
    format!("{} ago", span(now.saturating_sub(then)))
}

/// A time span in words, as the docker client says it.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1_800) / 3_600);
    match (seconds, minutes, hours) {
        (0, _, _) => "Less than a second".to_owned(),
        (1, _, _) => "1 second".to_owned(),
        (2..60, _, _) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1_440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1_440..17_520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// `1.5GiB`, of bytes.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = format!("{value:.3}");
    format!("{}{}", digits.trim_end_matches('0').trim_end_matches('.'), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            columns: vec![("ID", "ID"), ("NAME", "Name")],
            rows: vec![vec!["1".into(), "whoami".into()], vec!["2".into(), "x".into()]],
        }
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_failures() {
        let (reader, mut writer) = io::pipe().unwrap();
        write(&mut writer, b"read").unwrap();
        drop(reader);
        assert!(write(&mut writer, b"unread").unwrap_err().is::<Unread>());
        let mut full: &mut [u8] = &mut [0; 2];
        assert!(!write(&mut full, b"too long").unwrap_err().is::<Unread>());
    }

    #[test]
    fn long_errors_and_ids_are_cut_short() {
        assert_eq!(Cut::Short.error(""), "");
        assert_eq!(Cut::Short.error("short"), "\"short\"");
        assert_eq!(Cut::Short.error(&"x".repeat(40)).chars().count(), Cut::ERROR + 2);
        assert_eq!(Cut::Whole.error(&"x".repeat(40)).chars().count(), 42);
        assert_eq!(Cut::Short.id(&"x".repeat(25)).len(), 12);
        assert_eq!(Cut::Whole.id(&"x".repeat(25)).len(), 25);
    }

    #[test]
    fn a_table_has_padded_columns() {
        assert_eq!(table().render(None).unwrap(), "ID        NAME\n1         whoami\n2         x\n");
    }

    #[test]
    fn a_format_chooses_fields() {
        assert_eq!(table().render(Some("{{.Name}}:{{ .ID }}")).unwrap(), "whoami:1\nx:2\n");
        assert_eq!(table().render(Some("json")).unwrap().lines().next(), Some(r#"{"ID":"1","Name":"whoami"}"#));
        assert!(table().render(Some("{{.Nope}}")).is_err_and(|e| e.to_string().contains("ID, Name")));
    }

    #[test]
    fn spans_are_said_as_docker_says_them() {
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3_600, "About an hour"),
            (2 * 3_600, "2 hours"),
            (3 * 86_400, "3 days"),
            (20 * 86_400, "2 weeks"),
            (90 * 86_400, "3 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(span(seconds), words, "{seconds}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size(512), "512B");
        assert_eq!(size(3 << 29), "1.5GiB");
    }
}
