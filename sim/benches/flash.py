"""The reader of the SPI flash, against a model of one that checks what it is told, and when."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from amaranth.hdl import Cat, ClockSignal, Instance, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, Timer

from compiler.geometry import UNIT_CLOCKS
from hw.flash import WAKE_SECONDS, FlashReader
from hw.rom import RomReader
from hw.sdram import SdramReader
from hw.store import missing_clocks
from sim import bench
from sim.benches.points import Points, Ports
from sim.drivers import first_difference

OFFSETS = {"low": 0, "usual": 1 << 20, "odd": 0xA5C3F1}
"""Beginnings of what is read; by name of the point."""

CLOCKS = {
    "": (18e6, 1, 2, 0),
    "half": (18e6, 2, 2, 0),
    "quad": (30e6, 1, 4, 0),
    "late": (80e6, 1, 4, 1),
}
GRID_CLOCKS = CLOCKS | {
    "slow": (16e6, 1, 2, 0),
    "fast": (48e6, 1, 2, 0),
    "half_slow": (16e6, 2, 2, 0),
    "half_fast": (100e6, 2, 2, 0),
    "quad_slow": (16e6, 1, 4, 0),
    "quad_fast": (48e6, 1, 4, 0),
    "quad_half": (100e6, 2, 4, 0),
    "half_late": (100e6, 2, 2, 1),
    "late_fast": (100e6, 1, 4, 1),
}
"""The engine's clock in Hz, cycles of the flash's, lines, and how late data come."""

LONGEST_WAKE_NS = WAKE_SECONDS * 1e9 - 1
"""A flash as slow to wake as the reader allows for."""

ROOM = (1.0, 0.5, 0.05)
"""How often there is room for a byte, in cycles."""


class ReaderOnBoard(wiring.Component):
    """A reader of Images, and what is on its pins: here nothing.

    Members
    -------
    stb, data, room : of the reader
    again : In(1), it begins again
    clash : Out(1), both drive a pin that goes both ways
    """

    def __init__(self, reader: FlashReader | SdramReader | RomReader) -> None:
        self._reader = reader
        data = Out(UNIT_CLOCKS * reader.lines)
        super().__init__(
            {"stb": Out(1), "data": data, "room": In(1), "again": In(1), "clash": Out(1)}
        )

    def elaborate(self, platform):
        m = Module()
        reader = self._reader
        m.submodules.reader = reader.again_at(m, self.again)
        m.d.comb += [
            self.clash.eq(Cat(self.wire(m)).any()),
            self.stb.eq(reader.stb),
            self.data.eq(reader.data),
            reader.room.eq(self.room),
        ]
        return m

    def wire(self, m: Module) -> list[Value]:
        """Connect the pins; what is true where both sides drive one."""
        return []


class FlashOnBoard(ReaderOnBoard):
    """A flash on the pins, and a pad that makes the clock's pulses.

    Where the flash's data are taken late, registers stand in their way.
    """

    def __init__(self, reader: FlashReader | SdramReader, flash: FlashReader) -> None:
        super().__init__(reader)
        self._flash = flash

    def wire(self, m: Module) -> list[Value]:
        """The flash, behind its pads."""
        reader, flash = self._reader, self._flash
        floating, pulse = Signal(), reader.flash_clk & ~ClockSignal()
        drives, quad_drives = Signal(), Signal()
        pads = {"io0": (reader.flash_copi, drives)}
        if flash.lines == 4:
            pads |= {
                "io2": (reader.flash_io2, quad_drives),
                "io3": (reader.flash_io3, quad_drives),
            }
        sent = {name: Signal(name=f"sent_{name}") for name in ("io0", "io2", "io3", "cipo")}
        outside = {name: Mux(pad.oe, pad.o, floating) for name, (pad, _) in pads.items()}
        m.submodules.flash = Instance(
            "spi_flash",
            p_WAKE_NS=int(LONGEST_WAKE_NS),
            i_cs_n=reader.flash_cs_n,
            i_clk=pulse if flash.clock_cycles == 1 else reader.flash_clk,
            i_copi=outside["io0"],
            i_wp_n=outside.get("io2", 1),
            i_hold_n=outside.get("io3", 1),
            o_cipo=sent["cipo"],
            **{f"o_{name}": sent[name] for name in ("io0", "io2", "io3")},
            o_drives=drives,
            o_quad_drives=quad_drives,
        )
        comes = m.d.sync if flash.late else m.d.comb
        for name, (pad, theirs) in pads.items():
            comes += pad.i.eq(Mux(theirs, sent[name], pad.oe & pad.o))
        comes += reader.flash_cipo.eq(sent["cipo"])
        return [theirs & pad.oe for pad, theirs in pads.values()]


def design(grid: bool = False):
    """Three places in flash, at each clock."""
    found = {}
    for name, (clock_hz, cycles, lines, late) in (GRID_CLOCKS if grid else CLOCKS).items():
        readers = {
            at: FlashReader(clock_hz, offset, cycles, lines, late=late)
            for at, offset in OFFSETS.items()
        }
        given = {
            "clock_hz": clock_hz,
            "cycles": cycles,
            "lines": lines,
            "start": {at: reader.start_cycles for at, reader in readers.items()},
            "bytes": 400 if grid else 60,
        }
        blocks = Points({at: FlashOnBoard(reader, reader) for at, reader in readers.items()})
        found[name] = (blocks, {"sources": ["spi_flash"]}, given)
    return found


class _Content:
    """Random bytes, written to the flash of every point from its offset on."""

    def __init__(self, dut, count: int) -> None:
        rng = random.Random(cocotb.RANDOM_SEED)
        self.expected = {}
        self._flashes = {}
        for name, offset in OFFSETS.items():
            flash = self._flashes[name] = getattr(dut, name).flash
            self.expected[name] = rng.randbytes(count)
            for i, byte in enumerate(self.expected[name]):
                flash.mem[offset + i].value = byte

    def sleep(self) -> None:
        """Power every flash down, as configuration leaves it."""
        for flash in self._flashes.values():
            flash.asleep.value = 1

    def hold(self, name: str, got: bytes, room: float) -> None:
        """Compare what was read."""
        problem = first_difference(list(self.expected[name][: len(got)]), list(got))
        assert not problem, f"{name}, room {room}: {problem}"


class Taker:
    """Takes units as `hw.store` does: one it holds while another stands in `data`.

    A unit is let go of at random, and `room` is high where none is held, or only in that cycle. Of
    the first unit ``lead`` clocks are missing.

    Attributes
    ----------
    bytes : bytearray
    cycles : list of int, of each clock's bits, counted from the reset on
    """

    def __init__(self, dut, name: str, room: float, rng: random.Random, lead: int = 0) -> None:
        self.bytes = bytearray()
        self.cycles: list[int] = []
        self._dut, self._ports, self._room, self._rng = dut, Ports(dut, name), room, rng
        self._ports.room.value = 1
        self._task = cocotb.start_soon(self._take(lead))

    async def _take(self, lead: int) -> None:
        ports, clocks, cycle = self._ports, lead, 0
        unit_bytes = bench.parameters()["lines"] * UNIT_CLOCKS // 8
        held: int | None = None
        goes = False
        waiting: int | None = None
        while True:
            await ReadOnly()
            assert ports.clash.value == 0, "flash and reader must not drive one pin"
            here = int(ports.data.value)
            assert waiting in (None, here), "data must stay while there is no room"
            if ports.stb.value == 1:
                self.cycles.append(cycle)
                clocks += 1
                if clocks % UNIT_CLOCKS == 0:
                    assert waiting is None, "one unit at most may come while one is held"
                    waiting = here
            if held is None:
                held, waiting = waiting, None
            elif goes:
                unit = held.to_bytes(unit_bytes, "big")
                self.bytes += unit[0 if self.bytes else lead * unit_bytes // UNIT_CLOCKS :]
                held = None
            await RisingEdge(self._dut.clk)
            goes = self._rng.random() < self._room
            ports.room.value = int(held is None or goes)
            cycle += 1

    async def receive(self, count: int) -> bytes:
        """The first bytes."""
        while len(self.bytes) < count:
            await RisingEdge(self._dut.clk)
        return bytes(self.bytes[:count])

    def stop(self) -> None:
        """Take no more."""
        self._task.cancel()
        self._ports.room.value = 0


class Passes:
    """A reader that is told to begin again, and what it is to send in each pass.

    Attributes
    ----------
    content : bytes
    rng : random.Random
    """

    def __init__(self, dut, name: str, content: bytes, lines: int) -> None:
        self.content, self.rng = content, random.Random(cocotb.RANDOM_SEED)
        self._dut, self._name, self._ports = dut, name, Ports(dut, name)
        self._missing = missing_clocks(lines)
        self._ports.room.value = self._ports.again.value = 0

    async def read(self, room: float, count: int | None = None) -> Taker:
        """Take a pass, or its beginning, and hold it to the content."""
        taker = Taker(self._dut, self._name, room, self.rng, self._missing)
        expected = self.content[:count]
        got = await taker.receive(len(expected))
        taker.stop()
        problem = first_difference(list(expected), list(got))
        assert not problem, f"room {room}: {problem}"
        return taker

    async def again(self, room: int = 0) -> None:
        """Tell the reader to begin again; what comes meanwhile is nobody's."""
        self._ports.room.value = room
        self._ports.again.value = 1
        await RisingEdge(self._dut.clk)
        self._ports.again.value = 0


