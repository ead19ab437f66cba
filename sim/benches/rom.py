"""An Image out of block RAM, as a flash of many lines would send it."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles

from compiler.cycles import FlashPace
from compiler.geometry import UNIT_CLOCKS
from hw.rom import RomReader
from hw.store import HEAD_BITS
from sim import bench
from sim.benches.flash import Passes, ReaderOnBoard
from sim.benches.points import Points

NAME = "rom"

ROOM = (1.0, 0.3, 0.05)
"""How often a unit is let go of, in cycles."""


def design(grid: bool = False):
    """Units of each size; the number of words is no power of two."""
    found: dict[str, tuple[Points, dict[str, Any], dict[str, Any]]] = {}
    for lines in (8, 16):
        unit = UNIT_CLOCKS * lines // 8
        content = random.Random(lines).randbytes(HEAD_BITS // 8 + (401 if grid else 61) * unit)
        reader = RomReader(content, lines)
        given = {"lines": lines, "pace": asdict(reader.pace), "content": content.hex()}
        blocks = Points({NAME: ReaderOnBoard(reader)})
        found[f"lines{lines}"] = (blocks, {}, given)
    return found


async def _start(dut) -> Passes:
    """The reader after a reset."""
    given = bench.parameters()
    rom = Passes(dut, NAME, bytes.fromhex(given["content"]), given["lines"])
    bench.start_clocks(dut)
    await bench.reset(dut)
    return rom


@cocotb.test()
async def sends_what_it_was_made_with(dut):
    """In each pass, however often it is held up; and at once where it is not."""
    pace = FlashPace(**bench.parameters()["pace"])
    rom = await _start(dut)
    for room in (*ROOM, 1.0):
        await rom.again()
        taker = await rom.read(room)
        if room == 1:
            first = pace.start_cycles
            assert taker.cycles == [first + i for i in range(len(taker.cycles))]


@cocotb.test()
async def begins_again_at_any_moment(dut):
    """In the midst of a unit, while one waits or none."""
    rom = await _start(dut)
    for _ in range(60):
        await rom.again()
        await rom.read(rom.rng.choice(ROOM), rom.rng.randrange(1, 80))
        await ClockCycles(dut.clk, rom.rng.randrange(9))
