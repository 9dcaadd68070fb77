#!/usr/bin/env python3
"""Whole models, converted, beside the originals and what ONNX Runtime's own tools make of them.

Each session has a process of its own; for latency the processes take turns.

usage: bench_models.py --report OUT.json --tool NZ_ONNX --library LIB --scratch FOLDER
                       [--models FOLDER] [--minilm MODEL.onnx] [--quick]
"""

import contextlib
import math

import numpy as np

from bench_common import (
    MIB,
    Tool,
    file_bytes,
    known_models,
    parser,
    ratios,
    reason,
    remove,
    run_in_turns,
    samples,
    table,
    target,
    value,
    which_models,
    write_report,
)
from bench_generate import transformer
from bench_sessions import LEAST, Session, executed
from bench_variants import CannotMake, Variant, dynamic_int8, float16, matmul_nbits, quiet
from inputs import known_inputs
from worker import Worker

RUNS = 10  # before memory is read
# What a converted model may hold beside its weights.
ALLOWANCE = 8
PLAIN = "plain"
# Latency over plain that all real models together should have at most: geometric mean, and the worst.
TOGETHER = {"native": (1.05, 1.25), "portable": (1.15, 1.60)}
# What the made float32 transformer should have at most with default options: resident memory, and latency with one
# token and with many, of plain.
TRANSFORMER = (0.55, 0.65, 1.05)
# Shares of a model's decoded weights that are kept, for the table of the cache.
CACHED = (0, 0.25, 0.5, 0.75, 1)


def nz_options(tool):
    """The ways to convert, by name."""
    found = {"nz, default options": [], "nz --lossless": ["--lossless"]}
    if tool.has("--optimize"):
        for kind in ("portable", "native"):
            found[f"nz --optimize {kind}"] = ["--optimize", kind]
            found[f"nz --optimize {kind} --lossless"] = ["--optimize", kind, "--lossless"]
    return found


def variants_of(model, tool, library, folder):
    """The model itself, its conversions, and what others make of it."""
    made = [Variant(PLAIN, model)]
    for number, (name, options) in enumerate(nz_options(tool).items()):
        path = folder / f"variant{number}.nz.onnx"
        try:
            report = tool.convert(model, path, *options)
        except RuntimeError as error:
            made.append(Variant(name, None, why=reason(error)))
            continue
        if report["totals"]["compressed"]:
            made.append(Variant(name, path, library))
        else:
            kept = sorted({tensor["reason"] for tensor in report["tensors"] if tensor["reason"]})
            made.append(Variant(name, None, why="nothing to compress: " + "; ".join(kept)))
    for name, file, make in (
        ("float16", "half", float16),
        ("int8, dynamic", "int8", dynamic_int8),
        ("MatMulNBits, 4 bits, block 32, computing in int8", "nbits4", matmul_nbits(4, 4)),
    ):
        path = folder / f"{file}.onnx"
        remove(path)
        try:
            make(model, path)
            made.append(Variant(name, path))
        except CannotMake as error:
            made.append(Variant(name, None, why=str(error)))
    return made


def process(path, inputs, library, cache_mib):
    """A worker that has not loaded its session yet."""
    environment = {"NZ_CACHE_MIB": str(cache_mib)} if cache_mib else {}
    return Worker(path, inputs, library=library, environment=environment)


def resident(path, inputs, library, cache_mib=None):
    """Resident memory in MiB after ten runs in a process of its own: all of it, and above what the process
    held before there was a session."""
    with process(path, inputs, library, cache_mib) as worker:
        before = worker.memory()["rss"]
        worker.load()
        worker.run(RUNS)
        after = worker.memory()["rss"]
    return after / MIB, (after - before) / MIB


@contextlib.contextmanager
def processes(sessions, inputs):
    """A worker that has loaded its session for each of `sessions`, {name: (path, library, MiB of cache)}."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, (path, library, cache_mib) in sessions.items():
            worker = stack.enter_context(process(path, inputs, library, cache_mib))
            worker.load()
            workers[name] = worker
        yield workers


def latencies(workers, budget):
    """The seconds that a run takes in each of `workers`, which take turns: in each turn, behind a run that wakes the
    threads, the median of as many as last LEAST."""

    def turn(worker):
        # The first runs decide what is kept decoded, where something is.
        times = max(1, math.ceil(LEAST / worker.run(4)[-1]))
        return lambda: float(np.median(worker.run(1 + times)[1:]))

    runs = {name: turn(worker) for name, worker in workers.items()}
    return run_in_turns(runs, budget, least=5, most=25, pause=0.005)


def worst_difference(outputs, expected):
    """The largest difference of any output, as a share of that output's largest magnitude."""
    worst = 0.0
    for ours, theirs in zip(outputs, expected, strict=True):
        if isinstance(ours, np.ndarray) and ours.dtype.kind == "f" and ours.size:
            theirs = theirs.astype(np.float64)
            worst = max(worst, np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-30))
    return worst


