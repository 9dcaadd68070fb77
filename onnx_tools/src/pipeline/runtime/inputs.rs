//! Inputs for a model: given by the user, or random by its input metadata.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use ort::value::{TensorElementType, ValueType};

use super::array::{Array, element_size, elements};
use super::npy;
use crate::onnx::{Error, Result};

/// What a graph input takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: TensorElementType,
    /// Dimensions; -1 where symbolic.
    pub shape: Vec<i64>,
}

impl Slot {
    /// The slot for an input of a session; none if it takes something else than tensors.
    pub fn new(name: &str, value: &ValueType) -> Option<Slot> {
        let ValueType::Tensor { ty, shape, .. } = value else { return None };
        Some(Slot { name: name.to_string(), dtype: *ty, shape: shape.iter().copied().collect() })
    }

    /// Whether it takes integers.
    pub fn is_integer(&self) -> bool {
        use TensorElementType::*;
        matches!(self.dtype, Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64)
    }
}

/// What is open in random inputs: integers, and symbolic dimensions, but the first of an input is 1 all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The size of symbolic dimensions.
    pub size: i64,
    /// Whether those that a fixed dimension comes after are 1.
    pub only_last: bool,
    /// Integers are 0 or more, and below this.
    pub below: u64,
}

/// The inputs of `path`, checked against the model's: an `.npz` file or a folder of `.npy` files for one run, a folder
/// of `.npz` files for one run each, by their names.
///
/// # Errors
/// A file is broken, an input is missing, or dtype or shape is not what the model takes.
pub fn given(path: &Path, slots: &[Slot]) -> Result<Vec<BTreeMap<String, Array>>> {
    let sets = npy::sets(path)?;
    sets.iter().map(|path| one_set(path, slots)).collect()
}

fn one_set(path: &Path, slots: &[Slot]) -> Result<BTreeMap<String, Array>> {
    let mut arrays = npy::read(path)?;
    let mut inputs = BTreeMap::new();
    for slot in slots {
        let array = arrays.remove(&slot.name).ok_or_else(|| {
            let all: Vec<_> = slots.iter().map(|s| s.name.as_str()).collect();
            Error::Usage(format!(
                "{}: has no array for the input {:?}\nhelp: the model's inputs are {}",
                path.display(),
                slot.name,
                all.join(", ")
            ))
        })?;
        let fits = |(&have, &want): (&i64, &i64)| want < 0 || have == want;
        if array.dtype != slot.dtype
            || array.shape.len() != slot.shape.len()
            || !array.shape.iter().zip(&slot.shape).all(fits)
        {
            return Err(Error::Usage(format!(
                "{}: array {:?} is {} {:?}, but the model takes {} {:?}",
                path.display(),
                slot.name,
                array.dtype,
                array.shape,
                slot.dtype,
                slot.shape
            )));
        }
        inputs.insert(slot.name.clone(), array);
    }
    Ok(inputs)
}

