"""The build backend: maturin's, with libnz_onnx beside the module.

maturin packs either a program or a library of a crate. Here it packs the program; the library is built
before, by the very cargo call that maturin makes next, and put where `include` in pyproject.toml finds it.
Features are the same in both, so that cargo compiles nothing twice.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import maturin
from maturin import (  # noqa: F401  (hooks of this backend)
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

# Where there is no Rust maturin would fetch one; now it says that it needs it.
os.environ.setdefault("MATURIN_NO_INSTALL_RUST", "1")

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python/nz_onnx"
# As [tool.maturin] in pyproject.toml has them.
BUILD = ["--manifest-path", "onnx_tools/Cargo.toml", "--release", "--features", "nz-onnx/default"]

Settings = Optional[dict[str, Any]]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: Optional[str] = None
) -> str:
    """A wheel with the program, the module and the library."""
    _place_library(_target(config_settings))
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: Optional[str] = None
) -> str:
    """A wheel with the program, and the module and the library where they are."""
    _place_library(_target(config_settings))
    return maturin.build_editable(wheel_directory, config_settings, metadata_directory)


def _target(config_settings: Settings) -> list[str]:
    """The platform to build for, if maturin is told one."""
    arguments = maturin.get_maturin_pep517_args(config_settings)
    for index, argument in enumerate(arguments):
        if argument == "--target":
            return arguments[index : index + 2]
        if argument.startswith("--target="):
            return [argument]
    return []


def _place_library(target: list[str]) -> None:
    command = ["cargo", "build", "--lib", *BUILD, *target, "--message-format", "json-render-diagnostics"]
    print("Running `{}`".format(" ".join(command)), flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"Error: {command} returned non-zero exit status {done.returncode}")
    built = _library(done.stdout.decode())
    for old in PACKAGE.glob("*nz_onnx.*"):
        if old.suffix in (".so", ".dylib", ".dll"):
            old.unlink()
    # A new file under another name first: a process may have the old one mapped.
    partial = PACKAGE / (built.name + ".partial")
    shutil.copy2(built, partial)
    _strip(partial)
    os.replace(partial, PACKAGE / built.name)


def _library(messages: str) -> Path:
    for line in messages.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "nz_onnx":
            for name in message["filenames"]:
                if Path(name).suffix in (".so", ".dylib", ".dll"):
                    return Path(name)
    sys.exit("Error: cargo built no library")


def _strip(library: Path) -> None:
    """Takes symbols and debug information out, seven eighths of the file, if the tool for it is there."""
    strip = shutil.which("strip")
    if sys.platform == "linux" and strip is not None:
        subprocess.run([strip, "--strip-unneeded", str(library)], check=False)
