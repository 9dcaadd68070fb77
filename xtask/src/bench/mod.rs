//! `cargo xtask bench`: measures, and writes what it found into `docs/benchmarks.md` and `docs/fidelity.md`.
//!
//! Each part is a program that prints a JSON report (see [`report`]). Its samples are kept under
//! `target/xtask/bench`, and the tables made of them replace the part's section of the page.

mod document;
mod machine;
mod parts;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::python::BENCH;
use crate::workspace::{self, Workspace, progress};
use parts::{PARTS, Part, Tools};
use report::Report;

/// What the command line asks for.
#[derive(Debug)]
pub struct Arguments {
    parts: Vec<&'static Part>,
    quick: bool,
}

impl Arguments {
    /// Reads the arguments that follow `bench`.
    ///
    /// # Errors
    /// There is no part or option of that name.
    pub fn parse(arguments: &[String]) -> Result<Arguments> {
        let (mut parts, mut quick) = (Vec::new(), false);
        for argument in arguments {
            match PARTS.iter().find(|part| part.name == argument) {
                Some(part) => parts.push(part),
                None if argument == "--quick" => quick = true,
                None => {
                    let names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
                    bail!("there is no part or option '{argument}' of bench: parts are {}", names.join(", "));
                }
            }
        }
        if parts.is_empty() {
            parts.extend(PARTS.iter().filter(|part| !part.on_demand));
        }
        Ok(Arguments { parts, quick })
    }
}

/// Measures the parts asked for, one after the other. A part that fails leaves its section as it was.
/// True when none failed.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    let scratch = workspace.scratch("bench")?;
    let python = BENCH.require(workspace)?;
    progress("building nz-onnx, libnz_onnx.so and the benchmarks");
    workspace::run(workspace.cargo().args(["build", "--release", "--quiet"]))?;

    let tools = Tools { workspace, python: &python, scratch: &scratch, quick: arguments.quick };
    let (mut failed, mut pages) = (Vec::new(), Vec::new());
    for part in &arguments.parts {
        let started = Instant::now();
        progress(&format!("measuring: {}", part.name));
        let page = match arguments.quick {
            true => scratch.join(format!("quick-{}", part.page)),
            false => workspace.root().join("docs").join(part.page),
        };
        if !pages.contains(&page) {
            if arguments.quick {
                let source = workspace.root().join("docs").join(part.page);
                std::fs::copy(&source, &page)
                    .with_context(|| format!("could not copy {}", source.display()))?;
            }
            pages.push(page.clone());
        }
        match measure(part, &tools, &page) {
            Ok(None) => progress(&format!("{}: skipped, and left as it was", part.name)),
            Ok(Some(raw)) => progress(&format!(
                "{}: done in {} s; raw results in {}",
                part.name,
                started.elapsed().as_secs(),
                raw.display()
            )),
            Err(error) => {
                progress(&format!("{}: FAILED: {error:#}", part.name));
                failed.push(part.name);
            }
        }
    }
    pages.iter().for_each(|page| println!("{}", page.display()));
    if !failed.is_empty() {
        progress(&format!("failed, and left as it was: {}", failed.join(", ")));
    }
    Ok(failed.is_empty())
}

/// Measures one part, keeps its raw results and rewrites its section. Returns the path of the raw results; nothing if the
/// part skips.
fn measure(part: &Part, tools: &Tools, page: &Path) -> Result<Option<PathBuf>> {
    let suffix = if tools.quick { "-quick" } else { "" };
    let raw = tools.scratch.join(format!("{}{suffix}.json", part.name));
    let found = tools.scratch.join(format!("{}{suffix}.part.json", part.name));
    (part.measure)(tools, &found)?;
    if part.on_demand && !found.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&found)
        .with_context(|| format!("part {} left no report at {}", part.name, found.display()))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no valid JSON", found.display()))?;
    let report: Report = serde_json::from_value(value.clone())
        .with_context(|| format!("{} is not a report as documented", found.display()))?;

    let command = format!("cargo xtask bench {}{}", part.name, if tools.quick { " --quick" } else { "" });
    let machine = machine::describe();
    let whole = json!({
        "schema": "nz-onnx.bench/1",
        "part": part.name,
        "command": command,
        "machine": machine,
        "onnxruntime": tools.python.onnxruntime(),
        "report": value,
    });
    std::fs::write(&raw, format!("{whole:#}\n"))
        .with_context(|| format!("could not write {}", raw.display()))?;
    std::fs::remove_file(&found).with_context(|| format!("could not remove {}", found.display()))?;

    let runtime = if part.onnxruntime {
        format!("; ONNX Runtime {}", tools.python.onnxruntime())
    } else {
        String::new()
    };
    let section =
        format!("## {}\n\n`{command}`: {machine}{runtime}.\n\n{}", part.heading, report.markdown()?);
    document::replace_in_file(page, part.name, &section)?;
    Ok(Some(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments> {
        Arguments::parse(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_part_all_are_measured_that_any_machine_can() {
        let all = parse(&["--quick"]).expect("valid");
        assert!(all.quick);
        assert_eq!(all.parts.len(), PARTS.len() - 1);
        assert!(all.parts.iter().all(|part| part.name != "gpu"));
        assert_eq!(parse(&["gpu"]).expect("valid").parts[0].name, "gpu");
        let one = parse(&["gemv"]).expect("valid");
        assert!(!one.quick);
        assert_eq!(one.parts.iter().map(|part| part.name).collect::<Vec<_>>(), ["gemv"]);
    }

    #[test]
    fn a_part_that_does_not_exist_is_an_error_that_names_those_that_do() {
        let error = parse(&["decode", "gem"]).expect_err("no such part").to_string();
        assert!(error.contains("'gem'") && error.contains("decode, encode, gemv, models"), "{error}");
    }
}
