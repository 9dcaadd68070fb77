"""What the command answers: the documents of its option ``--json``, with the same names and units.

Sizes are in bytes, times in seconds. Fields that a later command may add are ignored.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass

# Evaluated at run time, by Python 3.9 too: no `X | None`.
from typing import Any, Optional, TypeVar
from collections.abc import Mapping

Document = TypeVar("Document")


@dataclass(frozen=True)
class Input:
    """The file that was read."""

    path: str
    """As given."""
    bytes: int
    """Bytes of the model file, without its external data."""
    sha256: str
    """SHA-256 of the model file, in hexadecimal."""


@dataclass(frozen=True)
class Output:
    """The files that were written."""

    path: str
    """The model."""
    data_path: Optional[str]
    """Its data file, if it has one."""
    bytes: int
    """Bytes of both."""


@dataclass(frozen=True)
class Optimized:
    """How ONNX Runtime optimised a model before it was converted; weights are the optimised model's."""

    level: str
    """"portable" or "native"."""
    ort_version: str
    """Version of the ONNX Runtime that did it."""
    nchwc_block: Optional[int]
    """Channels a block; None if the model runs on any CPU."""
    original_weight_bytes: int
    """Bytes of all weights before it was optimised."""


@dataclass(frozen=True)
class Totals:
    """Sums over all weights of a model."""

    weights: int
    """Weights of the model, of any dtype."""
    compressed: int
    """Those that are compressed."""
    bytes_before: int
    """Bytes of all weights before."""
    bytes_after: int
    """Bytes of all weights after, kept ones included."""
    ratio: float
    """After over before."""
    bits_per_weight: float
    """Bits a weight, on average over the weights that are stored compressed; 0 without any."""
    lossless: bool
    """Whether no weight was changed."""
    max_relative_error: Optional[float]
    """The largest over all weights; in a plan a bound, None where there is none."""
    least_snr_db: Optional[float]
    """The least ``snr_db`` over all weights; None if none is known."""


@dataclass(frozen=True)
class Tensor:
    """One weight of a conversion."""

    name: str
    """Name of the initializer, or of the Constant node's output."""
    dtype: str
    """ONNX dtype: "float32", "int8"."""
    shape: tuple[int, ...]
    """Dimensions."""
    bytes_before: int
    """Bytes before."""
    bytes_after: int
    """Bytes after; 0 for a copy of a weight that is stored elsewhere."""
    bits_per_weight: float
    """``8 * bytes_after`` over the number of weights."""
    encoding: Optional[str]
    """"float-split lossless", "float-split k=12", "grid k=5"; None if kept."""
    lossless: bool
    """Whether the weight comes back bit for bit."""
    max_relative_error: Optional[float]
    """Largest ``|a - b| / |a|``: measured, in a plan a bound, None where there is none; 0 if lossless. A grid bounds
    it for no weight near zero."""
    max_error_to_rms: Optional[float]
    """Largest ``|a - b|`` over the root of the weights' mean square; None if lossless, and in a plan."""
    snr_db: Optional[float]
    """The energy of the weights over that of the errors, in decibels; None if lossless."""
    decision: str
    """"compressed" or "kept"."""
    reason: Optional[str]
    """Why; None where there is nothing to say."""


@dataclass(frozen=True)
class ConvertResult:
    """What :func:`nz_onnx.convert` did."""

    schema: str
    """Name and version of the document."""
    input: Input
    """The model."""
    output: Optional[Output]
    """What was written; None for a dry run."""
    optimized: Optional[Optimized]
    """How the model was optimised first; None if it was not."""
    totals: Totals
    """Sums."""
    tensors: tuple[Tensor, ...]
    """All weights, in the model's order."""
    warnings: tuple[str, ...]
    """What fell short."""


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


@dataclass(frozen=True)
class Consumer:
    """A node that reads a weight."""

    node: str
    """Name of the node; may be empty."""
    op: str
    """Its op type."""
    becomes: Optional[str]
    """The op that will read the blob instead; None if kept."""


