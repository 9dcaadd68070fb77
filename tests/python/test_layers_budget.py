"""nz.weights_mib: as many layers as keep all compressed weights within a budget."""

import generate
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nzlib import LIBRARY, MIB, OK, Worker, convert, nz
from onnx import TensorProto, helper
from test_layers import SIZE, cut, plain_outputs, raw, words_of

# float16 has a layer less than float32; a small weight has none.
WEIGHTS = [
    ("A", TensorProto.FLOAT, (SIZE, SIZE)),
    ("B", TensorProto.FLOAT16, (SIZE, SIZE)),
    ("C", TensorProto.FLOAT, (SIZE, 32)),
    ("D", TensorProto.FLOAT, (32, 4 * SIZE)),
]
X = np.random.default_rng(7).standard_normal((2, SIZE)).astype(np.float32)


def save(path, nodes, tensors, x, y):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (x, y)]
    graph = helper.make_graph(nodes, "budget", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def chain(path, known=None):
    """y = x A B C D, of weights of which so many mantissa bits are known."""
    rng = np.random.default_rng(5)
    nodes, tensors, value = [], [], "x"
    for name, dtype, shape in WEIGHTS:
        words = words_of((rng.standard_normal(shape) * 0.05).astype(np.float32), dtype)
        words = cut(words, dtype, (known or {}).get(name, 23))
        tensors.append(helper.make_tensor(name, dtype, shape, raw(words, dtype), raw=True))
        if dtype != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [name], [f"{name}.f"], to=TensorProto.FLOAT))
            name = f"{name}.f"
        nodes.append(helper.make_node("MatMul", [value, name], [f"{value}{name}"]))
        value = f"{value}{name}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    return save(path, nodes, tensors, ("x", [None, SIZE]), ("y", [None, 4 * SIZE]))


@pytest.fixture(scope="module")
def layered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    path = folder / "layered.nz.onnx"
    convert(chain(folder / "plain.onnx"), path, "--lossless", "--layers")
    return path


def session(path, **entries):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for name, value in entries.items():
        options.add_session_config_entry(f"nz.{name}", str(value))
    options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, **entries):
    return session(path, **entries).run(None, {"x": X})[0]


def blobs(path):
    """Of each blob, in the order of the weights: its weight, then raw bits and bytes of each depth."""
    outcome = nz("inspect", path, "--json")
    assert outcome.code == OK, outcome
    found = []
    for blob in outcome.json["blobs"]:
        depths = blob.get("depths") or [{"raw_bits": 23, "bytes": blob["bytes"]}]
        found.append((blob["weights"][0], [(depth["raw_bits"], depth["bytes"]) for depth in depths]))
    return found


def at(depths, depth):
    return depths[min(depth, len(depths) - 1)]


def totals(found):
    most = max(len(depths) for _, depths in found)
    return [sum(at(depths, depth)[1] for _, depths in found) for depth in range(most)]


def spend(found, budget):
    """The depth of each blob, and what they take in all: the slow way, one blob after the other."""
    taken, chosen = sum(depths[0][1] for _, depths in found), [0] * len(found)
    assert taken <= budget
    for depth in range(1, 4):
        for i, (_, depths) in enumerate(found):
            if depth < len(depths):
                more = depths[depth][1] - depths[depth - 1][1]
                if taken + more > budget:
                    return chosen, taken
                taken, chosen[i] = taken + more, depth
    return chosen, taken


def notice_of(path):
    node = onnx.load(str(path), load_external_data=False).graph.node[0]
    assert node.op_type.startswith("register_libnz")
    return {a.name: list(a.ints) for a in node.attribute}


def test_a_budget_for_a_depth_reads_what_bits_for_it_do(layered):
    found = blobs(layered)
    assert [len(depths) for _, depths in found] == [4, 3, 1, 4]
    assert notice_of(layered) == {"depth_bytes": totals(found)}
    bits = [[8 * d[1] / np.prod(WEIGHTS[i][2]) for d in depths] for i, (_, depths) in enumerate(found)]
    deep = [b for b in bits if len(b) > 1]
    outputs = []
    for depth, total in enumerate(totals(found)):
        most = max(at(b, depth) for b in deep if len(b) > depth)
        assert all(b[depth + 1] > most for b in deep if len(b) > depth + 1)
        outputs.append(run(layered, bits=most + 1e-6))
        assert np.array_equal(run(layered, weights_mib=total / MIB), outputs[-1])
        if depth:
            assert not np.array_equal(run(layered, weights_mib=(total - 1) / MIB), outputs[-1])
    assert len({y.tobytes() for y in outputs}) == 4
    for everything in ({"weights_mib": 1e6}, {"weights_mib": "all"}, {}):
        assert np.array_equal(run(layered, **everything), outputs[-1])


