"""Models made by the tests, of any size, their weights in external data and written piece by piece."""

import contextlib

import numpy as np
from nzlib import ModelWriter, PIECE
from onnx import TensorProto, helper


class Writer(ModelWriter):
    """A model writer with the weights that tests want."""

    GRAPH, PRODUCER = "made-by-tests", "nz-onnx tests"

    def gaussian(self, name, shape, deviation):
        """A float32 weight of independent Gaussian numbers."""
        tensor = self.external(name, TensorProto.FLOAT, shape)
        left = int(np.prod(shape))
        while left:
            count = min(left, PIECE)
            piece = self.rng.standard_normal(count, dtype=np.float32)
            piece *= np.float32(deviation)
            self.file.write(piece)
            left -= count
        self.end(tensor)
        return name

    def blob(self, name, data):
        """A uint8 weight."""
        tensor = self.external(name, TensorProto.UINT8, [len(data)])
        self.file.write(data)
        self.end(tensor)
        return name


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def matmul_chain(path, layers, size):
    """`layers` times MatMul [size, size] and Tanh, float32."""
    writer = Writer(path)
    x = "x"
    for layer in range(layers):
        weight = writer.gaussian(f"W{layer}", [size, size], size**-0.5)
        x = writer.node("Tanh", [writer.node("MatMul", [x, weight])])
    writer.node("Identity", [x], output="y")
    return writer.save([floats("x", "rows", size)], [floats("y", "rows", size)])


def decode_chain(path, layers, size, blob_of):
    """The same with plain nz.Decode nodes, each written right before its consumer and pinned to nothing
    but a graph input. `blob_of(layer)` gives the blob of a layer's weight."""
    writer = Writer(path)
    x = "x"
    for layer in range(layers):
        blob = writer.blob(f"W{layer}.nz", blob_of(layer))
        weight = writer.node("Decode", [blob, "x"], domain="nz", shape=[size, size])
        x = writer.node("Tanh", [writer.node("MatMul", [x, weight])])
    writer.node("Identity", [x], output="y")
    return writer.save([floats("x", "rows", size)], [floats("y", "rows", size)], [("nz", 1)])


def transformer(path, layers, hidden, vocabulary, tied, heads=16):
    """A decoder-only transformer: causal attention, SwiGLU, RMSNorm. `tied`: the output layer's weight is
    the embedding, transposed."""
    writer = Writer(path)
    node, constant, wide = writer.node, writer.constant, 8 * hidden // 3 // 64 * 64 or 64
    deviation = hidden**-0.5
    for name, value in (
        ("tiny", np.float32(1e-5)),
        ("scale", np.float32((hidden // heads) ** -0.5)),
        ("visible", np.float32(0)),
        ("hidden", np.float32(-30000)),
        ("split", np.array([0, 0, heads, hidden // heads])),
        ("join", np.array([0, 0, hidden])),
        ("zero", np.int64(0)),
        ("one", np.int64(1)),
        ("axis_0", np.array([0])),
        ("axis_1", np.array([1])),
    ):
        constant(name, value)

    length = node("Gather", [node("Shape", ["tokens"]), "one"], axis=0)
    place = node("Range", ["zero", length, "one"])
    past = node("LessOrEqual", [node("Unsqueeze", [place, "axis_0"]), node("Unsqueeze", [place, "axis_1"])])
    mask = node("Where", [past, "visible", "hidden"])

    def norm(x, name):
        power = node("ReduceMean", [node("Mul", [x, x])], axes=[-1])
        root = node("Sqrt", [node("Add", [power, "tiny"])])
        return node("Mul", [node("Div", [x, root]), constant(name, np.ones(hidden, np.float32))])

    def linear(x, name, rows, columns):
        return node("MatMul", [x, writer.gaussian(name, [rows, columns], rows**-0.5)])

    embedding = writer.gaussian("embedding", [vocabulary, hidden], 0.02)
    x = node("Gather", [embedding, "tokens"])
    for layer in range(layers):
        g = norm(x, f"{layer}.norm_1")
        query, key, value = (
            node("Transpose", [node("Reshape", [linear(g, f"{layer}.{n}", hidden, hidden), "split"])], perm=p)
            for n, p in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        scores = node("Add", [node("Mul", [node("MatMul", [query, key]), "scale"]), mask])
        context = node("MatMul", [node("Softmax", [scores], axis=-1), value])
        context = node("Reshape", [node("Transpose", [context], perm=[0, 2, 1, 3]), "join"])
        x = node("Add", [x, linear(context, f"{layer}.out", hidden, hidden)])
        g = norm(x, f"{layer}.norm_2")
        gate = linear(g, f"{layer}.gate", hidden, wide)
        gate = node("Mul", [gate, node("Sigmoid", [gate])])
        up = linear(g, f"{layer}.up", hidden, wide)
        x = node("Add", [x, linear(node("Mul", [gate, up]), f"{layer}.down", wide, hidden)])
    x = norm(x, "norm")
    if tied:
        head = node("Transpose", [embedding], perm=[1, 0])
    else:
        head = writer.gaussian("head", [hidden, vocabulary], deviation)
    node("MatMul", [x, head], output="logits")
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])
    return writer.save([tokens], [floats("logits", "batch", "length", vocabulary)])


@contextlib.contextmanager
def big_model(path, tensors, mib_each):
    """A float32 model of a few big weights. Cheap to make: a piece of random numbers again and again, each
    time rotated, so that its statistics are right and its bytes are not the same throughout."""
    writer = Writer(path)
    rng = np.random.default_rng(1)
    piece = rng.standard_normal(1 << 22, dtype=np.float32) * np.float32(0.02)  # 16 MiB
    columns = 4096
    rows = mib_each * (1 << 20) // 4 // columns
    for index in range(tensors):
        tensor = writer.external(f"W{index}", TensorProto.FLOAT, [rows, columns])
        for part in range(mib_each // 16):
            at = (index * 7919 + part * 104729) % len(piece)
            writer.file.write(piece[at:])
            writer.file.write(piece[:at])
        writer.end(tensor)
        writer.node("MatMul", ["x", tensor.name], output=f"y{index}")
    outputs = [floats(f"y{index}", "m", columns) for index in range(tensors)]
    writer.save([floats("x", "m", rows)], outputs)
    try:
        yield path
    finally:
        # Pytest keeps temporary folders for a while; this one is too big for that.
        path.unlink()
        writer.data.unlink()
