"""Inputs for models."""

from pathlib import Path

import numpy as np


def known_inputs(model):
    """Inputs for one of the real models: those kept in `inputs` beside it, or random ones."""
    model = Path(model)
    kept, given = model.parent / "inputs" / f"{model.stem}.npz", None
    if kept.exists():
        with np.load(kept) as file:
            given = {name: file[name] for name in file.files}
    elif model.stem == "ppocrv3_det_en":
        given = {"x": page_of_text()}  # it answers zero to noise
    return random_inputs(model, given=given)


def page_of_text():
    """A picture with what a text detector takes for lines of text: dark strokes on a light ground."""
    rng = np.random.default_rng(0)
    page = np.full((1, 3, 224, 224), 0.95, np.float32)
    for top in range(20, 200, 32):
        for left in range(20, 200, 15):
            page[:, :, top : top + 8, left : left + rng.integers(3, 10)] = 0.1
    return page + rng.standard_normal(page.shape).astype(np.float32) * np.float32(0.01)


def random_inputs(model, seed=0, given=None):
    """Seeded random inputs for the plain model at this path, symbolic dimensions filled in:
    1 for the batch, 224 in images, 64 elsewhere. `given` takes precedence."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    inputs = {}
    for argument in session.get_inputs():
        if given and argument.name in given:
            inputs[argument.name] = given[argument.name]
            continue
        shape = list(argument.shape)
        for axis, size in enumerate(shape):
            if not isinstance(size, int) or size <= 0:
                shape[axis] = 1 if axis == 0 else 224 if len(shape) == 4 else 64
        kind = argument.type
        if kind in ("tensor(float)", "tensor(float16)"):
            dtype = np.float16 if "16" in kind else np.float32
            inputs[argument.name] = rng.standard_normal(shape).astype(dtype)
        elif kind in ("tensor(int64)", "tensor(int32)"):
            inputs[argument.name] = rng.integers(0, 2, shape).astype(kind[7:-1])
        else:
            raise ValueError(f"{model}: input {argument.name} of type {kind} is not one that can be made up")
    return inputs
