"""nz.DecodeLSTM in a real ONNX Runtime, held against its own LSTM."""

import os

import numpy as np
import nzlib
import onnxruntime as ort
import pytest
from onnx import helper
from opmodels import Encoder, assert_close, model, nz_node, ran_nodes, random_weight, session, value

LIBRARY, PROGRAM = str(nzlib.LIBRARY), str(nzlib.ENCODER)
VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(VERSION < (1, 17), reason="this ONNX Runtime is too old for the ops")

OUTPUTS = ("Y", "Y_h", "Y_c")
STATES = ("B", "initial_h", "initial_c")


class Case:
    """An LSTM with random weights, as ONNX Runtime's op and as ours, and inputs for both."""

    def __init__(self, folder, directions, features, hidden, dtype="float32", block_len=4096):
        self.rng = np.random.default_rng(hidden)
        self.directions, self.features, self.hidden = directions, features, hidden
        encode = Encoder(PROGRAM, str(folder))
        self.blobs, self.weights = {}, {}
        for name, columns in (("W", features), ("R", hidden)):
            # Large enough that gates saturate now and then.
            weight = random_weight(self.rng, directions, 4 * hidden, columns) * np.float32(4)
            self.blobs[name + ".nz"], self.weights[name] = encode(weight, dtype, block_len=block_len)

    def inputs(self, steps, batch, names):
        shapes = {
            "X": (steps, batch, self.features),
            "B": (self.directions, 8 * self.hidden),
            "initial_h": (self.directions, batch, self.hidden),
            "initial_c": (self.directions, batch, self.hidden),
        }
        return {name: self.rng.standard_normal(shapes[name]).astype(np.float32) for name in ("X", *names)}

    def models(self, names, outputs, direction="forward"):
        # Optional inputs of ours are left out from the end only.
        assert names == STATES[: len(names)]
        given = [name if name in names else "" for name in STATES]
        made = [name if name in outputs else "" for name in OUTPUTS]
        ours = nz_node(
            "DecodeLSTM", ["X", "W.nz", "R.nz", *names], self.weights["W"].shape,
            outputs=made, reverse=int(direction == "reverse"),
        )
        theirs = helper.make_node(
            "LSTM", ["X", "W", "R", given[0], "", *given[1:]], made, hidden_size=self.hidden, direction=direction
        )
        ends = [value(name) for name in ("X", *names)], [value(name) for name in outputs]
        return model([ours], ends[0], self.blobs, ends[1]), model([theirs], ends[0], self.weights, ends[1])

    def check(self, folder, feeds, outputs=OUTPUTS, direction="forward", **settings):
        names = tuple(name for name in STATES if name in feeds)
        ours, theirs = self.models(names, outputs, direction)
        prefix = os.path.join(folder, "profile")
        ours = session(ours, LIBRARY, enable_profiling=True, profile_file_prefix=prefix, **settings)
        found, expected = ours.run(None, feeds), session(theirs).run(None, feeds)
        assert ran_nodes(ours) == {"DecodeLSTM"}
        assert len(found) == len(outputs)
        for one, other in zip(found, expected):
            assert_close(one, other)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("steps, batch", [(1, 1), (1, 3), (2, 1), (25, 2), (7, 40)])
@pytest.mark.parametrize("features, hidden", [(5, 3), (257, 128), (64, 64), (192, 100)])
def test_lstm(tmp_path, features, hidden, steps, batch, direction):
    case = Case(tmp_path, 1 + (direction == "bidirectional"), features, hidden)
    case.check(tmp_path, case.inputs(steps, batch, STATES), direction=direction)


@pytest.mark.parametrize("names", [(), ("B",), ("B", "initial_h"), STATES])
@pytest.mark.parametrize("outputs", [("Y",), ("Y_h",), ("Y_c",), ("Y", "Y_c"), OUTPUTS])
def test_inputs_and_outputs_may_be_left_out(tmp_path, names, outputs):
    case = Case(tmp_path, 1, 32, 64)
    case.check(tmp_path, case.inputs(4, 2, names), outputs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("steps", [1, 3])
def test_weights_of_sixteen_bits(tmp_path, dtype, steps):
    case = Case(tmp_path, 2, 64, 128, dtype, block_len=1024)
    case.check(tmp_path, case.inputs(steps, 1, STATES), direction="bidirectional")


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 6])
def test_any_number_of_threads(tmp_path, steps, threads):
    case = Case(tmp_path, 1, 300, 320)
    case.check(tmp_path, case.inputs(steps, 2, STATES), intra_op_num_threads=threads)


@pytest.mark.parametrize("steps, batch", [(0, 2), (3, 0)])
def test_nothing_to_do(tmp_path, steps, batch):
    case = Case(tmp_path, 1, 16, 32)
    feeds = case.inputs(steps, batch, STATES)
    made = session(case.models(STATES, OUTPUTS)[0], LIBRARY)
    y, h, c = made.run(None, feeds)
    assert y.shape == (steps, 1, batch, 32)
    assert np.array_equal(h, feeds["initial_h"]) and np.array_equal(c, feeds["initial_c"])


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("X", (3, 2, 17), r"X \(input 0\) has shape \[3, 2, 17\].*\[steps, batch, 16\]"),
        ("X", (3, 16), r"X \(input 0\) has shape \[3, 16\].*\[steps, batch, 16\]"),
        ("B", (1, 128), r"B \(input 3\) has shape \[1, 128\].*\[1, 256\]"),
        ("initial_h", (1, 3, 32), r"initial_h \(input 4\) has shape \[1, 3, 32\].*\[1, 2, 32\]"),
        ("initial_c", (2, 2, 32), r"initial_c \(input 5\) has shape \[2, 2, 32\].*\[1, 2, 32\]"),
    ],
)
def test_wrong_shapes_are_named(tmp_path, name, shape, message):
    case = Case(tmp_path, 1, 16, 32)
    feeds = case.inputs(3, 2, STATES)
    made = session(case.models(STATES, OUTPUTS)[0], LIBRARY)
    with pytest.raises(Exception, match=message):
        made.run(None, {**feeds, name: np.zeros(shape, np.float32)})


def test_weights_that_do_not_go_together_are_refused(tmp_path):
    case, other = Case(tmp_path, 1, 16, 32), Case(tmp_path, 1, 16, 64)
    case.blobs["R.nz"] = other.blobs["R.nz"]
    with pytest.raises(Exception, match=r"blob 'R.nz' \(input 2\) holds a tensor of shape \[1, 256, 64\]"):
        session(case.models((), OUTPUTS)[0], LIBRARY)
