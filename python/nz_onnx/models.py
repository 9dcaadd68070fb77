"""What the command does with models, as functions."""

from __future__ import annotations

import os
from typing import Optional, TypeVar, Union, overload
from collections.abc import Iterable, Mapping, Sequence

from .command import run as _run
from .errors import UsageError
from .results import (
    ConvertResult,
    DeltaInspectResult,
    DeltaResult,
    DeltaVerifyResult,
    InspectResult,
    PlanResult,
    RestoreResult,
    VerifyResult,
)

StrPath = Union[str, "os.PathLike[str]"]
Patterns = Union[str, Iterable[str]]


@overload
def convert(
    path: StrPath,
    output: Optional[StrPath] = None,
    *,
    ratio: Optional[float] = None,
    size: Union[int, str, None] = None,
    bits: Optional[float] = None,
    max_error: Optional[float] = None,
    snr: Optional[float] = None,
    lossless: bool = False,
    mantissa_bits: Optional[int] = None,
    min_size: Union[int, str, None] = None,
    include: Patterns = (),
    exclude: Patterns = (),
    exclude_nodes: Patterns = (),
    integers: bool = False,
    transform: Optional[str] = None,
    calibrate: Optional[StrPath] = None,
    calibration: Optional[StrPath] = None,
    compensate: Optional[str] = None,
    profile: Optional[str] = None,
    layers: Union[bool, Sequence[int]] = False,
    optimize: Optional[str] = None,
    ort_lib: Optional[StrPath] = None,
    force: bool = False,
    dry_run: bool = False,
    threads: Optional[int] = None,
) -> ConvertResult: ...


@overload
def convert(
    path: StrPath,
    output: Optional[StrPath] = None,
    *,
    base: StrPath,
    force: bool = False,
    dry_run: bool = False,
    threads: Optional[int] = None,
) -> Union[ConvertResult, DeltaResult]: ...