def measure(variants, feeds, folder, budget, bare=None):
    """Fills in memory, error and latency. `feeds`: {name: inputs}; memory is that with the first of them.
    `bare`, MiB, is what resident memory is counted from: by default what the process held before it had a
    session."""
    first = next(iter(feeds.values()))
    inputs = folder / "inputs.npz"
    np.savez(inputs, **first)
    sessions, expected = {}, None
    for variant in (v for v in variants if v.path):
        try:
            outputs = Session(variant.path, first, variant.library).outputs()
        except Exception as error:
            if variant.library or variant.name == PLAIN:
                raise
            variant.why, variant.path = f"does not load: {reason(error)}", None
            continue
        if variant.library:
            executed(variant.path, first, folder, variant.library)
        whole, above = resident(variant.path, inputs, variant.library)
        variant.memory = above if bare is None else whole - bare
        expected = outputs if expected is None else expected
        variant.error = worst_difference(outputs, expected)
        sessions[variant.name] = (variant.path, variant.library, None)
    for name, inputs_of in feeds.items():
        np.savez(inputs, **inputs_of)
        with processes(sessions, inputs) as workers:
            found = latencies(workers, budget)
        for variant in variants:
            if variant.path:
                variant.times[name] = found[variant.name]


COLUMNS = ["model", "variant", "files, MiB", "resident, MiB", "resident, of plain", "error"]


def columns(names):
    pairs = [f"{name}, {what}" for name in names for what in ("ms", "of plain")]
    return [*COLUMNS, *pairs, "target"]


def rows_of(model, variants, names, targets):
    """The lines of a model. Those of what could not be made say why in place of the error."""
    plain = variants[0]
    for variant in variants:
        if not variant.path:
            empty = [None] * (2 * len(names) + 1)
            yield [model, variant.name, None, None, None, variant.why, *empty]
            continue
        cells = []
        for name in names:
            times = variant.times[name]
            cells += [samples([1e3 * t for t in times]), samples(ratios(times, plain.times[name]))]
        size = file_bytes(variant.path) / MIB
        verdict = None
        if targets and variant.library:
            verdict = target("resident, MiB", 1, at_most=size + ALLOWANCE)
        yield [
            model,
            variant.name,
            value(size),
            value(variant.memory),
            value(variant.memory / plain.memory, 2),
            f"{variant.error:.1e}",
            *cells,
            verdict,
        ]


def together(found):
    """The table of all real models. `found`: {variant's name: {model: time of plain}}."""
    rows = []
    for name, ratios_of in found.items():
        mean = float(np.exp(np.mean(np.log(list(ratios_of.values())))))
        worst = max(ratios_of, key=ratios_of.get)
        bounds = next((b for kind, b in TOGETHER.items() if kind in name), (None, None))
        verdicts = [
            target(column, at_most=bound) if bound else None
            for column, bound in zip(TOGETHER_COLUMNS[2:5:2], bounds, strict=True)
        ]
        rows.append(
            [name, value(len(ratios_of), 0), value(mean, 2), verdicts[0], value(ratios_of[worst], 2), verdicts[1], worst]
        )
    return table("Latency of all real models, of plain", TOGETHER_COLUMNS, rows)


TOGETHER_COLUMNS = ["variant", "models", "geometric mean", "target", "worst", "target of the worst", "the worst"]


def real_models(arguments):
    """The models of the folder and MiniLM, with inputs."""
    for path in known_models(arguments):
        yield path, known_inputs(path)


def clean(variants):
    for variant in variants:
        if variant.name != PLAIN and variant.path:
            remove(variant.path)


def measure_real(arguments, tool, folder):
    rows, medians = [], {}
    for path, inputs in real_models(arguments):
        variants = variants_of(path, tool, arguments.library, folder)
        measure(variants, {"latency": inputs}, folder, 0.1 if arguments.quick else 3)
        rows += rows_of(path.stem, variants, ["latency"], targets=False)
        for variant in (v for v in variants if v.library and v.path):
            found = ratios(variant.times["latency"], variants[0].times["latency"])
            medians.setdefault(variant.name, {})[path.stem] = float(np.median(found))
        clean(variants)
    return [together(medians), table("Real models", columns(["latency"]), rows)]


def against_targets(variants, names):
    """The default conversion of the float32 transformer beside what it should reach."""
    plain, converted = variants[:2]
    found = [value(converted.memory / plain.memory, 2)]
    found += [samples(ratios(converted.times[name], plain.times[name])) for name in names]
    what = ["resident memory", *(f"latency, {name}" for name in names)]
    rows = [
        [line, cell, target("of plain", at_most=most)]
        for line, cell, most in zip(what, found, TRANSFORMER, strict=True)
    ]
    return table("Default options, float32 transformer", ["what", "of plain", "target"], rows)


