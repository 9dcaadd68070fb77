"""Checks that there is something to test, and writes down how many tests passed and were skipped."""

import json
import os

import nzlib
import pytest


def pytest_sessionstart(session):
    missing = [str(path) for path in (nzlib.TOOL, nzlib.LIBRARY, nzlib.ENCODER) if not path.exists()]
    if missing:
        pytest.exit(
            f"not built: {', '.join(missing)}; run `cargo xtask test`, or `cargo build --release` and "
            "`cargo build --release --example encode_tensor` before pytest (NZ_ONNX, NZ_LIB and NZ_ENCODE name other "
            "places)",
            returncode=2,
        )


def pytest_terminal_summary(terminalreporter):
    path = os.environ.get("NZ_PYTEST_SUMMARY")
    if path:
        counts = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "skipped")}
        with open(path, "w") as file:
            json.dump(counts, file)


@pytest.fixture
def say(capsys):
    """Prints a line of measurements that shows even when the test passes."""

    def print_line(text):
        with capsys.disabled():
            print(f"\n    {text}", end="", flush=True)

    return print_line


@pytest.fixture
def encode(tmp_path):
    """Encodes weights with the built example `encode_tensor`."""
    from opmodels import Encoder

    return Encoder(str(nzlib.ENCODER), str(tmp_path))
