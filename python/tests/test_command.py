"""How the package runs its command, and what it makes of answers that the command does not give."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import nz_onnx
import pytest
from nz_onnx import command, results


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A shell script in the place of the command."""

    def place(text):
        path = tmp_path / "stand-in"
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        monkeypatch.setattr(command, "find_command", lambda: str(path))
        return tmp_path

    return place


def test_python_dash_m_is_the_command(tmp_path):
    def run(*program):
        return subprocess.run([*program, "env", "--json"], cwd=tmp_path, capture_output=True, text=True)

    as_module, as_program = run(sys.executable, "-m", "nz_onnx"), run(command.find_command())
    assert as_module.returncode == as_program.returncode == 0
    assert json.loads(as_module.stdout) == json.loads(as_program.stdout)
    assert json.loads(as_program.stdout)["version"] == nz_onnx.__version__
    assert json.loads(as_program.stdout)["library"] == nz_onnx.get_library_path()

    wrong = subprocess.run([sys.executable, "-m", "nz_onnx", "melt"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "melt" in wrong.stderr


def test_names():
    assert nz_onnx.get_ep_name() == "NzExecutionProvider"
    assert nz_onnx.get_ep_names() == ["NzExecutionProvider"]
    assert os.path.isabs(nz_onnx.get_library_path()) and os.path.isfile(nz_onnx.get_library_path())
    assert all(getattr(nz_onnx, name).__doc__ for name in nz_onnx.__all__)


def test_a_command_ended_by_a_signal(stand_in):
    stand_in("kill -9 $$")
    with pytest.raises(nz_onnx.NzError, match="signal 9") as caught:
        nz_onnx.inspect("model.onnx")
    assert caught.value.exit_code == -9


def test_an_interrupt_lets_the_command_tidy_up(stand_in):
    # The interrupt reaches this process alone, as in a notebook.
    folder = stand_in('trap \'touch "$(dirname "$0")/tidied"; exit 1\' TERM; touch "$0.started"\n'
                      "while :; do sleep 0.05; done")

    def interrupt():
        deadline = time.monotonic() + 30
        while not (folder / "stand-in.started").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        nz_onnx.inspect("model.onnx")
    thread.join()
    assert (folder / "tidied").exists()


@pytest.mark.parametrize("answer", ["", "[1", "[]", "{}", '{"schema": 1}'])
def test_an_answer_that_is_none(stand_in, answer):
    stand_in(f"echo '{answer}'" if answer else "exit 0")
    with pytest.raises(nz_onnx.NzError, match="nz-onnx inspect printed"):
        nz_onnx.inspect("model.onnx")


def test_the_environment_goes_before_what_the_package_finds(stand_in, monkeypatch):
    folder = stand_in('echo "$NZ_LIBRARY,$ORT_DYLIB_PATH" >"$0.env"; exit 1')

    def seen():
        with pytest.raises(nz_onnx.NzError, match="exit code 1"):
            nz_onnx.inspect("model.onnx")
        return (folder / "stand-in.env").read_text().strip().split(",")

    monkeypatch.delenv("NZ_LIBRARY", raising=False)
    monkeypatch.delenv("ORT_DYLIB_PATH", raising=False)
    assert seen()[0] == nz_onnx.get_library_path()
    monkeypatch.setenv("NZ_LIBRARY", "mine.so")
    monkeypatch.setenv("ORT_DYLIB_PATH", "ort.so")
    assert seen() == ["mine.so", "ort.so"]


BLOB = {
    "name": "W.nz",
    "checksum_ok": True,
    "matches_original": None,
    "lossless": False,
    "max_relative_error": 0,
    "snr_db": None,
    "compensated": False,
    "problem": None,
}


def test_later_commands_may_say_more():
    check = results.from_document(results.BlobCheck, {**BLOB, "colour": "blue"})
    assert check == results.BlobCheck("W.nz", True, None, False, 0.0, None, False, None)
    assert isinstance(check.max_relative_error, float)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"checksum_ok": 1}, r"BlobCheck\.checksum_ok: expected bool, found 1"),
        ({"name": None}, r"BlobCheck\.name: expected str, found None"),
        ({"max_relative_error": True}, r"BlobCheck\.max_relative_error: expected float, found True"),
    ],
)
def test_fields_of_another_type(change, message):
    with pytest.raises(ValueError, match=message):
        results.from_document(results.BlobCheck, {**BLOB, **change})


def test_a_field_that_is_missing():
    with pytest.raises(ValueError, match=r"Tier: no field 'symbols'"):
        results.from_document(results.Tier, {"width": 3})
    with pytest.raises(ValueError, match=r"Tier\.symbols\[1\]: expected int, found 'a'"):
        results.from_document(results.Tier, {"width": 3, "symbols": [1, "a"]})
