"""When memory is asked for what, as the engine is built on it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler import cycles
from compiler.geometry import Geometry

DIVIDING = Geometry(addend_division=True, max_left_shift=5)


@pytest.mark.parametrize("pump", [1, 2])
@pytest.mark.parametrize("residual_bits", [8, 16, 20])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_divided_addends_never_meet_at_the_port(bits: int, residual_bits: int, pump: int) -> None:
    """What a word of residuals is written for is not read at the same time."""
    geometry = replace(
        DIVIDING, activation_bits=bits, residual_bits=residual_bits, pump=pump, stream_bits=16
    )
    for divide_sum in (0, 1):
        record = {"pool": 0, "maximum": 0, "divide": 1, "divide_sum": divide_sum}
        reads, writes, _ = cycles._accesses(record, geometry)
        assert set(reads).isdisjoint(writes)
