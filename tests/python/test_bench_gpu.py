"""What the script for whole models on a GPU does where there is none, and all of it that needs none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_common
import bench_gpu_models
import bench_peers_gpu
import bench_sessions
import nzlib  # noqa: F401  (finds the scripts)
import numpy as np
import onnxruntime as ort
import pytest

HAS_GPU = not bench_gpu_models.missing(ort.get_available_providers(), bench_gpu_models.has_driver())


def test_what_is_missing_is_named():
    assert bench_gpu_models.missing(["CUDAExecutionProvider"], True) == []
    (provider,) = bench_gpu_models.missing(["CPUExecutionProvider"], True)
    assert "CUDAExecutionProvider" in provider and "onnxruntime-gpu" in provider
    driver, provider = bench_gpu_models.missing([], False)
    assert "libcuda.so.1" in driver


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
@pytest.mark.parametrize("required, status", [("", 0), ("1", 1)])
def test_without_a_gpu_there_is_no_report(tmp_path, required, status):
    report = tmp_path / "report.json"
    command = [sys.executable, bench_gpu_models.__file__, "--report", report, "--tool", "none", "--library", "none"]
    environment = {**os.environ, "REQUIRE_GPU": required}
    done = subprocess.run([*command, "--scratch", tmp_path], env=environment, capture_output=True, text=True)
    assert (done.returncode, report.exists()) == (status, False), done.stderr
    assert done.stderr.startswith("SKIPPED: ") and "REQUIRE_GPU=1" in done.stderr


def test_an_option_that_is_missing_is_named():
    done = subprocess.run([sys.executable, bench_gpu_models.__file__, "--quick"], capture_output=True, text=True)
    assert done.returncode == 2 and "--report" in done.stderr


def test_rows_fit_their_table(tmp_path):
    """As the task that reads the report wants them: as many cells as columns, and targets that name one of those."""
    Variant, names = bench_gpu_models.Variant, ["1 token", "128 tokens"]
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(3 << 20))
    times = {name: [0.002, 0.003] for name in names}
    variants = [
        Variant("plain", file, memory=100.0, times=times),
        Variant("nz --lossless", file, Path("lib"), memory=69.0, error=0.0, times=times),
        Variant("nz, default options", None, why="nothing to compress"),
    ]
    columns = bench_gpu_models.columns(names)
    rows = list(bench_gpu_models.rows_of("bfloat16", variants, names))
    assert all(len(row) == len(columns) for row in rows)
    plain, lossless, without = (dict(zip(columns, row, strict=True)) for row in rows)
    assert plain["target"] is None and plain["files, MiB"]["value"] == 3
    assert lossless["GPU, of plain"]["value"] == pytest.approx(0.69)
    assert lossless["target"]["target"] == {"of": "GPU, of plain", "digits": 2, "at_most": 0.7}
    assert lossless["target of latency"]["target"]["of"] in columns
    assert lossless["1 token, of plain"]["samples"] == [1.0, 1.0]
    assert without["error"] == "nothing to compress"
    json.dumps(rows)


def test_peers_that_do_not_run_say_why():
    def absent(count):
        raise ModuleNotFoundError(f"No module named 'nothing' for {count}")

    assert bench_peers_gpu.row("x", absent, 3) == ["x", None, None, "No module named 'nothing' for 3"]
    found = bench_peers_gpu.row("x", lambda count: (11.0, [0.5, 0.6]), 3)
    assert len(found) == len(bench_peers_gpu.COLUMNS) and found[2]["samples"] == [0.5, 0.6]


def test_weights_of_peers_are_bfloat16_in_halves():
    weights = bench_peers_gpu.normal_bfloat16(10_000)
    values = (weights.astype(np.uint32) << 16).view(np.float32)
    assert 0.018 < values.std() < 0.022
    exponents, raw = bench_peers_gpu.halves(weights)
    whole = exponents.astype(np.uint16) << 7 | (raw & 0x7F) | (raw.astype(np.uint16) & 0x80) << 8
    assert np.array_equal(whole, weights)


def test_rates_are_of_output():
    calls, waits = [], []
    found = bench_peers_gpu.rates(lambda: calls.append(1), lambda: waits.append(1), 10**9)
    assert len(found) == bench_peers_gpu.ROUNDS and all(rate > 0 for rate in found)
    assert len(calls) == (bench_peers_gpu.ROUNDS + 1) * bench_peers_gpu.CALLS and len(waits) == 2 * (bench_peers_gpu.ROUNDS + 1)


def test_the_whole_table_with_sessions_of_the_cpu(tmp_path, monkeypatch):
    """All but the provider and the driver's count of memory: models are made, converted, run in turns and compared."""

    def session_of(path, library=None, profile=None):
        made = bench_sessions.options(library, profile=profile)
        return ort.InferenceSession(str(path), made, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(bench_gpu_models, "CUDA", "CPUExecutionProvider")
    monkeypatch.setattr(bench_gpu_models, "session_of", session_of)
    monkeypatch.setattr(bench_gpu_models, "gpu_memory", lambda path, inputs, library: path.stat().st_size + 1.0)

    class Arguments:
        quick, library = True, nzlib.LIBRARY

    tool = bench_common.Tool(nzlib.TOOL)
    table, sizes = bench_gpu_models.measure_transformers(Arguments, tool, tmp_path)
    assert "float16" in sizes and "bfloat16" in sizes
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert len(rows) == 3 * (1 + len(bench_gpu_models.VARIANTS))
    for row in rows:
        assert len(row["1 token, ms"]["samples"]) >= 5, row
        if row["variant"] in ("plain", "nz --lossless"):
            assert float(row["error"]) < 1e-2, row
    assert [row["target"] is not None for row in rows].count(True) == 2
