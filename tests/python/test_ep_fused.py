"""Ops that ONNX Runtime's optimiser makes, which models have that were saved after it."""

import numpy as np
import pytest
from eplib import build, close, library, node, plain, run, session, supported, value, weights  # noqa: F401
from onnx import TensorProto

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
MICROSOFT = "com.microsoft"
K, N = 300, 200


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def numbers(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@supported
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("m", [1, 9, 130])
def test_fused_matmul_transposes_its_input(trans_b, m, rng, tmp_path):
    w = weights(rng, *((N, K) if trans_b else (K, N)))
    fused = node("FusedMatMul", ["X", "W"], domain=MICROSOFT, transA=1, transB=trans_b, alpha=0.5)
    model = build([fused], [value("X")], {"W": w})
    for shape in ((K, m), (2, K, m), (2, 3, K, m), (2, K, 0), (0, K, m)):
        x = numbers(rng, *shape)
        found, ran = run(model, {"X": x}, tmp_path)
        assert ran == ["FusedMatMul"]
        close(found, 0.5 * np.swapaxes(x, -1, -2) @ (w.T if trans_b else w))
    with pytest.raises(Exception, match=r"X \(input 0\) has shape .* K = 300: the last dimension but one must be 300"):
        session(model).run(None, {"X": numbers(rng, m, K + 1)})


GEMM_ACTIVATIONS = [
    ("Relu", {}), ("LeakyRelu", {"activation_alpha": 0.2}), ("Sigmoid", {}), ("Tanh", {}),
    ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
]


@supported
@pytest.mark.parametrize("activation, attributes", GEMM_ACTIVATIONS, ids=str)
def test_fused_gemm(activation, attributes, rng, tmp_path):
    for trans_b in (0, 1):
        w = weights(rng, *((N, K) if trans_b else (K, N)))
        fused = node(
            "FusedGemm", ["A", "W", "C"], domain=MICROSOFT, activation=activation, transB=trans_b, **attributes
        )
        model = build([fused], [value("A", FLOAT, ["M", K])], {"W": w, "C": numbers(rng, N)})
        for rows in (0, 1, 70):
            feeds = {"A": numbers(rng, rows, K)}
            found, ran = run(model, feeds, tmp_path)
            assert ran == ["FusedGemm"]
            close(found, plain(model, feeds))


@supported
def test_other_activations_are_left_alone(rng, tmp_path):
    fused = node("FusedGemm", ["A", "W"], domain=MICROSOFT, activation="Softplus")
    model = build([fused], [value("A", FLOAT, ["M", K])], {"W": weights(rng, K, N)})
    feeds = {"A": numbers(rng, 3, K)}
    found, ran = run(model, feeds, tmp_path)
    assert ran == []
    close(found, plain(model, feeds))


CONV_ACTIVATIONS = [
    ("", {}), ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("LeakyRelu", {"activation_params": [0.2]}),
    ("Clip", {"activation_params": [-0.5, 0.75]}), ("HardSigmoid", {"activation_params": [0.3, 0.4]}),
]


@supported
@pytest.mark.parametrize("activation, attributes", CONV_ACTIVATIONS, ids=str)
@pytest.mark.parametrize("added", [False, True], ids=["", "added"])
def test_fused_conv(activation, attributes, added, rng, tmp_path):
    if activation:
        attributes = {"activation": activation, **attributes}
    initializers = {"W": weights(rng, 40, 30, 3, 3), "B": numbers(rng, 40)}
    inputs = ["X", "W", "B"] + ["Z"] * added
    fused = node("FusedConv", inputs, domain=MICROSOFT, pads=[1, 1, 1, 1], **attributes)
    model = build([fused], [value(name, FLOAT, [None] * 4) for name in ["X"] + ["Z"] * added], initializers)
    for height, width in ((2, 2), (14, 13)):
        feeds = {"X": numbers(rng, 2, 30, height, width)}
        if added:
            feeds["Z"] = numbers(rng, 2, 40, height, width)
        found, ran = run(model, feeds, tmp_path, options={"conv": 1})
        assert ran == ["FusedConv"]
        close(found, plain(model, feeds))
    assert run(model, feeds, tmp_path)[1] == []


@supported
def test_fused_conv_of_a_large_filter(rng, tmp_path):
    initializers = {"W": weights(rng, 300, 100, 3, 3), "B": numbers(rng, 300)}
    inputs = [value(name, FLOAT, [None] * 4) for name in "XZ"]
    fused = node("FusedConv", ["X", "W", "B", "Z"], domain=MICROSOFT, pads=[1, 1, 1, 1], activation="Relu")
    feeds = {"X": numbers(rng, 2, 100, 9, 7), "Z": numbers(rng, 2, 300, 9, 7)}
    found, ran = run(build([fused], inputs, initializers), feeds, tmp_path, options={"conv": 1})
    assert ran == ["FusedConv"]
    # Its parts: ONNX Runtime 1.24.4 has the sum of a FusedConv in channel blocks wrong, or refuses it.
    parts = [
        node("Conv", ["X", "W", "B"], ["C"], pads=[1, 1, 1, 1]),
        node("Add", ["C", "Z"], ["S"]),
        node("Relu", ["S"]),
    ]
    close(found, plain(build(parts, inputs, initializers), feeds))


def attention(rng, mask=None, bias=None, columns=True, sizes=None, heads=4, inner=64, outputs=1, **attributes):
    """A model of one node, and what to feed it beside its input; `mask` and `bias` are arrays. `columns`: with a
    number added to each of the product's columns; `None`: with zeros."""
    sizes = sizes or [inner] * 3
    if sizes != [inner] * 3:
        attributes["qkv_hidden_sizes"] = sizes
    initializers = {"W": 3 * weights(rng, inner, sum(sizes))}
    if columns is not False:
        initializers["B"] = numbers(rng, sum(sizes)) if columns else np.zeros(sum(sizes), np.float32)
    inputs = ["X", "W", "B" if columns is not False else "", "M" if mask is not None else "", "", "S" if bias is not None else ""]
    while not inputs[-1]:
        inputs.pop()
    named = ["Y", "P"][:outputs]
    made = node("Attention", inputs, named, domain=MICROSOFT, num_heads=heads, **attributes)
    graph_inputs = [value("X", FLOAT, [None] * 3)]
    feeds = {}
    if mask is not None:
        graph_inputs.append(value("M", INT32, [None] * mask.ndim))
        feeds["M"] = mask
    if bias is not None:
        graph_inputs.append(value("S", FLOAT, [None] * 4))
        feeds["S"] = bias
    return build([made], graph_inputs, initializers, [value(name) for name in named]), feeds


ATTENTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"unidirectional": 1},
    "other values": {"sizes": [64, 64, 32]},
    "ends": {"mask": [11, 3]},
    "ends and starts": {"mask": [11, 5, 0, 2]},
    "flags": {"mask": "flags"},
    "flags, another filter": {"mask": "flags", "mask_filter_value": -3.0},
    "flags a query": {"mask": "flags a query"},
    "flags, causal": {"mask": "flags", "unidirectional": 1},
    "added": {"bias": (2, 4)},
    "added, for all": {"bias": (1, 1)},
    "added a head": {"bias": (1, 4)},
}


