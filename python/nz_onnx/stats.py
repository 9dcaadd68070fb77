"""What the execution provider wrote down about its sessions."""

from __future__ import annotations

import json
import os
from typing import Union

from .errors import NzError
from .results import SessionStats, from_document


def read_stats(path: Union[str, os.PathLike[str]]) -> tuple[SessionStats, ...]:
    """The sessions in a file that the execution provider wrote, in the order in which they were made.

    It appends to the file that the environment variable NZ_STATS names when a session is made.

    >>> os.environ["NZ_STATS"] = "stats.jsonl"
    >>> options = onnxruntime.SessionOptions()
    >>> nz_onnx.enable(options, provider=True)
    >>> session = onnxruntime.InferenceSession("model.onnx", options, enable_fallback=0)
    >>> nz_onnx.read_stats("stats.jsonl")[-1].bytes_after

    Raises:
        OSError: the file cannot be read.
        NzError: a line of it is something else.
    """
    sessions = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                sessions.append(from_document(SessionStats, json.loads(line)))
            except ValueError as error:
                place = f"{os.fspath(path)}, line {number}"
                raise NzError(f"{place}: no statistics of a session: {error}") from error
    return tuple(sessions)
