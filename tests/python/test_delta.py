"""`convert --base` on fine-tuned variants of real models: sizes against the delta's entropy, and every byte back."""

import shutil

import numpy as np
import nzlib
import onnx
import onnxio
import pytest
import real_models
from onnx import TensorProto

pytestmark = real_models.needed

# Of a merged update, as LoRA leaves it behind.
RANK = 16


def tune(path, output, relative, seed=0):
    """A low-rank update of all matrices, each by `relative` of its size, and of the other weights half as much of noise;
    of an embedding only every fourth row, as if the other tokens had not been in the data."""
    rng = np.random.default_rng(seed)
    model = onnx.load(str(path))
    gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    for proto in model.graph.initializer:
        if proto.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16) or len(proto.dims) < 1:
            continue
        weight = onnx.numpy_helper.to_array(proto)
        wide = weight.astype(np.float32)
        size = float(np.sqrt(np.mean(wide**2)))
        if weight.ndim == 2 and min(weight.shape) > RANK:
            update = rng.standard_normal((weight.shape[0], RANK)) @ rng.standard_normal((RANK, weight.shape[1]))
            update *= relative * size / np.sqrt(RANK)
            if proto.name in gathered:
                update[np.arange(len(update)) % 64 >= 16] = 0
        else:
            update = rng.standard_normal(weight.shape) * relative * size / 2
        tuned = (wide + update.astype(np.float32)).astype(weight.dtype)
        proto.CopyFrom(onnx.numpy_helper.from_array(tuned, proto.name))
    onnx.save(model, str(output))


def entropy(values):
    """Bits in all, by the values' own frequencies."""
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(len(values) / counts))


def bytewise_xor(tuned, base):
    """Bytes that the XOR of two tensors takes if each of its bytes is coded at the entropy of its place: what BitX comes
    to with an ideal coder of bytes."""
    planes = (tuned.bits ^ base.bits).view(np.uint8).reshape(-1, tuned.bits.itemsize)
    return sum(entropy(planes[:, i]) for i in range(planes.shape[1])) / 8


@pytest.mark.parametrize("relative", [1e-3, 1e-2])
@pytest.mark.parametrize("name", ["stories260k", "minilm_l6_v8k_fp16"])
def test_a_tuned_model_is_as_small_as_its_update(name, relative, tmp_path, say):
    base = tmp_path / "base.onnx"
    shutil.copy(nzlib.MODELS / f"{name}.onnx", base)
    tuned = tmp_path / "tuned.onnx"
    tune(base, tuned, relative)
    outcome = nzlib.nz("convert", tuned, "--base", base, "--json")
    assert outcome.code == nzlib.OK, outcome
    report = outcome.json
    assert report["schema"] == "nz-onnx.delta/1"

    stored = {tensor["name"]: tensor for tensor in report["tensors"]}
    plain = {tensor.name: tensor for tensor in onnxio.float_tensors(base)}
    large = [t for t in onnxio.float_tensors(tuned) if t.nbytes >= 4096]
    assert large
    assert all(stored[t.name]["encoding"].startswith("delta") for t in large)
    ideal = sum(bytewise_xor(t, plain[t.name]) for t in large)
    taken = sum(stored[t.name]["bytes_after"] for t in large)
    lossless = nzlib.convert(tuned, tmp_path / "lossless.nz.onnx", "--lossless")["totals"]["bytes_after"]
    count = sum(t.bits.size for t in large)
    say(
        f"{name}, update {relative:g}: {8 * taken / count:.2f} bits a weight, XOR by bytes {8 * ideal / count:.2f}, "
        f"file {report['ratio']:.3f} of the model, {report['bytes_after'] / lossless:.3f} of lossless"
    )
    assert taken <= ideal, "more than the entropy of the XOR's bytes"
    assert report["bytes_after"] < 0.8 * lossless
    assert report["bytes_after"] == (tmp_path / "tuned.nzd").stat().st_size

    assert nzlib.nz("restore", tmp_path / "tuned.nzd").code == nzlib.OK
    assert (tmp_path / "tuned.restored.onnx").read_bytes() == tuned.read_bytes()


