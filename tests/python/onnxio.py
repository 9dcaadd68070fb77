"""The float tensors of an ONNX model file, wherever they hide, as raw bytes."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

# By data type: bits as an unsigned integer, mantissa bits, exponent bits.
FLOATS = {
    TensorProto.FLOAT: (np.uint32, 23, 8),
    TensorProto.FLOAT16: (np.uint16, 10, 5),
    TensorProto.BFLOAT16: (np.uint16, 7, 8),
}


@dataclass
class Tensor:
    """A tensor: `bits` are the raw bits in row-major order."""

    name: str
    dtype: int
    shape: tuple
    bits: np.ndarray

    @property
    def mantissa_bits(self):
        return FLOATS[self.dtype][1]

    @property
    def nbytes(self):
        return self.bits.nbytes

    def values(self):
        """The numbers, as float64."""
        if self.dtype == TensorProto.FLOAT:
            return self.bits.view(np.float32).astype(np.float64)
        if self.dtype == TensorProto.FLOAT16:
            return self.bits.view(np.float16).astype(np.float64)
        return (self.bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def external_entries(proto):
    return {entry.key: entry.value for entry in proto.external_data}


def raw_bytes(proto, folder):
    """The bytes of a tensor, from wherever the model keeps them."""
    if proto.data_location == TensorProto.EXTERNAL:
        entries = external_entries(proto)
        with open(folder / entries["location"], "rb") as file:
            file.seek(int(entries.get("offset", 0)))
            return file.read(int(entries["length"]))
    if proto.HasField("raw_data"):
        return proto.raw_data
    return numpy_helper.to_array(proto).tobytes()


def graphs(graph):
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def protos(model):
    """All tensors of a model: initializers, and values of Constant nodes under their output's name."""
    for graph in graphs(model.graph):
        for proto in graph.initializer:
            yield proto.name, proto
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        yield node.output[0], attribute.t


def float_tensors(path):
    """The float tensors of the model file at this path, in the file's order."""
    model = onnx.load(str(path), load_external_data=False)
    found = []
    for name, proto in protos(model):
        if proto.data_type in FLOATS:
            bits = np.frombuffer(raw_bytes(proto, path.parent), FLOATS[proto.data_type][0])
            found.append(Tensor(name, proto.data_type, tuple(proto.dims), bits))
    return found


def blobs(path):
    """The blobs of a converted model, by the name of the weight that each stands for."""
    model = onnx.load(str(path), load_external_data=False)
    found = {}
    for name, proto in protos(model):
        if name.endswith(".nz") and proto.data_type == TensorProto.UINT8:
            assert name not in found, f"{path}: two blobs are called {name}"
            found[name.removesuffix(".nz")] = raw_bytes(proto, path.parent)
    return found


def blob_places(path):
    """Name, offset and length in the data file of each blob of a converted model that lies there; the
    smallest are in the model itself."""
    model = onnx.load(str(path), load_external_data=False)
    for name, proto in protos(model):
        if name.endswith(".nz") and proto.data_location == TensorProto.EXTERNAL:
            entries = external_entries(proto)
            yield name, int(entries["offset"]), int(entries["length"])
