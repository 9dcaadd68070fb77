"""Whatever goes wrong while converting: one clear message, the right exit code, and nothing under the
name of the output."""

import os
import resource
import signal
import subprocess
import time

import generate
import nzlib
import onnx
import pytest
from nzlib import CORRUPT, IO, MIB, UNREACHABLE, USAGE, convert, data_file, nz
from onnxio import blob_places


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model with external data, a few MiB."""
    return generate.matmul_chain(tmp_path_factory.mktemp("small") / "small.onnx", 2, 512)


@pytest.fixture(scope="module")
def inline(small):
    """The same model with its weights in the file."""
    path = small.with_name("inline.onnx")
    onnx.save(onnx.load(str(small)), str(path))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model that takes a while to convert."""
    with generate.big_model(tmp_path_factory.mktemp("large") / "large.onnx", 8, 128) as model:
        yield model


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def check_refused(outcome, code, folder, *words, left=()):
    """The outcome of a command that was refused: exit code, one line of message with these words in it and
    perhaps one of help, and no more in the output folder than was there before."""
    assert outcome.code == code, outcome
    message, *rest = outcome.stderr.splitlines()
    assert message.startswith("error: ") and len(rest) <= 1, outcome
    assert all(line.startswith("help: ") for line in rest), outcome
    for word in words:
        assert str(word) in message, outcome
    assert outcome.stdout == "", outcome
    assert files(folder) == sorted(left)


