//! Columns of text.

use std::fmt::Write;

/// Longest cell that is printed whole, in characters; longer ones lose their middle.
const WIDEST: usize = 56;

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a heading line.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of these columns.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let columns = columns.iter().map(|&(name, align)| (name.to_string(), align)).collect();
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row; it has a cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells.into_iter().map(|c| shorten(&printable(&c))).collect());
    }

    /// The lines of the table, indented by `indent` spaces.
    pub fn render(&self, indent: usize) -> String {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|c| {
                let cells = self.rows.iter().map(|row| row[c].chars().count());
                cells.max().unwrap_or(0).max(self.columns[c].0.chars().count())
            })
            .collect();
        let mut out = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = " ".repeat(indent);
            for ((cell, width), (_, align)) in cells.zip(&widths).zip(&self.columns) {
                // Writing to a String cannot fail.
                let _ = match align {
                    Align::Left => write!(text, "{cell:<width$}  "),
                    Align::Right => write!(text, "{cell:>width$}  "),
                };
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(&mut self.columns.iter().map(|(name, _)| name.as_str()));
        self.rows.iter().for_each(|row| line(&mut row.iter().map(String::as_str)));
        out
    }
}

/// `text` without control characters: names come from files, and a file must not move the cursor.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn shorten(cell: &str) -> String {
    let count = cell.chars().count();
    if count <= WIDEST {
        return cell.to_string();
    }
    let half = (WIDEST - 1) / 2;
    cell.chars().take(half).chain(['…']).chain(cell.chars().skip(count - half)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("name", Align::Left), ("bytes", Align::Right)]);
        table.row(vec!["é".into(), "1".into()]);
        table.row(vec!["weight".into(), "123456".into()]);
        assert_eq!(table.render(2), "  name     bytes\n  é            1\n  weight  123456\n");
    }

    #[test]
    fn names_cannot_break_out() {
        let mut table = Table::new(&[("name", Align::Left)]);
        table.row(vec![format!("a\x1b[2J\n{}", "x".repeat(200))]);
        let text = table.render(0);
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains('\x1b') && text.contains('…'));
    }
}
