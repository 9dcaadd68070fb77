//! How much of layered weights a session reads.

use std::ffi::CStr;

use super::fence::{Failure, Result};
use crate::format::Header;

/// The session option with the most bits a weight. It must be set before the library is registered.
pub const BITS_OPTION: &CStr = c"nz.bits";
/// The environment variable with the most bits a weight, for sessions that set none of the options.
pub const BITS_VARIABLE: &str = "NZ_BITS";
/// The session option with the most MiB for all compressed weights. It must be set before the library is registered.
pub const WEIGHTS_OPTION: &CStr = c"nz.weights_mib";
/// The environment variable with the most MiB for all compressed weights, for sessions that set none of the options.
pub const WEIGHTS_VARIABLE: &str = "NZ_WEIGHTS_MIB";

/// The attribute of a node that says what all blobs of the model take, in bytes, at each depth of the node's: that blob
/// and those before it read to this depth, those behind it to the one before. In a notice, all of them to this depth.
pub(crate) const DEPTH_BYTES: &CStr = c"depth_bytes";
/// The same for a node's second blob.
pub(crate) const SECOND_DEPTH_BYTES: &CStr = c"R_depth_bytes";

const MIB: f64 = (1 << 20) as f64;

/// The most that is read of weights in layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    /// Bits a weight, of the file.
    Bits(f64),
    /// MiB of all blobs of the model.
    Mib(f64),
}

/// The limit that the values of [`BITS_OPTION`] and [`WEIGHTS_OPTION`] say, or else the variables; `None`: all is read.
pub(crate) fn configured(bits: Option<String>, mib: Option<String>) -> Result<Option<Limit>> {
    let named = |option: &CStr| format!("session option {}", option.to_string_lossy());
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let both = match (bits, mib) {
        (None, None) => (
            variable(BITS_VARIABLE).map(|text| (text, format!("environment variable {BITS_VARIABLE}"))),
            variable(WEIGHTS_VARIABLE).map(|text| (text, format!("environment variable {WEIGHTS_VARIABLE}"))),
        ),
        (bits, mib) => {
            (bits.map(|text| (text, named(BITS_OPTION))), mib.map(|text| (text, named(WEIGHTS_OPTION))))
        }
    };
    let ((text, source), parse) = match both {
        (None, None) => return Ok(None),
        (Some(bits), None) => (bits, parse_bits as fn(&str) -> Parsed),
        (None, Some(mib)) => (mib, parse_mib as fn(&str) -> Parsed),
        (Some((bits, first)), Some((mib, second))) => {
            return Err(Failure::invalid(format!(
                "{first} is '{bits}' and {second} is '{mib}': each says how many layers are read; set one of them"
            )));
        }
    };
    parse(&text).map_err(|wanted| Failure::invalid(format!("{source} is '{text}': set it to {wanted}")))
}

/// A limit, or what there is to choose from.
type Parsed = std::result::Result<Option<Limit>, &'static str>;

fn parse_bits(text: &str) -> Parsed {
    match text.trim() {
        "all" => Ok(None),
        number => match number.parse() {
            Ok(bits) if (1.0..=32.0).contains(&bits) => Ok(Some(Limit::Bits(bits))),
            _ => Err("'all', or to the most bits a weight, from 1 to 32, such as 8 or 6.5 \
                      (`nz-onnx inspect` shows those of each layer)"),
        },
    }
}

fn parse_mib(text: &str) -> Parsed {
    match text.trim() {
        "all" => Ok(None),
        number => match number.parse() {
            Ok(mib) if mib > 0.0 && f64::is_finite(mib) => Ok(Some(Limit::Mib(mib))),
            _ => Err("'all', or to the most MiB that all compressed weights may take, such as 300 or 42.5"),
        },
    }
}

