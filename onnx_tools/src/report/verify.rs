//! The table of `verify`.

use std::time::Duration;

use super::json::{RunCheck, Verify};
use super::style::Style;
use super::table::{Align, Table, printable};
use super::units;

/// What was checked and what came of it.
pub fn verify(document: &Verify, elapsed: Duration, style: Style) -> String {
    let bad: Vec<_> = document.blobs.iter().filter(|b| b.problem.is_some()).collect();
    let lossless = document.blobs.iter().filter(|b| b.lossless).count();
    let worst = document.blobs.iter().filter_map(|b| b.max_relative_error).fold(0.0, f64::max);
    let least = document.blobs.iter().filter_map(|b| b.snr_db).reduce(f64::min);
    let mut text = format!("{}\n", style.bold(&printable(&document.path)));
    text += &format!(
        "blobs     {} of {} have the right checksums, {lossless} lossless\n",
        document.blobs.iter().filter(|b| b.checksum_ok).count(),
        document.blobs.len()
    );
    if let Some(reason) = &document.not_compared {
        text += &format!("weights   not compared: {}\n", printable(reason));
    }
    if let Some(original) = &document.compared_with {
        text += &format!(
            "weights   {} of {} are those of {}, largest relative error {}{}\n",
            document.blobs.iter().filter(|b| b.matches_original == Some(true)).count(),
            document.blobs.len(),
            printable(original),
            units::error(worst),
            least.map_or(String::new(), |snr| format!(", errors at least {snr:.1} dB below the weights"))
        );
    }
    let compensated = document.blobs.iter().filter(|b| b.compensated).count();
    if compensated > 0 {
        text += &format!("          {compensated} of them rounded so as to make good errors of others\n");
    }
    for blob in bad {
        let problem = blob.problem.as_deref().unwrap_or_default();
        text += &format!("  {} {}: {}\n", style.bad("wrong:"), printable(&blob.name), printable(problem));
    }
    if let Some(run) = &document.run {
        text += &outputs(run, style);
    }
    for problem in &document.problems {
        text += &format!("{} {}\n", style.bad("wrong:"), printable(problem));
    }
    let verdict =
        if document.ok { style.good("All checks passed.") } else { style.bad("Verification failed.") };
    text + &format!("{verdict} Took {}.\n", units::elapsed(elapsed))
}

fn share(of_rows: Option<f64>) -> String {
    of_rows.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share))
}

fn outputs(run: &RunCheck, style: Style) -> String {
    let mut table = Table::new(&[
        ("output", Align::Left),
        ("shape", Align::Left),
        ("max abs error", Align::Right),
        ("to largest", Align::Right),
        ("SNR", Align::Right),
        ("least cosine", Align::Right),
        ("top 1", Align::Right),
        ("top 5", Align::Right),
        ("", Align::Left),
    ]);
    for output in &run.outputs {
        let verdict = match (output.problem.as_ref().or(output.skipped.as_ref()), output.within_tolerance) {
            (Some(remark), _) => remark.clone(),
            (None, Some(true)) => "ok".to_string(),
            (None, Some(false)) => "outside the tolerance".to_string(),
            (None, None) => String::new(),
        };
        let number = |value: Option<f64>| match (value, &output.skipped) {
            (Some(value), _) => units::error(value),
            (None, Some(_)) => String::new(),
            (None, None) => "not finite".to_string(),
        };
        table.row(vec![
            output.name.clone(),
            output.shape.as_ref().map(|shape| format!("{shape:?}")).unwrap_or_default(),
            number(output.max_abs_error),
            number(output.max_error_to_largest),
            match (output.snr_db, output.max_abs_error) {
                (Some(snr), _) => format!("{snr:.1} dB"),
                (None, Some(0.0)) => "exact".to_string(),
                (None, _) => String::new(),
            },
            output.least_cosine.map_or(String::new(), units::cosine),
            share(output.top1_agreement),
            share(output.top5_agreement),
            verdict,
        ]);
    }
    let runs = if run.runs == 1 { String::new() } else { format!("{} runs, ", run.runs) };
    let tolerance = match run.tolerance {
        Some(tolerance) => format!(
            "tolerance {}{}",
            units::error(tolerance),
            run.own_error.map_or(String::new(), |own| {
                format!(
                    " (ONNX Runtime's optimisations change the original's outputs by {})",
                    units::error(own)
                )
            })
        ),
        None => "no tolerance: outputs are reported only".to_string(),
    };
    format!(
        "run       {runs}{} of domain nz, original {}, converted {}; {tolerance}\n{}{}",
        units::count(run.custom_nodes, "node"),
        units::elapsed(Duration::from_secs_f64(run.original_seconds)),
        units::elapsed(Duration::from_secs_f64(run.converted_seconds)),
        table.render(2),
        style.dim(&format!("  ONNX Runtime {}, library {}\n", run.ort_lib, run.library))
    )
}
