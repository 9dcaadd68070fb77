//! What a part found, and the tables made of it.
//!
//! A part writes samples, never summaries: medians, quartiles and whether a target was met are computed here, in
//! one way for all of them.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The report of one part.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Paragraphs: what was measured, and how.
    about: Vec<String>,
    tables: Vec<Table>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// A line above the table; empty when the paragraphs say enough.
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// One cell of a table.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Cell {
    Text(String),
    /// One sample a round, shown as median and quartiles.
    Samples {
        samples: Vec<f64>,
        digits: usize,
    },
    /// A number that has no spread, such as a size.
    Value {
        value: f64,
        digits: usize,
    },
    /// Whether the number in another column of this row is what it should be.
    Target {
        target: Target,
    },
    /// There is nothing to say here.
    Empty(()),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    /// The column with the number, by its title.
    of: String,
    #[serde(flatten)]
    bound: Bound,
    digits: usize,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// The median and the quartiles around it.
#[derive(Debug, PartialEq)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    fn of(samples: &[f64]) -> Result<Spread> {
        if samples.is_empty() || samples.iter().any(|sample| !sample.is_finite()) {
            bail!("samples must be numbers, and at least one: {samples:?}");
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        // Between two samples: on the line from one to the other.
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Ok(Spread { low: at(0.25), median: at(0.5), high: at(0.75) })
    }
}

impl Report {
    /// Paragraphs and tables as Markdown.
    ///
    /// # Errors
    /// A row does not fit its table, a sample is no number, or a target names no column with a number.
    pub fn markdown(&self) -> Result<String> {
        let mut out = String::new();
        for paragraph in &self.about {
            writeln!(out, "{paragraph}\n")?;
        }
        let cells = || self.tables.iter().flat_map(|table| table.rows.iter().flatten());
        if cells().any(|cell| matches!(cell, Cell::Samples { .. })) {
            out += "Figures are medians of interleaved rounds, quartiles in parentheses. ";
        }
        let mut verdicts = Vec::new();
        let mut tables = String::new();
        for table in &self.tables {
            tables.push('\n');
            if !table.title.is_empty() {
                writeln!(tables, "### {}\n", table.title)?;
            }
            tables += &table.markdown(&mut verdicts).with_context(|| format!("table '{}'", table.title))?;
        }
        if !verdicts.is_empty() {
            let met = verdicts.iter().filter(|&&met| met).count();
            write!(out, "Targets met: {met} of {}.", verdicts.len())?;
        }
        Ok(out.trim_end().to_owned() + "\n" + &tables)
    }
}

impl Table {
    /// As Markdown; appends to `verdicts` whether each target was met.
    fn markdown(&self, verdicts: &mut Vec<bool>) -> Result<String> {
        let mut out = format!("| {} |\n|{}\n", self.columns.join(" | "), "---|".repeat(self.columns.len()));
        for row in &self.rows {
            if row.len() != self.columns.len() {
                bail!("a row has {} cells, there are {} columns: {row:?}", row.len(), self.columns.len());
            }
            let cells = row.iter().map(|cell| self.cell(cell, row, verdicts)).collect::<Result<Vec<_>>>()?;
            writeln!(out, "| {} |", cells.join(" | "))?;
        }
        Ok(out)
    }

    fn cell(&self, cell: &Cell, row: &[Cell], verdicts: &mut Vec<bool>) -> Result<String> {
        Ok(match cell {
            Cell::Text(text) => text.replace('|', "\\|").replace('\n', " "),
            Cell::Samples { samples, digits } => {
                let Spread { low, median, high } = Spread::of(samples)?;
                format!("{median:.digits$} ({low:.digits$}-{high:.digits$})")
            }
            Cell::Value { value, digits } => format!("{value:.digits$}"),
            Cell::Target { target } => {
                let index = self.columns.iter().position(|column| *column == target.of);
                let found = match index.map(|index| &row[index]) {
                    Some(Cell::Samples { samples, .. }) => Spread::of(samples)?.median,
                    Some(Cell::Value { value, .. }) => *value,
                    _ => bail!("the target names column '{}', which has no number in {row:?}", target.of),
                };
                let (words, bound, met) = match target.bound {
                    Bound::AtLeast(bound) => ("at least", bound, found >= bound),
                    Bound::AtMost(bound) => ("at most", bound, found <= bound),
                };
                verdicts.push(met);
                let verdict = if met { "met" } else { "missed" };
                format!("{words} {bound:.digits$}: {verdict}", digits = target.digits)
            }
            Cell::Empty(()) => "-".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn markdown(rows: serde_json::Value) -> Result<String> {
        let table = json!({"title": "T", "columns": ["what", "ratio", "target"], "rows": rows});
        let report = json!({"about": ["One."], "tables": [table]});
        serde_json::from_value::<Report>(report)?.markdown()
    }

    #[test]
    fn medians_quartiles_and_targets_are_computed() {
        let samples = json!({"samples": [4.0, 1.0, 3.0, 2.0, 5.0], "digits": 1});
        let text = markdown(json!([
            ["a", samples, {"target": {"of": "ratio", "at_least": 3.0, "digits": 2}}],
            ["b", {"value": 3.25, "digits": 1}, {"target": {"of": "ratio", "at_most": 3.2, "digits": 2}}],
            ["c", "no kernel", null],
        ]))
        .expect("valid report");
        assert_eq!(
            text,
            "One.\n\nFigures are medians of interleaved rounds, quartiles in parentheses. \
             Targets met: 1 of 2.\n\n### T\n\n\
             | what | ratio | target |\n|---|---|---|\n\
             | a | 3.0 (2.0-4.0) | at least 3.00: met |\n\
             | b | 3.2 | at most 3.20: missed |\n\
             | c | no kernel | - |\n"
        );
    }

    #[test]
    fn an_even_number_of_samples_has_its_median_between_two() {
        let spread = Spread::of(&[2.0, 1.0]).expect("numbers");
        assert_eq!(spread, Spread { low: 1.25, median: 1.5, high: 1.75 });
        assert!(Spread::of(&[]).is_err());
        assert!(Spread::of(&[f64::NAN]).is_err());
    }

    #[test]
    fn a_report_that_does_not_fit_is_an_error() {
        assert!(markdown(json!([["a", "b"]])).is_err());
        let target = json!({"target": {"of": "ratio", "at_most": 1.0, "digits": 2}});
        assert!(markdown(json!([["a", "no number", target]])).is_err());
        assert!(markdown(json!([["a", {"samples": [], "digits": 1}, null]])).is_err());
        assert!(markdown(json!([["a", {"sample": [1.0], "digits": 1}, null]])).is_err());
    }
}
