"""NzExecutionProvider's sessions: their options, what they say, what they hold, and how they end."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import eplib
import generate
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from eplib import (  # noqa: F401  (`library` is a fixture)
    PROVIDER,
    VERSION,
    build,
    close,
    executed,
    library,
    node,
    plain,
    session,
    supported,
    value,
    weights,
)
from nzlib import LIBRARY, MIB, Worker, convert, nz_nodes
from onnx import TensorProto
from real_models import every, needed
from test_models import difference, unoptimised

pytestmark = supported
K, N = 512, 384


@pytest.fixture(scope="module")
def chain():
    """Two weights of full float32 and one with as few bits as bfloat16 has."""
    rng = np.random.default_rng(11)
    initializers = {"A": weights(rng, K, N), "B": weights(rng, N, K), "C": weights(rng, K, K, upcast=True)}
    nodes = [node("MatMul", ["X", "A"], ["P"]), node("Gemm", ["P", "B"], ["Q"]), node("MatMul", ["Q", "C"])]
    return build(nodes, [value("X", TensorProto.FLOAT, ["M", K])], initializers), initializers


@pytest.fixture
def x():
    return np.random.default_rng(12).standard_normal((5, K)).astype(np.float32)


def product(x, initializers, round_to=lambda w: w):
    for name in "ABC":
        x = x.astype(np.float64) @ round_to(initializers[name]).astype(np.float64)
    return x.astype(np.float32)


def statistics(monkeypatch, folder, model, x, **arguments):
    """The line that a session leaves, and its output."""
    path = folder / "stats.jsonl"
    path.unlink(missing_ok=True)
    monkeypatch.setenv("NZ_STATS", str(path))
    output = session(model, **arguments).run(None, {"X": x})[0]
    lines = path.read_text().splitlines()
    assert len(lines) == 1
    return json.loads(lines[0]), output


def test_options_say_how_small_and_how_exact(chain, x, tmp_path, monkeypatch):
    model, initializers = chain
    total = sum(array.nbytes for array in initializers.values())
    exact = plain(model, {"X": x})

    def ratio(**options):
        stats, output = statistics(monkeypatch, tmp_path, model, x, options=options)
        assert stats["schema"] == "nz-onnx.session/1" and stats["provider"] == PROVIDER
        assert stats["weights"] == 3 and stats["bytes_before"] == total and stats["seconds"] > 0
        return stats["bytes_after"] / total, output

    lossless, output = ratio()
    close(output, exact)
    assert 0.6 < lossless < 0.75  # two weights of .83, one of .33
    assert ratio(lossless=1)[0] == lossless

    half, output = ratio(ratio=0.5)
    assert 0.47 < half <= 0.5
    # A worst relative error of 2**-12 a weight.
    assert 1e-7 < difference(output, exact) < 1e-3
    default, _ = ratio(lossless=0)
    assert default <= 0.5

    few, output = ratio(mantissa_bits=4)
    assert few < 0.3

    def rounded(w):
        bits = w.view(np.uint32).astype(np.uint64)
        return ((bits + 0x3FFFF + (bits >> 19 & 1)) & 0xFFF80000).astype(np.uint32).view(np.float32)

    close(output, product(x, initializers, rounded), 1e-4)

    # At the same size a grid is closer to weights that are spread like these.
    quarter, cut = ratio(ratio=0.25)
    errors = {}
    for transform in ("grid", "auto"):
        size, output = ratio(ratio=0.25, transform=transform)
        assert 0.22 < size <= 0.25
        errors[transform] = difference(output, exact)
    assert 0.22 < quarter <= 0.25 and max(errors.values()) < 0.8 * difference(cut, exact), errors
    # Larger, and as exact.
    fast, output = ratio(profile="fast")
    assert fast > lossless * 1.02
    close(output, exact)


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"ratio": "2"}, ["ratio", "'2'", "above 0 and below 1"]),
        ({"lossless": "maybe"}, ["lossless", "'maybe'", "0 or 1"]),
        ({"mantissa_bits": "24"}, ["mantissa_bits", "'24'", "from 0 to 23"]),
        ({"min_size": "4KiB"}, ["min_size", "'4KiB'", "bytes"]),
        ({"cache_mib": "-1"}, ["cache_mib", "'-1'", "MiB"]),
        ({"cache_dir": "/proc/none/such"}, ["cache_dir", "'/proc/none/such'", "folder"]),
        (
            {"size": "1"},
            ["'size'", "lossless, ratio, mantissa_bits, transform, profile, min_size, conv, lstm, gru, cache_mib and cache_dir"],
        ),
        ({"transform": "round", "ratio": "0.5"}, ["transform", "'round'", "cut, grid or auto"]),
        ({"transform": "grid"}, ["transform", "ratio or lossless=0"]),
        ({"profile": "best"}, ["profile", "'best'", "compact or fast"]),
        ({"conv": "yes"}, ["conv", "'yes'", "0 or 1"]),
        ({"lossless": "1", "ratio": "0.5"}, ["lossless=1 and ratio", "exclude each other"]),
        ({"ratio": "0.05"}, ["ratio", "0.05", "reach no less than 0.1"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_wrong_options_are_named(chain, options, parts):
    with pytest.raises(Exception) as raised:
        session(chain[0], options)
    assert all(part in str(raised.value) for part in parts), raised.value


def test_decoded_weights_are_kept_up_to_a_budget(chain, x):
    model, _ = chain
    expected = session(model).run(None, {"X": x})[0]
    for options, config in (({"cache_mib": 100}, {}), ({}, {"nz.cache_mib": "1"}), ({"cache_mib": 0}, {})):
        made = session(model, options, config)
        for _ in range(3):
            close(made.run(None, {"X": x})[0], expected)


def test_a_second_session_maps_what_the_first_one_made(chain, x, tmp_path):
    model, initializers = chain
    folder = tmp_path / "cache" / "below"
    expected = plain(model, {"X": x})

    def files():
        found = {path.name: path for path in folder.iterdir()}
        assert not [name for name in found if name.endswith(".tmp")]
        return found

    def load(**options):
        made = session(model, {"cache_dir": folder, **options}, profile=str(tmp_path))
        output = made.run(None, {"X": x})[0]
        assert executed(made)[PROVIDER] == ["Gemm", "MatMul", "MatMul"]
        return output, made

    first, _ = load()
    close(first, expected)
    made = {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in files().items()}
    assert sorted(name.split(".")[1] for name in made) == ["nzb", "nzb", "nzb", "plan"]
    second, kept = load()
    assert np.array_equal(first, second)
    assert {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in files().items()} == made
    with open("/proc/self/maps") as maps:
        mapped = maps.read()
    assert all(name in mapped for name in made if name.endswith(".nzb"))
    del kept

    # Another precision, or another way of coding, is another blob; and each is found again.
    for options in ({"mantissa_bits": 3}, {"ratio": 0.3, "transform": "grid"}, {"profile": "fast"}):
        before = set(files())
        output, _ = load(**options)
        assert set(files()) > before, options
        before = set(files())
        assert np.array_equal(load(**options)[0], output)
        assert set(files()) == before, options

    # Damaged files are made anew, and the rest is as it was.
    for name, (_, content) in made.items():
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 1
        files()[name].unlink()
        (folder / name).write_bytes(damaged)
        again, _ = load()
        assert np.array_equal(first, again), name
        assert files()[name].read_bytes() == content, name
        files()[name].unlink()
        (folder / name).write_bytes(content[:50])
        again, _ = load()
        assert np.array_equal(first, again), name
        assert files()[name].read_bytes() == content, name

    # Another content under the same names of weights is not mistaken for it.
    other = {name: array * np.float32(1.5) for name, array in initializers.items()}
    changed = onnx.load_from_string(model)
    for tensor in changed.graph.initializer:
        tensor.raw_data = other[tensor.name].tobytes()
    changed = changed.SerializeToString()
    found = session(changed, {"cache_dir": folder}).run(None, {"X": x})[0]
    close(found, plain(changed, {"X": x}))


def in_process(script, *arguments, **environment):
    """Runs a script in a Python of its own and returns its output; it must end well."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=600, env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def test_processes_share_a_cache_folder(chain, x, tmp_path):
    (tmp_path / "model.onnx").write_bytes(chain[0])
    np.save(tmp_path / "x.npy", x)
    script = f"""
    import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
    import eplib, numpy as np
    folder, out = sys.argv[1:]
    with eplib.registered():
        made = eplib.session(folder + "/model.onnx", {{"cache_dir": folder + "/cache", "ratio": 0.5}})
        np.save(out, made.run(None, {{"X": np.load(folder + "/x.npy")}})[0])
        del made
    """
    outs = [tmp_path / f"{i}.npy" for i in range(4)]
    together = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(out)]) for out in outs
    ]
    assert [process.wait(timeout=300) for process in together] == [0] * len(outs)
    first, *others = [np.load(out) for out in outs]
    assert all(np.array_equal(first, other) for other in others)
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert len(names) == 4 and not [name for name in names if name.endswith(".tmp")]


