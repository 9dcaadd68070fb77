//! What a benchmark has found, for `cargo xtask bench`.

use serde_json::{Value, json};

/// Writes the report of one table to `path`; ends the program if it cannot.
pub fn write_report(path: &str, about: &str, table: &Value) {
    let found = json!({"about": [about], "tables": [table]});
    if let Err(error) = std::fs::write(path, format!("{found}\n")) {
        eprintln!("could not write {path}: {error}");
        std::process::exit(1);
    }
}
