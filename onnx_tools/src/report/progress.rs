//! Progress, warnings and notes on stderr.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::style::Style;
use super::table::printable;

/// Nothing is drawn in the first second: short work needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// What goes to stderr while a command works.
#[derive(Debug)]
pub struct Progress {
    bar: bool,
    quiet: bool,
    verbose: bool,
    style: Style,
}

impl Progress {
    /// `bar`: draw one if stderr is a terminal.
    pub fn new(bar: bool, quiet: bool, verbose: bool, style: Style) -> Self {
        Progress { bar: bar && !quiet && std::io::stderr().is_terminal(), quiet, verbose, style }
    }

    /// Says nothing at all.
    pub fn silent() -> Self {
        Progress { bar: false, quiet: true, verbose: false, style: Style::PLAIN }
    }

    /// Starts a step of `bytes` bytes of work.
    pub fn step(&self, what: &'static str, bytes: u64) -> Step {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        if let Ok(style) =
            ProgressStyle::with_template("{msg:9} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}")
        {
            bar.set_style(style);
        }
        bar.set_message(what);
        Step { bar, started: std::time::Instant::now(), shows: self.bar }
    }

    /// A warning, unless quiet.
    pub fn warn(&self, text: &str) {
        if !self.quiet {
            self.line(&format!("{} {}", self.style.warn("warning:"), printable(text)));
        }
    }

    /// A detail that only --verbose shows.
    pub fn note(&self, text: &str) {
        if self.verbose {
            self.line(&self.style.dim(&printable(text)));
        }
    }

    fn line(&self, text: &str) {
        // A stderr that nobody reads is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// One bar; it goes away when dropped.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    started: std::time::Instant,
    shows: bool,
}

impl Step {
    /// `bytes` more bytes of work are done.
    pub fn advance(&mut self, bytes: u64) {
        if self.shows && self.started.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shows = false;
        }
        self.bar.inc(bytes);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
