"""When memory is asked for what, as the engine is built on it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from compiler import cycles
from compiler.geometry import Geometry, geometry_for
from compiler.schedule import schedule
from tests.support.networks import random_program

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


def test_two_ports_are_not_waited_for() -> None:
    """Reads and writes at once: a layer of the residual stream is done sooner, none later."""
    program = random_program(0, 8, depth=8, width=1, shape=(3, 12, 12), classes=10)
    one = schedule(program, Geometry(pixel_lanes=4, pump=1))
    two = schedule(program, replace(one.geometry, two_ports=True))
    pairs = list(zip(one.layers, two.layers, strict=True))
    assert all(b.cycles <= a.cycles for a, b in pairs)
    assert any(b.cycles < 0.9 * a.cycles for a, b in pairs if a.record["residual"])


def test_maps_lie_close_together() -> None:
    """WRN 20-2: the image, a residual stream and an activation."""
    program = random_program(0, 8, depth=20, width=2, shape=(3, 32, 32), classes=10)
    laid_out = schedule(program, Geometry())
    assert laid_out.geometry.memory_depth - laid_out.room == 2 * 1024 + 4096 + 2048


def test_two_bits_on_twice_the_lanes() -> None:
    """WRN 20-2 keeps 512 lanes busy, though each tile leaves a step idle for its sums."""
    geometry = geometry_for(Geometry(), 2, (32, 16, 1))
    program = random_program(0, 8, depth=20, width=2, shape=(3, 32, 32), classes=10, bits=2)
    laid_out = schedule(program, replace(geometry, bias_bits=16, divisor_bits=24, offset_bits=34))
    assert geometry.lanes == 512 and geometry.split_sums
    assert 0.8 < program.addsub_per_image / laid_out.cycles / geometry.lanes < 0.85


def test_rows_of_sdram_cost_what_they_rest() -> None:
    """Units of a pass come one after another, but for a rest behind each row."""
    pace = cycles.FlashPace(4, 64, 0, start_cycles=20, row_units=8, row_cycles=14)
    flash = cycles.Flash(pace, word_units=1, ring=100, ahead=0, coming=20)
    came = []
    for cycle in range(200):
        if flash.writes():
            came.append(cycle)
        flash.run()
    steps = [b - a for a, b in pairwise(came)]
    first, then, second = steps[:19], steps[19], steps[20:28]
    assert first == [18 if i % 8 == 0 else 4 for i in range(1, 20)]
    assert then == 4 + 20 + 2 * 4  # CRC and frame are two units
    assert second == [4] * 7 + [18]


def test_refreshes_of_sdram_cost_what_nobody_waits_through() -> None:
    """One that is due comes between units; of one while the ring is full what is left counts."""
    pace = cycles.FlashPace(4, 64, 0, start_cycles=20, row_cycles=14, most_cycles=40)

    def steps(waits: int) -> list[int]:
        flash = cycles.Flash(pace, word_units=1, ring=4, ahead=4, coming=1000, cycle=3)
        flash.run(waits)
        came = []
        for cycle in range(200):
            flash.ahead = 0
            if flash.writes():
                came.append(cycle)
            flash.run()
        return [b - a for a, b in pairwise(came)]

    assert steps(0)[:22] == [18 if i in (10, 20) else 4 for i in range(22)]
    lasts = {38: 0, 39: 14, 41: 13, 50: 4, 54: 0, 60: 0, 54 + 40: 14, 54 + 41: 13}
    assert {waits: steps(waits)[0] - 4 for waits in lasts} == lasts


def test_two_groups_on_a_window_save_what_it_costs_to_fetch() -> None:
    """WRN 20-2 on four pixels: where the window's words are scarce, and only there."""
    program = random_program(0, 8, depth=8, width=2, shape=(3, 32, 32), classes=10)
    one = schedule(program, Geometry(pixel_lanes=4, pump=1, two_ports=True, weight_depth=512))
    two = schedule(program, replace(one.geometry, paired_groups=True))
    for a, b in zip(one.layers, two.layers, strict=True):
        assert b.cycles < a.cycles if b.record["paired"] else b.cycles == a.cycles
    assert sum(layer.record["paired"] for layer in two.layers) == 6
    assert two.cycles < 0.75 * one.cycles
