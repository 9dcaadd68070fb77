//! Colours, where the terminal takes them.

use std::io::IsTerminal;

/// Whether text is marked up with ANSI escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colored: bool,
}

impl Style {
    /// No escapes.
    pub const PLAIN: Style = Style { colored: false };

    /// Colours if `stream` is a terminal that takes them and neither the user nor NO_COLOR says no.
    pub fn detect(stream: &impl IsTerminal, never: bool) -> Style {
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Style { colored: !never && !dumb && !set("NO_COLOR") && stream.is_terminal() }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// Headings and totals.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Things of less weight.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Checks that passed.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Warnings.
    pub fn warn(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// Errors and checks that failed.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }
}
