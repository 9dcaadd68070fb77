"""`convert --integers`: weights of quantised models, entropy-coded as they are."""

import time

import numpy as np
import nzlib
import onnx
import onnxruntime as ort
import pytest
import real_models
from onnx import TensorProto, helper, numpy_helper


def session(path, library=True, optimized=True):
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        options.register_custom_ops_library(str(nzlib.LIBRARY))
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def entropy(values):
    """Bits a value, by the values' own frequencies."""
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(len(values) / counts)) / len(values)


def integers(path):
    """The int8 and uint8 tensors of a model, by name."""
    model = onnx.load(str(path))
    kinds = (TensorProto.INT8, TensorProto.UINT8)
    return {p.name: numpy_helper.to_array(p) for p in model.graph.initializer if p.data_type in kinds}


@real_models.needed
@pytest.mark.parametrize("name", ["prisma_portrait_qdq", "shufflenet_v2_int8"])
def test_quantised_models_shrink_and_say_the_same(name, tmp_path, say):
    model = next(m for m in real_models.ALL if m.name == name)
    converted = tmp_path / "m.nz.onnx"
    report = nzlib.convert(model.path, converted, "--lossless", "--integers")
    tensors = integers(model.path)
    done = [t for t in report["tensors"] if t["decision"] == "compressed" and t["dtype"] == "int8"]
    assert done, "no int8 weight was compressed"
    weights = sum(tensors[t["name"]].size for t in done)
    bits = 8 * sum(t["bytes_after"] for t in done) / weights
    bound = sum(entropy(tensors[t["name"]].ravel()) * tensors[t["name"]].size for t in done) / weights
    share = weights / sum(t.size for t in tensors.values())
    for tensor in done:
        # What does not pay stays as it is.
        assert tensor["bytes_after"] <= 0.95 * tensor["bytes_before"], tensor
        assert tensor["lossless"]
    assert bits < bound + 0.2, "far from the entropy"
    assert share > 0.85

    inputs = model.inputs()
    for optimized in (False, True):
        plain = session(model.path, library=False, optimized=optimized)
        coded = session(converted, optimized=optimized)
        for a, b in zip(plain.run(None, inputs), coded.run(None, inputs), strict=True):
            assert a.dtype == b.dtype
            if not optimized:
                assert np.array_equal(a, b)
            # ONNX Runtime does not fuse the same nodes to integer ops, which round in other places.
            assert np.abs(a.astype(float) - b).max() <= 0.1 * np.abs(a).max()
    times = []
    for _ in range(5):
        for s in (plain, coded):
            start = time.perf_counter()
            s.run(None, inputs)
            times.append(time.perf_counter() - start)
    slower = min(times[1::2]) / min(times[::2])
    say(f"{name}: {bits:.2f} bits a weight, entropy {bound:.2f}, {share:.0%} of them; {slower:.2f} x the time")

    again = tmp_path / "again.onnx"
    assert nzlib.nz("restore", converted, "-o", again).code == nzlib.OK
    assert again.read_bytes() == model.path.read_bytes()
    assert nzlib.nz("verify", converted, "--original", model.path).code == nzlib.OK


@real_models.needed
def test_integers_stay_unless_asked_for(tmp_path):
    report = nzlib.convert(nzlib.MODELS / "shufflenet_v2_int8.onnx", tmp_path / "m.nz.onnx", "--lossless")
    assert all(t["decision"] == "kept" for t in report["tensors"] if t["dtype"] == "int8")


def weights(dtype, shape, seed=0):
    """Integers as quantisers leave them."""
    values = np.clip(np.rint(np.random.default_rng(seed).standard_normal(shape) * 20), -128, 127)
    return (values + (128 if dtype == np.uint8 else 0)).astype(dtype)


def save(path, nodes, initializers, inputs, outputs, opset=13):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def same(path, converted, inputs, ops):
    """Converts, and both models must say the same; the second has these ops of domain nz."""
    report = nzlib.convert(path, converted, "--lossless", "--integers")
    model = onnx.load(str(converted), load_external_data=False)
    found = sorted(n.op_type for n in model.graph.node if n.domain == "nz" and n.op_type.startswith("Decode"))
    assert found == ops, found
    onnx_order = [o for n in model.graph.node for o in n.output]
    for node in model.graph.node:
        for name in node.input:
            assert name not in onnx_order or onnx_order.index(name) < onnx_order.index(node.output[0]), "order"
    expected, found = session(path, library=False).run(None, inputs), session(converted).run(None, inputs)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    return report


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_rows_are_gathered(dtype, tmp_path):
    table = weights(dtype, (300, 96))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    save(
        tmp_path / "m.onnx",
        [helper.make_node("Gather", ["w", "i"], ["y"])],
        [numpy_helper.from_array(table, "w")],
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n", 3])],
        [helper.make_tensor_value_info("y", kind, ["n", 3, 96])],
    )
    name = "DecodeGatherInt8" if dtype == np.int8 else "DecodeGatherUint8"
    rows = {"i": np.array([[0, 299, -1], [5, 5, 6]])}
    same(tmp_path / "m.onnx", tmp_path / "m.nz.onnx", rows, [name])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_products_of_integers(dtype, tmp_path):
    point = numpy_helper.from_array(np.array(128 if dtype == np.uint8 else 0, dtype), "z")
    save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMulInteger", ["x", "w", "", "z"], ["y"])],
        [numpy_helper.from_array(weights(dtype, (256, 192)), "w"), point],
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [7, 256])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [7, 192])],
    )
    x = np.random.default_rng(1).integers(0, 256, (7, 256)).astype(np.uint8)
    op = "DecodeInt8" if dtype == np.int8 else "DecodeUint8"
    same(tmp_path / "m.onnx", tmp_path / "m.nz.onnx", {"x": x}, [op])


def test_dequantised_weights_of_two_readers(tmp_path):
    """The DequantizeLinear stands before what its readers wait for: it goes to each of them."""
    scales = np.linspace(0.01, 0.02, 128, dtype=np.float32)
    save(
        tmp_path / "m.onnx",
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1, name="dq"),
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("MatMul", ["a", "d"], ["b"]),
            helper.make_node("MatMul", ["b", "d"], ["y"]),
        ],
        [
            numpy_helper.from_array(weights(np.int8, (128, 128)), "w"),
            numpy_helper.from_array(scales, "s"),
            numpy_helper.from_array(np.zeros(128, np.int8), "z"),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 128])],
    )
    x = np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)
    same(tmp_path / "m.onnx", tmp_path / "m.nz.onnx", {"x": x}, ["DecodeInt8", "DecodeInt8"])
    again = tmp_path / "again.onnx"
    assert nzlib.nz("restore", tmp_path / "m.nz.onnx", "-o", again).code == nzlib.OK
    assert again.read_bytes() == (tmp_path / "m.onnx").read_bytes()
