//! Size against error, for a user who picks a point by looking.

use super::json::Point;
use super::table::{Align, Table};
use super::units;

/// Rows of the table at most, and the plot's size in characters.
const ROWS: usize = 12;
const WIDTH: usize = 60;
const HEIGHT: usize = 11;

/// A table and a plot of the curve; the point at `chosen` bytes is marked. `is_cut`: of mantissa cuts, which are not what
/// `--size` does by itself.
pub fn render(curve: &[Point], chosen: u64, is_cut: bool) -> String {
    if curve.len() < 2 {
        return String::new();
    }
    let how = if is_cut { "--size and --transform cut (--size alone is closer)" } else { "--size" };
    format!("\nTo choose from, each with {how}:\n{}\n{}", table(curve), plot(curve, chosen))
}

fn table(curve: &[Point]) -> String {
    use Align::Right;
    let mut table = Table::new(&[
        ("size", Right),
        ("ratio", Right),
        ("bits/w", Right),
        ("largest error", Right),
        ("least SNR", Right),
        ("outputs, about", Right),
    ]);
    let decibels = |snr: Option<f64>| snr.map_or("exact".to_string(), |snr| format!("{snr:.1} dB"));
    let rows = ROWS.min(curve.len());
    // Evenly chosen, with both ends.
    for point in (0..rows).map(|row| &curve[row * (curve.len() - 1) / (rows - 1)]) {
        table.row(vec![
            units::bytes(point.bytes_after),
            format!("{:.3}", point.ratio),
            format!("{:.2}", point.bits_per_weight),
            match point.max_relative_error {
                error if error.is_finite() => units::error(error),
                _ => "no bound".to_string(),
            },
            decibels(point.least_snr_db),
            decibels(point.output_snr_db),
        ]);
    }
    table.render(2)
}

/// Decibels of the outputs upwards, bytes to the right.
fn plot(curve: &[Point], chosen: u64) -> String {
    let known: Vec<(u64, f64)> =
        curve.iter().filter_map(|p| Some((p.bytes_after, p.output_snr_db?))).collect();
    let (Some(&(most, _)), Some(&(least, _))) = (known.first(), known.last()) else { return String::new() };
    let top = known.iter().map(|&(_, snr)| snr).fold(f64::MIN, f64::max);
    let bottom = known.iter().map(|&(_, snr)| snr).fold(f64::MAX, f64::min);
    let place = |part: f64, whole: f64, cells: usize| match whole > 0.0 {
        true => ((part / whole * (cells - 1) as f64).round() as usize).min(cells - 1),
        false => 0,
    };
    let column = |bytes: u64| place(bytes.saturating_sub(least) as f64, (most - least) as f64, WIDTH);
    let row = |snr: f64| HEIGHT - 1 - place(snr - bottom, top - bottom, HEIGHT);
    let mut cells = vec![[' '; WIDTH]; HEIGHT];
    for &(bytes, snr) in &known {
        cells[row(snr)][column(bytes)] = '*';
    }
    if (least..=most).contains(&chosen)
        && let Some(&(_, snr)) = known.iter().min_by_key(|(bytes, _)| bytes.abs_diff(chosen))
    {
        cells[row(snr)][column(chosen)] = '@';
    }
    let mut text = String::new();
    for (number, line) in cells.iter().enumerate() {
        let label = match number {
            0 => format!("{top:.0} dB"),
            n if n == HEIGHT - 1 => format!("{bottom:.0} dB"),
            _ => String::new(),
        };
        text += format!("{label:>9} |{}", line.iter().collect::<String>()).trim_end();
        text.push('\n');
    }
    text += &format!("{:>9} +{}\n", "", "-".repeat(WIDTH));
    let (left, right) = (units::bytes(least), units::bytes(most));
    let gap = WIDTH.saturating_sub(left.chars().count() + right.chars().count());
    text += &format!("{:>9}  {left}{}{right}\n", "", " ".repeat(gap));
    text + "            @ is this plan\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(n: usize) -> Vec<Point> {
        let point = |i: usize| Point {
            bytes_after: 1000 - 10 * i as u64,
            ratio: 1.0,
            bits_per_weight: 8.0,
            max_relative_error: 0.1,
            least_snr_db: (i > 0).then_some(100.0 - i as f64),
            output_snr_db: (i > 0).then_some(100.0 - i as f64),
        };
        (0..n).map(point).collect()
    }

    #[test]
    fn the_plot_goes_from_corner_to_corner() {
        let text = plot(&points(41), 800);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("    99 dB |") && lines[0].ends_with('*'), "{text}");
        assert_eq!(lines[0].chars().count(), 11 + WIDTH);
        assert!(lines[HEIGHT - 1].starts_with("    60 dB |*"), "{text}");
        assert_eq!(text.matches('@').count(), 2, "{text}");
        assert!(lines[HEIGHT + 1].contains("600 B") && lines[HEIGHT + 1].ends_with("990 B"), "{text}");
    }

    #[test]
    fn the_table_has_both_ends() {
        let text = render(&points(49), 0, false);
        assert!(text.contains("1000 B") || text.contains("0.98 KiB"), "{text}");
        assert!(text.contains("exact") && text.contains("520 B"), "{text}");
        assert_eq!(text.lines().filter(|line| line.contains("1.0e-1")).count(), ROWS, "{text}");
        assert_eq!(render(&points(1), 0, true), "");
    }
}
