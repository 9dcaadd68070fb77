"""The real models that the tests use when their folder is there, and what is known about them."""

from dataclasses import dataclass

import nzlib
import pytest


@dataclass(frozen=True)
class RealModel:
    """`half`: computes in float16. `kept`: why no weight of it is compressed, if so, in the report's words."""

    name: str
    half: bool = False
    kept: str = ""

    @property
    def path(self):
        return nzlib.MODELS / f"{self.name}.onnx"

    def inputs(self):
        """The inputs kept beside the model, or seeded ones."""
        return nzlib.known_inputs(self.path)

    def __str__(self):
        return self.name


ALL = [
    RealModel("minilm_l6_v8k_fp16", half=True),
    RealModel("stories260k"),
    RealModel("silero_vad"),
    RealModel("dtln_1"),
    RealModel("dtln_2_extdata"),
    RealModel("magika_v3_3"),
    RealModel("squeezenet_fp16", half=True),
    RealModel("squeezenet_fp32_from_fp16"),
    RealModel("ppocrv3_det_en"),
    RealModel("ppocr_cls_mobile_v2"),
    RealModel("prisma_portrait"),
    RealModel("prisma_portrait_qdq", kept="int8"),
    RealModel("shufflenet_v2_int8", kept="int8"),
    RealModel("fastestdet"),
    # IR version 4, and every weight is also a graph input: a caller may replace it in any run.
    RealModel("super_resolution", kept="a default that the caller may replace"),
]

needed = pytest.mark.skipif(
    not nzlib.MODELS.is_dir(),
    reason=f"no real models at {nzlib.MODELS}: set NZ_MODELS to the folder that holds them",
)
every = pytest.mark.parametrize("model", ALL, ids=str)
every_compressed = pytest.mark.parametrize("model", [m for m in ALL if not m.kept], ids=str)
