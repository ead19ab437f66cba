"""The reader of an SDRAM, against models of one and of the flash that is copied to it.

The models end the simulation where a chip would not understand, or forget.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from itertools import pairwise

import cocotb
import pytest
from amaranth.hdl import Cat, ClockSignal, Instance, Module, Mux, Signal, Value
from cocotb.triggers import ClockCycles, Timer

from compiler.cycles import FlashPace
from compiler.geometry import UNIT_CLOCKS
from hw.flash import FlashReader
from hw.sdram import COLUMN_BITS, DATA_BITS, ROW_BITS, SdramReader
from hw.store import HEAD_BITS, missing_clocks
from sim import bench
from sim.benches.flash import FlashOnBoard, Passes
from sim.benches.points import Points

CLOCKS = {"": 80e6}
GRID_CLOCKS = CLOCKS | {"slow": 75e6, "fast": 100e6}

OFFSET = 2 << 20
NAME = "board"

ROW_BYTES = (DATA_BITS << COLUMN_BITS) // 8
ROOM = (1.0, 0.3, 0.05)
"""How often a unit is let go of, in cycles."""


class SdramOnBoard(FlashOnBoard):
    """A reader with an SDRAM on its pins too, whose data come at the clock's next edge."""

    def wire(self, m: Module) -> list[Value]:
        """The SDRAM too, and what it sends a cycle late."""
        reader = self._reader

        def pins(name: str, count: int) -> list[Signal]:
            return [getattr(reader, f"sdram_{name}{i}") for i in range(count)]

        dq = pins("dq", DATA_BITS)
        drives, sends, drove, sent = Signal(), Signal(DATA_BITS), Signal(), Signal(DATA_BITS)
        floating = Signal(DATA_BITS)
        ours = dq[0].oe
        m.submodules.memory = Instance(
            "sdr_sdram",
            i_clk=reader.sdram_clk & ~ClockSignal(),
            i_ba=Cat(pins("ba", 2)),
            i_a=Cat(pins("a", ROW_BITS)),
            i_dqm=Cat(pins("dqm", 2)),
            i_dq=Mux(ours, Cat(pin.o for pin in dq), floating),
            o_dq_o=sends,
            o_drives=drives,
            **{
                f"i_{name}": getattr(reader, f"sdram_{name}")
                for name in ("cke", "cs_n", "ras_n", "cas_n", "we_n")
            },
        )
        m.d.sync += [drove.eq(drives), sent.eq(sends)]
        m.d.comb += [pin.i.eq(Mux(pin.oe, pin.o, sent[i])) for i, pin in enumerate(dq)]
        return [*super().wire(m), drove & ours]


def design(grid: bool = False):
    """A reader at each clock, and an Image of some rows."""
    found = {}
    for name, clock_hz in (GRID_CLOCKS if grid else CLOCKS).items():
        flash = FlashReader(clock_hz, OFFSET, 1, 4, late=1)
        reader = SdramReader(clock_hz, flash)
        given = {
            "clock_hz": clock_hz,
            "lines": reader.lines,
            "pace": asdict(reader.pace),
            "bytes": HEAD_BITS // 8 + (3 if grid else 2) * ROW_BYTES + 16,
        }
        blocks = Points({NAME: SdramOnBoard(reader, flash)})
        found[name] = (blocks, {"sources": ["spi_flash", "sdr_sdram"]}, given)
    return found


class _Board(Passes):
    """A board after power-on, and what lies in its flash."""

    def __init__(self, dut) -> None:
        given = bench.parameters()
        content = random.Random(cocotb.RANDOM_SEED).randbytes(given["bytes"])
        super().__init__(dut, NAME, content, given["lines"])
        board = getattr(dut, NAME)
        for i, byte in enumerate(content):
            board.flash.mem[OFFSET + i].value = byte
        board.flash.asleep.value = 1
        self._memory = board.memory
        self._memory.powered.value = 0

    async def start(self) -> None:
        """Reset it."""
        await Timer(1, "us")
        bench.start_clocks(self._dut, bench.parameters()["clock_hz"] / 1e6)
        await bench.reset(self._dut, 8)
        self._memory.powered.value = 1


@cocotb.test()
async def sends_what_flash_held(dut):
    """In the first pass, from flash, and in each later one, however often it is held up."""
    board = _Board(dut)
    await board.start()
    for room in (0.5, *ROOM):
        await board.read(room)
        await board.again()


@cocotb.test()
async def is_as_fast_as_it_says(dut):
    """A word a cycle, but for the cycles in which rows are changed, as `FlashPace` has it."""
    given = bench.parameters()
    pace = FlashPace(**given["pace"])
    board = _Board(dut)
    await board.start()
    await board.read(1)
    await board.again()
    cycles = (await board.read(1)).cycles
    steps = [b - a for a, b in pairwise(cycles)]
    assert cycles[0] in range(pace.start_cycles - UNIT_CLOCKS, pace.start_cycles + 1)
    assert set(steps) == {1, 1 + pace.row_cycles}
    rests = [i + 1 + missing_clocks(DATA_BITS) for i, step in enumerate(steps) if step > 1]
    rows = range(1 << COLUMN_BITS, len(cycles), 1 << COLUMN_BITS)
    assert set(rows) <= set(rests)
    assert len(rests) == pytest.approx(len(cycles) / UNIT_CLOCKS / pace.row_units, abs=1)


@cocotb.test()
async def begins_again_at_any_moment(dut):
    """In the midst of a burst, or of a change of rows; and again before a word has come."""
    board = _Board(dut)
    await board.start()
    await board.read(1)
    for _ in range(40):
        for _ in range(board.rng.choice((0, 0, 1, 3))):
            await board.again(room=board.rng.randrange(2))
            await ClockCycles(dut.clk, board.rng.randrange(40))
        await board.again()
        count = board.rng.choice((4, 20, 60, ROW_BYTES - 20, ROW_BYTES + 20))
        await board.read(board.rng.choice(ROOM[:2]), count)
        await ClockCycles(dut.clk, board.rng.randrange(30))


@cocotb.test()
async def remembers(dut):
    """What nobody asks for is refreshed, and still there later."""
    board = _Board(dut)
    await board.start()
    await board.read(1)
    await board.again()
    await Timer(100, "us")
    await board.read(1)
