//! Encodes a file of raw weights to a blob: `encode_tensor --dtype float32 --shape 384x256 in.raw out.blob`.
//!
//! Options: `--tile N` for column tiles of that width (default: row-major), `--mantissa-bits K` to round
//! (default: lossless), `--block-len N`, `--profile compact|fast|gpu`, `--layers A,B` for layers from these numbers of raw bits
//! on, `--codebook K` for codebooks as coarse as a grid of `K` raw bits.

use std::error::Error;
use std::process::ExitCode;

use nz_onnx::codec::{EncodeOptions, GridStep, Profile, encode, encode_as, layer, survey_codebooks};
use nz_onnx::format::{Dtype, Layout, TensorSpec};

const USAGE: &str = "usage: encode_tensor --dtype float32|float16|bfloat16|uint8|int8 --shape AxB.. [--tile N] \
                     [--mantissa-bits K] [--block-len N] [--profile compact|fast|gpu] [--layers A,B] [--codebook K] \
                     IN.raw OUT.blob";

fn run() -> Result<(), Box<dyn Error>> {
    let (mut dtype, mut shape, mut layout) = (None, Vec::new(), Layout::RowMajor);
    let (mut options, mut files) = (EncodeOptions::default(), Vec::new());
    let (mut layers, mut codebook) = (Vec::new(), None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if !arg.starts_with("--") {
            files.push(arg);
            continue;
        }
        let value = args.next().ok_or(USAGE)?;
        match arg.as_str() {
            "--dtype" => {
                let all = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::U8, Dtype::I8];
                dtype = all.into_iter().find(|d| d.name() == value)
            }
            "--shape" => shape = value.split('x').map(str::parse).collect::<Result<Vec<u64>, _>>()?,
            "--tile" => layout = Layout::ColumnTiles { tile: value.parse()? },
            "--mantissa-bits" => options.mantissa_bits = Some(value.parse()?),
            "--block-len" => options.block_len = value.parse()?,
            "--layers" => layers = value.split(',').map(str::parse).collect::<Result<Vec<u8>, _>>()?,
            "--codebook" => codebook = Some(GridStep { cell: 0, raw_bits: value.parse()? }),
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
    let spec = TensorSpec { dtype, shape, layout };
    let mut blob = match codebook {
        Some(step) => {
            let survey = survey_codebooks(&weights, &spec, &options)?.ok_or("no weights for codebooks")?;
            encode_as(&weights, &spec, options.block_len, &survey.coding(step))?
        }
        None => encode(&weights, &spec, &options)?,
    };
    if !layers.is_empty() {
        blob = layer(&blob, &layers)?.ok_or("no bits for layers")?;
    }
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
