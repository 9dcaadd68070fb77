"""What a converted model, a plain one or a bare blob holds."""

from __future__ import annotations

from dataclasses import dataclass

# Evaluated at run time, by Python 3.9 too: no `X | None`.
from typing import Optional


@dataclass(frozen=True)
class Tier:
    """One tier of a blob's cascade."""

    width: int
    """Bits a code."""
    symbols: tuple[int, ...]
    """Exponents that have a code."""


@dataclass(frozen=True)
class Blob:
    """One compressed weight."""

    name: Optional[str]
    """Initializer that holds it; None for a bare file."""
    weights: tuple[str, ...]
    """The weights that it stands for."""
    format: str
    """Format version, "1.0"."""
    dtype: str
    """dtype of the weight."""
    shape: tuple[int, ...]
    """Shape of the weight."""
    layout: str
    """"row-major", or "column-tiles 256"."""
    block_len: int
    """Weights a block."""
    tiers: tuple[Tier, ...]
    """The cascade."""
    encoding: str
    """"float-split lossless", "float-split k=12", "grid k=5"."""
    mantissa_bits: int
    """Mantissa bits kept; on a grid, raw bits of a level."""
    weight_bytes: int
    """Bytes of the weight."""
    bytes: int
    """Bytes of the blob."""
    bits_per_weight: float
    """``8 * bytes`` over the number of weights."""
    lossless: bool
    """Whether the weight comes back bit for bit."""
    checksum_ok: bool
    """Whether the payload has the checksum that the header states."""


@dataclass(frozen=True)
class PlainWeight:
    """A weight that is not compressed."""

    name: str
    """Name of the initializer."""
    dtype: str
    """ONNX dtype."""
    shape: tuple[int, ...]
    """Dimensions."""
    bytes: int
    """Bytes."""


@dataclass(frozen=True)
class InspectResult:
    """What :func:`nz_onnx.inspect` found."""

    schema: str
    """Name and version of the document."""
    path: str
    """The file."""
    bytes: int
    """Its bytes."""
    kind: str
    """"converted", "plain" or "blob"."""
    metadata: dict[str, str]
    """``nz.*`` entries of the model's metadata."""
    blobs: tuple[Blob, ...]
    """The compressed weights."""
    weights: tuple[PlainWeight, ...]
    """The others."""