def convert(
    path: StrPath,
    output: Optional[StrPath] = None,
    *,
    ratio: Optional[float] = None,
    size: Union[int, str, None] = None,
    bits: Optional[float] = None,
    max_error: Optional[float] = None,
    snr: Optional[float] = None,
    lossless: bool = False,
    mantissa_bits: Optional[int] = None,
    min_size: Union[int, str, None] = None,
    include: Patterns = (),
    exclude: Patterns = (),
    exclude_nodes: Patterns = (),
    integers: bool = False,
    transform: Optional[str] = None,
    calibrate: Optional[StrPath] = None,
    calibration: Optional[StrPath] = None,
    compensate: Optional[str] = None,
    profile: Optional[str] = None,
    layers: Union[bool, Sequence[int]] = False,
    base: Optional[StrPath] = None,
    optimize: Optional[str] = None,
    ort_lib: Optional[StrPath] = None,
    force: bool = False,
    dry_run: bool = False,
    threads: Optional[int] = None,
) -> Union[ConvertResult, DeltaResult]:
    """Writes a model with compressed weights.

    Without a target, which is one of ``ratio``, ``size``, ``bits``, ``max_error``, ``snr``, ``lossless`` and
    ``mantissa_bits``, it is half the weight bytes: for each weight the most exact encoding that gets there. Where
    that is out of reach the model is written all the same, with a warning in the result.

    >>> result = nz_onnx.convert("model.onnx")
    >>> result.output.path, round(result.totals.ratio, 2)
    ('model.nz.onnx', 0.49)
    >>> nz_onnx.convert("model.onnx", "out/model.nz.onnx", lossless=True, exclude="lm_head.*")

    Args:
        path: The ONNX model.
        output: The model to write; its data file has the same name and ".data". Default: beside the
            input, X.nz.onnx.
        ratio: Weight bytes after over before that must be reached, above 0 and at most 1.
        size: Weight bytes after that must be reached; a number, or with a unit, as "300MiB".
        bits: Bits a weight that must be reached, on average over the weights that are compressed.
        max_error: The fewest bytes at which no weight changes by more than this part of itself.
        snr: The fewest bytes at which each tensor's energy is so many decibels above that of its error.
        lossless: Change no weight.
        mantissa_bits: Round every weight to so many (float32 has 23, float16 10, bfloat16 7).
        min_size: Leave smaller weights alone; bytes, or with a unit, as "4KiB". Default: 4096.
        include: Glob, or globs: compress only weights whose name matches one.
        exclude: Glob, or globs: leave weights alone whose name matches one.
        exclude_nodes: Glob, or globs: leave the weights of nodes alone whose name matches one.
        integers: Compress the integer weights of quantised models too, as they are.
        transform: "cut": mantissa bits, which bounds the relative error of each weight; "grid": levels of a uniform
            grid, with less error in all and no such bound; "auto": whichever has less; or "codebook". Default:
            "auto" with size, bits and snr, else "cut".
        calibrate: An .npz file or a folder of .npy files, one array per graph input, or a folder of .npz files: measure in
            ONNX Runtime how much the outputs suffer from an error of each weight, and spend bytes accordingly. Every third
            input is left out, and the model taken whose outputs are closest on these: ``trial`` in the result.
        calibration: A file to keep in what ``calibrate`` measures, and to take from what was measured before of the same model
            on the same inputs.
        compensate: "auto", the default, "on" or "off": round weights on a grid so that each makes good what others of its sum
            have lost; "auto": by a rule, or by the inputs of ``calibrate`` where outputs are closer for it on inputs left out;
            "on": by the inputs.
        profile: "compact", the default, "fast": faster to decode without AVX-512, 1.1 bits a weight larger; or "gpu".
        layers: Put the lower bits of weights into layers that a session need not read (``enable(weights_mib=...)``); up to three
            numbers say how many bits are above each. True: 3, 7 and 15.
        base: A model that this one was made of, such as by fine-tuning. A converted one in the same folder: the model
            written takes weights from its data file, as they are or with a delta, and changes none. Any other: X.nzd is
            written, which holds what tells the model from its base, and of which :func:`restore` makes it again; the
            result is a :class:`DeltaResult <nz_onnx.results.DeltaResult>` then.
        optimize: "off", the default, "portable" or "native": let ONNX Runtime optimise the model first.
        ort_lib: libonnxruntime to optimise or calibrate with. Default: the one of the package onnxruntime.
        force: Replace files that exist.
        dry_run: Do everything but write.
        threads: Threads to use. Default: all cores.

    Raises:
        UsageError: an option is wrong.
        RatioError: ``ratio``, ``size`` or ``bits`` cannot be reached; nothing was written.
        CorruptError: the model is corrupt.
        UnsupportedError: the model uses something that this version does not handle.
        NzError: a file cannot be read or written.
    """
    options = _options(ratio=ratio, size=size, bits=bits, max_error=max_error, snr=snr)
    options += _options(lossless=lossless, mantissa_bits=mantissa_bits)
    options += _selection(min_size, include, exclude, exclude_nodes) + _options(integers=integers) + _layers(layers)
    options += _options(transform=transform, calibrate=calibrate, calibration=calibration, compensate=compensate, profile=profile, optimize=optimize, ort_lib=ort_lib, threads=threads)
    options += _options(output=output, force=force, dry_run=dry_run, base=base)
    return _run(ConvertResult, "convert", options, [os.fspath(path)], {"nz-onnx.delta/1": DeltaResult})


