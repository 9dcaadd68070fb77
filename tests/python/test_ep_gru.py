"""GRUs that NzExecutionProvider runs, and those that it leaves alone."""

import eplib
import numpy as np
import pytest
from eplib import build, close, library, node, plain, run, session, supported, value, weights  # noqa: F401
from onnx import TensorProto

HIDDEN, FEATURES = 48, 70


@pytest.fixture
def rng():
    return np.random.default_rng(6)


def numbers(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def gru(rng, direction="forward", given=(), hidden=HIDDEN, features=FEATURES, opset=14, **attributes):
    """A GRU with the inputs `given` beside its weights, both of its outputs, and how many directions it has."""
    directions = 2 if direction == "bidirectional" else 1
    shapes = {
        "W": (directions, 3 * hidden, features), "R": (directions, 3 * hidden, hidden), "B": (directions, 6 * hidden),
    }
    order = ["X", "W", "R", "B", "lengths", "h"]
    inputs = [name if name in ("X", "W", "R", *given) else "" for name in order]
    while not inputs[-1]:
        inputs.pop()
    # Larger than in trained models, so that gates are neither open nor shut.
    initializers = {name: 5 * weights(rng, *shape) for name, shape in shapes.items() if name in inputs}
    graph_inputs = [value("X")] + [value("h")] * ("h" in given)
    graph_inputs += [value("lengths", TensorProto.INT32)] * ("lengths" in given)
    made = node("GRU", inputs, ["Y", "Y_h"], hidden_size=hidden, direction=direction, **attributes)
    return build([made], graph_inputs, initializers, [value("Y"), value("Y_h")], opset=opset), directions


@supported
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", [(), ("B",), ("h",), ("B", "h")], ids=str)
@pytest.mark.parametrize("resets_product", [0, 1])
def test_gru(direction, given, resets_product, rng, tmp_path):
    model, directions = gru(rng, direction, given, linear_before_reset=resets_product)
    made = session(model, {"gru": 1}, profile=str(tmp_path))
    for steps, batch in ((1, 2), (6, 2), (3, 1), (2, 20)):
        feeds = {"X": numbers(rng, steps, batch, FEATURES)}
        if "h" in given:
            feeds["h"] = numbers(rng, directions, batch, HIDDEN)
        expected = session(model, provider=False).run(None, feeds)
        for found, wanted in zip(made.run(None, feeds), expected, strict=True):
            close(found, wanted)
    assert eplib.executed(made)[eplib.PROVIDER] == ["GRU"]
    # The option is its own.
    assert run(model, feeds, tmp_path, options={"lstm": 1, "conv": 1})[1] == []


@supported
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("resets_product", [0, 1])
def test_sequences_of_different_lengths(direction, resets_product, rng, tmp_path):
    model, directions = gru(rng, direction, ("B", "h", "lengths"), linear_before_reset=resets_product)
    made = session(model, {"gru": 1}, profile=str(tmp_path))
    for lengths in ([6, 6, 6], [6, 1, 4], [2, 3, 1], [0, 3, 6]):
        feeds = {"X": numbers(rng, 6, 3, FEATURES), "h": numbers(rng, directions, 3, HIDDEN)}
        feeds["lengths"] = np.array(lengths, np.int32)
        expected = session(model, provider=False).run(None, feeds)
        for found, wanted in zip(made.run(None, feeds), expected, strict=True):
            close(found, wanted)
    for wrong in ([6, 7, 1], [6, -1, 1], [6, 6]):
        feeds["lengths"] = np.array(wrong, np.int32)
        with pytest.raises(Exception, match=r"GRU node 'node_Y': sequence_lens \(input 4\) .* \[3\], of numbers from 0 to 6"):
            made.run(None, feeds)
    assert eplib.executed(made)[eplib.PROVIDER] == ["GRU"]


@supported
def test_gru_of_nothing_and_of_older_opsets(rng, tmp_path):
    model, _ = gru(rng, given=("B",))
    for shape in ((0, 2, FEATURES), (3, 0, FEATURES)):
        found, ran = run(model, {"X": np.zeros(shape, np.float32)}, tmp_path, options={"gru": 1})
        assert ran == ["GRU"] and found.shape == (shape[0], 1, shape[1], HIDDEN)
    with pytest.raises(Exception, match=r"GRU node 'node_Y': X \(input 0\) has shape .* makes it \[steps, batch, 70\]"):
        session(model, {"gru": 1}).run(None, {"X": numbers(rng, 3, 2, FEATURES + 1)})
    feeds = {"X": numbers(rng, 3, 2, FEATURES)}
    for opset in (7, 13):
        model, _ = gru(rng, given=("B",), opset=opset)
        found, ran = run(model, feeds, tmp_path, options={"gru": 1})
        assert ran == ["GRU"]
        close(found, plain(model, feeds))


@supported
def test_unusual_grus_are_left_alone(rng, tmp_path):
    cases = [
        ({"activations": ["Sigmoid", "tanh"]}, True),
        ({"activations": ["Sigmoid", "Relu"]}, False),
        ({"clip": 0.5}, False),
        # R of 12 KiB is too small, and W is read with it.
        ({"hidden": 32, "features": 900}, True),
    ]
    for arguments, taken in cases:
        model, _ = gru(rng, **arguments)
        feeds = {"X": numbers(rng, 3, 2, arguments.get("features", FEATURES))}
        found, ran = run(model, feeds, tmp_path, options={"gru": 1})
        assert ran == ["GRU"] * taken, arguments
        close(found, plain(model, feeds))
    _, ran = run(model, feeds, tmp_path, options={"gru": 1, "min_size": 20000})
    assert ran == []
