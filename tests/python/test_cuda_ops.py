"""The ops as the CUDA provider has them, on a machine without a GPU: NZ_DEVICE_LIB (libdevice_ops.so) is the same library,
but registers these ops for the CPU provider, over CUDA kernels that run on the CPU.

What test_ops.py asks of the CPU's ops is asked of these, too; here is what is different about them.
"""

import os
import subprocess
import sys

import numpy as np
import nzlib
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from opmodels import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    INT8,
    INT64,
    UINT8,
    assert_close,
    model,
    nz_node,
    options,
    random_weight,
    session,
    value,
)

LIBRARY, PROGRAM = os.environ.get("NZ_DEVICE_LIB"), os.environ.get("NZ_ENCODE")
VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
pytestmark = [
    pytest.mark.skipif(not (LIBRARY and PROGRAM), reason="NZ_DEVICE_LIB and NZ_ENCODE are not set"),
    pytest.mark.skipif(VERSION < (1, 17), reason="this ONNX Runtime is too old for the ops"),
]

# Tests of test_ops.py that are about the CPU's kernels alone: the order of their sums, and errors that they have at once.
OF_THE_CPU = ("bit_equal", "gather_refuses_bad_indices")


@pytest.fixture
def rng():
    return np.random.default_rng(8)


# Tests of deltas and their bases. Each sum of many rows is ONNX Runtime's own, so results are equal bit for bit.
OF_DELTAS = ("every_op", "bases_take_no_bytes", "another_base", "damage", "shared_with_a_base")


