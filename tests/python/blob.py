"""A decoder for blobs, written from docs/format.md alone and sharing no code with the product."""

import struct
from dataclasses import dataclass

import numpy as np
import xxhash

MAGIC = b"\x89NZB\r\n\x1a\n"
FLOAT32, FLOAT16, BFLOAT16 = 1, 10, 16
MANTISSA_BITS = {FLOAT32: 23, FLOAT16: 10, BFLOAT16: 7}
FIXED = struct.Struct("<8sHHIQQQQQQQBBBBBBBBIIQ")


@dataclass
class Blob:
    """A decoded blob: `bits` are the raw bits of the weights in row-major order."""

    dtype: int
    shape: tuple
    mantissa_bits: int
    column_tiles: bool
    bits: np.ndarray


def cut(bits):
    """The widths of the planes that hold values of so many bits, the most significant first."""
    widths = []
    for width in (8, 4, 2, 1):
        while bits >= width:
            widths.append(width)
            bits -= width
    return widths


class Planes:
    """Reads planes one after the other."""

    def __init__(self, record):
        self.record, self.at = record, 0

    def take(self, size):
        part = self.record[self.at : self.at + size]
        assert len(part) == size, "a plane runs past its block record"
        self.at += size
        return part

    def plane(self, count, width):
        """`count` values of `width` bits."""
        if width == 8:
            return self.take(count)
        if width == 1:
            return np.unpackbits(self.take((count + 7) // 8), count=count, bitorder="little")
        per_byte, mask = 8 // width, (1 << width) - 1
        shifts = (np.arange(per_byte, dtype=np.uint8) * width)[:, None]
        groups, last = divmod(count, 512 // width)
        full = self.take(64 * groups).reshape(groups, 1, 64)
        values = ((full >> shifts) & mask).reshape(-1)
        rest = self.take((last * width + 7) // 8).reshape(1, -1)
        return np.concatenate([values, ((rest >> shifts) & mask).reshape(-1)[:last]])

    def number(self, count, bits):
        """`count` values of any number of bits, from several planes."""
        values = np.zeros(count, np.uint32)
        for width in cut(bits):
            values = (values << np.uint32(width)) | self.plane(count, width)
        return values


def block_words(record, count, mantissa, tiers):
    """The float32 words of one block."""
    planes = Planes(record)
    codes = planes.plane(count, tiers[0][0])
    top = min(mantissa, 7)
    head = planes.number(count, top + 1)
    rest = planes.number(count, mantissa - top)

    symbols = np.zeros(count, np.uint8)
    waiting = np.arange(count)
    for number, (width, listed) in enumerate(tiers):
        if number:
            codes = planes.plane(len(waiting), width)
        known = codes < len(listed)
        symbols[waiting[known]] = listed[codes[known]]
        waiting = waiting[~known]
    symbols[waiting] = planes.plane(len(waiting), 8)
    assert len(record) - planes.at < 4 and not record[planes.at :].any(), "a block record is too long"

    stored = ((head >> 1) << np.uint32(mantissa - top)) | rest
    word = (head & 1) << np.uint32(31) | symbols.astype(np.uint32) << np.uint32(23)
    return word | stored << np.uint32(23 - mantissa)


def slot_order(shape, tile):
    """The row-major index of each slot, and the bounds that no block crosses."""
    count = int(np.prod(shape, dtype=np.int64))
    if not tile:
        return None, [0, count]
    rows, columns = shape
    index = np.arange(count).reshape(rows, columns)
    tiles = [index[:, start : start + tile].reshape(-1) for start in range(0, columns, tile)]
    return np.concatenate(tiles), np.cumsum([0, *(len(part) for part in tiles)]).tolist()


def denormalised(words):
    """The words of a tensor whose subnormals were given exponents of their own, from 232 on."""
    exponent, mantissa = words >> 23 & 0xFF, words & 0x7FFFFF
    marked = (exponent >= 232) & (exponent <= 254)
    top = np.where(marked, exponent - 232, 0).astype(np.uint32)
    subnormal = np.uint32(1) << top | mantissa >> (23 - top)
    return np.where(marked, words & 0x80000000 | subnormal, words).astype(np.uint32)


def to_dtype(words, dtype):
    """The bits that the words stand for in the blob's dtype."""
    if dtype == FLOAT32:
        return words
    if dtype == BFLOAT16:
        assert not (words & 0xFFFF).any()
        return (words >> 16).astype(np.uint16)
    with np.errstate(invalid="ignore"):
        bits = words.view(np.float32).astype(np.float16).view(np.uint16)
    # The conversion may turn a signalling NaN into a quiet one; the format keeps every NaN as it is.
    special = (words & 0x7F800000) == 0x7F800000
    sign, payload = (words >> 16) & 0x8000, (words >> 13) & 0x3FF
    return np.where(special, sign | 0x7C00 | payload, bits).astype(np.uint16)


def decode(data):
    """Decodes a blob; checks everything that the format says about it."""
    fields = FIXED.unpack_from(data)
    magic, major, minor, reserved, header_size, blob_size, payload_at, payload_size = fields[:8]
    payload_hash, decoded_hash, source_hash = fields[8:11]
    dtype, transform, coder, layout, rank, tier_count, kept, zero = fields[11:19]
    block_length, tile, blocks = fields[19:]
    assert (magic, major, minor, reserved, coder, zero) == (MAGIC, 1, 0, 0, 1, 0) and transform in (1, 2)
    assert blob_size == len(data) and payload_at == -(-header_size // 64) * 64
    assert (tile > 0) == (layout == 1) and block_length % 64 == 0 and 64 <= block_length <= 4096

    def checksum(part):
        return xxhash.xxh3_64_intdigest(part)

    end = header_size - 8
    assert struct.unpack_from("<Q", data, end)[0] == checksum(data[:end])
    at = FIXED.size
    shape = struct.unpack_from(f"<{rank}Q", data, at)
    at += 8 * rank
    tiers = []
    for _ in range(tier_count):
        width, at = data[at], at + 1
        listed = np.frombuffer(data, np.uint8, (1 << width) - 1, at)
        at += len(listed)
        tiers.append((width, listed))
    directory = np.frombuffer(data, "<u4", blocks + 1, at).astype(np.int64) * 4
    at += 4 * (blocks + 1)
    mantissas = data[at : at + blocks]
    assert at + blocks == end and directory[0] == 0 and directory[-1] == payload_size
    payload = np.frombuffer(data, np.uint8, payload_size, payload_at)
    assert payload_hash == checksum(payload.tobytes())
    assert not any(data[header_size:payload_at]) and data[payload_at + payload_size :] == bytes(64)

    order, bounds = slot_order(shape, tile)
    words, block = [], 0
    for start, stop in zip(bounds, bounds[1:]):
        for first in range(start, stop, block_length):
            count = min(block_length, stop - first)
            record = payload[directory[block] : directory[block + 1]]
            words.append(block_words(record, count, mantissas[block], tiers))
            block += 1
    assert block == blocks
    slots = np.concatenate(words) if words else np.zeros(0, np.uint32)
    if order is not None:
        row_major = np.empty_like(slots)
        row_major[order] = slots
        slots = row_major
    bits = to_dtype(denormalised(slots) if transform == 2 else slots, dtype)
    assert decoded_hash == checksum(bits.tobytes())
    if kept == MANTISSA_BITS[dtype]:
        assert source_hash == decoded_hash
    return Blob(dtype, shape, kept, layout == 1, bits)
