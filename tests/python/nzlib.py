"""What the Python tests share: where the product lies, running its tool, measuring processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "xtask/python"))

from inputs import known_inputs  # noqa: E402,F401  (re-exported)
from model_writer import PIECE, ModelWriter  # noqa: E402,F401  (re-exported)
from worker import Worker, WorkerError, nz_nodes  # noqa: E402,F401  (re-exported)

MIB = 1 << 20


def _product(variable, default):
    path = Path(os.environ.get(variable) or ROOT / "target/release" / default)
    return path if path.is_absolute() else Path.cwd() / path


TOOL = _product("NZ_ONNX", "nz-onnx")
LIBRARY = _product("NZ_LIB", "libnz_onnx.so")
ENCODER = _product("NZ_ENCODE", "examples/encode_tensor")
MODELS = Path(os.environ.get("NZ_MODELS") or ROOT / "../shared/models")

# Exit codes of the tool.
OK, IO, USAGE, UNREACHABLE, CORRUPT, UNSUPPORTED = range(6)


class Outcome:
    """How a run of the tool ended."""

    def __init__(self, code, stdout, stderr):
        self.code, self.stdout, self.stderr = code, stdout, stderr

    @property
    def json(self):
        return json.loads(self.stdout)

    def __repr__(self):
        return f"exit code {self.code}\nstdout: {self.stdout}\nstderr: {self.stderr}"


def nz(*arguments, timeout=600, **popen):
    """Runs the tool and returns how it ended."""
    done = subprocess.run(
        [str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=timeout, **popen
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def convert(model, output, *options, **popen):
    """Converts a model, which must succeed, and returns the JSON report."""
    outcome = nz("convert", model, "-o", output, "--json", *options, **popen)
    assert outcome.code == OK, outcome
    return outcome.json


def data_file(model):
    """The data file of a converted model."""
    return model.with_name(model.name + ".data")


# Runs a command in a process whose only child it is, so that the peak is the command's own.
_MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
with open(sys.argv[1], "w") as file:
    print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=file)
sys.stdout.buffer.write(done.stdout)
"""


def peak_memory(folder, *arguments, timeout=600):
    """Runs the tool, which must succeed; the most resident memory in bytes that it held."""
    report = folder / "peak.txt"
    command = [sys.executable, "-S", "-c", _MEASURE, str(report), str(TOOL), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done
    code, kib = map(int, report.read_text().split())
    assert code == OK, f"exit code {code}: {done.stdout}"
    return kib * 1024
