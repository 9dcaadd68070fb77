"""What came of checking a converted model, and of running it beside the original."""

from __future__ import annotations

from dataclasses import dataclass

# Evaluated at run time, by Python 3.9 too: no `X | None`.
from typing import Optional


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
    compensated: bool
    """Whether it was rounded so as to make good errors of other weights: its own may be more than half a step of its grid."""
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
