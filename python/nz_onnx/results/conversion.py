"""What came of converting a model and of restoring one, and what a conversion would come to."""

from __future__ import annotations

from dataclasses import dataclass

# Evaluated at run time, by Python 3.9 too: no `X | None`.
from typing import Optional


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
class Candidate:
    """One of the models of a size that :func:`nz_onnx.convert` chose among."""

    calibrated: bool
    """Whether bytes were allotted by what calibration had found; else as if all weights mattered alike."""
    compensated: bool
    """Whether weights on a grid were rounded with compensation."""
    snr_db: Optional[float]
    """How far outputs are above their errors on the inputs left out, in decibels, on average over inputs; None if there are
    no such inputs, or no errors."""
    taken: bool
    """Whether it is the one that was taken."""


@dataclass(frozen=True)
class Trial:
    """How :func:`nz_onnx.convert` chose among models of the size asked for."""

    calibrated_on: int
    """Inputs that weights were calibrated and rounded for."""
    compared_on: int
    """Inputs that had no part in that, by which models were compared."""
    candidates: tuple[Candidate, ...]
    """The models."""


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
    trial: Optional[Trial]
    """What it was chosen among; None without ``calibrate``."""
    totals: Totals
    """Sums."""
    tensors: tuple[Tensor, ...]
    """All weights, in the model's order."""
    warnings: tuple[str, ...]
    """What fell short."""


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
