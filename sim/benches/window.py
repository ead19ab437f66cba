"""The window: words and steps of every kind of layer, in order, whatever the memory's stalls."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.triggers import RisingEdge

from compiler import arith
from compiler.geometry import Geometry
from compiler.program import Conv, Pool
from compiler.schedule import Layer, Schedule, schedule
from hw.fetch import WindowFetch
from hw.layout import memory_read, stride_put, struct
from hw.window import WindowBuffer
from sim import bench
from sim.benches.networks import PADDINGS, random_program
from sim.benches.points import (
    EIGHT,
    PAIR,
    PAIRED,
    SMALL,
    WIDE,
    Points,
    Ports,
    fields,
    join,
    stride_puts,
)

POINTS = {"plain": Geometry(memory_depth=2048), "pair": PAIR, "paired": PAIRED}

GRID = POINTS | {"small": SMALL, "wide": WIDE, "eight": EIGHT}


class Window(wiring.Component):
    """`hw.fetch.WindowFetch` and `hw.window.WindowBuffer` as the engine joins them.

    Members
    -------
    record, layer_start, start, busy, memory : of the fetch
    marked, gate, valid, x, last, slice_end, weight_address, pool_valid, pool_word : of the buffer
    """

    def __init__(self, geometry: Geometry) -> None:
        self._fetch, self._buffer = WindowFetch(geometry), WindowBuffer(geometry)
        buffer = self._buffer
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "strides": In(stride_put(geometry)),
                "layer_start": In(1),
                "start": In(1),
                "busy": Out(1),
                "memory": Out(memory_read(geometry)),
                "marked": Out(1),
                "gate": In(1),
                "valid": Out(1),
                "x": Out(buffer.x.shape()),
                "last": Out(1),
                "slice_end": Out(1),
                "weight_address": Out(buffer.weight_address.shape()),
                "pool_valid": Out(1),
                "pool_word": Out(geometry.word_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.fetch, m.submodules.buffer = fetch, buffer = self._fetch, self._buffer
        connect(m, fetch.memory, flipped(self.memory))
        m.d.comb += [
            fetch.record.eq(self.record),
            fetch.strides.eq(self.strides),
            buffer.record.eq(self.record),
            fetch.layer_start.eq(self.layer_start),
            fetch.start.eq(self.start),
            buffer.mark.eq(self.start),
            self.busy.eq(fetch.busy),
            fetch.room.eq(buffer.room),
            buffer.coming.eq(fetch.coming),
            buffer.data.eq(fetch.data),
            buffer.gate.eq(self.gate),
        ]
        outputs = ("marked", "valid", "x", "last", "slice_end", "weight_address")
        for name in (*outputs, "pool_valid", "pool_word"):
            m.d.comb += getattr(self, name).eq(getattr(buffer, name))
        return m


def design(grid: bool = False):
    """Several geometries in one model."""
    points = GRID if grid else POINTS
    blocks = Points({name: Window(geometry) for name, geometry in points.items()})
    given = {"points": {name: asdict(g) for name, g in points.items()}}
    return {"": (blocks, {}, given | {"networks": 18 if grid else 3})}


@dataclass(frozen=True)
class Map:
    """What a window walks over: words by (plane, y, x); planes lie one behind the other, or
    ``apart``."""

    first: int
    height: int
    width: int
    apart: int = 0

    def address(self, plane: int, y: int, x: int) -> int | None:
        """Of a word in memory; None outside the map."""
        if not (0 <= y < self.height and 0 <= x < self.width):
            return None
        return self.first + plane * (self.apart or self.height * self.width) + y * self.width + x


def _digits(plan: Schedule, source: str) -> list[int]:
    """The zero point of each slice of a tensor, in every lane of a word."""
    g, tensor = plan.geometry, plan.program[source]
    digits = arith.slices(np.array(tensor.zero), tensor.bits, g.activation_bits)
    return [join([int(d)] * g.word_channels, g.activation_bits) for d in digits]


def pool_addresses(plan: Schedule, op: Pool) -> Iterator[tuple[int, int | None]]:
    """(plane, address) of each word that a pooling layer reads, in order."""
    g, source, out = plan.geometry, plan.program[op.source], plan.program[op.output]
    region = plan.region(source.name)
    words = -(-source.width // g.pixel_lanes)
    area = Map(region.first, source.height, words)
    for plane in range(region.words // (source.height * words)):
        for y in range(out.height):
            for tile in range(-(-out.width // g.pixel_lanes)):
                for k in range(3):
                    for row in range(arith.POOL_KERNEL):
                        yield (
                            plane,
                            area.address(
                                plane, 2 * y + row - op.pads.top, 2 * tile - op.pads.left + k
                            ),
                        )


@dataclass(frozen=True)
class Step:
    """What the lanes get in one cycle: an address (or padding) a pixel lane, a part of the word.

    ``part`` is the slice of the input it belongs to, and ``slice_end`` says that it is its last.
    """

    addresses: tuple[int | None, ...]
    half: int
    weight: int
    part: int
    slice_end: bool
    last: bool = False


def conv_steps(plan: Schedule, layer: Layer, op: Conv, part: int) -> Iterator[list[Step]]:
    """The steps of each group of a convolution, weights from 0.

    Of the input's slices it is ``part``, or all where the geometry takes them together.
    """
    g, program = plan.geometry, plan.program
    source, out = program[op.source], program[op.output]
    summed = source.kind == "sum"
    if summed:
        source = program[next(o.source for o in program.ops if o.output == op.source)]
    region = plan.region(source.name)
    kernel, pads, planes = (op.kernel, op.kernel), op.pads, -(-source.channels // g.word_channels)
    areas = {part: Map(region.first, source.height, source.width, region.apart)}
    if summed:
        kernel, pads = (source.height, source.width), arith.Pads(0, 0, 0, 0)
    elif source.bits > g.activation_bits or op.source == program.ops[0].output:
        slices = arith.num_slices(source.bits, g.activation_bits)
        together = g.window_slices > 1
        areas = {
            s: Map(region.first + s * (region.words // slices), source.height, source.width)
            for s in (range(slices) if together else [part])
        }
        kernel, pads, planes = (1, 3), arith.Pads(0, 1, 0, 1), 1
    apart = 0 if summed else 1  # pixel lanes of a window over the whole map read the same
    for _ in layer.params:
        group = []
        for y in range(out.height):
            for tile in range(-(-out.width // g.pixel_lanes)):
                steps: list[Step] = []
                walk = itertools.product(areas, range(kernel[1]), range(kernel[0]), range(planes))
                for s, column, row, plane in walk:
                    at = tuple(
                        areas[s].address(
                            plane,
                            y * op.stride + row - pads.top,
                            (tile * g.pixel_lanes + p * apart) * op.stride + column - pads.left,
                        )
                        for p in range(g.pixel_lanes)
                    )
                    for half in range(g.halves):
                        weight = plane * g.halves + half if summed else len(steps)
                        ends = column == kernel[1] - 1 and half == g.halves - 1 and len(areas) > 1
                        steps.append(Step(at, half, weight, s, ends))
                steps[-1] = replace(steps[-1], last=True)
                group += steps
                if layer.record.get("paired"):  # the other group's, over the same words
                    group += [replace(step, weight=step.weight + len(steps)) for step in steps]
        yield group


class _Memory:
    """Random words; gives them in the cycle after they are granted, and garbage else."""

    def __init__(self, dut, name: str, g: Geometry, rng: random.Random) -> None:
        self.ports, self.rng, self.g = Ports(dut, name), rng, g
        self.words = [rng.getrandbits(g.word_bits) for _ in range(g.memory_depth)]
        self.stall = 0.0
        cocotb.start_soon(self._serve(RisingEdge(dut.clk)))

    async def _serve(self, edge) -> None:
        ports, rng = self.ports, self.rng
        while True:
            ready = int(rng.random() >= self.stall)
            ports.memory__ready.value = ready
            await edge
            data = rng.getrandbits(self.g.word_bits)
            if ready and ports.memory__valid.value == 1:
                data = self.words[int(ports.memory__address.value)]
            ports.memory__data.value = data


class _Point:
    """One geometry: runs layers, and collects what comes out."""

    def __init__(self, dut, name: str, geometry: Geometry) -> None:
        self.name, self.g, self.ports = name, geometry, Ports(dut, name)
        self.rng = random.Random(f"{cocotb.RANDOM_SEED}/{name}")
        self.edge = RisingEdge(dut.clk)
        self.memory = _Memory(dut, name, geometry, self.rng)
        self.steps: list[tuple[int, int, int, int]] = []
        self.words: list[int] = []
        self.closed = 0.0
        self.ring = 0
        cocotb.start_soon(self._collect())

    async def _collect(self) -> None:
        ports, rng = self.ports, self.rng
        while True:
            gate = int(rng.random() >= self.closed)
            ports.gate.value = gate
            await self.edge
            if ports.valid.value == 1:
                last, ends = int(ports.last.value), int(ports.slice_end.value)
                assert gate or not last, f"{self.name}: a tile ends while the gate is closed"
                weight = int(ports.weight_address.value)
                self.steps.append((int(ports.x.value), last, ends, weight))
            if ports.pool_valid.value == 1:
                self.words.append(int(ports.pool_word.value))

    async def strobe(self, name: str) -> None:
        getattr(self.ports, name).value = 1
        await self.edge
        getattr(self.ports, name).value = 0

    async def groups(self, layer: Layer, count: int, expected: int) -> None:
        """Walk all groups of a layer, until as many steps or words as expected have come."""
        patience = 400 + 12 * expected * self.g.pixel_lanes
        self.ports.record.value = fields(self.g.record_fields, layer.record)
        for word in stride_puts(self.g, layer.record):
            self.ports.strides.value = word
            await self.edge
        self.ports.strides.value = 0
        await self.strobe("layer_start")
        self.memory.stall, self.closed = self.rng.choice(
            ((0.0, 0.0), (0.4, 0.0), (0.0, 0.6), (0.5, 0.5))
        )
        for _ in range(count):
            await self.strobe("start")
            await self.edge
            for _ in range(patience):
                if self.ports.busy.value == 0 and self.ports.marked.value == 0:
                    break
                await self.edge
            for _ in range(self.rng.choice((0, 1, 9))):
                await self.edge
        for _ in range(patience):
            if len(self.steps) + len(self.words) >= expected:
                break
            await self.edge
        for _ in range(20):  # nothing more may come
            await self.edge

    async def conv(self, plan: Schedule, layer: Layer, op: Conv, part: int) -> None:
        g = self.g
        groups = list(conv_steps(plan, layer, op, part))
        await self.groups(layer, len(groups), sum(map(len, groups)))
        pads = _digits(plan, self.source(plan, op))
        lane_bits = g.input_lanes * g.activation_bits
        expected = []
        for group in groups:
            for step in group:
                pad = pads[step.part]
                words = [pad if a is None else self.memory.words[a] for a in step.addresses]
                x = join([w >> step.half * lane_bits for w in words], lane_bits)
                weight = (self.ring + step.weight) % g.weight_depth
                expected.append((x, int(step.last), int(step.slice_end), weight))
            self.ring += layer.record["weight_words"]
        got, self.steps = self.steps, []
        self.hold(layer.name, expected, got)

    @staticmethod
    def source(plan: Schedule, op: Conv) -> str:
        """The tensor in memory that a convolution reads."""
        before = next(o for o in plan.program.ops if o.output == op.source)
        return before.source if plan.program[op.source].kind == "sum" else op.source

    async def pool(self, plan: Schedule, layer: Layer, op: Pool) -> None:
        reads = list(pool_addresses(plan, op))
        planes = reads[-1][0] + 1
        await self.groups(layer, planes, len(reads))
        mask = (1 << self.g.word_bits) - 1
        expected = [0 if a is None else self.memory.words[a] for _, a in reads]
        got, self.words = [w & mask for w in self.words], []
        self.hold(layer.name, expected, got)

    def hold(self, layer: str, expected: list, got: list) -> None:
        """Equal, or the first difference."""
        for i, (e, w) in enumerate(zip(expected, got, strict=False)):
            assert e == w, (
                f"{self.name}, {layer}, step {i} of {len(expected)}: {e} expected, got {w}"
            )
        assert len(expected) == len(got), f"{self.name}, {layer}: {len(expected)}, got {len(got)}"


def cases(geometry: Geometry, count: int) -> Iterator[Schedule]:
    """Schedules of random networks: odd and even sizes, all paddings, many groups and words."""
    for i in range(count):
        program = random_program(
            i,
            shape=(1 + i % 3, 5 + i % 4, 6 + (3 * i) % 5),
            channels=((5, 9), (18, 20), (3, 36))[i % 3],
            bits=geometry.activation_bits,
            residual_bits=geometry.residual_bits,
            padding=PADDINGS[i % len(PADDINGS)],
            signed_input=i % 2 == 0,
        )
        yield schedule(program, geometry)


async def _run(dut, name: str, geometry: Geometry, networks: int) -> int:
    point, layers = _Point(dut, name, geometry), 0
    for plan in cases(geometry, networks):
        ops = {op.name: op for op in plan.program.ops}
        for layer in plan.layers:
            op = ops[layer.name.partition(".slice")[0]]
            part = int(layer.name.partition(".slice")[2] or 0)
            if isinstance(op, Pool):
                await point.pool(plan, layer, op)
            elif isinstance(op, Conv):
                await point.conv(plan, layer, op, part)
            layers += 1
    return layers


@cocotb.test()
async def walks_windows(dut):
    """Every step's activations, weights and end of tile; every word of a pooling window."""
    given = bench.parameters()
    bench.start_clocks(dut)
    for name in given["points"]:
        ports = Ports(dut, name)
        ports.layer_start.value = ports.start.value = ports.record.value = 0
    await bench.reset(dut)
    tasks = [
        cocotb.start_soon(_run(dut, name, Geometry(**g), given["networks"]))
        for name, g in given["points"].items()
    ]
    bench.publish(layers=sum([await task for task in tasks]))
