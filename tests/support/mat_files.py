"""Small `.mat` files of both published layouts, written from random checkpoints.

`random_published` makes a network with exactly the conventions of a layout; `write_keras` and
`write_matconvnet` lay it out as the author of the method does. `forward` computes a file's scores
by torch's operators from the file's own arrays, sharing nothing with the reader but the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import savemat
from torch.nn import functional

from compiler.checkpoint import Checkpoint, batch_norms, layers
from tests.support.networks import random_checkpoint

Layout = Literal["keras", "matconvnet"]
Variables = dict[str, Any]

FIRST_NORM = 84
"""Keras numbers layers from where the session stands: the published file's batch norms from 84."""


def random_published(layout: Layout, seed: int = 0, **options: Any) -> Checkpoint:
    """A random network for 32x32 images as a published file of ``layout`` can hold it."""
    conventions: dict[str, Any] = {"padding": "keras"}
    if layout == "matconvnet":
        conventions = {"padding": "matlab", "input_relu": True}
    made = random_checkpoint(seed, shape=(3, 32, 32), bits=None, **conventions, **options)
    return made if layout == "keras" else replace(made, network=replace(made.network, epsilon=0.0))


def keras_variables(checkpoint: Checkpoint) -> Variables:
    """The variables of his Keras files, in order of the flow."""
    network, t = checkpoint.network, checkpoint.tensors
    convs = [layer.name for layer in layers(network)]
    variables: Variables = {}
    for i, norm in enumerate(batch_norms(network)):
        affine = [f"{norm}.gamma", f"{norm}.beta"] if f"{norm}.gamma" in t else []
        parts = [t[name] for name in (*affine, f"{norm}.mean", f"{norm}.variance")]
        variables[f"batch_normalization_v1_{FIRST_NORM + i}"] = np.stack(parts)
        if i < len(convs):
            variables[f"conv2d_{i}" if i else "conv2d"] = _bits(t[f"{convs[i]}.weight"])[None]
    return variables


def matconvnet_variables(checkpoint: Checkpoint) -> Variables:
    """The variables of his MATLAB files that inference needs, and some that it does not."""
    network, t = checkpoint.network, checkpoint.tensors
    convs, norms = layers(network), batch_norms(network)

    def column(norm: str, part: str, default: float) -> NDArray[np.float32]:
        return t.get(f"{norm}.{part}", np.full(norms[norm], default, np.float32))[:, None]

    def moments(norm: str) -> NDArray[np.float32]:
        return np.stack([t[f"{norm}.mean"], np.sqrt(t[f"{norm}.variance"])], axis=1)

    return {
        "BNB": _cell([column(norm, "beta", 0) for norm in norms]),
        "BNG": _cell([column(norm, "gamma", 1) for norm in norms]),
        "BinaryWeights": _cell([_bits(t[f"{conv.name}.weight"]) for conv in convs]).T,
        "LayerTypes": _cell(["input", "brw", "brg"]),
        "LayerWeights": np.array([t[f"{conv.name}.scale"] for conv in convs], np.float32)[:, None],
        "Moments": _cell([moments(norm) for norm in norms]),
        "Padding": np.array([[conv.kernel // 2 for conv in convs]], np.uint8),
        "Stride": np.array([[conv.stride for conv in convs]], np.uint8),
        "Training": {"BatchSize": 125.0, "ResNet": 1.0},
    }


def variables_of(layout: Layout, checkpoint: Checkpoint) -> Variables:
    """As `keras_variables` or `matconvnet_variables`."""
    make = keras_variables if layout == "keras" else matconvnet_variables
    return make(checkpoint)


def write(path: Path, variables: Variables, compress: bool = True) -> Path:
    """Write a `.mat` file; returns its path."""
    savemat(path, variables, do_compression=compress)
    return path


def forward(
    layout: Layout, variables: Mapping[str, Any], images: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Scores (N, classes) of a file's variables, by the rules of its author's inference scripts."""
    x = torch.from_numpy(images).double()
    if layout == "keras":
        kernels = [array[0] for name, array in variables.items() if name.startswith("conv")]
        norms = [array for name, array in variables.items() if name.startswith("batch")]
        scales = [np.sqrt(2 / np.prod(kernel.shape[:3])) for kernel in kernels]
    else:
        kernels, norms = list(variables["BinaryWeights"].ravel()), []
        for g, b, m in zip(*(variables[n].ravel() for n in ("BNG", "BNB", "Moments"))):
            norms.append(np.stack([g[:, 0], b[:, 0], m[:, 0], np.square(m[:, 1].astype(float))]))
        scales = variables["LayerWeights"].ravel().astype(float)
    epsilon = 1e-5 if layout == "keras" else 0.0
    stream = None
    for i, (kernel, scale) in enumerate(zip(kernels, scales)):
        x = _normalise(x, norms[i], epsilon)
        if i or layout == "matconvnet":
            x = x.clamp(min=0)
        stride = 2 if stream is not None and kernel.shape[3] == 2 * len(x[0]) else 1
        stride = 1 if kernel.shape[0] == 1 else stride
        signs = torch.from_numpy(kernel.astype(float) * 2 - 1).permute(3, 2, 0, 1)
        x = functional.conv2d(
            _padded(x, kernel.shape[0], stride, layout), signs * scale, None, stride
        )
        if i % 2 == 0 and i < len(kernels):
            if stream is not None and stream.shape != x.shape:
                stream = _pooled(stream, layout)
            stream = x = x if stream is None else stream + x
    return _normalise(x, norms[-1], epsilon).mean(dim=(2, 3)).numpy()


def _normalise(x: torch.Tensor, rows: NDArray[Any], epsilon: float) -> torch.Tensor:
    *affine, mean, variance = torch.from_numpy(rows.astype(float))[:, :, None, None]
    x = (x - mean) / torch.sqrt(variance + epsilon)
    return x * affine[0] + affine[1] if affine else x


def _padded(x: torch.Tensor, kernel: int, stride: int, layout: Layout) -> torch.Tensor:
    """Even maps: TensorFlow's 'same' pads (0, 1) at stride 2, MatConvNet 1 on every side."""
    if kernel == 1:
        return x
    pads = (0, 1, 0, 1) if layout == "keras" and stride == 2 else (1, 1, 1, 1)
    return functional.pad(x, pads)


def _pooled(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """3x3 stride-2 mean of the pixels inside the map; then as many channels of zeros."""
    ones = torch.ones_like(x[:1, :1])
    window = torch.ones(1, 1, 3, 3, dtype=x.dtype)
    counts = functional.conv2d(_padded(ones, 3, 2, layout), window, None, 2)
    sums = functional.avg_pool2d(_padded(x, 3, 2, layout), 3, 2, divisor_override=1)
    return torch.cat([sums / counts, torch.zeros_like(sums)], dim=1)


def _bits(signs: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(C_out, C_in, K, K) of +1 and -1 to (K, K, C_in, C_out) of 1 and 0."""
    return (signs > 0).astype(np.uint8).transpose(2, 3, 1, 0)


def _cell(items: list[Any]) -> NDArray[Any]:
    """(N, 1) of objects, which scipy writes as a cell."""
    cell = np.empty((len(items), 1), dtype=object)
    for i, item in enumerate(items):
        cell[i, 0] = item
    return cell