def test_the_log_tells_what_was_done(chain, x, tmp_path):
    (tmp_path / "model.onnx").write_bytes(chain[0])
    np.save(tmp_path / "x.npy", x)
    script = """
    import eplib, numpy as np
    folder, packing = sys.argv[1:]
    with eplib.registered():
        made = eplib.session(folder + "/model.onnx", config={"session.disable_prepacking": packing})
        made.run(None, {"X": np.load(folder + "/x.npy")})
        del made
    """
    told = in_process(script, tmp_path, "0", NZ_LOG="1", NZ_STATS=str(tmp_path / "stats")).stderr
    assert "NzExecutionProvider: 3 weights compressed from 2.5 MiB to 1." in told, told
    assert json.loads((tmp_path / "stats").read_text())["weights"] == 3
    told = in_process(script, tmp_path, "1", NZ_LOG="1", NZ_STATS=str(tmp_path / "stats")).stderr
    assert "session.disable_prepacking=1" in told and "no weight of this model was compressed" in told, told
    assert len((tmp_path / "stats").read_text().splitlines()) == 2
    assert in_process(script, tmp_path, "0").stderr == ""


def test_converted_models_run_with_either_and_with_both(chain, x, tmp_path):
    (tmp_path / "model.onnx").write_bytes(chain[0])
    convert(tmp_path / "model.onnx", tmp_path / "model.nz.onnx")
    outputs = []
    for provider, library in ((False, True), (True, False), (True, True)):
        made = session(tmp_path / "model.nz.onnx", provider=provider, library=library, profile=str(tmp_path))
        outputs.append(made.run(None, {"X": x})[0])
        ran = [op for ops in executed(made).values() for op in ops]
        assert sorted(op for op in ran if op.startswith("Decode")) == ["DecodeGemm", "DecodeMatMul", "DecodeMatMul"]
    assert all(np.array_equal(output, outputs[0]) for output in outputs)


