"""The ops in ONNX Runtime's CUDA provider, on a machine with a GPU: held against its own ops on the CPU.

Where that provider is not there these tests skip; with REQUIRE_GPU=1 they fail.
"""

import os

import numpy as np
import nzlib
import onnxruntime as ort
import pytest
from onnx import helper
from opmodels import (
    FLOAT,
    FLOAT16,
    INT64,
    assert_close,
    model,
    nz_node,
    options,
    plain,
    random_weight,
    value,
)

LIBRARY, PROGRAM = str(nzlib.LIBRARY), str(nzlib.ENCODER)
HAS_PROVIDER = "CUDAExecutionProvider" in ort.get_available_providers()
REQUIRED = os.environ.get("REQUIRE_GPU") == "1"
pytestmark = pytest.mark.skipif(not (HAS_PROVIDER or REQUIRED), reason="no CUDA provider in this ONNX Runtime")


@pytest.fixture
def rng():
    return np.random.default_rng(9)


def session(made, **provider_options):
    """A session in which every node is the CUDA provider's."""
    assert HAS_PROVIDER, "REQUIRE_GPU=1, and this ONNX Runtime has no CUDA provider"
    settings = options(LIBRARY)
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [("CUDAExecutionProvider", {"use_tf32": "0", **provider_options})]
    made = ort.InferenceSession(made.SerializeToString(), settings, providers=providers)
    assert made.get_providers()[0] == "CUDAExecutionProvider"
    return made


@pytest.mark.parametrize("profile", ["compact", "gpu"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("element, numpy_type", [(FLOAT, np.float32), (FLOAT16, np.float16)])
def test_matmul(encode, rng, profile, transposed, element, numpy_type):
    k, n = 1024, 768
    dtype = "float32" if element == FLOAT else "float16"
    w = random_weight(rng, *((n, k) if transposed else (k, n)))
    blob, w = encode(w, dtype, None if transposed else 256, profile=profile)
    right = (w.T if transposed else w).astype(np.float64)
    node = nz_node("DecodeMatMul", ["X", "W.nz"], w.shape, transB=int(transposed))
    made = session(model([node], [value("X", element)], {"W.nz": blob}, [value("Y", element)]))
    for m in (0, 1, 3, 8, 9, 200):
        x = rng.standard_normal((2, m, k)).astype(numpy_type)
        found = made.run(None, {"X": x})[0]
        expected = (x.astype(np.float64) @ right).astype(numpy_type)
        tolerance = 2e-3 if element == FLOAT16 else 1e-5
        assert_close(found.astype(np.float32), expected.astype(np.float32), tolerance)


def test_gemm_gather_and_decode(encode, rng):
    blob, w = encode(random_weight(rng, 300, 512), "float32", 256, profile="gpu")
    a, c = rng.standard_normal((5, 300)).astype(np.float32), rng.standard_normal(512).astype(np.float32)
    attributes = {"alpha": 0.5, "beta": 2.0}
    node = nz_node("DecodeGemm", ["A", "W.nz", "C"], w.shape, **attributes)
    made = session(model([node], [value("A"), value("C")], {"W.nz": blob}))
    expected = plain(helper.make_node("Gemm", ["A", "W", "C"], ["Y"], **attributes), {"A": a, "C": c}, {"W": w})
    assert_close(made.run(None, {"A": a, "C": c})[0], expected)

    node = nz_node("Decode", ["W.nz", "after"], w.shape)
    made = session(model([node], [value("after", INT64)], {"W.nz": blob}))
    assert made.run(None, {"after": np.zeros(1, np.int64)})[0].tobytes() == w.tobytes()

    blob, w = encode(random_weight(rng, 300, 512), "float16")
    node = nz_node("DecodeGather", ["W.nz", "I"], w.shape)
    made = session(model([node], [value("I", INT64)], {"W.nz": blob}))
    indices = rng.integers(-300, 300, (7, 11))
    assert made.run(None, {"I": indices})[0].tobytes() == w[indices].tobytes()


@pytest.mark.parametrize("m", [1, 64])
def test_captured_in_a_graph(encode, rng, m):
    """A chain of products, its shapes fixed, captured by the provider after its first runs and replayed."""
    blobs, weights, nodes = {}, [], []
    for i in range(4):
        blob, w = encode(random_weight(rng, 512, 512), "float32", 256, profile="gpu")
        blobs[f"W{i}.nz"] = blob
        weights.append(w)
        output = "Y" if i == 3 else f"X{i + 1}"
        nodes.append(nz_node("DecodeMatMul", [f"X{i}", f"W{i}.nz"], w.shape, name=f"n{i}", outputs=(output,)))
    made = model(nodes, [value("X0", FLOAT, [m, 512])], blobs, [value("Y", FLOAT, [m, 512])])
    made = session(made, enable_cuda_graph="1")
    x = ort.OrtValue.ortvalue_from_numpy(np.zeros((m, 512), np.float32), "cuda", 0)
    y = ort.OrtValue.ortvalue_from_numpy(np.zeros((m, 512), np.float32), "cuda", 0)
    binding = made.io_binding()
    binding.bind_ortvalue_input("X0", x)
    binding.bind_ortvalue_output("Y", y)
    for _ in range(5):
        values = rng.standard_normal((m, 512)).astype(np.float32)
        x.update_inplace(values)
        made.run_with_iobinding(binding)
        expected = values
        for w in weights:
            expected = expected @ w
        assert_close(y.numpy(), expected, 1e-4)
