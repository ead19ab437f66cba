"""The loader: Images word by word, with stalls, each piece found where and when it is needed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge, with_timeout

from compiler import arith
from compiler.geometry import Geometry
from compiler.image import Image
from compiler.schedule import Layer, Param, Schedule, schedule
from hw.layout import stride_put
from hw.loader import Loader
from sim import bench
from sim.benches.networks import random_program
from sim.benches.points import PAIRED, SMALL, Points, Ports, fields, join, stride_puts
from sim.drivers import STALLS, StreamSource

POINTS = {
    "plain": Geometry(weight_depth=32),
    "paired": PAIRED,
}

GRID = POINTS | {
    "small": SMALL,
    "slow": Geometry(weight_depth=32, pumped_sums=False),
}
"""Rings that do not hold two of the larger groups."""

UNKEPT = ("magic", "geometry")
"""Fields of the header that are checked and then forgotten."""


def design(grid: bool = False):
    """Geometries in one model, with one stream word a step of weights and with two."""
    chosen = GRID if grid else POINTS
    blocks = Points({name: Loader(geometry) for name, geometry in chosen.items()})
    points = {name: asdict(geometry) for name, geometry in chosen.items()}
    return {"": (blocks, {}, {"points": points, "images": 8 if grid else 2})}


def param_words(param: Param, geometry: Geometry) -> list[int]:
    """The stream words of a channel's parameters."""
    bits, mask = geometry.stream_bits, (1 << geometry.stream_bits) - 1
    value = fields(geometry.param_fields, asdict(param))
    return [value >> bits * i & mask for i in range(geometry.param_words)]


def weight_steps(layer: Layer, geometry: Geometry) -> list[list[int]]:
    """Each group's steps of weights as the lanes take them."""
    same, negate = arith.recode_pairs(layer.signs(geometry))
    coded = np.stack([same, negate], axis=-1)
    return [[join(step.ravel(), 1) for step in group] for group in coded]


class _Engine:
    """Stands for the rest of the engine: asks for what comes next, checks it, lets it go."""

    def __init__(self, dut, name: str, geometry: Geometry, rng: random.Random) -> None:
        self.ports, self.edge, self.g, self.rng = (
            Ports(dut, name),
            RisingEdge(dut.clk),
            geometry,
            rng,
        )
        self.bank = self.ring = self.groups = self.records = 0
        self.puts: list[int] = []
        cocotb.start_soon(self._count())

    async def _count(self) -> None:
        while True:
            await self.edge
            self.groups += int(self.ports.group_loaded.value)
            self.records += int(self.ports.record_ready.value)
            put = int(self.ports.strides.value)
            if put & (1 << self.g.stride_words) - 1:
                self.puts.append(put)

    async def pause(self) -> None:
        """Nothing, for some cycles."""
        for _ in range(self.rng.choice((0, 0, 1, 2, 7, 60))):
            await self.edge

    async def strobe(self, name: str) -> None:
        """One cycle of a strobe."""
        getattr(self.ports, name).value = 1
        await self.edge
        getattr(self.ports, name).value = 0

    async def read(self, kind: str, address: int) -> int:
        """Parameters of a channel or weights of a step, one cycle after their address: of the
        lanes' clock, but where sums are not pumped parameters of the engine's."""
        names = ("bias_address", "stairs_address") if kind == "param" else ("weight_address",)
        ports = [getattr(self.ports, name) for name in names]
        for port in ports:
            port.value = address
        await self.edge
        for port in ports:
            port.value = 0
        halves = []
        for half in range(self.g.pump):
            last = half == self.g.pump - 1
            await (self.edge if last else FallingEdge(self.ports._dut.clk))
            if kind == "weight":
                halves.append(int(self.ports.weights.value))
            elif half == self.g.pump - self.g.slot_ticks:
                early = int(self.ports.gain.value) << self.g.bias_bits | int(self.ports.bias.value)
                stairs = int(self.ports.stairs.value) << self.g.early_bits
        return join(halves, self.g.pass_weight_bits) if kind == "weight" else stairs | early

    def hold_header(self, plan: Schedule, names: Sequence[str]) -> None:
        """Compare fields of the header."""
        header = int(self.ports.header.value)
        for name, width in self.g.header_fields:
            field, header = header & (1 << width) - 1, header >> width
            expected = plan.header[name] & (1 << width) - 1
            assert name not in names or field == expected, f"header's {name}"

    async def hold_params(self, params: tuple[Param, ...], where: str) -> None:
        """Compare the oldest bank of parameters, and turn to the other."""
        g = self.g
        expected = [join(param_words(p, g), g.stream_bits) for p in params]
        for i, word in enumerate(expected):
            got = await self.read("param", self.bank * g.groups_at_once * g.output_lanes + i)
            assert got == word, f"{where}: parameters {i} must be {word:#x}, not {got:#x}"
        self.bank ^= 1

    async def hold_weights(self, steps: list[int], where: str) -> None:
        """Compare the oldest group of weights, and go on in the ring."""
        for i, step in enumerate(steps):
            got = await self.read("weight", (self.ring + i) % self.g.weight_depth)
            assert got == step, f"{where}: step {i} of weights must be {step:#x}, not {got:#x}"
        self.ring += len(steps)

    async def picture(self, plan: Schedule) -> None:
        """All of an Image, once."""
        ports, g = self.ports, self.g
        while ports.input_ready.value == 0:
            await self.edge
        assert ports.known.value == 1 and ports.error.value == 0
        known = [name for name, _ in g.header_fields if name not in UNKEPT]
        self.hold_header(plan, known)
        await self.hold_params(plan.input_params, "input")
        await self.pause()
        self.hold_header(plan, known)
        await self.strobe("input_done")
        for layer in plan.layers:
            await self.layer(layer)
        await self.pause()
        intake = [name for name, _ in g.intake_fields]
        self.hold_header(plan, [name for name in known if name not in intake])
        await self.strobe("image_done")
        for _ in range(2):
            await self.edge
        assert ports.input_ready.value == 0

    async def layer(self, layer: Layer) -> None:
        """A record, then its groups."""
        g, ports = self.g, self.ports
        await self.pause()
        seen, self.puts = self.records, []
        await self.strobe("next_layer")
        while self.records == seen:
            await self.edge
        record = fields(g.record_fields, layer.record)
        assert int(ports.record.value) == record, layer.name
        puts = list(stride_puts(g, layer.record))
        assert self.puts[: len(puts)] == puts, f"{layer.name}: strides"
        beyond = [stride_put(g).from_bits(put).row for put in self.puts[len(puts) :]]
        assert all(row >= len(g.stride_rows) for row in beyond), f"{layer.name}: strides {beyond}"
        steps = [] if layer.record["pool"] else weight_steps(layer, g)
        taken = self.groups - int(ports.group_loaded.value)
        for n, group in enumerate(steps):
            while self.groups - taken <= n:
                await self.edge
            where = f"{layer.name}, group {n}"
            if self.rng.random() < 0.3:
                await ClockCycles(ports._dut.clk, 150)  # time enough to load too much
            await self.hold_params(layer.params[n], where)
            await self.hold_weights(group, where)
            assert int(ports.record.value) == record, where
            await self.strobe("group_done")


