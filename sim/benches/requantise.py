"""The requantiser: random accumulators to residuals, activations and scores, against `arith`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, replace

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.triggers import FallingEdge, RisingEdge, with_timeout

from compiler import arith
from compiler.geometry import GAIN_BITS, Geometry
from compiler.program import Add, Conv, Op, Pool, Program, Quantise
from compiler.schedule import Layer, Schedule, schedule
from hw import pool as pooling
from hw.requantise import Requantiser, TileCounter
from sim import bench
from sim.benches.loader import param_words
from sim.benches.networks import PADDINGS, random_program
from sim.benches.points import (
    EIGHT,
    PAIR,
    PAIRED,
    SMALL,
    TWO_PORTS,
    WIDE,
    Points,
    Ports,
    fields,
    join,
    split,
    stride_puts,
)
from sim.benches.window import pool_addresses

POINTS = {
    "plain": Geometry(memory_depth=4096),
    "pumped_pair": replace(PAIR, pump=2, residual_bits=8, stream_bits=16),
    "eight": EIGHT,
    "paired": PAIRED,
}

GRID = POINTS | {
    "pair": PAIR,
    "slow": Geometry(memory_depth=4096, pumped_sums=False),
    "two_ports": TWO_PORTS,
    "small": replace(SMALL, weight_depth=256),
    "wide": WIDE,
    "two": replace(
        SMALL,
        activation_bits=2,
        word_channels=32,
        weight_depth=256,
        divisor_bits=21,
        max_left_shift=8,
        shift_bits=4,
    ),
    "narrow": replace(SMALL, residual_bits=14, weight_depth=256),
    "pumped_wide": replace(WIDE, pump=2, residual_bits=8, stream_bits=16, bias_bits=16),
}

PASSED_ON = [
    "record",
    "strides",
    "input_mode",
    "channels",
    "layer_start",
    "gate",
    "sum_address",
    "sum",
    "byte_valid",
    "byte",
    "byte_ready",
    "bias_address",
    "bias",
    "gain",
    "stairs_address",
    "stairs",
    "input_done",
    "residual_read",
    "residual_write",
    "activation_write",
    "dividend",
    "divisor",
    "keep",
    "quotient_start",
    "quotient_done",
    "group_done",
]


class Requantising(wiring.Component):
    """`hw.requantise.Requantiser` with the tile counter and the pool, as the engine joins them.

    Members
    -------
    want : In(1), a tile would end; start : Out(1), it does
    pool_valid : In(1), pool_word : In(word_bits), words of a pooling window
    and those of the requantiser that `PASSED_ON` names
    """

    def __init__(self, geometry: Geometry) -> None:
        self._requantiser = Requantiser(geometry)
        self._tiles, self._pool = TileCounter(geometry), pooling.Pool(geometry)
        members = self._requantiser.signature.members
        super().__init__(
            {name: members[name] for name in PASSED_ON}
            | {"want": In(1), "start": Out(1)}
            | {f"pool_{name}": self._pool.signature.members[name] for name in ("valid", "word")}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.requantiser, m.submodules.pool = requantiser, pool = (
            self._requantiser,
            self._pool,
        )
        m.submodules.tiles = tiles = self._tiles
        for name in PASSED_ON:
            member = requantiser.signature.members[name]
            if member.is_signature:
                connect(m, getattr(requantiser, name), flipped(getattr(self, name)))
            elif member.flow is In:
                m.d.comb += getattr(requantiser, name).eq(getattr(self, name))
            else:
                m.d.comb += getattr(self, name).eq(getattr(requantiser, name))
        m.d.comb += [
            self.start.eq(self.want & requantiser.gate),
            requantiser.start.eq(self.start),
            pool.record.eq(self.record),
            pool.valid.eq(self.pool_valid),
            pool.word.eq(self.pool_word),
            tiles.record.eq(self.record),
            tiles.restart.eq(self.layer_start),
            tiles.step.eq(requantiser.tile_step | pool.tile_step),
            requantiser.tile.eq(tiles.o),
            pool.tile.eq(tiles.o),
            requantiser.pooled.eq(pool.value),
            requantiser.pooled_place.eq(pool.place),
        ]
        return m


def design(grid: bool = False):
    """Several geometries in one model."""
    points = GRID if grid else POINTS
    blocks = Points({name: Requantising(geometry) for name, geometry in points.items()})
    given = {"points": {name: asdict(g) for name, g in points.items()}}
    return {"": (blocks, {}, given | {"networks": 16 if grid else 4})}


def cases(geometry: Geometry, count: int) -> Iterator[Schedule]:
    """Random networks: with and without skips, every padding, addends that saturate and round."""
    tall = geometry.accumulator_bits > geometry.residual_bits + 1
    most = geometry.max_left_shift
    for i in range(count):
        program = random_program(
            i,
            shape=(1 + i % 3, 3 + i % 3, 4 + i % 4),
            channels=((5, 9), (8, 18), (12, 12), (64,) if tall else (3, 36))[i % 4],
            bits=geometry.activation_bits,
            padding=PADDINGS[i % len(PADDINGS)],
            skip=i % 4 != 3,
            shift=(min(2, most), -2, min(5, most), 0)[i % 4],
            classes=(3, 10, 17)[i % 3],
        ).with_residual_bits(geometry.residual_bits)
        yield schedule(_divided_by_all(program, geometry, i), geometry)


def _divided_by_all(program: Program, geometry: Geometry, seed: int) -> Program:
    """With divisors of all widths that the engine has in half of the channels."""
    draw = np.random.default_rng(seed)

    def drawn(old: int, most: int) -> int:
        wide = int(draw.integers(1, 1 << draw.integers(1, most, endpoint=True)))
        return wide if draw.random() < 0.5 else old

    def changed(op: Op) -> Op:
        if not isinstance(op, Quantise) or program[op.source].kind == "image":
            return op
        more = geometry.fraction_bits - op.staircase.fraction_bits
        divisors = tuple(drawn(d, geometry.divisor_bits - more) for d in op.staircase.divisors)
        return replace(op, staircase=replace(op.staircase, divisors=divisors))

    return replace(program, ops=tuple(changed(op) for op in program.ops)).verify()


class _Bench:
    """One point: everything around the requantiser, a cycle at a time."""

    def __init__(self, dut, name: str, geometry: Geometry) -> None:
        self.name, self.g, self.ports = name, geometry, Ports(dut, name)
        seed = f"{cocotb.RANDOM_SEED}/{name}"
        self.rng, self.edge = random.Random(seed), RisingEdge(dut.clk)
        self.middle = FallingEdge(dut.clk)
        self.draw = np.random.default_rng([cocotb.RANDOM_SEED, len(name)])
        self.latency = geometry.lane_cycles
        self.memory: dict[int, np.ndarray] = {}  # lanes, or after a residual the word's digits
        self.params = [0] * (2 * geometry.groups_at_once * geometry.output_lanes)
        self.bank = self.groups = 0
        self.serial: list[tuple[int, int]] = []
        self.tiles: list[list[int]] = []
        self.words: list[int] = []
        self.bytes: list[int] = []
        cocotb.start_soon(self._cycles())

    def noise(self, bits: int) -> int:
        """What stands on a port while nobody looks."""
        return self.rng.getrandbits(bits)

    async def _cycles(self) -> None:
        ports, g, rng = self.ports, self.g, self.rng
        due: dict[int, list[int]] = {}
        cycle = divided = 0
        addresses, read = (0, 0), None
        sums: list[int] = []
        asked = 0
        while True:
            ports.residual_read__data.value = self.noise(g.word_bits) if read is None else read
            ports.want.value = int(bool(self.tiles) and rng.random() < 0.8)
            give = bool(self.words) and rng.random() < 0.8
            ports.pool_valid.value = int(give)
            ports.pool_word.value = self.words.pop(0) if give else self.noise(g.word_bits)
            ports.byte_valid.value = int(bool(self.bytes))
            ports.byte.value = self.bytes[0] if self.bytes else self.noise(8)
            ports.quotient_done.value = int(divided == 1)
            divided = max(divided - 1, 0)
            for half in range(g.slot_ticks):
                # Addressed in the lanes' cycle before, when a tile's sums may just have come.
                known = sums[asked : asked + g.slot_abreast]
                word = join(known, g.accumulator_bits)
                ports.sum.value = word if known else self.noise(len(ports.sum))
                sums = due.pop(cycle, sums)
                self.give_params(*addresses)
                await (self.edge if half == g.slot_ticks - 1 else self.middle)
                addresses = int(ports.bias_address.value), int(ports.stairs_address.value)
                asked = int(ports.sum_address.value)
            cycle += 1
            read = None
            if ports.start.value == 1:
                due[cycle - 1 + self.latency] = self.tiles.pop(0)
            if self.bytes and ports.byte_ready.value == 1:
                self.bytes.pop(0)
            self.groups += int(ports.group_done.value)
            writes = ports.residual_write__valid.value == 1
            if ports.residual_read__valid.value == 1:
                assert g.two_ports or not writes, (
                    f"{self.name}: a residual is read while one is written"
                )
                read = self.word(int(ports.residual_read__address.value))
            if writes:
                self.write(ports.residual_write__address, ports.residual_write__data, -1)
            if ports.activation_write__valid.value == 1:
                taken = writes or (read is not None and not g.two_ports)
                assert not taken, f"{self.name}: an activation is written beside a residual"
                mask = int(ports.activation_write__mask.value)
                self.write(ports.activation_write__address, ports.activation_write__data, mask)
            if ports.quotient_start.value == 1:
                y = int(split(int(ports.dividend.value), len(ports.dividend), 1, signed=True)[0])
                quotient = arith.restoring_division(y, int(ports.divisor.value), arith.SCORE_BITS)
                self.serial.append((quotient, int(ports.keep.value)))
                divided = rng.randint(2, 20)

    def give_params(self, *addresses: int) -> None:
        """A channel's bias and gain, and another's staircase."""
        g, known = self.g, len(self.params)
        words = [self.params[i] if i < known else self.noise(g.param_bits) for i in addresses]
        self.ports.bias.value = words[0] & (1 << g.bias_bits) - 1
        self.ports.gain.value = words[0] >> g.bias_bits & (1 << GAIN_BITS) - 1
        self.ports.stairs.value = words[1] >> g.early_bits & (1 << g.param_bits - g.early_bits) - 1

    def word(self, address: int) -> int:
        """A word of memory as an integer."""
        return join(self.memory[address], self.g.activation_bits)

    def write(self, address, data, mask: int) -> None:
        g = self.g
        lanes = split(int(data.value), g.activation_bits, g.word_channels)
        chosen = np.repeat(split(mask, 1, g.mask_bits) == 1, g.mask_channels)
        old = self.memory.get(int(address.value), np.zeros_like(lanes))
        self.memory[int(address.value)] = np.where(chosen, lanes, old)

    async def strobe(self, name: str) -> None:
        getattr(self.ports, name).value = 1
        await self.edge
        getattr(self.ports, name).value = 0

    def load(self, params) -> None:
        """A group's parameters into the next bank."""
        at = self.bank * len(self.params) // 2
        for p in params:
            self.params[at] = join(param_words(p, self.g), self.g.stream_bits)
            at += 1
        self.bank ^= 1

    # -- the input ---------------------------------------------------------------------------

    async def input(self, plan: Schedule) -> None:
        """Bytes of a picture, through the serial divider."""
        op = next(o for o in plan.program.ops if isinstance(o, Quantise))
        image = self.draw.integers(0, 256, plan.program.image.shape)
        self.load(plan.input_params)
        self.ports.channels.value = plan.header["channels"]
        self.ports.input_mode.value = 1
        self.serial = []
        self.bytes = image.transpose(1, 2, 0).ravel().tolist()
        while self.bytes:
            await self.edge
        top = (1 << arith.INPUT_BITS) - 1
        got = [min(quotient, top) for quotient, _ in self.serial]
        expected = op.staircase(image).transpose(1, 2, 0).ravel().tolist()
        self.hold("input", np.array(expected), np.array(got))
        self.ports.input_done.value = 1
        self.ports.input_mode.value = 0
        await self.edge
        self.ports.input_done.value = 0

    # -- layers ------------------------------------------------------------------------------

    async def begin(self, layer: Layer) -> None:
        self.ports.record.value = fields(self.g.record_fields, layer.record)
        for word in stride_puts(self.g, layer.record):
            self.ports.strides.value = word
            await self.edge
        self.ports.strides.value = 0
        await self.strobe("layer_start")
        self.groups = 0

    async def conv(self, plan: Schedule, layer: Layer, values: dict[str, np.ndarray]) -> None:
        """One convolution's accumulators, drawn at random; ``values`` holds what arith expects."""
        g, r, program = self.g, layer.record, plan.program
        name, _, part = layer.name.partition(".slice")
        op = next(o for o in program.ops if isinstance(o, Conv) and o.name == name)
        acc = self.expected(program, op, layer, int(part or 0), values)
        down = r["down"] - g.max_left_shift
        rounding = 1 << down >> 1 if down > 0 else 0
        await self.begin(layer)
        self.serial = []
        for n, params in enumerate(layer.params):
            self.load(params)
            biases = self.score_biases(layer, n) if r["last"] else [p.bias for p in params]
            tiles = []
            for y in range(acc.shape[1]):
                for t in range(r["tiles_less"] + 1):
                    sums = self.draw.integers(-999, 999, (len(params), g.pixel_lanes))
                    for o in range(len(params)):
                        c = n * len(params) + o
                        for lane in range(g.pixel_lanes):
                            at = t * g.pixel_lanes + lane
                            if c < acc.shape[0] and at < acc.shape[2]:
                                sums[o, lane] = acc[c, y, at] + rounding - biases[o]
                    tiles += sums.reshape(-1, g.output_lanes * g.pixel_lanes).tolist()
            self.tiles += tiles
            while self.groups <= n:
                await self.edge
        for _ in range(3):
            await self.edge
        if r["last"]:
            expected = values[program.scores.name].ravel()
            got = [quotient for quotient, keep in self.serial if keep]
            self.hold(layer.name, expected, np.array(got))
        for tensor in (layer.residual, layer.activation):
            if tensor is not None:
                self.hold(f"{layer.name}, {tensor}", values[tensor], self.read(plan, tensor))

    def score_biases(self, layer: Layer, group: int) -> list[int]:
        """What the lanes' sums of a group are short of: no parameter says so where its staircase
        makes up for it."""
        r, (same, negate) = layer.record, arith.recode_pairs(layer.signs(self.g)[group])
        zeros = np.full((*same.shape[:-1], self.g.input_lanes), r["pad"], np.int64)
        made = arith.pair_sum(zeros, same, negate, self.g.pair_centre).sum(axis=0)
        return (-made * (r["window_less"] + 1) // (r["turn_less"] + 1)).tolist()

    def expected(self, program, op: Conv, layer: Layer, part: int, values) -> np.ndarray:
        """Random accumulators of a layer, and what becomes of them by `arith`, into ``values``."""
        g, r, out = self.g, layer.record, program[op.output]
        half = (1 << g.accumulator_bits - 1) - (1 << g.bias_bits - 1) - 32
        reach = min(out.high, half)
        acc = self.draw.integers(-reach, reach, out.shape, endpoint=True)
        ends = self.draw.choice([-reach, reach, 0, 1, -1], out.shape)
        acc = np.where(self.draw.random(out.shape) < 0.2, ends, acc)
        small = self.draw.random((out.channels, 1, 1)) < 0.5
        acc = np.where(small, acc >> self.draw.integers(0, 8, out.shape), acc)
        x = acc
        add = next((o for o in program.ops if isinstance(o, Add) and o.source == op.output), None)
        stream = add.output if add is not None else out.name
        if r["residual"]:
            old = np.zeros_like(acc)
            if part:
                old = values[f"{stream}.part"]
            elif add is not None and add.residual is not None:
                old = values[add.residual]
            x, _ = arith.add_residual(old, acc, g.max_left_shift - r["down"], g.residual_bits)
            values[stream] = values[f"{stream}.part"] = x
        quantise = next(
            (o for o in program.ops if isinstance(o, Quantise) and o.source == stream), None
        )
        if quantise is not None and (r["requantise"] or r["last"]):
            values[quantise.output] = quantise.staircase(x)
        return acc

    async def pool(self, plan: Schedule, layer: Layer, values: dict[str, np.ndarray]) -> None:
        """The residuals in memory, pooled."""
        op = next(o for o in plan.program.ops if isinstance(o, Pool) and o.name == layer.name)
        out = plan.program[op.output]
        exact = arith.pool(values[op.source][None], op.pads, op.count_padding, op.right_shift)[0]
        pooled = arith.saturate(exact, out.bits)
        await self.begin(layer)
        self.words = [0 if at is None else self.word(at) for _, at in pool_addresses(plan, op)]
        while self.groups <= layer.record["groups_less"]:
            await self.edge
        for _ in range(8):
            await self.edge
        stored = len(pooled)
        self.hold(layer.name, pooled, self.read(plan, op.output)[:stored])
        values[op.output] = np.pad(pooled, ((0, out.channels - stored), (0, 0), (0, 0)))

    # -- memory ------------------------------------------------------------------------------

    def read(self, plan: Schedule, name: str) -> np.ndarray:
        """A tensor as it stands in memory."""
        from sim.check import decode

        region = plan.region(name)
        lanes = [self.memory.get(at + i) for at, words in region.extents for i in range(words)]
        empty = np.zeros(self.g.word_channels, np.int64)
        rows = np.array([empty if row is None else row for row in lanes])
        bits = (rows[:, :, None] >> np.arange(self.g.activation_bits)) & 1
        return decode(plan, name, bits.reshape(len(rows), -1).astype(np.uint8))

    def hold(self, what: str, expected: np.ndarray, got: np.ndarray) -> None:
        """Equal, or the first differences."""
        assert expected.shape == got.shape, f"{self.name}, {what}: {expected.shape} {got.shape}"
        wrong = np.argwhere(expected != got)
        shown = [(tuple(at), expected[tuple(at)], got[tuple(at)]) for at in wrong[:3]]
        assert not len(wrong), (
            f"{self.name}, {what}: {len(wrong)} of {expected.size} differ: "
            f"(at, expected, got) {shown}"
        )


async def _run(dut, name: str, geometry: Geometry, networks: int) -> int:
    point, layers = _Bench(dut, name, geometry), 0
    for plan in cases(geometry, networks):
        values: dict[str, np.ndarray] = {}
        await point.input(plan)
        for layer in plan.layers:
            if layer.record["pool"]:
                await point.pool(plan, layer, values)
            else:
                await point.conv(plan, layer, values)
            layers += 1
    return layers


@cocotb.test()
async def requantises(dut):
    """Every residual, activation and score of every layer, no two in the same cycle."""
    given = bench.parameters()
    bench.start_clocks(dut)
    for name in given["points"]:
        ports = Ports(dut, name)
        for port in [
            "input_mode",
            "layer_start",
            "want",
            "byte_valid",
            "input_done",
            "quotient_done",
        ]:
            getattr(ports, port).value = 0
        ports.pool_valid.value = ports.record.value = 0
        for port in ("residual_read", "residual_write", "activation_write"):
            getattr(ports, f"{port}__ready").value = 1
    await bench.reset(dut)
    tasks = [
        cocotb.start_soon(_run(dut, name, Geometry(**g), given["networks"]))
        for name, g in given["points"].items()
    ]
    bench.publish(layers=sum([await with_timeout(task, 20, "ms") for task in tasks]))
