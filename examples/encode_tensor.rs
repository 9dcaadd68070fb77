//! Encodes a file of raw weights to a blob: `encode_tensor --dtype float32 --shape 384x256 in.raw out.blob`.
//!
//! Options: `--tile N` for column tiles of that width (default: row-major), `--mantissa-bits K` to round
//! (default: lossless), `--block-len N`, `--profile compact|fast|gpu`.

use std::error::Error;
use std::process::ExitCode;

use nz_onnx::codec::{EncodeOptions, Profile, encode};
use nz_onnx::format::{Dtype, Layout, TensorSpec};

const USAGE: &str = "usage: encode_tensor --dtype float32|float16|bfloat16 --shape AxB.. [--tile N] \
                     [--mantissa-bits K] [--block-len N] [--profile compact|fast|gpu] IN.raw OUT.blob";

fn run() -> Result<(), Box<dyn Error>> {
    let (mut dtype, mut shape, mut layout) = (None, Vec::new(), Layout::RowMajor);
    let (mut options, mut files) = (EncodeOptions::default(), Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if !arg.starts_with("--") {
            files.push(arg);
            continue;
        }
        let value = args.next().ok_or(USAGE)?;
        match arg.as_str() {
            "--dtype" => {
                dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|d| d.name() == value)
            }
            "--shape" => shape = value.split('x').map(str::parse).collect::<Result<Vec<u64>, _>>()?,
            "--tile" => layout = Layout::ColumnTiles { tile: value.parse()? },
            "--mantissa-bits" => options.mantissa_bits = Some(value.parse()?),
            "--block-len" => options.block_len = value.parse()?,
            "--profile" => {
                options.profile = match value.as_str() {
                    "compact" => Profile::Compact,
                    "fast" => Profile::Fast,
                    "gpu" => Profile::Gpu,
                    _ => return Err(USAGE.into()),
                }
            }
            _ => return Err(format!("unknown option {arg}\n{USAGE}").into()),
        }
    }
    let ([input, output], Some(dtype), false) = (files.as_slice(), dtype, shape.is_empty()) else {
        return Err(USAGE.into());
    };
    let weights = std::fs::read(input).map_err(|e| format!("{input}: {e}"))?;
    let blob = encode(&weights, &TensorSpec { dtype, shape, layout }, &options)?;
    std::fs::write(output, &blob).map_err(|e| format!("{output}: {e}"))?;
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("encode_tensor: {error}");
            ExitCode::FAILURE
        }
    }
}
