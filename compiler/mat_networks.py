"""The networks that the author of the method published as MATLAB files, as Checkpoints.

Two layouts, told apart by what a file holds (docs/formats.md has both in full):

- **Keras**: a variable for each layer, under whatever name Keras gave it, in order of the flow.
- **MatConvNet**: lists of all layers, under the names that his scripts gave them.

Depth, width and number of classes follow from the arrays; every array is then held against the
network that they describe. What no file says is how large its images are: `IMAGE_SIZE`.

Source of both layouts: M. D. McDonnell, https://github.com/McDonnell-Lab/1-bit-per-weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from compiler import mat_file
from compiler.arith import conv_scale
from compiler.checkpoint import (
    Checkpoint,
    Network,
    Tensors,
    batch_norms,
    has_learned_affine,
    layers,
    validate,
)
from compiler.errors import CheckpointError
from compiler.graph import Float
from compiler.mat_file import Array, Other, Variable

IMAGE_SIZE = (32, 32)
"""Height and width of the images: those of CIFAR, which his published networks read."""

KERAS_EPSILON = 1e-5
"""What his Keras networks add to a variance."""

HINT = "docs/formats.md describes the layouts that are read"


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A convolution as a file holds it.

    Attributes
    ----------
    bits : (K, K, C_in, C_out) bool
        True is +1, False -1.
    scale : float
        What the signs are multiplied by.
    """

    name: str
    bits: Array
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A batch norm as a file holds it, (C,) each; ``gamma`` and ``beta`` None where not learned."""

    name: str
    mean: Float
    variance: Float
    gamma: Float | None = None
    beta: Float | None = None

    @property
    def is_learned(self) -> bool:
        """Whether its scale and offset do anything."""
        gamma, beta = self.affine
        return bool((gamma != 1).any() or (beta != 0).any())

    @property
    def affine(self) -> tuple[Float, Float]:
        """Scale and offset, 1 and 0 where not learned."""
        ones = np.ones_like(self.mean)
        gamma = ones if self.gamma is None else self.gamma
        return gamma, 0 * ones if self.beta is None else self.beta


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """What a file says, in order of the flow, and the conventions of its layout."""

    kernels: Sequence[Kernel]
    norms: Sequence[Norm]
    padding: Literal["matlab", "keras"]
    input_relu: bool
    epsilon: float


def read(path: Path) -> Checkpoint:
    """Read a published network: 1-bit weights, float activations.

    Raises
    ------
    CheckpointError
        The file is no whole MATLAB file, is of neither layout, or its arrays are not those of one
        wide residual network; the message names the variable.
    """
    variables = mat_file.load(path)
    if "BinaryWeights" in variables:
        return _checkpoint(_matconvnet(variables), "MatConvNet")
    if not any(isinstance(found, np.ndarray) and found.ndim > 2 for found in variables.values()):
        held = ", ".join(list(variables)[:4]) or "nothing"
        _refuse(str(path), "a network as Keras or MatConvNet lays it out", f"a file of {held}")
    return _checkpoint(_keras(variables), "Keras")


def _refuse(subject: str, rule: str, actual: object, hint: str = HINT) -> NoReturn:
    raise CheckpointError(f"{subject} must be {rule}, not {actual}", hint)


def _require(holds: bool, subject: str, rule: str, actual: object, hint: str = HINT) -> None:
    if not holds:
        _refuse(subject, rule, actual, hint)


def _kind(found: Variable | None) -> str:
    """What a message calls a variable."""
    if found is None:
        return "missing"
    if isinstance(found, Other):
        return found.kind
    return "a cell" if isinstance(found, tuple) else f"an array of shape {found.shape}"


def _kernel(name: str, found: Array, leading: int, scale: float | None = None) -> Kernel:
    """A kernel behind ``leading`` dimensions of one; the scale is the method's unless given."""
    # MATLAB drops the last dimensions of an array where they are one.
    shape = found.shape + (1,) * (4 + leading - found.ndim)
    sides = shape[leading : leading + 2]
    fits = len(shape) == 4 + leading and shape[:leading] == (1,) * leading and len(set(sides)) == 1
    rule = f"of shape ({'1, ' * leading}K, K, C_in, C_out), each at least 1"
    _require(fits and min(shape) > 0, name, rule, found.shape)
    binary = found.dtype in (np.bool_, np.uint8)
    _require(binary, name, "1-bit weights, logical or uint8", found.dtype)
    _require(found.max() <= 1, name, "of 0 and 1", f"of {found.max()}")
    bits = found.reshape(shape[leading:]).astype(np.bool_)
    return Kernel(name, bits, scale or conv_scale(int(np.prod(bits.shape[:3]))))


