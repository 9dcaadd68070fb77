//! The summary of `convert`, the tables of `plan` and `restore`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::curve;
use super::json::{Convert, Decision, Optimized, Plan, Restore, Tensor, Totals, Trial, reason_group};
use super::style::Style;
use super::table::{Align, Table, printable};
use super::units;

/// What a summary says besides the document.
#[derive(Debug)]
pub struct Context<'a> {
    /// Time it took.
    pub elapsed: Duration,
    /// libnz_onnx, if it was found.
    pub library: Option<&'a Path>,
    /// How to set it.
    pub style: Style,
}

/// The summary of a conversion.
pub fn summary(document: &Convert, context: &Context) -> String {
    let style = context.style;
    let mut text = String::new();
    let input = printable(&document.input.path);
    match &document.output {
        None => text += &format!("{} (dry run, nothing was written)\n\n", style.bold(&input)),
        Some(output) => {
            let data = output.data_path.as_ref().map(|d| format!(" + {}", printable(d))).unwrap_or_default();
            text += &format!("{input} -> {}{data}\n\n", style.bold(&printable(&output.path)));
        }
    }
    text += &document.optimized.as_ref().map(optimized).unwrap_or_default();
    text += &totals_table(document.tensors.iter(), &document.totals);
    text += &format!("\n{}\n", exactness(&document.totals, document.tensors.iter(), style));
    text += &document.trial.as_ref().map(trial).unwrap_or_default();
    text += &kept(document.tensors.iter());
    text += &format!("\nTook {}.\n", units::elapsed(context.elapsed));
    if let Some(output) = &document.output
        && document.totals.compressed > 0
    {
        let library =
            context.library.map_or("path/to/libnz_onnx.so".to_string(), |p| p.display().to_string());
        text += &format!(
            "\nTo load {} in Python:\n  options = onnxruntime.SessionOptions(); \
             options.register_custom_ops_library({library:?})\n",
            printable(&output.path)
        );
    }
    text
}

/// What was done first, and what that means for the model.
fn optimized(how: &Optimized) -> String {
    let place = match (how.level, how.nchwc_block) {
        (_, Some(block)) => format!("for CPUs on which it uses channel blocks of {block}, and no others"),
        ("portable", None) => "for any CPU".to_string(),
        _ => "for CPUs like this one".to_string(),
    };
    format!(
        "Optimised first by ONNX Runtime {} ({}), {place}.\n`nz-onnx restore` gives back the optimised model.\n\n",
        how.ort_version, how.level
    )
}

/// What the model was chosen among; nothing if there was nothing to choose by.
fn trial(trial: &Trial) -> String {
    if trial.compared_on == 0 {
        return String::new();
    }
    let heading = format!("on {} left out", units::count(trial.compared_on, "input"));
    let mut table = Table::new(&[
        ("bytes allotted", Align::Left),
        ("compensated", Align::Left),
        (&heading, Align::Right),
        ("", Align::Left),
    ]);
    for candidate in &trial.candidates {
        table.row(vec![
            if candidate.calibrated { "by calibration" } else { "evenly" }.to_string(),
            if candidate.compensated { "yes" } else { "no" }.to_string(),
            candidate.snr_db.map_or("exact".to_string(), |snr| format!("{snr:.1} dB")),
            if candidate.taken { "taken" } else { "" }.to_string(),
        ]);
    }
    format!("\n{}", table.render(0))
}

fn totals_table<'a>(tensors: impl Iterator<Item = &'a Tensor> + Clone, totals: &Totals) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("", Left),
        ("weights", Right),
        ("before", Right),
        ("after", Right),
        ("saved", Right),
        ("ratio", Right),
    ]);
    let mut row = |name: &str, count: usize, before: u64, after: u64| {
        let ratio = if before > 0 { after as f64 / before as f64 } else { 1.0 };
        table.row(vec![
            name.to_string(),
            count.to_string(),
            units::bytes(before),
            units::bytes(after),
            units::percent(before.saturating_sub(after) as f64, before as f64),
            format!("{ratio:.3}"),
        ]);
    };
    for (name, decision) in [("compressed", Decision::Compressed), ("kept", Decision::Kept)] {
        let of = tensors.clone().filter(|t| t.decision == decision);
        let (n, before, after) =
            of.fold((0, 0, 0), |(n, b, a), t| (n + 1, b + t.bytes_before, a + t.bytes_after));
        row(name, n, before, after);
    }
    row("total", totals.weights, totals.bytes_before, totals.bytes_after);
    table.render(0)
}

