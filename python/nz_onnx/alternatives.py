"""What others make of a model: ONNX Runtime's own tools for fewer bytes, and how far outputs are apart.

Needs the packages onnx and onnxruntime. It imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

# Inputs or outputs of a run, by name.
Arrays = Mapping[str, Any]


class CannotMake(Exception):
    """Why there is no such alternative to a model, in a few words."""


@dataclass(frozen=True)
class Alternative:
    """A model that some other tool has made."""

    path: Path
    """The model; its weights may be in PATH.data."""
    weight_bytes: int
    """Bytes of all weights, as stored."""
    changed: tuple[str, ...]
    """Weights of the original that are stored in another way."""


def prepare(source: Path, path: Path) -> Path:
    """Writes the model as the tools need it: constants of the graph as initializers, outputs that are tensors.

    Weights are the same, and so are outputs, but that the input of a ZipMap takes its place.
    """
    model = onnx.load(str(source))
    graph = model.graph
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        elif node.op_type == "ZipMap":
            names = [output.name for output in graph.output]
            place = names.index(node.output[0])
            new = onnx.helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None)
            graph.output[place].CopyFrom(new)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    # Tools take an initializer that is also an input for a default that the caller may replace.
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
    _save(model, path)
    return path


def weight_bytes(path: Path) -> int:
    """Bytes of all initializers."""
    return sum(_bytes_of(tensor) for tensor in onnx.load(str(path)).graph.initializer)


def _bytes_of(tensor: TensorProto) -> int:
    if tensor.raw_data:
        return len(tensor.raw_data)
    return numpy_helper.to_array(tensor).nbytes if tensor.data_type != TensorProto.STRING else 0


def _without_data(path: Path) -> None:
    """Removes the data of a model that is about to be written again: what writes it appends."""
    Path(f"{path}.data").unlink(missing_ok=True)


def _save(model: onnx.ModelProto, path: Path) -> None:
    _without_data(path)
    onnx.save(model, str(path), save_as_external_data=True, location=path.name + ".data", size_threshold=1024)


def _finish(source: Path, path: Path, model: onnx.ModelProto, extra: Optional[int] = None) -> Alternative:
    """Saves a model that was made of `source`, and says what it holds. With `extra` its changed weights are stand-ins
    for others of so many bytes in all."""
    before = {tensor.name: tensor for tensor in onnx.load(str(source)).graph.initializer}
    after = {tensor.name: tensor for tensor in model.graph.initializer}

    def is_same(name: str) -> bool:
        mine, theirs = before[name], after.get(name)
        return (
            theirs is not None
            and mine.data_type == theirs.data_type
            and numpy_helper.to_array(mine).tobytes() == numpy_helper.to_array(theirs).tobytes()
        )

    changed = tuple(name for name in before if not is_same(name))
    total = sum(map(_bytes_of, after.values()))
    if extra is not None:
        total += extra - sum(_bytes_of(after[name]) for name in changed)
    _save(model, path)
    return Alternative(path, total, changed)


@contextlib.contextmanager
def _reasons(tool: str) -> Iterator[None]:
    """Says which tool failed, and how. The tools report every node that they look at."""
    level = logging.getLogger().level
    names = ("", "onnxruntime.quantization.matmul_nbits_quantizer", "onnxruntime.transformers.float16")
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    except CannotMake:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CannotMake(f"{tool} failed: {lines[0][:160]}") from error
    finally:
        logging.getLogger().setLevel(level)


def _op_types(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def float16(source: Path, path: Path) -> Alternative:
    """Weights and computing in float16, inputs and outputs as they were."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _reasons("onnxruntime.transformers.float16"):
        model = onnx.load(str(source))
        if not any(t.data_type == TensorProto.FLOAT and math.prod(t.dims) >= 1024 for t in model.graph.initializer):
            raise CannotMake("no float32 weights")
        return _finish(source, path, convert_float_to_float16(model, keep_io_types=True))


