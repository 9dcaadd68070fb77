"""Small models, and where things lie. `cargo xtask test` installs the wheel and runs these tests."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SIZE = 256


def pytest_terminal_summary(terminalreporter):
    path = os.environ.get("NZ_PYTEST_SUMMARY")
    if path:
        counts = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "skipped")}
        with open(path, "w") as file:
            json.dump(counts, file)


@pytest.fixture(scope="session")
def wheel():
    """The wheel that was built and installed."""
    path = os.environ.get("NZ_WHEEL")
    if not path:
        pytest.fail("NZ_WHEEL does not name the wheel: run `cargo xtask test`")
    return Path(path)


def make_model(path):
    """Two times MatMul and Tanh, with 256 KiB of weights each."""
    rng = np.random.default_rng(7)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.1, (SIZE, SIZE)).astype(np.float32), f"W{layer}")
        for layer in range(2)
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "W0"], ["a"], name="first"),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "W1"], ["c"], name="second"),
        helper.make_node("Tanh", ["c"], ["y"]),
    ]
    shape = ["rows", SIZE]
    graph = helper.make_graph(
        nodes,
        "two-layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model.onnx")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A model and what it converts to without loss; not to be written to."""
    import nz_onnx

    original = make_model(tmp_path_factory.mktemp("made") / "model.onnx")
    result = nz_onnx.convert(original, lossless=True)
    return original, Path(result.output.path)