/// Random inputs: floats from a normal distribution, small integers as `open` says, ones where a name says "mask".
/// Unless `shapes` has the input, symbolic dimensions are as `open` says.
///
/// # Errors
/// An input has a dtype for which there are no random values, or `shapes` does not fit the model.
pub fn random(
    slots: &[Slot],
    shapes: &BTreeMap<String, Vec<i64>>,
    open: Open,
    seed: u64,
) -> Result<BTreeMap<String, Array>> {
    if let Some(name) = shapes.keys().find(|name| slots.iter().all(|s| s.name != **name)) {
        let all: Vec<_> = slots.iter().map(|s| s.name.as_str()).collect();
        return Err(Error::Usage(format!(
            "--shape {name}: the model has no such input\nhelp: its inputs are {}",
            all.join(", ")
        )));
    }
    let mut inputs = BTreeMap::new();
    for (index, slot) in slots.iter().enumerate() {
        let shape = match shapes.get(&slot.name) {
            Some(shape) if shape.len() != slot.shape.len() => {
                return Err(Error::Usage(format!(
                    "--shape {}={shape:?}: the input has {} dimensions: {:?}",
                    slot.name,
                    slot.shape.len(),
                    slot.shape
                )));
            }
            Some(shape) => shape.clone(),
            None => {
                // The first is mostly the batch.
                let last = slot.shape.iter().rposition(|&d| d >= 0).filter(|_| open.only_last);
                let size = |(i, &d): (usize, &i64)| match d {
                    ..0 if i > last.unwrap_or(0) => open.size,
                    ..0 => 1,
                    fixed => fixed,
                };
                slot.shape.iter().enumerate().map(size).collect()
            }
        };
        let too_large = || Error::Usage(format!("input {:?}: shape {shape:?} is too large", slot.name));
        let size = element_size(slot.dtype).ok_or_else(|| {
            Error::Usage(format!(
                "input {:?} takes {}, for which there are no random values\nhelp: give --inputs",
                slot.name, slot.dtype
            ))
        })?;
        let count = elements(&shape).filter(|n| n.checked_mul(size).is_some_and(|b| b <= 1 << 32));
        let count = count.ok_or_else(too_large)?;
        let mut source = Random(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mask = slot.name.to_ascii_lowercase().contains("mask");
        let mut bytes = Vec::with_capacity(count * size);
        for _ in 0..count {
            source.element(slot.dtype, mask, open.below, &mut bytes);
        }
        inputs.insert(slot.name.clone(), Array { dtype: slot.dtype, shape, bytes });
    }
    Ok(inputs)
}

/// SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        let (a, b) = (self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    fn element(&mut self, dtype: TensorElementType, mask: bool, below: u64, out: &mut Vec<u8>) {
        use TensorElementType::*;
        let float = |random: &mut Random| if mask { 1.0 } else { random.normal() };
        match dtype {
            Float32 => out.extend((float(self) as f32).to_le_bytes()),
            Float64 => out.extend(float(self).to_le_bytes()),
            Float16 => out.extend(f16::from_f64(float(self)).to_le_bytes()),
            Bfloat16 => out.extend(bf16::from_f64(float(self)).to_le_bytes()),
            Bool => out.push(u8::from(mask || self.next() & 1 == 1)),
            other => {
                let value = if mask { 1 } else { self.next() % below };
                out.extend(&value.to_le_bytes()[..element_size(other).unwrap_or(0)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, dtype: TensorElementType, shape: &[i64]) -> Slot {
        Slot { name: name.into(), dtype, shape: shape.to_vec() }
    }

    const ONE: Open = Open { size: 1, only_last: false, below: 10 };

    #[test]
    fn random_inputs_repeat() {
        let slots = [
            slot("x", TensorElementType::Float32, &[-1, 3]),
            slot("ids", TensorElementType::Int64, &[-1]),
            slot("attention_mask", TensorElementType::Int64, &[2]),
        ];
        let shapes = BTreeMap::from([("ids".to_string(), vec![5])]);
        let one = random(&slots, &shapes, ONE, 7).expect("made");
        assert_eq!(one, random(&slots, &shapes, ONE, 7).expect("made"));
        assert_ne!(one, random(&slots, &shapes, ONE, 8).expect("made"));
        assert_eq!(one["x"].shape, [1, 3]);
        assert_eq!(one["ids"].shape, [5]);
        let open = [slot("x", TensorElementType::Float32, &[-1, -1, 3, -1])];
        for (only_last, shape) in [(false, [1, 64, 3, 64]), (true, [1, 1, 3, 64])] {
            let made = random(&open, &BTreeMap::new(), Open { size: 64, only_last, ..ONE }, 7).expect("made");
            assert_eq!(made["x"].shape, shape);
        }
        assert!(one["ids"].numbers().iter().all(|&i| (0.0..10.0).contains(&i)));
        assert_eq!(one["attention_mask"].numbers(), [1.0, 1.0]);
        let bits = random(&slots, &shapes, Open { below: 2, ..ONE }, 7).expect("made");
        assert!(bits["ids"].numbers().iter().all(|&i| (0.0..2.0).contains(&i)));
    }

    #[test]
    fn shapes_must_fit() {
        let slots = [slot("x", TensorElementType::Float32, &[-1, 3])];
        let shapes = |name: &str, dims: &[i64]| BTreeMap::from([(name.to_string(), dims.to_vec())]);
        assert!(random(&slots, &shapes("y", &[1]), ONE, 0).is_err());
        assert!(random(&slots, &shapes("x", &[1]), ONE, 0).is_err());
        assert!(random(&slots, &shapes("x", &[i64::MAX, 3]), ONE, 0).is_err());
        assert!(random(&[slot("s", TensorElementType::String, &[1])], &BTreeMap::new(), ONE, 0).is_err());
    }
}