@pytest.mark.parametrize("layers", range(9))
def test_each_weight_is_read_as_far_as_the_budget_goes(layers, layered, tmp_path):
    found = blobs(layered)
    # The bytes of each layer, in the order in which they are read.
    steps = [d[i][1] - d[i - 1][1] for i in (1, 2, 3) for _, d in found if i < len(d)]
    assert len(steps) == 8
    budget = totals(found)[0] + sum(steps[:layers]) + sum(steps[layers : layers + 1]) // 2
    chosen, taken = spend(found, budget)
    assert taken <= budget and sum(chosen) == layers
    known = {name: depths[depth][0] for depth, (name, depths) in zip(chosen, found)}
    expected = plain_outputs(chain(tmp_path / "cut.onnx", known), X)
    y = run(layered, weights_mib=repr(budget / MIB))
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()
    # Not one layer more or less, which from 15 bits on is hard to see in the error.
    for other in (sum(steps[: layers + 1]), sum(steps[:layers]) - 1):
        if 0 <= other < sum(steps):
            assert not np.array_equal(run(layered, weights_mib=repr((totals(found)[0] + other) / MIB)), y)


def lstm(path, hidden=128):
    rng = np.random.default_rng(9)
    shapes = {"W": (1, 4 * hidden, SIZE), "R": (1, 4 * hidden, hidden)}
    tensors = []
    for name, shape in shapes.items():
        words = words_of((rng.standard_normal(shape) * 0.1).astype(np.float32), TensorProto.FLOAT)
        tensors.append(helper.make_tensor(name, TensorProto.FLOAT, shape, words.tobytes(), raw=True))
    node = helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=hidden)
    return save(path, [node], tensors, ("x", [3, 1, SIZE]), ("y", [3, 1, 1, hidden]))


def test_both_weights_of_an_lstm_count(tmp_path):
    layered = tmp_path / "lstm.nz.onnx"
    convert(lstm(tmp_path / "lstm.onnx"), layered, "--lossless", "--layers")
    node = next(n for n in onnx.load(str(layered), load_external_data=False).graph.node if n.op_type == "DecodeLSTM")
    attributes = {a.name: list(a.ints) for a in node.attribute}
    found = blobs(layered)
    (first, w), (second, r) = found
    assert (first, second) == ("W", "R") and attributes["R_depth_bytes"] == totals(found)
    assert attributes["depth_bytes"] == [totals(found)[0]] + [w[d][1] + r[d - 1][1] for d in (1, 2, 3)]
    x = {"x": np.random.default_rng(1).standard_normal((3, 1, SIZE)).astype(np.float32)}
    outputs = {}
    for budget in sorted({*attributes["depth_bytes"], *attributes["R_depth_bytes"]}):
        y, less = (session(layered, weights_mib=repr(b / MIB)).run(None, x)[0] for b in (budget, budget + 1))
        assert np.array_equal(y, less)
        outputs[budget] = y
    exact = outputs[totals(found)[-1]]
    assert np.array_equal(session(layered).run(None, x)[0], exact)
    errors = [np.abs(y - exact).max() for y in outputs.values()]
    # Each step reads one blob further: seven depths, all different, from the least to all.
    assert len(errors) == 7 and len(set(errors)) == 7 and errors[-1] == 0 and errors[0] > 4 * errors[2]


