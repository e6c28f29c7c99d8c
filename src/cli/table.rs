//! Formats the tables that `ls` and `ps` print. They have the form of the docker client. Pure.

use anyhow::{Result, bail};
use serde_json::{Map, Value};

/// Spaces between two columns, and the width of the narrowest column, as in the docker client.
const PADDING: usize = 3;
const MIN_WIDTH: usize = 7;

#[derive(Debug)]
pub(super) struct Table {
    /// The heading of each column, and the name of its field in `--format`.
    pub columns: Vec<(&'static str, &'static str)>,
    /// Each row has one cell for each column.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Formats the table as `--format` says. If it is absent or `table`, the table has padded
    /// columns. If it is `json`, each row is a JSON object. All other values are a template for
    /// each row, such as `{{.ID}} {{.Name}}`.
    ///
    /// # Errors
    ///
    /// If the template is not valid, or names a field that the table does not have.
    pub(super) fn render(&self, format: Option<&str>) -> Result<String> {
        match format {
            None | Some("table") => Ok(self.with_padding()),
            Some("json") => Ok(self.rows.iter().map(|row| self.json(row).to_string() + "\n").collect()),
            Some(template) => {
                let lines: Result<Vec<String>> = self.rows.iter().map(|row| self.fill_in(template, row)).collect();
                Ok(lines?.into_iter().map(|line| line + "\n").collect())
            }
        }
    }

    fn with_padding(&self) -> String {
        let headings: Vec<String> = self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&headings]).map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(MIN_WIDTH) + PADDING
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

    fn fill_in(&self, template: &str, row: &[String]) -> Result<String> {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((field, after)) = after.split_once("}}") else {
                bail!("template {template:?} has a {{{{ without its }}}}")
            };
            let name = field.trim().trim_start_matches('.');
            let Some(column) = self.columns.iter().position(|(_, field)| *field == name) else {
                let fields: Vec<&str> = self.columns.iter().map(|(_, field)| *field).collect();
                bail!("template {template:?} names the unknown field {name:?}: the fields are {}", fields.join(", "))
            };
            out += &unescape(before);
            out += &row[column];
            rest = after;
        }
        Ok(out + &unescape(rest))
    }
}

/// Replaces `\t` and `\n` in a template by tabs and newlines, because shells do not do it.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
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

    #[track_caller]
    fn check(format: Option<&str>, expected: &str) {
        assert_eq!(table().render(format).expect("a valid format"), expected);
    }

    #[test]
    fn columns_are_padded() {
        check(None, "ID        NAME\n1         whoami\n2         x\n");
    }

    #[test]
    fn a_format_chooses_fields() {
        check(Some("{{.Name}}:{{ .ID }}"), "whoami:1\nx:2\n");
        check(Some("{{.ID}}\\t{{.Name}}"), "1\twhoami\n2\tx\n");
        check(Some("json"), "{\"ID\":\"1\",\"Name\":\"whoami\"}\n{\"ID\":\"2\",\"Name\":\"x\"}\n");
        assert!(table().render(Some("{{.Nope}}")).is_err_and(|e| e.to_string().contains("ID, Name")));
    }
}
