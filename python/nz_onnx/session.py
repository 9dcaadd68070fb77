"""Sessions of ONNX Runtime with the library."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Any, Optional, Union

from .errors import NzError, OrtVersionError
from .library import get_ep_name, get_library_path

if TYPE_CHECKING:
    import onnxruntime

OptionValue = Union[str, int, float, "os.PathLike[str]"]

# The oldest ONNX Runtime with which each works.
_CUSTOM_OPS = (1, 17)
_PROVIDER = (1, 24)

_registering = threading.Lock()


def enable(
    session_options: onnxruntime.SessionOptions,
    *,
    cache_mib: Optional[int] = None,
    bits: Optional[float] = None,
    weights_mib: Optional[float] = None,
    provider: bool = False,
    **provider_options: OptionValue,
) -> None:
    """Makes sessions with these options run compressed weights.

    As it is, for models that :func:`nz_onnx.convert` wrote, on ONNX Runtime 1.17 or later: registers the
    library's custom ops.

    >>> options = onnxruntime.SessionOptions()
    >>> nz_onnx.enable(options, cache_mib=256)
    >>> session = onnxruntime.InferenceSession("model.nz.onnx", options)

    With ``provider=True``, for any model, on ONNX Runtime 1.24 or later: registers the library's execution
    provider with this process, unless it is, and adds it to the options. Python falls back to other
    providers silently when one fails; ``enable_fallback=0`` makes that an error.

    >>> options = onnxruntime.SessionOptions()
    >>> nz_onnx.enable(options, provider=True, ratio=0.5)
    >>> session = onnxruntime.InferenceSession("model.onnx", options, enable_fallback=0)

    Args:
        session_options: What the session will be made with. Call this once for each.
        cache_mib: MiB of decoded weights that may be kept, the most used first. Default: the environment
            variable NZ_CACHE_MIB, else none.
        bits: Of weights in layers, read no more than so many bits of the file each. Default: the environment
            variable NZ_BITS, else all.
        weights_mib: Read as many layers as keep all compressed weights within so many MiB; instead of
            ``bits``. Default: the environment variable NZ_WEIGHTS_MIB, else all.
        provider: Use the execution provider rather than the custom ops.
        provider_options: Options of the execution provider, such as ``ratio=0.5``; True and False become 1
            and 0. It says itself what is wrong with one, when the session is made.

    Raises:
        OrtVersionError: onnxruntime is not installed, or too old.
        NzError: the library is missing, or ONNX Runtime sees no device for the provider.
        TypeError: provider options without ``provider=True``, or bits or weights_mib with it.
    """
    if provider_options and not provider:
        names = ", ".join(sorted(provider_options))
        raise TypeError(f"{names}: of use with provider=True only")
    if bits is not None and provider:
        raise TypeError("bits: of use without provider=True only; with it, NZ_BITS is for converted models")
    if weights_mib is not None and provider:
        raise TypeError(
            "weights_mib: of use without provider=True only; with it, NZ_WEIGHTS_MIB is for converted models"
        )
    ort = _onnxruntime(*((_PROVIDER, "the execution provider") if provider else (_CUSTOM_OPS, "custom ops")))
    if not provider:
        if cache_mib is not None:
            # The library reads it while it is registered.
            session_options.add_session_config_entry("nz.cache_mib", _text(cache_mib))
        if bits is not None:
            session_options.add_session_config_entry("nz.bits", _text(bits))
        if weights_mib is not None:
            session_options.add_session_config_entry("nz.weights_mib", _text(weights_mib))
        session_options.register_custom_ops_library(get_library_path())
        return
    if cache_mib is not None:
        provider_options["cache_mib"] = cache_mib
    options = {name: _text(value) for name, value in provider_options.items()}
    session_options.add_provider_for_devices(_devices(ort), options)


def _devices(ort: Any) -> list[Any]:
    """The provider's devices; registers the library where this process has not done so."""
    name = get_ep_name()

    def found() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == name]

    # ONNX Runtime itself knows best: others may have registered the library, or unregistered it again.
    with _registering:
        devices = found()
        if not devices:
            ort.register_execution_provider_library(name, get_library_path())
            devices = found()
    if not devices:
        raise NzError(
            f"ONNX Runtime {ort.__version__} loaded {get_library_path()}, but sees no device for {name}: "
            "set its log level to 0 to see why"
        )
    return devices


def _onnxruntime(needed: tuple[int, int], purpose: str) -> Any:
    """The module, unless it is too old."""
    wanted = f"{purpose} of nz-onnx: needs onnxruntime {needed[0]}.{needed[1]} or later"
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise OrtVersionError(f"{wanted}, found none ({error}): pip install -U onnxruntime") from error
    match = re.match(r"(\d+)\.(\d+)", ort.__version__)
    if match is None or (int(match[1]), int(match[2])) < needed:
        raise OrtVersionError(f"{wanted}, found {ort.__version__}: pip install -U onnxruntime")
    return ort


def _text(value: OptionValue) -> str:
    """An option's value as ONNX Runtime takes it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
