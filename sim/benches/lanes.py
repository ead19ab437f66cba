"""The lanes: tiles of random steps with gaps between them, against `arith.pair_sum`."""

from __future__ import annotations

from dataclasses import asdict

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, RisingEdge

from compiler import arith
from compiler.geometry import Geometry
from hw.lanes import Lanes
from sim import bench
from sim.benches.points import Points, Ports, join, split

POINTS = {
    "plain": (Geometry(output_lanes=4, pump=1, residual_bits=16), "inferred"),
    "abreast": (
        Geometry(input_lanes=8, output_lanes=4, pixel_lanes=4, pump=1, stream_bits=32),
        "inferred",
    ),
    "pumped": (Geometry(activation_bits=3, output_lanes=4, stream_bits=32), "inferred"),
    "pair": (
        Geometry(input_lanes=8, output_lanes=4, pixel_lanes=2, stream_bits=16),
        "inferred",
    ),
    "blocks": (Geometry(), "spram"),
    "even": (Geometry(input_lanes=8, stream_bits=32), "spram"),
    "slow": (Geometry(input_lanes=8, pumped_sums=False, stream_bits=32), "spram"),
    "split": (
        Geometry(
            activation_bits=2,
            input_lanes=32,
            word_channels=32,
            accumulator_bits=16,
            split_sums=True,
        ),
        "spram",
    ),
}
"""Output lanes are all alike, so few of them do: each costs a second of compilation."""

GRID = {
    "small": (Geometry(input_lanes=4, output_lanes=8, pump=1, stream_bits=32), "inferred"),
    "shallow": (Geometry(input_lanes=2, pump=1, stream_bits=32), "inferred"),
} | {
    f"b{b}_{i}_{o}_{p}_{pump}": (
        Geometry(
            activation_bits=b,
            input_lanes=i,
            output_lanes=o,
            pixel_lanes=p,
            pump=pump,
            word_channels=32,
            accumulator_bits=b + 10,
            residual_bits=16,
            stream_bits=16,
        ),
        primitive,
    )
    for b in (2, 5, 8)
    for i, o, p, pump, primitive in (
        (2, 16, 1, 1, "inferred"),
        (4, 16, 1, 2, "spram"),
        (8, 8, 4, 1, "inferred"),
        (8, 8, 2, 2, "spram"),
        (16, 16, 2, 1, "inferred"),
        (32, 4, 4, 2, "inferred"),
    )
}
"""For the nights."""


def design(grid: bool = False):
    """Several geometries in one model."""
    points = GRID if grid else POINTS
    blocks = Points({name: Lanes(*point) for name, point in points.items()})
    given = {"points": {name: asdict(geometry) for name, (geometry, _) in points.items()}}
    return {"": (blocks, {"sources": ["SB_RAM40_4K"]}, given)}


