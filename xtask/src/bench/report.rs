//! Turns measured values into results: a table of medians and ratios, and JSON lines that have
//! minima and maxima too. It neither measures nor prints.

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use super::{case::Label, load::Metric};

/// The values of all rounds.
#[derive(Debug)]
pub(super) struct Samples<C> {
    /// The columns of the table.
    metrics: &'static [Metric],
    /// One value for each round, in the order of the rounds.
    values: BTreeMap<(C, Metric), Vec<f64>>,
    failures: BTreeMap<(C, String), u64>,
}

/// The values of a case and a metric over all rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Summary {
    median: f64,
    min: f64,
    max: f64,
    /// The median of the ratios to raw in the same round. A round in which everything was slower
    /// does not change it.
    ratio_to_raw: f64,
}

/// A line of the JSON output.
#[derive(Debug, Serialize)]
struct Line<'a> {
    bench: &'a str,
    case: String,
    metric: &'a str,
    median: f64,
    min: f64,
    max: f64,
    ratio_to_raw: f64,
}

impl<C: Label> Samples<C> {
    /// No values. Others than `metrics` are not shown.
    pub(super) fn new(metrics: &'static [Metric]) -> Self {
        Self { metrics, values: BTreeMap::new(), failures: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, case: C, metric: Metric, value: f64) {
        self.values.entry((case, metric)).or_default().push(value);
    }

    /// Records that requests of a measurement failed.
    pub(super) fn add_failure(&mut self, case: C, failure: String) {
        *self.failures.entry((case, failure)).or_default() += 1;
    }

    fn summary(&self, case: C, metric: Metric) -> Option<Summary> {
        let values = self.values.get(&(case, metric))?;
        let raw = self.values.get(&(C::RAW, metric))?;
        let ratios: Vec<f64> = values.iter().zip(raw).map(|(value, raw)| value / raw).collect();
        Some(Summary {
            median: median(values)?,
            min: values.iter().copied().min_by(f64::total_cmp)?,
            max: values.iter().copied().max_by(f64::total_cmp)?,
            ratio_to_raw: median(&ratios)?,
        })
    }

    pub(super) fn cases(&self) -> Vec<C> {
        let mut cases: Vec<C> = self.values.keys().map(|(case, _)| *case).collect();
        cases.dedup();
        cases
    }

    /// Whether a metric is a column of the table.
    pub(super) fn shows(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// One JSON object for each case and metric, with median, minimum and maximum.
    pub(super) fn json(&self, bench: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for case in self.cases() {
            for metric in self.metrics.iter().copied() {
                let Some(Summary { median, min, max, ratio_to_raw }) = self.summary(case, metric) else { continue };
                let [median, min, max, ratio_to_raw] = [median, min, max, ratio_to_raw].map(three_decimals);
                let line = Line { bench, case: case.name(), metric: metric.name(), median, min, max, ratio_to_raw };
                lines.push(serde_json::to_string(&line).expect("names and numbers can be written as JSON"));
            }
        }
        lines
    }

    /// Medians, each with its ratio to raw.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["case".to_owned()].into_iter().chain(self.metrics.iter().map(Metric::to_string)));
        for case in self.cases() {
            let cells = self.metrics.iter().map(|metric| {
                let text = self.summary(case, *metric).map(cell).unwrap_or_default();
                Cell::new(text).set_alignment(CellAlignment::Right)
            });
            table.add_row([Cell::new(case.name())].into_iter().chain(cells));
        }
        table.to_string()
    }

    /// One line for each kind of failed requests. Empty when none failed.
    pub(super) fn failures(&self) -> Vec<String> {
        let line = |((case, failure), count): (&(C, String), &u64)| {
            format!("{}: {failure} (in {count} of its measurements)", case.name())
        };
        self.failures.iter().map(line).collect()
    }
}

fn cell(summary: Summary) -> String {
    let Summary { median, ratio_to_raw, .. } = summary;
    format!("{} ×{ratio_to_raw:.2}", number(median))
}

/// A number with about three digits. From 10,000 on it is in thousands.
pub(super) fn number(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{:.1}k", v / 1000.0),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

pub(super) fn three_decimals(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// For an even number of values, the mean of the two in the middle. `None` without a value.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some((sorted[middle - 1] + upper) / 2.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::Case;

    #[track_caller]
    fn check(values: &[f64], expected: Option<f64>) {
        assert_eq!(median(values), expected, "{values:?}");
    }

    #[test]
    fn the_median_is_the_value_in_the_middle() {
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[9.0, 1.0, 2.0], Some(2.0));
        check(&[4.0, 1.0, 2.0, 9.0], Some(3.0));
    }

    /// In the second round both cases are half as fast, so that the ratio stays the same.
    fn samples() -> Samples<Case> {
        let mut samples = Samples::new(Metric::ALL);
        for (raw, routed) in [(200_000.0, 120_000.0), (100_000.0, 60_000.0), (200_000.0, 140_000.0)] {
            samples.add(Case::Raw, Metric::KeepaliveRps, raw);
            samples.add(Case::Routed, Metric::KeepaliveRps, routed);
        }
        samples
    }

    #[test]
    fn ratios_compare_values_of_the_same_round() {
        let expected = Summary { median: 120_000.0, min: 60_000.0, max: 140_000.0, ratio_to_raw: 0.6 };
        assert_eq!(samples().summary(Case::Routed, Metric::KeepaliveRps), Some(expected));
        assert_eq!(samples().summary(Case::Routed, Metric::P50Us), None);
    }

    #[test]
    fn json_lines_have_minimum_and_maximum() {
        assert_eq!(
            samples().json("mesh"),
            [
                r#"{"bench":"mesh","case":"raw","metric":"keepalive_rps","median":200000.0,"min":100000.0,"max":200000.0,"ratio_to_raw":1.0}"#,
                r#"{"bench":"mesh","case":"routed","metric":"keepalive_rps","median":120000.0,"min":60000.0,"max":140000.0,"ratio_to_raw":0.6}"#,
            ]
        );
    }

    #[test]
    fn the_table_has_medians_and_ratios() {
        let table = samples().table();
        assert!(table.contains("120.0k ×0.60"), "{table}");
        assert!(!table.contains("140.0k"), "the table has a maximum:\n{table}");
    }

    #[test]
    fn failures_are_counted() {
        let mut samples = samples();
        samples.add_failure(Case::Haproxy, "Non-2xx or 3xx responses: 7".to_owned());
        samples.add_failure(Case::Haproxy, "Non-2xx or 3xx responses: 7".to_owned());
        assert_eq!(samples.failures(), ["haproxy: Non-2xx or 3xx responses: 7 (in 2 of its measurements)"]);
    }

    #[test]
    fn numbers_have_about_three_digits() {
        for (value, expected) in [(193_456.0, "193.5k"), (1234.4, "1234"), (17.44, "17.4"), (0.666, "0.67")] {
            assert_eq!(number(value), expected);
        }
    }
}
