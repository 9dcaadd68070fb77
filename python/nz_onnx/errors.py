"""What goes wrong, as exceptions."""

from __future__ import annotations

from typing import Optional, Union

from .results import InspectResult, VerifyResult


class NzError(Exception):
    """The base of all errors of this package.

    Raised as it is when the command ended with exit code 1, an input, output or internal error, and where
    its files are missing from the installation.

    >>> try:
    ...     nz_onnx.convert("model.onnx")
    ... except nz_onnx.NzError as error:
    ...     print(error.exit_code, error.message)
    """

    message: str
    """What went wrong, and what to do about it."""
    exit_code: Optional[int]
    """The command's exit code, negative if a signal ended it; None if no command was run."""

    def __init__(self, message: str, exit_code: Optional[int] = None) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class UsageError(NzError):
    """Options that do not go together, a value outside its range, or nothing to work with (exit code 2)."""


class RatioError(NzError):
    """The ratio, size or bits asked for cannot be reached; nothing was written (exit code 3)."""


class CorruptError(NzError):
    """A file is corrupt, or a check failed (exit code 4)."""

    result: Union[VerifyResult, InspectResult, None]
    """What was found up to there, if the command got so far as to say it."""

    def __init__(
        self,
        message: str,
        exit_code: Optional[int] = None,
        result: Union[VerifyResult, InspectResult, None] = None,
    ) -> None:
        super().__init__(message, exit_code)
        self.result = result


class UnsupportedError(NzError):
    """The model uses something that this version does not handle (exit code 5)."""


class OrtVersionError(NzError):
    """The installed ONNX Runtime is missing, or too old for what was asked."""


BY_EXIT_CODE = {2: UsageError, 3: RatioError, 4: CorruptError, 5: UnsupportedError}
