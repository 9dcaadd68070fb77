//! Layers, one value at a time.

use xxhash_rust::xxh3::xxh3_64;

use super::check;
use super::header::{Dtype, Header};
use super::reader::Reader;
use super::record::read_field;

/// What a header says of layers.
#[derive(Default)]
pub(super) struct Layers {
    /// The most raw bits in a record.
    base_bits: usize,
    /// Raw bits with each layer, and the hash of its bytes.
    entries: Vec<(usize, u64)>,
}

/// A layer that is being read.
pub(super) struct Layer<'a> {
    from: usize,
    to: usize,
    bytes: Reader<'a>,
}

impl Layers {
    pub(super) fn read(r: &mut Reader) -> Result<Layers, String> {
        let (base_bits, count) = (r.size(1)?, r.size(1)?);
        check((1..=3).contains(&count), "number of layers")?;
        let entries = (0..count).map(|_| Ok((r.size(1)?, r.uint(8)?))).collect::<Result<Vec<_>, String>>()?;
        let mut from = base_bits;
        for &(bits, _) in &entries {
            check(bits > from && bits <= 23, "bits of a layer")?;
            from = bits;
        }
        Ok(Layers { base_bits, entries })
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.entries.is_empty()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Raw bits of a weight in a record, where its block has `m`.
    pub(super) fn in_record(&self, m: usize) -> usize {
        if self.any() { m.min(self.base_bits) } else { m }
    }

    /// The most raw bits there may be in a block.
    pub(super) fn most(&self) -> Option<usize> {
        self.entries.last().map(|&(bits, _)| bits)
    }

    /// Raw bits that are known of a weight with `m` of them, with so many layers.
    pub(super) fn known(&self, depth: usize, m: usize) -> usize {
        match depth.checked_sub(1) {
            _ if depth == self.entries.len() => m,
            None => m.min(self.base_bits),
            Some(last) => m.min(self.entries[last].0),
        }
    }
}

impl Header {
    /// The layers of a blob whose records end at `end`, the first `depth` of them to be read; all must be there.
    pub(super) fn open_layers<'a>(
        &self,
        blob: &'a [u8],
        mut end: usize,
        depth: usize,
    ) -> Result<Vec<Layer<'a>>, String> {
        let (mut layers, mut from) = (Vec::new(), self.layers.base_bits);
        for (i, &(to, hash)) in self.layers.entries.iter().enumerate() {
            let (mut len, mut slot) = (0, 0);
            for &m in &self.widths {
                let n = self.block_slots(slot);
                len += bytes_of(from.min(m), to.min(m), n);
                slot += n;
            }
            let (before, start) = (end, end.next_multiple_of(4096));
            end = start.checked_add(len).filter(|&end| end <= blob.len()).ok_or("truncated")?;
            if i < depth {
                let bytes = &blob[start..end];
                check(xxh3_64(bytes) == hash, "checksum of a layer differs")?;
                check(blob[before..start].iter().all(|&b| b == 0), "padding before a layer")?;
                layers.push(Layer { from, to, bytes: Reader { bytes, at: 0 } });
            }
            from = to;
        }
        check(end == blob.len(), "blob size")?;
        Ok(layers)
    }

    /// Puts what the layers have for the next block, of `m` raw bits, into its words.
    pub(super) fn refine(&self, layers: &mut [Layer], m: usize, words: &mut [u32]) -> Result<(), String> {
        for layer in &mut *layers {
            for (first, end) in pieces(layer.from.min(m), layer.to.min(m)) {
                let bits = read_field(&mut layer.bytes, end - first, words.len())?;
                words.iter_mut().zip(bits).for_each(|(word, bits)| *word |= bits << (23 - end));
            }
            let at = layer.bytes.at;
            layer.bytes.take(at.next_multiple_of(4) - at)?;
        }
        let known = self.layers.known(layers.len(), m);
        if self.grid.is_none() && known < m {
            for word in words {
                let least = if self.dtype == Dtype::F16 { 113 } else { 1 };
                *word |= if *word >> 23 & 255 >= least { 1 << (22 - known) } else { 0 };
            }
        }
        Ok(())
    }
}

/// The raw bits `from..to`, counted from the top, in pieces that are in one byte each.
fn pieces(from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> {
    let pieces = [(0, 7), (7, 15), (15, 23)].into_iter();
    pieces.map(move |(first, end)| (first.max(from), end.min(to))).filter(|(first, end)| first < end)
}

/// Bytes of `n` weights in a layer that has their raw bits `from..to`.
fn bytes_of(from: usize, to: usize, n: usize) -> usize {
    let planes = pieces(from, to)
        .flat_map(|(first, end)| [8, 4, 2, 1].into_iter().filter(move |&width| (end - first) & width != 0));
    planes.map(|width| (n * width).div_ceil(8)).sum::<usize>().next_multiple_of(4)
}
