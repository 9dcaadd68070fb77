"""Small models over the ops of domain `nz`, and the sessions that run them."""

import json
import os
import subprocess

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

FLOAT, FLOAT16, BFLOAT16, UINT8, INT8, INT32, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)


class Encoder:
    """Runs the example `encode_tensor`, and keeps its files in one folder."""

    def __init__(self, program, folder):
        self.program, self.folder, self.count = program, folder, 0

    def __call__(self, weight, dtype="float32", tile=None, **options):
        """The blob of a weight, and the weight rounded to `dtype` as float32."""
        raw, rounded = as_dtype(weight, dtype)
        self.count += 1
        source = os.path.join(self.folder, f"{self.count}.raw")
        target = os.path.join(self.folder, f"{self.count}.blob")
        with open(source, "wb") as file:
            file.write(raw)
        command = [self.program, "--dtype", dtype, "--shape", "x".join(map(str, weight.shape))]
        if tile is not None:
            command += ["--tile", str(tile)]
        for name, value in options.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        subprocess.run(command + [source, target], check=True)
        return np.fromfile(target, np.uint8), rounded


def as_dtype(weight, dtype):
    """The bytes of a float32 array in `dtype`, and the same values as float32; of integers just these."""
    if dtype in ("int8", "uint8"):
        return np.ascontiguousarray(weight, dtype).tobytes(), weight
    weight = np.ascontiguousarray(weight, np.float32)
    if dtype == "float32":
        return weight.tobytes(), weight
    if dtype == "float16":
        half = weight.astype(np.float16)
        return half.tobytes(), half.astype(np.float32)
    assert dtype == "bfloat16", dtype
    bits = weight.view(np.uint32)
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return upper.tobytes(), (upper.astype(np.uint32) << 16).view(np.float32)


def random_weight(rng, *shape):
    """Weights with the spread of exponents that trained ones have."""
    return (rng.standard_normal(shape) * 0.05).astype(np.float32)


def nz_node(op, inputs, shape, name="the_node", outputs=("Y",), **attributes):
    return helper.make_node(op, inputs, outputs, name=name, domain="nz", shape=list(shape), **attributes)


def value(name, element=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, element, shape)


def model(nodes, inputs, initializers=None, outputs=None):
    """A model over ONNX opset 17 and the `nz` ops, readable by every ONNX Runtime from 1.17 on."""
    initializers = [numpy_helper.from_array(a, name) for name, a in (initializers or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs or [value("Y")], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nz", 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def options(library=None, **settings):
    """Session options with the library registered."""
    made = ort.SessionOptions()
    made.log_severity_level = 4
    for name, setting in settings.items():
        setattr(made, name, setting)
    if library:
        made.register_custom_ops_library(library)
    return made


def session(model, library=None, **settings):
    made = options(library, **settings)
    return ort.InferenceSession(model.SerializeToString(), made, providers=["CPUExecutionProvider"])


def run(model, feeds, library=None, **settings):
    """The first output, and the types of the nodes that ran on the CPU."""
    folder = settings.pop("folder")
    made = session(
        model, library, enable_profiling=True, profile_file_prefix=os.path.join(folder, "profile"), **settings
    )
    output = made.run(None, feeds)[0]
    return output, ran_nodes(made)


def ran_nodes(made):
    """The types of the nodes that ran on the CPU in a session with profiling, which this ends."""
    with open(made.end_profiling()) as file:
        events = json.load(file)
    return {
        event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        and event["args"].get("provider") == "CPUExecutionProvider"
    }


def plain(node, feeds, initializers):
    """What ONNX Runtime's own op makes of the same tensors."""
    kinds = {np.dtype(np.float32): FLOAT, np.dtype(np.int32): INT32, np.dtype(np.int64): INT64}
    inputs = [value(name, kinds[array.dtype], list(array.shape)) for name, array in feeds.items()]
    made = session(model([node], inputs, initializers))
    return made.run(None, feeds)[0]


def assert_close(found, expected, tolerance=1e-5):
    """Equal shapes, and values within `tolerance` of the largest magnitude."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.size:
        worst = np.max(np.abs(found - expected))
        assert worst <= tolerance * max(np.max(np.abs(expected)), 1e-30), worst


def corrupt(blob, at):
    broken = blob.copy()
    broken[at] ^= 0x5A
    return broken


def write_external(made, folder, name="model.onnx"):
    """Saves a model with its blobs as external data and returns its path."""
    path = os.path.join(folder, name)
    onnx.save(made, path, save_as_external_data=True, location=name + ".data", size_threshold=0)
    return path
