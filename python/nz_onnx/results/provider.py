"""What the execution provider tells of a session."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SessionStats:
    """What the execution provider did for one session."""

    schema: str
    """Name and version of the document."""
    provider: str
    """The provider's name."""
    version: str
    """Version of the library."""
    process: int
    """The process that the session was made in."""
    weights: int
    """Weights that the provider compressed."""
    bytes_before: int
    """Their bytes before."""
    bytes_after: int
    """Their bytes after."""
    seconds: float
    """Seconds that compressing them took."""
