"""Weights that a Loop or Scan hands from turn to turn: converted, run beside the original, restored.

This is how the exporters of TensorFlow and Paddle give a loop its weights.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nzlib import LIBRARY, OK, convert, nz
from onnx import TensorProto, helper, numpy_helper
from opmodels import options, ran_nodes

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
# Blobs of weights of K x K are in the data file.
K = 256


def info(name, element=FLOAT, shape=("batch", K)):
    return helper.make_tensor_value_info(name, element, shape)


def weights(seed, *shape):
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def body(extra=(), handed_on="W", variable="W"):
    """One turn: state = tanh(state W), and `state` and W go on."""
    nodes = [
        helper.make_node("Identity", ["condition"], ["go_on"]),
        helper.make_node("MatMul", ["state", variable], ["product"]),
        helper.make_node("Tanh", ["product"], ["next"]),
        *extra,
    ]
    inputs = [info("turn", INT64, []), info("condition", BOOL, []), info("state"), info(variable, shape=(K, K))]
    outputs = [info("go_on", BOOL, []), info("next"), info(handed_on, shape=(K, K))]
    return helper.make_graph(nodes, "body", inputs, outputs)


def loop(graph, outputs=("y", "unused"), weight="W"):
    return helper.make_node("Loop", ["turns", "yes", "x", weight], list(outputs), body=graph)


def write(path, nodes, outputs=("y",), extra=None):
    initializers = {"W": weights(1, K, K), "turns": np.int64(3), "yes": np.bool_(True), **(extra or {})}
    graph = helper.make_graph(
        nodes, "main", [info("x")], [info(name, shape=None) for name in outputs],
        [constant(name, value) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def session(path, library=None, **settings):
    return ort.InferenceSession(path, options(library, **settings), providers=["CPUExecutionProvider"])


def check(path, op):
    """Converts, compares outputs, and restores; returns what happened to each weight."""
    converted = path.with_suffix(".nz.onnx")
    report = convert(path, converted, "--lossless")
    feeds = {"x": weights(2, 5, K)}
    expected = session(path).run(None, feeds)
    ours = session(converted, str(LIBRARY), enable_profiling=True, profile_file_prefix=str(path.parent / "profile"))
    for one, other in zip(ours.run(None, feeds), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())
    assert op in ran_nodes(ours)
    restored = path.with_suffix(".restored.onnx")
    outcome = nz("restore", converted, "-o", restored)
    assert outcome.code == OK, outcome
    assert restored.read_bytes() == path.read_bytes()
    return {tensor["name"]: tensor["decision"] for tensor in report["tensors"]}, onnx.load(converted)


@pytest.mark.parametrize("inner", ["W", "kernel"], ids=["same name", "other name"])
@pytest.mark.parametrize("identity", [False, True], ids=["as it is", "through Identity"])
def test_a_weight_that_a_loop_carries(tmp_path, inner, identity):
    extra = [helper.make_node("Identity", [inner], ["same"])] if identity else []
    graph = body(extra, "same" if identity else inner, inner)
    decided, model = check(write(tmp_path / "m.onnx", [loop(graph)]), "DecodeMatMul")
    assert decided["W"] == "compressed"
    # The variable is gone on both sides of the loop.
    (node,) = (n for n in model.graph.node if n.op_type == "Loop")
    (turn,) = (a.g for a in node.attribute if a.name == "body")
    assert list(node.input) == ["turns", "yes", "x"] and list(node.output) == ["y"]
    assert len(turn.input) == 3 and len(turn.output) == 2


def test_a_weight_that_is_read_behind_the_loop(tmp_path):
    nodes = [loop(body(), ("z", "again")), helper.make_node("MatMul", ["z", "again"], ["y"])]
    decided, _ = check(write(tmp_path / "m.onnx", nodes), "DecodeMatMul")
    assert decided["W"] == "compressed"


def test_a_loop_in_a_loop(tmp_path):
    inner = helper.make_node("Loop", ["turns", "yes", "state", "W"], ["last", "W_out"], body=body())
    nodes = [
        helper.make_node("Identity", ["condition"], ["on"]), inner, helper.make_node("Tanh", ["last"], ["after"]),
    ]
    outer = helper.make_graph(
        nodes, "outer",
        [info("turn", INT64, []), info("condition", BOOL, []), info("state"), info("W", shape=(K, K))],
        [info("on", BOOL, []), info("after"), info("W", shape=(K, K))],
    )
    decided, _ = check(write(tmp_path / "m.onnx", [loop(outer)]), "DecodeMatMul")
    assert decided["W"] == "compressed"


def test_a_weight_that_a_scan_carries(tmp_path):
    decided, _ = check(carried_by_a_scan(tmp_path / "m.onnx", {}), "DecodeMatMul")
    assert decided["W"] == "compressed"


def carried_by_a_scan(path, extra):
    nodes = [
        helper.make_node("MatMul", ["row", "W_in"], ["p"]),
        helper.make_node("Add", ["sum", "p"], ["next"]),
        helper.make_node("Identity", ["W_in"], ["W_out"]),  # ONNX Runtime's Scan hands on no input as it is
    ]
    graph = helper.make_graph(
        nodes, "body",
        [info("W_in", shape=(K, K)), info("sum", shape=(K,)), info("row", shape=(K,))],
        [info("W_out", shape=(K, K)), info("next", shape=(K,))],
    )
    scan = helper.make_node("Scan", ["W", "zeros", "x"], ["unused", "y"], body=graph, num_scan_inputs=1)
    return write(path, [scan], extra={"zeros": np.zeros(K, np.float32), **extra})


def carried_by_a_loop(path, extra):
    return write(path, [loop(body())], extra=extra)


@pytest.mark.parametrize("model", [carried_by_a_loop, carried_by_a_scan])
@pytest.mark.parametrize("step, encoding, op", [(1e-4, "delta difference", "DecodeDeltaMatMul"), (0, "base", "DecodeMatMul")])
def test_a_weight_that_is_carried_and_shared_with_a_base(tmp_path, model, step, encoding, op):
    tuned = weights(1, K, K) + np.float32(step) * weights(4, K, K)
    base, tuned = model(tmp_path / "base.onnx", {}), model(tmp_path / "tuned.onnx", {"W": tuned})
    convert(base, tmp_path / "base.nz.onnx", "--lossless")
    convert(tuned, tmp_path / "alone.nz.onnx", "--lossless")
    shared = tmp_path / "shared.nz.onnx"
    report = convert(tuned, shared, "--base", tmp_path / "base.nz.onnx")
    assert {t["name"]: t["encoding"] for t in report["tensors"]}["W"] == encoding
    feeds = {"x": weights(2, 5, K)}
    ours = session(shared, str(LIBRARY), enable_profiling=True, profile_file_prefix=str(tmp_path / "profile"))
    (found,), (expected,) = ours.run(None, feeds), session(tmp_path / "alone.nz.onnx", str(LIBRARY)).run(None, feeds)
    assert np.array_equal(found, expected) and np.abs(found).max() > 0.1
    assert op in ran_nodes(ours)
    # It is the tuned weight, and not the base's.
    others = session(tmp_path / "base.nz.onnx", str(LIBRARY)).run(None, feeds)[0]
    assert np.array_equal(found, others) == (step == 0)
    outcome = nz("restore", shared, "-o", tmp_path / "restored.onnx")
    assert outcome.code == OK, outcome
    assert (tmp_path / "restored.onnx").read_bytes() == tuned.read_bytes()


@pytest.mark.parametrize("kept", ["changed", "output", "twice", "swapped"])
def test_weights_that_must_stay(tmp_path, kept):
    """A variable that a turn changes is none of these, nor one that somebody else wants."""
    graph, outputs, names = body(), ("y", "unused"), ("y",)
    if kept == "changed":
        graph = body([helper.make_node("Mul", ["W", "half"], ["other"])], "other")
    elif kept == "output":
        outputs, names = ("y", "w"), ("y", "w")
    elif kept == "twice":
        graph.output.append(info("W", shape=(K, K)))  # a scan output: one W a turn
        outputs, names = ("y", "unused", "all"), ("y", "all")
    elif kept == "swapped":
        # Two weights that change places from turn to turn.
        graph.input.append(info("V", shape=(K, K)))
        del graph.output[2:]
        graph.output.extend([info("V", shape=(K, K)), info("W", shape=(K, K))])
        outputs = ("y", "unused", "too")
    node = loop(graph, outputs)
    if kept == "swapped":
        node.input.append("V")
    extra = {"half": np.float32(0.5), "V": weights(3, K, K)}
    path = write(tmp_path / "m.onnx", [node], names, extra)
    converted = tmp_path / "m.nz.onnx"
    report = convert(path, converted, "--lossless")
    assert {t["decision"] for t in report["tensors"]} == {"kept"}
    feeds = {"x": weights(2, 5, K)}
    for one, other in zip(session(converted).run(None, feeds), session(path).run(None, feeds), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("opset, limits", [(13, {}), (15, {}), (15, {"start": -1}), (15, {"start": 0, "end": 1})])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_shape_of_a_weight(tmp_path, opset, limits, transposed):
    """Shape of a weight is known without the weight."""
    nodes = [
        helper.make_node("Transpose", ["W"], ["T"], perm=[1, 0]),
        helper.make_node("Shape", ["T" if transposed else "W"], ["shape"], **limits),
        helper.make_node("MatMul", ["x", "W"], ["p"]),
        helper.make_node("Cast", ["shape"], ["s"], to=FLOAT),
        helper.make_node("ReduceSum", ["s"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["p", "sum"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, extra={"W": weights(1, K, 2 * K)})
    model = onnx.load(path)
    model.opset_import[0].version = opset
    onnx.save(model, path)
    decided, model = check(path, "DecodeMatMul")
    assert decided["W"] == "compressed"
    assert not any(n.op_type == "Shape" for n in model.graph.node)
