"""ONNX models that run in ONNX Runtime with half their weight memory.

>>> import nz_onnx, onnxruntime
>>> nz_onnx.convert("model.onnx")  # -> model.nz.onnx and model.nz.onnx.data
>>> options = onnxruntime.SessionOptions()
>>> nz_onnx.enable(options)
>>> session = onnxruntime.InferenceSession("model.nz.onnx", options)

The package brings the command ``nz-onnx``, which the functions here run, and the library libnz_onnx, which
ONNX Runtime loads. It neither contains nor requires ONNX Runtime itself.
"""

from importlib.metadata import version as _version

from . import results
from .compare import compare
from .errors import CorruptError, NzError, OrtVersionError, RatioError, UnsupportedError, UsageError
from .library import get_ep_name, get_ep_names, get_library_path
from .models import convert, inspect, inspect_delta, plan, restore, verify, verify_delta
from .results import (
    CompareResult,
    ConvertResult,
    DeltaInspectResult,
    DeltaResult,
    DeltaVerifyResult,
    InspectResult,
    PlanResult,
    RestoreResult,
    SessionStats,
    VerifyResult,
)
from .session import enable
from .stats import read_stats

__version__ = _version("nz-onnx")

__all__ = [
    "CompareResult",
    "ConvertResult",
    "CorruptError",
    "DeltaInspectResult",
    "DeltaResult",
    "DeltaVerifyResult",
    "InspectResult",
    "NzError",
    "OrtVersionError",
    "PlanResult",
    "RatioError",
    "RestoreResult",
    "SessionStats",
    "UnsupportedError",
    "UsageError",
    "VerifyResult",
    "compare",
    "convert",
    "enable",
    "get_ep_name",
    "get_ep_names",
    "get_library_path",
    "inspect",
    "inspect_delta",
    "plan",
    "read_stats",
    "restore",
    "results",
    "verify",
    "verify_delta",
]