@needed
@every
@pytest.mark.parametrize("options", [{}, {"conv": 1, "lstm": 1, "gru": 1}], ids=["usual", "all ops"])
def test_real_models_run_as_with_the_cpu_alone(model, options, tmp_path, say):
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, **model.inputs())
    found = []
    for arguments in ({}, {"provider": LIBRARY, "options": options}):
        with Worker(model.path, inputs, profile=True, **arguments) as worker:
            worker.load()
            worker.run()
            found.append((worker.outputs(), worker.nodes()))
    (expected, _), (outputs, executed) = found
    worst = max(difference(a, b) for a, b in zip(outputs, expected, strict=True))
    taken = executed.get(PROVIDER, {})
    say(f"{model}: {sum(taken.values())} nodes taken {taken or ''}, outputs differ by {worst:.1e}")
    # A float16 node that is taken has float16 inputs and outputs; the CPU's provider keeps float32 between its own.
    limit = 4e-3 if model.half else 1e-5
    if worst > limit:
        own = max(difference(a, b) for a, b in zip(unoptimised(model.path, inputs), expected))
        say(f"ONNX Runtime's outputs without its optimiser differ by {own:.1e}")
        limit = 2 * own
    assert worst <= limit if taken else worst == 0
    if options and not model.kept:
        wanted = {"dtln_1": {"LSTM"}, "silero_vad": {"LSTM"}, "minilm_l6_v8k_fp16": set(), "stories260k": set()}
        assert taken and wanted.get(model.name, {"Conv"}) <= set(taken)


