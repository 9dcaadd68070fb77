"""Where the library is, and the names that ONNX Runtime knows its execution provider by."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional

from .errors import NzError

_FILES = {"win32": "nz_onnx.dll", "darwin": "libnz_onnx.dylib"}
_FILE = _FILES.get(sys.platform, "libnz_onnx.so")


def get_library_path() -> str:
    """The absolute path of libnz_onnx, for ``SessionOptions.register_custom_ops_library`` and
    ``onnxruntime.register_execution_provider_library``.

    >>> options = onnxruntime.SessionOptions()
    >>> options.register_custom_ops_library(nz_onnx.get_library_path())

    Raises:
        NzError: it is not beside this module.
    """
    path = find_library()
    if path is None:
        folder = Path(__file__).resolve().parent
        raise NzError(f"{_FILE} is not in {folder}: install nz-onnx again with pip")
    return str(path)


def find_library() -> Optional[Path]:
    """The library, if it is there."""
    path = Path(__file__).resolve().parent / _FILE
    return path if path.is_file() else None


def get_ep_name() -> str:
    """The name of the execution provider in the library."""
    return "NzExecutionProvider"


def get_ep_names() -> list[str]:
    """The names of all execution providers in the library: one."""
    return [get_ep_name()]
