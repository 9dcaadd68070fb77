//! Parsers of option values.

use crate::pipeline::layering::Layers;

/// `NAME=2,64` of `--shape`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeArg {
    /// Name of the graph input.
    pub name: String,
    /// Its dimensions.
    pub dims: Vec<i64>,
}

/// Bytes, plain or with one of the units B, K/KB/KiB, M/MB/MiB, G/GB/GiB; KB, MB and GB are powers of 1000.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| "expected a number of bytes such as 4096 or 4KiB".to_string())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        other => return Err(format!("unknown unit {other:?}; use B, KiB, MiB, GiB, KB, MB or GB")),
    };
    number.checked_mul(factor).ok_or_else(|| "that is more than 64 bits can count".to_string())
}

/// A ratio above 0 and at most 1.
pub fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(r) if r > 0.0 && r <= 1.0 => Ok(r),
        _ => Err("expected weight bytes after over before, above 0 and at most 1, such as 0.5".to_string()),
    }
}

/// Bits a weight: above 0 and at most 32.
pub fn parse_bits(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(b) if b > 0.0 && b <= 32.0 => Ok(b),
        _ => Err("expected bits a weight, above 0 and at most 32, such as 4.5".to_string()),
    }
}

/// A relative error, 0 or more and below 1.
pub fn parse_error(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(e) if (0.0..1.0).contains(&e) => Ok(e),
        _ => Err("expected a relative error, 0 or more and below 1, such as 0.01".to_string()),
    }
}

/// A ratio of energies in decibels, above 0; "dB" may follow.
pub fn parse_decibels(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches("dB").trim_end().parse::<f64>() {
        Ok(d) if d > 0.0 && d.is_finite() => Ok(d),
        _ => Err("expected decibels, above 0, such as 40".to_string()),
    }
}

/// A finite tolerance, 0 or more.
pub fn parse_tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if t >= 0.0 && t.is_finite() => Ok(t),
        _ => Err("expected a number, 0 or more, such as 1e-4".to_string()),
    }
}

/// Bits at which weights are cut into layers: `3,7,15`.
pub fn parse_layers(text: &str) -> Result<Layers, String> {
    let numbers = text.split(',').map(|number| number.trim().parse().ok()).collect::<Option<Vec<u8>>>();
    Layers::new(numbers.unwrap_or_default())
}

/// `NAME=2,64`; `NAME=` is a scalar.
pub fn parse_shape(text: &str) -> Result<ShapeArg, String> {
    let (name, dims) = text.rsplit_once('=').ok_or("expected NAME=DIMS, such as input_ids=2,64")?;
    let dims = dims
        .split(',')
        .filter(|_| !dims.is_empty())
        .map(|d| d.trim().parse::<i64>().ok().filter(|&d| d >= 0))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| format!("{dims:?} is not a list of dimensions such as 2,64"))?;
    Ok(ShapeArg { name: name.to_string(), dims })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("4KiB"), Ok(4096));
        assert_eq!(parse_bytes("4 kb"), Ok(4000));
        assert_eq!(parse_bytes("2G"), Ok(2 << 30));
        for wrong in ["", "KiB", "-1", "1.5MiB", "1 parsec", "99999999999999999999", "18446744073709551615k"]
        {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ratios() {
        assert_eq!(parse_ratio("0.5"), Ok(0.5));
        assert_eq!(parse_ratio("1"), Ok(1.0));
        for wrong in ["0", "-1", "1.01", "nan", "inf", "half"] {
            assert!(parse_ratio(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn targets() {
        assert_eq!(parse_bits("4.5"), Ok(4.5));
        assert_eq!(parse_error("0"), Ok(0.0));
        assert_eq!(parse_error("1e-3"), Ok(1e-3));
        assert_eq!(parse_decibels("40"), Ok(40.0));
        assert_eq!(parse_decibels("37.5 dB"), Ok(37.5));
        for wrong in ["", "nan", "-1", "few"] {
            assert!(parse_bits(wrong).is_err(), "{wrong}");
            assert!(parse_error(wrong).is_err(), "{wrong}");
            assert!(parse_decibels(wrong).is_err(), "{wrong}");
        }
        assert!(parse_bits("33").is_err() && parse_error("1").is_err() && parse_decibels("inf").is_err());
    }

    #[test]
    fn layers() {
        assert_eq!(parse_layers("3,7, 15"), Ok(Layers::default()));
        for wrong in ["", "3,", "few", "7,3", "1,2,3,4", "23", "-1"] {
            assert!(parse_layers(wrong).is_err_and(|e| e.contains("such as 3,7,15")), "{wrong}");
        }
    }

    #[test]
    fn shapes() {
        assert_eq!(parse_shape("x=2,64"), Ok(ShapeArg { name: "x".into(), dims: vec![2, 64] }));
        assert_eq!(parse_shape("a=b=1"), Ok(ShapeArg { name: "a=b".into(), dims: vec![1] }));
        assert_eq!(parse_shape("sr="), Ok(ShapeArg { name: "sr".into(), dims: vec![] }));
        for wrong in ["x", "x=a", "x=1,,2", "x=-1"] {
            assert!(parse_shape(wrong).is_err(), "{wrong}");
        }
    }
}
