"""How close a model stays to the original beside other ways to make it as small."""

from __future__ import annotations

from dataclasses import dataclass

# Evaluated at run time, by Python 3.9 too: no `X | None`.
from typing import Optional


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
