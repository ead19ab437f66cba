"""``python -m train benchmark``: images a second of a training step, against a plain formulation.

`PlainNetwork` is the same network as published re-implementations write it: eager, float32, NCHW,
one-bit weights by ``w + (scale * sign(w) - w).detach()``, zero channels by concatenation. The same
pictures, loss and optimiser; a test holds its scores and gradients to `train.network`'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.errors import UsageError
from train.data import Augmentation, Split
from train.loop import Progress, Runner
from train.network import Architecture
from train.recipe import Execution, Job, Recipe
from train.team import Team

NETS = ("20-1", "20-2", "20-4", "20-10", "26-10")

MIN_STEPS = 3
"""Steps timed at least, however slow."""

WARM_UP_STEPS = 3
"""Not timed: they choose algorithms, fill caches and compile."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Images a second of one network: ``step`` forward, backward and descent, ``epoch`` with the
    loading and augmentation of the batch too, ``plain`` the plain formulation's step."""

    net: str
    weights: int
    step: float
    epoch: float
    plain: float

    @property
    def ratio(self) -> float:
        return self.step / self.plain

    def report(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "ratio": self.ratio}


class PlainConvolution(nn.Module):
    """A 1-bit convolution by a detached difference."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel // 2
        self.scale = math.sqrt(2 / (kernel * kernel * c_in))
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel) * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        sign = torch.where(self.weight >= 0, 1.0, -1.0).to(self.weight.dtype)
        binary = self.weight + (self.scale * sign - self.weight).detach()
        return F.conv2d(x, binary, stride=self.stride, padding=self.padding)


class PlainBlock(nn.Module):
    """A residual block, every operation a call of its own."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(c_in, affine=False)
        self.conv1 = PlainConvolution(c_in, c_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(c_out, affine=False)
        self.conv2 = PlainConvolution(c_out, c_out, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(torch.relu(self.bn1(x)))
        y = self.conv2(torch.relu(self.bn2(y)))
        if self.stride == 2:
            x = F.avg_pool2d(x, 3, stride=2, padding=1)
            x = torch.cat([x, torch.zeros_like(x)], dim=1)
        return x + y


class PlainNetwork(nn.Module):
    """The paper's 1-bit network with fixed batch norm: pixels (N, 3, H, W) to scores."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        before = architecture.channels(1)
        self.bn0 = nn.BatchNorm2d(architecture.input[0], affine=False)
        self.conv0 = PlainConvolution(architecture.input[0], before, 3, 1)
        blocks = []
        for stage in (1, 2, 3):
            for block in range(architecture.blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(PlainBlock(before, architecture.channels(stage), stride))
                before = architecture.channels(stage)
        self.blocks = nn.Sequential(*blocks)
        self.bn1 = nn.BatchNorm2d(before, affine=False)
        self.conv = PlainConvolution(before, architecture.classes, 1, 1)
        self.bn2 = nn.BatchNorm2d(architecture.classes, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.conv0(self.bn0(x.to(self.conv.weight.dtype))))
        x = self.bn2(self.conv(torch.relu(self.bn1(x))))
        scores: Tensor = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return scores


def benchmark(
    nets: Sequence[tuple[str, int, float]],
    team: Team,
    execution: Execution,
    batch: int,
    seconds: float,
) -> list[Speed]:
    """Time each of ``nets`` (name, depth, width) for ``seconds``, in its three forms, on noise.

    Raises `UsageError` for a batch that batch norm cannot normalise.
    """
    if batch < 2:
        raise UsageError(f"--batch must be at least 2, not {batch}")
    return [_measure(*net, team, execution, batch, seconds) for net in nets]


def _measure(
    name: str,
    depth: int,
    width: float,
    team: Team,
    execution: Execution,
    batch: int,
    seconds: float,
) -> Speed:
    architecture = Architecture(depth, width, 10, (3, 32, 32))
    recipe = Recipe(epochs=1, batch=batch, augmentation=Augmentation(flip=True, pad=4))
    data = _noise(batch, team.device)
    runner = Runner(Job("noise", architecture, recipe, execution=execution), team)
    network = PlainNetwork(architecture).to(team.device)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def plain_step() -> None:
        loss = F.cross_entropy(network(data.images), data.labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    forms: list[Callable[[], object]] = [
        lambda: runner.step(data.images, data.labels),
        lambda: runner.train_epoch(0, data, Progress()),  # one batch is all its epoch
        plain_step,
    ]
    step, epoch, plain = (_rate(form, batch, team.device, seconds) for form in forms)
    return Speed(name, architecture.num_weights, step, epoch, plain)


def _noise(batch: int, device: torch.device) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    return Split(images.to(device), labels.to(device))


def _rate(form: Callable[[], object], batch: int, device: torch.device, seconds: float) -> float:
    """Images a second, over whole steps."""
    for _ in range(WARM_UP_STEPS):
        form()
    _finish(device)
    began, steps = time.perf_counter(), 0
    while steps < MIN_STEPS or time.perf_counter() - began < seconds:
        form()
        steps += 1
        if steps % MIN_STEPS == 0:  # so that a GPU's queue does not run ahead of the clock
            _finish(device)
    _finish(device)
    return steps * batch / (time.perf_counter() - began)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
