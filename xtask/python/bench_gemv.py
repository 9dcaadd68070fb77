#!/usr/bin/env python3
"""Products with compressed weights against ONNX Runtime's own, in sessions that take turns in one process.

usage: bench_gemv.py --report OUT.json --tool NZ_ONNX --library LIB --scratch FOLDER [--quick]
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
from bench_generate import embedding, matmul_chain
from bench_sessions import Session, executed
from bench_variants import CannotMake, matmul_nbits, quiet

PLAIN = "ONNX Runtime, float32"
# Of nz-onnx with one row, as a share of the time of plain float32.
LOSSLESS = "nz, lossless float32"
TARGETS = {LOSSLESS: 1.25, "nz, bfloat16 precision (7 mantissa bits)": 0.55, "nz, 3 mantissa bits": 0.52}
# What is rounded is to be decoded at no less than this share of the lossless speed.
OF_LOSSLESS = 0.8
ROUNDED = ["nz, grid, 8 bits", "nz, grid, 4.5 bits", "nz, codebooks, 4.5 bits"]


@dataclass
class Sizes:
    layers: int
    size: int
    rows: list
    # Seconds for the rounds of one number of rows, all variants together.
    budget: float
    # Rows to gather from, and their length.
    table: tuple


FULL = Sizes(layers=6, size=4096, rows=[1, 2, 4, 8, 16, 128], budget=15, table=(65536, 1024))
QUICK = Sizes(layers=2, size=512, rows=[1, 8], budget=0.1, table=(4096, 256))


@dataclass
class Variant:
    """A model, or why there is none."""

    name: str
    path: Path | None = None
    library: Path | None = None
    why: str = ""
    ran: str = ""
    # Largest difference from the plain model's output, as a share of its largest magnitude.
    error: float = 0.0
    # By (threads, rows): the seconds of each round.
    times: dict = field(default_factory=dict)


def make(sizes, arguments, folder):
    """All variants; those that cannot be made say why."""
    tool = Tool(arguments.tool)
    made = []

    def chain(name, file, **dtypes):
        path = matmul_chain(folder / f"{file}.onnx", sizes.layers, sizes.size, **dtypes)
        made.append(Variant(name, path))
        return path

    def nz(name, file, source, *options):
        path = folder / f"{file}.nz.onnx"
        tool.convert(source, path, *options)
        made.append(Variant(name, path, arguments.library))

    def nbits(name, file, bits, accuracy_level):
        variant = Variant(name, folder / f"{file}.onnx")
        try:
            matmul_nbits(bits, accuracy_level)(plain, variant.path)
        except CannotMake as error:
            variant.path, variant.why = None, str(error)
        made.append(variant)

    plain = chain(PLAIN, "float32")
    nz("nz, lossless float32", "lossless", plain, "--lossless")
    nz("nz, default options", "default", plain)
    nz("nz, bfloat16 precision (7 mantissa bits)", "k7", plain, "--mantissa-bits", "7")
    nz("nz, 3 mantissa bits", "k3", plain, "--mantissa-bits", "3")
    nz(ROUNDED[0], "grid8", plain, "--transform", "grid", "--bits", "8")
    nz(ROUNDED[1], "grid4", plain, "--transform", "grid", "--bits", "4.5")
    nz(ROUNDED[2], "codebook", plain, "--transform", "codebook", "--bits", "4.5")
    upcast = matmul_chain(folder / "upcast.onnx", sizes.layers, sizes.size, through="bfloat16")
    nz("nz, lossless float32 upcast from bfloat16", "upcast", upcast, "--lossless")
    remove(upcast)
    float16 = chain("ONNX Runtime, float16", "float16", dtype="float16")
    nz("nz, lossless float16", "float16-lossless", float16, "--lossless")
    chain("ONNX Runtime, bfloat16 MatMul", "bfloat16", dtype="bfloat16")
    chain("ONNX Runtime, bfloat16 cast to float32", "bfloat16-cast", dtype="bfloat16", compute="float32")
    for bits in (8, 4):
        nbits(f"MatMulNBits, {bits} bits, block 32", f"nbits{bits}", bits, 0)
        nbits(f"MatMulNBits, {bits} bits, block 32, computing in int8", f"nbits{bits}-int8", bits, 4)
    return made


def feeds(sizes, rows):
    x = np.random.default_rng(rows).standard_normal((rows, sizes.size), dtype=np.float32)
    return {"x": x}


def prove(variants, sizes, folder):
    """Notes what each variant runs and how far its output is off; those that do not load say so."""
    x = feeds(sizes, 1)
    expected = None
    for variant in (v for v in variants if v.path):
        try:
            counts = executed(variant.path, x, folder, variant.library)
            output = Session(variant.path, x, variant.library).outputs()[0]
        except RuntimeError:
            raise
        except Exception as error:
            variant.why, variant.path = f"does not load: {reason(error)}", None
            continue
        if variant.library and counts.get("DecodeMatMul") != sizes.layers:
            raise RuntimeError(f"{variant.name}: expected {sizes.layers} DecodeMatMul, ran {counts}")
        # The node that names the library to those who have not registered it does nothing.
        variant.ran = ", ".join(f"{n} {op}" for op, n in counts.items() if not op.startswith("register_"))
        expected = output if expected is None else expected
        variant.error = np.max(np.abs(output - expected)) / np.max(np.abs(expected))


def measure(variants, sizes, threads):
    """Fills in the times of all variants with so many threads. All sessions are there at the same time."""
    sessions = {
        v.name: Session(v.path, feeds(sizes, 1), v.library, threads) for v in variants if v.path
    }
    for rows in sizes.rows:
        for session in sessions.values():
            session.feeds = feeds(sizes, rows)
        runs = {name: session.seconds for name, session in sessions.items()}
        found = run_in_turns(runs, sizes.budget, least=5, most=15, pause=0.01 if threads > 1 else 0)
        for variant in variants:
            if variant.path:
                variant.times[threads, rows] = found[variant.name]


def rows_of(variants, sizes, threads):
    """The lines of the table for so many threads: times as shares of the plain model's in the same round."""
    first_column, first = columns(sizes)[3], sizes.rows[0]
    plain = variants[0]
    (lossless,) = (v for v in variants if v.name == LOSSLESS)
    exact = np.median(ratios(lossless.times[threads, first], plain.times[threads, first]))
    for variant in variants:
        if not variant.path:
            yield [variant.name, None, variant.why] + [None] * (len(sizes.rows) + 1)
            continue
        cells = [
            samples([1e3 * t for t in variant.times[threads, rows]], 1)
            if variant is plain
            else samples(ratios(variant.times[threads, rows], plain.times[threads, rows]))
            for rows in sizes.rows
        ]
        bound = exact / OF_LOSSLESS if variant.name in ROUNDED else TARGETS.get(variant.name)
        verdict = target(first_column, at_most=bound) if bound else None
        size = value(file_bytes(variant.path) / MIB)
        name = f"{variant.name}, ms" if variant is plain else variant.name
        yield [name, size, f"{variant.error:.1e}", *cells, verdict]


