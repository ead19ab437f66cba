"""The reader of an Image in block RAM: every word, in order, again and again."""

from __future__ import annotations

import random

import cocotb

from hw.reader import RomReader
from sim import bench
from sim.benches.points import Points, Ports
from sim.drivers import LAZY, STALLS, StreamSink, first_difference

LENGTHS = (1, 2, 3, 64, 101)
GRID_LENGTHS = tuple(range(1, 35))


def _words(length: int) -> list[int]:
    rng = random.Random(length)
    return [rng.getrandbits(32) for _ in range(length)]


def design(grid: bool = False):
    """Images of several lengths in one model."""
    lengths = GRID_LENGTHS if grid else LENGTHS
    blocks = Points({f"n{length}": RomReader(_words(length)) for length in lengths})
    return {"": (blocks, {}, {"lengths": list(lengths)})}


@cocotb.test()
async def sends_again_and_again(dut):
    """Under every pattern of stalls; a word a cycle without."""
    lengths = bench.parameters()["lengths"]
    bench.start_clock(dut.clk)
    for stall in (*STALLS.values(), LAZY):
        for n in lengths:
            Ports(dut, f"n{n}").o__ready.value = 0
        await bench.reset(dut)
        sinks = {n: StreamSink(dut, Ports(dut, f"n{n}").name("o"), stall=stall) for n in lengths}
        for length, sink in sinks.items():
            got = await sink.receive(3 * length + 20)
            expected = (_words(length) * (4 + 20 // length))[: len(got)]
            problem = first_difference(expected, got)
            assert not problem, f"{length} words, stalls {stall.name}: {problem}"
            if stall.never:
                assert sink.cycles[len(got) - 1] - sink.cycles[0] == len(got) - 1
            sink.stop()