async def _run(dut, name: str, geometry: Geometry, images: int, stall: str) -> int:
    rng = random.Random(f"{cocotb.RANDOM_SEED}/{name}/{stall}")
    plans = [
        schedule(
            random_program(
                i,
                channels=((5, 20), (17,), (3, 9, 12))[i % 3],
                shape=(1 + i % 3, 9, 9),
                residual_bits=geometry.residual_bits,
            ),
            geometry,
        )
        for i in range(images)
    ]
    order = [plan for plan in plans for _ in range(2)]
    source = StreamSource(dut, Ports(dut, name).name("i"), stall=STALLS[stall])
    source.start(word for plan in order for word in Image.of(plan).words())
    engine = _Engine(dut, name, geometry, rng)
    for plan in order:
        await engine.picture(plan)
    return source.sent


@cocotb.test()
async def loads_ahead(dut):
    """Header, records, parameters and weights; nothing in use is written over."""
    given = bench.parameters()
    bench.start_clocks(dut)
    points = {name: Geometry(**g) for name, g in given["points"].items()}
    words = 0
    for stall in STALLS:
        for name in points:
            ports = Ports(dut, name)
            for strobe in ("input_done", "next_layer", "group_done", "image_done"):
                getattr(ports, strobe).value = 0
        await bench.reset(dut)
        tasks = [
            cocotb.start_soon(_run(dut, name, g, given["images"], stall))
            for name, g in points.items()
        ]
        for task in tasks:
            words += await with_timeout(task, 20, "ms")
    bench.publish(words=words)


@cocotb.test()
async def refuses(dut):
    """Wrong magic or geometry: ``error`` until reset, and at most one word more is taken."""
    given = bench.parameters()
    bench.start_clocks(dut)
    for name, g in given["points"].items():
        geometry, ports = Geometry(**g), Ports(dut, name)
        program = random_program(0, residual_bits=geometry.residual_bits)
        words = Image.of(schedule(program, geometry)).words()
        for bit in (0, 17, 31, 32, 49, 63):
            wrong, at = divmod(bit, geometry.stream_bits)
            source = StreamSource(dut, ports.name("i"))
            await bench.reset(dut)
            task = source.start(w ^ (i == wrong) << at for i, w in enumerate(words))
            await ClockCycles(dut.clk, len(words) + 20)
            assert wrong < source.sent <= wrong + 2
            assert ports.error.value == 1 and ports.known.value == 0
            assert ports.input_ready.value == 0
            task.cancel()