@supported
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("steps", [1, 11, 150])
def test_attention(name, steps, rng, tmp_path):
    arguments = dict(ATTENTIONS[name])
    mask = arguments.pop("mask", None)
    if isinstance(mask, str):
        mask = rng.integers(0, 2, (2, steps, steps) if "query" in mask else (2, steps))
        mask[..., 0] = 1
    elif mask is not None:
        mask = np.minimum(mask, steps)
    if mask is not None:
        mask = np.asarray(mask, np.int32)
    bias = numbers(rng, *arguments.pop("bias"), steps, steps) if "bias" in arguments else None
    model, feeds = attention(rng, mask, bias, **arguments)
    feeds["X"] = numbers(rng, 2, steps, 64)
    found, ran = run(model, feeds, tmp_path)
    assert ran == ["Attention"]
    close(found, plain(model, feeds))


@supported
def test_attention_without_a_bias(rng, tmp_path):
    """As with one of zeros: without any, ONNX Runtime's own kernel crashes (1.31)."""
    x = numbers(rng, 2, 11, 64)
    (model, _), (zeros, _) = (attention(np.random.default_rng(8), columns=columns) for columns in (False, None))
    found, ran = run(model, {"X": x}, tmp_path)
    assert ran == ["Attention"]
    close(found, plain(zeros, {"X": x}))


@supported
def test_attention_of_nothing_and_what_it_refuses(rng, tmp_path):
    model, _ = attention(rng)
    for shape in ((0, 5, 64), (2, 0, 64)):
        found, ran = run(model, {"X": np.zeros(shape, np.float32)}, tmp_path)
        assert ran == ["Attention"] and found.shape == shape
    with pytest.raises(Exception, match=r"Attention node 'node_Y': input \(input 0\) has shape .*\[batch, steps, 64\]"):
        session(model).run(None, {"X": numbers(rng, 2, 5, 65)})
    model, feeds = attention(rng, mask=np.ones((2, 6), np.int32))
    with pytest.raises(Exception, match=r"mask_index \(input 3\) has shape .*: it must be \[2\], \[4\], \[2, 5\]"):
        session(model).run(None, {"X": numbers(rng, 2, 5, 64), **feeds})


@supported
def test_attention_that_keeps_its_state_is_left_alone(rng, tmp_path):
    model, _ = attention(rng, outputs=2)
    feeds = {"X": numbers(rng, 2, 5, 64)}
    found, ran = run(model, feeds, tmp_path)
    assert ran == []
    close(found, plain(model, feeds))
