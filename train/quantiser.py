"""Activations of 2 to 8 bits while training, with steps that the hardware can add exactly.

A quantiser with step ``d`` gives ``q * d``, ``q = clip(floor(x/d + 1/2), low, high)``. Its
gradient is straight through where x lies inside the clipping range and zero outside.

`compiler.steps` chooses the steps, on the values that `observe` sees. From there descent may move
them (`learn_steps`) by the gradient of S. K. Esser et al., "Learned step size quantization" (ICLR
2020), in octaves: steps that the alignment rule binds to each other share one number.

A shifted ReLU, ``max(-1, x)``, is quantised so that -1 is ``q = 0`` and 0 is the whole number
``zero = 1 / step``: the padding of the next convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compiler.arith import INPUT_BITS
from compiler.steps import Site

BITS = range(2, 9)
"""Activation widths that can be trained."""

SAMPLES = 8192
"""Values kept of each tensor and batch to choose a step on: its error is known to 1 % then."""


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


STEP_SHARE = 8
"""Of a batch every eighth image gives a step its gradient: a step is one number, and the images of
a batch say the same of it."""

STEP_RATE = 30.0
"""Steps' gradients are multiplied by it: with 1 they move some hundredths of an octave in 6 epochs
of CIFAR-10, with 30 some tenths, and 2-bit activations lose a quarter less in the training loss."""

STEP_REACH = 0.005
"""Most that the gradient for a step's octaves can be: small networks would throw the step away."""


class LearnedStep(torch.autograd.Function):
    """As `StraightThrough`, with a gradient for the step.

    Inside the range it is ``q - x/step``, outside ``low`` or ``high``, divided by the square root
    of values an image times levels, so that layers of all sizes learn at one rate.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        exact = x / step
        ctx.save_for_backward(exact)
        ctx.range, ctx.dtype = (low, high), step.dtype
        return exact.add(0.5).floor_().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (exact,), (low, high), (grad,) = ctx.saved_tensors, ctx.range, grad_outputs
        straight = torch.ops.aten.hardtanh_backward(grad, exact, low, high)
        some, few = (values[::STEP_SHARE].to(ctx.dtype) for values in (grad, exact))
        change = few.add(0.5).floor_().clamp_(low, high) - few * ((few > low) & (few < high))
        weight = STEP_RATE * len(exact) / len(some) / math.sqrt(exact[0].numel() * max(-low, high))
        return straight, (some * change).sum() * weight, None, None


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
        self.octaves: nn.Parameter | None = None
        """What the step is to be multiplied by, as a power of two, while it is learned."""

    def forward(self, x: Tensor) -> Tensor:
        if self.step is not None and self.octaves is not None and torch.is_grad_enabled():
            step = self.step * torch.exp2(self.octaves)
            y: Tensor = LearnedStep.apply(x, step, *self.range(1.0))  # type: ignore[no-untyped-call]
            return y
        if self.step is not None:
            return fake_quantise(x, self.step, *self.range(self.step))
        if self.shifted:
            return x.clamp(min=-1)
        return x if self.signed else torch.relu(x)

    def range(self, step: float) -> tuple[int, int]:
        """Lowest and highest value, in steps."""
        zero = round(1 / step) if self.shifted else 1 << (self.bits - 1) if self.signed else 0
        return -zero, (1 << self.bits) - 1 - zero

    def site(self, values: Tensor, bound: float | None) -> Site:
        """What its step is chosen on: ``values`` (N,) that left it while it had none."""
        seen = values.cpu().numpy()
        if self.shifted:
            return Site(seen, 0, (1 << self.bits) - 1, bound, lowest=-1.0)
        return Site(seen, *self.range(1.0), bound)


class Input(Quantiser):
    """Batch norm of the raw pixels, then always 8 bits: signed, or unsigned after a ReLU."""

    def __init__(self, bn: nn.Module, relu: bool) -> None:
        super().__init__(INPUT_BITS, signed=not relu)
        self.bn = bn

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.bn(x))


def quantisers(network: nn.Module) -> dict[str, Quantiser]:
    """The quantisers of a network, by their names in a checkpoint, in order of the flow."""
    return {name: m for name, m in network.named_modules() if isinstance(m, Quantiser)}


@torch.no_grad()
def observe(
    network: nn.Module, batches: Iterable[Tensor], bounds: Mapping[str, float]
) -> dict[str, Site]:
    """Run float batches through a network in the mode it is in; keep what its quantisers would see.

    The network's steps are set aside meanwhile. ``bounds`` holds `Site.bound` of the quantisers
    that the alignment rule binds.
    """
    found = quantisers(network)
    seen: dict[str, list[Tensor]] = {name: [] for name in found}
    steps = {name: q.step for name, q in found.items()}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            values = output.permute(1, 0, 2, 3).reshape(-1)
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
    return {name: q.site(torch.cat(seen[name]), bounds.get(name)) for name, q in found.items()}


def set_steps(network: nn.Module, steps: Mapping[str, float] | None) -> None:
    """Quantise with ``steps`` from now on; None: float activations."""
    for name, quantiser in quantisers(network).items():
        quantiser.step = None if steps is None else steps[name]


def learn_steps(network: nn.Module, bounds: Mapping[str, float]) -> list[nn.Parameter]:
    """Let descent move the network's steps; returns the parameters to descend on.

    Those of ``bounds`` move together, so they stay aligned. A shifted ReLU's step is one over a
    whole number and stays where it is.
    """
    common, learned = None, []
    for name, quantiser in quantisers(network).items():
        if quantiser.shifted:
            continue
        octaves = common if name in bounds else None
        if octaves is None:
            octaves = nn.Parameter(torch.zeros((), device=next(network.parameters()).device))
            learned.append(octaves)
        if name in bounds:
            common = octaves
        quantiser.octaves = octaves
    return learned


@torch.no_grad()
def settle_steps(network: nn.Module) -> None:
    """Make what was learned the steps themselves, which are all that is saved and deployed."""
    found = [q for q in quantisers(network).values() if q.octaves is not None]
    for quantiser in found:
        if quantiser.step is not None and quantiser.octaves is not None:
            quantiser.step *= 2.0 ** quantiser.octaves.item()
    for quantiser in found:
        if quantiser.octaves is not None:
            quantiser.octaves.zero_()
