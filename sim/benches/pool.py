"""The pool: sums over windows of the residual stream, against `arith.pool` before its shift."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout

from compiler import arith
from compiler.geometry import Geometry
from compiler.program import Pool as PoolOp
from compiler.schedule import Layer, Schedule, schedule
from hw.layout import struct
from hw.pool import Pool
from hw.requantise import TileCounter, pooled_bits, value_layout
from sim import bench
from sim.benches.networks import PADDINGS, random_program
from sim.benches.points import PAIR, SMALL, TWO_PORTS, WIDE, Points, Ports, fields, join, split
from sim.benches.window import pool_addresses
from sim.drivers import STALLS, StreamSource

POINTS = {"plain": Geometry(memory_depth=4096), "pair": PAIR, "two_ports": TWO_PORTS}

GRID = POINTS | {
    "small": SMALL,
    "wide": WIDE,
    "narrow": replace(SMALL, residual_bits=14),
    "twenty": replace(WIDE, residual_bits=20),
}


class Pooling(wiring.Component):
    """`hw.pool.Pool` and the `hw.requantise.TileCounter` that tells it where it is.

    Members
    -------
    record, i, value, place : of the pool
    restart : of the counter
    """

    def __init__(self, geometry: Geometry) -> None:
        self._pool, self._tiles = Pool(geometry), TileCounter(geometry)
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "restart": In(1),
                "i": In(stream.Signature(geometry.word_bits)),
                "value": Out(self._pool.value.shape()),
                "place": Out(value_layout(geometry)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.pool, m.submodules.tiles = pool, tiles = self._pool, self._tiles
        m.d.comb += [
            pool.valid.eq(self.i.valid),
            pool.word.eq(self.i.payload),
            self.i.ready.eq(1),
            pool.record.eq(self.record),
            tiles.record.eq(self.record),
            tiles.restart.eq(self.restart),
            tiles.step.eq(pool.tile_step),
            pool.tile.eq(tiles.o),
            self.value.eq(pool.value),
            self.place.eq(pool.place),
        ]
        return m


def design(grid: bool = False):
    """Several geometries in one model."""
    points = GRID if grid else POINTS
    blocks = Points({name: Pooling(geometry) for name, geometry in points.items()})
    given = {"points": {name: asdict(g) for name, g in points.items()}}
    return {"": (blocks, {}, given | {"networks": 24 if grid else 9})}


def cases(geometry: Geometry, count: int) -> Iterator[tuple[Schedule, Layer, PoolOp]]:
    """Pooling layers of random networks: all paddings, even and odd sizes, down to two pixels."""
    for i in range(count):
        program = random_program(
            i,
            shape=(1, 3 + (i // 3) % 4, 3 + (i + i // 3) % 6),
            channels=(1 + 5 * (i % 3), 20),
            bits=geometry.activation_bits,
            padding=PADDINGS[i % len(PADDINGS)],
        ).with_residual_bits(geometry.residual_bits)
        plan = schedule(program, geometry)
        op = next(op for op in program.ops if isinstance(op, PoolOp))
        yield plan, next(layer for layer in plan.layers if layer.name == op.name), op


def residual_words(plan: Schedule, name: str, r: np.ndarray) -> dict[int, int]:
    """Address to word of a tensor (C, H, W) of residuals in memory; the rest of its region is 0."""
    g, region = plan.geometry, plan.region(name)
    c, h, w = r.shape
    tiles = -(-w // g.pixel_lanes)
    planes = region.words // (h * tiles)
    full = np.zeros((planes * g.residual_channels, h, tiles * g.pixel_lanes), np.int64)
    full[:c, :, :w] = r
    split_up = full.reshape(planes, g.residual_channels, h, tiles, g.pixel_lanes)
    rows = split_up.transpose(0, 2, 3, 1, 4).reshape(region.words, -1)
    return {region.first + i: join(row, g.residual_bits) for i, row in enumerate(rows)}


def random_residuals(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Values over the whole range, one in five at an end of it."""
    half = 1 << bits - 1
    r = rng.integers(-half, half, shape)
    ends = rng.choice([-half, half - 1, 0, -1], shape)
    return np.where(rng.random(shape) < 0.2, ends, r)


async def _run(dut, name: str, geometry: Geometry, networks: int, stall: str) -> int:
    ports, edge, g = Ports(dut, name), RisingEdge(dut.clk), geometry
    rng = np.random.default_rng([cocotb.RANDOM_SEED, len(name)])
    layout, held = value_layout(g), 0
    width = pooled_bits(g)
    for plan, layer, op in cases(g, networks):
        source, out = plan.program[op.source], plan.program[op.output]
        r = random_residuals(rng, source.shape, g.residual_bits)
        memory = residual_words(plan, op.source, r)
        sums = arith.pool(r[None], op.pads, op.count_padding, 0)[0]
        words = [0 if at is None else memory[at] for _, at in pool_addresses(plan, op)]
        ports.record.value = fields(g.record_fields, layer.record)
        ports.restart.value = 1
        await edge
        ports.restart.value = 0
        source_port = StreamSource(dut, ports.name("i"), stall=STALLS[stall])
        task = source_port.start(words)
        across = -(-out.width // g.pixel_lanes)
        tiles = (layer.record["groups_less"] + 1) * out.height * across
        together = g.slot_abreast
        for n in range(0, tiles * g.residual_lanes, together):
            tile, lane = divmod(n, g.residual_lanes)
            channel, pixel = divmod(lane, g.pixel_lanes)
            plane, spot = divmod(tile, out.height * across)
            y, t = divmod(spot, across)
            place = layout.from_bits(int(ports.place.value))
            while not place["valid"]:
                await edge
                place = layout.from_bits(int(ports.place.value))
            c, first = plane * g.residual_channels + channel, t * g.pixel_lanes + pixel
            where = f"{name}, {layer.name} of {source.shape}, {plan.program.network}: {(c, y)}"
            assert g.pixel_lanes == 1 or place["pixel"] == pixel, where
            ends = lane == g.residual_lanes - together, spot == out.height * across - 1
            assert (bool(place["word_end"]), bool(place["tile_last"])) == ends, where
            values = split(int(ports.value.value), width, together, signed=True)
            for i, got in enumerate(values.tolist()):
                x = first + i
                assert bool(place["fits"] >> i & 1) == (x < out.width), f"{where}, {x}"
                if x < out.width:
                    expected = int(sums[c, y, x]) if c < source.channels else 0
                    assert got == expected, f"{where}, {x}: expected {expected}, got {got}"
            held += together
            await edge
        await task
        await ClockCycles(dut.clk, 2 * g.residual_lanes)
    return held


@cocotb.test()
async def sums_windows(dut):
    """Every sum times 36/count, in the order of the residuals' words."""
    given = bench.parameters()
    bench.start_clocks(dut)
    points = {name: Geometry(**g) for name, g in given["points"].items()}
    values = 0
    for stall in STALLS:
        for name in points:
            Ports(dut, name).restart.value = 0
            Ports(dut, name).i__valid.value = 0
        await bench.reset(dut)
        tasks = [
            cocotb.start_soon(_run(dut, name, g, given["networks"], stall))
            for name, g in points.items()
        ]
        for task in tasks:
            values += await with_timeout(task, 20, "ms")
    bench.publish(values=values)
