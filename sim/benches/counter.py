"""Counter: proof that a component can be built, run, seen into and judged."""

from __future__ import annotations

import cocotb
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import RisingEdge

from sim import bench


class Counter(wiring.Component):
    """Counts enabled cycles, modulo `2 ** width`.

    Members
    -------
    en : In(1)
    count : Out(width)
    """

    def __init__(self, width: int) -> None:
        super().__init__({"en": In(1), "count": Out(width)})

    def elaborate(self, platform):
        m = Module()
        with m.If(self.en):
            m.d.sync += self.count.eq(self.count + 1)
        return m


def design():
    """The cases of `python -m sim run counter`: component, build options, bench parameters."""
    return {f"{width} bits": (Counter(width), {}, {"width": width}) for width in (3, 8)}


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def counts_enabled_cycles(dut):
    """The count is the number of enabled cycles, modulo its range."""
    given = bench.parameters()
    cycles = given.get("cycles", 600)
    bench.start_clocks(dut)
    dut.en.value = 0
    await bench.reset(dut)
    await RisingEdge(dut.clk)
    dut.en.value = 1
    for expected in range(cycles):
        await RisingEdge(dut.clk)
        assert int(dut.count.value) == expected % (1 << given["width"])
    bench.publish(last=int(dut.count.value), cycles=cycles)
