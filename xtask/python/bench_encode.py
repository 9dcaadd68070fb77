#!/usr/bin/env python3
"""Encoding: speed and size against general compressors and ZipNN, and size against the Shannon bound.

All take turns on the same tensors, one thread each; nz-onnx in the benchmark program `encode`, the others in
this one.

usage: bench_encode.py --report OUT.json --encoder PROGRAM --tool NZ_ONNX --library LIB --scratch FOLDER
                       [--models FOLDER] [--minilm MODEL.onnx] [--quick]
"""

import json
import subprocess
import sys
import time
import types
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import lz4.frame
import numpy as np
import onnx
import zstandard
from onnx import TensorProto, numpy_helper

from bench_common import (
    bound,
    known_models,
    parser,
    ratios,
    reason,
    run_in_turns,
    samples,
    table,
    target,
    value,
    which_models,
    write_report,
)
from bench_generate import transformer

# By ONNX data type: name, unsigned type of the bits, mantissa bits.
FLOATS = {
    TensorProto.FLOAT: ("float32", np.uint32, 23),
    TensorProto.FLOAT16: ("float16", np.uint16, 10),
    TensorProto.BFLOAT16: ("bfloat16", np.uint16, 7),
}
LEAST = 4096  # elements of a tensor that counts
OURS = "nz-onnx, lossless"
ABOVE, COMPRESS = "above the bound, bits", "compress, GB/s"
# Bits a weight above the bound, for a model; gigabytes a second and core.
SIZE_TARGET, SPEED_TARGET = 0.12, 2.0


@dataclass
class Corpus:
    """Tensors of one dtype: their bytes, and the bound of each in bits."""

    name: str
    dtype: str
    tensors: list = field(default_factory=list)
    bounds: list = field(default_factory=list)

    @property
    def bytes(self):
        return sum(map(len, self.tensors))

    @property
    def weights(self):
        return self.bytes // (4 if self.dtype == "float32" else 2)


