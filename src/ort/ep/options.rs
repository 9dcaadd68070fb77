//! The provider's options: what a session asks for.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use ort_sys::OrtSessionOptions;

use super::EpApi;
use super::claim::SlowOps;
use crate::codec::Profile;
use crate::codec::allocation::Target;
use crate::ort::cache::{CACHE_OPTION, Cache};
use crate::ort::fence::{Failure, Result};

/// Bytes from which on a weight is looked at, unless the session says otherwise: those of `nz-onnx convert`.
const MIN_SIZE: u64 = 4096;
/// What ONNX Runtime puts before the names of this provider's options in a session's configuration.
const PREFIX: &str = "ep.nzexecutionprovider.";
/// The session option with which nothing is packed, so that no original is ever freed.
const NO_PACKING: &str = "session.disable_prepacking";

/// How small, and at what cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Aim {
    pub target: Target,
    pub rounding: Rounding,
    pub profile: Profile,
}

/// How weights are rounded, if they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// To fewer mantissa bits.
    Cut,
    /// To a uniform grid where one can hold the weight.
    Grid,
    /// To whichever is closer at the same size.
    Auto,
}

/// What a session asks for.
pub(super) struct Options {
    pub aim: Aim,
    /// In bytes.
    pub min_size: u64,
    pub slow: SlowOps,
    /// Decoded weights that are kept.
    pub cache: Option<Arc<Cache>>,
    /// Where blobs are kept from session to session.
    pub cache_dir: Option<PathBuf>,
    /// Whether ONNX Runtime hands weights over when a session is made.
    pub packs: bool,
}

