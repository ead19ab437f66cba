"""The choice of quantiser steps: of least error, and such that the hardware can add exactly.

A quantiser with step ``d`` gives ``q * d``, ``q = clip(floor(x/d + 1/2), low, high)``. Each step is
the one of least squared error over the values that enter its quantiser. Those that feed the
residual stream are bound to each other (docs/checkpoint.md): each addend's ``scale * step`` is a
power of two times the stream's unit, which every pool divides. Modulo powers of two one number is
left for the whole network: it is searched for, and each bound step takes the power of two that
suits it best.

The trainer (`train.quantiser`) and the calibration of float networks (`compiler.calibrate`) differ
in where the values come from alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler import arith
from compiler.errors import CheckpointError

GRID = 16
"""Steps tried an octave: a step off by 2 % changes the squared error in its third digit."""

OCTAVES = 5
"""Free steps are sought from the one that clips nothing down to 2**-OCTAVES of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One quantiser, and the float values that enter it.

    Attributes
    ----------
    values : (N,) float64
        After the ReLU where there is one.
    low, high : int
        The least and the greatest q.
    bound : float or None
        What ``step`` times this is the residual unit of stage 1, modulo powers of two (see
        `bound_of`); None where the step is free.
    lowest : float or None
        What a shifted ReLU leaves, a whole number of steps below 0: it binds the step, and the
        step moves ``low`` and ``high``.
    """

    values: NDArray[np.float64]
    low: int
    high: int
    bound: float | None
    lowest: float | None = None

    def error(self, step: float) -> float:
        """Squared error of the quantised values relative to their power."""
        zero = 0 if self.lowest is None else round(-self.lowest / step)
        q = np.clip(np.floor(self.values / step + 0.5), self.low - zero, self.high - zero)
        power = float(np.square(self.values).sum())
        return float(np.square(q * step - self.values).sum()) / power if power else 0.0

    def free_step(self) -> float:
        """The step of least error, to one part of the grid."""
        if self.lowest is not None:
            steps = [-self.lowest / zero for zero in range(1, self.high + 1)]
            return float(min(steps, key=self.error))
        reach = float(np.abs(self.values).max()) or 1.0
        coarsest = reach / max(-self.low, self.high)
        grid = [coarsest * 2.0 ** (-k / GRID) for k in range(OCTAVES * GRID)]
        return float(min(grid, key=self.error))

    def bound_step(self, unit: float, aim: float) -> float:
        """The step of least error among the two aligned ones around ``aim``."""
        return float(min(arith.aligned_steps(aim, self.bound or 1.0, unit), key=self.error))


def bound_of(scale: float, pools: int) -> float:
    """`Site.bound` of an addend of ``scale`` that joins the stream behind ``pools`` pools.

    A pool divides the stream's unit by `arith.POOL_UNIT`, modulo powers of two.
    """
    return scale * float(arith.POOL_UNIT) ** pools


def choose_steps(sites: Mapping[str, Site]) -> dict[str, float]:
    """Steps by name: free ones by least error, bound ones by least error together."""
    steps = {name: site.free_step() for name, site in sites.items()}
    bound = {name: site for name, site in sites.items() if site.bound is not None}

    def aligned(unit: float) -> dict[str, float]:
        return {name: site.bound_step(unit, steps[name]) for name, site in bound.items()}

    def cost(unit: float) -> float:
        return sum(bound[name].error(step) for name, step in aligned(unit).items())

    if bound:
        steps |= aligned(min((2.0 ** (k / GRID) for k in range(GRID)), key=cost))
    return steps


def verify_alignment(steps: Mapping[str, float], bounds: Mapping[str, float]) -> None:
    """Raise `CheckpointError` naming the first step that breaks the alignment rule.

    ``bounds`` holds `Site.bound` of each step that the rule binds.
    """
    first = next(iter(bounds), "")
    for name, bound in bounds.items():
        if arith.alignment_shift(bound, steps[name], bounds[first] * steps[first]) is None:
            raise CheckpointError(
                f"step of {name} must be aligned with that of the {first}, not {steps[name]!r}"
            )
