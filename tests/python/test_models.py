"""Every real model, converted with the default options and without loss, runs in ONNX Runtime as shipped:
default session options, nothing but the library registered."""

import numpy as np
import onnxruntime
import pytest
from nzlib import LIBRARY, Worker, convert, nz_nodes
from real_models import every, needed

pytestmark = needed


def run(path, inputs, library):
    """The outputs of one run in a process of its own, and the nodes that ran."""
    with Worker(path, inputs, library=library, profile=True) as worker:
        worker.load()
        worker.run()
        return worker.outputs(), worker.nodes()


def unoptimised(path, inputs):
    """The outputs of a plain model that is executed node by node, as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    with np.load(inputs) as given:
        return session.run(None, dict(given))


def compressed(report):
    return [tensor for tensor in report["tensors"] if tensor["decision"] == "compressed"]


def difference(ours, theirs):
    """The greatest difference of two outputs, relative to the greatest magnitude of the second."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if theirs.dtype.kind not in "fiu":
        return float(not np.array_equal(ours, theirs))
    if theirs.size == 0:
        return 0.0
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    assert np.isfinite(a).all() and np.isfinite(b).all()
    return abs(a - b).max() / max(abs(b).max(), np.finfo(np.float32).tiny)


VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


@every
@pytest.mark.parametrize("options", [(), ("--lossless",)], ids=["default", "lossless"])
def test_converted_model_runs_like_the_original(model, options, tmp_path, say):
    converted = tmp_path / "model.nz.onnx"
    report = convert(model.path, converted, *options)
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, **model.inputs())

    # Before 1.23 ONNX Runtime rounds a float16 model differently as soon as any library of custom ops is
    # registered, converted or not: its pass over float16 nodes then looks for kernels in that library only. There
    # the original is run with the library too.
    with_library = model.half and VERSION < (1, 23)
    expected, _ = run(model.path, inputs, LIBRARY if with_library else None)
    outputs, executed = run(converted, inputs, LIBRARY)
    assert set(executed) == {"CPUExecutionProvider"}
    assert bool(nz_nodes(executed)) == bool(compressed(report)), (
        f"{len(compressed(report))} compressed weights, but these nodes ran: {executed}"
    )
    if model.kept:
        reasons = {tensor["reason"] for tensor in report["tensors"] if tensor["bytes_before"] >= 4096}
        assert not compressed(report) and any(model.kept in reason for reason in reasons), reasons
    else:
        assert compressed(report), f"no weight of {model} was compressed"

    assert len(outputs) == len(expected)
    worst = max(difference(a, b) for a, b in zip(outputs, expected))
    totals = report["totals"]
    say(f"{model} {' '.join(options)}: ratio {totals['ratio']:.3f}, outputs differ by {worst:.1e}")
    if totals["lossless"]:
        limit = 1e-3 if model.half else 1e-5
        if worst > limit:
            # Some models are so sensitive that ONNX Runtime differs from itself by more, with its optimiser and
            # without. Two such differences, of another order of summation each, are no fault of the weights.
            own = max(difference(a, b) for a, b in zip(unoptimised(model.path, inputs), expected))
            say(f"ONNX Runtime's outputs without its optimiser differ by {own:.1e}")
            limit = 2 * own
        assert worst <= limit
    else:
        # What rounding weights does to outputs depends on the model; a broken decode shows as noise
        # of the size of the output itself.
        assert worst < 0.5


@every
def test_lossless_says_that_it_is_lossless(model, tmp_path):
    report = convert(model.path, tmp_path / "model.nz.onnx", "--lossless")
    assert report["totals"]["lossless"] is True
    assert report["totals"]["max_relative_error"] == 0
    assert all(tensor["lossless"] for tensor in report["tensors"])
