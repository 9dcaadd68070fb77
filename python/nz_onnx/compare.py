"""A model beside what ONNX Runtime's own tools make of it, at the same bytes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Optional, Union
from collections.abc import Sequence

from . import models
from .errors import NzError, RatioError, UsageError
from .library import get_library_path
from .results import ClosenessResult, CompareResult, Compared

StrPath = Union[str, "os.PathLike[str]"]

DEFAULT = ("fp16", "int8", "int4")


def compare(
    path: StrPath,
    inputs: StrPath,
    against: Sequence[str] = DEFAULT,
    *,
    transform: str = "auto",
    calibrate: Optional[StrPath] = None,
) -> CompareResult:
    """Makes alternatives to a model with ONNX Runtime's own tools, converts it to as many bytes, and runs all of them.

    Each alternative is compared on the weights that it stores in another way: the conversion changes those, and no
    others. Needs the packages onnx, onnxruntime and what the tools need (onnx-ir and sympy).

    >>> result = nz_onnx.compare("model.onnx", "inputs", ["fp16", "int4"])
    >>> for one in result.alternatives:
    ...     print(one.name, one.weight_bytes, one.closeness.snr_db, one.ours.snr_db)

    Args:
        path: The ONNX model, not converted.
        inputs: An .npz file with one array per graph input, or a folder of such files, one run each.
        against: Names of alternatives: "fp16"; "int8" and "int8-channel", dynamic; "int8-weights" and
            "int8-weights-channel"; "int8-block32", "int8-block128", "int4" and "int4-block128", MatMulNBits; "nf4".
        transform: As in :func:`nz_onnx.convert`.
        calibrate: As there.

    Raises:
        UsageError: a name is not one of those, or a package is missing.
        NzError: the model or the inputs cannot be read or run.
    """
    try:
        from . import alternatives
    except ImportError as error:
        raise UsageError(f"compare needs the packages onnx, numpy and onnxruntime: {error}") from error

    unknown = [name for name in against if name not in alternatives.KINDS]
    if unknown:
        raise UsageError(f"there is no alternative {unknown[0]!r}: there are {', '.join(alternatives.KINDS)}")
    with tempfile.TemporaryDirectory(prefix="nz-onnx.compare") as folder:
        place = Path(folder)
        try:
            runs = _read(Path(inputs))
            source = alternatives.prepare(Path(path), place / "model.onnx")
            expected = alternatives.run(source, runs)
        except NzError:
            raise
        except Exception as error:
            raise NzError(f"{os.fspath(path)}: {error}") from error
        total = alternatives.weight_bytes(source)
        found = []
        for name in against:
            kind = alternatives.KINDS[name]
            try:
                made = kind.make(source, place / "alternative.onnx")
                theirs = alternatives.closeness(expected, alternatives.run(made.path, runs))
            except Exception as error:
                problem = str(error) or type(error).__name__
                found.append(Compared(name, kind.title, None, None, None, problem))
                continue
            ours, problem = None, ""
            try:
                converted = models.convert(
                    source,
                    place / "ours.nz.onnx",
                    size=made.weight_bytes,
                    include=[_escaped(weight) for weight in made.changed],
                    min_size=1,
                    transform=transform,
                    calibrate=calibrate,
                    force=True,
                )
                assert converted.output is not None
                outputs = alternatives.run(Path(converted.output.path), runs, get_library_path())
                ours = _result(alternatives.closeness(expected, outputs))
            except RatioError as error:
                problem = error.message
            found.append(Compared(name, kind.title, made.weight_bytes, _result(theirs), ours, problem or None))
    return CompareResult("nz-onnx.compare/1", os.fspath(path), len(runs), total, tuple(found))


def _result(closeness: Any) -> ClosenessResult:
    snr = closeness.snr_db if math.isfinite(closeness.snr_db) else None
    return ClosenessResult(snr, snr is None and closeness.snr_db > 0, closeness.least_cosine, closeness.top1, closeness.top5)


def _escaped(name: str) -> str:
    """A glob that this name alone matches."""
    return "".join(f"[{c}]" if c in "*?[]{}!\\" else c for c in name)


def _read(path: Path) -> list[dict[str, Any]]:
    import numpy as np

    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path}: no .npz files in this folder")
    runs = []
    for file in files:
        with np.load(file) as arrays:
            runs.append({name: arrays[name] for name in arrays.files})
    return runs


def main(arguments: Sequence[str]) -> int:
    """``python -m nz_onnx compare``."""
    parser = argparse.ArgumentParser("python -m nz_onnx compare", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--inputs", required=True, help="an .npz file, or a folder of .npz files, one run each")
    parser.add_argument("--against", default=",".join(DEFAULT), help="names, with commas between [%(default)s]")
    parser.add_argument("--transform", default="auto", help="cut, grid or auto [%(default)s]")
    parser.add_argument("--calibrate", help="inputs to measure with how much each weight matters")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    try:
        result = compare(
            given.model, given.inputs, given.against.split(","), transform=given.transform, calibrate=given.calibrate
        )
    except NzError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code or 1
    if given.json:
        print(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        print(_table(result))
    return 0


def _table(result: CompareResult) -> str:
    def snr(of: Optional[ClosenessResult]) -> str:
        if of is None:
            return "-"
        return "exact" if of.exact else "not finite" if of.snr_db is None else f"{of.snr_db:.1f} dB"

    def rest(of: Optional[ClosenessResult]) -> list[str]:
        if of is None:
            return ["-", "-"]
        return [f"{of.least_cosine:.6f}", "-" if of.top1 is None else f"{100 * of.top1:.1f} %"]

    rows = [["", "weights, MiB", "SNR", "cosine", "top 1", "nz, same bytes", "cosine", "top 1", ""]]
    for one in result.alternatives:
        size = "-" if one.weight_bytes is None else f"{one.weight_bytes / 2**20:.2f}"
        row = [one.title, size, snr(one.closeness), *rest(one.closeness), snr(one.ours), *rest(one.ours)]
        rows.append([*row, one.problem or ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([f"{result.path}: weights of {result.weight_bytes / 2**20:.2f} MiB, {result.runs} runs", *lines])
