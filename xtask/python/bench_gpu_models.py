#!/usr/bin/env python3
"""Whole models under ONNX Runtime's CUDA provider, plain and converted; other decoders of weights on the same GPU.

Where there is no GPU, or no CUDA provider, it says what is missing and leaves no report; with REQUIRE_GPU=1 that is a
failure.

usage: bench_gpu_models.py --report OUT.json --tool NZ_ONNX --library LIB --scratch FOLDER [--quick]
"""

import ctypes
import json
import os
import subprocess
import sys
import time

import numpy as np
import onnxruntime as ort

from bench_common import (
    MIB,
    Tool,
    file_bytes,
    parser,
    ratios,
    reason,
    remove,
    run_in_turns,
    samples,
    table,
    target,
    value,
    write_report,
)
from bench_generate import transformer
from bench_peers_gpu import peers
from bench_sessions import LEAST, options
from bench_variants import Variant
from session_worker import executed_nodes

CUDA = "CUDAExecutionProvider"
RUNS = 10  # before memory is read
PLAIN = "plain"
VARIANTS = {
    "nz, default options": ["--profile", "gpu"],
    "nz --lossless": ["--profile", "gpu", "--lossless"],
}
# What is hoped for, of plain: GPU memory, by dtype and variant, and latency with one token.
MEMORY = {("bfloat16", "nz --lossless"): 0.70, ("bfloat16", "nz, default options"): 0.50}
LATENCY = 1.0


def missing(available, driver):
    """What a GPU measurement lacks here. `available`: ONNX Runtime's providers; `driver`: whether libcuda loads."""
    lacks = []
    if not driver:
        lacks.append("there is no CUDA driver (libcuda.so.1) on this machine")
    if CUDA not in available:
        lacks.append(f"this ONNX Runtime ({ort.__version__}) has no {CUDA}: install onnxruntime-gpu")
    return lacks


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class DeviceMemory:
    """The memory of device 0, as the driver counts it: of all processes that use it."""

    def __init__(self):
        self.driver = ctypes.CDLL("libcuda.so.1")
        device, self.context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)

    def call(self, name, *arguments):
        status = getattr(self.driver, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: CUDA error {status}")

    def used(self):
        """Bytes in use."""
        free, whole = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuCtxSetCurrent", self.context)
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(whole))
        return whole.value - free.value


def session_of(path, library=None, profile=None):
    """A session of the CUDA provider. Nodes about shapes are the CPU's, as that provider has it."""
    made = options(library, profile=profile)
    # The arena takes what is asked for, so that what it takes can be compared.
    settings = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    session = ort.InferenceSession(str(path), made, providers=[(CUDA, settings), "CPUExecutionProvider"])
    if session.get_providers()[0] != CUDA:
        raise RuntimeError(f"{path} runs on {session.get_providers()}, not on {CUDA}")
    return session


def seconds_of(session, feeds):
    """A function that runs the session once, or more often if that is short; the seconds that one run took."""

    def run():
        start, runs = time.perf_counter(), 0
        while True:
            session.run(None, feeds)
            runs += 1
            elapsed = time.perf_counter() - start
            if elapsed >= LEAST:
                return elapsed / runs

    return run


def require_ours(path, feeds, library, folder):
    """Fails when no op of ours ran on the GPU."""
    session = session_of(path, library, folder / "profile")
    session.run(None, feeds)
    profile = session.end_profiling()
    nodes = executed_nodes(profile).get(CUDA, {})
    os.remove(profile)
    if not any(op.startswith("Decode") for op in nodes):
        raise RuntimeError(f"{path} ran without a single nz node on {CUDA}: {nodes}")


def measure_memory(model, inputs, library):
    """For a process of its own: bytes of the GPU in use after ten runs, above what they were before the session."""
    memory = DeviceMemory()
    before = memory.used()
    session = session_of(model, library)
    feeds = dict(np.load(inputs))
    for _ in range(RUNS):
        session.run(None, feeds)
    return memory.used() - before


def gpu_memory(path, inputs, library):
    command = [sys.executable, __file__, "--memory-of", str(path), str(inputs), str(library or "")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{path}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])["bytes"] / MIB


def columns(names):
    pairs = [f"{name}, {what}" for name in names for what in ("ms", "of plain")]
    return ["model", "variant", "files, MiB", "GPU, MiB", "GPU, of plain", "target", "error", *pairs, "target of latency"]


