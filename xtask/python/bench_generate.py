"""Models of any size for the benchmarks, in float32, float16 or bfloat16.

Weights are normal numbers with a log-normal scale a row: their exponents have the entropy of trained ones,
about 2.6 bits. They are written piece by piece, into external data.
"""

import ml_dtypes
import numpy as np
from model_writer import PIECE, ModelWriter
from onnx import TensorProto, helper

ROW_SIGMA = 0.35  # of the logarithm of a row's scale
DTYPES = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}


class Writer(ModelWriter):
    """A model writer whose weights are of `dtype`; `through` is one that they are rounded to before."""

    GRAPH, PRODUCER = "made-for-measuring", "nz-onnx bench"

    def __init__(self, path, dtype, through=None, seed=0):
        super().__init__(path, seed)
        self.element, self.dtype = DTYPES[dtype]
        self.through = DTYPES[through or dtype][1]

    def weight(self, name, rows, columns, deviation):
        tensor = self.external(name, self.element, [rows, columns])
        step = max(1, PIECE // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            scale = deviation * np.exp(ROW_SIGMA * self.rng.standard_normal((count, 1), dtype=np.float32))
            piece = self.rng.standard_normal((count, columns), dtype=np.float32) * scale
            self.file.write(piece.astype(self.through).astype(self.dtype).tobytes())
        self.end(tensor)
        return name


def info(name, element, *shape):
    return helper.make_tensor_value_info(name, element, shape)


def matmul_chain(path, layers, size, dtype="float32", through=None, compute=None):
    """`layers` times MatMul with a weight [size, size]; input "x" and output "y" are float32. `compute` is
    the dtype of the products: that of the weights unless given, else each weight is cast to it first."""
    writer = Writer(path, dtype, through)
    compute = compute or dtype
    x = "x" if compute == "float32" else writer.node("Cast", ["x"], to=DTYPES[compute][0])
    for layer in range(layers):
        weight = writer.weight(f"W{layer}", size, size, size**-0.5)
        if compute != dtype:
            weight = writer.node("Cast", [weight], to=DTYPES[compute][0])
        x = writer.node("MatMul", [x, weight])
    writer.node("Cast", [x], output="y", to=TensorProto.FLOAT)
    shape = ("rows", size)
    return writer.save([info("x", TensorProto.FLOAT, *shape)], [info("y", TensorProto.FLOAT, *shape)])


def embedding(path, rows, columns):
    """Gather of rows named by input "ids" from a float32 weight; output "y"."""
    writer = Writer(path, "float32")
    writer.node("Gather", [writer.weight("W", rows, columns, 0.02), "ids"], output="y")
    return writer.save(
        [info("ids", TensorProto.INT64, "count")], [info("y", TensorProto.FLOAT, "count", columns)]
    )


def transformer(path, layers, hidden, vocabulary, dtype, heads=None):
    """A decoder-only transformer: causal attention, SwiGLU, RMSNorm, the output layer apart from the
    embedding. float16 computes in float16; bfloat16 weights are cast and computed with in float32, since ONNX
    Runtime's CPU provider has no bfloat16 products. Input "tokens", output "logits", float32."""
    writer = Writer(path, dtype)
    node, constant = writer.node, writer.constant
    compute = "float16" if dtype == "float16" else "float32"
    element, number = DTYPES[compute]
    heads = heads or max(1, hidden // 64)
    wide = (8 * hidden // 3 + 63) // 64 * 64
    for name, entry in (
        ("tiny", np.float32(1e-5)),
        ("scale", number((hidden // heads) ** -0.5)),
        ("visible", number(0)),
        ("hidden", number(-30000)),
        ("split", np.array([0, 0, heads, hidden // heads])),
        ("join", np.array([0, 0, hidden])),
        ("zero", np.int64(0)),
        ("one", np.int64(1)),
        ("axis_0", np.array([0])),
        ("axis_1", np.array([1])),
    ):
        constant(name, entry)

    def weight(name, rows, columns, deviation):
        stored = writer.weight(name, rows, columns, deviation)
        return node("Cast", [stored], to=element) if dtype == "bfloat16" else stored

    def linear(x, name, rows, columns, deviation=None):
        return node("MatMul", [x, weight(name, rows, columns, deviation or rows**-0.5)])

    def norm(x, name):
        x = node("Cast", [x], to=TensorProto.FLOAT)
        power = node("ReduceMean", [node("Mul", [x, x])], axes=[-1])
        scaled = node("Div", [x, node("Sqrt", [node("Add", [power, "tiny"])])])
        return node("Mul", [node("Cast", [scaled], to=element), constant(name, np.ones(hidden, number))])

    length = node("Gather", [node("Shape", ["tokens"]), "one"], axis=0)
    place = node("Range", ["zero", length, "one"])
    past = node("LessOrEqual", [node("Unsqueeze", [place, "axis_0"]), node("Unsqueeze", [place, "axis_1"])])
    mask = node("Where", [past, "visible", "hidden"])
    x = node("Gather", [weight("embedding", vocabulary, hidden, 0.02), "tokens"])
    for layer in range(layers):
        g = norm(x, f"{layer}.norm_1")
        query, key, entries = (
            node("Transpose", [node("Reshape", [linear(g, f"{layer}.{n}", hidden, hidden), "split"])], perm=p)
            for n, p in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        scores = node("Add", [node("Mul", [node("MatMul", [query, key]), "scale"]), mask])
        context = node("MatMul", [node("Softmax", [scores], axis=-1), entries])
        context = node("Reshape", [node("Transpose", [context], perm=[0, 2, 1, 3]), "join"])
        small = (2 * layers) ** -0.5
        x = node("Add", [x, linear(context, f"{layer}.out", hidden, hidden, small * hidden**-0.5)])
        g = norm(x, f"{layer}.norm_2")
        gate = linear(g, f"{layer}.gate", hidden, wide)
        gate = node("Mul", [gate, node("Sigmoid", [gate])])
        gate = node("Mul", [gate, linear(g, f"{layer}.up", hidden, wide)])
        x = node("Add", [x, linear(gate, f"{layer}.down", wide, hidden, small * wide**-0.5)])
    logits = linear(norm(x, "norm"), "head", hidden, vocabulary)
    node("Cast", [logits], output="logits", to=TensorProto.FLOAT)
    return writer.save(
        [info("tokens", TensorProto.INT64, "batch", "length")],
        [info("logits", TensorProto.FLOAT, "batch", "length", vocabulary)],
    )