def plan(
    path: StrPath,
    *,
    ratio: Optional[float] = None,
    size: Union[int, str, None] = None,
    bits: Optional[float] = None,
    max_error: Optional[float] = None,
    snr: Optional[float] = None,
    lossless: bool = False,
    mantissa_bits: Optional[int] = None,
    min_size: Union[int, str, None] = None,
    include: Patterns = (),
    exclude: Patterns = (),
    exclude_nodes: Patterns = (),
    integers: bool = False,
    transform: Optional[str] = None,
    calibrate: Optional[StrPath] = None,
    calibration: Optional[StrPath] = None,
    compensate: Optional[str] = None,
    profile: Optional[str] = None,
    layers: Union[bool, Sequence[int]] = False,
    optimize: Optional[str] = None,
    ort_lib: Optional[StrPath] = None,
    threads: Optional[int] = None,
) -> PlanResult:
    """What :func:`convert` would do to each weight, and why, without encoding anything.

    >>> for tensor in nz_onnx.plan("model.onnx", ratio=0.4).tensors:
    ...     print(tensor.name, tensor.decision, tensor.encoding, tensor.reason)

    Args and errors are those of :func:`convert`.
    """
    options = _options(ratio=ratio, size=size, bits=bits, max_error=max_error, snr=snr)
    options += _options(lossless=lossless, mantissa_bits=mantissa_bits)
    options += _selection(min_size, include, exclude, exclude_nodes) + _options(integers=integers) + _layers(layers)
    options += _options(transform=transform, calibrate=calibrate, calibration=calibration, compensate=compensate, profile=profile, optimize=optimize, ort_lib=ort_lib, threads=threads)
    return _run(PlanResult, "plan", options, [os.fspath(path)])


def inspect(path: StrPath) -> InspectResult:
    """What is in a converted model, a plain model or a blob file.

    >>> for blob in nz_onnx.inspect("model.nz.onnx").blobs:
    ...     print(blob.name, blob.shape, blob.bytes / blob.weight_bytes)

    Raises:
        CorruptError: the file is corrupt; its ``result`` says which blobs are, if the rest can be read.
        NzError: the file cannot be read; subclasses as in :func:`convert`.
    """
    return _no_delta(path, _run(InspectResult, "inspect", [], [os.fspath(path)], _INSPECT_DELTA), "inspect_delta")


def inspect_delta(path: StrPath) -> DeltaInspectResult:
    """What is in a delta file.

    >>> for part in nz_onnx.inspect_delta("tuned.nzd").parts:
    ...     print(part.weight, part.encoding, part.bytes_after)

    Raises:
        CorruptError: the file is corrupt; its ``result`` says where, if the rest can be read.
        UsageError: it is no delta file.
        NzError: the file cannot be read; subclasses as in :func:`convert`.
    """
    result = _run(DeltaInspectResult, "inspect", [], [os.fspath(path)], {"nz-onnx.inspect/1": InspectResult})
    return _delta(path, result, "inspect")


def verify(
    path: StrPath,
    original: Optional[StrPath] = None,
    *,
    run: bool = False,
    inputs: Optional[StrPath] = None,
    shapes: Optional[Mapping[str, Sequence[int]]] = None,
    seed: Optional[int] = None,
    tolerance: Optional[float] = None,
    ort_lib: Optional[StrPath] = None,
    library: Optional[StrPath] = None,
    threads: Optional[int] = None,
) -> VerifyResult:
    """Checks a converted model: checksums, with ``original`` its weights, with ``run`` its outputs.

    Returns when all checks passed.

    >>> nz_onnx.verify("model.nz.onnx", "model.onnx", run=True, shapes={"input_ids": (1, 16)})
    >>> try:
    ...     nz_onnx.verify("damaged.nz.onnx")
    ... except nz_onnx.CorruptError as error:
    ...     print(error.result.blobs)

    Args:
        path: The converted model.
        original: The model that it was made from.
        run: Run both models in ONNX Runtime and compare their outputs; needs ``original``.
        inputs: An .npz file or a folder of .npy files, one array per graph input; or a folder of .npz files, one run
            each. Default: random.
        shapes: Dimensions of random inputs by name. Default: 1 for each symbolic dimension, or what the
            original runs with: 8, 64 or 512 behind the first.
        seed: Seed of the random inputs. Default: 0.
        tolerance: Largest error of an output, relative to its largest magnitude. Default: 1e-5, or 1e-3
            if the model has float16 or bfloat16 weights, when no weight was changed, and one level of outputs
            that are quantised or images of 8 bits; else outputs are reported only.
        ort_lib: libonnxruntime to use. Default: the one of the package onnxruntime.
        library: libnz_onnx to register. Default: the one of this package.
        threads: Threads to use. Default: all cores.

    Raises:
        CorruptError: a check failed, and its ``result`` says which; or a file is corrupt.
        UsageError: an option is wrong, or there is no ONNX Runtime to run with.
        NzError: a file cannot be read; subclasses as in :func:`convert`.
    """
    options = _options(original=original, run=run, inputs=inputs, seed=seed, tolerance=tolerance)
    options += _options(ort_lib=ort_lib, library=library, threads=threads)
    for name, dimensions in (shapes or {}).items():
        options.append(f"--shape={name}={','.join(map(str, dimensions))}")
    return _no_delta(path, _run(VerifyResult, "verify", options, [os.fspath(path)], _VERIFY_DELTA), "verify_delta")


