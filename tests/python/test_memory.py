"""What memory models hold while they run, and what converting takes. Everything is measured in processes
of its own; the plain model and a naive use of nz.Decode are measured beside the converted model."""

import subprocess

import generate
import numpy as np
import pytest
from nzlib import ENCODER, LIBRARY, MIB, Worker, convert, data_file, nz_nodes, peak_memory
from onnxio import blobs, float_tensors

RUNS = 10
ALLOWANCE = 8 * MIB


def resident(model, inputs, library=None):
    """Resident memory after ten runs with default session options, in bytes."""
    with Worker(model, inputs, library=library) as worker:
        worker.load()
        worker.run(RUNS)
        return worker.memory()


def outputs(model, inputs, library=None):
    with Worker(model, inputs, library=library, profile=True) as worker:
        worker.load()
        worker.run()
        return worker.outputs()[0], nz_nodes(worker.nodes())


def mib(number):
    return f"{number / MIB:.1f}"


def check_resident(plain, bare_model, inputs, expected_nodes, say, folder, naive=None):
    """Converts `plain` with the default options and checks what the converted model holds. A bare process
    is one that has ONNX Runtime run the same graph with weights of a few KiB."""
    converted = folder / "model.nz.onnx"
    report = convert(plain, converted)
    assert report["totals"]["ratio"] <= 0.505
    size = sum(map(len, blobs(converted).values()))
    bare = resident(bare_model, inputs["bare"])
    ours = resident(converted, inputs["model"], LIBRARY)
    rows = {
        "bare": bare,
        "plain": resident(plain, inputs["model"]),
        "converted": ours,
    }
    if naive:
        rows["naive Decode"] = resident(naive, inputs["model"], LIBRARY)
    for name, memory in rows.items():
        above = "" if name == "bare" else f", above bare {mib(memory['rss'] - bare['rss'])}"
        say(f"{name}: resident {mib(memory['rss'])} MiB, anonymous {mib(memory['anonymous'])}{above}")
    overhead = ours["rss"] - bare["rss"] - size
    say(f"blobs {mib(size)} MiB; converted holds {mib(overhead)} MiB more than blobs and bare process")

    expected, _ = outputs(plain, inputs["model"])
    found, executed = outputs(converted, inputs["model"], LIBRARY)
    # The scale vectors of norms may be compressed too, by plain Decode.
    assert {op: count for op, count in executed.items() if op != "Decode"} == expected_nodes
    assert abs(found - expected).max() < 0.01 * abs(expected).max()
    assert overhead <= ALLOWANCE
    return rows


def test_matmul_chain(tmp_path, say):
    layers, size = 24, 2048
    plain = generate.matmul_chain(tmp_path / "plain.onnx", layers, size)
    bare = generate.matmul_chain(tmp_path / "bare.onnx", layers, 8)
    inputs = {}
    rng = np.random.default_rng(0)
    for name, width in (("model", size), ("bare", 8)):
        inputs[name] = tmp_path / f"{name}.npz"
        np.savez(inputs[name], x=rng.standard_normal((1, width)).astype(np.float32))

    tensors = float_tensors(plain)

    def blob_of(layer):
        # As many mantissa bits as take the weight to about half its bytes.
        raw, encoded = tmp_path / "weight.raw", tmp_path / "weight.blob"
        raw.write_bytes(tensors[layer].bits.tobytes())
        command = [ENCODER, "--dtype", "float32", "--shape", f"{size}x{size}", "--mantissa-bits", "12"]
        subprocess.run([*command, raw, encoded], check=True)
        return encoded.read_bytes()

    naive = generate.decode_chain(tmp_path / "naive.onnx", layers, size, blob_of)
    rows = check_resident(plain, bare, inputs, {"DecodeMatMul": layers}, say, tmp_path, naive)
    # What the design rests on: a decode that is not tied to its consumer saves nothing.
    assert rows["converted"]["rss"] < 0.65 * rows["plain"]["rss"] < rows["naive Decode"]["rss"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformer(tied, tmp_path, say):
    layers, hidden, vocabulary = 4, 1024, 24000
    plain = generate.transformer(tmp_path / "plain.onnx", layers, hidden, vocabulary, tied)
    bare = generate.transformer(tmp_path / "bare.onnx", layers, 16, 16, tied, heads=4)
    inputs = {}
    for name, tokens in (("model", vocabulary), ("bare", 16)):
        inputs[name] = tmp_path / f"{name}.npz"
        np.savez(inputs[name], tokens=np.random.default_rng(0).integers(0, tokens, (1, 8)))
    expected = {"DecodeGather": 1, "DecodeMatMul": 7 * layers + 1}
    check_resident(plain, bare, inputs, expected, say, tmp_path)


def test_converting_takes_little_memory(tmp_path, say):
    tensors, mib_each = 12, 256
    with generate.big_model(tmp_path / "big.onnx", tensors, mib_each) as model:
        for threads in (1, 2):
            converted = tmp_path / f"{threads}.nz.onnx"
            peak = peak_memory(tmp_path, "convert", model, "-o", converted, "--threads", threads, "-q")
            limit = (2 * mib_each * threads + 64) * MIB
            say(f"3 GiB model, --threads {threads}: peak {mib(peak)} MiB, limit {mib(limit)}")
            written = data_file(converted).stat().st_size
            data_file(converted).unlink()
            assert written <= 0.505 * tensors * mib_each * MIB
            assert peak < limit
