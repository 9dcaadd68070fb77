//! What nodes apply to sums, element by element.

use crate::ort::api::KernelInfo;
use crate::ort::fence::{Failure, Result};

/// A function that ONNX Runtime fuses into the product or convolution before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    /// Nothing is applied.
    None,
    Relu,
    LeakyRelu {
        alpha: f32,
    },
    Sigmoid,
    Tanh,
    Clip {
        min: f32,
        max: f32,
    },
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
}

impl Activation {
    /// The function of that name, with `parameter(0)` and `parameter(1)` as the node has them; nothing if it is not known.
    fn named(name: &str, parameter: impl Fn(usize) -> Option<f32>) -> Option<Self> {
        let or = |at, default| parameter(at).unwrap_or(default);
        Some(match name {
            "" => Activation::None,
            "Relu" => Activation::Relu,
            "LeakyRelu" => Activation::LeakyRelu { alpha: or(0, 0.01) },
            "Sigmoid" => Activation::Sigmoid,
            "Tanh" => Activation::Tanh,
            "Clip" => Activation::Clip { min: or(0, f32::MIN), max: or(1, f32::MAX) },
            "HardSigmoid" => Activation::HardSigmoid { alpha: or(0, 0.2), beta: or(1, 0.5) },
            _ => return None,
        })
    }

    /// Whether nodes with this attribute `activation` can be run.
    pub fn is_known(name: &str) -> bool {
        Activation::named(name, |_| None).is_some()
    }

    /// That of a `FusedConv` (attribute `activation_params`) or `FusedGemm` (`activation_alpha` and `activation_beta`).
    pub fn of(info: &KernelInfo<'_>) -> Result<Self> {
        let name = info.text(c"activation").unwrap_or_default();
        let listed = info.floats(c"activation_params").unwrap_or_default();
        let parameter = |at: usize| {
            let named = [c"activation_alpha", c"activation_beta"].get(at).and_then(|name| info.float(name));
            listed.get(at).copied().or(named)
        };
        let unknown = || Failure::fail(format!("attribute activation is '{name}', which is not supported"));
        Activation::named(&name, parameter).ok_or_else(unknown)
    }

    /// Applies it to all of `values`.
    pub fn apply(self, values: &mut [f32]) {
        fn each(values: &mut [f32], f: impl Fn(f32) -> f32) {
            values.iter_mut().for_each(|x| *x = f(*x));
        }
        match self {
            Activation::None => {}
            Activation::Relu => each(values, |x| if x < 0.0 { 0.0 } else { x }),
            Activation::LeakyRelu { alpha } => each(values, |x| if x < 0.0 { alpha * x } else { x }),
            Activation::Sigmoid => each(values, sigmoid),
            Activation::Tanh => each(values, tanh),
            // As ONNX Runtime, which lets the upper limit win; NaN stays.
            Activation::Clip { min, max } => each(values, |x| {
                let x = if x < min { min } else { x };
                if x > max { max } else { x }
            }),
            Activation::HardSigmoid { alpha, beta } => {
                each(values, |x| {
                    let x = alpha * x + beta;
                    let x = if x < 0.0 { 0.0 } else { x };
                    if x > 1.0 { 1.0 } else { x }
                });
            }
        }
    }
}

/// The hyperbolic tangent to within 4e-7: the quotient of polynomials that Eigen and ONNX Runtime have, which compilers
/// turn into vector code, as they do not calls of the C library.
#[inline]
pub(crate) fn tanh(x: f32) -> f32 {
    const ABOVE: [f32; 7] = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619e-4,
        4.893_524_6e-3,
    ];
    const BELOW: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    // From here on it is 1. Not `clamp`, so that NaN stays.
    const END: f32 = 9.0;
    let x = if x < -END { -END } else { x };
    let x = if x > END { END } else { x };
    let square = x * x;
    let above = ABOVE.iter().fold(0.0, |sum, c| sum * square + c);
    let below = BELOW.iter().fold(0.0, |sum, c| sum * square + c);
    x * above / below
}

/// `1 / (1 + exp(-x))`, to within 3e-7.
#[inline]
pub(crate) fn sigmoid(x: f32) -> f32 {
    0.5 + 0.5 * tanh(0.5 * x)
}

/// The exponential of numbers up to 0, to within 2e-7; 0 from -87 on, where it would not be a normal number.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1 over factorials.
    const SERIES: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // The logarithm of 2 in two parts, of which the first has few bits.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    // Adding it rounds to a whole number, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -87.0;
    let inside = if x < LEAST { LEAST } else { x };
    let rounded = inside * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let rest = inside - whole * LN_2.0 - whole * LN_2.1;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let value = SERIES.iter().fold(0.0, |sum, c| sum * rest + c) * power;
    if x < LEAST { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_c_library() {
        for step in 0..=900_000 {
            let x = -step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs();
            assert!(if x < -87.0 { exp(x) == 0.0 } else { error <= 2e-7 * exact.max(1e-30) }, "{x}");
        }
        assert!(exp(f32::MIN) == 0.0 && exp(f32::NEG_INFINITY) == 0.0 && exp(0.0) == 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn curves_are_those_of_the_c_library() {
        for step in -400_000..=400_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x);
            assert!((f64::from(tanh(x)) - exact.tanh()).abs() < 4e-7, "tanh {x}");
            assert!((f64::from(sigmoid(x)) - 1.0 / (1.0 + (-exact).exp())).abs() < 3e-7, "sigmoid {x}");
        }
        for x in [f32::INFINITY, f32::MAX] {
            assert!((tanh(x) - 1.0).abs() < 4e-7 && (tanh(-x) + 1.0).abs() < 4e-7);
            assert!((sigmoid(x) - 1.0).abs() < 3e-7 && sigmoid(-x).abs() < 3e-7);
        }
        assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn each_function_is_that_of_onnx() {
        let applied = |name: &str, parameters: &[f32]| {
            let mut values = [-3.0, -0.5, 0.0, 0.25, 8.0];
            let function = Activation::named(name, |at| parameters.get(at).copied());
            function.expect("known").apply(&mut values);
            values
        };
        assert_eq!(applied("", &[]), [-3.0, -0.5, 0.0, 0.25, 8.0]);
        assert_eq!(applied("Relu", &[]), [0.0, 0.0, 0.0, 0.25, 8.0]);
        assert_eq!(applied("LeakyRelu", &[0.5]), [-1.5, -0.25, 0.0, 0.25, 8.0]);
        assert_eq!(applied("Clip", &[-1.0, 6.0]), [-1.0, -0.5, 0.0, 0.25, 6.0]);
        assert_eq!(applied("Clip", &[]), [-3.0, -0.5, 0.0, 0.25, 8.0]);
        assert_eq!(applied("HardSigmoid", &[0.5, 0.5]), [0.0, 0.25, 0.5, 0.625, 1.0]);
        assert_eq!(applied("Tanh", &[])[2], 0.0);
        assert_eq!(applied("Sigmoid", &[])[2], 0.5);
        assert!(Activation::is_known("Relu") && !Activation::is_known("Softplus"));
    }
}
