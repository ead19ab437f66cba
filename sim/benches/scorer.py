"""The scorer: scores numbered in order, and the first of the highest named."""

from __future__ import annotations

import random

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from compiler import arith
from hw.scorer import Scorer
from sim import bench
from sim.drivers import LAZY, STALLS, StreamSink

HALF = 1 << arith.SCORE_BITS - 1


def design(grid: bool = False):
    """The one scorer there is."""
    return {"": (Scorer(), {}, {"pictures": 400 if grid else 60})}


def _scores(rng: random.Random, classes: int) -> list[int]:
    """Random scores, many of them equal, and both ends of the range."""
    pool = [rng.randrange(-HALF, HALF) for _ in range(rng.randint(1, 4))]
    pool += rng.choice(([], [-HALF], [HALF - 1], [-HALF, HALF - 1], [-1, 0]))
    return [rng.choice(pool) for _ in range(classes)]


@cocotb.test()
async def scores_and_names_the_highest(dut):
    """Every score once, in order; with the last one the class, ties to the lowest index."""
    given = bench.parameters()
    bench.start_clocks(dut)
    edge = RisingEdge(dut.clk)
    rng = random.Random(cocotb.RANDOM_SEED)
    dut.valid.value = 0
    await bench.reset(dut)
    pictures = 0
    for stall in (*STALLS.values(), LAZY):
        sink = StreamSink(dut, "o", stall=stall)
        for _ in range(given.get("pictures", 60)):
            classes = rng.choice((1, 2, 3, 10, 10, 37, 255))
            dut.classes.value = classes
            scores = _scores(rng, classes)
            for score in scores:
                dut.quotient.value, dut.valid.value = score + HALF, 1
                await edge
                dut.valid.value = 0
                await edge
                while dut.taken.value == 0:
                    await edge
                dut.quotient.value = rng.randrange(2 * HALF)
                for _ in range(rng.choice((0, 0, 3))):
                    await edge
            answers = await sink.receive(classes)
            got = [a & 2 * HALF - 1 for a in answers]
            assert got == [s & 2 * HALF - 1 for s in scores]
            assert [a >> 24 for a in answers] == [0] * (classes - 1) + [1]
            assert answers[-1] >> 16 & 0xFF == int(np.argmax(scores)), scores
            pictures += 1
        sink.stop()
    bench.publish(pictures=pictures)
