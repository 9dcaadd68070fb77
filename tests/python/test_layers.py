"""convert --layers and nz.bits: one file, several memory budgets."""

import json

import generate
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nzlib import LIBRARY, MIB, OK, USAGE, Worker, convert, data_file, nz
from onnx import TensorProto, helper, numpy_helper

SIZE = 512
MANTISSA = {TensorProto.FLOAT: 23, TensorProto.FLOAT16: 10, TensorProto.BFLOAT16: 7}


def words_of(weights, dtype):
    """Weights of this dtype, as the float32 words that they stand for."""
    words = weights.astype(np.float32).view(np.uint32)
    if dtype == TensorProto.FLOAT16:
        return weights.astype(np.float16).astype(np.float32).view(np.uint32)
    return words & np.uint32(0xFFFF0000) if dtype == TensorProto.BFLOAT16 else words


def cut(words, dtype, known):
    """The words of weights of which so many mantissa bits are known, as docs/format.md has them."""
    if known >= MANTISSA[dtype]:
        return words
    least = np.uint32((113 if dtype == TensorProto.FLOAT16 else 1) << 23)
    kept = words & np.uint32(0xFFFFFFFF >> (23 - known) << (23 - known))
    centre = np.where(kept & 0x7FFFFFFF >= least, np.uint32(1 << (22 - known)), np.uint32(0))
    return kept | centre


def raw(words, dtype):
    """The elements' bytes."""
    if dtype == TensorProto.FLOAT:
        return words.tobytes()
    if dtype == TensorProto.FLOAT16:
        return words.view(np.float32).astype(np.float16).tobytes()
    return (words >> 16).astype(np.uint16).tobytes()


