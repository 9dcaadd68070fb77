"""Other ways to make a model smaller, with ONNX Runtime's own tools: float16, dynamic int8, MatMulNBits."""

import contextlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from bench_common import reason


@dataclass
class Variant:
    """A model file, or why there is none."""

    name: str
    path: Path | None
    library: Path | None = None
    why: str = ""
    # MiB, resident or on the GPU.
    memory: float = 0.0
    error: float = 0.0
    # The seconds of each round, by the name of the inputs.
    times: dict = field(default_factory=dict)


class CannotMake(Exception):
    """Why there is no such variant of a model, in a few words."""


def quiet():
    """The quantizers report every node that they look at."""
    logging.getLogger().setLevel(logging.ERROR)
    for name in ("onnxruntime.quantization.matmul_nbits_quantizer", "onnxruntime.transformers.float16"):
        logging.getLogger(name).setLevel(logging.ERROR)


def graphs(graph):
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from graphs(inner)


def op_types(model):
    """The op types of all nodes, those in the bodies of control flow included."""
    return {node.op_type for graph in graphs(model.graph) for node in graph.node}


def has_float32_weight(graph):
    """Whether an initializer or Constant of this graph is float32 and large enough to matter."""
    constants = (a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute)
    return any(
        tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= 1024
        for tensor in [*graph.initializer, *constants]
    )


def save(model, path):
    """Saves with external data: a model over 2 GiB is no valid protobuf, and small ones lose nothing by
    it."""
    onnx.save(
        model, str(path), save_as_external_data=True, location=path.name + ".data", size_threshold=1024
    )


@contextlib.contextmanager
def reasons(tool):
    """Says which tool failed, and how."""
    try:
        yield
    except CannotMake:
        raise
    except Exception as error:
        raise CannotMake(f"{tool} failed: {reason(error)}") from error


def float16(source, path):
    """Weights and computing in float16, inputs and outputs as they were."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with reasons("onnxruntime.transformers.float16"):
        model = onnx.load(str(source))
        if not any(has_float32_weight(graph) for graph in graphs(model.graph)):
            raise CannotMake("no float32 weights: they are float16, bfloat16 or int8 already")
        save(convert_float_to_float16(model, keep_io_types=True), path)


def dynamic_int8(source, path):
    """int8 weights, activations quantized while the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with reasons("onnxruntime.quantization.quantize_dynamic"):
        # Given a path, it would write beside the source.
        model = onnx.load(str(source))
        # ConvInteger has no kernel for signed weights.
        kind = QuantType.QUInt8 if "Conv" in op_types(model) else QuantType.QInt8
        quantize_dynamic(model, str(path), weight_type=kind, use_external_data_format=True)
        made = op_types(onnx.load(str(path), load_external_data=False))
        if not made & {"MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}:
            raise CannotMake("quantize_dynamic found nothing that it quantizes")


def matmul_nbits(bits, accuracy_level=0):
    """A maker of models with com.microsoft MatMulNBits, blocks of 32. Accuracy level 0 computes in the dtype
    of the activations, 4 in int8."""

    def make(source, path):
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        with reasons("onnxruntime.quantization.matmul_nbits_quantizer"):
            config = DefaultWeightOnlyQuantConfig(
                block_size=32, is_symmetric=True, accuracy_level=accuracy_level, bits=bits
            )
            quantizer = MatMulNBitsQuantizer(onnx.load(str(source)), algo_config=config)
            quantizer.process()
            model = quantizer.model.model
            if "MatMulNBits" not in op_types(model):
                raise CannotMake("no MatMul with a constant weight that the quantizer takes")
            save(model, path)

    return make
