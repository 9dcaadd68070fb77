//! How much shared memory kernels need for a block.

use super::super::layout::{LAYER_HEAD, PADDING};
use crate::error::{Error, Result};
use crate::format::{HEAD_BITS, Header, MAX_LAYERS, field_planes, plane_bytes};

/// The shared memory that the largest of some blocks needs.
pub(super) struct Rooms {
    record: usize,
    tail: usize,
    /// What each layer that is read has of a block.
    layers: Vec<usize>,
    /// Mantissas that are put together of record and layers.
    joined: usize,
}

/// Records start at any multiple of 4 of the 16 bytes that are loaded at once.
pub(super) fn staged(bytes: usize) -> usize {
    (bytes + 12).next_multiple_of(16) + PADDING
}

impl Rooms {
    /// For blocks of which `depth` layers are read.
    pub fn new(depth: usize) -> Self {
        Rooms { record: 0, tail: 0, layers: vec![0; depth], joined: 0 }
    }

    /// Counts in block `block`, of `n` weights, of whose raw bits `known` are in record and layers.
    pub fn add(&mut self, header: &Header, block: usize, n: usize, known: u8) -> Result<()> {
        let (tiers, m, len) = (&header.tiers, header.record_bits(block), header.record(block).len());
        let in_head = m.min(HEAD_BITS);
        let planes = field_planes(in_head + 1).chain(field_planes(m - in_head)).chain([tiers[0].width]);
        let fixed: usize = planes.map(|width| plane_bytes(width, n)).sum();
        let longest = tiers[1..].iter().map(|tier| plane_bytes(tier.width, n)).sum::<usize>() + n + 3;
        let tail = len.saturating_sub(fixed);
        if tail > longest {
            return Err(Error::corrupt(format!(
                "record of block {block} is longer than {n} weights can take"
            )));
        }
        self.record = self.record.max(len);
        // Each code of tier 1 takes its width.
        if let Some(tier) = tiers.get(1) {
            self.tail = self.tail.max((8 * tail / usize::from(tier.width)).min(n));
        }
        for (room, layer) in self.layers.iter_mut().zip(&header.layers) {
            *room = (*room).max(layer.block(block).len());
        }
        if known > m {
            // Planes of 8 bits: 7 bits and the sign, the next 8, the last 8.
            self.joined = self.joined.max(n * usize::from((known + 8) / 8));
        }
        Ok(())
    }

    /// Where the layers start.
    pub fn layer_at(&self) -> [u32; MAX_LAYERS] {
        let mut at = staged(self.record);
        let mut places = [0; MAX_LAYERS];
        for (place, room) in places.iter_mut().zip(&self.layers) {
            *place = at as u32;
            at += LAYER_HEAD + staged(*room);
        }
        places
    }

    /// Where mantissas go that are put together.
    pub fn joined_at(&self) -> u32 {
        let layers: usize = self.layers.iter().map(|&room| LAYER_HEAD + staged(room)).sum();
        (staged(self.record) + layers) as u32
    }

    /// Bytes for record, layers and mantissas.
    pub fn all(&self) -> u32 {
        let joined = if self.joined == 0 { 0 } else { self.joined.next_multiple_of(16) + PADDING };
        self.joined_at() + joined as u32
    }

    /// Bytes for the symbols of a tier behind the first, of `tiers`.
    pub fn tail(&self, tiers: usize) -> u32 {
        if tiers == 1 { 0 } else { (self.tail.next_multiple_of(16) + PADDING) as u32 }
    }
}