@dataclass(frozen=True)
class PlannedTensor(Tensor):
    """One weight of a plan: sizes are upper bounds, nothing is encoded yet."""

    consumers: tuple[Consumer, ...]
    """Who reads it."""
    sensitivity: Optional[float]
    """Error of the outputs for an error of the weight, both as energy over energy; None without ``calibrate``."""


@dataclass(frozen=True)
class Point:
    """A place on the curve of size against error: what ``size`` would give with so many bytes."""

    bytes_after: int
    """Bytes of all weights, kept ones included: an upper bound."""
    ratio: float
    """The same over the bytes before."""
    bits_per_weight: float
    """Bits a weight, on average over those that are compressed."""
    max_relative_error: Optional[float]
    """The most that a weight changes by, over itself; None where a grid is among the encodings."""
    least_snr_db: Optional[float]
    """The least exact weight's energy over that of its error, in decibels; None if all are lossless."""
    output_snr_db: Optional[float]
    """The same of the outputs, in decibels, as far as the weights tell: what bytes were allotted for."""


@dataclass(frozen=True)
class PlanResult:
    """What :func:`nz_onnx.convert` would do."""

    schema: str
    """Name and version of the document."""
    input: Input
    """The model."""
    optimized: Optional[Optimized]
    """How it was optimised first; None if it was not."""
    totals: Totals
    """Sums."""
    tensors: tuple[PlannedTensor, ...]
    """All weights, in the model's order."""
    curve: tuple[Point, ...]
    """What there is to choose from, from lossless down."""
    warnings: tuple[str, ...]
    """What falls short."""


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


@dataclass(frozen=True)
class BlobCheck:
    """One compressed weight, checked."""

    name: str
    """The weight."""
    checksum_ok: bool
    """Whether header, payload and decoded weight have the checksums stated."""
    matches_original: Optional[bool]
    """Whether it agrees with the original's weight; None if that was not asked for."""
    lossless: bool
    """Whether it is lossless."""
    max_relative_error: Optional[float]
    """Largest relative error against the original; None if not compared."""
    snr_db: Optional[float]
    """The energy of the weights over that of the errors, in decibels; None if lossless or not compared."""
    problem: Optional[str]
    """What is wrong."""


@dataclass(frozen=True)
class OutputCheck:
    """One output of both models."""

    name: str
    """Name of the graph output."""
    shape: Optional[tuple[int, ...]]
    """Its dimensions in this run; None if it is no tensor."""
    max_abs_error: Optional[float]
    """Largest absolute difference; None if it is not a finite number."""
    max_error_to_largest: Optional[float]
    """The same over the output's largest magnitude."""
    snr_db: Optional[float]
    """The original's energy over that of the differences, in decibels; None if there are no differences."""
    least_cosine: Optional[float]
    """The least cosine of a row, along the last dimension, and the original's; None for what is not float."""
    top1_agreement: Optional[float]
    """The share of rows whose largest element is the original's; None if the output does not look like logits."""
    top5_agreement: Optional[float]
    """The share of the original's five largest elements of a row that are among the row's five largest, on average;
    None as for ``top1_agreement``."""
    within_tolerance: Optional[bool]
    """Whether it is within the tolerance; None without one."""
    skipped: Optional[str]
    """Why it was not compared."""
    problem: Optional[str]
    """What is wrong."""


@dataclass(frozen=True)
class RunCheck:
    """The runs of both models."""

    ort_lib: str
    """libonnxruntime used."""
    library: str
    """libnz_onnx registered."""
    custom_nodes: int
    """Nodes of domain ``nz`` in the session."""
    runs: int
    """Runs of each model, with inputs of their own."""
    tolerance: Optional[float]
    """Largest error allowed; None: reported only."""
    own_error: Optional[float]
    """What ONNX Runtime's optimisations change the original's outputs by, to the largest; measured where the default
    tolerance was missed, which is then twice that."""
    original_seconds: float
    """Seconds of the original's runs, without session creation."""
    converted_seconds: float
    """Seconds of the converted model's runs."""
    outputs: tuple[OutputCheck, ...]
    """The outputs."""


