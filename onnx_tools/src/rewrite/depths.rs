//! What the blobs of a model take as more of their layers are read: each node says it, so that each kernel knows by
//! itself how much of its blob fits into a budget for all.
//!
//! Budgets are spent in one order: all blobs to the first layer, in the order of their weights, then all to the second,
//! and so on. What has been spent when a blob's turn comes is then all that its node must say.

use std::collections::BTreeMap;

use crate::onnx::WeightId;

/// Bytes of the blobs of a model at each depth, the least first; of one without layers one number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DepthBytes(BTreeMap<WeightId, Vec<u64>>);

impl DepthBytes {
    /// The blobs of these weights, which take so many bytes; none without a number.
    pub fn new(blobs: impl IntoIterator<Item = (WeightId, Vec<u64>)>) -> Self {
        DepthBytes(blobs.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect())
    }

    /// What all blobs take, each read to this depth at most, for every depth that there is; empty without blobs.
    pub(crate) fn totals(&self) -> Vec<i64> {
        let depths = self.0.values().map(Vec::len).max().unwrap_or(0);
        (0..depths).map(|depth| self.0.values().map(|blob| at(blob, depth)).sum()).collect()
    }

    /// For every depth of a weight's blob what all blobs take when it and those before it are read to that depth, and
    /// those behind it to the one before; empty if it has no layers.
    pub(crate) fn of(&self, id: WeightId) -> Vec<i64> {
        let depths = self.0.get(&id).map_or(0, Vec::len);
        let taken = |depth: usize| {
            let of = |(&other, blob): (&WeightId, &Vec<u64>)| {
                at(blob, if other <= id { depth } else { depth.saturating_sub(1) })
            };
            self.0.iter().map(of).sum()
        };
        if depths > 1 { (0..depths).map(taken).collect() } else { Vec::new() }
    }
}

/// What a blob takes at `depth`, or all of it if it has no such depth. Files of 2^63 bytes do not occur.
fn at(blob: &[u64], depth: usize) -> i64 {
    blob[depth.min(blob.len() - 1)] as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_budget_is_spent_in_one_order_and_never_exceeded() {
        let blobs = [vec![10, 30, 70], vec![5], vec![8, 9], vec![20, 25, 100, 101], vec![]];
        let depths = DepthBytes::new(blobs.iter().cloned().enumerate().map(|(i, b)| (WeightId(i), b)));
        assert_eq!(depths.totals(), [43, 69, 184, 185]);
        assert_eq!(depths.of(WeightId(0)), [43, 63, 109]);
        assert_eq!((depths.of(WeightId(1)), depths.of(WeightId(4))), (vec![], vec![]));
        assert_eq!(depths.of(WeightId(2)), [43, 64]);
        assert_eq!(depths.of(WeightId(3)), [43, 69, 184, 185]);
        let mut before = 0;
        for budget in 43..200i64 {
            // Each kernel by itself.
            let taken: u64 = (0..4)
                .map(|i| match depths.of(WeightId(i)).iter().rposition(|&bytes| bytes <= budget) {
                    Some(depth) => blobs[i][depth],
                    None => blobs[i][0],
                })
                .sum();
            assert!(taken <= budget as u64 && taken >= before, "{budget}: {taken}");
            let exact = depths.totals().contains(&budget);
            assert!(!exact || taken == budget as u64, "{budget}: {taken}");
            before = taken;
        }
        assert_eq!(before, 70 + 5 + 9 + 101);
    }
}