def test_resident_memory_keeps_to_the_budget(tmp_path, say):
    size, count = 2048, 8
    plain = generate.matmul_chain(tmp_path / "plain.onnx", count, size)
    layered = tmp_path / "layered.nz.onnx"
    convert(plain, layered, "--lossless", "--layers")
    inputs = tmp_path / "x.npz"
    np.savez(inputs, x=np.ones((1, size), np.float32))
    found = blobs(layered)
    all_of = totals(found)
    budgets = [all_of[0], (all_of[1] + all_of[2]) // 2, all_of[2], (all_of[2] + all_of[3]) // 2, all_of[3]]
    resident, taken = [], []
    for budget in budgets:
        with Worker(layered, inputs, library=LIBRARY, environment={"NZ_WEIGHTS_MIB": repr(budget / MIB)}) as worker:
            worker.load()
            worker.run(3)
            resident.append(worker.memory()["rss"])
        taken.append(spend(found, budget)[1])
        say(f"budget {budget / MIB:.1f} MiB: taken {taken[-1] / MIB:.1f} MiB, resident {resident[-1] / MIB:.1f} MiB")
        # What no weight takes: less than the layer of one.
        assert budget - taken[-1] < max(depths[-1][1] - depths[-2][1] for _, depths in found)
    for i in range(len(budgets) - 1):
        less = taken[i + 1] - taken[i]
        # Where the file system has huge pages, the one in which reading ends counts whole.
        assert less - 2 * MIB * count <= resident[i + 1] - resident[i] <= less + 2 * MIB
    assert resident[-1] - resident[0] >= 0.85 * (taken[-1] - taken[0])


def test_less_than_the_least_is_an_error_that_says_the_least(layered):
    least = totals(blobs(layered))[0]
    with pytest.raises(Exception, match="nz.weights_mib is .* take at least") as caught:
        session(layered, weights_mib=repr((least - 1) / MIB))
    said = float(str(caught.value).split("at least ")[1].split(" MiB")[0])
    assert least / MIB <= said < least / MIB + 0.011
    session(layered, weights_mib=said)


@pytest.mark.parametrize("text", ["few", "0", "-1", "nan", "inf", "", "300 MiB"])
def test_wrong_budgets_are_an_error(text, layered):
    with pytest.raises(Exception, match=f"session option nz.weights_mib is '{text}': set it to 'all', or .*MiB"):
        session(layered, weights_mib=text)


def test_one_limit_at_a_time(layered, monkeypatch):
    with pytest.raises(Exception, match="nz.bits is '8' and session option nz.weights_mib is '9': .* set one"):
        session(layered, bits=8, weights_mib=9)
    whole, least = run(layered), run(layered, bits=1)
    monkeypatch.setenv("NZ_WEIGHTS_MIB", "0.001")
    with pytest.raises(Exception, match="at least"):
        session(layered)
    # An option of either kind comes before both variables.
    assert np.array_equal(run(layered, weights_mib="all"), whole)
    assert np.array_equal(run(layered, bits=1), least)
    monkeypatch.setenv("NZ_BITS", "8")
    with pytest.raises(Exception, match="variable NZ_BITS is '8' and environment variable NZ_WEIGHTS_MIB is '0.001'"):
        session(layered)
    assert np.array_equal(run(layered, bits="all"), whole)


def test_models_that_do_not_say_what_layers_take(layered, tmp_path):
    plain = chain(tmp_path / "plain.onnx")
    convert(plain, tmp_path / "whole.nz.onnx", "--lossless")
    advice = "convert it again with --layers, or set nz.bits"
    with pytest.raises(Exception, match=advice):
        session(tmp_path / "whole.nz.onnx", weights_mib=100)
    # As older versions wrote them: beside the data file, which they share.
    for strip_nodes, message in ((True, advice), (False, "attribute depth_bytes has 2 numbers, .* 4 are expected")):
        old = onnx.load(str(layered), load_external_data=False)
        for node in old.graph.node[not strip_nodes :]:
            for attribute in node.attribute:
                if attribute.name == "depth_bytes" and not strip_nodes:
                    attribute.ints[:] = attribute.ints[:2]
            kept = [a for a in node.attribute if a.name != "depth_bytes" or not strip_nodes]
            del node.attribute[:]
            node.attribute.extend(kept)
        path = layered.with_name("old.nz.onnx")
        onnx.save(old, str(path))
        with pytest.raises(Exception, match=message):
            session(path, weights_mib=100)
        session(path, bits=8)


def test_restores_as_ever(layered, tmp_path):
    plain, restored = chain(tmp_path / "plain.onnx"), tmp_path / "restored.onnx"
    assert nz("restore", layered, "-o", restored).code == OK
    assert restored.read_bytes() == plain.read_bytes()