def run_tests(chosen, *files):
    """In a process of its own: a library's ops stay what they were when it was loaded."""
    folder = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *files]
    environment = {**os.environ, "NZ_LIB": LIBRARY}
    environment.pop("NZ_PYTEST_SUMMARY", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_what_holds_for_the_cpu_holds_for_these():
    run_tests(" and ".join(f"not {name}" for name in OF_THE_CPU), "test_ops.py")


def test_what_holds_for_deltas_on_the_cpu_holds_for_these():
    run_tests(" or ".join(OF_DELTAS), "test_shared_base.py", "test_loops.py")


@pytest.mark.parametrize("profile", ["compact", "gpu"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype, element, numpy_type", [("float32", FLOAT, np.float32), ("float16", FLOAT16, np.float16)])
def test_few_rows_and_many(encode, rng, tmp_path, profile, transposed, dtype, element, numpy_type):
    """Straight from the blob up to 8 rows, then by ONNX Runtime's own Gemm."""
    k, n = 1024, 320
    w = random_weight(rng, *((n, k) if transposed else (k, n)))
    blob, w = encode(w, dtype, None if transposed else 128, profile=profile)
    right = w.T if transposed else w
    node = nz_node("DecodeMatMul", ["X", "W.nz"], w.shape, transB=int(transposed))
    # The CPU provider has no Gemm for float16, and the message says so; CUDA's has.
    most = 8 if element == FLOAT16 else 70
    made = session(model([node], [value("X", element)], {"W.nz": blob}, [value("Y", element)]), LIBRARY)
    for m in (1, 2, 5, 8, 9, 70):
        x = rng.standard_normal((m, k)).astype(numpy_type)
        if m > most:
            with pytest.raises(Exception, match="the_node.*ONNX Runtime's own Gemm"):
                made.run(None, {"X": x})
            continue
        found = made.run(None, {"X": x})[0]
        assert found.dtype == numpy_type
        expected = (x.astype(np.float64) @ right.astype(np.float64)).astype(numpy_type)
        assert_close(found.astype(np.float32), expected.astype(np.float32), 2e-3 if numpy_type == np.float16 else 1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("c_shape", [None, (), (20_000,), (1, 20_000), (11, 1), (11, 20_000)])
def test_weights_of_several_sets(encode, rng, tmp_path, transposed, c_shape):
    """80 MB of decoded weights are more than a set: parts of C are copied, and parts of Y."""
    k, n, m = 1024, 20_000, 11
    w = random_weight(rng, *((n, k) if transposed else (k, n)))
    blob, w = encode(w, "float32", None if transposed else 256, mantissa_bits=3, profile="gpu")
    decoded = session(
        model([nz_node("Decode", ["W.nz", "after"], w.shape)], [value("after", INT64)], {"W.nz": blob}), LIBRARY
    ).run(None, {"after": np.zeros(1, np.int64)})[0]
    right = decoded.T if transposed else decoded
    feeds = {"A": rng.standard_normal((m, k)).astype(np.float32)}
    expected = 0.5 * (feeds["A"] @ right)
    if c_shape is not None:
        feeds["C"] = rng.standard_normal(c_shape).astype(np.float32)
        expected = expected - 2 * feeds["C"]
    attributes = {"alpha": 0.5, "beta": -2.0, "transB": int(transposed)}
    node = nz_node("DecodeGemm", ["A", "W.nz", *(["C"] if "C" in feeds else [])], w.shape, **attributes)
    made = session(model([node], [value(name) for name in feeds], {"W.nz": blob}), LIBRARY)
    for _ in range(2):
        assert_close(made.run(None, feeds)[0], expected.astype(np.float32))


def test_an_index_out_of_range_is_told_by_the_next_run(encode, rng):
    """Kernels are not waited for: the row is zeros, and the next run fails."""
    blob, w = encode(random_weight(rng, 50, 16))
    node = nz_node("DecodeGather", ["W.nz", "I"], w.shape)
    made = session(model([node], [value("I", INT64)], {"W.nz": blob}), LIBRARY)
    found = made.run(None, {"I": np.array([1, 50, -1])})[0]
    assert found.tobytes() == np.stack([w[1], np.zeros(16, np.float32), w[-1]]).tobytes()
    with pytest.raises(Exception, match=r"the_node.*'W.nz' \(input 0\), in an earlier run.*index names no row"):
        made.run(None, {"I": np.array([1])})
    assert made.run(None, {"I": np.array([1])})[0].tobytes() == w[1].tobytes()


def test_a_damaged_payload_is_told(encode, rng, monkeypatch):
    blob, w = encode(random_weight(rng, 200, 150), "float32", 128)
    node = nz_node("DecodeMatMul", ["X", "W.nz"], w.shape)
    broken = blob.copy()
    broken[len(blob) // 2 :] = 0xFF
    made = model([node], [value("X")], {"W.nz": broken})
    with pytest.raises(Exception, match="the_node.*payload checksum differs.*convert the model again"):
        session(made, LIBRARY)
    monkeypatch.setenv("NZ_VERIFY", "header")
    made = session(made, LIBRARY)
    x = np.zeros((1, 200), np.float32)
    made.run(None, {"X": x})
    with pytest.raises(Exception, match="the_node.*in an earlier run.*record of a block is damaged"):
        made.run(None, {"X": x})


def test_bfloat16_is_a_type_of_the_products(encode, rng):
    """Its tensors cannot be fed from numpy: a Cast makes them, where the CPU provider has one."""
    blob, w = encode(random_weight(rng, 64, 128), "bfloat16", 128)
    nodes = [
        helper.make_node("Cast", ["X"], ["X16"], to=BFLOAT16),
        nz_node("DecodeMatMul", ["X16", "W.nz"], w.shape, outputs=["Y16"]),
        helper.make_node("Cast", ["Y16"], ["Y"], to=FLOAT),
    ]
    made = session(model(nodes, [value("X")], {"W.nz": blob}), LIBRARY)
    x = rng.integers(-4, 4, (3, 64)).astype(np.float32)
    assert_close(made.run(None, {"X": x})[0], x @ w, 8e-3)


@pytest.mark.parametrize("k, n, tile", [(4096, 40, None), (1024, 64, None), (288, 512, 256), (64, 256, 256)])
def test_bfloat16_with_tensor_cores(encode, rng, k, n, tile):
    """Straight from the blob up to 32 rows; for more there is no Gemm of bfloat16 on the CPU, and the message says so."""
    shape = (k, n) if tile else (n, k)
    blob, w = encode(random_weight(rng, *shape), "bfloat16", tile, profile="gpu")
    w = w.reshape(shape)
    nodes = [
        helper.make_node("Cast", ["X"], ["X16"], to=BFLOAT16),
        nz_node("DecodeMatMul", ["X16", "W.nz"], w.shape, outputs=["Y16"], transB=int(not tile)),
        helper.make_node("Cast", ["Y16"], ["Y"], to=FLOAT),
    ]
    made = session(model(nodes, [value("X")], {"W.nz": blob}), LIBRARY)
    for m in (1, 2, 9, 32):
        x = rng.integers(-4, 4, (m, k)).astype(np.float32)
        assert_close(made.run(None, {"X": x})[0], x @ (w if tile else w.T), 8e-3)
    with pytest.raises(Exception, match="ONNX Runtime's own Gemm"):
        made.run(None, {"X": np.ones((33, k), np.float32)})


@pytest.mark.parametrize("name, element", [("Int8", INT8), ("Uint8", UINT8)])
def test_integers(encode, rng, name, element):
    """Whole, and rows of them."""
    dtype = np.dtype(name.lower())
    centre = 128 if element == UINT8 else 0
    limits = np.iinfo(dtype)
    w = (rng.standard_normal((130, 96)) * 20 + centre).round().clip(limits.min, limits.max).astype(dtype)
    blob, w = encode(w, name.lower())
    nodes = [
        nz_node(f"Decode{name}", ["W.nz", "I"], w.shape, outputs=["W"]),
        nz_node(f"DecodeGather{name}", ["W.nz", "I"], w.shape, name="rows", outputs=["Y"]),
    ]
    outputs = [value("W", element), value("Y", element)]
    made = session(model(nodes, [value("I", INT64)], {"W.nz": blob}, outputs), LIBRARY)
    indices = rng.integers(-130, 130, (3, 7))
    for _ in range(2):
        whole, rows = made.run(None, {"I": indices})
        assert whole.dtype == dtype and np.array_equal(whole, w)
        assert rows.dtype == dtype and np.array_equal(rows, w[indices])


def test_weights_of_codebooks(encode, rng):
    """One row straight from the blob, many by ONNX Runtime's Gemm: both with the weights that Decode gives."""
    blob, w = encode(random_weight(rng, 256, 384), "float32", 128, codebook=2)
    nodes = [
        nz_node("Decode", ["W.nz", "X"], w.shape, name="whole", outputs=["W"]),
        nz_node("DecodeMatMul", ["X", "W.nz"], w.shape),
    ]
    made = session(model(nodes, [value("X")], {"W.nz": blob}, [value("W"), value("Y")]), LIBRARY)
    for rows in (1, 5, 20):
        x = rng.standard_normal((rows, 256)).astype(np.float32)
        decoded, found = made.run(None, {"X": x})
        error = np.sqrt(np.mean((decoded - w) ** 2) / np.mean(w**2))
        assert 0 < error < 0.2, "a coarse weight, but this one"
        assert_close(found, x @ decoded)


def known(w, bits):
    """Float32 weights of which so many mantissa bits are known, in the middle of what they may be."""
    words = w.view(np.uint32)
    if bits == 23:
        return w
    kept = words >> np.uint32(23 - bits) << np.uint32(23 - bits)
    return np.where(kept << 1 >= 1 << 24, kept | np.uint32(1 << (22 - bits)), kept).view(np.float32)


@pytest.mark.parametrize(
    "variable, setting, bits",
    [
        (None, None, 23),
        ("NZ_BITS", "all", 23),
        ("NZ_BITS", "14", 8),
        ("NZ_BITS", "8", 3),
        ("NZ_WEIGHTS_MIB", "2.5", 8),
        ("NZ_WEIGHTS_MIB", "1", 3),
    ],
)
def test_layers_are_read_to_the_depth_asked_for(encode, rng, monkeypatch, variable, setting, bits):
    if variable:
        monkeypatch.setenv(variable, setting)
    blob, w = encode(random_weight(rng, 256, 384), "float32", 128, layers="3,8")
    depths = {"depth_bytes": [1 << 20, 2 << 20, 3 << 20]}
    nodes = [
        nz_node("Decode", ["W.nz", "X"], w.shape, name="whole", outputs=["W"], **depths),
        nz_node("DecodeMatMul", ["X", "W.nz"], w.shape, **depths),
    ]
    made = session(model(nodes, [value("X")], {"W.nz": blob}, [value("W"), value("Y")]), LIBRARY)
    for rows in (1, 5, 20):
        x = rng.standard_normal((rows, 256)).astype(np.float32)
        decoded, found = made.run(None, {"X": x})
        assert decoded.tobytes() == known(w, bits).tobytes()
        assert_close(found, x @ decoded)


def test_layers_that_are_read_are_checked(encode, rng, monkeypatch):
    """Those that are not are not even looked at."""
    blob, w = encode(random_weight(rng, 256, 384), "float32", 128, layers="3,8")
    blob = blob.copy()
    blob[-1] ^= 1
    made = model([nz_node("Decode", ["W.nz", "X"], w.shape)], [value("X")], {"W.nz": blob})
    with pytest.raises(Exception, match="the_node.*checksum of layer 2 differs.*convert the model again"):
        session(made, LIBRARY)
    monkeypatch.setenv("NZ_BITS", "14")
    found = session(made, LIBRARY).run(None, {"X": np.zeros(1, np.float32)})[0]
    assert found.tobytes() == known(w, 8).tobytes()


@pytest.mark.parametrize("element, numpy_type", [(FLOAT, np.float32), (FLOAT16, np.float16)])
def test_few_rows_and_many_of_deltas(rng, tmp_path, element, numpy_type):
    """Straight from delta and base up to 8 rows, then by ONNX Runtime's own Gemm; C comes behind the base."""
    w = random_weight(rng, 512, 640).astype(numpy_type)
    v = random_weight(rng, 384, 640).astype(numpy_type)
    c = random_weight(rng, 384).astype(numpy_type)

    def write(path, w, v):
        nodes = [
            helper.make_node("MatMul", ["X", "W"], ["A"]),
            helper.make_node("Gemm", ["A", "V", "C"], ["Y"], transB=1, alpha=0.5, beta=2.0),
        ]
        outputs = [value("A", element), value("Y", element)]
        made = model(nodes, [value("X", element, ["m", 512])], {"W": w, "V": v, "C": c}, outputs)
        del made.opset_import[1:]  # as a model that is not converted
        onnx.save(made, path)

    step = np.finfo(numpy_type).eps * 4
    tuned_w, tuned_v = (
        (one + one * rng.standard_normal(one.shape) * step).astype(numpy_type) for one in (w, v)
    )
    write(tmp_path / "base.onnx", w, v)
    write(tmp_path / "tuned.onnx", tuned_w, tuned_v)
    nzlib.convert(tmp_path / "base.onnx", tmp_path / "base.nz.onnx", "--lossless")
    base = ("--base", tmp_path / "base.nz.onnx")
    report = nzlib.convert(tmp_path / "tuned.onnx", tmp_path / "tuned.nz.onnx", *base)
    assert {t["encoding"] for t in report["tensors"] if t["bytes_before"] > 1 << 17} == {"delta difference"}
    ops = {node.op_type for node in onnx.load(tmp_path / "tuned.nz.onnx", load_external_data=False).graph.node}
    assert {"DecodeDeltaMatMul", "DecodeDeltaGemm"} <= ops
    made = ort.InferenceSession(
        str(tmp_path / "tuned.nz.onnx"), options(LIBRARY), providers=["CPUExecutionProvider"]
    )
    # The CPU provider has no Gemm for float16.
    for m in (1, 2, 5, 8) if element == FLOAT16 else (1, 2, 5, 8, 9, 33):
        x = rng.standard_normal((m, 512)).astype(numpy_type)
        a, y = made.run(None, {"X": x})
        assert a.dtype == numpy_type
        tolerance = 2e-3 if numpy_type == np.float16 else 1e-5
        expected = x.astype(np.float64) @ tuned_w.astype(np.float64)
        assert_close(a.astype(np.float32), expected.astype(np.float32), tolerance)
        expected = 0.5 * a.astype(np.float64) @ tuned_v.astype(np.float64).T + 2 * c.astype(np.float64)
        assert_close(y.astype(np.float32), expected.astype(np.float32), tolerance)


def test_sessions_come_and_go(encode, rng):
    """Scratch and tables are freed with the last session, and made again for the next."""
    blob, w = encode(random_weight(rng, 256, 256), "float32", 128)
    made = model([nz_node("DecodeMatMul", ["X", "W.nz"], w.shape)], [value("X")], {"W.nz": blob})
    x = rng.standard_normal((9, 256)).astype(np.float32)
    for _ in range(3):
        sessions = [session(made, LIBRARY) for _ in range(2)]
        for one in sessions:
            assert_close(one.run(None, {"X": x})[0], x @ w)
