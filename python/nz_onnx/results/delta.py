"""What came of storing a model as a delta to a base, and what a delta file holds."""

from __future__ import annotations

from dataclasses import dataclass

# Evaluated at run time, by Python 3.9 too: no `X | None`.
from typing import Optional

from .conversion import Input


@dataclass(frozen=True)
class DeltaTensor:
    """One weight of a delta file."""

    name: str
    """Its name."""
    dtype: str
    """Its dtype."""
    shape: tuple[int, ...]
    """Its dimensions."""
    bytes_before: int
    """Bytes of its elements."""
    bytes_after: int
    """Bytes that it takes in the delta file."""
    bits_per_weight: float
    """The latter in bits, over the elements."""
    encoding: str
    """"base" (the base has the same bytes), "delta xor", "delta difference", "float-split lossless", "deflate" or "kept"."""


@dataclass(frozen=True)
class DeltaResult:
    """What :func:`nz_onnx.convert` did with a base that is not converted."""

    schema: str
    """Name and version of the document."""
    input: Input
    """The model."""
    base: Input
    """The model that it is a delta to."""
    output: Optional[str]
    """The file written; None for a dry run."""
    bytes_before: int
    """Bytes of the model's files."""
    bytes_after: int
    """Bytes of the delta file."""
    ratio: float
    """After over before."""
    tensors: tuple[DeltaTensor, ...]
    """All weights, in the order in which they lie in the model's files."""


@dataclass(frozen=True)
class DeltaFile:
    """A file that a delta file names."""

    name: str
    """Of a model its name, of a data file the location by which the model calls it."""
    bytes: int
    """Its bytes."""
    sha256: str
    """SHA-256, in hexadecimal."""


@dataclass(frozen=True)
class DeltaPart:
    """A weight of a delta file, or what lies between weights."""

    file: int
    """Index among the files that are restored."""
    weight: Optional[str]
    """Name of the weight; None between weights."""
    dtype: Optional[str]
    """Its dtype, where it is stored as a blob."""
    shape: Optional[tuple[int, ...]]
    """Its dimensions, likewise."""
    bytes_before: int
    """Bytes in the model."""
    bytes_after: int
    """Bytes in the delta file."""
    encoding: str
    """As in :class:`DeltaTensor`; "delta" where a blob is too damaged to say more."""
    checksum_ok: Optional[bool]
    """Whether a blob has the checksums that it states; None of what is no blob."""


@dataclass(frozen=True)
class DeltaInspectResult:
    """What :func:`nz_onnx.inspect_delta` found."""

    schema: str
    """Name and version of the document."""
    path: str
    """The delta file."""
    bytes: int
    """Its bytes."""
    tool: str
    """The tool that wrote it."""
    base: tuple[DeltaFile, ...]
    """The base's files, its model first."""
    files: tuple[DeltaFile, ...]
    """The files that it restores, the model first."""
    parts: tuple[DeltaPart, ...]
    """What those consist of, in order."""


@dataclass(frozen=True)
class DeltaFileCheck(DeltaFile):
    """What came of restoring one file."""

    problem: Optional[str]
    """What is wrong; None if it comes back with its SHA-256."""


@dataclass(frozen=True)
class DeltaVerifyResult:
    """What :func:`nz_onnx.verify_delta` found."""

    schema: str
    """Name and version of the document."""
    path: str
    """The delta file."""
    base: Optional[str]
    """The base that was found."""
    ok: bool
    """Whether all files come back."""
    files: tuple[DeltaFileCheck, ...]
    """Every file that it restores."""