@needed
def test_real_transformers_are_taken_whole(tmp_path):
    from real_models import ALL

    for model, wanted in (("stories260k", {"MatMul": 36, "Gather": 3}), ("minilm_l6_v8k_fp16", {"MatMul": 36, "Gather": 2})):
        model = next(m for m in ALL if m.name == model)
        made = session(model.path, profile=str(tmp_path))
        made.run(None, model.inputs())
        ops = executed(made)[PROVIDER]
        assert {op: ops.count(op) for op in ops} == wanted


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """24 x MatMul of 216 MiB in all, inline and external, full float32 and as few bits as bfloat16 has."""
    folder = tmp_path_factory.mktemp("large")
    made = {}
    for upcast in (False, True):
        rng = np.random.default_rng(1)
        name = "upcast" if upcast else "full"
        nodes, initializers, last = [], {}, "X"
        for layer in range(24):
            initializers[f"W{layer}"] = weights(rng, 1536, 1536, upcast=upcast) / np.float32(2)
            nodes.append(node("MatMul", [last, f"W{layer}"], [f"P{layer}"]))
            nodes.append(node("Tanh", [f"P{layer}"], [f"T{layer}"]))
            last = f"T{layer}"
        outputs = [value(last)]
        model = build(nodes, [value("X", TensorProto.FLOAT, ["M", 1536])], initializers, outputs)
        made[name, "inline"] = folder / f"{name}.onnx"
        made[name, "inline"].write_bytes(model)
        path = folder / f"{name}_external.onnx"
        onnx.save(
            onnx.load_from_string(model), path, save_as_external_data=True, location=path.name + ".data",
            size_threshold=1024,
        )
        made[name, "external"] = path
    bare = build([node("Identity", ["X"])], [value("X", TensorProto.FLOAT, ["M", 1536])], {})
    made["bare"] = folder / "bare.onnx"
    made["bare"].write_bytes(bare)
    made["inputs"] = folder / "inputs.npz"
    np.savez(made["inputs"], X=rng.standard_normal((2, 1536)).astype(np.float32))
    return made


def held(model, inputs, **arguments):
    """Resident memory after three runs, the peak of loading, and the output."""
    with Worker(model, inputs, **arguments) as worker:
        worker.load()
        peak = worker.memory()["peak"]
        worker.run(3)
        return worker.memory()["rss"], peak, worker.outputs()[0]


@pytest.mark.parametrize("stored", ["inline", "external"])
@pytest.mark.parametrize(
    "weights, options, most",
    [("upcast", {}, 0.40), ("full", {}, 0.90), ("full", {"ratio": 0.5}, 0.55), ("full", {"cache_dir": True}, 0.90)],
    ids=["upcast", "full", "half", "stored"],
)
def test_originals_go_and_loading_takes_no_more(large, weights, stored, options, most, tmp_path, say):
    if "cache_dir" in options:
        options = {"cache_dir": tmp_path}
    bare, _, _ = held(large["bare"], large["inputs"])
    model = large[weights, stored]
    plain_rss, plain_peak, expected = held(model, large["inputs"])
    # The plain session's peak differs from time to time, by what the allocator has given back by then.
    plain_peak = max([plain_peak] + [held(model, large["inputs"])[1] for _ in range(2)])
    for load in ["first"] + ["second"] * ("cache_dir" in options):
        rss, peak, output = held(model, large["inputs"], provider=LIBRARY, options=options)
        share = (rss - bare) / (plain_rss - bare)
        say(
            f"{weights} {stored} {options} {load} load: {rss / MIB:.0f} MiB of {plain_rss / MIB:.0f} (above a bare process "
            f"{share:.3f}), peak {peak / MIB:.0f} of {plain_peak / MIB:.0f}"
        )
        # The provider itself, code and scratch, is 8 MiB at most.
        assert rss - bare <= most * (plain_rss - bare) + 8 * MIB
        assert peak <= 1.02 * plain_peak + 8 * MIB
        assert difference(output, expected) <= (1e-5 if "ratio" not in options else 1e-2)


def test_convolutions_hold_little_memory(tmp_path, say):
    """Columns and decoded filters of all nodes lie in one buffer, and the C library's heaps keep none of them."""
    rng = np.random.default_rng(16)
    channels = [16, 32, 64, 64, 96, 128, 128, 160, 192, 256]
    initializers, nodes, last = {}, [], "X"
    for at, (before, after) in enumerate(zip(channels, channels[1:])):
        initializers[f"W{at}"] = weights(rng, after, before, 3, 3)
        stride = 1 + (at % 3 == 2)
        nodes.append(node("Conv", [last, f"W{at}"], [f"C{at}"], pads=[1, 1, 1, 1], strides=[stride, stride]))
        last = f"C{at}"
    nodes.append(node("Relu", [last]))
    (tmp_path / "model.onnx").write_bytes(build(nodes, [value("X", TensorProto.FLOAT, ["N", 16, 96, 96])], initializers))
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, X=rng.standard_normal((1, 16, 96, 96)).astype(np.float32))

    def memory(**arguments):
        with Worker(tmp_path / "model.onnx", inputs, threads=2, **arguments) as worker:
            worker.load()
            worker.run(10)
            return worker.memory()["rss"], worker.outputs()[0]

    without, expected = memory()
    rss, output = memory(provider=LIBRARY, options={"conv": 1})
    say(f"convolutions: {without / MIB:.1f} MiB, with conv=1 {rss / MIB:.1f} MiB")
    assert rss <= without + 5 * MIB
    assert difference(output, expected) <= 1e-5


