//! The command line: parses it, runs the pipeline, prints, picks the exit code.

pub mod args;
mod commands;
mod signals;
pub mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{ColorChoice, CommandFactory, FromArgMatches};

use self::args::{Cli, Global, When};
use crate::onnx::Error;
use crate::report::{Progress, Style, table};

/// What a command leaves behind: text for stdout and whether its checks passed.
struct Outcome {
    text: String,
    passed: bool,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads any more, as in `nz-onnx --help | head -1`, is no failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    signals::install();
    let never = cli.global.color == When::Never;
    let style = Style::detect(&io::stderr(), never);
    // A panic unwinds through the temporary files, which removes them, and ends here with the code of an
    // internal error; the panic's own message is on stderr by then.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(cli, never)))
        .unwrap_or_else(|_| Err(Error::Internal("the program stopped at the place named above".to_string())));
    match outcome {
        Ok(outcome) => {
            let code = if outcome.passed { 0 } else { 4 };
            match print(&outcome.text) {
                Ok(()) => ExitCode::from(code),
                Err(error) => fail(&Error::io("stdout".as_ref(), "write the result", error), style),
            }
        }
        Err(error) => fail(&error, style),
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    // clap colours its own messages before --color is parsed.
    let never = arguments.windows(2).any(|w| w[0] == "--color" && w[1] == "never")
        || arguments.iter().any(|a| a == "--color=never");
    let mut command = Cli::command().color(if never { ColorChoice::Never } else { ColorChoice::Auto });
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
}

fn run(cli: Cli, never_color: bool) -> Result<Outcome, Error> {
    if let Some(threads) = cli.global.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(threads))
            .build_global()
            .map_err(|e| Error::Internal(format!("the thread pool does not start: {e}")))?;
    }
    let Global { progress, quiet, verbose, .. } = cli.global;
    let progress =
        Progress::new(progress == When::Auto, quiet, verbose, Style::detect(&io::stderr(), never_color));
    commands::dispatch(&cli.command, &cli.global, &progress, Style::detect(&io::stdout(), never_color))
}

/// Writes the result. A reader that has left early, as in `nz-onnx plan m.onnx | head`, has what it wants.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// One message on stderr, its hint on a line of its own.
fn fail(error: &Error, style: Style) -> ExitCode {
    let message = error.to_string();
    let (message, help) = match message.split_once("\nhelp: ") {
        Some((message, help)) => (message, Some(help)),
        None => (message.as_str(), None),
    };
    let mut text = format!("{} {}\n", style.bad("error:"), table::printable(message));
    if let Some(help) = help {
        text += &format!("{} {}\n", style.bold("help:"), table::printable(help));
    }
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(error.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn targets_exclude_each_other() {
        assert!(parse_line("nz-onnx convert m.onnx --lossless").is_ok());
        assert!(parse_line("nz-onnx convert m.onnx --lossless --ratio 0.5").is_err());
        assert!(parse_line("nz-onnx convert m.onnx --mantissa-bits 3 --ratio 0.5").is_err());
        assert!(parse_line("nz-onnx plan m.onnx --ratio 0.5 --include a* --include b*").is_ok());
        let targets = ["--ratio 0.5", "--size 1MiB", "--bits 4", "--max-error 0.1", "--snr 40", "--lossless"];
        for (i, target) in targets.iter().enumerate() {
            for command in ["convert", "plan"] {
                assert!(parse_line(&format!("nz-onnx {command} m.onnx {target}")).is_ok(), "{target}");
                let both = format!("nz-onnx {command} m.onnx {target} {}", targets[(i + 1) % targets.len()]);
                assert!(parse_line(&both).is_err(), "{both}");
            }
        }
    }

    #[test]
    fn common_options_stand_anywhere() {
        let cli = parse_line("nz-onnx --threads 2 convert m.onnx --json").expect("parsed");
        assert!(cli.global.json && cli.global.threads == Some(2));
        assert!(parse_line("nz-onnx convert m.onnx --threads 0").is_err());
        assert!(parse_line("nz-onnx convert m.onnx -q -v").is_err());
    }

    #[test]
    fn every_help_has_the_exit_codes() {
        for name in ["convert", "plan", "inspect", "verify", "restore", "env"] {
            let error = parse_line(&format!("nz-onnx {name} --help")).expect_err("help is not a command");
            assert!(!error.use_stderr());
            assert!(error.to_string().contains("Exit codes:"), "{name}");
        }
    }
}
