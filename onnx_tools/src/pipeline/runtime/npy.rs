//! NumPy's `.npy` and `.npz` files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use ort::value::TensorElementType;

use super::array::{Array, element_size, elements};
use crate::onnx::{Error, Result};

/// Largest array that is read, so that a small zip cannot fill the memory.
const LARGEST: u64 = 4 << 30;

/// The places that hold arrays for one run each: the `.npz` files of a folder, in the order of their names, or `path`
/// itself.
///
/// # Errors
/// The folder cannot be listed.
pub fn sets(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(|e| Error::io(path, "list", e))? {
            files.push(entry.map_err(|e| Error::io(path, "list", e))?.path());
        }
        files.retain(|file| file.extension().is_some_and(|e| e == "npz"));
        files.sort();
    }
    Ok(if files.is_empty() { vec![path.to_path_buf()] } else { files })
}

/// Reads the arrays of an `.npz` file, or of the `.npy` files of a folder, by name.
///
/// # Errors
/// The files cannot be read, or hold something that is no array ONNX Runtime takes.
pub fn read(path: &Path) -> Result<BTreeMap<String, Array>> {
    if path.is_dir() { read_folder(path) } else { read_npz(path) }
}

fn read_folder(folder: &Path) -> Result<BTreeMap<String, Array>> {
    let mut arrays = BTreeMap::new();
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, "list", e))?.path();
        if path.extension().is_some_and(|e| e == "npy")
            && let Some(name) = path.file_stem()
        {
            let file = File::open(&path).map_err(|e| Error::io(&path, "open", e))?;
            arrays.insert(name.to_string_lossy().into_owned(), parse(&read_all(file, &path)?, &path, "")?);
        }
    }
    Ok(arrays)
}

fn read_npz(path: &Path) -> Result<BTreeMap<String, Array>> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let bad = |e: zip::result::ZipError| Error::corrupt(path, format!("not an .npz file: {e}"));
    let mut archive = zip::ZipArchive::new(file).map_err(bad)?;
    let mut arrays = BTreeMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(bad)?;
        let member = entry.name().map_err(bad)?.into_owned();
        if let Some(name) = member.strip_suffix(".npy") {
            arrays.insert(name.to_string(), parse(&read_all(entry, path)?, path, &member)?);
        }
    }
    Ok(arrays)
}

fn read_all(source: impl Read, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let n =
        source.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read an array", e))?;
    if n as u64 > LARGEST {
        return Err(Error::unsupported(path, "an array has more than 4 GiB; use smaller inputs"));
    }
    Ok(bytes)
}

fn parse(bytes: &[u8], path: &Path, member: &str) -> Result<Array> {
    parse_npy(bytes).map_err(|what| {
        let place = if member.is_empty() { String::new() } else { format!("{member}: ") };
        Error::corrupt(path, format!("{place}{what}"))
    })
}

/// Parses one `.npy` file: magic, version, length of the header, a Python dict, the elements.
fn parse_npy(bytes: &[u8]) -> std::result::Result<Array, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("not a .npy file: its magic is missing")?;
    let truncated = || "the .npy header is cut short".to_string();
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(truncated)?;
    let (length, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(n, r)| (usize::from(u16::from_le_bytes(*n)), r)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(n, r)| (u32::from_le_bytes(*n) as usize, r)),
        other => return Err(format!(".npy version {other} is not known")),
    }
    .ok_or_else(truncated)?;
    let (header, data) = rest.split_at_checked(length).ok_or_else(truncated)?;
    let header = std::str::from_utf8(header).map_err(|_| "the .npy header is not text")?;

    let descr = value_of(header, "descr").and_then(|v| v.strip_prefix('\'')).and_then(|v| v.split_once('\''));
    let descr = descr.ok_or("the .npy header has no simple dtype")?.0;
    let dtype = dtype(descr).ok_or_else(|| format!("dtype {descr:?} is not one that is read here"))?;
    let shape = value_of(header, "shape").and_then(|v| v.strip_prefix('(')).and_then(|v| v.split_once(')'));
    let shape = shape
        .and_then(|(dims, _)| {
            dims.split(',')
                .map(str::trim)
                .filter(|d| !d.is_empty())
                .map(|d| d.parse().ok())
                .collect::<Option<Vec<i64>>>()
        })
        .ok_or("the .npy header has no shape")?;
    if shape.len() > 1 && value_of(header, "fortran_order").is_some_and(|v| v.starts_with("True")) {
        return Err("the array is in Fortran order; save numpy.ascontiguousarray(x)".to_string());
    }
    let expected = elements(&shape).and_then(|n| n.checked_mul(element_size(dtype)?));
    if expected != Some(data.len()) {
        return Err(format!("shape {shape:?} does not fit {} bytes of data", data.len()));
    }
    Ok(Array { dtype, shape, bytes: data.to_vec() })
}

/// What stands behind `'key':` in the header's dict.
fn value_of<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, behind) = header.split_once(&format!("'{key}'"))?;
    Some(behind.trim_start().strip_prefix(':')?.trim_start())
}

fn dtype(descr: &str) -> Option<TensorElementType> {
    use TensorElementType::*;
    Some(match descr {
        "<f2" => Float16,
        "<f4" => Float32,
        "<f8" => Float64,
        "|b1" => Bool,
        "|i1" => Int8,
        "|u1" => Uint8,
        "<i2" => Int16,
        "<u2" => Uint16,
        "<i4" => Int32,
        "<u4" => Uint32,
        "<i8" => Int64,
        "<u8" => Uint64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn reads_what_numpy_writes() {
        let bytes =
            npy("{'descr': '<i4', 'fortran_order': False, 'shape': (2, 1), }\n", &[1, 0, 0, 0, 2, 0, 0, 0]);
        let array = parse_npy(&bytes).expect("valid");
        assert_eq!((array.dtype, array.shape), (TensorElementType::Int32, vec![2, 1]));
        let scalar = npy("{'descr': '|b1', 'fortran_order': False, 'shape': (), }\n", &[1]);
        assert_eq!(parse_npy(&scalar).expect("valid").shape, Vec::<i64>::new());
    }

    #[test]
    fn every_cut_is_an_error() {
        let bytes = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n", &[0; 4]);
        assert!(parse_npy(&bytes).is_ok());
        for n in 0..bytes.len() {
            assert!(parse_npy(&bytes[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn what_is_not_read_is_named() {
        let objects = npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", &[]);
        assert!(parse_npy(&objects).is_err_and(|e| e.contains("|O")));
        let fortran = npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }\n", &[0; 4]);
        assert!(parse_npy(&fortran).is_err_and(|e| e.contains("Fortran")));
        let huge =
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9), }\n", &[0; 4]);
        assert!(parse_npy(&huge).is_err());
    }
}
