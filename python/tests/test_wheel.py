"""The wheel, in an environment that holds nothing else."""

import json
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest

# convert, inspect and verify where there is no ONNX Runtime; prints what the test below looks at.
SCRIPT = """
import json, sys
import nz_onnx
original = sys.argv[1]
result = nz_onnx.convert(original, "api.nz.onnx", lossless=True)
found = nz_onnx.inspect(result.output.path)
checked = nz_onnx.verify(result.output.path, original)
try:
    nz_onnx.enable(None)
    said = None
except nz_onnx.OrtVersionError as error:
    said = error.message
print(json.dumps({
    "lossless": result.totals.lossless, "blobs": len(found.blobs), "ok": checked.ok, "said": said,
    "library": nz_onnx.get_library_path(), "version": nz_onnx.__version__,
}))
"""


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """An environment with the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("clean") / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # Without an index it could not fetch a dependency, if there was one.
    subprocess.run([*pip, "--no-index", str(wheel)], check=True)
    return folder


def call(*arguments, cwd):
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    done = subprocess.run(list(map(str, arguments)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout


def test_what_is_in_it(wheel):
    # Any Python 3, this platform.
    name, version, tag = wheel.name.split("-", 2)
    assert name == "nz_onnx" and tag.startswith("py3-none-linux_")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read(f"{name}-{version}.dist-info/METADATA").decode())
        modes = {entry.filename: entry.external_attr >> 16 & 0o777 for entry in archive.infolist()}
    modules = "__init__ __main__ alternatives command compare errors library models session stats".split()
    results = "__init__ comparison conversion delta document inspection provider verification".split()
    assert names == {
        *(f"nz_onnx/{module}.py" for module in modules),
        *(f"nz_onnx/results/{module}.py" for module in results),
        "nz_onnx/py.typed",
        "nz_onnx/libnz_onnx.so",
        f"nz_onnx-{version}.data/scripts/nz-onnx",
        *(f"nz_onnx-{version}.dist-info/{file}" for file in ("METADATA", "WHEEL", "RECORD")),
        *(
            f"nz_onnx-{version}.dist-info/licenses/{file}"
            for file in ("LICENSE-APACHE", "LICENSE-MIT", "THIRD_PARTY_LICENSES")
        ),
    }
    assert modes[f"nz_onnx-{version}.data/scripts/nz-onnx"] & 0o111 == 0o111
    assert metadata["Requires-Python"] == ">=3.9" and metadata["License-Expression"] == "Apache-2.0 OR MIT"
    assert metadata.get_all("Requires-Dist") is None
    assert "# nz-onnx" in metadata.get_payload()


def test_the_command_from_another_folder(clean, made, tmp_path):
    original, _ = made
    program = clean / "bin/nz-onnx"
    # Rust, not a script of Python's.
    assert program.read_bytes()[:4] == b"\x7fELF"
    environment = json.loads(call(program, "env", "--json", cwd=tmp_path))
    packages = next(clean.glob("lib/python3*/site-packages"))
    assert environment["library"] == str((packages / "nz_onnx/libnz_onnx.so").resolve())

    output = tmp_path / "model.nz.onnx"
    call(program, "convert", original, "-o", output, cwd=tmp_path)
    assert "2 compressed weights" in call(program, "inspect", output, cwd=tmp_path)
    assert "All checks passed" in call(program, "verify", output, "--original", original, cwd=tmp_path)
    again = call(clean / "bin/python", "-m", "nz_onnx", "inspect", output, cwd=tmp_path)
    assert again == call(program, "inspect", output, cwd=tmp_path)


def test_the_module_without_onnxruntime(clean, made, tmp_path):
    original, _ = made
    answer = json.loads(call(clean / "bin/python", "-c", SCRIPT, original, cwd=tmp_path))
    assert answer["lossless"] and answer["ok"] and answer["blobs"] == 2
    assert "needs onnxruntime 1.17 or later, found none" in answer["said"]
    assert answer["library"].startswith(str(clean.resolve()))
    assert call(clean / "bin/nz-onnx", "--version", cwd=tmp_path).split()[1] == answer["version"]
