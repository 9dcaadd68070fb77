"""Weights that stay constants and are stored shorter: what ONNX Runtime makes of them as it loads a model."""

from collections import Counter

import numpy as np
import nzlib
import onnx
import onnxio
import onnxruntime as ort
import pytest
import real_models

pytestmark = real_models.needed

NAMES = ["fastestdet", "ppocrv3_det_en"]


def session(path, optimized=None, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(nzlib.LIBRARY))
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def converted(name, folder, *options):
    """The model, it converted to a quarter of its bytes, and the names of the weights that stay constants."""
    model = next(m for m in real_models.ALL if m.name == name)
    path = folder / "m.nz.onnx"
    report = nzlib.convert(model.path, path, "--transform", "auto", "--ratio", "0.25", *options)
    constants = [t["name"] for t in report["tensors"] if (t["encoding"] or "").startswith("constant")]
    assert len(constants) > 5
    return model, path, constants


@pytest.mark.parametrize("name", NAMES)
def test_they_are_folded_into_what_restore_gives(name, tmp_path):
    _, path, constants = converted(name, tmp_path)
    assert nzlib.nz("restore", path, "-o", tmp_path / "plain.onnx").code == nzlib.OK
    restored = {t.name: t.values() for t in onnxio.float_tensors(tmp_path / "plain.onnx")}
    # Further than this level ONNX Runtime puts them into channel blocks.
    session(path, tmp_path / "optimized.onnx", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    graph = onnx.load(str(tmp_path / "optimized.onnx")).graph
    made = {output for node in graph.node for output in node.output}
    assert not made & set(constants), "still computed in each run"
    assert not [t.name for t in graph.initializer if t.name.endswith(".nz.levels")]
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    same = [n for n in constants if n in found]
    # Others are fused with a BatchNormalization under another name.
    assert len(same) >= 4, (len(same), len(constants))
    for weight in same:
        assert np.array_equal(found[weight].ravel(), restored[weight].ravel()), weight


@pytest.mark.parametrize("name", NAMES)
def test_the_model_says_what_the_restored_one_says(name, tmp_path):
    """Folded or not: where nothing is optimised, the nodes that make the weights run each time."""
    model, path, _ = converted(name, tmp_path)
    plain = tmp_path / "plain.onnx"
    assert nzlib.nz("restore", path, "-o", plain).code == nzlib.OK
    inputs = model.inputs()
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        level = getattr(ort.GraphOptimizationLevel, level)
        found, expected = (session(of, level=level).run(None, inputs) for of in (path, plain))
        for a, b in zip(found, expected):
            assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), level


def test_kernels_are_those_of_the_original(tmp_path):
    """Depthwise weights alone changed: ONNX Runtime makes the same nodes of both, channel blocks and all."""
    model = next(m for m in real_models.ALL if m.name == "fastestdet")
    plan = nzlib.nz("plan", model.path, "--json").json
    depthwise = [t for t in plan["tensors"] if "depthwise" in (t["reason"] or "")]
    names = [option for t in depthwise for option in ("--include", t["name"])]
    size = plan["totals"]["bytes_before"] - sum(t["bytes_before"] for t in depthwise) // 2
    path = tmp_path / "m.nz.onnx"
    report = nzlib.convert(model.path, path, "--transform", "auto", "--size", size, *names)
    assert report["totals"]["compressed"] == len(depthwise) > 5
    counts = []
    for of in (model.path, path):
        session(of, tmp_path / "optimized.onnx")
        nodes = onnx.load(str(tmp_path / "optimized.onnx")).graph.node
        counts.append(Counter((node.domain, node.op_type) for node in nodes))
    assert counts[0] == counts[1] and sum(counts[0].values()) > 100
