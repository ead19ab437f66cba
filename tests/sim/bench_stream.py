"""Runs inside the simulator: the drivers on `designs.Increment`."""

import random
import time

import cocotb
from cocotb.triggers import RisingEdge

from sim import bench
from sim.drivers import LAZY, STALLS, StreamSink, StreamSource, first_difference

PATTERNS = {**STALLS, "lazy": LAZY}


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def increments(dut):
    """Every word comes out plus one, in order, whatever the stalls."""
    given = bench.parameters()
    source_stall, sink_stall = PATTERNS[given["source"]], PATTERNS[given["sink"]]
    bench.start_clocks(dut)
    source = StreamSource(dut, "i", stall=source_stall)
    sink = StreamSink(dut, "o", stall=sink_stall)
    await bench.reset(dut)
    rng = random.Random(cocotb.RANDOM_SEED)
    top = (1 << source.width) - 1
    words = [rng.randint(0, top) for _ in range(given["words"])]
    started = time.perf_counter()
    source.start(words)
    got = await sink.receive(len(words))
    wall_s = time.perf_counter() - started
    problem = first_difference([(word + 1) & top for word in words], got)
    assert not problem, problem
    spent = sink.cycles[-1] - sink.cycles[0] + 1
    bench.publish(cycles=spent, wall_s=wall_s, received=sink.received)
    for _ in range(20):
        await RisingEdge(dut.clk)
    assert sink.received == len(words)