async def _begin(dut) -> dict[str, Any]:
    """Start the clocks of a test; what runs when another ends has stopped with its clock, and the
    flash must not find the two too close."""
    given = bench.parameters()
    await Timer(1, "us")
    bench.start_clocks(dut, given["clock_hz"] / 1e6)
    return given


async def _start(dut, room: float, *, reset: bool = True) -> dict[str, Taker]:
    rng = random.Random(cocotb.RANDOM_SEED)
    for name in OFFSETS:
        Ports(dut, name).again.value = 0
    if reset:
        await bench.reset(dut, 8)
    return {name: Taker(dut, name, room, rng) for name in OFFSETS}


@cocotb.test()
async def reads_from_its_offset(dut):
    """Wakes the flash and sends its bytes, however often it is held up; in time without."""
    given = await _begin(dut)
    content = _Content(dut, given["bytes"])
    for room in ROOM:
        content.sleep()
        takers = await _start(dut, room)
        for name, taker in takers.items():
            content.hold(name, await taker.receive(given["bytes"]), room)
            taker.stop()
            if room == 1:
                first, step = given["start"][name], given["cycles"]
                count = 8 // given["lines"] * given["bytes"]
                assert taker.cycles[:count] == [first + step * i for i in range(count)], name


@cocotb.test()
async def starts_over_after_a_reset(dut):
    """Whether it comes while the flash wakes, and hears nothing, or while it sends."""
    given = await _begin(dut)
    content = _Content(dut, 8)
    rng = random.Random(cocotb.RANDOM_SEED)
    whole = max(given["start"].values())
    moments = [rng.randrange(40, whole - 200), *(rng.randrange(whole, whole + 99) for _ in "abc")]
    for moment in moments:
        content.sleep()
        for taker in (await _start(dut, 1)).values():
            cocotb.start_soon(_stop(dut, taker, moment))
        await ClockCycles(dut.clk, moment)
        for name, taker in (await _start(dut, 0.5)).items():
            content.hold(name, await taker.receive(8), 0.5)
            taker.stop()