@pytest.fixture
def out(tmp_path):
    """The path of an output, in an empty folder."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "model.nz.onnx"


def test_no_such_file(out):
    outcome = nz("convert", out.parent / "absent.onnx", "-o", out)
    check_refused(outcome, IO, out.parent, "absent.onnx", "No such file")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100, b"%PDF-1.7\n" * 50, bytes(range(256))])
def test_not_onnx(content, out, tmp_path):
    model = tmp_path / "other.onnx"
    model.write_bytes(content)
    check_refused(nz("convert", model, "-o", out), CORRUPT, out.parent, "other.onnx")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.9999])
def test_truncated_model(share, inline, out, tmp_path):
    whole = inline.read_bytes()
    model = tmp_path / "cut.onnx"
    model.write_bytes(whole[: int(len(whole) * share)])
    check_refused(nz("convert", model, "-o", out), CORRUPT, out.parent, "cut.onnx")


@pytest.mark.parametrize("dropped", [1, 2, 5, 17, 40])
def test_model_that_lacks_its_last_bytes(dropped, inline, out, tmp_path):
    # The end of the file is not weights but the graph's inputs and outputs and the opsets.
    model = tmp_path / "cut.onnx"
    model.write_bytes(inline.read_bytes()[:-dropped])
    check_refused(nz("convert", model, "-o", out), CORRUPT, out.parent, "cut.onnx")


def test_external_data_missing(small, out, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(small.read_bytes())
    check_refused(nz("convert", model, "-o", out), IO, out.parent, "small.onnx.data", "W0")


def test_external_data_short(small, out, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(small.read_bytes())
    data = data_file(small).read_bytes()
    (tmp_path / "small.onnx.data").write_bytes(data[:-1000])
    check_refused(nz("convert", model, "-o", out), CORRUPT, out.parent, "small.onnx.data", "W1")


@pytest.mark.parametrize("location", ["../small.onnx.data", "/etc/hostname", "a/../../small.onnx.data", ""])
def test_external_data_outside_the_folder(location, small, out, tmp_path):
    model = onnx.load(str(small), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "small.onnx.data").write_bytes(data_file(small).read_bytes())
    check_refused(nz("convert", path, "-o", out), CORRUPT, out.parent, "W0", "model's folder")


def test_external_data_behind_a_link_out_of_the_folder(small, out, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(small.read_bytes())
    (tmp_path / "small.onnx.data").symlink_to(data_file(small))
    check_refused(nz("convert", path, "-o", out), CORRUPT, out.parent, "W0", "model's folder")


@pytest.mark.parametrize("taken", ["model.nz.onnx", "model.nz.onnx.data"])
def test_output_exists(taken, small, out):
    (out.parent / taken).write_text("mine")
    check_refused(nz("convert", small, "-o", out), USAGE, out.parent, taken, "--force", left=[taken])
    assert (out.parent / taken).read_text() == "mine"
    convert(small, out, "--force")
    assert files(out.parent) == ["model.nz.onnx", "model.nz.onnx.data"]


def test_output_is_the_input(small):
    before = small.read_bytes(), data_file(small).read_bytes()
    outcome = nz("convert", small, "-o", small, "--force")
    assert outcome.code == USAGE, outcome
    assert (small.read_bytes(), data_file(small).read_bytes()) == before


def test_output_folder_missing(small, out):
    check_refused(nz("convert", small, "-o", out.parent / "no/model.nz.onnx"), IO, out.parent, "no/model.nz.onnx")


def test_ratio_out_of_reach(small, out):
    outcome = nz("convert", small, "-o", out, "--ratio", "0.01")
    check_refused(outcome, UNREACHABLE, out.parent, "0.01")


def test_size_out_of_reach(small, out):
    check_refused(nz("convert", small, "-o", out, "--size", "1"), UNREACHABLE, out.parent, "a size of 1 byte cannot")


@pytest.mark.parametrize("command", ["inspect", "plan", "verify", "restore"])
def test_a_folder_is_no_model(command, tmp_path):
    outcome = nz(command, tmp_path)
    assert outcome.code == USAGE and f"{tmp_path}: not a regular file" in outcome.stderr, outcome


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["convert"],
        ["convert", "m.onnx", "--ratio", "2"],
        ["convert", "m.onnx", "--ratio", "half"],
        ["convert", "m.onnx", "--mantissa-bits", "24"],
        ["convert", "m.onnx", "--lossless", "--ratio", "0.5"],
        ["convert", "m.onnx", "--threads", "0"],
        ["convert", "m.onnx", "--no-such-option"],
        ["shrink", "m.onnx"],
    ],
    ids=" ".join,
)
def test_wrong_arguments(arguments, tmp_path):
    outcome = nz(*arguments, cwd=tmp_path)
    assert outcome.code == USAGE, outcome
    assert outcome.stdout == "" and outcome.stderr.strip(), outcome
    assert files(tmp_path) == []


def test_full_disk_while_optimising(inline, out):
    """ONNX Runtime, which writes the optimised model, says only that it could not."""
    folder = out.parent
    script = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder)]
    try:
        allowed = subprocess.run([*mount, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no private mount is allowed here")
    command = [*mount, str(nzlib.TOOL), "convert", str(inline), "-o", str(out), "--optimize", "portable"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == IO, done
    for word in (str(out), "cannot write the optimised model", "No space left", "--output"):
        assert word in done.stderr, done


def test_full_disk(small, out):
    """On a file system of 1 MiB where a private mount is allowed, else with a limit on the file size."""
    script = 'mount -t tmpfs -o size=1m none "$1" && shift && { "$@"; code=$?; ls -A "$OUT"; exit $code; }'
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(out.parent)]
    try:
        probe = subprocess.run([*mount, "true"], capture_output=True, env={**os.environ, "OUT": str(out.parent)})
        allowed = probe.returncode == 0
    except FileNotFoundError:
        allowed = False
    if allowed:
        command = [*mount, str(nzlib.TOOL), "convert", str(small), "-o", str(out), "--lossless"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OUT": str(out.parent)}, timeout=60
        )
        # stdout is the list of what is left in the folder.
        outcome = nzlib.Outcome(done.returncode, done.stdout, done.stderr)
        check_refused(outcome, IO, out.parent, "model.nz.onnx.data", "no space left")
    else:
        # Without SIGXFSZ the limit shows as a failed write.
        outcome = nz(
            "convert",
            small,
            "-o",
            out,
            "--lossless",
            restore_signals=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB)),
        )
        check_refused(outcome, IO, out.parent, "model.nz.onnx.data")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_ended_in_the_middle(sent, large, out):
    process = subprocess.Popen([str(nzlib.TOOL), "convert", str(large), "-o", str(out), "--threads", "1", "-q"])
    deadline = time.monotonic() + 120
    # In the middle: the temporary data file has some weights, and there are many more to come.
    while sum(path.stat().st_size for path in out.parent.iterdir()) < 16 * MIB:
        assert process.poll() is None, "it ended before anything could be sent to it"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(sent)
    assert process.wait(timeout=30) == -sent
    left = files(out.parent)
    assert "model.nz.onnx" not in left and "model.nz.onnx.data" not in left
    if sent == signal.SIGKILL:
        # Nobody could clean up; the next run does, and is not disturbed.
        assert left
    else:
        assert left == []
    if sent == signal.SIGKILL:
        convert(large, out)
        assert files(out.parent) == ["model.nz.onnx", "model.nz.onnx.data"]


def test_damaged_output_is_found_by_verify(small, out):
    convert(small, out)
    assert nz("verify", out).code == nzlib.OK
    data = bytearray(data_file(out).read_bytes())
    name, offset, length = list(blob_places(out))[1]
    data[offset + length // 2] ^= 1
    data_file(out).write_bytes(data)
    outcome = nz("verify", out)
    assert outcome.code == CORRUPT, outcome
    assert name.removesuffix(".nz") in outcome.stdout and "checksum" in outcome.stdout, outcome
