"""The command ``nz-onnx``: where it is, and how the functions of this package run it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Optional, TypeVar
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .errors import BY_EXIT_CODE, CorruptError, NzError
from .library import find_library
from .results import DeltaInspectResult, DeltaVerifyResult, InspectResult, VerifyResult, from_document

Result = TypeVar("Result")

PROGRAM = "nz-onnx.exe" if os.name == "nt" else "nz-onnx"
PACKAGE = Path(__file__).resolve().parent

# Seconds that an interrupted command has to end.
_PATIENCE = 10


def find_command() -> str:
    """The path of the command that was installed with this package.

    Raises:
        NzError: it is not there.
    """
    places = list(_places())
    for place in places:
        if os.access(place / PROGRAM, os.X_OK):
            return str(place / PROGRAM)
    sought = ", ".join(map(str, places))
    raise NzError(
        f"the command {PROGRAM} is not where this package was installed (sought in {sought}); "
        "install nz-onnx again with pip"
    )


def _places() -> Iterator[Path]:
    folder = PACKAGE.parent
    # `pip install --target` puts it here.
    yield folder / "bin"
    # From PREFIX/lib/python3.11/site-packages to PREFIX/bin: virtual environments, --user and --prefix.
    if len(folder.parents) > 2:
        yield folder.parents[2] / "bin"
    # Editable installs, and systems that keep their programs elsewhere.
    yield Path(sysconfig.get_path("scripts"))


def run(
    kind: type[Result],
    subcommand: str,
    options: Iterable[str],
    paths: Sequence[str],
    others: Optional[Mapping[str, type[Any]]] = None,
) -> Result:
    """Runs a subcommand and returns its document: of this kind, or of that which its schema has in ``others``.

    Raises:
        NzError: it failed; the class tells exit codes apart.
    """
    arguments = [find_command(), subcommand, "--json", "--quiet", "--color=never", *options, "--", *paths]
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            stdout, stderr = process.communicate()
        except BaseException:
            # On an interrupt it is to remove its temporary files, which a kill would not let it do.
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode not in (0, 4):
        raise _error(process.returncode, stderr)
    try:
        document = json.loads(stdout) if stdout else None
        if others and isinstance(document, dict):
            kind = others.get(document.get("schema", ""), kind)
        result = None if document is None else from_document(kind, document)
    except ValueError as error:
        message = f"nz-onnx {subcommand} printed something unexpected: {error}"
        raise NzError(message, process.returncode) from error
    if process.returncode == 4:
        raise CorruptError(_failed_checks(result) or _message(stderr), 4, result)  # type: ignore[arg-type]
    if result is None:
        raise NzError(f"nz-onnx {subcommand} printed nothing", 0)
    return result


def _error(code: int, stderr: str) -> NzError:
    if code < 0:
        return NzError(f"nz-onnx was ended by signal {-code}\n{_message(stderr)}".rstrip(), code)
    return BY_EXIT_CODE.get(code, NzError)(_message(stderr) or f"nz-onnx: exit code {code}", code)


def _message(stderr: str) -> str:
    """What the command said, without what is of use at a prompt only."""
    text = stderr.split("\n\nFor more information, try '--help'")[0].strip()
    return text[len("error: ") :] if text.startswith("error: ") else text


def _failed_checks(result: object) -> str:
    """The checks of a verify or inspect that failed, one a line."""
    lines: list[str] = []
    if isinstance(result, InspectResult):
        lines += [f"{blob.name}: payload checksum differs" for blob in result.blobs if not blob.checksum_ok]
    if isinstance(result, DeltaInspectResult):
        wrong = [part.weight for part in result.parts if part.checksum_ok is False]
        lines += [f"{weight}: checksum differs" for weight in wrong]
    if isinstance(result, DeltaVerifyResult):
        lines += [f"{file.name}: {file.problem}" for file in result.files if file.problem is not None]
    if isinstance(result, VerifyResult):
        lines += result.problems
        lines += [f"{blob.name}: {blob.problem}" for blob in result.blobs if blob.problem is not None]
        for output in result.run.outputs if result.run is not None else ():
            if output.problem is not None:
                lines.append(f"output {output.name}: {output.problem}")
            elif output.within_tolerance is False:
                lines.append(f"output {output.name}: outside the tolerance")
    return "\n".join(lines)


def _environment() -> dict[str, str]:
    """The command shall use the library of this package and the ONNX Runtime of this interpreter, unless
    the user's environment names others."""
    environment = dict(os.environ)
    library, onnxruntime = find_library(), _find_onnxruntime()
    if library is not None and not environment.get("NZ_LIBRARY"):
        environment["NZ_LIBRARY"] = str(library)
    if onnxruntime is not None and not environment.get("ORT_DYLIB_PATH"):
        environment["ORT_DYLIB_PATH"] = str(onnxruntime)
    return environment


def _find_onnxruntime() -> Optional[Path]:
    """libonnxruntime of the Python package, without importing that."""
    try:
        spec = importlib.util.find_spec("onnxruntime")
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for pattern in ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll"):
            for path in sorted(Path(folder, "capi").glob(pattern), reverse=True):
                return path
    return None


def main() -> int:
    """Becomes the command, with this process's arguments."""
    try:
        program = find_command()
    except NzError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments = [program, *sys.argv[1:]]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        return subprocess.call(arguments)
    os.execv(program, arguments)
