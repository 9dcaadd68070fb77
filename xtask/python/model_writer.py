"""Writing a model of any size: its weights go into external data, piece by piece."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
PIECE = 1 << 22  # weights in memory at a time


class ModelWriter:
    """Collects nodes and streams weights into the data file; `save` writes the model."""

    GRAPH, PRODUCER = "made", "nz-onnx"

    def __init__(self, path, seed=0):
        self.path = path
        self.data = path.with_name(path.name + ".data")
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers = [], []
        self.file = open(self.data, "wb")

    def external(self, name, data_type, dims):
        """An initializer whose bytes the caller writes to `self.file` next; call `end` after."""
        tensor = TensorProto(name=name, data_type=data_type, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        self.file.write(bytes(-self.file.tell() % 4096))
        tensor.external_data.add(key="location", value=self.data.name)
        tensor.external_data.add(key="offset", value=str(self.file.tell()))
        self.initializers.append(tensor)
        return tensor

    def end(self, tensor):
        offset = int(tensor.external_data[1].value)
        tensor.external_data.add(key="length", value=str(self.file.tell() - offset))

    def constant(self, name, value):
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op, inputs, output=None, **attributes):
        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def save(self, inputs, outputs, opsets=()):
        self.file.close()
        graph = helper.make_graph(self.nodes, self.GRAPH, inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(*opset) for opset in opsets)]
        model = helper.make_model(
            graph, opset_imports=opsets, producer_name=self.PRODUCER, ir_version=IR_VERSION
        )
        self.path.write_bytes(model.SerializeToString())
        return self.path
