"""The network: pre-activation wide residual, one bit or 32 for each weight.

Module names are the layer names of a checkpoint (docs/checkpoint.md), in order of the flow.
Tensors are (N, C, H, W), channels-last in memory.

Two families share everything but their beginning: ``wrn`` for small pictures (three stages of
16k, 32k, 64k channels), and ``wrn-imagenet`` (four of 64k ... 512k, behind a 7x7 convolution of
stride 2, BN-ReLU, and a 3x3 maximum of stride 2, as in the pre-activation networks of
K. He et al., "Identity mappings in deep residual networks", 2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.arith import POOL_KERNEL, Pads, conv_scale, same_pads
from compiler.checkpoint import FAMILIES
from compiler.checkpoint import Network as Description
from compiler.errors import UsageError
from compiler.steps import bound_of
from train.quantiser import BITS, Input, Quantiser, quantisers, set_steps

WEIGHTS = ("1bit", "32bit", "bwn-channel", "bwn-layer")
BATCH_NORM = ("fixed", "learned", "none")
PADDING = ("torch", "matlab", "keras")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a network is before it has learned anything; illegal values raise `UsageError`.

    Attributes
    ----------
    depth : int
        Convolutions, the head's included: 6n + 2, in the ImageNet form 8n + 2.
    width : float
        Stage s (from 1) has ``round(16 * width * 2**(s-1))`` channels, in the ImageNet form 64.
    input : (channels, height, width)
    weights : "1bit", "32bit", "bwn-channel", "bwn-layer"
        One bit: ``scale * sign(w)``, by the constant ``sqrt(2 / fan_in)`` (the paper's), or by the
        mean of ``|w|`` over each output channel or the whole layer (binary weight networks,
        Rastegari et al. 2016).
    batch_norm : "fixed", "learned", "none"
        Whether scale and offset are learned. None: ``max(-1, x)`` stands for every batch norm and
        ReLU but the input's (arXiv 1907.06916), and the input's is learned.
    input_relu : bool
        After the input's batch norm, whose scale and offset are then learned.
    skip : bool
        False: plain network; each block's convolutions in a chain without additions.
    activation_bits : int or None
        None: float activations.
    """

    depth: int
    width: float
    classes: int
    input: tuple[int, int, int]
    weights: Literal["1bit", "32bit", "bwn-channel", "bwn-layer"] = "1bit"
    batch_norm: Literal["fixed", "learned", "none"] = "fixed"
    input_relu: bool = False
    skip: bool = True
    epsilon: float = 1e-5
    padding: Literal["torch", "matlab", "keras"] = "torch"
    family: Literal["wrn", "wrn-imagenet"] = "wrn"
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        legal = {"family": tuple(FAMILIES), "weights": WEIGHTS, "batch_norm": BATCH_NORM}
        for field, values in (legal | {"padding": PADDING}).items():
            if getattr(self, field) not in values:
                raise UsageError(
                    f"{field} must be one of {', '.join(values)}, not {getattr(self, field)!r}"
                )
        step = 2 * self.stages  # convolutions that one block more in every stage adds
        if self.depth < step + 2 or (self.depth - 2) % step:
            first = ", ".join(str(step * n + 2) for n in (1, 2, 3))
            raise UsageError(
                f"depth must be {step}n + 2 ({first}, ...), not {self.depth}",
                hint=f"--net {step * max(1, round((self.depth - 2) / step)) + 2}-{self.width:g}",
            )
        if not (math.isfinite(self.width) and self.width > 0 and self.channels(1) >= 1):
            raise UsageError(f"width must be a positive number, not {self.width:g}")
        if self.activation_bits is not None and self.activation_bits not in BITS:
            raise UsageError(
                f"activation bits must be {BITS[0]} .. {BITS[-1]}, not {self.activation_bits}"
            )

    @property
    def name(self) -> str:
        """For people: "WRN 20-4", "plain 8-1"."""
        return f"{'WRN' if self.skip else 'plain'} {self.depth}-{self.width:g}"

    @property
    def stages(self) -> int:
        return FAMILIES[self.family][0]

    @property
    def blocks(self) -> int:
        """Residual blocks a stage."""
        return (self.depth - 2) // (2 * self.stages)

    def channels(self, stage: int) -> int:
        """Channels of a stage, counted from 1."""
        return round(FAMILIES[self.family][1] * self.width * 2.0 ** (stage - 1))

    @property
    def gain(self) -> float:
        """Numerator of a layer's variance: He's 2, or 4 where no skip adds to it."""
        return 2.0 if self.skip else 4.0

    @property
    def shifted_relu(self) -> bool:
        return self.batch_norm == "none"

    def pads(self, size: tuple[int, int], kernel: int, stride: int) -> Pads:
        """Padding of a convolution or a pool over a map of ``size``, as docs/checkpoint.md has it.

        On every side alike, or in Keras' ``same`` manner: the far end first.
        """
        if self.padding == "keras":
            return same_pads(size, kernel, stride)
        return Pads(*[kernel // 2] * 4)

    @property
    def description(self) -> Description:
        """The same without the quantiser, as a checkpoint keeps it."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Description)}
        return Description(**values | {"weights": "32bit" if self.weights == "32bit" else "1bit"})

    def kernels(self) -> Iterator[tuple[int, int, int]]:
        """``(c_in, c_out, kernel)`` of every convolution, in order of the flow."""
        before = self.channels(1)
        yield self.input[0], before, 7 if self.family == "wrn-imagenet" else 3
        for stage in range(1, self.stages + 1):
            for _ in range(self.blocks):
                yield before, self.channels(stage), 3
                before = self.channels(stage)
                yield before, before, 3
        yield before, self.classes, 1

    @property
    def num_weights(self) -> int:
        """Weights of all convolutions; there are no biases."""
        return sum(c_in * c_out * kernel**2 for c_in, c_out, kernel in self.kernels())


POOL_TIE = 1e-6
"""A mean of whole units is this near to a tie only if it is one."""


class Binarise(torch.autograd.Function):
    """Forward ``scale * sign(w)``, sign(0) = +1; the gradient goes to w unchanged.

    ``scale`` is a number or a tensor that broadcasts to w; no gradient flows to it.
    """

    @staticmethod
    def forward(_: Any, weight: Tensor, scale: float | Tensor) -> Tensor:
        if not isinstance(scale, Tensor):
            scale = torch.full((), scale, dtype=weight.dtype, device=weight.device)
        return torch.where(weight >= 0, scale, -scale)

    @staticmethod
    def backward(_: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def binarise(weight: Tensor, scale: float | Tensor) -> Tensor:
    """`Binarise`, typed."""
    binary: Tensor = Binarise.apply(weight, scale)  # type: ignore[no-untyped-call]
    return binary


class Convolution(nn.Module):
    """A convolution without bias; at one bit its weights are ``scale * sign(weight)``.

    Attributes
    ----------
    weight : (C_out, C_in, K, K)
        Kept in full precision.
    scale : float, Tensor () or (C_out,), or None
        The constant of a 1-bit layer. None where there is none: at 32 bits, and in binary weight
        networks, whose scale follows the weights (`current_scale`).
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.architecture = architecture
        deviation = conv_scale(kernel * kernel * c_in, architecture.gain)
        self.scale: float | Tensor | None = deviation if architecture.weights == "1bit" else None
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel) * deviation)

    def current_scale(self) -> float | Tensor | None:
        """What the signs are multiplied by now, () or (C_out,), in the weights' type; or None."""
        if self.architecture.weights not in ("bwn-channel", "bwn-layer"):
            return self.scale
        magnitude = self.weight.detach().abs()
        return magnitude.mean((1, 2, 3) if self.architecture.weights == "bwn-channel" else None)

    def effective_weight(self) -> Tensor:
        """The weights that the convolution uses, forward and backward."""
        scale = self.current_scale()
        if scale is None:
            return self.weight
        if isinstance(scale, Tensor):
            scale = scale.to(self.weight).reshape(-1, 1, 1, 1)
        return binarise(self.weight, scale)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        height, width = x.shape[-2:]
        pads = self.architecture.pads((height, width), self.kernel, self.stride)
        if (pads.top, pads.left) != (pads.bottom, pads.right):
            x = F.pad(x, (pads.left, pads.right, pads.top, pads.bottom))
            return F.conv2d(x, weight, stride=self.stride)
        return F.conv2d(x, weight, stride=self.stride, padding=(pads.top, pads.left))