def write(path, weights, dtype, known=23):
    """y = x W, then rows of W that indices name; W may be read through a Cast to float32."""
    words = cut(words_of(weights, dtype), dtype, known)
    tensor = helper.make_tensor("W", dtype, weights.shape, raw(words, dtype), raw=True)
    nodes, name = [], "W"
    if dtype != TensorProto.FLOAT:
        nodes, name = [helper.make_node("Cast", ["W"], ["F"], to=TensorProto.FLOAT)], "F"
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"]))
    values = [("x", [None, SIZE]), ("y", [None, SIZE])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in values)
    graph = helper.make_graph(nodes, "layers", [x], [y], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def session(path, bits=None):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if bits is not None:
        options.add_session_config_entry("nz.bits", str(bits))
    options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def plain_outputs(path, x):
    """The outputs of a model without nodes of ours."""
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def depths(path):
    """Raw bits and bits a weight of each depth of the model's first layered weight."""
    outcome = nz("inspect", path, "--json")
    assert outcome.code == OK, outcome
    blob = next(blob for blob in outcome.json["blobs"] if blob.get("depths"))
    return [(depth["raw_bits"], depth["bits_per_weight"], depth["bytes"]) for depth in blob["depths"]]


@pytest.mark.parametrize("dtype", MANTISSA, ids=["float32", "float16", "bfloat16"])
def test_outputs_are_those_of_weights_cut_at_that_depth(dtype, tmp_path):
    rng = np.random.default_rng(1)
    weights = (rng.standard_normal((SIZE, SIZE)) * 0.05).astype(np.float32)
    weights[::7, 3] = 0
    plain = write(tmp_path / "plain.onnx", weights, dtype)
    layered = tmp_path / "layered.nz.onnx"
    convert(plain, layered, "--lossless", "--layers")
    found = depths(layered)
    wanted = [known for known in (3, 7, 15) if known < MANTISSA[dtype]] + [MANTISSA[dtype]]
    assert [known for known, _, _ in found] == wanted
    errors = []
    for rows in (1, 3):
        x = rng.standard_normal((rows, SIZE)).astype(np.float32)
        exact = plain_outputs(plain, x)
        for known, bits, _ in found:
            same = write(tmp_path / "cut.onnx", weights, dtype, known)
            expected = plain_outputs(same, x)
            y = session(layered, bits + 1e-6).run(None, {"x": x})[0]
            assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
            errors.append(np.abs(y - exact).max() / np.abs(exact).max())
        # All of it is the default, and what is not enough for the next layer leaves it out.
        assert np.array_equal(session(layered).run(None, {"x": x})[0], y)
        assert np.array_equal(session(layered, "all").run(None, {"x": x})[0], y)
        least = session(layered, 1).run(None, {"x": x})[0]
        assert np.array_equal(least, session(layered, found[1][1] - 0.01).run(None, {"x": x})[0])
    per_rows = np.array(errors).reshape(2, -1)
    assert (np.diff(per_rows) < 0).all() and per_rows.max() < 0.05 and per_rows[:, -1].max() < 1e-5

    for arguments in (["verify", layered, "--original", plain], ["verify", layered]):
        assert nz(*arguments).code == OK
    restored = tmp_path / "restored.onnx"
    assert nz("restore", layered, "-o", restored).code == OK
    assert restored.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("options", [(), ("--transform", "grid"), ("--ratio", "0.4", "--transform", "auto")])
def test_rounded_weights_have_layers_too(options, tmp_path):
    rng = np.random.default_rng(2)
    weights = (rng.standard_normal((SIZE, SIZE)) * 0.05).astype(np.float32)
    plain, restored = tmp_path / "plain.onnx", tmp_path / "restored.onnx"
    write(plain, weights, TensorProto.FLOAT)
    layered = tmp_path / "layered.nz.onnx"
    report = convert(plain, layered, *options, "--layers=2,6")
    if options:
        assert report["totals"]["ratio"] <= 0.505
    found = depths(layered)
    x = rng.standard_normal((2, SIZE)).astype(np.float32)
    exact = plain_outputs(plain, x)
    outputs = [session(layered, bits + 1e-6).run(None, {"x": x})[0] for _, bits, _ in found]
    errors = [np.abs(y - exact).max() / np.abs(exact).max() for y in outputs]
    assert len(errors) == 3 and sorted(errors, reverse=True) == errors and errors[0] < 0.2
    assert nz("verify", layered, "--original", plain).code == OK
    assert nz("restore", layered, "-o", restored).code == OK
    made = plain_outputs(restored, x)
    assert np.abs(outputs[-1] - made).max() <= 1e-5 * np.abs(made).max()


def test_resident_memory_falls_with_bits(tmp_path, say):
    size, count = 2048, 8
    plain = generate.matmul_chain(tmp_path / "plain.onnx", count, size)
    layered = tmp_path / "layered.nz.onnx"
    convert(plain, layered, "--lossless", "--layers")
    inputs = tmp_path / "x.npz"
    np.savez(inputs, x=np.ones((1, size), np.float32))
    found, resident, outputs = depths(layered), [], []
    for _, bits, _ in found:
        # A little more than the first weight takes: no two take the same.
        environment = {"NZ_BITS": f"{bits + 0.1:.6f}"}
        with Worker(layered, inputs, library=LIBRARY, environment=environment) as worker:
            worker.load()
            worker.run(3)
            resident.append(worker.memory()["rss"])
            outputs.append(worker.outputs()[0])
    for (_, bits, bytes_), rss in zip(found, resident):
        say(f"{bits:.2f} bits: weights {bytes_ * count / MIB:.1f} MiB, resident {rss / MIB:.1f} MiB")
    for i in range(len(found) - 1):
        less = (found[i + 1][2] - found[i][2]) * count
        # Where the file system has huge pages, the one in which reading ends counts whole.
        assert less - 2 * MIB * count <= resident[i + 1] - resident[i] <= less + 2 * MIB
    assert resident[-1] - resident[0] >= 0.85 * (found[-1][2] - found[0][2]) * count
    # What the default says when nothing is set.
    with Worker(layered, inputs, library=LIBRARY) as worker:
        worker.load()
        worker.run()
        assert np.array_equal(worker.outputs()[0], outputs[-1])


def test_what_is_not_read_may_be_damaged(tmp_path):
    weights = np.random.default_rng(3).standard_normal((SIZE, SIZE)).astype(np.float32)
    plain = write(tmp_path / "plain.onnx", weights, TensorProto.FLOAT)
    layered = tmp_path / "layered.nz.onnx"
    convert(plain, layered, "--lossless", "--layers=7")
    (_, bits, _), _ = depths(layered)
    x = {"x": np.ones((1, SIZE), np.float32)}
    expected = session(layered, bits + 1e-6).run(None, x)[0]
    with open(data_file(layered), "r+b") as file:
        file.seek(-9, 2)
        byte = file.read(1)
        file.seek(-9, 2)
        file.write(bytes([byte[0] ^ 1]))
    assert np.array_equal(session(layered, bits + 1e-6).run(None, x)[0], expected)
    with pytest.raises(Exception, match="checksum of layer 1 differs"):
        session(layered)
    assert nz("verify", layered).code != OK


@pytest.mark.parametrize("text", ["few", "0", "33", "-1", "nan", ""])
def test_wrong_bits_are_an_error(text, tmp_path):
    weights = np.random.default_rng(3).standard_normal((SIZE, SIZE)).astype(np.float32)
    plain = write(tmp_path / "plain.onnx", weights, TensorProto.FLOAT)
    convert(plain, tmp_path / "model.nz.onnx", "--lossless", "--layers")
    wanted = f"session option nz.bits is '{text}': set it to 'all', or .*from 1 to 32"
    with pytest.raises(Exception, match=wanted):
        session(tmp_path / "model.nz.onnx", text)


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--layers=7,3"], ["--layers", "ascending", "3,7,15"]),
        (["--layers=1,2,3,4"], ["--layers", "1 to 3"]),
        (["--layers", "--transform", "codebook", "--bits", "4"], ["codebook", "--transform cut"]),
        (["--layers", "--profile", "gpu"], ["--profile gpu", "compact"]),
        (["--layers", "--base", "other.onnx"], ["--layers", "--base"]),
    ],
)
def test_options_that_make_no_sense_together(arguments, parts, tmp_path):
    weights = np.zeros((SIZE, SIZE), np.float32)
    outcome = nz("convert", write(tmp_path / "plain.onnx", weights, TensorProto.FLOAT), *arguments)
    assert outcome.code == USAGE and all(part in outcome.stderr for part in parts), outcome


def test_small_and_special_weights_stay_whole(tmp_path):
    weights = np.random.default_rng(4).standard_normal((SIZE, SIZE)).astype(np.float32)
    weights[5, 5] = np.inf
    plain = write(tmp_path / "plain.onnx", weights, TensorProto.FLOAT)
    convert(plain, tmp_path / "model.nz.onnx", "--lossless", "--layers")
    outcome = nz("inspect", tmp_path / "model.nz.onnx", "--json")
    assert all("depths" not in blob for blob in json.loads(outcome.stdout)["blobs"])
    assert numpy_helper.to_array(onnx.load(str(plain)).graph.initializer[0])[5, 5] == np.inf