@dataclass(frozen=True)
class VerifyResult:
    """What :func:`nz_onnx.verify` found."""

    schema: str
    """Name and version of the document."""
    path: str
    """The converted model."""
    original: Optional[str]
    """The original, if given."""
    compared_with: Optional[str]
    """What weights were compared with: the original, or the original as optimised."""
    not_compared: Optional[str]
    """Why they were not, although an original was given."""
    ok: bool
    """Whether all checks passed."""
    blobs: tuple[BlobCheck, ...]
    """The compressed weights."""
    run: Optional[RunCheck]
    """The runs, if asked for."""
    problems: tuple[str, ...]
    """Failed checks that belong to no single weight or output."""


@dataclass(frozen=True)
class RestoreResult:
    """What :func:`nz_onnx.restore` wrote."""

    schema: str
    """Name and version of the document."""
    input: str
    """The converted model."""
    output: Output
    """What was written."""
    weights: int
    """Weights decoded."""
    identical: bool
    """Whether the model is byte-identical to the one that was converted."""
    rounded: tuple[str, ...]
    """Weights that are not, because they had been rounded."""
    optimized: Optional[str]
    """The level at which ONNX Runtime had optimised the model before it was converted."""


@dataclass(frozen=True)
class ClosenessResult:
    """How close the outputs of a model are to the original's, over all runs."""

    snr_db: Optional[float]
    """The original's energy over that of the differences, in decibels; of several outputs the mean of the shares. None
    if there are no differences, or some that are not finite."""
    exact: bool
    """Whether there are no differences."""
    least_cosine: float
    """The least cosine of a row and the original's."""
    top1: Optional[float]
    """The share of rows whose largest element is the original's; None if no output looks like logits."""
    top5: Optional[float]
    """The share of the five largest elements of a row that are among the five largest, on average."""


@dataclass(frozen=True)
class Compared:
    """An alternative to a model, and a conversion that stores the same weights in as many bytes."""

    name: str
    """Its name, as "fp16"."""
    title: str
    """What it is, in words."""
    weight_bytes: Optional[int]
    """Bytes of all weights; None if it could not be made."""
    closeness: Optional[ClosenessResult]
    """How close its outputs are; None if it could not be made."""
    ours: Optional[ClosenessResult]
    """How close those of the conversion are; None if there is no conversion of that size."""
    problem: Optional[str]
    """Why something is missing."""


@dataclass(frozen=True)
class CompareResult:
    """What :func:`nz_onnx.compare` found."""

    schema: str
    """Name and version of the document."""
    path: str
    """The model."""
    runs: int
    """Runs of each model."""
    weight_bytes: int
    """Bytes of all weights of the model."""
    alternatives: tuple[Compared, ...]
    """The alternatives, in the order asked for."""


@dataclass(frozen=True)
class SessionStats:
    """What the execution provider did for one session."""

    schema: str
    """Name and version of the document."""
    provider: str
    """The provider's name."""
    version: str
    """Version of the library."""
    process: int
    """The process that the session was made in."""
    weights: int
    """Weights that the provider compressed."""
    bytes_before: int
    """Their bytes before."""
    bytes_after: int
    """Their bytes after."""
    seconds: float
    """Seconds that compressing them took."""


def from_document(kind: type[Document], document: object, place: str = "") -> Document:
    """A result of this kind from a parsed JSON document; unknown fields are ignored.

    Raises:
        ValueError: a field is missing or of another type; the message names it.
    """
    value = _read(kind, document, place or kind.__name__)
    return typing.cast(Document, value)


def _read(kind: Any, value: object, place: str) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        return None if value is None else _read(arguments[0], value, place)
    if origin is tuple:
        items = _expect(value, list, place)
        return tuple(_read(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        entries = _expect(value, dict, place)
        return {key: _read(arguments[1], item, f"{place}.{key}") for key, item in entries.items()}
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, _expect(value, dict, place), place)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(value, kind, place)


def _read_fields(kind: Any, document: Mapping[str, object], place: str) -> object:
    types = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    missing = [name for name in names if name not in document]
    if missing:
        raise ValueError(f"{place}: no field {missing[0]!r}")
    return kind(**{name: _read(types[name], document[name], f"{place}.{name}") for name in names})


def _expect(value: Any, kind: Any, place: str) -> Any:
    # True is an int to Python, but no count.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{place}: expected {kind.__name__}, found {value!r}")
    return value