def shrink(
    x: Tensor, channels: int, architecture: Architecture, unit: float | None = None
) -> Tensor:
    """The skip of a downsampling block: 3x3 mean, stride 2, then zero channels at the end.

    With ``unit``, means are rounded to its multiples, ties upwards: what the compiler makes of it.
    """
    height, width = x.shape[-2:]
    pads = architecture.pads((height, width), POOL_KERNEL, 2)
    x = F.avg_pool2d(
        x,
        POOL_KERNEL,
        stride=2,
        padding=(pads.top, pads.left),
        ceil_mode=architecture.padding == "keras",  # the window may overhang at the far end
        count_include_pad=architecture.padding == "torch",
    )
    if unit is not None:
        x = torch.floor(x / unit + (0.5 + POOL_TIE)) * unit
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


class Block(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-conv3x3 plus skip; ``stride`` 2 halves the map."""

    def __init__(self, c_in: int, c_out: int, stride: int, architecture: Architecture) -> None:
        super().__init__()
        self.channels, self.stride = c_out, stride
        self.architecture = architecture
        self.pool_unit: float | None = None  # to evaluate the skip as hardware rounds it
        self.bn1 = _batch_norm(c_in, architecture)
        self.relu1 = _activation(architecture)
        self.conv1 = Convolution(c_in, c_out, 3, stride, architecture)
        self.bn2 = _batch_norm(c_out, architecture)
        self.relu2 = _activation(architecture)
        self.conv2 = Convolution(c_out, c_out, 3, 1, architecture)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(self.relu1(self.bn1(x)))
        y = self.conv2(self.relu2(self.bn2(y)))
        if not self.architecture.skip:
            return y
        if self.stride == 1:
            return y + x
        return y + shrink(x, self.channels, self.architecture, self.pool_unit)


class Stem(nn.Module):
    """What follows the ImageNet form's first convolution: BN-ReLU and a 3x3 maximum, stride 2.

    The quantiser stands before the maximum: both rise, so their order changes nothing.
    """

    def __init__(self, channels: int, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.bn = _batch_norm(channels, architecture)
        self.relu = _activation(architecture)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(x))
        height, width = x.shape[-2:]
        pads = self.architecture.pads((height, width), POOL_KERNEL, 2)
        x = F.pad(x, (pads.left, pads.right, pads.top, pads.bottom), value=-math.inf)
        return F.max_pool2d(x, POOL_KERNEL, stride=2)


class Head(nn.Module):
    """BN-ReLU-conv1x1-BN, then the mean over the pixels: (N, C, H, W) to scores (N, classes)."""

    def __init__(self, channels: int, architecture: Architecture) -> None:
        super().__init__()
        self.bn1 = _batch_norm(channels, architecture)
        self.relu = _activation(architecture)
        self.conv = Convolution(channels, architecture.classes, 1, 1, architecture)
        self.bn2 = _batch_norm(architecture.classes, architecture)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.bn2(self.conv(self.relu(self.bn1(x))))
        return scores.mean((2, 3))


class Network(nn.Module):
    """Raw pixels 0 .. 255 (N, C, H, W), uint8 or float, to scores (N, classes).

    Parameters
    ----------
    channels_last : bool
        How weights, and maps behind the first convolution, lie in memory: speed alone.
    """

    def __init__(self, architecture: Architecture, channels_last: bool = True) -> None:
        super().__init__()
        self.architecture = architecture
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        inputs, before = architecture.input[0], architecture.channels(1)
        learned = architecture.input_relu or architecture.batch_norm != "fixed"
        bn = nn.BatchNorm2d(inputs, eps=architecture.epsilon, affine=learned)
        self.input = Input(bn, architecture.input_relu)
        if architecture.family == "wrn-imagenet":
            self.conv0 = Convolution(inputs, before, 7, 2, architecture)
            self.stem: nn.Module = Stem(before, architecture)
        else:
            self.conv0 = Convolution(inputs, before, 3, 1, architecture)
            self.stem = nn.Identity()
        for stage in range(1, architecture.stages + 1):
            blocks = nn.Sequential()
            for block in range(1, architecture.blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                channels = architecture.channels(stage)
                blocks.add_module(f"block{block}", Block(before, channels, stride, architecture))
                before = channels
            self.add_module(f"stage{stage}", blocks)
        self.head = Head(before, architecture)
        for layer in self.modules():  # the weights too: a convolution's output follows them
            if isinstance(layer, Convolution):
                layer.weight.data = layer.weight.data.contiguous(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(self.input(x.to(self.conv0.weight.dtype)))
        x = self.stem(x.contiguous(memory_format=self.memory_format))
        for stage in range(1, self.architecture.stages + 1):
            x = self.get_submodule(f"stage{stage}")(x)
        scores: Tensor = self.head(x)
        return scores

    @property
    def bounds(self) -> dict[str, float]:
        """`Site.bound` of each quantiser whose step the alignment rule binds.

        None where no choice of steps could align them: without skips there is nothing to add to;
        32-bit and binary weight networks have no constant scale; and a shifted ReLU's step is one
        over a whole number, while the scales of two stages differ by sqrt(2).
        """
        if not self.architecture.skip or self.architecture.shifted_relu:
            return {}
        if self.architecture.family == "wrn-imagenet":  # its stream begins with activations
            found: dict[str, tuple[Any, int]] = {"stem.relu": (1.0, 0)}
        else:
            found = {"input": (self.conv0.scale, 0)}
        for name, layer in self.named_modules():
            if isinstance(layer, Block):
                stage = int(name.removeprefix("stage").partition(".")[0])
                found[f"{name}.relu2"] = layer.conv2.scale, stage - 1  # a pool between two stages
        if not all(isinstance(scale, float) for scale, _ in found.values()):
            return {}
        return {name: bound_of(scale, pools) for name, (scale, pools) in found.items()}

    @property
    def steps(self) -> dict[str, float] | None:
        """The quantisers' steps by name, None while activations are float."""
        found = {name: q.step for name, q in quantisers(self).items()}
        steps = {name: step for name, step in found.items() if step is not None}
        return steps or None

    @steps.setter
    def steps(self, steps: dict[str, float] | None) -> None:
        """Quantise with these from now on; None: float activations."""
        set_steps(self, steps)


def _batch_norm(channels: int, architecture: Architecture) -> nn.Module:
    if architecture.batch_norm == "none":
        return nn.Identity()
    learned = architecture.batch_norm == "learned"
    return nn.BatchNorm2d(channels, eps=architecture.epsilon, affine=learned)


def _activation(architecture: Architecture) -> Quantiser:
    bits = architecture.activation_bits or BITS[-1]
    return Quantiser(bits, shifted=architecture.shifted_relu)
