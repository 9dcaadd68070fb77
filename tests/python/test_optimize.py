"""`--optimize`: models that ONNX Runtime optimised before they were converted, in the same ONNX Runtime."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import real_models
from nzlib import IO, LIBRARY, OK, UNSUPPORTED, USAGE, Worker, WorkerError, convert, data_file, nz, nz_nodes
from onnx import TensorProto, helper, numpy_helper
from real_models import every_compressed, needed

ORT_LIB = next(iter(sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))), None)
pytestmark = pytest.mark.skipif(ORT_LIB is None, reason="this package of onnxruntime has no libonnxruntime")

# As the product has it: what ONNX Runtime makes of the CPU.
BLOCK = 16 if "avx512f" in Path("/proc/cpuinfo").read_text() else 8


def optimized(model, output, level, *options):
    return convert(model, output, "--optimize", level, "--ort-lib", ORT_LIB, *options)


def weight(rng, name, *shape):
    return numpy_helper.from_array((rng.standard_normal(shape) * 0.05).astype(np.float32), name)


def save(path, nodes, initializers, inputs, outputs, ir_version=8, opset=13):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, path)
    return path


def image(name, channels, side):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side])


@pytest.fixture
def branches(tmp_path):
    """Convolutions side by side, with a batch normalisation: much to fold and to reorder."""
    rng = np.random.default_rng(1)
    nodes, initializers, parts = [], [], []
    for i in range(6):
        initializers += [weight(rng, f"w{i}", 32, 32, 3, 3), weight(rng, f"v{i}", 32, 32, 1, 1)]
        nodes.append(helper.make_node("Conv", ["x", f"w{i}"], [f"a{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"b{i}"]))
        nodes.append(helper.make_node("Conv", [f"b{i}", f"v{i}"], [f"c{i}"]))
        parts.append(f"c{i}")
        if i == 0:
            for kind, low in (("scale", 1), ("bias", 0), ("mean", 0), ("var", 1)):
                initializers.append(numpy_helper.from_array(np.full(32, low + 0.25, np.float32), kind))
            nodes.append(helper.make_node("BatchNormalization", ["c0", "scale", "bias", "mean", "var"], ["n"]))
            parts[0] = "n"
        if i % 2:
            nodes.append(helper.make_node("Softmax", [f"b{i}"], [f"s{i}"], axis=1))
            parts.append(f"s{i}")
    nodes.append(helper.make_node("Concat", parts, ["y"], axis=1))
    return save(tmp_path / "model.onnx", nodes, initializers, [image("x", 32, 14)], [image("y", 288, 14)])


def inputs_of(path, **arrays):
    file = path.with_suffix(".npz")
    np.savez(file, **arrays)
    return file


def run(model, inputs, library=LIBRARY, profile=False):
    with Worker(model, inputs, library=library, profile=profile) as worker:
        worker.load()
        worker.run()
        return worker.outputs(), worker.nodes() if profile else None


@pytest.fixture
def x(branches):
    return inputs_of(branches, x=np.random.default_rng(2).standard_normal((1, 32, 14, 14)).astype(np.float32))


def metadata(path):
    return {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_native_computes_what_the_original_does(branches, x, tmp_path):
    report = optimized(branches, tmp_path / "m.nz.onnx", "native", "--lossless", "--include", "*")
    assert report["optimized"]["nchwc_block"] == BLOCK
    assert report["input"]["sha256"] == sha256(branches)
    model = onnx.load(tmp_path / "m.nz.onnx", load_external_data=False)
    blocked = [n for n in model.graph.node if n.domain == "com.microsoft.nchwc" and n.op_type == "Conv"]
    decoded = {n.output[0] for n in model.graph.node if n.domain == "nz" and n.op_type == "Decode"}
    assert len(blocked) == 12 and all(n.input[1] in decoded for n in blocked)
    found = metadata(tmp_path / "m.nz.onnx")
    assert found["nz.optimize"] == "native" and found["nz.nchwc_block"] == str(BLOCK)
    assert found["nz.ort_version"] == onnxruntime.__version__
    assert found["nz.original_sha256"] == sha256(branches)
    expected, _ = run(branches, x, library=None)
    outputs, executed = run(tmp_path / "m.nz.onnx", x, profile=True)
    assert nz_nodes(executed)
    # The same kernels on the same weights.
    for a, b in zip(outputs, expected, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("level", ["native", "portable"])
def test_the_same_bytes_every_time(branches, tmp_path, level):
    for i in range(5):
        (tmp_path / str(i)).mkdir()
        optimized(branches, tmp_path / str(i) / "m.nz.onnx", level)
    assert len({(tmp_path / str(i) / "m.nz.onnx").read_bytes() for i in range(5)}) == 1


def test_other_channel_blocks_are_refused(branches, x, tmp_path):
    path = tmp_path / "m.nz.onnx"
    optimized(branches, path, "native")
    model = onnx.load(path, load_external_data=False)
    (attribute,) = [a for a in model.graph.node[0].attribute if a.name == "nchwc_block"]
    assert attribute.i == BLOCK
    attribute.i = other = 24 - BLOCK
    onnx.save(model, path)
    with pytest.raises(WorkerError) as caught:
        run(path, x)
    message = str(caught.value)
    assert f"uses channel blocks of {other}" in message and f"uses channel blocks of {BLOCK}" in message, message
    assert "nz-onnx convert" in message and "--optimize portable" in message, message


def test_block_size_is_stated_where_nothing_is_compressed(branches, x, tmp_path):
    path = tmp_path / "m.nz.onnx"
    report = optimized(branches, path, "native", "--exclude", "*")
    assert report["totals"]["compressed"] == 0
    with pytest.raises(WorkerError, match="register_libnz_onnx_so"):
        run(path, x, library=None)
    run(path, x)


def test_portable_holds_standard_ops_only(branches, x, tmp_path):
    path = tmp_path / "m.nz.onnx"
    report = optimized(branches, path, "portable", "--lossless")
    assert report["optimized"] == {
        "level": "portable",
        "ort_version": onnxruntime.__version__,
        "nchwc_block": None,
        "original_weight_bytes": report["optimized"]["original_weight_bytes"],
    }
    model = onnx.load(path, load_external_data=False)
    assert {n.domain for n in model.graph.node} <= {"", "nz"}
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    assert not model.graph.node[0].attribute
    expected, _ = run(branches, x, library=None)
    outputs, _ = run(path, x)
    assert abs(outputs[0] - expected[0]).max() <= 1e-5 * abs(expected[0]).max()


def test_folded_weights_are_compressed(tmp_path):
    # As in silero_vad: the weight that is read is a Concat of Slices of the one in the file.
    rng = np.random.default_rng(3)
    index = [numpy_helper.from_array(np.array([n]), f"i{n}") for n in (0, 64, 128)]
    nodes = [
        helper.make_node("Slice", ["w", "i0", "i64", "i0"], ["low"]),
        helper.make_node("Slice", ["w", "i64", "i128", "i0"], ["high"]),
        helper.make_node("Concat", ["high", "low"], ["both"], axis=0),
        helper.make_node("MatMul", ["x", "both"], ["y"]),
    ]
    value = lambda name, n: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n])  # noqa: E731
    path = save(
        tmp_path / "model.onnx", nodes, [weight(rng, "w", 128, 96), *index], [value("x", 128)], [value("y", 96)]
    )
    assert convert(path, tmp_path / "off.nz.onnx")["totals"]["compressed"] == 0
    report = optimized(path, tmp_path / "m.nz.onnx", "portable", "--lossless")
    assert report["totals"]["compressed"] == 1
    inputs = inputs_of(path, x=rng.standard_normal((1, 128)).astype(np.float32))
    expected, _ = run(path, inputs, library=None)
    outputs, _ = run(tmp_path / "m.nz.onnx", inputs)
    assert np.allclose(outputs[0], expected[0], rtol=1e-5, atol=1e-6)


def test_old_models_ask_for_no_folded_input(tmp_path):
    # Before IR version 4 initializers are inputs too; the optimiser folds some of them away.
    rng = np.random.default_rng(4)
    initializers = [weight(rng, "w", 32, 32, 3, 3)]
    initializers += [numpy_helper.from_array(np.full(32, 0.5, np.float32), n) for n in ("s", "b", "m", "v")]
    inputs = [image("x", 32, 12)] + [
        helper.make_tensor_value_info(i.name, TensorProto.FLOAT, list(i.dims)) for i in initializers
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
    ]
    path = save(tmp_path / "model.onnx", nodes, initializers, inputs, [image("y", 32, 10)], 3, 7)
    x = inputs_of(path, x=rng.standard_normal((1, 32, 12, 12)).astype(np.float32))
    expected, _ = run(path, x, library=None)
    for level in ("native", "portable"):
        optimized(path, tmp_path / f"{level}.nz.onnx", level, "--lossless")
        outputs, _ = run(tmp_path / f"{level}.nz.onnx", x)
        assert np.allclose(outputs[0], expected[0], rtol=1e-4, atol=1e-5)


def test_external_data_is_read(branches, x, tmp_path):
    model = onnx.load(branches)
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    optimized(folder / "model.onnx", tmp_path / "m.nz.onnx", "native", "--lossless")
    expected, _ = run(branches, x, library=None)
    outputs, _ = run(tmp_path / "m.nz.onnx", x)
    assert np.array_equal(outputs[0], expected[0])


@pytest.mark.parametrize("level", ["native", "portable"])
def test_restore_gives_back_the_optimised_model(branches, x, tmp_path, level):
    path = tmp_path / "m.nz.onnx"
    optimized(branches, path, level, "--lossless")
    outcome = nz("restore", path, "-o", tmp_path / "back.onnx", "--json")
    assert outcome.code == OK and outcome.json["identical"] and outcome.json["optimized"] == level, outcome
    assert sha256(tmp_path / "back.onnx") == metadata(path)["nz.source_sha256"] != sha256(branches)
    expected, _ = run(path, x)
    outputs, _ = run(tmp_path / "back.onnx", x, library=None)
    assert np.allclose(outputs[0], expected[0], rtol=1e-5, atol=1e-6)


def verify(path, original, *options):
    return nz("verify", path, "--original", original, "--ort-lib", ORT_LIB, "--json", *options)


@pytest.mark.parametrize("level", ["native", "portable"])
def test_verify_optimises_the_original_again(branches, tmp_path, level):
    path = tmp_path / "m.nz.onnx"
    optimized(branches, path, level, "--lossless")
    outcome = verify(path, branches, "--run")
    assert outcome.code == OK, outcome
    assert onnxruntime.__version__ in outcome.json["compared_with"]
    assert all(blob["matches_original"] for blob in outcome.json["blobs"])
    assert outcome.json["run"]["outputs"][0]["within_tolerance"] is True
    assert verify(path, branches).code == OK


def test_verify_says_what_it_could_not_compare(branches, tmp_path):
    path = tmp_path / "m.nz.onnx"
    optimized(branches, path, "native", "--lossless")
    model = onnx.load(path, load_external_data=False)
    (entry,) = [p for p in model.metadata_props if p.key == "nz.ort_version"]
    entry.value = "1.2.3"
    onnx.save(model, path)
    outcome = verify(path, branches)
    assert outcome.code == UNSUPPORTED, outcome
    assert "1.2.3" in outcome.stderr and "--ort-lib" in outcome.stderr and "--run" in outcome.stderr, outcome
    outcome = verify(path, branches, "--run")
    assert outcome.code == OK, outcome
    assert outcome.json["compared_with"] is None and "1.2.3" in outcome.json["not_compared"]
    assert all(blob["matches_original"] is None for blob in outcome.json["blobs"])


def test_verify_notices_another_original(branches, tmp_path):
    path = tmp_path / "m.nz.onnx"
    optimized(branches, path, "native")
    model = onnx.load(branches)
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save(model, tmp_path / "other.onnx")
    outcome = verify(path, tmp_path / "other.onnx")
    assert outcome.code == UNSUPPORTED and "makes another model" in outcome.stderr, outcome


def test_plan_shows_the_optimised_model(branches):
    outcome = nz("plan", branches, "--optimize", "native", "--ort-lib", ORT_LIB, "--include", "*", "--json")
    assert outcome.code == OK, outcome
    assert outcome.json["input"]["path"] == str(branches)
    assert outcome.json["optimized"]["nchwc_block"] == BLOCK
    assert sum(tensor["decision"] == "compressed" for tensor in outcome.json["tensors"]) >= 12


def test_nothing_is_left_behind(branches, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "m.nz.onnx"
    optimized(branches, path, "native")
    assert {p.name for p in folder.iterdir()} <= {path.name, data_file(path).name}
    before = set(folder.iterdir())
    common = ("-o", folder / "n.nz.onnx", "--optimize", "native", "--ort-lib", ORT_LIB)
    assert nz("convert", branches, *common, "--ratio", "0.01").code == 3
    assert set(folder.iterdir()) == before
    # ONNX Runtime does not know the op.
    model = onnx.load(branches)
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, tmp_path / "bad.onnx")
    outcome = nz("convert", tmp_path / "bad.onnx", *common)
    assert outcome.code == UNSUPPORTED and "Unheard" in outcome.stderr and "bad.onnx" in outcome.stderr, outcome
    assert set(folder.iterdir()) == before
    assert nz("convert", branches, *common, "--dry-run").code == OK
    assert set(folder.iterdir()) == before


def test_without_onnx_runtime(branches, tmp_path):
    common = ("convert", branches, "-o", tmp_path / "m.nz.onnx")
    outcome = nz(*common, "--optimize", "native", "--ort-lib", tmp_path / "none.so")
    assert outcome.code == USAGE and "none.so" in outcome.stderr and "--ort-lib" in outcome.stderr, outcome
    bare = {k: v for k, v in os.environ.items() if k not in ("ORT_DYLIB_PATH", "VIRTUAL_ENV")}
    bare["PATH"] = str(tmp_path)
    outcome = nz(*common, "--optimize", "native", env=bare)
    assert outcome.code == USAGE and "ONNX Runtime was not found" in outcome.stderr, outcome
    (tmp_path / "fake.so").write_bytes(b"not a library")
    outcome = nz(*common, "--optimize", "portable", "--ort-lib", tmp_path / "fake.so")
    assert outcome.code == IO and "fake.so" in outcome.stderr, outcome
    outcome = nz(*common, "--ort-lib", ORT_LIB)
    assert outcome.code == USAGE and "--optimize" in outcome.stderr, outcome
    assert not (tmp_path / "m.nz.onnx").exists()


def test_converted_models_are_not_optimised(branches, tmp_path):
    convert(branches, tmp_path / "m.nz.onnx")
    outcome = nz("convert", tmp_path / "m.nz.onnx", "--optimize", "native", "--ort-lib", ORT_LIB)
    assert outcome.code == UNSUPPORTED and "already converted" in outcome.stderr, outcome


@needed
@every_compressed
@pytest.mark.parametrize("level", ["native", "portable"])
def test_real_models_run_like_the_original(model, level, tmp_path, say):
    converted = tmp_path / "model.nz.onnx"
    report = optimized(model.path, converted, level, "--lossless")
    assert report["totals"]["lossless"] and report["totals"]["compressed"] > 0
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, **model.inputs())
    expected, _ = run(model.path, inputs, library=None)
    outputs, executed = run(converted, inputs, profile=True)
    assert set(executed) == {"CPUExecutionProvider"} and nz_nodes(executed)
    worst = 0.0
    for a, b in zip(outputs, expected, strict=True):
        if b.dtype.kind == "f" and b.size:
            a, b = a.astype(np.float64), b.astype(np.float64)
            worst = max(worst, abs(a - b).max() / max(abs(b).max(), np.finfo(np.float32).tiny))
        elif b.dtype.kind != "O":
            assert np.array_equal(a, b)
    say(f"{model} {level}: ratio {report['totals']['ratio']:.3f}, outputs differ by {worst:.1e}")
    assert worst <= (1e-3 if model.half else 1e-5)
    outcome = verify(converted, model.path)
    assert outcome.code == OK, outcome


@needed
@pytest.mark.parametrize("model", [m for m in real_models.ALL if m.half], ids=str)
def test_float16_models_decode_to_what_is_computed_in(model, tmp_path):
    optimized(model.path, tmp_path / "m.nz.onnx", "native")
    graph = onnx.load(tmp_path / "m.nz.onnx", load_external_data=False).graph
    decoded = {n.output[0] for n in graph.node if n.domain == "nz" and n.op_type == "Decode"}
    casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in decoded]
    assert not casts, casts
