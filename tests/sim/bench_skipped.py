"""Runs inside the simulator: nothing but a skipped test, which is no verdict."""

import cocotb
from cocotb.triggers import Timer


@cocotb.test(skip=True)
async def skipped(dut):
    await Timer(1, "ns")
