//! What is known about operators: which inputs may become variable.
//!
//! ONNX Runtime requires some inputs to be constants (the scale of a DequantizeLinear, say) and does not
//! say so in the model, so this is a list of what is known to work, not of what is known to fail.

/// Inputs of an op, by position.
enum Inputs {
    /// These.
    At(&'static [usize]),
    /// All.
    Any,
}

use Inputs::{Any, At};

/// ONNX's own domain.
const ONNX: &[(&str, Inputs)] = &[
    ("Add", Any),
    ("Sub", Any),
    ("Mul", Any),
    ("Div", Any),
    ("Pow", Any),
    ("Min", Any),
    ("Max", Any),
    ("Sum", Any),
    ("Mean", Any),
    ("Mod", Any),
    ("Equal", Any),
    ("Greater", Any),
    ("GreaterOrEqual", Any),
    ("Less", Any),
    ("LessOrEqual", Any),
    ("Where", At(&[1, 2])),
    ("Concat", Any),
    ("Einsum", Any),
    ("MatMul", Any),
    ("Gemm", Any),
    ("Conv", At(&[1, 2])),
    ("ConvTranspose", At(&[1, 2])),
    ("LSTM", At(&[1, 2, 3, 5, 6, 7])),
    ("GRU", At(&[1, 2, 3, 5])),
    ("RNN", At(&[1, 2, 3, 5])),
    ("Gather", At(&[0])),
    ("QLinearConv", At(&[3])),
    ("QLinearMatMul", At(&[3])),
    ("MatMulInteger", At(&[1])),
    ("ConvInteger", At(&[1])),
    ("GatherElements", At(&[0])),
    ("GatherND", At(&[0])),
    ("ScatterElements", At(&[0, 2])),
    ("ScatterND", At(&[0, 2])),
    ("Slice", At(&[0])),
    ("Expand", At(&[0])),
    ("Tile", At(&[0])),
    ("PRelu", At(&[1])),
    ("LayerNormalization", At(&[1, 2])),
    ("RMSNormalization", At(&[1])),
    ("InstanceNormalization", At(&[1, 2])),
    ("GroupNormalization", At(&[1, 2])),
];

/// ONNX Runtime's contrib ops.
const MICROSOFT: &[(&str, Inputs)] = &[
    ("FusedMatMul", At(&[0, 1])),
    ("FusedGemm", At(&[0, 1, 2])),
    ("FusedConv", At(&[1, 2])),
    ("TransposeMatMul", At(&[0, 1])),
    ("Attention", At(&[1, 2])),
    ("MultiHeadAttention", At(&[3])),
    ("BiasGelu", At(&[1])),
    ("FastGelu", At(&[1])),
    // ONNX Runtime must know the dimensions of all of them when it loads the model, and the table of words would be decoded
    // whole for the few rows that are read.
    ("EmbedLayerNormalization", At(&[])),
    ("SkipLayerNormalization", At(&[1, 2, 3, 4])),
    ("SimplifiedLayerNormalization", At(&[1])),
    ("SkipSimplifiedLayerNormalization", At(&[1, 2, 3])),
];

/// ONNX Runtime's ops on blocks of channels, which its optimiser makes; their weights are in blocks already.
const NCHWC: &[(&str, Inputs)] = &[("Conv", At(&[1, 2]))];

/// Whether input `input` of the op works when it is no constant; `None` for an op that is not known.
pub fn accepts_variable(domain: &str, op: &str, input: usize) -> Option<bool> {
    let table = match domain {
        "" => ONNX,
        "com.microsoft" => MICROSOFT,
        "com.microsoft.nchwc" => NCHWC,
        _ => return None,
    };
    let (_, inputs) = table.iter().find(|(name, _)| *name == op)?;
    Some(match inputs {
        Any => true,
        At(positions) => positions.contains(&input),
    })
}

/// Ops whose output changes from run to run although they may have no input at all.
pub fn is_random(op: &str) -> bool {
    matches!(
        op,
        "RandomNormal"
            | "RandomUniform"
            | "RandomNormalLike"
            | "RandomUniformLike"
            | "Multinomial"
            | "Bernoulli"
    )
}
