"""What a run is, as plain values: data set, network, recipe, and how it is computed.

The schedules are here too: functions of the time in epochs and the recipe, nothing else.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compiler.errors import UsageError
from train.data import Augmentation
from train.network import Architecture

SCHEDULES = ("restarts", "steps")
PRECISIONS = ("float32", "bf16")
STEPS_ARE = ("calibrated", "learned")

STEPS = (85, 170)
"""Epochs after which the step schedule divides the rate by ten."""

MANY_CLASSES = ("imagenet32", "imagenet")
"""Sets on which the paper learns batch norm's scale and offset, and decays less."""

SHIFTED_RELU_SCORE_GAIN = 1 / 25
"""Without a last batch norm scores are too large for a soft maximum, so the loss divides them.

The value is that of a public script for the shifted ReLU network; the paper (arXiv 1907.06916)
gives none. The answer does not depend on it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained; the defaults are the paper's.

    The last batch norm gives scores of variance 1 over images and pixels, so with ten classes the
    loss cannot fall below about 0.3, and a narrow network spends itself on that. ``score_gain``
    lifts the bound; it cannot change which score is highest.
    """

    epochs: int  # passes over the training set
    batch: int = 125  # images, over all processes together
    schedule: Literal["restarts", "steps"] = "restarts"
    peak_rate: float = 0.1  # learning rate at the start of each cycle
    final_rate: float = 1e-4  # and at its end
    first_cycle: int = 2  # epochs; each cycle is twice as long as the one before
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of every parameter
    score_gain: float = 1.0  # scores are multiplied by it in the loss, and nowhere else
    quantise_from: int = 0  # epoch that chooses the steps; activations are float before it
    steps: Literal["calibrated", "learned"] = "calibrated"  # kept, or moved by descent from there
    seed: int = 0  # of the weights, the order and the augmentation
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "first_cycle"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule must be one of {', '.join(SCHEDULES)}")
        if self.steps not in STEPS_ARE:
            raise UsageError(f"steps must be one of {', '.join(STEPS_ARE)}")
        if not 0 <= self.quantise_from < self.epochs:
            last = self.epochs - 1
            raise UsageError(f"quantise_from must be 0 .. {last}, not {self.quantise_from}")
        if not 0 <= self.final_rate <= self.peak_rate:
            raise UsageError(f"final rate must be 0 .. {self.peak_rate:g}, not {self.final_rate:g}")


@dataclass(frozen=True, slots=True)
class Execution:
    """How the same mathematics is computed: rounding and speed, nothing else.

    ``bf16`` computes training steps in bfloat16 with float32 weights; moments and accuracies are
    float32 always, so that what is deployed is what was measured.
    """

    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False  # by torch.compile
    channels_last: bool = True  # in memory

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True, slots=True)
class Job:
    """One run: data set, network, recipe. Two equal jobs give the same weights on one machine."""

    dataset: str
    architecture: Architecture
    recipe: Recipe
    init: str = ""  # checkpoint whose weights it starts from, empty: random ones
    execution: Execution = field(default_factory=Execution)

    def described(self) -> dict[str, Any]:
        """As nested plain values, for files."""
        description: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return description


def cycle_of(epoch: int, first_cycle: int) -> tuple[int, int]:
    """First epoch and length of the restart cycle that ``epoch`` lies in."""
    start, length = 0, first_cycle
    while epoch >= start + length:
        start, length = start + length, 2 * length
    return start, length


def ends_cycle(epochs: int, recipe: Recipe) -> bool:
    """Whether after so many epochs a network is worth keeping: a cycle or the run is over."""
    if recipe.schedule == "steps":
        return epochs == recipe.epochs
    start, length = cycle_of(epochs - 1, recipe.first_cycle)
    return epochs in (start + length, recipe.epochs)


def learning_rate(epochs: float, recipe: Recipe) -> float:
    """Cosine with warm restarts, or steps, at a time counted in epochs."""
    if recipe.schedule == "steps":
        return recipe.peak_rate * 0.1 ** sum(epochs >= step for step in STEPS)
    start, length = cycle_of(math.floor(epochs), recipe.first_cycle)
    height = (1 + math.cos(math.pi * (epochs - start) / length)) / 2
    return recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * height
