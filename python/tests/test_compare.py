"""compare: a model beside what ONNX Runtime's own tools make of it."""

import json
import subprocess
import sys

import numpy as np
import pytest

import nz_onnx


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(2):
        np.savez(folder / f"{number}.npz", x=rng.normal(size=(4, 256)).astype(np.float32))
    return folder


def test_ours_has_the_same_bytes_and_is_closer(model, inputs):
    result = nz_onnx.compare(model, inputs, ["int8-weights-channel", "int8-weights", "int8"])
    assert (result.runs, result.weight_bytes) == (2, 2 * 4 * 256 * 256)
    channel, tensor, dynamic = result.alternatives
    # A byte a weight and a float32 for each of 256 columns.
    assert channel.weight_bytes == 2 * (256 * 256 + 4 * 256)
    assert channel.weight_bytes > tensor.weight_bytes > 2 * 256 * 256
    for one in result.alternatives:
        assert one.problem is None
        assert 15 < one.closeness.snr_db < one.ours.snr_db, one
        assert one.closeness.least_cosine < 1 and 0 <= one.closeness.top1 <= 1
    # 8.1 bits a weight: about 45 dB for Gaussian weights.
    assert abs(channel.ours.snr_db - 45) < 5
    assert dynamic.closeness.snr_db < channel.closeness.snr_db


def test_one_file_of_inputs_and_the_command(model, inputs):
    command = [sys.executable, "-m", "nz_onnx", "compare", str(model), "--inputs", str(inputs / "0.npz")]
    done = subprocess.run([*command, "--against", "int8-weights", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "nz-onnx.compare/1" and document["runs"] == 1
    text = subprocess.run([*command, "--against", "int8-weights"], capture_output=True, text=True).stdout
    assert "int8 weights, per tensor" in text and " dB" in text


def test_what_cannot_be_made_is_said(model, inputs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(nz_onnx.UsageError, match="'int3'.*int4"):
        nz_onnx.compare(model, inputs, ["int3"])
    with pytest.raises(nz_onnx.UsageError, match="no .npz"):
        nz_onnx.compare(model, tmp_path / "empty", ["fp16"])


def test_inputs_that_do_not_fit(model, tmp_path):
    np.savez(tmp_path / "wrong.npz", z=np.zeros((1, 256), np.float32))
    with pytest.raises(nz_onnx.NzError, match="model.onnx"):
        nz_onnx.compare(model, tmp_path / "wrong.npz", ["int8-weights"])
