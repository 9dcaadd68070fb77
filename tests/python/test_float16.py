"""Float16 models on the CPU, where ONNX Runtime computes in float32: no casts come in with compressed weights."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nzlib import LIBRARY, Worker, convert, nz_nodes
from onnx import TensorProto, helper, numpy_helper
from real_models import ALL, needed

VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
supported = pytest.mark.skipif(VERSION < (1, 17), reason="this ONNX Runtime is too old for the ops")
CHANNELS = 48


def convolutions(path):
    """Three times Conv and Relu in float16, with 40 KiB of weights each; a Concat is in the way of fusions."""
    rng = np.random.default_rng(3)

    def weight(name, *shape):
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.05).astype(np.float16), name)

    weights = [weight(f"W{layer}", CHANNELS, CHANNELS, 3, 3) for layer in range(3)]
    nodes, last = [], "x"
    for layer in range(3):
        nodes += [
            helper.make_node("Conv", [last, f"W{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    nodes.append(helper.make_node("Concat", ["r1", "r2"], ["y"], axis=1))
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", CHANNELS, 14, 14])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path, {"x": rng.standard_normal((1, CHANNELS, 14, 14)).astype(np.float16)}


def run(path, inputs, library):
    """The outputs of one run, and how many nodes of each type ran."""
    with Worker(path, inputs, library=library, profile=True) as worker:
        worker.load()
        worker.run()
        return worker.outputs(), worker.nodes()


def check_casts(path, feeds, folder, say):
    converted = folder / "model.nz.onnx"
    convert(path, converted, "--lossless")
    inputs = folder / "inputs.npz"
    np.savez(inputs, **feeds)
    # ONNX Runtime before 1.23 puts more casts into a float16 model as soon as there is a library.
    expected, plain = run(path, inputs, LIBRARY if VERSION < (1, 23) else None)
    outputs, ours = run(converted, inputs, LIBRARY)
    casts = [nodes["CPUExecutionProvider"].get("Cast", 0) for nodes in (plain, ours)]
    decoded = nz_nodes(ours)
    say(f"{path.stem}: {casts[0]} nodes Cast, converted {casts[1]}; {decoded}")
    assert casts[1] <= casts[0]
    for found, right in zip(outputs, expected):
        scale = np.abs(right.astype(np.float32)).max()
        assert np.abs(found.astype(np.float32) - right.astype(np.float32)).max() <= 1e-3 * scale
    return decoded


@supported
def test_a_decoded_weight_brings_no_casts_of_activations(tmp_path, say):
    path, feeds = convolutions(tmp_path / "model.onnx")
    assert check_casts(path, feeds, tmp_path, say) == {"Decode": 3}


@supported
@needed
@pytest.mark.parametrize("model", [model for model in ALL if model.half], ids=str)
def test_real_models_run_no_more_casts(model, tmp_path, say):
    assert check_casts(model.path, model.inputs(), tmp_path, say)
