"""The serial divider, against `arith.restoring_division`."""

from __future__ import annotations

import random

import cocotb
from cocotb.triggers import RisingEdge

from compiler import arith
from hw.divider import SerialDivider
from sim import bench
from sim.benches.points import Points, Ports

POINTS = {"scores": (29, 19, arith.SCORE_BITS), "narrow": (7, 9, 4), "single": (12, 3, 1)}

GRID = {
    f"d{dividend}_{divisor}_{steps}": (dividend, divisor, steps)
    for dividend in (5, 18, 34)
    for divisor in (1, 8, 24)
    for steps in (1, 2, 8, 16)
}


def design(grid: bool = False):
    """Several widths in one model; those of the default engine among them."""
    points = GRID if grid else POINTS
    blocks = Points({name: SerialDivider(*widths) for name, widths in points.items()})
    return {"": (blocks, {}, {"points": {name: list(w) for name, w in points.items()}})}


def _cases(rng: random.Random, widths: list[int], count: int):
    """Pairs of dividend and divisor: the ends, quotients about to step, and random ones."""
    dividend_bits, divisor_bits, steps = widths
    low, high, most = (
        -(1 << dividend_bits - 1),
        (1 << dividend_bits - 1) - 1,
        (1 << divisor_bits) - 1,
    )
    yield from ((y, d) for y in (low, -1, 0, 1, high) for d in (1, most))
    for _ in range(count):
        d = rng.randint(1, most) >> rng.randrange(divisor_bits) or 1
        y = rng.randint(low, high) >> rng.randrange(dividend_bits)
        if rng.random() < 0.6:
            y = d * rng.randint(0, 1 << steps) + rng.choice((-1, 0, 1, rng.randrange(d)))
        yield min(max(y, low), high), d


async def _run(dut, name: str, widths: list[int], count: int) -> int:
    ports, edge, held = Ports(dut, name), RisingEdge(dut.clk), 0
    rng, steps = random.Random(f"{cocotb.RANDOM_SEED}/{name}"), widths[2]
    for y, d in _cases(rng, widths, count):
        ports.dividend.value, ports.divisor.value, ports.start.value = y, d, 1
        await edge
        ports.start.value = 0
        ports.dividend.value, ports.divisor.value = rng.choice((-1, 0)), rng.choice((1, 0))
        for _ in range(steps):
            await edge
            assert ports.done.value == 0, f"{name}: {y} / {d} is done too early"
        await edge
        assert ports.done.value == 1, f"{name}: {y} / {d} is not done in time"
        expected = arith.restoring_division(y, d, steps)
        for _ in range(rng.choice((0, 0, 1, 5))):
            got = int(ports.quotient.value)
            assert got == expected, f"{name}: {y} / {d} must be {expected}, not {got}"
            await edge
            assert ports.done.value == 0, f"{name}: done must last one cycle"
        got = int(ports.quotient.value)
        assert got == expected, f"{name}: {y} / {d} must be {expected}, not {got}"
        held += 1
    return held


@cocotb.test()
async def divides(dut):
    """Every quotient, in time, and kept until the next start."""
    given = bench.parameters()
    bench.start_clocks(dut)
    for name in given["points"]:
        Ports(dut, name).start.value = 0
    await bench.reset(dut)
    tasks = [
        cocotb.start_soon(_run(dut, name, widths, given.get("count", 400)))
        for name, widths in given["points"].items()
    ]
    bench.publish(divisions=sum([await task for task in tasks]))