impl Limit {
    /// How many layers of a blob are read; `depth_bytes` is what its node says in [`DEPTH_BYTES`].
    ///
    /// # Errors
    /// MiB are the limit, and the node says nothing, or nothing that fits the blob, or even the least is more.
    pub fn depth(self, header: &Header, depth_bytes: Option<&[i64]>) -> Result<usize> {
        let layers = header.layers.len();
        match (self, depth_bytes) {
            (Limit::Bits(bits), _) => Ok(header.depth_within(bits)),
            (Limit::Mib(_), _) if layers == 0 => Ok(0),
            (Limit::Mib(mib), None) => Err(silent(mib)),
            (Limit::Mib(mib), Some(depths)) if depths.len() == layers + 1 => within(mib, depths),
            (Limit::Mib(_), Some(depths)) => Err(Failure::fail(format!(
                "attribute {} has {} numbers, but the blob has {layers} layers and so {} are expected: model and data \
                 file do not belong together; convert the model again",
                DEPTH_BYTES.to_string_lossy(),
                depths.len(),
                layers + 1
            ))),
        }
    }

    /// Whether a model can be read within it; `depth_bytes` is what its notice says in [`DEPTH_BYTES`].
    ///
    /// # Errors
    /// MiB are the limit, and the notice says nothing, or even the least is more.
    pub fn check(self, depth_bytes: Option<&[i64]>) -> Result<()> {
        match (self, depth_bytes) {
            (Limit::Bits(_), _) => Ok(()),
            (Limit::Mib(mib), None) => Err(silent(mib)),
            (Limit::Mib(mib), Some(depths)) => within(mib, depths).map(drop),
        }
    }
}

/// The last of `depths`, which ascend, that is no more than so many MiB.
fn within(mib: f64, depths: &[i64]) -> Result<usize> {
    let budget = (mib * MIB).floor();
    depths.iter().rposition(|&bytes| bytes as f64 <= budget).ok_or_else(|| {
        let least = depths.first().map_or(0.0, |&least| (least as f64 / MIB * 100.0).ceil() / 100.0);
        Failure::invalid(format!(
            "{} is {mib}, but the compressed weights of the model take at least {least:.2} MiB, without any layer: set \
             it to that or more, or convert the model with smaller weights",
            WEIGHTS_OPTION.to_string_lossy()
        ))
    })
}

/// What there is to say of a model that does not say what its layers take.
fn silent(mib: f64) -> Failure {
    Failure::invalid(format!(
        "{} is {mib}, but the model does not say what its weights take with each layer: it was converted without \
         --layers, with --base, or by an older nz-onnx; convert it again with --layers, or set {} instead",
        WEIGHTS_OPTION.to_string_lossy(),
        BITS_OPTION.to_string_lossy()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_or_all() {
        assert_eq!(parse_bits("8"), Ok(Some(Limit::Bits(8.0))));
        assert_eq!(parse_bits(" 6.5 "), Ok(Some(Limit::Bits(6.5))));
        assert_eq!((parse_bits("all"), parse_mib("all")), (Ok(None), Ok(None)));
        assert_eq!(parse_mib(" 42.5 "), Ok(Some(Limit::Mib(42.5))));
        for wrong in ["", "0", "33", "-1", "nan", "inf", "few"] {
            assert!(parse_bits(wrong).is_err_and(|message| message.contains("from 1 to 32")), "{wrong}");
        }
        for wrong in ["", "0", "-1", "nan", "inf", "few", "1 GiB"] {
            assert!(parse_mib(wrong).is_err_and(|message| message.contains("most MiB")), "{wrong}");
        }
    }

    #[test]
    fn options_come_before_variables_and_alone() {
        let text = |text: &str| Some(text.to_string());
        assert!(matches!(configured(text("8"), None), Ok(Some(Limit::Bits(bits))) if bits == 8.0));
        assert!(matches!(configured(None, text("9")), Ok(Some(Limit::Mib(mib))) if mib == 9.0));
        assert!(configured(text("8"), text("9")).is_err() && configured(text("all"), text("all")).is_err());
    }

    #[test]
    fn a_budget_is_kept_to_the_byte() {
        let depths = [1 << 20, 3 << 20, 7 << 20];
        let found = [1.0, 2.99, 3.0, 6.9999, 7.0, 1e9].map(|mib| within(mib, &depths).ok());
        assert_eq!(found, [0, 0, 1, 1, 2, 2].map(Some));
        assert!(within(0.99, &depths).is_err());
        assert!(
            Limit::Mib(0.99).check(Some(&depths)).is_err() && Limit::Mib(1.0).check(Some(&depths)).is_ok()
        );
        assert!(Limit::Mib(9.0).check(None).is_err() && Limit::Bits(9.0).check(None).is_ok());
    }
}
