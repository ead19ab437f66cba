"""The maximum: windows of random activations, against `arith.max_pool`, into memory."""

from __future__ import annotations

import random
from dataclasses import asdict, replace

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped
from cocotb.triggers import RisingEdge, with_timeout

from compiler import arith
from compiler.arith import Pads
from compiler.geometry import Geometry
from hw.maximum import Maximum
from hw.requantise import TileCounter
from sim import bench
from sim.benches.points import EIGHT, SMALL, Points, Ports, fields, join, split

POINTS = {
    "plain": Geometry(memory_depth=1024, max_pool=True),
    "small": replace(SMALL, max_pool=True),
    "eight": replace(EIGHT, max_pool=True),
}

WINDOWS = [
    *((2, 2, Pads(0, 0, 0, 0)), (3, 2, Pads(1, 1, 1, 1)), (3, 1, Pads(0, 1, 1, 0))),
    (1, 2, Pads(0, 0, 0, 0)),
]
"""Kernel, stride and pads."""


class Maxima(wiring.Component):
    """`hw.maximum.Maximum` and the `hw.requantise.TileCounter` that tells it where it is.

    Members
    -------
    those of the maximum, but for `tile`
    """

    def __init__(self, geometry: Geometry) -> None:
        self._maximum, self._tiles = Maximum(geometry), TileCounter(geometry)
        members = self._maximum.signature.members
        super().__init__({name: members[name] for name in members if name != "tile"})

    def elaborate(self, platform):
        m = Module()
        m.submodules.maximum, m.submodules.tiles = maximum, tiles = self._maximum, self._tiles
        for name, member in self.signature.members.items():
            if member.is_signature:
                connect(m, flipped(getattr(self, name)), getattr(maximum, name))
            elif member.flow is Out:
                m.d.comb += getattr(self, name).eq(getattr(maximum, name))
            else:
                m.d.comb += getattr(maximum, name).eq(getattr(self, name))
        m.d.comb += [
            tiles.record.eq(self.record),
            tiles.restart.eq(self.layer_start),
            tiles.step.eq(maximum.tile_step),
            maximum.tile.eq(tiles.o),
        ]
        return m


def design(grid: bool = False):
    """Several geometries in one model; more rounds of them in the full grid."""
    blocks = Points({name: Maxima(geometry) for name, geometry in POINTS.items()})
    given = {"points": {name: asdict(g) for name, g in POINTS.items()}, "rounds": 20 if grid else 3}
    return {"": (blocks, {}, given)}


def words_of(q: np.ndarray, kernel: int, stride: int, pads: Pads) -> list[tuple[np.ndarray, bool]]:
    """One plane (lanes, H, W) as the window buffer gives it: words, and whether they end one."""
    _, h, w = q.shape
    around = np.pad(q, ((0, 0), (pads.top, pads.bottom), (pads.left, pads.right)))
    lines, columns = pads.output_size((h, w), kernel, stride)
    return [
        (around[:, y * stride + j, x * stride + i], (i, j) == (kernel - 1, kernel - 1))
        for y in range(lines)
        for x in range(columns)
        for i in range(kernel)
        for j in range(kernel)
    ]


async def _run(dut, name: str, g: Geometry, rounds: int) -> int:
    """Layers of two planes; a word comes in some cycles, each time one, and never waits."""
    ports, edge = Ports(dut, name), RisingEdge(dut.clk)
    seed = f"{cocotb.RANDOM_SEED}/{name}"
    draw, rng = random.Random(seed), np.random.default_rng(list(seed.encode()))
    held, top = 0, (1 << g.activation_bits) - 1
    for kernel, stride, pads in WINDOWS * rounds:
        h, w = (int(n) for n in rng.integers(4, 8, 2))
        q = rng.integers(0, top + 1, (2, g.word_channels, h, w))
        falling = rng.random((2, g.word_channels)) < 0.3
        best = arith.max_pool(q, kernel, stride, pads)
        best = np.where(falling[:, :, None, None], top - best, best)
        planes, _, lines, columns = best.shape
        first = draw.randrange(100)
        record = dict.fromkeys((field for field, _ in g.record_fields), 0) | {
            "height_out_less": lines - 1,
            "tiles_less": columns - 1,
            "groups_less": planes - 1,
            "out_first": first,
        }
        ports.record.value, ports.layer_start.value = fields(g.record_fields, record), 1
        await edge
        ports.layer_start.value = 0
        expected = [
            (join(best[p, :, y, x], g.activation_bits), (y, x) == (lines - 1, columns - 1))
            for p in range(planes)
            for y in range(lines)
            for x in range(columns)
        ]
        written: list[tuple[int, bool]] = []
        share = draw.choice((1.0, 0.6))
        queue = [(p, *item) for p in range(planes) for item in words_of(q[p], kernel, stride, pads)]
        ending = None
        while len(written) < len(expected):
            send = bool(queue) and draw.random() < share
            ports.valid.value = int(send)
            ports.falling.value = 0 if ending is None else join(falling[ending], 1)
            ending = None
            if send:
                plane, word, last = queue.pop(0)
                ports.word.value = join(word, g.activation_bits)
                ports.last.value = int(last)
                ending = plane if last else None
            await edge
            if ports.memory__valid.value == 1:
                at = first + len(written)
                assert int(ports.memory__address.value) == at, f"{name}: address of word {at}"
                assert split(int(ports.memory__mask.value), 1, g.mask_bits).all()
                written.append((int(ports.memory__data.value), ports.group_done.value == 1))
        ports.valid.value = 0
        await edge
        assert written == expected, f"{name}: {kernel}x{kernel}/{stride}, {pads}, of {h}x{w}"
        held += len(written)
    return held


@cocotb.test()
async def takes_the_largest(dut):
    """Every word in its place, with and without pauses; channels that fall are complemented."""
    given = bench.parameters()
    bench.start_clocks(dut)
    points = {name: Geometry(**g) for name, g in given["points"].items()}
    for name in points:
        for port in ("layer_start", "valid", "last", "falling"):
            getattr(Ports(dut, name), port).value = 0
    await bench.reset(dut)
    tasks = [cocotb.start_soon(_run(dut, name, g, given["rounds"])) for name, g in points.items()]
    words = 0
    for task in tasks:
        words += await with_timeout(task, 5, "ms")
    bench.publish(words=words)