def dynamic_int8(per_channel: bool) -> Callable[[Path, Path], Alternative]:
    """int8 weights, activations quantized while the model runs."""

    def make(source: Path, path: Path) -> Alternative:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with _reasons("onnxruntime.quantization.quantize_dynamic"):
            model = onnx.load(str(source))
            # ConvInteger has no kernel for signed weights.
            kind = QuantType.QUInt8 if "Conv" in _op_types(model) else QuantType.QInt8
            # A file of its own: not every version takes a model, and they write beside it.
            whole = path.with_name(f"{path.stem}-whole.onnx")
            _save(model, whole)
            _without_data(path)
            quantize_dynamic(
                str(whole), str(path), weight_type=kind, per_channel=per_channel, use_external_data_format=True
            )
            made = onnx.load(str(path))
            if not _op_types(made) & {"MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}:
                raise CannotMake("quantize_dynamic found nothing that it quantizes")
            return _finish(source, path, made)

    return make


# The axis of the output channels of the weight at this input.
_CHANNELS = {("Conv", 1): 0, ("ConvTranspose", 1): 1, ("MatMul", 1): -1, ("Gemm", 1): -1, ("Gather", 0): 0}


def weight_only_int8(per_channel: bool) -> Callable[[Path, Path], Alternative]:
    """int8 weights with a float32 scale for each tensor or output channel, as DequantizeLinear has them; computing in
    float32. The model holds the dequantized weights, so that ONNX Runtime gets it whatever its opset."""

    def make(source: Path, path: Path) -> Alternative:
        from onnxruntime.quantization.quant_utils import quantize_data

        with _reasons("onnxruntime.quantization.quant_utils"):
            model = onnx.load(str(source))
            tensors = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
            stored = 0
            done: set[str] = set()
            for node in model.graph.node:
                for place, name in enumerate(node.input):
                    axis = _CHANNELS.get((node.op_type, place))
                    if axis is None or name not in tensors or name in done or len(tensors[name].dims) < 2:
                        continue
                    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
                        axis = 0
                    weight = numpy_helper.to_array(tensors[name])
                    if weight.nbytes < 4096:
                        continue
                    moved = np.moveaxis(weight, axis, 0)
                    rows = moved.reshape(moved.shape[0], -1) if per_channel else moved.reshape(1, -1)
                    plain = np.empty_like(rows)
                    for row, out in zip(rows, plain):
                        _, scale, levels = quantize_data(row, TensorProto.INT8, symmetric=True)[-3:]
                        out[:] = levels.astype(np.float32) * np.float32(np.asarray(scale).reshape(-1)[0])
                    value = np.ascontiguousarray(np.moveaxis(plain.reshape(moved.shape), 0, axis))
                    tensors[name].CopyFrom(numpy_helper.from_array(value, name))
                    stored += weight.size + 4 * len(rows)
                    done.add(name)
            if not done:
                raise CannotMake("no weight of a MatMul, Gemm, Conv or Gather")
            return _finish(source, path, model, stored)

    return make


def matmul_nbits(bits: int, block: int) -> Callable[[Path, Path], Alternative]:
    """com.microsoft MatMulNBits: blocks along the inputs, each with a scale; computing in float32."""

    def make(source: Path, path: Path) -> Alternative:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        with _reasons("onnxruntime.quantization.matmul_nbits_quantizer"):
            config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=0, bits=bits)
            quantizer = MatMulNBitsQuantizer(onnx.load(str(source)), algo_config=config)
            quantizer.process()
            if "MatMulNBits" not in _op_types(quantizer.model.model):
                raise CannotMake("no MatMul with a constant weight that the quantizer takes")
            return _finish(source, path, quantizer.model.model)

    return make


def nf4(source: Path, path: Path) -> Alternative:
    """com.microsoft MatMulBnb4 with 4-bit normal floats, blocks of 64, as bitsandbytes has them."""
    from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

    with _reasons("onnxruntime.quantization.matmul_bnb4_quantizer"):
        quantizer = MatMulBnb4Quantizer(onnx.load(str(source)), MatMulBnb4Quantizer.NF4, 64)
        quantizer.process()
        if "MatMulBnb4" not in _op_types(quantizer.model.model):
            raise CannotMake("no MatMul with a constant weight that the quantizer takes")
        return _finish(source, path, quantizer.model.model)


