"""nz.cache_mib: how many MiB of decoded weights a session keeps."""

import os
import subprocess
import sys

import numpy as np
import nzlib
import onnxruntime as ort
import pytest
from opmodels import FLOAT, Encoder, model, nz_node, random_weight, value

LIBRARY, PROGRAM = str(nzlib.LIBRARY), str(nzlib.ENCODER)
VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(VERSION < (1, 17), reason="this ONNX Runtime is too old for the ops")
SIZE, LAYERS = 1024, 8  # 4 MiB of float32 a layer
MIB = 1 << 20


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A chain of products and one nz.Decode with its sum, and an input for it."""
    rng = np.random.default_rng(3)
    encode = Encoder(PROGRAM, str(tmp_path_factory.mktemp("blobs")))
    nodes, blobs, last = [], {}, "X"
    for layer in range(LAYERS):
        weight = random_weight(rng, SIZE, SIZE)
        name, transposed = f"W{layer}.nz", layer % 2
        blobs[name], _ = encode(weight, **({} if transposed else {"tile": 256}))
        nodes.append(
            nz_node("DecodeMatMul", [last, name], [SIZE, SIZE], name, [f"Y{layer}"], transB=transposed)
        )
        last = f"Y{layer}"
    graph = model(nodes, [value("X", FLOAT, ["M", SIZE])], blobs)
    graph.graph.output[0].name = last
    return graph.SerializeToString()


def session(chain, mib=None):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if mib is not None:
        options.add_session_config_entry("nz.cache_mib", str(mib))
    options.register_custom_ops_library(LIBRARY)
    return ort.InferenceSession(chain, options, providers=["CPUExecutionProvider"])


def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_outputs_do_not_depend_on_the_budget(chain, rows):
    x = np.random.default_rng(rows).standard_normal((rows, SIZE)).astype(np.float32)
    expected = session(chain).run(None, {"X": x})[0]
    for mib in (0, 5, 12, 1000):
        made = session(chain, mib)
        for _ in range(3):
            found = made.run(None, {"X": x})[0]
            scale = np.abs(expected).max()
            # Rows of transposed weights are summed in another order when they come out of the cache.
            assert np.abs(found - expected).max() <= 1e-5 * scale


def in_process(chain, folder, option=None, variable=None):
    """MiB that three runs in a process of their own leave in memory; the process when it fails."""
    path = folder / "chain.onnx"
    path.write_bytes(chain)
    script = f"""
import sys, numpy as np
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_cache import anonymous, session
made = session(open({str(path)!r}, "rb").read(), {option!r})
before = anonymous()
for _ in range(3):
    made.run(None, {{"X": np.ones((1, {SIZE}), np.float32)}})
print((anonymous() - before) / 2**20)
"""
    environment = {name: v for name, v in os.environ.items() if name != "NZ_CACHE_MIB"}
    if variable is not None:
        environment["NZ_CACHE_MIB"] = variable
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    return done if done.returncode else float(done.stdout)


def test_memory_follows_the_budget(chain, tmp_path):
    kept = {mib: in_process(chain, tmp_path, option=mib) for mib in (0, 14, 64)}
    assert kept[0] < 4, kept
    # Three weights of 4 MiB, and all eight.
    assert 11 < kept[14] - kept[0] < 14, kept
    assert 31 < kept[64] - kept[0] < 34, kept


def test_budget_is_given_back_with_the_session(chain):
    x = np.ones((1, SIZE), np.float32)
    for _ in range(2):
        session(chain, 64).run(None, {"X": x})
    before = anonymous()
    for _ in range(6):
        session(chain, 64).run(None, {"X": x})
    assert anonymous() - before < 40 * MIB


@pytest.mark.parametrize("text", ["much", "-1", "1.5", ""])
def test_a_wrong_budget_is_an_error(chain, text):
    with pytest.raises(Exception, match="session option nz.cache_mib is '" + text):
        session(chain, text)


def test_environment_variable_is_for_sessions_without_the_option(chain, tmp_path):
    assert in_process(chain, tmp_path, variable="64") > 31
    assert in_process(chain, tmp_path, option=0, variable="64") < 4
    failed = in_process(chain, tmp_path, variable="lots")
    assert "environment variable NZ_CACHE_MIB is 'lots': set it to a whole number of MiB" in failed.stderr
