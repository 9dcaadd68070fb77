"""`convert --base` with a converted base: both models in one process, weights of the base in memory once."""

import shutil

import numpy as np
import nzlib
import onnx
import onnxruntime
import pytest
import real_models
from onnx import TensorProto, helper, numpy_helper
from test_delta import tune

pytestmark = real_models.needed

ROWS, INNER, COLUMNS = 96, 256, 320


def of_dtype(name, dtype, values):
    """An initializer of this ONNX dtype."""
    if dtype == TensorProto.BFLOAT16:
        bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return helper.make_tensor(name, dtype, values.shape, bits.tobytes(), raw=True)
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(dtype)), name)


def every_op(path, dtype, change=0.0, seed=7):
    """A model whose weights are read by all the ops that take deltas: Gather, MatMul, Gemm with and without C, either
    way round, and Conv. `change` is how much each weight is changed by, relative to its size."""
    rng, tuning = np.random.default_rng(1), np.random.default_rng(seed)

    def weight(name, *shape):
        values = rng.standard_normal(shape) / np.sqrt(INNER)
        values = values + change * tuning.standard_normal(shape) / np.sqrt(INNER)
        return of_dtype(name, dtype, values)

    weights = [
        weight("table", 1000, INNER),
        weight("matmul", INNER, COLUMNS),
        weight("gemm", COLUMNS, INNER),
        weight("gemm_c", INNER, COLUMNS),
        weight("gemm_t", INNER, COLUMNS),
        weight("conv", 256, 1, 3, 200),
    ]
    read = {proto.name: proto.name for proto in weights}
    nodes = []
    for name in read:
        if dtype != TensorProto.FLOAT:
            read[name] = f"{name}.f32"
            nodes.append(helper.make_node("Cast", [name], [read[name]], to=TensorProto.FLOAT))
    rest = [numpy_helper.from_array(rng.standard_normal(COLUMNS).astype(np.float32), "c")]
    rest.append(numpy_helper.from_array(np.array([1, 1, ROWS, COLUMNS]), "picture"))
    nodes += [
        helper.make_node("Gather", [read["table"], "ids"], ["x"]),
        helper.make_node("MatMul", ["x", read["matmul"]], ["a"]),
        helper.make_node("Gemm", ["a", read["gemm"]], ["b"]),
        helper.make_node("Gemm", ["b", read["gemm_c"], "c"], ["d"]),
        helper.make_node("Gemm", ["d", read["gemm_t"]], ["e"], transB=1),
        helper.make_node("Reshape", ["d", "picture"], ["image"]),
        helper.make_node("Conv", ["image", read["conv"]], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [ROWS])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("e", "y")]
    graph = helper.make_graph(nodes, "every_op", inputs, outputs, [*weights, *rest])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def session(path, **config):
    options = onnxruntime.SessionOptions()
    for key, value in config.items():
        options.add_session_config_entry(key.replace("_", ".", 1), value)
    options.register_custom_ops_library(str(nzlib.LIBRARY))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))


def share(folder, *base_options):
    """The base in `folder` converted, and the tuned model, with it and without."""
    assert nzlib.nz("convert", folder / "base.onnx", *base_options).code == nzlib.OK
    nzlib.convert(folder / "tuned.onnx", folder / "alone.nz.onnx", "--lossless")
    outcome = nzlib.nz("convert", folder / "tuned.onnx", "--base", folder / "base.nz.onnx", "--json")
    assert outcome.code == nzlib.OK, outcome
    return outcome.json


@pytest.mark.parametrize("base_options", [("--lossless",), (), ("--bits", "6", "--transform", "grid")], ids=str)
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_every_op(dtype, base_options, tmp_path):
    every_op(tmp_path / "base.onnx", dtype)
    every_op(tmp_path / "tuned.onnx", dtype, 1e-3)
    report = share(tmp_path, *base_options)
    assert report["totals"]["lossless"]
    if base_options == ("--lossless",):
        assert {t["encoding"] for t in report["tensors"] if t["bytes_before"] > 1 << 17} == {"delta difference"}
    tuned = session(tmp_path / "tuned.nz.onnx")
    alone = session(tmp_path / "alone.nz.onnx")
    for seed in (1, 2):
        inputs = {"ids": np.random.default_rng(seed).integers(-1000, 1000, ROWS)}
        expected = alone.run(None, inputs)
        assert same(tuned.run(None, inputs), expected)
        assert same(session(tmp_path / "tuned.nz.onnx", nz_cache_mib="64").run(None, inputs), expected)
    verified = nzlib.nz("verify", tmp_path / "tuned.nz.onnx", "--original", tmp_path / "tuned.onnx", "--json")
    assert verified.code == nzlib.OK and all(b["matches_original"] for b in verified.json["blobs"]), verified
    inspected = nzlib.nz("inspect", tmp_path / "tuned.nz.onnx", "--json")
    assert inspected.code == nzlib.OK and all(b["checksum_ok"] for b in inspected.json["blobs"]), inspected
    assert nzlib.nz("restore", tmp_path / "tuned.nz.onnx").code == nzlib.OK
    assert (tmp_path / "tuned.restored.onnx").read_bytes() == (tmp_path / "tuned.onnx").read_bytes()