impl Options {
    /// Reads the options of a session.
    ///
    /// # Safety
    /// `options` are live session options of this host.
    pub unsafe fn read(api: EpApi, options: *const OrtSessionOptions) -> Result<Self> {
        // SAFETY: the caller's promise.
        let entries = unsafe { entries(api, options) }?;
        Options::parse(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    /// Takes the options from a session's configuration.
    fn parse<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let (mut lossless, mut ratio, mut mantissa_bits) = (None, None, None);
        let (mut cache_mib, mut session_cache, mut transform) = (None, None, None);
        let aim = Aim { target: Target::Lossless, rounding: Rounding::Cut, profile: Profile::default() };
        let mut options = Options {
            aim,
            min_size: MIN_SIZE,
            slow: SlowOps::default(),
            cache: None,
            cache_dir: None,
            packs: true,
        };
        for (key, value) in entries {
            if key == NO_PACKING {
                options.packs = value != "1";
            } else if key.as_bytes() == CACHE_OPTION.to_bytes() {
                session_cache = Some(value.to_owned());
            }
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            match name {
                "lossless" => lossless = Some(flag(name, value)?),
                "ratio" => {
                    let valid = |&ratio: &f64| ratio > 0.0 && ratio < 1.0;
                    ratio = Some(number(name, value, "a number above 0 and below 1, such as 0.5", valid)?);
                }
                "mantissa_bits" => {
                    let wanted = "a whole number from 0 to 23 (float32 has 23, float16 10, bfloat16 7)";
                    mantissa_bits = Some(number(name, value, wanted, |&bits: &u8| bits <= 23)?);
                }
                "min_size" => options.min_size = number(name, value, "a whole number of bytes", |_| true)?,
                "transform" => {
                    let choices =
                        [("cut", Rounding::Cut), ("grid", Rounding::Grid), ("auto", Rounding::Auto)];
                    transform = Some(choice(name, value, "cut, grid or auto", &choices)?);
                }
                "profile" => {
                    let choices = [("compact", Profile::Compact), ("fast", Profile::Fast)];
                    options.aim.profile = choice(name, value, "compact or fast", &choices)?;
                }
                "conv" => options.slow.conv = flag(name, value)?,
                "lstm" => options.slow.lstm = flag(name, value)?,
                "gru" => options.slow.gru = flag(name, value)?,
                "cache_mib" => {
                    let wanted = "a whole number of MiB, 0 to keep nothing decoded";
                    let fits = |mib: &usize| mib.checked_mul(1 << 20).is_some();
                    cache_mib = Some(number(name, value, wanted, fits)?);
                }
                "cache_dir" => options.cache_dir = (!value.is_empty()).then(|| value.into()),
                _ => {
                    return Err(Failure::invalid(format!(
                        "NzExecutionProvider has no option '{name}': it has lossless, ratio, mantissa_bits, transform, \
                         profile, min_size, conv, lstm, gru, cache_mib and cache_dir"
                    )));
                }
            }
        }
        options.aim.target = target(lossless, ratio, mantissa_bits)?;
        if let Some(rounding) = transform {
            if !matches!(options.aim.target, Target::Ratio(_) | Target::Default) {
                return Err(Failure::invalid(
                    "NzExecutionProvider: option transform says how weights are rounded to a size: give ratio or \
                     lossless=0 with it, and not mantissa_bits",
                ));
            }
            options.aim.rounding = rounding;
        }
        options.cache = match cache_mib {
            Some(mib) => Cache::of(mib << 20),
            None => Cache::configured(session_cache)?,
        };
        Ok(options)
    }
}

fn target(lossless: Option<bool>, ratio: Option<f64>, mantissa_bits: Option<u8>) -> Result<Target> {
    let clash = |a, b| {
        Err(Failure::invalid(format!(
            "NzExecutionProvider: options {a} and {b} exclude each other: give one of them"
        )))
    };
    match (lossless, ratio, mantissa_bits) {
        (_, Some(_), Some(_)) => clash("ratio", "mantissa_bits"),
        (Some(true), Some(_), _) => clash("lossless=1", "ratio"),
        (Some(true), _, Some(_)) => clash("lossless=1", "mantissa_bits"),
        (_, Some(ratio), None) => Ok(Target::Ratio(ratio)),
        (_, None, Some(bits)) => Ok(Target::MantissaBits(bits)),
        (Some(false), None, None) => Ok(Target::Default),
        (_, None, None) => Ok(Target::Lossless),
    }
}

fn wrong(name: &str, value: &str, wanted: &str) -> Failure {
    Failure::invalid(format!("NzExecutionProvider: option {name} is '{value}': it must be {wanted}"))
}

fn flag(name: &str, value: &str) -> Result<bool> {
    match value.trim() {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(wrong(name, value, "0 or 1")),
    }
}

fn choice<T: Copy>(name: &str, value: &str, wanted: &str, choices: &[(&str, T)]) -> Result<T> {
    let found = choices.iter().find(|(choice, _)| *choice == value.trim());
    found.map(|&(_, made)| made).ok_or_else(|| wrong(name, value, &format!("one of {wanted}")))
}

fn number<T: std::str::FromStr>(
    name: &str,
    value: &str,
    wanted: &str,
    valid: impl Fn(&T) -> bool,
) -> Result<T> {
    value.trim().parse().ok().filter(valid).ok_or_else(|| wrong(name, value, wanted))
}

/// All of a session's configuration.
///
/// # Safety
/// `options` are live session options of this host.
unsafe fn entries(api: EpApi, options: *const OrtSessionOptions) -> Result<Vec<(String, String)>> {
    let (mut pairs, mut keys, mut values, mut count) = (ptr::null_mut(), ptr::null(), ptr::null(), 0);
    // SAFETY: `options` are live; `pairs` is ours until its release, and keys and values are as many C strings in it.
    unsafe {
        api.check((api.table().GetSessionOptionsConfigEntries)(options, &mut pairs))?;
        (api.table().GetKeyValuePairs)(pairs, &mut keys, &mut values, &mut count);
        let text =
            |list: *const *const c_char, i| CStr::from_ptr(*list.add(i)).to_string_lossy().into_owned();
        let entries = (0..count).map(|i| (text(keys, i), text(values, i))).collect();
        (api.table().ReleaseKeyValuePairs)(pairs);
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(entries: &[(&str, &str)]) -> std::result::Result<Options, String> {
        let prefixed: Vec<_> = entries.iter().map(|(k, v)| (format!("{PREFIX}{k}"), *v)).collect();
        let parsed = Options::parse(prefixed.iter().map(|(k, v)| (k.as_str(), *v)));
        parsed.map_err(|failure| format!("{failure:?}"))
    }

    fn parse(entries: &[(&str, &str)]) -> std::result::Result<Target, String> {
        options(entries).map(|options| options.aim.target)
    }

    #[test]
    fn ways_of_rounding_and_coding_are_those_of_convert() {
        let aim = |entries: &[(&str, &str)]| options(entries).map(|options| options.aim);
        let default = aim(&[]).expect("valid");
        assert_eq!((default.rounding, default.profile), (Rounding::Cut, Profile::Compact));
        for (value, rounding) in
            [("cut", Rounding::Cut), ("grid", Rounding::Grid), (" auto ", Rounding::Auto)]
        {
            for other in [("ratio", "0.5"), ("lossless", "0")] {
                assert!(aim(&[("transform", value), other]).is_ok_and(|aim| aim.rounding == rounding));
            }
            for other in [("lossless", "1"), ("mantissa_bits", "4"), ("profile", "fast")] {
                assert!(aim(&[("transform", value), other]).is_err_and(|e| e.contains("give ratio")));
            }
        }
        assert!(aim(&[("profile", "fast")]).is_ok_and(|aim| aim.profile == Profile::Fast));
        let slow = options(&[("conv", "1"), ("lstm", "0")]).expect("valid").slow;
        assert_eq!(slow, SlowOps { conv: true, lstm: false, gru: false });
    }

    #[test]
    fn targets_are_those_of_convert() {
        assert_eq!(parse(&[]), Ok(Target::Lossless));
        assert_eq!(parse(&[("lossless", "1")]), Ok(Target::Lossless));
        assert_eq!(parse(&[("lossless", "0")]), Ok(Target::Default));
        assert_eq!(parse(&[("ratio", "0.5")]), Ok(Target::Ratio(0.5)));
        assert_eq!(parse(&[("lossless", "0"), ("mantissa_bits", " 7 ")]), Ok(Target::MantissaBits(7)));
    }

    #[test]
    fn wrong_values_are_named_with_the_choices() {
        for (name, value, choices) in [
            ("lossless", "yes", "0 or 1"),
            ("ratio", "1.5", "above 0 and below 1"),
            ("ratio", "half", "above 0 and below 1"),
            ("ratio", "NaN", "above 0 and below 1"),
            ("mantissa_bits", "24", "from 0 to 23"),
            ("min_size", "4 KiB", "bytes"),
            ("cache_mib", "18446744073709551615", "MiB"),
            ("transform", "round", "cut, grid or auto"),
            ("profile", "small", "compact or fast"),
            ("conv", "yes", "0 or 1"),
            ("lstm", "2", "0 or 1"),
            ("ration", "0.5", "ratio, mantissa_bits, transform, profile, min_size, conv, lstm, gru"),
            ("gru", "yes", "0 or 1"),
        ] {
            let message = parse(&[(name, value)]).expect_err(name);
            assert!(message.contains(name) && message.contains(choices), "{message}");
            assert!(message.contains(value) || name == "ration", "{message}");
        }
        assert!(
            parse(&[("lossless", "1"), ("ratio", "0.5")]).is_err_and(|e| e.contains("exclude each other"))
        );
        assert!(parse(&[("mantissa_bits", "3"), ("ratio", "0.5")]).is_err());
    }

    #[test]
    fn the_session_has_its_say() {
        let entries = [(NO_PACKING, "1"), ("session.other", "x"), ("ep.otherprovider.ratio", "x")];
        let options = Options::parse(entries.into_iter()).expect("valid");
        assert!(!options.packs && options.min_size == MIN_SIZE && options.cache.is_none());
    }
}
