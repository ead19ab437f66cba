"""The network: pre-activation wide residual, one bit or 32 for each weight.

Module names are the layer names of a checkpoint (docs/checkpoint.md), in order of the flow.
Tensors are (N, C, H, W), channels-last in memory.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.arith import POOL_KERNEL, conv_scale
from compiler.checkpoint import Network as Description
from compiler.checkpoint import layers
from compiler.errors import UsageError
from train.quantiser import BITS, Addend, Input, Quantiser, quantisers, set_steps

WEIGHTS = ("1bit", "32bit")
BATCH_NORM = ("fixed", "learned")
PADDING = ("torch", "matlab", "keras")
STAGES = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a network is before it has learned anything; illegal values raise `UsageError`."""

    depth: int  # convolutions, 6n + 2, the head's included
    width: float  # channels of stage s (0, 1, 2): round(16 * width * 2**s)
    classes: int
    input: tuple[int, int, int]  # channels, height, width
    weights: Literal["1bit", "32bit"] = "1bit"
    batch_norm: Literal["fixed", "learned"] = "fixed"  # scale and offset of each channel
    input_relu: bool = False  # after the input's batch norm, whose scale is then learned
    skip: bool = True  # False: plain network
    epsilon: float = 1e-5
    padding: Literal["torch", "matlab", "keras"] = "torch"
    activation_bits: int | None = None  # None: float activations

    def __post_init__(self) -> None:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise UsageError(
                f"depth must be 6n + 2 (8, 14, 20, ...), not {self.depth}",
                hint=f"--net {6 * max(1, round((self.depth - 2) / 6)) + 2}-{self.width:g}",
            )
        if not (math.isfinite(self.width) and self.width > 0 and round(16 * self.width) >= 1):
            raise UsageError(f"width must be a positive number, not {self.width:g}")
        choices = {"weights": WEIGHTS, "batch_norm": BATCH_NORM, "padding": PADDING}
        for field, legal in choices.items():
            if getattr(self, field) not in legal:
                raise UsageError(
                    f"{field} must be one of {', '.join(legal)}, not {getattr(self, field)!r}"
                )
        if self.activation_bits is not None and self.activation_bits not in BITS:
            raise UsageError(
                f"activation bits must be {BITS[0]} .. {BITS[-1]}, not {self.activation_bits}"
            )

    @property
    def blocks(self) -> int:
        """Residual blocks a stage."""
        return (self.depth - 2) // 6

    def channels(self, stage: int) -> int:
        """Channels of a stage, counted from 1."""
        return round(16 * self.width * 2.0 ** (stage - 1))

    @property
    def gain(self) -> float:
        """Numerator of a layer's variance: He's 2, or 4 where no skip adds to it."""
        return 2.0 if self.skip else 4.0

    @property
    def description(self) -> Description:
        """The same without the quantiser, as a checkpoint keeps it."""
        values = asdict(self)
        del values["activation_bits"]
        return Description(**values)

    @property
    def num_weights(self) -> int:
        """Weights of all convolutions; there are no biases."""
        return sum(layer.num_weights for layer in layers(self.description))


