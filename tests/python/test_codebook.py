"""`convert --transform codebook`: closer than plain k-means at the same bytes, and what ONNX Runtime computes with it."""

import numpy as np
import nzlib
import onnxio
import onnxruntime as ort
import pytest
import real_models

pytestmark = real_models.needed


def session(path):
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(nzlib.LIBRARY))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def k_means(values, count):
    """The values of `values` rounded to the best `count` of them that Lloyd's method finds from quantiles."""
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    means = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    for _ in range(200):
        ends = np.searchsorted(ordered, (means[1:] + means[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(ends)
        means = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), means)
    return means[np.searchsorted((means[1:] + means[:-1]) / 2, values)]


def decibels(energy, noise):
    return 10 * np.log10(energy / noise)


@pytest.mark.parametrize("name", ["stories260k", "dtln_1", "magika_v3_3"])
def test_groups_and_prices_beat_plain_k_means(name, tmp_path, say):
    """16 values a tensor, 4 bits a weight: at no more bytes the tensors' errors, each over the tensor's own energy, must be
    less on average: that is what bytes are allotted for."""
    path = nzlib.MODELS / f"{name}.onnx"
    tensors = {t.name: t for t in onnxio.float_tensors(path)}
    best = None
    for ratio in np.arange(0.16, 0.09, -0.005):
        outcome = nzlib.nz(
            "convert", path, "-o", tmp_path / "m.nz.onnx", "--force", "--json",
            "--transform", "codebook", "--ratio", f"{ratio:.3f}",
        )  # fmt: skip
        if outcome.code == nzlib.UNREACHABLE:
            break
        assert outcome.code == nzlib.OK, outcome
        done = [t for t in outcome.json["tensors"] if t["encoding"] == "codebook" and t["bytes_after"]]
        weights = sum(tensors[t["name"]].bits.size for t in done)
        plain_bytes = weights / 2 + len(done) * 16 * 4
        if done and sum(t["bytes_after"] for t in done) <= plain_bytes:
            best = (done, weights)
            break
    assert best, "no size has codebooks of 4 bits and less"
    done, weights = best
    ours, theirs = [], []
    for tensor in done:
        values = tensors[tensor["name"]].values()
        ours.append(10 ** (-tensor["snr_db"] / 10))
        theirs.append(float(np.square(values - k_means(values, 16)).sum() / (values @ values)))
    bits = 8 * sum(t["bytes_after"] for t in done) / weights
    ours, theirs = decibels(1, np.mean(ours)), decibels(1, np.mean(theirs))
    say(f"{name}: {ours:.2f} dB at {bits:.2f} bits a weight, plain k-means {theirs:.2f} dB at 4.0")
    assert ours > theirs + 0.5


@pytest.mark.parametrize("name", ["stories260k", "dtln_1", "magika_v3_3"])
def test_models_run(name, tmp_path):
    """What runs is what is stored: the restored model, which has the decoded weights, says the same."""
    model = next(m for m in real_models.ALL if m.name == name)
    converted, plain = tmp_path / "m.nz.onnx", tmp_path / "plain.onnx"
    report = nzlib.convert(model.path, converted, "--transform", "codebook", "--ratio", "0.25")
    assert any(t["encoding"] == "codebook" for t in report["tensors"])
    assert nzlib.nz("verify", converted, "--original", model.path).code == nzlib.OK
    assert nzlib.nz("restore", converted, "-o", plain).code == nzlib.OK
    inputs = model.inputs()
    found = session(converted).run(None, inputs)
    expected = ort.InferenceSession(str(plain), providers=["CPUExecutionProvider"]).run(None, inputs)
    for a, b in zip(expected, found, strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())
