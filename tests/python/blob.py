"""A decoder for blobs, written from docs/format.md alone and sharing no code with the product."""

import math
import struct
from dataclasses import dataclass

import numpy as np
import xxhash

MAGIC = b"\x89NZB"
FLOAT32, FLOAT16, BFLOAT16 = 1, 10, 16
MANTISSA_BITS = {FLOAT32: 23, FLOAT16: 10, BFLOAT16: 7}
FIXED = struct.Struct("<4s10BHHQ")


@dataclass
class Blob:
    """A decoded blob: `bits` are the raw bits of the weights in row-major order."""

    dtype: int
    shape: tuple
    mantissa_bits: int
    lossless: bool
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
        if width == 3:
            low, middle, high = (self.plane(count, 1) for _ in range(3))
            return low | middle << 1 | high << 2
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


def slot_bounds(shape, tile):
    """The slots that no block crosses: the ends of the tiles, or of the tensor."""
    if not tile:
        return [0, math.prod(shape)]
    rows, columns = shape
    return [rows * start for start in range(0, columns, tile)] + [rows * columns]


def slot_order(shape, tile):
    """The row-major index of each slot; none when they are the same."""
    if not tile:
        return None
    rows, columns = shape
    index = np.arange(rows * columns).reshape(rows, columns)
    return np.concatenate([index[:, start : start + tile].reshape(-1) for start in range(0, columns, tile)])


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


class HeaderReader:
    """Reads the fields behind the fixed part of a header, one after the other."""

    def __init__(self, data):
        self.data, self.at = data, FIXED.size

    def array(self, count, dtype=np.uint8):
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def number(self):
        """A LEB128 number, as short as it can be."""
        value = shift = 0
        while True:
            byte = int(self.array(1)[0])
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                assert byte or shift == 7, "a number with a needless last byte"
                return value

    def tier_widths(self, count):
        """The width of each tier, from 2 bits each."""
        packed = int.from_bytes(self.array(-(-count // 4)).tobytes(), "little")
        assert packed >> 2 * count == 0
        return [(packed >> 2 * tier & 3) + 1 for tier in range(count)]


def checksum(part):
    return xxhash.xxh3_64_intdigest(part)


def header_end(data):
    """Where the header's checksum of 4 bytes starts; the checksum itself is not looked at."""
    return read_header(data)[-1]


def read_header(data):
    """Shape, tiers, sizes of the block records and their `m`, and where the header's checksum starts."""
    flags, block_length, tile = FIXED.unpack_from(data)[10:13]
    rank, tier_count = data[10:12]
    rest = HeaderReader(data)
    shape = tuple(rest.number() for _ in range(rank))
    tiers = [(width, rest.array((1 << width) - 1)) for width in rest.tier_widths(tier_count)]
    # A block never crosses the end of a tile.
    bounds = slot_bounds(shape, tile)
    blocks = sum(-(-(stop - start) // block_length) for start, stop in zip(bounds, bounds[1:]))
    sizes = rest.array(blocks, "<u2").astype(np.int64) * 4
    mantissas = rest.array(blocks if flags & 2 else 1)
    return shape, tiers, sizes, np.resize(mantissas, blocks), rest.at


def decode(data):
    """Decodes a blob; checks everything that the format says about it."""
    magic, major, minor, dtype, transform, coder, layout, *rest = FIXED.unpack_from(data)
    rank, tier_count, kept, flags, block_length, tile, payload_hash = rest
    assert (magic, major, minor, coder) == (MAGIC, 1, 0, 1) and transform in (1, 2) and flags < 4
    assert rank <= 8 and 1 <= tier_count <= 8 and kept <= MANTISSA_BITS[dtype]
    assert layout in (0, 1) and (tile > 0) == (layout == 1) and tile % 64 == 0
    assert block_length % 64 == 0 and 64 <= block_length <= 4096

    shape, tiers, sizes, mantissas, end = read_header(data)
    assert int.from_bytes(data[end : end + 4], "little") == checksum(data[:end]) & 0xFFFFFFFF
    assert min(shape, default=1) > 0 and mantissas.max() <= MANTISSA_BITS[dtype]
    listed = np.concatenate([symbols for _, symbols in tiers])
    assert len(set(listed.tolist())) == len(listed), "a symbol is listed twice"
    payload_at = -(-(end + 4) // 4) * 4
    assert not any(data[end + 4 : payload_at]) and payload_at + sizes.sum() == len(data)
    payload = np.frombuffer(data, np.uint8, offset=payload_at)
    assert payload_hash == checksum(payload.tobytes())

    starts = np.cumsum([0, *sizes])
    order, bounds = slot_order(shape, tile), slot_bounds(shape, tile)
    words, block = [], 0
    for start, stop in zip(bounds, bounds[1:]):
        for first in range(start, stop, block_length):
            count = min(block_length, stop - first)
            record = payload[starts[block] : starts[block + 1]]
            words.append(block_words(record, count, int(mantissas[block]), tiers))
            block += 1
    slots = np.concatenate(words)
    if order is not None:
        row_major = np.empty_like(slots)
        row_major[order] = slots
        slots = row_major
    bits = to_dtype(denormalised(slots) if transform == 2 else slots, dtype)
    return Blob(dtype, shape, kept, bool(flags & 1), layout == 1, bits)