async def _stop(dut, taker: Taker, moment: int) -> None:
    await ClockCycles(dut.clk, moment)
    taker.stop()


@cocotb.test()
async def reads_again_when_it_is_told(dut):
    """A strobe of one cycle, as the store gives it, at any moment of a read."""
    await _begin(dut)
    content = _Content(dut, 20)
    rng = random.Random(cocotb.RANDOM_SEED)
    content.sleep()
    takers = await _start(dut, 1)
    for _ in range(6):
        for name, taker in takers.items():
            content.hold(name, await taker.receive(5), 1)
            taker.stop()
            Ports(dut, name).room.value = 1
        await ClockCycles(dut.clk, rng.randrange(1, 40))
        for name in OFFSETS:
            Ports(dut, name).again.value = 1
        await ClockCycles(dut.clk, 1)
        takers = await _start(dut, 1, reset=False)
    for taker in takers.values():
        taker.stop()


@cocotb.test()
async def holds_the_clock_while_there_is_no_room(dut):
    """The flash is asked for no bit beyond the first unit; the command calls for its first ones."""
    given = await _begin(dut)
    content = _Content(dut, 4)
    for name in OFFSETS:
        Ports(dut, name).room.value = 0
    content.sleep()
    await bench.reset(dut, 8)
    await ClockCycles(dut.clk, max(given["start"].values()) + 100)
    for name in OFFSETS:
        assert int(getattr(dut, name).flash.bits.value) == 40 + 3, f"{name}: clocks"