@pytest.mark.parametrize("name", ["minilm_l6_v8k_fp16", "prisma_portrait", "silero_vad", "dtln_2_extdata"])
def test_tuned_real_models(name, tmp_path):
    shutil.copy(nzlib.MODELS / f"{name}.onnx", tmp_path / "base.onnx")
    for data in nzlib.MODELS.glob(f"{name}.onnx.*"):
        shutil.copy(data, tmp_path)
    tune(tmp_path / "base.onnx", tmp_path / "tuned.onnx", 1e-3)
    report = share(tmp_path, "--lossless")
    alone = nzlib.nz("inspect", tmp_path / "alone.nz.onnx", "--json").json
    own = sum(blob["bytes"] for blob in alone["blobs"])
    assert report["totals"]["bytes_after"] <= own + report["totals"]["bytes_before"] / 8
    if name.startswith("minilm"):
        assert report["totals"]["ratio"] < 0.25
    inputs = nzlib.known_inputs(nzlib.MODELS / f"{name}.onnx")
    both = [session(tmp_path / model) for model in ("alone.nz.onnx", "tuned.nz.onnx")]
    assert same(*(model.run(None, inputs) for model in both))
    assert nzlib.nz("verify", tmp_path / "tuned.nz.onnx").code == nzlib.OK
    assert nzlib.nz("restore", tmp_path / "tuned.nz.onnx").code == nzlib.OK
    assert (tmp_path / "tuned.restored.onnx").read_bytes() == (tmp_path / "tuned.onnx").read_bytes()


def head_only(folder):
    """A base and a variant of it of which one weight in five is another."""
    every_op(folder / "base.onnx", TensorProto.FLOAT)
    model = onnx.load(folder / "base.onnx")
    for proto in model.graph.initializer:
        if proto.name == "gemm_t":
            other = numpy_helper.to_array(proto) * np.float32(1.001)
            proto.CopyFrom(numpy_helper.from_array(other, proto.name))
    onnx.save(model, folder / "tuned.onnx")


def test_weights_that_are_the_bases_take_no_bytes(tmp_path):
    head_only(tmp_path)
    report = share(tmp_path, "--lossless")
    encodings = {t["name"]: t["encoding"] for t in report["tensors"] if t["bytes_before"] > 1 << 17}
    assert encodings == dict.fromkeys(encodings, "base") | {"gemm_t": "delta difference"}
    assert sum(t["bytes_after"] for t in report["tensors"] if t["encoding"] == "base") == 0
    inputs = {"ids": np.arange(ROWS)}
    expected = session(tmp_path / "alone.nz.onnx").run(None, inputs)
    assert same(session(tmp_path / "tuned.nz.onnx").run(None, inputs), expected)
    restored = nzlib.nz("restore", tmp_path / "tuned.nz.onnx", "-o", tmp_path / "again.onnx")
    assert restored.code == nzlib.OK
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "tuned.onnx").read_bytes()


@pytest.mark.parametrize("verify", ["full", "header"])
def test_another_base_is_refused(verify, tmp_path, monkeypatch):
    monkeypatch.setenv("NZ_VERIFY", verify)
    head_only(tmp_path)
    share(tmp_path, "--lossless")
    data = nzlib.data_file(tmp_path / "base.nz.onnx")
    good = data.read_bytes()
    # A base of the same shapes: sizes and places of blobs are nearly the same.
    every_op(tmp_path / "other.onnx", TensorProto.FLOAT, 1e-3, seed=8)
    nzlib.convert(tmp_path / "other.onnx", tmp_path / "other.nz.onnx", "--lossless")
    other = nzlib.data_file(tmp_path / "other.nz.onnx").read_bytes()
    swapped = other[: len(good)].ljust(len(good), b"\0")
    for broken in (swapped, bytes(len(good))):
        data.write_bytes(broken)
        with pytest.raises(Exception, match=r"base\.nz\.onnx\.data.*--base") as caught:
            session(tmp_path / "tuned.nz.onnx")
        assert ".nz'" in str(caught.value), caught.value
        verified = nzlib.nz("verify", tmp_path / "tuned.nz.onnx", "--json")
        assert verified.code == nzlib.CORRUPT and "base.nz.onnx.data" in str(verified.json["problems"])
        restored = nzlib.nz("restore", tmp_path / "tuned.nz.onnx")
        assert restored.code == nzlib.CORRUPT and "SHA-256" in restored.stderr, restored
        assert not (tmp_path / "tuned.restored.onnx").exists()
    data.rename(tmp_path / "away")
    with pytest.raises(Exception, match=r"base\.nz\.onnx\.data"):
        session(tmp_path / "tuned.nz.onnx")
    wanted = nzlib.nz("inspect", tmp_path / "tuned.nz.onnx", "--json")
    for command in ("inspect", "verify", "restore"):
        outcome = nzlib.nz(command, tmp_path / "tuned.nz.onnx")
        assert outcome.code == nzlib.USAGE, outcome
        assert "base.nz.onnx.data" in outcome.stderr and "SHA-256" in outcome.stderr, outcome
    assert wanted.code == nzlib.USAGE
    (tmp_path / "away").rename(data)
    data.write_bytes(good)
    session(tmp_path / "tuned.nz.onnx")


