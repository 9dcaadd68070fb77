//! How much of layered weights a session reads.

use std::ffi::CStr;

use super::fence::{Failure, Result};

/// The session option with the most bits a weight. It must be set before the library is registered.
pub const BITS_OPTION: &CStr = c"nz.bits";
/// The environment variable with the most bits a weight, for sessions that do not set the option.
pub const BITS_VARIABLE: &str = "NZ_BITS";

/// The most bits a weight, of the file, that `option`, the value of [`BITS_OPTION`], or else [`BITS_VARIABLE`] says;
/// `None`: all.
pub(crate) fn configured(option: Option<String>) -> Result<Option<f64>> {
    let variable = || std::env::var(BITS_VARIABLE).ok().filter(|v| !v.is_empty());
    let (text, source) = match (option, variable()) {
        (Some(text), _) => (text, format!("session option {}", BITS_OPTION.to_string_lossy())),
        (None, Some(text)) => (text, format!("environment variable {BITS_VARIABLE}")),
        (None, None) => return Ok(None),
    };
    parse(&text).map_err(|wanted| Failure::invalid(format!("{source} is '{text}': set it to {wanted}")))
}

/// Bits a weight, or what there is to choose from.
fn parse(text: &str) -> std::result::Result<Option<f64>, &'static str> {
    match text.trim() {
        "all" => Ok(None),
        number => match number.parse() {
            Ok(bits) if (1.0..=32.0).contains(&bits) => Ok(Some(bits)),
            _ => Err("'all', or to the most bits a weight, from 1 to 32, such as 8 or 6.5 \
                      (`nz-onnx inspect` shows those of each layer)"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn bits_are_a_number_or_all() {
        assert_eq!(parse("8"), Ok(Some(8.0)));
        assert_eq!(parse(" 6.5 "), Ok(Some(6.5)));
        assert_eq!(parse("all"), Ok(None));
        for wrong in ["", "0", "33", "-1", "nan", "inf", "few"] {
            assert!(parse(wrong).is_err_and(|message| message.contains("from 1 to 32")), "{wrong}");
        }
    }
}
