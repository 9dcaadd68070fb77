"""The same input gives the same bytes, whatever the number of threads."""

import generate
import pytest
from nzlib import convert, data_file
from real_models import ALL, needed


def same_bytes(model, folder, *options):
    written = []
    for threads in (1, 2, 3):
        # The same name in three folders: the model names its data file.
        converted = folder / f"{threads}" / "model.nz.onnx"
        converted.parent.mkdir()
        convert(model, converted, "--threads", threads, *options)
        written.append((converted.read_bytes(), data_file(converted).read_bytes()))
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("options", [(), ("--lossless",)], ids=["default", "lossless"])
def test_made_model(options, tmp_path):
    model = generate.transformer(tmp_path / "model.onnx", 2, 256, 4096, tied=True)
    same_bytes(model, tmp_path, *options)


@needed
@pytest.mark.parametrize("name", ["minilm_l6_v8k_fp16", "silero_vad", "dtln_2_extdata"])
def test_real_model(name, tmp_path):
    same_bytes(next(model for model in ALL if model.name == name).path, tmp_path)