# -- Keras -----------------------------------------------------------------------------------------


def _keras(variables: Mapping[str, Variable]) -> Layers:
    """A variable for each layer: kernels (1, K, K, C_in, C_out), batch norms (2 or 4, C)."""
    kernels, norms = [], []
    for name, found in variables.items():
        if not isinstance(found, np.ndarray):
            _refuse(name, "a kernel or a batch norm", _kind(found))
        if found.ndim == 2:
            norms.append(_keras_norm(name, found))
        else:
            kernels.append(_kernel(name, found, leading=1))
    _check_order([kernel.name for kernel in kernels])
    _check_order([norm.name for norm in norms])
    return Layers(kernels, norms, "keras", input_relu=False, epsilon=KERAS_EPSILON)


def _keras_norm(name: str, found: Array) -> Norm:
    rule = "of 2 rows (mean, variance) or 4 (scale, offset, mean, variance)"
    _require(len(found) in (2, 4), name, rule, f"of {len(found)}")
    *affine, mean, variance = found.astype(np.float64)
    return Norm(name, mean, variance, *affine)


def _check_order(names: Sequence[str]) -> None:
    """Names that Keras numbered stand in the order of their numbers.

    MATLAB's own `save` sorts by name, ``conv2d_10`` before ``conv2d_2``: layers of one shape would
    change places unseen.
    """
    for before, after in pairwise(names):
        (stem, number), (next_stem, next_number) = _numbered(before), _numbered(after)
        if stem == next_stem and number > next_number:
            raise CheckpointError(
                f"{after} must stand before {before}, as layers stand in order of the flow",
                "write the file from Keras again: MATLAB sorts variables by name",
            )


def _numbered(name: str) -> tuple[str, int]:
    """A name without the number that Keras appended, and that number."""
    found = re.search(r"_(\d{1,9})$", name)
    return (name[: found.start()], int(found[1])) if found else (name, 0)


# -- MatConvNet ------------------------------------------------------------------------------------


def _matconvnet(variables: Mapping[str, Variable]) -> Layers:
    """Cells of kernels (K, K, C_in, C_out), of moments (C, 2), scales and offsets (C, 1).

    The moments are mean and standard deviation, which has its epsilon in it.
    """
    bits = _cell(variables, "BinaryWeights")
    scales = _list(variables, "LayerWeights", len(bits))
    kernels = []
    for i, (array, scale) in enumerate(zip(bits, scales, strict=True), 1):
        _require(0 < scale < np.inf, f"LayerWeights({i})", "a positive finite number", scale)
        kernels.append(_kernel(f"BinaryWeights{{{i}}}", array, leading=0, scale=scale))
    _check_geometry(variables, kernels)
    parts = [_cell(variables, name, len(bits) + 1) for name in ("Moments", "BNG", "BNB")]
    norms = [_matconvnet_norm(i, *part) for i, part in enumerate(zip(*parts, strict=True), 1)]
    return Layers(kernels, norms, "matlab", input_relu=True, epsilon=0.0)


def _matconvnet_norm(number: int, moments: Array, gamma: Array, beta: Array) -> Norm:
    name = f"Moments{{{number}}}"
    rule = "of shape (C, 2): mean and standard deviation"
    _require(moments.ndim == 2 and moments.shape[1] == 2, name, rule, moments.shape)
    mean, deviation = moments.astype(np.float64).T
    lowest = deviation.min(initial=0.0)
    _require(not lowest < 0, name, "of deviations of at least 0", lowest)
    for part, array in (("BNG", gamma), ("BNB", beta)):
        rule = f"of {len(mean)} numbers, as many as {name} has channels"
        _require(array.size == len(mean), f"{part}{{{number}}}", rule, array.size)
    gamma, beta = (array.astype(np.float64).ravel() for array in (gamma, beta))
    return Norm(name, mean, np.square(deviation), gamma, beta)