@dataclass(frozen=True)
class Kind:
    """A way to make a model smaller."""

    title: str
    """What it is, in words."""
    make: Callable[[Path, Path], Alternative]
    """Makes one of a prepared model; raises CannotMake."""


KINDS: dict[str, Kind] = {
    "fp16": Kind("float16", float16),
    "int8": Kind("int8 dynamic, per tensor", dynamic_int8(False)),
    "int8-channel": Kind("int8 dynamic, per channel", dynamic_int8(True)),
    "int8-weights": Kind("int8 weights, per tensor", weight_only_int8(False)),
    "int8-weights-channel": Kind("int8 weights, per channel", weight_only_int8(True)),
    "int8-block128": Kind("MatMulNBits int8, block 128", matmul_nbits(8, 128)),
    "int8-block32": Kind("MatMulNBits int8, block 32", matmul_nbits(8, 32)),
    "int4": Kind("MatMulNBits int4, block 32", matmul_nbits(4, 32)),
    "int4-block128": Kind("MatMulNBits int4, block 128", matmul_nbits(4, 128)),
    "nf4": Kind("NF4, block 64", nf4),
}


def run(path: Path, inputs: Sequence[Arrays], library: Optional[str] = None) -> list[dict[str, Any]]:
    """The outputs of a model for each of the inputs, on the CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Others may want the cores: nothing is timed here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if library:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, dict(arrays)))) for arrays in inputs]


@dataclass(frozen=True)
class Closeness:
    """How close the float outputs of some runs are to the original's."""

    snr_db: float
    """The original's energy over that of the differences, in decibels; of several outputs the mean of the shares.
    Infinite if there are no differences."""
    least_cosine: float
    """The least cosine of a row, along the last dimension; an output of other than two or three is one row."""
    top1: Optional[float]
    """The share of rows whose largest element is the original's; None if no output looks like logits."""
    top5: Optional[float]
    """The share of the five largest of a row that are among the five largest, on average."""


def closeness(expected: Sequence[Arrays], found: Sequence[Arrays]) -> Closeness:
    """Compares float outputs that both runs have, in the order of the original's."""
    shares, cosines, same, five = [], [1.0], [], []
    for name in expected[0]:
        if not isinstance(expected[0][name], np.ndarray) or expected[0][name].dtype.kind != "f":
            continue
        energy = noise = 0.0
        for before, after in zip(expected, found):
            a, b = (np.asarray(x[name], np.float64) for x in (before, after))
            energy += float((a**2).sum())
            noise += float(((a - b) ** 2).sum())
            length = a.shape[-1] if a.ndim in (2, 3) and a.shape[-1] > 1 else max(1, a.size)
            a, b = a.reshape(-1, length), b.reshape(-1, length)
            with np.errstate(all="ignore"):
                found_cosines = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
            cosines += [1.0 if (x == y).all() else float(np.nan_to_num(c)) for x, y, c in zip(a, b, found_cosines)]
            unit = (np.abs((a**2).sum(1) - 1) < 1e-3) & (a < 0).any(1)
            if before[name].ndim in (2, 3) and length >= 5 and not unit.all():
                first, second = (np.argsort(-x, axis=1, kind="stable")[:, :5] for x in (a, b))
                same += list(first[:, 0] == second[:, 0])
                five += [len(set(x) & set(y)) / 5 for x, y in zip(first, second)]
        if energy > 0:
            shares.append(noise / energy)
    if not shares:
        raise CannotMake("no float output to compare")
    share = float(np.mean(shares))
    snr = math.inf if share == 0 else (-math.inf if not math.isfinite(share) else -10 * math.log10(share))
    agreement = [float(np.mean(x)) if x else None for x in (same, five)]
    return Closeness(snr, min(cosines), *agreement)
