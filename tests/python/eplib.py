"""Sessions with NzExecutionProvider, and small models for it."""

import contextlib
import json
import os

import numpy as np
import onnxruntime as ort
import pytest
from nzlib import LIBRARY
from onnx import TensorProto, helper, numpy_helper

PROVIDER = "NzExecutionProvider"
VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
SUPPORTED = VERSION >= (1, 24)
supported = pytest.mark.skipif(not SUPPORTED, reason="this ONNX Runtime has no plugin providers with kernels")


@contextlib.contextmanager
def registered():
    ort.register_execution_provider_library("nz", str(LIBRARY))
    try:
        yield
    finally:
        ort.unregister_execution_provider_library("nz")


@pytest.fixture(scope="module", autouse=True)
def library():
    """The provider, registered while a module's tests run."""
    if not SUPPORTED:
        yield
        return
    with registered():
        yield


def session(model, options=None, config=None, provider=True, library=False, profile=None):
    """A session whose failures are seen: ONNX Runtime's Python package falls back to the CPU's provider otherwise."""
    made = ort.SessionOptions()
    made.log_severity_level = 4
    for key, value in (config or {}).items():
        made.add_session_config_entry(key, value)
    if profile:
        made.enable_profiling = True
        made.profile_file_prefix = os.path.join(profile, "profile")
    if library:
        made.register_custom_ops_library(str(LIBRARY))
    model = str(model) if isinstance(model, os.PathLike) else model
    if not provider:
        return ort.InferenceSession(model, made, providers=["CPUExecutionProvider"])
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    assert len(devices) == 1
    made.add_provider_for_devices(devices, {key: str(value) for key, value in (options or {}).items()})
    found = ort.InferenceSession(model, made, enable_fallback=0)
    assert PROVIDER in found.get_providers()
    return found


def executed(made):
    """The op types of the nodes that ran, by provider, each as often as there are nodes."""
    path = made.end_profiling()
    with open(path) as file:
        events = json.load(file)
    os.remove(path)
    nodes = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"], event["args"].get("node_index")
            nodes[key] = event["args"]["provider"], event["args"]["op_name"]
    ran = {}
    for provider, op in sorted(nodes.values()):
        ran.setdefault(provider, []).append(op)
    return ran


def run(model, feeds, folder, **arguments):
    """The first output, and what this provider ran."""
    made = session(model, profile=str(folder), **arguments)
    output = made.run(None, feeds)[0]
    return output, executed(made).get(PROVIDER, [])


def plain(model, feeds, **arguments):
    """What ONNX Runtime's own provider makes of it."""
    return session(model, provider=False, **arguments).run(None, feeds)[0]


def weights(rng, *shape, upcast=False):
    """Weights with the spread of exponents that trained ones have; `upcast`: with no more bits than bfloat16."""
    made = (rng.standard_normal(shape) * 0.05).astype(np.float32)
    return (made.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) if upcast else made


def value(name, element=TensorProto.FLOAT, shape=None):
    return helper.make_tensor_value_info(name, element, shape)


def tensor(name, array, element=None):
    """An initializer; `element` BFLOAT16 takes float32 values that it can hold."""
    if element == TensorProto.BFLOAT16:
        bits = (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return helper.make_tensor(name, element, array.shape, bits.tobytes(), raw=True)
    return numpy_helper.from_array(array, name)


def body(nodes, initializers, outputs=None, inputs=(), name="g"):
    """A graph; `initializers` are arrays by name, or finished tensors."""
    made = [a if isinstance(a, TensorProto) else tensor(name, a) for name, a in initializers.items()]
    return helper.make_graph(nodes, name, list(inputs), outputs or [value("Y")], made)


def build(nodes, inputs, initializers, outputs=None, opset=17):
    """A model as bytes, of such a graph; it may have ops of ONNX Runtime's own."""
    graph = body(nodes, initializers, outputs, inputs)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString()


def node(op, inputs, outputs=("Y",), **attributes):
    return helper.make_node(op, inputs, list(outputs), name=f"node_{outputs[0]}", **attributes)


def close(found, expected, tolerance=1e-5):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if expected.size:
        a, b = found.astype(np.float64), expected.astype(np.float64)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-30), np.abs(a - b).max()