def _check_geometry(variables: Mapping[str, Variable], kernels: Sequence[Kernel]) -> None:
    """His inference reads strides and paddings from the file; here they follow from the family."""
    count = len(kernels)
    channels = [kernel.bits.shape[3] for kernel in kernels]
    strides, pads = (_list(variables, name, count) for name in ("Stride", "Padding"))
    for i, kernel in enumerate(kernels):
        # Where a block doubles the channels it halves the map; the head does neither.
        halves = 0 < i < count - 1 and channels[i] == 2 * channels[i - 1]
        stride, pad = 2.0 if halves else 1.0, float(len(kernel.bits) // 2)
        _require(strides[i] == stride, f"Stride({i + 1})", f"{stride:g}", f"{strides[i]:g}")
        _require(pads[i] == pad, f"Padding({i + 1})", f"{pad:g}", f"{pads[i]:g}")


def _cell(
    variables: Mapping[str, Variable], name: str, count: int | None = None
) -> tuple[Array, ...]:
    found = variables.get(name)
    if not isinstance(found, tuple):
        _refuse(name, "a cell of arrays", _kind(found))
    if count is not None:
        _require(len(found) == count, name, f"a cell of {count}", f"of {len(found)}")
    return found


def _list(variables: Mapping[str, Variable], name: str, count: int) -> list[float]:
    found = variables.get(name)
    if not isinstance(found, np.ndarray):
        _refuse(name, f"an array of {count}", _kind(found))
    _require(found.size == count, name, f"an array of {count}", f"of {found.size}")
    return [float(value) for value in found.ravel()]


# -- both ------------------------------------------------------------------------------------------


def _checkpoint(found: Layers, layout: str) -> Checkpoint:
    """The network that the arrays describe, each of them held against it."""
    kernels, norms = found.kernels, found.norms
    count = len(kernels)
    _require(count >= 8 and count % 6 == 2, "kernels", "6n + 2 in number, 8 or more", count)
    rule = f"{count + 1} in number, one more than kernels"
    _require(len(norms) == count + 1, "batch norms", rule, len(norms))
    network = _network(found)
    tensors: Tensors = {}
    for layer, kernel in zip(layers(network), kernels, strict=True):
        shape = (layer.kernel, layer.kernel, layer.c_in, layer.c_out)
        rule = f"{shape} (K, K, C_in, C_out) as {layer.name} of a {network.name}"
        _require(kernel.bits.shape == shape, kernel.name, rule, kernel.bits.shape)
        signs = np.where(kernel.bits, np.int8(1), np.int8(-1))
        tensors[f"{layer.name}.weight"] = np.ascontiguousarray(signs.transpose(3, 2, 0, 1))
        tensors[f"{layer.name}.scale"] = np.asarray(kernel.scale)
    for (name, channels), norm in zip(batch_norms(network).items(), norms, strict=True):
        rule = f"of {channels} channels as {name} of a {network.name}"
        _require(len(norm.mean) == channels, norm.name, rule, f"of {len(norm.mean)}")
        tensors |= _norm_tensors(norm, network, name)
    return validate(Checkpoint(network, tensors, None, {"layout": layout}))


def _network(found: Layers) -> Network:
    """What the first and the last kernel say; batch norm is learned where some scale does work."""
    *_, c_in, c_out = found.kernels[0].bits.shape
    behind_relu = found.norms[1:] if found.input_relu else found.norms
    return Network(
        depth=len(found.kernels),
        width=c_out / 16,
        classes=found.kernels[-1].bits.shape[3],
        input=(c_in, *IMAGE_SIZE),
        batch_norm="learned" if any(norm.is_learned for norm in behind_relu) else "fixed",
        input_relu=found.input_relu,
        epsilon=found.epsilon,
        padding=found.padding,
    )


def _norm_tensors(norm: Norm, network: Network, name: str) -> dict[str, Array]:
    parts = {"mean": norm.mean, "variance": norm.variance}
    if has_learned_affine(network, name):
        parts |= dict(zip(("gamma", "beta"), norm.affine, strict=True))
    with np.errstate(over="ignore"):  # what becomes infinite is refused next
        single = {part: array.astype(np.float32) for part, array in parts.items()}
    for part, array in single.items():
        rule = f"finite in its {part}, in single precision"
        _require(bool(np.isfinite(array).all()), norm.name, rule, "inf or nan")
    lowest = norm.variance.min()
    _require(lowest >= 0, norm.name, "of variances of at least 0", lowest)
    return {f"{name}.{part}": array for part, array in single.items()}
