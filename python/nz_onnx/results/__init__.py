"""What the command answers: the documents of its option ``--json``, with the same names and units.

Sizes are in bytes, times in seconds. Fields that a later command may add are ignored.
"""

from .comparison import ClosenessResult, CompareResult, Compared
from .conversion import (
    Candidate,
    Consumer,
    ConvertResult,
    Input,
    Optimized,
    Output,
    PlanResult,
    PlannedTensor,
    Point,
    RestoreResult,
    Tensor,
    Totals,
    Trial,
)
from .delta import (
    DeltaFile,
    DeltaFileCheck,
    DeltaInspectResult,
    DeltaPart,
    DeltaResult,
    DeltaTensor,
    DeltaVerifyResult,
)
from .document import from_document
from .inspection import Blob, InspectResult, PlainWeight, Tier
from .provider import SessionStats
from .verification import BlobCheck, OutputCheck, RunCheck, VerifyResult

__all__ = [
    "Blob",
    "BlobCheck",
    "Candidate",
    "ClosenessResult",
    "CompareResult",
    "Compared",
    "Consumer",
    "ConvertResult",
    "DeltaFile",
    "DeltaFileCheck",
    "DeltaInspectResult",
    "DeltaPart",
    "DeltaResult",
    "DeltaTensor",
    "DeltaVerifyResult",
    "Input",
    "InspectResult",
    "Optimized",
    "Output",
    "OutputCheck",
    "PlainWeight",
    "PlanResult",
    "PlannedTensor",
    "Point",
    "RestoreResult",
    "RunCheck",
    "SessionStats",
    "Tensor",
    "Tier",
    "Totals",
    "Trial",
    "VerifyResult",
    "from_document",
]
