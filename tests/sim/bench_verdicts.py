"""Runs inside the simulator: benches that pass, fail and die, to try the runner on."""

import os
import random

import cocotb
from cocotb.triggers import Event, RisingEdge, Timer

from sim import bench


@cocotb.test()
async def passes(dut):
    await Timer(1, "ns")


@cocotb.test()
async def fails(dut):
    await Timer(1, "ns")
    assert 7 == 8, "7 must be 8"


@cocotb.test()
async def raises(dut):
    await Timer(1, "ns")
    raise RuntimeError("broken bench")


@cocotb.test(timeout_time=50, timeout_unit="ns")
async def waits(dut):
    await Event().wait()


@cocotb.test()
async def background_fails(dut):
    async def fault():
        await Timer(1, "ns")
        raise ValueError("in the background")

    cocotb.start_soon(fault())
    await Timer(10, "ns")


@cocotb.test()
async def dies(dut):
    await Timer(1, "ns")
    os._exit(0)


@cocotb.test()
async def hangs(dut):
    bench.start_clocks(dut)
    await Event().wait()


@cocotb.test()
async def echoes(dut):
    bench.publish(**bench.parameters())


@cocotb.test()
async def draws(dut):
    bench.publish(draw=random.getrandbits(32))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def memory(dut):
    """Contents are there from the start, and can be replaced by the bench."""
    contents = bench.parameters()["contents"]
    memory = dut.table.mem if hasattr(dut.table, "mem") else dut.table
    bench.start_clocks(dut)
    await bench.reset(dut)
    for address, expected in enumerate(contents):
        dut.address.value = address
        await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        assert int(dut.data.value) == expected
    memory[5].value = 0xBEEF
    dut.address.value = 5
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    assert int(dut.data.value) == 0xBEEF
    bench.publish(words=len(contents))
