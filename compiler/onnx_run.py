"""ONNX models in onnxruntime: a third party's opinion on what we compute."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.errors import CheckpointError, ToolchainError, UsageError
from compiler.export_integer import TENSORS
from compiler.onnx_file import load_proto, text

IMAGES_AT_ONCE = 32
"""Bounds memory where every layer of many images is asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Opinion:
    """An ONNX file for onnxruntime to run.

    Attributes
    ----------
    shape : (C, H, W)
        Of an image, whatever the order of its axes in the file.
    names : tuple of str
        Values whose shape the file states, in order of the flow; the output is the last.
    meaning : dict
        Of an exported Program each tensor's kind, zero and step; else empty.
    output : str
        The scores.
    """

    model: onnx.ModelProto
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    meaning: dict[str, tuple[str, int, float]]
    output: str

    def run(self, images: NDArray[np.uint8], names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Values by name for (N, C, H, W) images."""
        return run(self.model, images, names)


def opinion(path: Path) -> Opinion:
    """Open an ONNX file to run it: any float network we read, or a Program we exported.

    Raises
    ------
    CheckpointError, LoweringError
        See `onnx_read.read`.
    """
    model = load_proto(path)
    output = text(model.graph.output[0].name)
    stated = {text(value.name) for value in model.graph.value_info}
    made = [text(name) for node in model.graph.node for name in node.output]
    names = [name for name in made if name in stated and name != output]
    written = {text(entry.key): text(entry.value) for entry in model.metadata_props}.get(TENSORS)
    if written is None:
        from compiler import onnx_read

        return Opinion(model, onnx_read.read(path).image.shape, (*names, output), {}, output)
    try:
        found = {
            n: (t["kind"], int(t["zero"]), float(t["step"])) for n, t in json.loads(written).items()
        }
        c, h, w = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])
        scores = next(name for name, (kind, *_) in found.items() if kind == "score")
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise CheckpointError(f"metadata {TENSORS!r} of {path} must be as we wrote it") from error
    return Opinion(model, (c, h, w), tuple(found), found, scores)


def run(
    model: onnx.ModelProto, images: NDArray[np.uint8], names: Iterable[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Run a model with one input on one core; onnxruntime's own thread pool does not add to ours.

    Parameters
    ----------
    images : (N, C, H, W) uint8
        Cast to the type of the model's input, and transposed if that is (N, H, W, C).
    names : iterable of str, optional
        Values wanted; default: the model's outputs. Any value of the graph can be had.

    Raises
    ------
    ToolchainError
        onnxruntime is not installed.
    UsageError
        onnxruntime refuses the model, the images, or has no such value.
    """
    try:
        import onnxruntime
    except ImportError as error:
        hint = "pip install onnxruntime"
        raise ToolchainError("running ONNX needs onnxruntime, and it is missing", hint) from error
    wanted = list(names) if names is not None else [value.name for value in model.graph.output]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # errors only: its advice is for the authors of models
    try:
        session = onnxruntime.InferenceSession(
            _with_outputs(model, wanted).SerializeToString(),
            settings,
            providers=["CPUExecutionProvider"],
        )
        feed = session.get_inputs()[0]
        if list(feed.shape[1:]) == [*images.shape[2:], images.shape[1]] != list(images.shape[1:]):
            images = images.transpose(0, 2, 3, 1)
        dtype = _DTYPES.get(feed.type, np.float32)
        parts = [
            session.run(wanted, {feed.name: images[i : i + IMAGES_AT_ONCE].astype(dtype)})
            for i in range(0, len(images), IMAGES_AT_ONCE)
        ]
    except Exception as error:  # its errors have no base class of their own
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"onnxruntime must run {model.graph.name}, but says: {text}") from error
    return {name: np.concatenate([p[i] for p in parts]) for i, name in enumerate(wanted)}


_DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(double)": np.float64}


def _with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The same model with more outputs; onnxruntime finds their types by itself."""
    have = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    more = [name for name in dict.fromkeys(names) if name not in have]
    if missing := [name for name in more if name not in made]:
        raise UsageError(f"value must be one of the model's, not {missing[0]!r}")
    if not more:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    return copy