def test_what_did_not_change_costs_nothing(tmp_path):
    base = nzlib.MODELS / "minilm_l6_v8k_fp16.onnx"
    model = onnx.load(str(base))
    proto = max(model.graph.initializer, key=lambda p: len(p.raw_data))
    weight = onnx.numpy_helper.to_array(proto).copy()
    weight[:16] += np.float16(0.01)
    proto.CopyFrom(onnx.numpy_helper.from_array(weight, proto.name))
    onnx.save(model, str(tmp_path / "tuned.onnx"))
    report = nzlib.nz("convert", tmp_path / "tuned.onnx", "--base", base, "--json").json
    assert sum(t["encoding"] == "base" for t in report["tensors"]) >= 100
    assert report["ratio"] < 0.01
    assert nzlib.nz("restore", tmp_path / "tuned.nzd", "--base", base).code == nzlib.OK
    assert (tmp_path / "tuned.restored.onnx").read_bytes() == (tmp_path / "tuned.onnx").read_bytes()


def test_external_data_comes_back(tmp_path):
    """A model with a data file, to a base with a data file of the same name in another folder."""
    folder = tmp_path / "base"
    folder.mkdir()
    for file in nzlib.MODELS.glob("dtln_2_extdata.onnx*"):
        shutil.copy(file, folder)
    (tmp_path / "tuned").mkdir()
    shutil.copytree(folder, tmp_path / "tuned", dirs_exist_ok=True)
    data = next((tmp_path / "tuned").glob("*.data"))
    weights = np.fromfile(data, np.float32)
    weights *= np.float32(1 + 1e-4)
    weights.tofile(data)
    model, base = (tmp_path / part / "dtln_2_extdata.onnx" for part in ("tuned", "base"))
    report = nzlib.nz("convert", model, "--base", base, "--json").json
    assert report["ratio"] < 0.6
    delta = tmp_path / "tuned/dtln_2_extdata.nzd"
    out = tmp_path / "out/again.onnx"
    out.parent.mkdir()
    assert nzlib.nz("restore", delta, "--base", base, "-o", out).code == nzlib.OK
    assert out.read_bytes() == model.read_bytes()
    assert (out.parent / data.name).read_bytes() == data.read_bytes()
    # The base's own files are not replaced, even if asked.
    outcome = nzlib.nz("restore", delta, "--base", base, "-o", folder / "again.onnx", "--force")
    assert outcome.code == nzlib.USAGE and data.name in outcome.stderr, outcome


