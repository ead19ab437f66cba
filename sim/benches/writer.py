"""The input writer: quantised pixels against the layout of the first layer's words."""

from __future__ import annotations

import random
from dataclasses import asdict, replace

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from compiler import arith
from compiler.geometry import Geometry
from compiler.schedule import Schedule, schedule
from hw.writer import InputWriter
from sim import bench
from sim.benches.networks import random_program
from sim.benches.points import EIGHT, SMALL, WIDE, Points, Ports, fields, split

POINTS = {
    "plain": Geometry(memory_depth=1024),
    "eight": EIGHT,
    "twos": Geometry(activation_bits=2, word_channels=32, memory_depth=1024, bias_bits=16),
}

GRID = (
    POINTS
    | {"small": SMALL, "wide": WIDE}
    | {
        f"b{b}": replace(SMALL, activation_bits=b, max_left_shift=8, shift_bits=4)
        for b in range(2, 8)
    }
)

SHAPES = [(1, 1, 1), (3, 5, 4), (2, 3, 8), (1, 6, 1), (4, 2, 3)]
"""Of images: channels, height, width."""


def design(grid: bool = False):
    """Several geometries in one model: the input in two slices, and in one."""
    points = GRID if grid else POINTS
    blocks = Points({name: InputWriter(geometry) for name, geometry in points.items()})
    given = {"points": {name: asdict(g) for name, g in points.items()}}
    return {"": (blocks, {}, given | {"rounds": 12 if grid else 1})}


def window_words(plan: Schedule, q: np.ndarray) -> dict[int, np.ndarray]:
    """Address to lanes of every word that the first layer reads, for an input q (C, H, W)."""
    g, tensor = plan.geometry, plan.program[plan.program.ops[0].output]
    region = plan.region(tensor.name)
    c, h, w = q.shape
    slices = arith.num_slices(tensor.bits, g.activation_bits)
    rows = 1 if g.plain_input else 3
    high = np.full((c, h + rows - 1, w), tensor.zero, np.int64)
    high[:, rows // 2 : rows // 2 + h] = q
    words = {}
    for s, digits in enumerate(arith.slices(high, tensor.bits, g.activation_bits)):
        zero = int(arith.slices(np.array(tensor.zero), tensor.bits, g.activation_bits)[s])
        first = region.first + s * (region.words // slices)
        for y in range(h):
            for x in range(w):
                lanes = np.full(g.word_channels, zero, np.int64)
                for row in range(rows):
                    at = row * g.tap_lanes
                    lanes[at : at + c * g.mask_channels : g.mask_channels] = digits[:, y + row, x]
                words[first + y * w + x] = lanes
    return words


async def _write(dut, name: str, plan: Schedule, rng: random.Random) -> int:
    """One image through the writer; returns the number of words held to account."""
    ports, edge, g = Ports(dut, name), RisingEdge(dut.clk), plan.geometry
    c, h, w = plan.program.image.shape
    q = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (c, h, w))
    q[rng.randrange(c)] = rng.choice((0, 255, 128))
    queue = q.transpose(1, 2, 0).ravel().tolist()
    region = plan.region(plan.program.ops[0].output)
    memory: dict[int, np.ndarray] = {}
    ports.header.value = fields(g.header_fields, plan.header)
    await edge
    ports.start.value = 1
    await edge
    ports.start.value = 0
    share, done, offered = rng.choice((0.0, 0.5, 0.9)), False, False
    # The link sends on: without stalls each byte is taken soon, the first one at once.
    most = g.mask_bits - (g.input_rows - 1) * g.tap_channels  # lanes of a channel and what is spare
    patience = 2
    while not done:
        ports.memory__ready.value = ready = int(rng.random() >= share)
        ports.q_valid.value = 0
        offered = offered and bool(queue) and rng.random() < 0.5
        if offered:
            ports.q.value, ports.q_valid.value = queue.pop(0), 1
        await edge
        patience -= share == 0 and ports.ready.value == 0
        assert patience > 0, f"{name}, image {q.shape}: a byte waits too long"
        if offered:
            assert ports.ready.value == 1
            patience = 2 * g.input_rows * g.input_slices * most + 4
        offered = ports.ready.value == 1 and not offered
        done = ports.done.value == 1
        if ready and ports.memory__valid.value == 1:
            address = int(ports.memory__address.value)
            data = split(int(ports.memory__data.value), g.activation_bits, g.word_channels)
            mask = split(int(ports.memory__mask.value), 1, g.mask_bits) == 1
            inside = region.first <= address < region.first + region.words
            assert inside or not mask.any(), address
            mask = np.repeat(mask, g.mask_channels)
            old = memory.get(address, np.full(g.word_channels, -1))
            memory[address] = np.where(mask, data, old)
    assert not queue, f"{name}: {len(queue)} bytes of the image were not taken"
    expected = window_words(plan, q)
    for address, lanes in expected.items():
        got = memory.get(address)
        assert got is not None and (got == lanes).all(), (
            f"{name}, image {q.shape}, word {address}: expected {lanes}, got {got}"
        )
    return len(expected)


async def _run(dut, name: str, geometry: Geometry, rounds: int) -> int:
    rng, held = random.Random(f"{cocotb.RANDOM_SEED}/{name}"), 0
    for i, shape in enumerate(SHAPES * rounds):
        if shape[0] > geometry.tap_channels:
            continue
        program = random_program(
            i,
            shape=shape,
            channels=(4,),
            bits=geometry.activation_bits,
            residual_bits=geometry.residual_bits,
            signed_input=i % 3 != 1,
        )
        held += await _write(dut, name, schedule(program, geometry), rng)
    return held


@cocotb.test()
async def writes_windows(dut):
    """Every word that the first layer will read, and no word outside the input's region."""
    given = bench.parameters()
    bench.start_clocks(dut)
    for name in given["points"]:
        ports = Ports(dut, name)
        ports.start.value = ports.q_valid.value = ports.memory__ready.value = 0
    await bench.reset(dut)
    tasks = [
        cocotb.start_soon(_run(dut, name, Geometry(**g), given["rounds"]))
        for name, g in given["points"].items()
    ]
    bench.publish(words=sum([await task for task in tasks]))