def measure_cache(plain, tool, arguments, folder, feeds, bare):
    """What `nz.cache_mib` buys: the float32 transformer with default options, more and more of it kept decoded."""
    converted = folder / "cached.nz.onnx"
    report = tool.convert(plain, converted)
    decoded = sum(t["bytes_before"] for t in report["tensors"] if t["decision"] == "compressed") / MIB
    inputs = folder / "inputs.npz"
    np.savez(inputs, **feeds)
    budgets = [int(np.ceil(share * decoded)) for share in CACHED]
    names = [f"{budget} MiB" for budget in budgets]
    memory = {PLAIN: resident(plain, inputs, None)[0] - bare}
    sessions = {PLAIN: (plain, None, None)}
    for name, budget in zip(names, budgets, strict=True):
        memory[name] = resident(converted, inputs, arguments.library, budget)[0] - bare
        sessions[name] = (converted, arguments.library, budget)
    with processes(sessions, inputs) as workers:
        times = latencies(workers, 0.1 if arguments.quick else 12)
    remove(converted)
    rows = [
        [name, value(memory[name]), value(memory[name] / memory[PLAIN], 2), samples(ratios(times[name], times[PLAIN]))]
        for name in (PLAIN, *names)
    ]
    title = "Memory against speed: `nz.cache_mib`, float32 transformer, default options, 1 token"
    return table(title, ["kept decoded", "resident, MiB", "resident, of plain", "latency, of plain"], rows)


def measure_transformers(arguments, tool, folder):
    """The tables, and the sizes in words."""
    layers, hidden, vocabulary, tokens = (2, 128, 512, 16) if arguments.quick else (8, 1536, 16384, 128)
    names = ["1 token", f"{tokens} tokens"]
    rng = np.random.default_rng(0)
    rows, sizes, more = [], [], []
    for dtype in ("float32", "float16", "bfloat16"):
        plain = transformer(folder / f"transformer-{dtype}.onnx", layers, hidden, vocabulary, dtype)
        tiny = transformer(folder / "tiny.onnx", layers, 64, 64, dtype)
        feeds = {
            name: {"tokens": rng.integers(0, 64, (1, count))} for name, count in zip(names, (1, tokens))
        }
        inputs = folder / "tiny.npz"
        np.savez(inputs, **feeds[names[0]])
        bare, _ = resident(tiny, inputs, None)
        variants = variants_of(plain, tool, arguments.library, folder)
        measure(variants, feeds, folder, 0.1 if arguments.quick else 12, bare)
        rows += rows_of(f"transformer, {dtype}", variants, names, targets=True)
        if dtype == "float32":
            more.append(against_targets(variants, names))
            more.append(measure_cache(plain, tool, arguments, folder, feeds[names[0]], bare))
        sizes.append(f"{file_bytes(plain) / MIB:.0f} MiB in {dtype}")
        clean(variants)
        remove(plain)
        remove(tiny)
    return [*more, table("Made transformers", columns(names), rows)], ", ".join(sizes)


def main():
    arguments = parser().parse_args()
    quiet()
    tool = Tool(arguments.tool)
    folder = arguments.scratch / "models"
    folder.mkdir(exist_ok=True)
    tables = []
    if arguments.models or arguments.minilm:
        tables += measure_real(arguments, tool, folder)
    made, sizes = measure_transformers(arguments, tool, folder)
    about = [
        "Sessions with default options, each in a process of its own. Latency: the processes of a model take turns, "
        "each with a run that is not counted and then as many as last 20 ms, whose median counts; \"of plain\" is the "
        "time over that of the plain model in the same round. Memory: after ten runs, above what the process "
        "held before it had a session; for the made transformers above a process that has run the same graph with weights of a few KiB. Error: the "
        "largest difference of an output from the plain model's, as a share of its largest magnitude, "
        f"with the inputs kept beside the models or random ones. Real models: {which_models(arguments)}.",
        f"The made transformers are decoders ({sizes}); memory is that with one token, and the target for "
        f"converted ones is the size of their files and {ALLOWANCE} MiB. float16 and bfloat16 weights "
        "become float32 in ONNX Runtime's memory. float16, int8 and MatMulNBits are made by "
        "`onnxruntime.transformers.float16`, `onnxruntime.quantization.quantize_dynamic` and "
        "`onnxruntime.quantization.matmul_nbits_quantizer`.",
    ]
    write_report(arguments.report, about, [*tables, *made])


if __name__ == "__main__":
    main()
