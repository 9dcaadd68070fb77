"""Sessions in the real ONNX Runtime, through enable()."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import nz_onnx
import onnxruntime
import pytest

VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
needs_provider = pytest.mark.skipif(
    VERSION < (1, 24), reason="this onnxruntime has no plugin execution providers that the library can be"
)
X = np.random.default_rng(1).normal(size=(5, 256)).astype(np.float32)


def run(model, options, **arguments):
    if VERSION < (1, 24) or not options.has_providers():
        arguments["providers"] = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(model), options, **arguments)
    return session, session.run(None, {"x": X})[0]


def test_a_converted_model_runs(made):
    original, converted = made
    _, expected = run(original, onnxruntime.SessionOptions())
    with pytest.raises(Exception, match="register_libnz_onnx_so_before_loading_this_model"):
        run(converted, onnxruntime.SessionOptions())
    options = onnxruntime.SessionOptions()
    nz_onnx.enable(options)
    _, found = run(converted, options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_cache_is_set_before_the_library_reads_it(made):
    _, converted = made
    options = onnxruntime.SessionOptions()
    nz_onnx.enable(options, cache_mib=64)
    assert options.get_session_config_entry("nz.cache_mib") == "64"
    run(converted, options)
    nz_onnx.enable(bits := onnxruntime.SessionOptions(), bits=6.5)
    assert bits.get_session_config_entry("nz.bits") == "6.5"
    nz_onnx.enable(budget := onnxruntime.SessionOptions(), weights_mib=42.5)
    assert budget.get_session_config_entry("nz.weights_mib") == "42.5"
    for wrong in ("bits", "weights_mib"):
        with pytest.raises(TypeError, match=f"{wrong}: of use without provider"):
            nz_onnx.enable(onnxruntime.SessionOptions(), **{wrong: 8}, provider=True)
    # The library's own message: it has seen the option.
    with pytest.raises(Exception, match="nz.cache_mib is '-1'"):
        nz_onnx.enable(onnxruntime.SessionOptions(), cache_mib=-1)


def test_provider_options_are_not_lost():
    with pytest.raises(TypeError, match="lossless, ratio: of use with provider=True only"):
        nz_onnx.enable(onnxruntime.SessionOptions(), ratio=0.5, lossless=True)


@pytest.mark.parametrize(
    "version, provider, message",
    [
        ("1.16.3", False, "needs onnxruntime 1.17 or later, found 1.16.3"),
        ("1.23.2", True, "needs onnxruntime 1.24 or later, found 1.23.2"),
        ("1.9.0", True, "needs onnxruntime 1.24 or later, found 1.9.0"),
    ],
)
def test_too_old_an_onnxruntime(monkeypatch, version, provider, message):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(nz_onnx.OrtVersionError, match=message) as caught:
        nz_onnx.enable(onnxruntime.SessionOptions(), provider=provider)
    assert caught.value.exit_code is None


def test_no_onnxruntime(monkeypatch):
    options = onnxruntime.SessionOptions()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(nz_onnx.OrtVersionError, match="needs onnxruntime 1.17 or later, found none"):
        nz_onnx.enable(options)


@pytest.mark.skipif(VERSION >= (1, 24), reason="this onnxruntime has plugin execution providers")
def test_this_onnxruntime_is_too_old_for_the_provider():
    with pytest.raises(nz_onnx.OrtVersionError, match=f"1.24 or later, found {onnxruntime.__version__}"):
        nz_onnx.enable(onnxruntime.SessionOptions(), provider=True)


class Registry:
    """Plays the part of onnxruntime that knows execution providers."""

    __version__ = "1.24.0"

    def __init__(self, brings):
        self.brings, self.devices, self.registered = brings, [SimpleNamespace(ep_name="Other")], []

    def get_ep_devices(self):
        return list(self.devices)

    def register_execution_provider_library(self, name, path):
        self.registered.append((name, path))
        self.devices += [SimpleNamespace(ep_name=name) for _ in range(self.brings)]


class Options:
    """Plays SessionOptions."""

    def add_provider_for_devices(self, devices, options):
        self.added = (devices, options)


def test_the_provider_is_registered_once(monkeypatch):
    registry = Registry(brings=2)
    monkeypatch.setitem(sys.modules, "onnxruntime", registry)
    first, second = Options(), Options()
    nz_onnx.enable(first, provider=True)
    nz_onnx.enable(
        second, provider=True, cache_mib=8, ratio=0.5, lossless=False, cache_dir=Path("a"), min_size=4096
    )
    assert registry.registered == [("NzExecutionProvider", nz_onnx.get_library_path())]
    assert first.added == (registry.devices[1:], {})
    text = {"cache_mib": "8", "ratio": "0.5", "lossless": "0", "cache_dir": "a", "min_size": "4096"}
    assert second.added == (registry.devices[1:], text)
    # Others may have unregistered it.
    del registry.devices[1:]
    nz_onnx.enable(Options(), provider=True)
    assert len(registry.registered) == 2


def test_a_provider_without_a_device(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", Registry(brings=0))
    with pytest.raises(nz_onnx.NzError, match="sees no device for NzExecutionProvider"):
        nz_onnx.enable(Options(), provider=True)


@needs_provider
def test_the_provider_runs_models(made):
    original, converted = made
    _, expected = run(original, onnxruntime.SessionOptions())
    for model in (original, converted, original):
        options = onnxruntime.SessionOptions()
        nz_onnx.enable(options, provider=True)
        session, found = run(model, options, enable_fallback=0)
        assert session.get_providers()[0] == nz_onnx.get_ep_name()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    names = [device.ep_name for device in onnxruntime.get_ep_devices()]
    assert names.count(nz_onnx.get_ep_name()) == 1


@needs_provider
def test_the_provider_writes_down_what_it_did(made, monkeypatch, tmp_path):
    path = tmp_path / "stats.jsonl"
    monkeypatch.setenv("NZ_STATS", str(path))
    for _ in range(2):
        options = onnxruntime.SessionOptions()
        nz_onnx.enable(options, provider=True, ratio=0.6)
        run(made[0], options, enable_fallback=0)
    first, second = nz_onnx.read_stats(path)
    assert first.provider == nz_onnx.get_ep_name() and first.version == nz_onnx.__version__
    assert first.weights == second.weights == 2 and first.bytes_before == 2 * 256 * 256 * 4
    assert first.bytes_after == second.bytes_after <= 0.6 * first.bytes_before


SESSION = {
    "schema": "nz-onnx.session/1",
    "provider": "NzExecutionProvider",
    "version": "0.1.0",
    "process": 7,
    "weights": 2,
    "bytes_before": 4096,
    "bytes_after": 2048,
    "seconds": 0.5,
}


def test_statistics_of_sessions(tmp_path):
    path = tmp_path / "stats.jsonl"
    path.write_text(json.dumps(SESSION) + "\n" + json.dumps({**SESSION, "weights": 3, "later": []}) + "\n")
    first, second = nz_onnx.read_stats(path)
    assert dataclasses.asdict(first) == SESSION and second.weights == 3
    path.write_text(json.dumps(SESSION) + "\n{}\n")
    with pytest.raises(nz_onnx.NzError, match="stats.jsonl, line 2: .* no field 'schema'"):
        nz_onnx.read_stats(path)


@needs_provider
def test_the_provider_reads_its_options(made):
    options = onnxruntime.SessionOptions()
    with pytest.raises(Exception, match="(?s)ratio.*seven"):
        nz_onnx.enable(options, provider=True, ratio="seven")
        run(made[0], options, enable_fallback=0)