def test_sessions_are_made_at_once_and_outlive_the_registration(chain, x, tmp_path):
    (tmp_path / "model.onnx").write_bytes(chain[0])
    np.save(tmp_path / "x.npy", x)
    script = """
    import eplib, numpy as np, threading
    folder = sys.argv[1]
    x = np.load(folder + "/x.npy")
    made = []
    def make(options):
        session = eplib.session(folder + "/model.onnx", options)
        made.append((session, session.run(None, {"X": x})[0]))
    with eplib.registered():
        every = [{}, {"cache_dir": folder + "/cache"}] * 4
        threads = [threading.Thread(target=make, args=(options,)) for options in every]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # What a session needs of the library is still there.
    for session, output in made:
        assert np.array_equal(session.run(None, {"X": x})[0], output)
        assert np.array_equal(output, made[0][1])
    print(len(made))
    """
    assert int(in_process(script, tmp_path).stdout) == 8


def test_a_thousand_cycles_leave_nothing_behind(tmp_path):
    rng = np.random.default_rng(3)
    initializers = {"A": weights(rng, 64, 48), "B": weights(rng, 48, 64)}
    nodes = [node("MatMul", ["X", "A"], ["P"]), node("Gemm", ["P", "B"])]
    (tmp_path / "model.onnx").write_bytes(build(nodes, [value("X", TensorProto.FLOAT, ["M", 64])], initializers))
    script = """
    import ctypes, eplib, gc, numpy as np
    path, cycles = sys.argv[1] + "/model.onnx", int(sys.argv[2])
    class Usage(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd d e uordblks g h".split()]
    usage = ctypes.CDLL(None).mallinfo2
    usage.restype = Usage
    def used():
        # What is allocated, whatever the allocator holds besides; and what is resident.
        gc.collect()
        now = usage()
        with open("/proc/self/statm") as file:
            return now.uordblks + now.hblkhd, int(file.read().split()[1]) * 4096
    x = np.ones((2, 64), np.float32)
    def run(made):
        return made.run(None, {"X": x})[0]
    def usual():
        with eplib.registered():
            run(eplib.session(path))
    def session_outlives_registration():
        with eplib.registered():
            made = eplib.session(path)
        run(made)
    def two_and_the_first_goes_first():
        with eplib.registered():
            first, second = eplib.session(path), eplib.session(path, {"ratio": 0.5})
            del first
            run(second)
    def registered_again_while_a_session_lives():
        with eplib.registered():
            made = eplib.session(path)
        with eplib.registered():
            other = eplib.session(path)
            assert np.array_equal(run(made), run(other))
            del made
            run(other)
    def nothing_is_made():
        with eplib.registered():
            pass
    def never_run():
        with eplib.registered():
            eplib.session(path)
    orders = [
        usual, session_outlives_registration, two_and_the_first_goes_first, registered_again_while_a_session_lives,
        nothing_is_made, never_run,
    ]
    for cycle in range(cycles):
        orders[cycle % len(orders)]()
        if cycle == cycles // 3:
            before = used()
    print(*(after - first for after, first in zip(used(), before)))
    """
    cycles = 1000
    # What an allocator keeps for each thread counts as used: it is to keep nothing.
    tunables = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1:glibc.malloc.mxfast=0"
    heap, resident = map(int, in_process(script, tmp_path, cycles, GLIBC_TUNABLES=tunables).stdout.split())
    # Less than 200 bytes a cycle: a session of ONNX Runtime's own leaves some 40, a kernel and its weight have more.
    assert heap < 1 << 17 and resident < 4 << 20, f"{heap} bytes more, {resident} resident, after {cycles * 2 // 3} cycles"