def test_bases_that_cannot_be(tmp_path):
    head_only(tmp_path)
    share(tmp_path, "--lossless")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "tuned.onnx", tmp_path / "elsewhere")

    def refused(*arguments):
        outcome = nzlib.nz("convert", *arguments)
        assert outcome.code == nzlib.USAGE, outcome
        return outcome.stderr

    elsewhere = tmp_path / "elsewhere/tuned.onnx"
    assert str(tmp_path / "tuned.nz.onnx") in refused(elsewhere, "--base", tmp_path / "base.nz.onnx")
    # With the output in the right folder it is fine, wherever the input is.
    outcome = nzlib.nz("convert", elsewhere, "--base", tmp_path / "base.nz.onnx", "-o", tmp_path / "t2.nz.onnx")
    assert outcome.code == nzlib.OK, outcome
    said = refused(tmp_path / "tuned.onnx", "--base", tmp_path / "t2.nz.onnx", "-o", tmp_path / "t3.nz.onnx")
    assert "base.nz.onnx.data" in said
    base = tmp_path / "base.nz.onnx"
    assert "base" in refused(tmp_path / "tuned.onnx", "--base", base, "-o", base, "--force")


def test_memory_of_base_and_variant(tmp_path, say):
    """The proportional share of memory, as a process that maps the base's file twice is charged for."""
    folder = tmp_path
    shutil.copy(nzlib.MODELS / "minilm_l6_v8k_fp16.onnx", folder / "base.onnx")
    tune(folder / "base.onnx", folder / "tuned.onnx", 1e-3)
    share(folder, "--lossless")
    inputs = folder / "inputs.npz"
    np.savez(inputs, **nzlib.known_inputs(nzlib.MODELS / "minilm_l6_v8k_fp16.onnx"))
    shared, separate = (
        both_sessions(inputs, folder / "base.nz.onnx", folder / name) for name in ("tuned.nz.onnx", "alone.nz.onnx")
    )
    alone = nzlib.data_file(folder / "alone.nz.onnx").stat().st_size / nzlib.MIB
    own = nzlib.data_file(folder / "tuned.nz.onnx").stat().st_size / nzlib.MIB
    say(f"base and variant: {shared:.1f} MiB, as separate models {separate:.1f} MiB")
    assert separate - shared > 0.8 * (alone - own)


def both_sessions(inputs, *models):
    """MiB that sessions of these models add to a process, its share of what is mapped more than once counted once."""
    import subprocess
    import sys

    script = """
import re, sys, numpy, onnxruntime
onnxruntime.set_default_logger_severity(3)
def mib():
    return int(re.search(r"^Pss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read(), re.M)[1]) / 1024
library, inputs, *models = sys.argv[1:]
inputs, before, kept = dict(numpy.load(inputs)), mib(), []
for model in models:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    kept.append(onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
    kept[-1].run(None, inputs)
print(mib() - before)
"""
    command = [sys.executable, "-c", script, str(nzlib.LIBRARY), str(inputs), *map(str, models)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_damage_is_found_when_the_session_opens(tmp_path):
    every_op(tmp_path / "base.onnx", TensorProto.FLOAT)
    every_op(tmp_path / "tuned.onnx", TensorProto.FLOAT, 1e-3)
    share(tmp_path, "--lossless")
    rng = np.random.default_rng(3)
    for model in ("tuned", "base"):
        data = nzlib.data_file(tmp_path / f"{model}.nz.onnx")
        good = data.read_bytes()
        found = 0
        for place in rng.integers(0, len(good), 12):
            if good[place : place + 64] == bytes(64):
                continue  # between blobs
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            data.write_bytes(bad)
            with pytest.raises(Exception, match=r"convert the model again|format version|update"):
                session(tmp_path / "tuned.nz.onnx")
            assert nzlib.nz("verify", tmp_path / "tuned.nz.onnx").code != nzlib.OK
            found += 1
        assert found > 3
        for length in (0, len(good) // 2, len(good) - 1):
            data.write_bytes(good[:length])
            with pytest.raises(Exception):
                session(tmp_path / "tuned.nz.onnx")
            for command in ("verify", "restore"):
                assert nzlib.nz(command, tmp_path / "tuned.nz.onnx").code != nzlib.OK
        data.write_bytes(good)
    session(tmp_path / "tuned.nz.onnx")