def tensors_of(path):
    """The float tensors of a model worth counting: initializers and Constant nodes, with their data types."""
    model = onnx.load(str(path))

    def of(graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    yield attribute.t
                for inner in [attribute.g, *attribute.graphs]:
                    yield from of(inner)

    for tensor in of(model.graph):
        if tensor.data_type in FLOATS and np.prod(tensor.dims, dtype=np.int64) >= LEAST:
            yield tensor.data_type, numpy_helper.to_array(tensor).tobytes()


def corpora(path, name):
    """The tensors of a model, one corpus a dtype."""
    found = {}
    for data_type, raw in tensors_of(path):
        dtype, bits_type, mantissa = FLOATS[data_type]
        corpus = found.setdefault(dtype, Corpus(name, dtype))
        corpus.tensors.append(raw)
        corpus.bounds.append(bound(np.frombuffer(raw, bits_type), mantissa))
    return list(found.values())


class Encoder:
    """The program that measures nz-onnx's own codec."""

    def __init__(self, program, folder):
        self.file = folder / "tensors.raw"
        self.process = subprocess.Popen(
            [str(program), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the encoder ended with {self.process.wait()} during {command['do']}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the encoder could not {command['do']}: {answer['error']}")
        return answer

    def load(self, corpus):
        self.file.write_bytes(b"".join(corpus.tensors))
        size = corpus.bytes // corpus.weights
        elements = [len(tensor) // size for tensor in corpus.tensors]
        self.ask(do="load", path=str(self.file), dtype=corpus.dtype, elements=elements)
        self.file.unlink()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def zipnn(dtype):
    """Compressor and decompressor of the package zipnn.

    It imports torch, for tensors of that library; what is used here, on bytes, is its C core. An empty module
    in torch's place saves gigabytes of packages."""
    if "zipnn" not in sys.modules:
        for name in ("torch", "safetensors.torch"):
            empty = types.ModuleType(name)
            empty.__getattr__ = lambda attribute: type(attribute, (), {})
            sys.modules[name] = empty
        sys.modules["torch"].jit = types.SimpleNamespace(script=lambda function: function)
    import zipnn

    codec = zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    # It works in the buffer that it is given.
    return lambda data: codec.compress(bytearray(data)), codec.decompress


def others(dtype):
    """The compressors to compare with: {name: (compress, decompress) or why there is none}."""
    found = {}
    for level in (1, 3):
        compressor, decompressor = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        found[f"zstd, level {level}"] = compressor.compress, decompressor.decompress
    found["lz4"] = lz4.frame.compress, lz4.frame.decompress
    try:
        found["ZipNN"] = zipnn(dtype)
    except Exception as error:
        found["ZipNN"] = f"cannot be used here: {reason(error)}"
    return found


class Measured:
    """One compressor on one corpus: seconds of each round, and the compressed size."""

    def __init__(self, corpus, pair):
        self.corpus, (self.compress, self.decompress) = corpus, pair
        self.size, self.compressing, self.decompressing = 0, [], []

    def run(self):
        """Compresses and decompresses all tensors once; the seconds that both took."""
        start = time.perf_counter()
        packed = [self.compress(tensor) for tensor in self.corpus.tensors]
        middle = time.perf_counter()
        unpacked = [self.decompress(data) for data in packed]
        end = time.perf_counter()
        if any(bytes(a) != b for a, b in zip(unpacked, self.corpus.tensors, strict=True)):
            raise RuntimeError("decompressing gives other bytes")
        self.size = sum(map(len, packed))
        self.compressing.append(middle - start)
        self.decompressing.append(end - middle)
        return end - start


class Ours(Measured):
    """The same for nz-onnx, in the program that has its codec."""

    def __init__(self, corpus, encoder):
        super().__init__(corpus, (None, None))
        self.encoder = encoder
        encoder.load(corpus)

    def run(self):
        packed = self.encoder.ask(do="encode")
        unpacked = self.encoder.ask(do="decode")
        self.size = sum(packed["bytes"])
        self.compressing.append(packed["seconds"])
        self.decompressing.append(unpacked["seconds"])
        return packed["seconds"] + unpacked["seconds"]


SPEED_COLUMNS = [
    "weights",
    "compressor",
    "of plain",
    "bits a weight",
    COMPRESS,
    "decompress, GB/s",
    "compress, times nz-onnx's speed",
    "target",
]


def speeds(corpus, encoder, budget):
    """The lines of a corpus: each compressor on all of its tensors, in turn."""
    pairs = others(corpus.dtype)
    measured = {OURS: Ours(corpus, encoder)}
    measured |= {name: Measured(corpus, p) for name, p in pairs.items() if not isinstance(p, str)}
    run_in_turns({name: one.run for name, one in measured.items()}, budget, least=3, most=9)
    label = f"{corpus.name}, {corpus.dtype}, {corpus.bytes / 1e6:.0f} MB"
    for name in [OURS, *pairs]:
        if name not in measured:
            yield [label, name, None, None, pairs[name], None, None, None]
            continue
        one = measured[name]
        # The first round warmed up.
        packing, unpacking = one.compressing[1:], one.decompressing[1:]
        rates = [[corpus.bytes / s / 1e9 for s in seconds] for seconds in (packing, unpacking)]
        yield [
            label,
            name,
            value(one.size / corpus.bytes, 3),
            value(one.size * 8 / corpus.weights, 2),
            *(samples(rate) for rate in rates),
            samples(ratios(measured[OURS].compressing[1:], packing)),
            target(COMPRESS, 1, at_least=SPEED_TARGET) if name == OURS else None,
        ]


def sizes(corpus, encoder):
    """The line of a model: its size against the bound."""
    encoder.load(corpus)
    size = sum(encoder.ask(do="encode")["bytes"])
    bits, least = size * 8 / corpus.weights, sum(corpus.bounds) / corpus.weights
    return [
        corpus.name,
        corpus.dtype,
        value(corpus.bytes / 1e6, 2),
        value(bits, 3),
        value(least, 3),
        value(bits - least, 3),
        target(ABOVE, 2, at_most=SIZE_TARGET),
    ]


def versions(*packages):
    """Name and version of those packages that are installed."""
    for package in packages:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue


def main():
    arguments_of = parser()
    arguments_of.add_argument("--encoder", required=True, help="the benchmark program `encode`")
    arguments = arguments_of.parse_args()
    folder = arguments.scratch / "encode"
    folder.mkdir(exist_ok=True)
    encoder = Encoder(arguments.encoder, folder)

    found = []
    for path in known_models(arguments):
        found += corpora(path, path.stem)
    real = {}
    for corpus in found:
        whole = real.setdefault(corpus.dtype, Corpus("real models", corpus.dtype))
        whole.tensors += corpus.tensors
    made = []
    for dtype in ("float32", "float16", "bfloat16"):
        layers, hidden, vocabulary = (1, 128, 512) if arguments.quick else (4, 1024, 8192)
        path = transformer(folder / "transformer.onnx", layers, hidden, vocabulary, dtype)
        made += [c for c in corpora(path, "made transformer") if c.dtype == dtype]
        for file in folder.glob("transformer.onnx*"):
            file.unlink()

    budget = 0.1 if arguments.quick else 20
    speed_rows = [row for corpus in [*real.values(), *made] for row in speeds(corpus, encoder, budget)]
    size_rows = [sizes(corpus, encoder) for corpus in [*found, *made]]
    encoder.close()
    size_columns = ["model", "dtype", "MB", "bits a weight", "bound", ABOVE, "target"]
    about = (
        f"Each tensor of {LEAST} elements or more by itself, one thread, compressors in turn; input bytes "
        "a second. nz-onnx's times include the survey that chooses the code, and the checksum. The bound "
        "is the entropy of the exponents in bits, and sign and mantissa as they are, without low mantissa "
        f"bits that are zero in a whole block of 4096 weights. Real models: {which_models(arguments)}."
    )
    packages = ", ".join(versions("zstandard", "lz4", "zipnn"))
    tables = [table("Speed and size", SPEED_COLUMNS, speed_rows)]
    tables.append(table("Size against the bound", size_columns, size_rows))
    write_report(arguments.report, [about, f"PyPI packages: {packages}."], tables)


if __name__ == "__main__":
    main()
