"""What the measuring scripts of `cargo xtask bench` share: arguments, the report, the tool, rounds in turn.

A report holds samples; medians, quartiles and verdicts are computed by the task that reads it.
"""

import argparse
import json
import re
import subprocess
import time
from pathlib import Path

import numpy as np

MIB = 1 << 20
BLOCK = 4096  # weights that share a number of mantissa bits


def parser():
    """The arguments that all of the scripts take."""

    # Processes that are started run in folders of their own.
    def path(text):
        return Path(text).absolute()

    made = argparse.ArgumentParser()
    made.add_argument("--report", type=path, required=True, help="where the JSON report goes")
    made.add_argument("--tool", type=path, required=True, help="nz-onnx")
    made.add_argument("--library", type=path, required=True, help="libnz_onnx.so")
    made.add_argument("--scratch", type=path, required=True, help="a folder for what is made on the way")
    made.add_argument("--quick", action="store_true", help="small sizes: a smoke test")
    made.add_argument("--models", type=path, help="a folder of real models")
    made.add_argument("--minilm", type=path, help="the float32 model of the demo")
    return made


def samples(numbers, digits=2):
    """A cell with one number a round."""
    return {"samples": [float(number) for number in numbers], "digits": digits}


def value(number, digits=1):
    """A cell with a number that has no spread."""
    return {"value": float(number), "digits": digits}


def target(of, digits=2, **bound):
    """A cell that says whether the number in column `of` is `at_least` or `at_most` something."""
    return {"target": {"of": of, "digits": digits, **bound}}


def table(title, columns, rows):
    return {"title": title, "columns": columns, "rows": rows}


def write_report(path, about, tables):
    path.write_text(json.dumps({"about": about, "tables": tables}) + "\n", encoding="utf-8")


def ratios(ours, theirs):
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def reason(error):
    """The first line of an error, short enough for a table, files by name only."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"(?<!\S)/\S*/", "", lines[0] if lines else type(error).__name__)
    return text if len(text) <= 160 else text[:157] + "..."


def bound(bits, mantissa):
    """What a coder of a tensor's exponents cannot beat, in bits: their entropy, and sign and mantissa as they
    are, without the lowest mantissa bits where these are zero in a whole block of weights."""
    exponents = np.bincount(((bits << 1) >> (mantissa + 1)).ravel())
    shares = exponents[exponents > 0] / bits.size
    entropy = -(shares * np.log2(shares)).sum()
    raw = 0
    for start in range(0, bits.size, BLOCK):
        block = bits[start : start + BLOCK]
        union = int(np.bitwise_or.reduce(block)) & ((1 << mantissa) - 1)
        zeros = (union & -union).bit_length() - 1 if union else mantissa
        raw += block.size * (1 + mantissa - zeros)
    return bits.size * entropy + raw


def run_in_turns(runs, budget, least=5, most=25, pause=0.0):
    """The seconds of each of `runs` ({name: function that returns seconds}), in rounds that call each once.

    The number of rounds, between `least` and `most`, is what fits `budget` seconds, going by a first round
    that warms up and is dropped. `pause` seconds before each call let the threads of the one before stop
    spinning."""
    start = time.perf_counter()
    for run in runs.values():
        run()
    round_time = time.perf_counter() - start + pause * len(runs)
    rounds = max(least, min(most, int(budget / round_time)))
    found = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(pause)
            found[name].append(run())
    return found


class Tool:
    """The command line tool."""

    def __init__(self, path):
        self.path = path
        self.help = self._run("convert", "--help")

    def _run(self, *arguments):
        done = subprocess.run([str(self.path), *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nz-onnx {arguments[0]}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def has(self, option):
        """Whether `convert` takes this option."""
        return option in self.help

    def convert(self, model, output, *options):
        """Converts a model and returns the JSON report."""
        return json.loads(self._run("convert", model, "-o", output, "--force", "--json", *options))


def file_bytes(path):
    """The bytes of the model file and of its external data."""
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def remove(path):
    """Removes a model and its external data."""
    for file in (path, path.with_name(path.name + ".data")):
        file.unlink(missing_ok=True)


def known_models(arguments):
    """The real models there are: those of the folder named, and MiniLM. Three of them are enough for a smoke
    test."""
    paths = sorted(arguments.models.glob("*.onnx")) if arguments.models else []
    paths = paths[:3] if arguments.quick else paths
    return paths + [arguments.minilm] if arguments.minilm else paths


def which_models(arguments):
    """Where the real models come from, in words."""
    count = len(known_models(arguments)) - bool(arguments.minilm)
    places = [f"{count} in the folder that NZ_MODELS names"] if arguments.models else []
    return " and ".join(places + ["MiniLM of `cargo xtask demo`"] * bool(arguments.minilm)) or "none"