def columns(sizes):
    return ["weights", "MiB", "error", *map(of_rows, sizes.rows), "target"]


def of_rows(count):
    return f"{count} row{'s' if count > 1 else ''}"


def measure_gather(sizes, arguments, folder):
    """Rows of an embedding, against ONNX Runtime's own Gather, on one thread."""
    vocabulary, row = sizes.table
    plain = embedding(folder / "embedding.onnx", vocabulary, row)
    tool = Tool(arguments.tool)
    models = {PLAIN: (plain, None)}
    for name, options in (
        ("nz, lossless float32", ["--lossless"]),
        ("nz, default options", []),
        ("nz, 3 mantissa bits", ["--mantissa-bits", "3"]),
    ):
        path = folder / f"embedding{len(models)}.nz.onnx"
        tool.convert(plain, path, *options)
        models[name] = (path, arguments.library)
    counts = (1, 16, 256)
    found = {name: [] for name in models}
    rng = np.random.default_rng(0)
    for count in counts:
        # Other rows in each run, so that none of them is in a cache.
        runs = {}
        for name, (path, library) in models.items():
            ids = {"ids": rng.integers(0, vocabulary, count)}
            if library and not executed(path, ids, folder, library).get("DecodeGather"):
                raise RuntimeError(f"{name}: no DecodeGather ran")
            session = Session(path, ids, library, 1)

            def run(session=session, count=count):
                session.feeds = {"ids": rng.integers(0, vocabulary, count)}
                return session.seconds()

            runs[name] = run
        times = run_in_turns(runs, sizes.budget, least=5, most=25)
        for name in models:
            found[name].append(times[name])
    rows = []
    for name, (path, library) in models.items():
        cells = [
            samples([count * row * 4 / t / 1e9 for t in times])
            if not library
            else samples(ratios(times, plain_times))
            for count, times, plain_times in zip(counts, found[name], found[PLAIN], strict=True)
        ]
        label = name if library else f"{name}, GB/s"
        rows.append([label, value(file_bytes(path) / MIB), *cells])
        remove(path)
    title = f"Gather of random rows of {row} from {vocabulary}, 1 thread"
    return table(title, ["weights", "MiB", *map(of_rows, counts)], rows)


def main():
    arguments = parser().parse_args()
    quiet()
    sizes = QUICK if arguments.quick else FULL
    folder = arguments.scratch / "gemv"
    folder.mkdir(exist_ok=True)
    variants = make(sizes, arguments, folder)
    prove(variants, sizes, folder)
    tables = []
    for threads in (1, 2) if len(os.sched_getaffinity(0)) > 1 else (1,):
        measure(variants, sizes, threads)
        title = f"{threads} thread{'s' if threads > 1 else ''}"
        tables.append(table(title, columns(sizes), list(rows_of(variants, sizes, threads))))
    tables.append(measure_gather(sizes, arguments, folder))
    ran = [[v.name, v.ran or v.why] for v in variants]
    tables.append(table("What ONNX Runtime ran", ["weights", "nodes of one run"], ran))
    total = sizes.layers * sizes.size**2 * 4 / MIB
    about = (
        f"A chain of {sizes.layers} MatMul with constant weights of {sizes.size} x {sizes.size} "
        f"({total:.0f} MiB in float32), input and output float32, in sessions with default options that "
        "take turns in one process, each with a run that is not counted first. The first line has milliseconds; "
        "all others are times over those of the first line in the same round, so that less is faster. Error: the largest difference from "
        "the first line's output with one row, as a share of its largest magnitude; it grows from layer "
        "to layer, and has in it what rounding weights to float16, bfloat16 or fewer bits changes. The targets of "
        f"grids and codebooks are {OF_LOSSLESS} of the speed without loss. Gather: "
        "the first line has gathered bytes a second, the others times over it."
    )
    write_report(arguments.report, [about], tables)
    for variant in variants:
        if variant.path:
            remove(variant.path)


if __name__ == "__main__":
    main()