def rows_of(dtype, variants, names):
    """The lines of a model. Those of what could not be made, or does not run, say why in place of the error."""
    plain = variants[0]
    for variant in variants:
        if not variant.path:
            yield [f"transformer, {dtype}", variant.name, None, None, None, None, variant.why, *[None] * (2 * len(names) + 1)]
            continue
        cells = []
        for name in names:
            times = variant.times[name]
            cells += [samples([1e3 * t for t in times]), samples(ratios(times, plain.times[name]))]
        bound = MEMORY.get((dtype, variant.name))
        yield [
            f"transformer, {dtype}",
            variant.name,
            value(file_bytes(variant.path) / MIB),
            value(variant.memory),
            value(variant.memory / plain.memory, 2),
            target("GPU, of plain", at_most=bound) if bound else None,
            f"{variant.error:.1e}",
            *cells,
            target(f"{names[0]}, of plain", at_most=LATENCY) if variant.library else None,
        ]


def variants_of(plain, tool, library, folder):
    made = [Variant(PLAIN, plain)]
    for number, (name, extra) in enumerate(VARIANTS.items()):
        path = folder / f"gpu-variant{number}.nz.onnx"
        try:
            tool.convert(plain, path, *extra)
            made.append(Variant(name, path, library))
        except RuntimeError as error:
            made.append(Variant(name, None, why=reason(error)))
    return made


def measure(variants, feeds, folder, budget, bare):
    """Fills in memory, error and latency; `bare`, MiB, is what memory is counted from."""
    first = next(iter(feeds.values()))
    inputs = folder / "gpu-inputs.npz"
    np.savez(inputs, **first)
    sessions, expected = {}, None
    for variant in (v for v in variants if v.path):
        variant.memory = gpu_memory(variant.path, inputs, variant.library) - bare
        if variant.library:
            require_ours(variant.path, first, variant.library, folder)
        session = session_of(variant.path, variant.library)
        found = session.run(None, first)[0].astype(np.float64)
        expected = found if expected is None else expected
        variant.error = float(np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1e-30))
        sessions[variant.name] = session
    for name, inputs_of in feeds.items():
        runs = {known: seconds_of(session, inputs_of) for known, session in sessions.items()}
        found = run_in_turns(runs, budget, least=5, most=25)
        for variant in (v for v in variants if v.path):
            variant.times[name] = found[variant.name]


def measure_transformers(arguments, tool, folder):
    """The table, and the sizes in words."""
    layers, hidden, vocabulary, tokens = (2, 128, 512, 16) if arguments.quick else (16, 1536, 32768, 128)
    names = ["1 token", f"{tokens} tokens"]
    rng = np.random.default_rng(0)
    rows, sizes = [], []
    for dtype in ("float16", "bfloat16", "float32"):
        plain = transformer(folder / f"gpu-{dtype}.onnx", layers, hidden, vocabulary, dtype)
        tiny = transformer(folder / "gpu-tiny.onnx", layers, 64, 64, dtype)
        feeds = {
            name: {"tokens": rng.integers(0, 64, (1, count))} for name, count in zip(names, (1, tokens), strict=True)
        }
        inputs = folder / "gpu-tiny.npz"
        np.savez(inputs, **feeds[names[0]])
        variants = variants_of(plain, tool, arguments.library, folder)
        measure(variants, feeds, folder, 0.1 if arguments.quick else 10, gpu_memory(tiny, inputs, None))
        rows += rows_of(dtype, variants, names)
        sizes.append(f"{file_bytes(plain) / MIB:.0f} MiB in {dtype}")
        for variant in variants:
            if variant.path:
                remove(variant.path)
        remove(tiny)
    return table("Whole models under the CUDA provider", columns(names), rows), ", ".join(sizes)


def main():
    if sys.argv[1:2] == ["--memory-of"]:
        model, inputs, library = sys.argv[2:5]
        print(json.dumps({"bytes": measure_memory(model, inputs, library or None)}))
        return 0
    arguments = parser().parse_args()
    lacks = missing(ort.get_available_providers(), has_driver())
    if lacks:
        print(f"SKIPPED: {'; '.join(lacks)}; REQUIRE_GPU=1 makes this a failure", file=sys.stderr)
        return 1 if os.environ.get("REQUIRE_GPU") == "1" else 0
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    folder = arguments.scratch / "gpu-models"
    folder.mkdir(exist_ok=True)
    models, sizes = measure_transformers(arguments, Tool(arguments.tool), folder)
    about = [
        f"Whole models: decoders ({sizes}) in ONNX Runtime {ort.__version__}, their shapes computed on the CPU; bfloat16 weights "
        "are cast and computed with in float32. Latency: the variants take turns in one process, inputs and logits copied. GPU "
        "memory: each in a process of its own, what the driver counts after ten runs above what it counted before, less the "
        "same for a graph with weights of a few KiB; nothing else may use the GPU meanwhile. Converted with `--profile gpu`.",
        "Other decoders take the exponents and raw bytes of the same kind of weights on the same GPU; a time is the host's, of "
        "a number of calls.",
    ]
    write_report(arguments.report, about, [models, peers(arguments.quick)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
