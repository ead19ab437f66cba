"""Activations of 2 to 8 bits while training, with steps that the hardware can add exactly.

A quantiser with step ``d`` gives ``q * d``, ``q = clip(floor(x/d + 1/2), low, high)``. Its
gradient is straight through where x lies inside the clipping range and zero outside.

Two rules tie steps together (docs/checkpoint.md): the addends of the residual stream of stage s
are ``scale * step = unit(s) * 2**j``, and ``unit(s+1) = unit(s) / 9 * 2**n``. Modulo powers of two
one number is left to choose for the whole network, `choose_steps` chooses it.

A shifted ReLU, ``max(-1, x)``, is quantised so that -1 is ``q = 0`` and 0 is the whole number
``zero = 1 / step``: the padding of the next convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compiler.arith import INPUT_BITS, aligned_step, alignment_shift
from compiler.errors import CheckpointError

BITS = range(2, 9)
"""Activation widths that can be trained."""

POOL_DIVISOR = 9
"""The mean over 3x3 pixels between two stages divides the residual stream's unit by it."""

SAMPLES = 8192
"""Values kept of each tensor and batch to choose a step on: its error is known to 1 % then."""

GRID = 32
"""Steps tried an octave: a step off by 1 % changes the squared error in its fourth digit."""


class StraightThrough(torch.autograd.Function):
    """Forward ``clip(floor(x/step + 1/2), low, high) * step``; backward the clip's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.range = low * step, high * step
        return x.mul(1 / step).add_(0.5).floor_().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.range
        return torch.ops.aten.hardtanh_backward(grad_outputs[0], x, low, high), None, None, None


def fake_quantise(x: Tensor, step: float, low: int, high: int) -> Tensor:
    """`StraightThrough`, typed."""
    y: Tensor = StraightThrough.apply(x, step, low, high)  # type: ignore[no-untyped-call]
    return y


class Quantiser(nn.Module):
    """ReLU (where unsigned), then the quantiser; ReLU or nothing alone while ``step`` is None.

    Parameters
    ----------
    bits : int
        Width of q.
    signed : bool
        Values ``-2**(bits-1) * step .. (2**(bits-1) - 1) * step``, else from 0 upwards.
    shifted : bool
        The ReLU is ``max(-1, x)``, the values are from -1 upwards.
    """

    def __init__(self, bits: int, signed: bool = False, shifted: bool = False) -> None:
        super().__init__()
        self.bits, self.signed, self.shifted = bits, signed, shifted
        self.step: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.step is not None:
            return fake_quantise(x, self.step, *self.range(self.step))
        if self.shifted:
            return x.clamp(min=-1)
        return x if self.signed else torch.relu(x)

    def range(self, step: float) -> tuple[int, int]:
        """Lowest and highest value, in steps."""
        zero = round(1 / step) if self.shifted else 1 << (self.bits - 1) if self.signed else 0
        return -zero, (1 << self.bits) - 1 - zero


class Input(Quantiser):
    """Batch norm of the raw pixels, then always 8 bits: signed, or unsigned after a ReLU."""

    def __init__(self, bn: nn.Module, relu: bool) -> None:
        super().__init__(INPUT_BITS, signed=not relu)
        self.bn = bn

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.bn(x))


@dataclass(frozen=True, slots=True)
class Addend:
    """A step that the alignment rule binds: its convolution's scale, and its stage from 1."""

    scale: float
    stage: int


@dataclass(frozen=True, slots=True)
class Site:
    """What the choice of one step depends on: the quantiser, and the values that enter it."""

    values: Tensor
    quantiser: Quantiser

    def error(self, step: float) -> float:
        """Squared error of the quantised values, relative to their power after the ReLU."""
        lowest = -math.inf if self.quantiser.signed else -1 if self.quantiser.shifted else 0
        wanted = self.values.clamp(min=lowest)
        low, high = self.quantiser.range(step)
        got = (self.values / step + 0.5).floor().clamp(low, high) * step
        return float((got - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12))

    def best_step(self) -> float:
        """The step of least error: to 2**(1/GRID), or one over a whole number where shifted."""
        levels = 1 << self.quantiser.bits
        if self.quantiser.shifted:
            return min((1 / zero for zero in range(1, levels)), key=self.error)
        reach = max(float(self.values.abs().max()), 1e-6)
        low, high = self.quantiser.range(1.0)
        finest = math.log2(reach / max(-low, high)) - 4
        grid = (2.0 ** (finest + k / GRID) for k in range(GRID * 6))
        best: float = min(grid, key=self.error)
        return best


def quantisers(network: nn.Module) -> dict[str, Quantiser]:
    """The quantisers of a network, by their names in a checkpoint, in order of the flow."""
    return {name: m for name, m in network.named_modules() if isinstance(m, Quantiser)}


@torch.no_grad()
def observe(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Site]:
    """Run float batches through a network, in the mode it is in; keep what enters each quantiser.

    ``Input`` is observed after its batch norm. The network's steps are set aside meanwhile.
    """
    found = quantisers(network)
    seen: dict[str, list[Tensor]] = {name: [] for name in found}
    steps = {name: q.step for name, q in found.items()}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            source = output if isinstance(found[name], Input) else inputs[0]
            values = source.permute(1, 0, 2, 3).reshape(-1)
            seen[name].append(values[:: max(1, len(values) // SAMPLES)].double())

        return hook

    hooks = [q.register_forward_hook(keep(name)) for name, q in found.items()]
    try:
        for q in found.values():
            q.step = None
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for name, q in found.items():
            q.step = steps[name]
    return {name: Site(torch.cat(seen[name]), q) for name, q in found.items()}


def choose_steps(sites: Mapping[str, Site], addends: Mapping[str, Addend]) -> dict[str, float]:
    """Steps of least total error under the alignment rule.

    Sites that are no addend get their own best step. For the addends every base of a grid over
    one octave is tried; at each, an addend takes the power of two of least error.
    """
    best = {name: site.best_step() for name, site in sites.items()}
    if not addends:
        return best

    def aligned(base: float) -> dict[str, float]:
        steps = {}
        for name, addend in addends.items():
            unit = base / POOL_DIVISOR ** (addend.stage - 1)
            near = aligned_step(best[name], addend.scale, unit)
            steps[name] = min((near / 2, near, near * 2), key=sites[name].error)
        return steps

    def total(steps: dict[str, float]) -> float:
        return sum(sites[name].error(step) for name, step in steps.items())

    candidates = [aligned(2.0 ** (k / GRID)) for k in range(GRID)]
    return best | min(candidates, key=total)


def verify_alignment(steps: Mapping[str, float], addends: Mapping[str, Addend]) -> None:
    """Raise `CheckpointError` naming the first step that breaks the alignment rule."""
    units = {
        name: addend.scale * steps[name] * POOL_DIVISOR ** (addend.stage - 1)
        for name, addend in addends.items()
    }
    first = next(iter(units), "")
    for name, unit in units.items():
        if alignment_shift(1.0, unit, units[first]) is None:
            raise CheckpointError(
                f"step of {name} must be aligned with that of the {first}, not {steps[name]!r}"
            )


def set_steps(network: nn.Module, steps: Mapping[str, float] | None) -> None:
    """Quantise with ``steps`` from now on; None: float activations."""
    for name, quantiser in quantisers(network).items():
        quantiser.step = None if steps is None else steps[name]
