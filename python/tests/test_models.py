"""convert, plan, inspect, verify and restore, through the installed package."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import nz_onnx
import onnxruntime
import pytest
from nz_onnx.command import find_command

HAS_LIBONNXRUNTIME = any(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
needs_libonnxruntime = pytest.mark.skipif(
    not HAS_LIBONNXRUNTIME,
    reason=f"the package onnxruntime {onnxruntime.__version__} has no libonnxruntime of its own",
)


def document(*arguments):
    """What the command itself answers."""
    done = subprocess.run([find_command(), *map(str, arguments), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def plain(result):
    """A result as the JSON document that it was."""
    return json.loads(json.dumps(dataclasses.asdict(result)))


def test_results_are_the_documents_of_the_command(made):
    original, converted = made
    trial = nz_onnx.convert(original, dry_run=True, ratio=0.6)
    pairs = [
        (trial, ["convert", original, "--dry-run", "--ratio=0.6"]),
        (nz_onnx.plan(original, mantissa_bits=5), ["plan", original, "--mantissa-bits=5"]),
        (nz_onnx.plan(original, transform="grid"), ["plan", original, "--transform=grid"]),
        (nz_onnx.plan(original, layers=True, integers=True), ["plan", original, "--layers", "--integers"]),
        (nz_onnx.convert(original, dry_run=True, layers=(3, 8)), ["convert", original, "--dry-run", "--layers=3,8"]),
        (nz_onnx.inspect(converted), ["inspect", converted]),
        (nz_onnx.inspect(original), ["inspect", original]),
        (nz_onnx.verify(converted, original), ["verify", converted, "--original", original]),
    ]
    for result, arguments in pairs:
        assert plain(result) == document(*arguments)


def test_convert_and_back(model):
    result = nz_onnx.convert(model)
    output = model.with_name("model.nz.onnx")
    assert result.schema == "nz-onnx.convert/1"
    assert result.input.path == str(model) and result.input.bytes == model.stat().st_size
    assert result.output.path == str(output)
    assert result.output.bytes == output.stat().st_size + Path(result.output.data_path).stat().st_size
    assert result.totals.compressed == 2 and result.totals.ratio <= 0.51 and not result.totals.lossless
    assert [tensor.name for tensor in result.tensors] == ["W0", "W1"]
    assert result.tensors[0].shape == (256, 256)

    restored = nz_onnx.restore(output, model.with_name("back.onnx"))
    assert restored.rounded == ("W0", "W1") and not restored.identical
    assert Path(restored.output.path).is_file()


def test_lossless_and_back(made, tmp_path):
    original, converted = made
    restored = nz_onnx.restore(converted, tmp_path / "back.onnx", threads=1)
    assert restored.identical and restored.rounded == ()
    assert Path(restored.output.path).read_bytes() == original.read_bytes()


def test_every_option_arrives(model, tmp_path):
    def decisions(**options):
        result = nz_onnx.convert(model, dry_run=True, **options)
        assert result.output is None
        return {tensor.name: tensor.decision for tensor in result.tensors}

    assert decisions() == {"W0": "compressed", "W1": "compressed"}
    assert decisions(include="W1") == {"W0": "kept", "W1": "compressed"}
    assert decisions(include=["W0", "W1"]) == {"W0": "compressed", "W1": "compressed"}
    assert decisions(exclude=("W0",)) == {"W0": "kept", "W1": "compressed"}
    assert decisions(exclude_nodes="second") == {"W0": "compressed", "W1": "kept"}
    assert decisions(min_size="257KiB") == decisions(min_size=(256 << 10) + 1) == {"W0": "kept", "W1": "kept"}

    encoding = nz_onnx.convert(model, dry_run=True, mantissa_bits=4, threads=2).tensors[0].encoding
    assert encoding == "float-split k=4"
    compact = nz_onnx.convert(model, dry_run=True, lossless=True)
    fast = nz_onnx.convert(model, dry_run=True, lossless=True, profile="fast")
    assert compact.totals.bytes_after < fast.totals.bytes_after and fast.totals.lossless

    output = tmp_path / "out.onnx"
    nz_onnx.convert(model, output)
    with pytest.raises(nz_onnx.NzError, match="exist") as caught:
        nz_onnx.convert(model, output)
    assert not caught.value.message.startswith("error")
    assert nz_onnx.convert(model, output, force=True).output.path == str(output)


def test_models_of_a_base(model, tmp_path):
    base = model.with_name("base.onnx")
    shutil.copy(model, base)
    nz_onnx.convert(base, lossless=True)
    shared = nz_onnx.convert(model, base=base.with_name("base.nz.onnx"))
    assert isinstance(shared, nz_onnx.ConvertResult) and shared.totals.lossless
    assert {tensor.encoding for tensor in shared.tensors} == {"base"}
    archive = nz_onnx.convert(model, base=base, dry_run=True)
    assert isinstance(archive, nz_onnx.DeltaResult) and archive.output is None
    assert plain(archive) == document("convert", model, "--base", base, "--dry-run")
    written = nz_onnx.convert(model, tmp_path / "model.nzd", base=base)
    assert written.output == str(tmp_path / "model.nzd") and written.base.path == str(base)
    assert written.bytes_after == (tmp_path / "model.nzd").stat().st_size < written.bytes_before / 10
    nz_onnx.restore(written.output, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == model.read_bytes()
    with pytest.raises(nz_onnx.UsageError, match="--base"):
        nz_onnx.convert(model, base=base, ratio=0.5)


def test_what_is_in_a_delta_file(model, tmp_path):
    base = tmp_path / "base.onnx"
    shutil.copy(model, base)
    archive = tmp_path / "model.nzd"
    nz_onnx.convert(model, archive, base=base)
    found = nz_onnx.inspect_delta(archive)
    assert plain(found) == document("inspect", archive)
    assert {part.encoding for part in found.parts if part.weight} == {"base"}
    checked = nz_onnx.verify_delta(archive)
    assert plain(checked) == document("verify", archive) and checked.ok
    assert nz_onnx.verify_delta(archive, base=base).base == str(base)

    with pytest.raises(nz_onnx.UsageError, match=r"inspect_delta\(\)"):
        nz_onnx.inspect(archive)
    with pytest.raises(nz_onnx.UsageError, match=r"verify_delta\(\)"):
        nz_onnx.verify(archive)
    with pytest.raises(nz_onnx.UsageError, match="no delta file"):
        nz_onnx.inspect_delta(model)

    archive.write_bytes(archive.read_bytes()[:-1] + b"\0")
    with pytest.raises(nz_onnx.CorruptError):
        nz_onnx.verify_delta(archive)


def test_plan_says_who_reads_a_weight(model):
    plan = nz_onnx.plan(model, ratio=0.8, exclude="W1")
    first, second = plan.tensors
    assert [(consumer.node, consumer.op) for consumer in first.consumers] == [("first", "MatMul")]
    assert first.consumers[0].becomes == "nz.DecodeMatMul" and second.consumers[0].becomes is None
    assert second.decision == "kept" and second.reason


def test_targets_and_the_curve(model):
    plan = nz_onnx.plan(model, size="200KB", transform="grid")
    assert plan.totals.bytes_after <= 200_000 and plan.totals.bits_per_weight < 12.3
    sizes = [point.bytes_after for point in plan.curve]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 20
    assert plan.curve[0].output_snr_db is None and plan.curve[-1].output_snr_db < 20
    assert nz_onnx.convert(model, dry_run=True, bits=6, transform="auto").totals.bits_per_weight <= 6
    assert nz_onnx.convert(model, dry_run=True, max_error=0.01).totals.max_relative_error <= 0.01
    assert nz_onnx.convert(model, dry_run=True, snr=40).totals.least_snr_db >= 40


@needs_libonnxruntime
def test_calibrated_plans_say_what_weights_matter(model, tmp_path):
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(3).normal(size=(4, 256)).astype(np.float32))
    plan = nz_onnx.plan(model, bits=6, calibrate=tmp_path / "inputs.npz", calibration=tmp_path / "kept.json")
    assert all(0 < tensor.sensitivity < 10 for tensor in plan.tensors)
    again = nz_onnx.plan(model, bits=6, calibrate=tmp_path / "inputs.npz", calibration=tmp_path / "kept.json")
    assert (tmp_path / "kept.json").exists() and again.tensors == plan.tensors
    assert nz_onnx.plan(model, bits=6).tensors[0].sensitivity is None


def test_inspect_tells_files_apart(made):
    original, converted = made
    assert nz_onnx.inspect(original).kind == "plain"
    inspected = nz_onnx.inspect(converted)
    assert inspected.kind == "converted" and "nz.format" in inspected.metadata
    assert [blob.weights for blob in inspected.blobs] == [("W0",), ("W1",)]
    for blob in inspected.blobs:
        assert blob.lossless and blob.checksum_ok and blob.bytes < blob.weight_bytes


def test_verify(made):
    original, converted = made
    result = nz_onnx.verify(converted, original)
    assert result.ok and result.run is None
    assert [blob.matches_original for blob in result.blobs] == [True, True]


@needs_libonnxruntime
def test_verify_runs_both_models_in_this_onnxruntime(made):
    original, converted = made
    result = nz_onnx.verify(converted, original, run=True, shapes={"x": (3, 256)}, seed=5, tolerance=1e-4)
    assert result.run.outputs[0].shape == (3, 256) and result.run.outputs[0].within_tolerance
    assert result.run.tolerance == 1e-4 and result.run.custom_nodes >= 2
    assert result.run.library == nz_onnx.get_library_path()
    assert Path(onnxruntime.__file__).parent in Path(result.run.ort_lib).parents


@needs_libonnxruntime
def test_outputs_outside_the_tolerance(model):
    converted = nz_onnx.convert(model, mantissa_bits=3).output.path
    with pytest.raises(nz_onnx.CorruptError, match="output y: outside the tolerance") as caught:
        nz_onnx.verify(converted, model, run=True, tolerance=0)
    assert not caught.value.result.ok and not caught.value.result.run.outputs[0].within_tolerance


@needs_libonnxruntime
def test_convert_optimizes_with_this_onnxruntime(model):
    result = nz_onnx.convert(model, optimize="portable")
    assert result.optimized.level == "portable" and result.optimized.ort_version == onnxruntime.__version__


def test_damage_is_told_with_what_was_found(made, tmp_path):
    _, converted = made
    damaged = tmp_path / converted.name
    shutil.copy(converted, damaged)
    data = bytearray(converted.with_name(converted.name + ".data").read_bytes())
    data[len(data) // 4] ^= 1
    damaged.with_name(damaged.name + ".data").write_bytes(data)
    for check in (nz_onnx.verify, nz_onnx.inspect):
        with pytest.raises(nz_onnx.CorruptError) as caught:
            check(damaged)
        error = caught.value
        assert error.exit_code == 4 and "checksum" in error.message and "W0" in error.message
        assert [blob.checksum_ok for blob in error.result.blobs] == [False, True]


@pytest.mark.parametrize(
    "kind, code, options",
    [
        (nz_onnx.UsageError, 2, {"lossless": True, "ratio": 0.5}),
        (nz_onnx.UsageError, 2, {"ratio": 7}),
        (nz_onnx.UsageError, 2, {"ort_lib": "libonnxruntime.so"}),
        (nz_onnx.UsageError, 2, {"profile": "best"}),
        (nz_onnx.RatioError, 3, {"ratio": 0.01}),
        (nz_onnx.RatioError, 3, {"size": "1KiB"}),
        (nz_onnx.UsageError, 2, {"size": "1KiB", "snr": 30}),
    ],
)
def test_errors_by_exit_code(model, kind, code, options):
    with pytest.raises(kind) as caught:
        nz_onnx.convert(model, **options)
    assert caught.value.exit_code == code and isinstance(caught.value, nz_onnx.NzError)
    assert "--help" not in caught.value.message and not caught.value.message.startswith("error")
    assert not list(model.parent.glob("*.nz.onnx*"))


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(nz_onnx.NzError, match="absent.onnx") as caught:
        nz_onnx.convert(tmp_path / "absent.onnx")
    assert type(caught.value) is nz_onnx.NzError and caught.value.exit_code == 1
    text = tmp_path / "text.onnx"
    text.write_text("this is no model")
    with pytest.raises(nz_onnx.CorruptError, match="text.onnx") as caught:
        nz_onnx.inspect(str(text))
    assert caught.value.exit_code == 4 and caught.value.result is None


@pytest.mark.parametrize("name", ["two words.onnx", "-dash.onnx", "--json.onnx", "Gewichte-größer-重み.onnx"])
def test_any_file_name(model, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    model.rename(name)
    output = f"-{name}.nz.onnx"
    assert nz_onnx.convert(name, output).output.path == output
    assert nz_onnx.verify(output, name).ok