def test_bases_are_found_by_hash(tmp_path):
    base, other = tmp_path / "base.onnx", tmp_path / "other.onnx"
    shutil.copy(nzlib.MODELS / "dtln_1.onnx", base)
    shutil.copy(nzlib.MODELS / "stories260k.onnx", other)
    tuned = tmp_path / "tuned.onnx"
    tune(base, tuned, 1e-3)
    report = nzlib.nz("convert", tuned, "--base", base, "--json").json
    delta, restored = tmp_path / "tuned.nzd", tmp_path / "tuned.restored.onnx"

    base.rename(tmp_path / "renamed.bin")
    assert nzlib.nz("restore", delta).code == nzlib.OK
    assert restored.read_bytes() == tuned.read_bytes()
    restored.unlink()

    (tmp_path / "renamed.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "far").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "far/base.onnx")
    missing = nzlib.nz("restore", delta)
    assert missing.code == nzlib.USAGE and not restored.exists(), missing
    wrong = nzlib.nz("restore", delta, "--base", other)
    assert wrong.code == nzlib.USAGE and not restored.exists(), wrong
    for outcome in (missing, wrong):
        assert report["base"]["sha256"] in outcome.stderr and "--base" in outcome.stderr, outcome
        assert "base.onnx" in outcome.stderr and "tuned.nzd" in outcome.stderr, outcome
    assert "other.onnx" in wrong.stderr

    # The right name and another content.
    shutil.copy(other, base)
    outcome = nzlib.nz("restore", delta)
    assert outcome.code == nzlib.USAGE and "expected" in outcome.stderr and "found" in outcome.stderr, outcome
    assert nzlib.nz("restore", delta, "--base", tmp_path / "far/base.onnx").code == nzlib.OK


def test_damage_is_an_error(tmp_path):
    base = nzlib.MODELS / "dtln_1.onnx"
    tune(base, tmp_path / "tuned.onnx", 1e-3)
    assert nzlib.nz("convert", tmp_path / "tuned.onnx", "--base", base).code == nzlib.OK
    delta = tmp_path / "tuned.nzd"
    good = delta.read_bytes()
    rng = np.random.default_rng(1)
    places = [0, 7, len(good) - 1, len(good) - 20, *rng.integers(8, len(good), 25)]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        delta.write_bytes(bad)
        outcome = nzlib.nz("restore", delta, "--base", base)
        assert outcome.code in (nzlib.CORRUPT, nzlib.UNSUPPORTED, nzlib.USAGE), (place, outcome)
        verified = nzlib.nz("verify", delta, "--base", base)
        assert verified.code in (nzlib.CORRUPT, nzlib.UNSUPPORTED, nzlib.USAGE), (place, verified)
        assert nzlib.nz("inspect", delta).code in range(6), place
    for length in (0, 5, 30, len(good) // 2, len(good) - 1):
        delta.write_bytes(good[:length])
        outcome = nzlib.nz("restore", delta, "--base", base)
        assert outcome.code != nzlib.OK, (length, outcome)
        for command in ("inspect", "verify"):
            assert nzlib.nz(command, delta).code in (nzlib.CORRUPT, nzlib.UNSUPPORTED, nzlib.USAGE), length
    assert not list(tmp_path.glob("*restored*"))


def test_options_that_do_not_go_with_a_base(tmp_path):
    model = nzlib.MODELS / "dtln_1.onnx"
    for options in (["--ratio", "0.5"], ["--transform", "grid"], ["--optimize", "portable"]):
        outcome = nzlib.nz("convert", model, "--base", model, "-o", tmp_path / "a.nzd", *options)
        assert outcome.code == nzlib.USAGE and "--base" in outcome.stderr, outcome
    outcome = nzlib.nz("restore", model, "--base", model)
    assert outcome.code == nzlib.USAGE and "--base" in outcome.stderr, outcome


def test_other_commands_say_what_a_delta_is_for(tmp_path):
    base = nzlib.MODELS / "dtln_1.onnx"
    tune(base, tmp_path / "tuned.onnx", 1e-3)
    assert nzlib.nz("convert", tmp_path / "tuned.onnx", "--base", base).code == nzlib.OK
    for command in ("convert", "plan"):
        outcome = nzlib.nz(command, tmp_path / "tuned.nzd")
        assert outcome.code == nzlib.USAGE and "nz-onnx restore" in outcome.stderr, outcome


def test_delta_files_are_inspected_and_verified(tmp_path):
    base, tuned = tmp_path / "base.onnx", tmp_path / "tuned.onnx"
    shutil.copy(nzlib.MODELS / "stories260k.onnx", base)
    tune(base, tuned, 1e-3)
    report = nzlib.nz("convert", tuned, "--base", base, "--json").json
    delta = tmp_path / "tuned.nzd"
    before = sorted(tmp_path.iterdir())

    inspected = nzlib.nz("inspect", delta, "--json")
    assert inspected.code == nzlib.OK, inspected
    document = inspected.json
    parts = {part["weight"]: part for part in document["parts"] if part["weight"]}
    assert parts.keys() == {tensor["name"] for tensor in report["tensors"]}
    for tensor in report["tensors"]:
        part = parts[tensor["name"]]
        for field in ("encoding", "bytes_before", "bytes_after"):
            assert part[field] == tensor[field], (tensor, part)
        if part["shape"] is not None:
            assert part["shape"] == tensor["shape"] and part["dtype"] == tensor["dtype"] and part["checksum_ok"]
    assert sum(part["bytes_before"] for part in document["parts"]) == tuned.stat().st_size
    assert document["base"][0]["sha256"] == report["base"]["sha256"]
    assert document["files"][0]["sha256"] == report["input"]["sha256"]
    text = nzlib.nz("inspect", delta).stdout
    assert "delta difference" in text and report["tensors"][0]["name"] in text

    verified = nzlib.nz("verify", delta, "--json")
    assert verified.code == nzlib.OK and verified.json["ok"], verified
    assert verified.json["files"][0]["sha256"] == report["input"]["sha256"]
    assert nzlib.nz("verify", delta, "--base", base).code == nzlib.OK
    assert nzlib.nz("verify", delta, "--original", tuned).code == nzlib.USAGE
    assert nzlib.nz("verify", tuned, "--base", base).code == nzlib.USAGE
    assert sorted(tmp_path.iterdir()) == before, "nothing is written"

    # One byte of a blob: the rest of the file is as it was.
    content = bytearray(delta.read_bytes())
    content[len(content) // 2] ^= 4
    delta.write_bytes(content)
    inspected = nzlib.nz("inspect", delta, "--json")
    assert inspected.code == nzlib.CORRUPT, inspected
    assert [part["checksum_ok"] for part in inspected.json["parts"]].count(False) == 1
    verified = nzlib.nz("verify", delta, "--json")
    assert verified.code == nzlib.CORRUPT and verified.json["files"][0]["problem"], verified

    base.unlink()
    missing = nzlib.nz("verify", delta)
    assert missing.code == nzlib.USAGE and report["base"]["sha256"] in missing.stderr, missing
