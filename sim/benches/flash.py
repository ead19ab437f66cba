"""The reader of the SPI flash, against a model of one that checks what it is told, and when."""

from __future__ import annotations

import random

import cocotb
from amaranth.hdl import Instance, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import Out, connect, flipped
from cocotb.triggers import ClockCycles

from hw.flash import BYTE_CYCLES, WAKE_SECONDS, FlashReader
from sim import bench
from sim.benches.points import Points, Ports
from sim.drivers import LAZY, STALLS, StreamSink, first_difference

OFFSETS = {"low": 0, "usual": 1 << 20, "odd": 0xA5C3F1}
"""Beginnings of what is read; by name of the point."""

CLOCKS = {"": 18e6}
GRID_CLOCKS = CLOCKS | {"slow": 16e6, "fast": 100e6}

LONGEST_WAKE_NS = WAKE_SECONDS * 1e9 - 1
"""A flash as slow to wake as the reader allows for."""


class FlashOnBoard(wiring.Component):
    """A reader with a flash on its pins.

    Members
    -------
    o : Out(stream of 8)
    """

    def __init__(self, reader: FlashReader) -> None:
        self._reader = reader
        super().__init__({"o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.reader = reader = self._reader
        cipo = Signal()
        m.submodules.flash = Instance(
            "spi_flash",
            p_WAKE_NS=int(LONGEST_WAKE_NS),
            i_cs_n=reader.flash_cs_n,
            i_clk=reader.flash_clk,
            i_copi=reader.flash_copi,
            o_cipo=cipo,
        )
        m.d.comb += reader.flash_cipo.eq(cipo)
        connect(m, reader.o, flipped(self.o))
        return m


def design(grid: bool = False):
    """Three places in flash, at each clock."""
    found = {}
    for name, clock_hz in (GRID_CLOCKS if grid else CLOCKS).items():
        readers = {at: FlashReader(clock_hz, offset) for at, offset in OFFSETS.items()}
        given = {
            "clock_hz": clock_hz,
            "start": {at: reader.start_cycles for at, reader in readers.items()},
            "bytes": 400 if grid else 60,
        }
        blocks = Points({at: FlashOnBoard(reader) for at, reader in readers.items()})
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

    def hold(self, sinks: dict, received: dict) -> None:
        """Compare what was read."""
        for name, got in received.items():
            problem = first_difference(list(self.expected[name][: len(got)]), got)
            assert not problem, f"{name}, stalls {sinks[name].stall.name}: {problem}"


async def _start(dut, stall) -> dict[str, StreamSink]:
    for name in OFFSETS:
        Ports(dut, name).o__ready.value = 0
    await bench.reset(dut, 8)
    return {name: StreamSink(dut, Ports(dut, name).name("o"), stall=stall) for name in OFFSETS}


@cocotb.test()
async def reads_from_its_offset(dut):
    """Wakes the flash and sends its bytes, however often it is held up; in time without."""
    given = bench.parameters()
    bench.start_clocks(dut, given["clock_hz"] / 1e6)
    content = _Content(dut, given["bytes"])
    for stall in (*STALLS.values(), LAZY):
        content.sleep()
        sinks = await _start(dut, stall)
        received = {name: await sink.receive(given["bytes"]) for name, sink in sinks.items()}
        content.hold(sinks, received)
        for name, sink in sinks.items():
            sink.stop()
            if stall.never:
                first = given["start"][name]
                expected = [first + BYTE_CYCLES * i for i in range(given["bytes"])]
                assert sink.cycles[: given["bytes"]] == expected, name


@cocotb.test()
async def starts_over_after_a_reset(dut):
    """Whether it comes while the flash wakes, and hears nothing, or while it sends."""
    given = bench.parameters()
    bench.start_clocks(dut, given["clock_hz"] / 1e6)
    content = _Content(dut, 8)
    rng = random.Random(cocotb.RANDOM_SEED)
    whole = max(given["start"].values())
    moments = [rng.randrange(20, whole - 100), rng.randrange(whole, whole + 100)]
    for moment in moments:
        content.sleep()
        sinks = await _start(dut, STALLS["never"])
        await ClockCycles(dut.clk, moment)
        for sink in sinks.values():
            sink.stop()
        sinks = await _start(dut, STALLS["random"])
        content.hold(sinks, {name: await sink.receive(8) for name, sink in sinks.items()})
        for sink in sinks.values():
            sink.stop()


@cocotb.test()
async def holds_the_clock_while_a_byte_waits(dut):
    """The flash is asked for no bit beyond the byte that nobody takes."""
    given = bench.parameters()
    bench.start_clocks(dut, given["clock_hz"] / 1e6)
    content = _Content(dut, 4)
    for name in OFFSETS:
        Ports(dut, name).o__ready.value = 0
    content.sleep()
    await bench.reset(dut, 8)
    await ClockCycles(dut.clk, max(given["start"].values()) + 100)
    for name in OFFSETS:
        flash = getattr(dut, name).flash
        assert int(flash.bits.value) == 32 + 8, f"{name}: bits after command and one byte"
        assert Ports(dut, name).o__valid.value == 1
        assert int(Ports(dut, name).o__payload.value) == content.expected[name][0]