def verify_delta(
    path: StrPath, *, base: Optional[StrPath] = None, threads: Optional[int] = None
) -> DeltaVerifyResult:
    """Checks that all files of a delta file would come back, and writes nothing. Returns when they would.

    >>> nz_onnx.verify_delta("tuned.nzd").base
    'base.onnx'

    Args:
        path: The delta file.
        base: The base. Default: looked for in the folder of the delta file.
        threads: Threads to use. Default: all cores.

    Raises:
        CorruptError: a file would not, and its ``result`` says which; or the delta file is corrupt.
        UsageError: it is no delta file.
        NzError: a file cannot be read; subclasses as in :func:`convert`.
    """
    options = _options(base=base, threads=threads)
    others = {"nz-onnx.verify/1": VerifyResult}
    return _delta(path, _run(DeltaVerifyResult, "verify", options, [os.fspath(path)], others), "verify")


_INSPECT_DELTA = {"nz-onnx.inspect-delta/1": DeltaInspectResult}
_VERIFY_DELTA = {"nz-onnx.verify-delta/1": DeltaVerifyResult}
_Result = TypeVar("_Result")


def _no_delta(path: StrPath, result: _Result, function: str) -> _Result:
    if isinstance(result, (DeltaInspectResult, DeltaVerifyResult)):
        raise UsageError(f"{os.fspath(path)} is a delta file: nz_onnx.{function}() is for those", 2)
    return result


def _delta(path: StrPath, result: _Result, function: str) -> _Result:
    if not isinstance(result, (DeltaInspectResult, DeltaVerifyResult)):
        raise UsageError(f"{os.fspath(path)} is no delta file: nz_onnx.{function}() is for others", 2)
    return result


def restore(
    path: StrPath,
    output: Optional[StrPath] = None,
    *,
    force: bool = False,
    threads: Optional[int] = None,
) -> RestoreResult:
    """Writes a converted model back as a plain one.

    >>> nz_onnx.restore("model.nz.onnx").identical
    True

    Args:
        path: The converted model.
        output: The model to write. Default: beside the input, X.restored.onnx.
        force: Replace files that exist.
        threads: Threads to use. Default: all cores.

    Raises:
        CorruptError: the model is corrupt.
        NzError: a file cannot be read or written; subclasses as in :func:`convert`.
    """
    options = _options(output=output, force=force, threads=threads)
    return _run(RestoreResult, "restore", options, [os.fspath(path)])


def _selection(
    min_size: Union[int, str, None], include: Patterns, exclude: Patterns, exclude_nodes: Patterns
) -> list[str]:
    options = _options(min_size=min_size)
    for name, patterns in (("include", include), ("exclude", exclude), ("exclude-nodes", exclude_nodes)):
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            options.append(f"--{name}={pattern}")
    return options


def _layers(layers: Union[bool, Sequence[int]]) -> list[str]:
    if isinstance(layers, bool):
        return _options(layers=layers)
    return _options(layers=",".join(map(str, layers)))


def _options(**values: Union[str, int, float, os.PathLike[str], None]) -> list[str]:
    """Command line options; None and False are left out, True is an option without a value."""
    options = []
    for name, value in values.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            options.append(option)
        elif value is not None and value is not False:
            options.append(f"{option}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return options
