//! The results of benchmarks that time steps: one line for each step, as a table and as JSON.

use std::fs;

use anyhow::{Context as _, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::cargo;

/// The line of a step, with its times in milliseconds. `None` if it was not measured.
pub(super) fn summary(bench: &str, name: &str, mut values: Vec<f64>) -> Option<Value> {
    values.sort_by(f64::total_cmp);
    let rounded = |value: f64| (value * 10.0).round() / 10.0;
    let (min, max) = (*values.first()?, *values.last()?);
    let median = values[values.len() / 2];
    Some(json!({
        "bench": bench,
        "case": name,
        "ms": rounded(median),
        "min": rounded(min),
        "max": rounded(max),
        "rounds": values.len(),
    }))
}

/// Prints the table or the JSON lines, and writes the JSON file.
pub(super) fn report(bench: &str, lines: &[Value], as_json: bool) -> Result<()> {
    let json: Vec<String> = lines.iter().map(Value::to_string).collect();
    if as_json {
        json.iter().for_each(|line| println!("{line}"));
    } else {
        println!("{}", table(lines));
    }
    let file = cargo::root().join(format!("target/bench/{bench}.jsonl"));
    fs::create_dir_all(file.parent().context("a folder")?)?;
    fs::write(&file, json.join("\n") + "\n").with_context(|| format!("cannot write {}", file.display()))
}

fn table(lines: &[Value]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["step", "ms (median)", "details"]);
    for line in lines {
        let skipped = ["bench", "case", "ms"];
        let details = line.as_object().into_iter().flatten().filter(|(key, _)| !skipped.contains(&key.as_str()));
        let details: Vec<String> = details.map(|(key, value)| format!("{key} {value}")).collect();
        let text =
            |key: &str| line.get(key).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        table.add_row([
            Cell::new(text("case").unwrap_or_default()),
            Cell::new(text("ms").unwrap_or_default()).set_alignment(CellAlignment::Right),
            Cell::new(details.join(", ")),
        ]);
    }
    table
}