class Binarise(torch.autograd.Function):
    """Forward ``scale * sign(w)``, sign(0) = +1; the gradient goes to w unchanged."""

    @staticmethod
    def forward(_: Any, weight: Tensor, scale: float) -> Tensor:
        positive = torch.full((), scale, dtype=weight.dtype, device=weight.device)
        return torch.where(weight >= 0, positive, -positive)

    @staticmethod
    def backward(_: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def binarise(weight: Tensor, scale: float) -> Tensor:
    """`Binarise`, typed."""
    binary: Tensor = Binarise.apply(weight, scale)  # type: ignore[no-untyped-call]
    return binary


class Convolution(nn.Module):
    """A convolution without bias; at one bit its weights are ``scale * sign(weight)``.

    ``weight`` (C_out, C_in, K, K) is kept in full precision. ``scale`` is None at 32 bits.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.description = architecture.description
        deviation = conv_scale(kernel * kernel * c_in, architecture.gain)
        self.scale = deviation if architecture.weights == "1bit" else None
        weight = torch.randn(c_out, c_in, kernel, kernel) * deviation
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.scale is None else binarise(self.weight, self.scale)
        height, width = x.shape[-2:]
        pads = self.description.pads((height, width), self.kernel, self.stride)
        if (pads.top, pads.left) != (pads.bottom, pads.right):
            x = F.pad(x, (pads.left, pads.right, pads.top, pads.bottom))
            return F.conv2d(x, weight, stride=self.stride)
        return F.conv2d(x, weight, stride=self.stride, padding=(pads.top, pads.left))


def shrink(x: Tensor, channels: int, description: Description) -> Tensor:
    """The skip of a downsampling block: 3x3 mean, stride 2, then zero channels at the end."""
    height, width = x.shape[-2:]
    pads = description.pads((height, width), POOL_KERNEL, 2)
    x = F.avg_pool2d(
        x,
        POOL_KERNEL,
        stride=2,
        padding=(pads.top, pads.left),
        ceil_mode=description.padding == "keras",  # the window may overhang at the far end
        count_include_pad=description.count_padding,
    )
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


class Block(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-conv3x3 plus skip; ``stride`` 2 halves the map."""

    def __init__(
        self, c_in: int, c_out: int, stride: int, architecture: Architecture, bits: int
    ) -> None:
        super().__init__()
        self.channels, self.stride = c_out, stride
        self.description = architecture.description
        self.bn1 = _batch_norm(c_in, architecture)
        self.relu1 = Quantiser(bits)
        self.conv1 = Convolution(c_in, c_out, 3, stride, architecture)
        self.bn2 = _batch_norm(c_out, architecture)
        self.relu2 = Quantiser(bits)
        self.conv2 = Convolution(c_out, c_out, 3, 1, architecture)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(self.relu1(self.bn1(x)))
        y = self.conv2(self.relu2(self.bn2(y)))
        if not self.description.skip:
            return y
        return y + (x if self.stride == 1 else shrink(x, self.channels, self.description))


class Head(nn.Module):
    """BN-ReLU-conv1x1-BN, then the mean over the pixels: (N, C, H, W) to scores (N, classes)."""

    def __init__(self, channels: int, architecture: Architecture, bits: int) -> None:
        super().__init__()
        self.bn1 = _batch_norm(channels, architecture)
        self.relu = Quantiser(bits)
        self.conv = Convolution(channels, architecture.classes, 1, 1, architecture)
        self.bn2 = _batch_norm(architecture.classes, architecture)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.bn2(self.conv(self.relu(self.bn1(x))))
        return scores.mean((2, 3))


class Network(nn.Module):
    """Raw pixels 0 .. 255 (N, C, H, W), uint8 or float, to scores (N, classes)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        bits = architecture.activation_bits or BITS[-1]
        inputs, before = architecture.input[0], architecture.channels(1)
        bn = _batch_norm(inputs, architecture, learned=architecture.input_relu)
        self.input = Input(bn, architecture.input_relu)
        self.conv0 = Convolution(inputs, before, 3, 1, architecture)
        for stage in STAGES:
            blocks = nn.Sequential()
            for block in range(1, architecture.blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                channels = architecture.channels(stage)
                layer = Block(before, channels, stride, architecture, bits)
                blocks.add_module(f"block{block}", layer)
                before = channels
            self.add_module(f"stage{stage}", blocks)
        self.head = Head(before, architecture, bits)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(self.input(x.to(self.conv0.weight.dtype)))
        x = x.contiguous(memory_format=torch.channels_last)
        for stage in STAGES:
            x = self.get_submodule(f"stage{stage}")(x)
        scores: Tensor = self.head(x)
        return scores

    @property
    def addends(self) -> dict[str, Addend]:
        """The steps that the alignment rule binds; none where weights have no common scale."""
        if not self.architecture.skip or self.architecture.weights != "1bit":
            return {}
        found = {"input": Addend(_scale(self.conv0), 1)}
        for stage in STAGES:
            for block in range(1, self.architecture.blocks + 1):
                name = f"stage{stage}.block{block}"
                scale = _scale(self.get_submodule(f"{name}.conv2"))
                found[f"{name}.relu2"] = Addend(scale, stage)
        return found

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


def _scale(layer: nn.Module) -> float:
    if not isinstance(layer, Convolution) or layer.scale is None:
        raise TypeError(f"layer must be a 1-bit Convolution, not {layer!r}")
    return layer.scale


def _batch_norm(channels: int, architecture: Architecture, learned: bool = False) -> nn.Module:
    affine = learned or architecture.batch_norm == "learned"
    return nn.BatchNorm2d(channels, eps=architecture.epsilon, affine=affine)