fn exactness<'a>(totals: &Totals, tensors: impl Iterator<Item = &'a Tensor> + Clone, style: Style) -> String {
    if totals.lossless {
        return style.good("Lossless: every weight comes back bit for bit.");
    }
    let on_grid = tensors.clone().any(is_on_grid);
    let rounded = tensors.filter(|t| !t.lossless).count();
    let by = match totals.least_snr_db {
        Some(snr) if on_grid => {
            format!("to errors at least {} below them", style.bold(&format!("{snr:.1} dB")))
        }
        _ => {
            format!("by a relative error of at most {}", style.bold(&units::error(totals.max_relative_error)))
        }
    };
    format!(
        "{} {} rounded, {by}{}.",
        style.bold("Not lossless:"),
        if rounded == 1 { "1 weight is".to_string() } else { format!("{rounded} weights are") },
        match totals.compressed - rounded {
            0 => String::new(),
            1 => "; 1 other is lossless".to_string(),
            n => format!("; {n} others are lossless"),
        }
    )
}

/// Whether a bound of the relative error says nothing.
fn is_on_grid(tensor: &Tensor) -> bool {
    let unbound = ["grid", "codebook", "constant"];
    tensor.encoding.as_ref().is_some_and(|encoding| unbound.iter().any(|name| encoding.starts_with(name)))
}

/// Kept weights, grouped by reason.
fn kept<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> String {
    let mut groups: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in tensors.filter(|t| t.decision == Decision::Kept) {
        let reason = tensor.reason.as_deref().unwrap_or("no reason given");
        let group = groups.entry(reason_group(reason)).or_default();
        *group = (group.0 + 1, group.1 + tensor.bytes_before);
    }
    if groups.is_empty() {
        return String::new();
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|&(_, (_, bytes))| std::cmp::Reverse(bytes));
    let mut table =
        Table::new(&[("kept as they were", Align::Left), ("weights", Align::Right), ("bytes", Align::Right)]);
    for (reason, (count, bytes)) in groups {
        table.row(vec![reason.to_string(), count.to_string(), units::bytes(bytes)]);
    }
    format!("\n{}", table.render(0))
}

/// The table of a plan; `is_cut`: its curve is of mantissa cuts.
pub fn plan(document: &Plan, is_cut: bool, style: Style) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("weight", Left),
        ("dtype", Left),
        ("shape", Left),
        ("read by", Left),
        ("before", Right),
        ("encoding", Left),
        ("bits/w", Right),
        ("error", Right),
        ("why", Left),
    ]);
    for planned in &document.tensors {
        let t = &planned.tensor;
        let mut readers: Vec<String> = planned
            .consumers
            .iter()
            .map(|c| match &c.becomes {
                Some(op) if t.decision == Decision::Compressed => format!("{} -> {op}", c.op),
                _ => c.op.clone(),
            })
            .collect();
        readers.dedup();
        let error = match (t.decision, t.lossless) {
            (Decision::Kept, _) | (_, true) => String::new(),
            _ => match t.snr_db {
                Some(snr) if is_on_grid(t) => format!("{snr:.1} dB"),
                _ => format!("<= {}", units::error(t.max_relative_error)),
            },
        };
        table.row(vec![
            t.name.clone(),
            t.dtype.clone(),
            units::shape(&t.shape),
            readers.join(", "),
            units::bytes(t.bytes_before),
            t.encoding.clone().unwrap_or_else(|| "kept".to_string()),
            format!("{:.2}", t.bits_per_weight),
            error,
            t.reason.clone().unwrap_or_default(),
        ]);
    }
    let tensors = document.tensors.iter().map(|p| &p.tensor);
    let first = document.optimized.as_ref().map(optimized).unwrap_or_default();
    let mut text =
        format!("{}\n\n{first}{}\n", style.bold(&printable(&document.input.path)), table.render(0));
    text += &totals_table(tensors.clone(), &document.totals);
    text += &format!("\n{}\n", exactness(&document.totals, tensors, style));
    text += "Sizes are upper bounds, and so are errors: nothing was encoded.\n";
    text += &curve::render(&document.curve, document.totals.bytes_after, is_cut);
    text
}

/// What `restore` did.
pub fn restore(document: &Restore, elapsed: Duration, style: Style) -> String {
    let output = &document.output;
    let data = output.data_path.as_ref().map(|d| format!(" + {}", printable(d))).unwrap_or_default();
    format!(
        "{} -> {}{data}\n{} decoded, {}. {}\nTook {}.\n",
        printable(&document.input),
        style.bold(&printable(&output.path)),
        units::count(document.weights, "weight"),
        units::bytes(output.bytes),
        if document.identical && document.optimized.is_some() {
            style.good("Byte-identical to the model that was converted, which ONNX Runtime had optimised.")
        } else if document.identical {
            style.good("Byte-identical to the model that was converted.")
        } else {
            format!(
                "The {} graph; {} rounded by the conversion.",
                if document.optimized.is_some() { "optimised" } else { "original's" },
                match document.rounded.len() {
                    1 => "1 weight was".to_string(),
                    n => format!("{n} weights were"),
                }
            )
        },
        units::elapsed(elapsed)
    )
}