class _Tiles:
    """Random steps, and the sums that `arith` makes of each tile."""

    def __init__(self, geometry: Geometry, rng: np.random.Generator) -> None:
        self.g, self.rng = geometry, rng
        self.top = (1 << geometry.activation_bits) - 1
        worst = geometry.input_lanes * self.top + geometry.input_lanes // 2
        self.most = ((1 << geometry.accumulator_bits - 1) - 1) // worst

    def tile(self, kind: str) -> tuple[list[tuple[int, int, int, int]], list[int]]:
        """One tile of steps as (x, weights, last, slice_end) words, and its sums as integers."""
        g, rng = self.g, self.rng
        steps = self.most if kind in ("lowest", "highest") else int(rng.integers(1, 12))
        slices = g.window_slices if kind == "sliced" else 1
        steps *= slices
        x = rng.integers(0, self.top, (steps, g.pixel_lanes, g.input_lanes), endpoint=True)
        signs = rng.choice(np.array([-1, 1], np.int8), (steps, g.output_lanes, g.input_lanes))
        if kind in ("lowest", "highest"):
            x[:], signs[:] = self.top, 1 if kind == "highest" else -1
        elif kind == "ends":
            x = np.where(x > self.top // 2, self.top, 0)
        same, negate = arith.recode_pairs(signs)
        each = arith.pair_sum(x[:, None], same[:, :, None], negate[:, :, None], g.pair_centre)
        coded = np.stack([same, negate], axis=-1)
        words = [
            (
                join(x[s].ravel(), g.activation_bits),
                join(coded[s].ravel(), 1),
                int(s == steps - 1),
                int(slices > 1 and (s + 1) % (steps // slices) == 0),
            )
            for s in range(steps)
        ]
        sums = each.reshape(slices, -1, *each.shape[1:]).sum(axis=1)
        total = sum(part << g.activation_bits * i for i, part in enumerate(reversed(sums)))
        half = 1 << g.accumulator_bits - 1
        return words, [int((v + half) % (2 * half) - half) for v in total.ravel()]


async def _run(dut, name: str, geometry: Geometry, tiles: int, gap: float) -> int:
    """Drives a point; returns how many tiles it has held to account."""
    g, ports, edge, middle = geometry, Ports(dut, name), RisingEdge(dut.clk), FallingEdge(dut.clk)
    rng = np.random.default_rng([cocotb.RANDOM_SEED, len(name), int(gap * 10)])
    draw = _Tiles(g, rng)
    kinds = ["lowest", "highest", *rng.choice(["random", "ends", "sliced"], tiles)]
    steps: list[tuple[int, int, int, int, list[int]]] = []
    for kind in kinds:
        words, sums = draw.tile(kind)
        steps += [(*word, sums) for word in words]
    values = g.output_lanes * g.pixel_lanes
    ticks, together = g.slot_ticks, g.slot_abreast
    # By cycle in which sums are read: what to address, and what must then come.
    due: dict[int, tuple[int, list[int]]] = {}
    weights, expected = None, None
    cycle = held = clear = 0
    idle = False  # behind a tile, where its sums are split
    while steps or due or expected is not None:
        known = int(rng.integers(1 << 30)) if weights is None else weights
        weights = None
        busy = bool(steps) and rng.random() >= gap and not (steps[0][2] and cycle < clear)
        busy, idle = busy and not idle, False
        ports.valid.value = int(busy)
        ports.last.value, ports.slice_end.value = int(rng.integers(2)), int(rng.integers(2))
        if busy:
            x, weights, last, slice_end, sums = steps.pop(0)
            ports.x.value, ports.last.value, ports.slice_end.value = x, last, slice_end
            if last:
                first = (cycle + g.lane_cycles) * ticks
                due |= {
                    first + n: (i, sums[i : i + together])
                    for n, i in enumerate(range(0, values, together))
                }
                clear = cycle + max(-(-values // g.slot_values), g.tiles_apart)
                idle = g.split_sums
        for number in range(g.pump):
            reads = number < ticks
            if reads:
                asked = cycle * ticks + number
                address, coming = due.pop(asked, (int(rng.integers(values)), None))
                ports.sum_address.value = address
            ports.weights.value = known >> number * g.pass_weight_bits & (
                (1 << g.pass_weight_bits) - 1
            )
            await (edge if number == g.pump - 1 else middle)
            if not reads:
                continue
            if expected is not None:
                word = int(ports.sum.value)
                got = split(word, g.accumulator_bits, together, signed=True).tolist()
                assert got == expected, f"{name}, value {held}: expected {expected}, got {got}"
                held += together
            expected = coming
        cycle += 1
    ports.valid.value = 0
    assert held == len(kinds) * values
    return len(kinds)


@cocotb.test()
async def sums_tiles(dut):
    """Every tile's sums, each as early and as late as it may be addressed."""
    given = bench.parameters()
    bench.start_clocks(dut)
    points = {name: Geometry(**g) for name, g in given["points"].items()}
    for name in points:
        Ports(dut, name).valid.value = 0
    await bench.reset(dut)
    held = 0
    for gap in (0.0, 0.4):
        tasks = [
            cocotb.start_soon(_run(dut, name, g, given.get("tiles", 60), gap))
            for name, g in points.items()
        ]
        for task in tasks:
            held += await task
    bench.publish(tiles=held)
