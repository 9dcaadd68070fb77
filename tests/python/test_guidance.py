"""What users see who open a converted model where it cannot run: a message that says what to do."""

import os
import shutil
import struct
import subprocess
import sys

import generate
import numpy as np
import pytest
import xxhash
from blob import header_end
from nzlib import LIBRARY, OK, ROOT, UNSUPPORTED, Worker, WorkerError, convert, data_file, nz
from onnxio import blob_places


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    model = generate.matmul_chain(folder / "model.onnx", 2, 256)
    path = folder / "model.nz.onnx"
    convert(model, path)
    np.savez(folder / "inputs.npz", x=np.zeros((1, 256), np.float32))
    return path


def refusal(model, library, python=None):
    """What ONNX Runtime says when it opens the model."""
    with Worker(model, model.with_name("inputs.npz"), library=library, python=python) as worker:
        with pytest.raises(WorkerError) as caught:
            worker.load()
            worker.run()
    return str(caught.value)


def test_without_the_library(converted):
    # The words are ONNX Runtime's own; only the op's name in them is ours, so it says what to do. Users will
    # search for them, and the README has them, with how to do it.
    message = refusal(converted, None)
    said = "nz:register_libnz_onnx_so_before_loading_this_model(-1) is not a registered function/op"
    assert said in message, message
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert said in readme and "register_custom_ops_library" in readme


def test_onnx_runtime_too_old(converted):
    python = os.environ.get("NZ_PY_1_16")
    if not python:
        pytest.skip("NZ_PY_1_16 names no Python with onnxruntime 1.16: `cargo xtask test` makes one")
    version = subprocess.run(
        [python, "-c", "import onnxruntime; print(onnxruntime.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    message = refusal(converted, LIBRARY, python)
    assert "needs ONNX Runtime 1.17 or later" in message and version in message, message
    assert "update ONNX Runtime" in message, message


@pytest.fixture
def copy(converted, tmp_path):
    """A copy of the converted model that may be damaged."""
    for path in (converted, data_file(converted), converted.with_name("inputs.npz")):
        shutil.copy(path, tmp_path)
    return tmp_path / converted.name


# Where docs/format.md has these fields of a blob's header.
MAJOR, MINOR, CODER = 4, 5, 8


def set_byte(at, number):
    """A change of one byte of a blob's header."""

    def change(blob):
        blob[at] = number

    return change


def patch(model, *changes):
    """Rewrites the first blob's header by `changes` and mends the header's checksum."""
    name, offset, length = next(iter(blob_places(model)))
    data = bytearray(data_file(model).read_bytes())
    blob = bytearray(data[offset : offset + length])
    end = header_end(blob)
    for change in changes:
        change(blob)
    struct.pack_into("<I", blob, end, xxhash.xxh3_64_intdigest(bytes(blob[:end])) & 0xFFFFFFFF)
    data[offset : offset + length] = blob
    data_file(model).write_bytes(data)
    return name


def test_blob_of_a_newer_major_version(copy):
    name = patch(copy, set_byte(MAJOR, 2))
    message = refusal(copy, LIBRARY)
    assert name in message and "format version 2" in message, message
    assert message.count("update") == message.count("libnz_onnx.so") == 1, message
    outcome = nz("verify", copy)
    assert outcome.code == UNSUPPORTED, outcome
    assert name.removesuffix(".nz") in outcome.stderr, outcome
    assert "format version 2" in outcome.stderr and "update" in outcome.stderr, outcome


def test_blob_of_an_unknown_coder(copy):
    name = patch(copy, set_byte(MINOR, 7), set_byte(CODER, 200))
    message = refusal(copy, LIBRARY)
    assert name in message and "coder 200" in message and "update" in message, message


def test_a_newer_minor_version_still_runs(copy):
    patch(copy, set_byte(MINOR, 7))
    with Worker(copy, copy.with_name("inputs.npz"), library=LIBRARY) as worker:
        worker.load()
        worker.run()
    assert nz("verify", copy).code == OK


def test_damaged_payload(copy):
    name, offset, length = next(iter(blob_places(copy)))
    data = bytearray(data_file(copy).read_bytes())
    data[offset + length // 2] ^= 0x10
    data_file(copy).write_bytes(data)
    message = refusal(copy, LIBRARY)
    assert name in message and "damaged" in message, message


def test_data_file_missing(copy):
    data_file(copy).unlink()
    assert data_file(copy).name in refusal(copy, LIBRARY)


def test_library_of_another_kind(converted, tmp_path):
    # A file that is no library at all: ONNX Runtime's own message, but an error and not a crash.
    other = tmp_path / "libnz_onnx.so"
    other.write_bytes(b"not a library")
    assert "libnz_onnx.so" in refusal(converted, other)


def test_two_models_with_one_library_in_one_process(converted):
    code = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "sessions = []\n"
        "for _ in range(3):\n"
        "    options = ort.SessionOptions()\n"
        "    options.register_custom_ops_library(sys.argv[2])\n"
        "    sessions.append(ort.InferenceSession(sys.argv[1], options))\n"
        "x = np.ones((2, 256), np.float32)\n"
        "first, *others = [session.run(None, {'x': x})[0] for session in sessions]\n"
        "assert all(np.array_equal(first, other) for other in others)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(converted), str(LIBRARY)], check=True)
