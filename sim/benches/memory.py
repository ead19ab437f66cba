"""Activation memory behind its arbiter: who is granted, what is written, what is read."""

from __future__ import annotations

from dataclasses import asdict, replace

import cocotb
import numpy as np
from amaranth.hdl import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, connect, flipped
from cocotb.triggers import RisingEdge

from compiler.geometry import Geometry
from hw.layout import memory_read, memory_write
from hw.memory import ActivationMemory, MemoryArbiter
from sim import bench
from sim.benches.points import WIDE, Points, Ports, join, split

GROUPS = [{"first": "read", "second": "write"}, {"third": "write"}, {"fourth": "read"}]
"""Highest priority first; of the first ones only one asks in a cycle."""

CLIENTS = {name: kind for group in GROUPS for name, kind in group.items()}

POINTS = {
    "inferred": (replace(Geometry(), memory_depth=64), "inferred"),
    "spram": (Geometry(), "spram"),
    "odd": (WIDE, "inferred"),
    "odd_spram": (replace(WIDE, word_channels=16, pixel_lanes=2), "spram"),
}

GRID = {
    f"{primitive}_b{b}_{words}": (
        replace(
            Geometry(),
            activation_bits=b,
            word_channels=words,
            memory_depth=256,
            input_lanes=8,
            output_lanes=8,
            pump=1,
            pixel_lanes=1 + words // 32,
            residual_bits=16,
        ),
        primitive,
    )
    for primitive in ("inferred", "spram")
    for b in range(2, 9)
    for words in (8, 32)
}


class SharedMemory(wiring.Component):
    """A memory and its arbiter. What the first clients ask for is asked a cycle later.

    Members
    -------
    <client> : In(memory_read) or In(memory_write)
    """

    def __init__(self, geometry: Geometry, primitive: str) -> None:
        self._memory = ActivationMemory(geometry, primitive)
        self._arbiter = MemoryArbiter(geometry, GROUPS)
        kinds = {"read": memory_read(geometry), "write": memory_write(geometry)}
        super().__init__({name: In(kinds[kind]) for name, kind in CLIENTS.items()})

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory, m.submodules.arbiter = self._memory, self._arbiter
        for name in CLIENTS:
            client, outside = getattr(self._arbiter, name), flipped(getattr(self, name))
            if name not in GROUPS[0]:
                connect(m, outside, client)
                continue
            for member, of in client.signature.members.items():
                inside, port = getattr(client, member), getattr(outside, member)
                if of.flow is In:
                    m.d.sync += inside.eq(port)
                else:
                    m.d.comb += port.eq(inside)
        m.d.comb += self._arbiter.soon.eq(Cat(getattr(self, n).valid for n in GROUPS[0]).any())
        for name in ("write", "address", "write_data", "write_mask"):
            m.d.comb += getattr(self._memory, name).eq(getattr(self._arbiter, name))
        m.d.comb += self._arbiter.read_data.eq(self._memory.read_data)
        return m


def design(grid: bool = False):
    """Both primitives, with lanes that fill nibbles and lanes that do not."""
    points = GRID if grid else POINTS
    blocks = Points({name: SharedMemory(*point) for name, point in points.items()})
    given = {"points": {name: asdict(g) for name, (g, _) in points.items()}}
    return {"": (blocks, {"sources": ["SB_SPRAM256KA"]}, given)}


class _Model:
    """What the memory holds, a row of lanes an address, at both ends of the address range."""

    def __init__(self, geometry: Geometry) -> None:
        self.g = geometry
        ends = 8
        self.addresses = [*range(ends), *range(geometry.memory_depth - ends, geometry.memory_depth)]
        self.rows: dict[int, np.ndarray] = {}

    def write(self, address: int, data: int, mask: int) -> None:
        g = self.g
        lanes = split(data, g.activation_bits, g.word_channels)
        chosen = split(mask, 1, g.word_channels) == 1
        old = self.rows.get(address, np.zeros_like(lanes))
        self.rows[address] = np.where(chosen, lanes, old)

    def serve(self, client: str, request: dict[str, int]) -> tuple[str, int] | None:
        """Do what a client asks for; returns it with what it must then read."""
        if CLIENTS[client] == "read":
            return client, self.read(request["address"])
        self.write(**request)
        return None

    def read(self, address: int) -> int:
        return join(self.rows[address], self.g.activation_bits)


async def _run(dut, name: str, geometry: Geometry, cycles: int) -> int:
    edge, model = RisingEdge(dut.clk), _Model(geometry)
    rng = np.random.default_rng([cocotb.RANDOM_SEED, len(name)])
    ports = {client: Ports(dut, f"{name}__{client}") for client in CLIENTS}
    every = (1 << geometry.word_channels) - 1

    def number(bits: int) -> int:
        return int.from_bytes(rng.bytes(-(-bits // 8)), "little") & (1 << bits) - 1

    def ask(client: str, address: int | None = None) -> dict[str, int]:
        request = {"address": int(rng.choice(model.addresses)) if address is None else address}
        if CLIENTS[client] == "write":
            request["data"] = number(geometry.word_bits)
            request["mask"] = number(geometry.word_channels) if address is None else every
        for key, value in request.items():
            getattr(ports[client], key).value = value
        ports[client].valid.value = 1
        return request

    for address in model.addresses:  # what was never written is anything
        request = ask("third", address)
        await edge
        assert ports["third"].ready.value == 1
        model.write(**request)
    ports["third"].valid.value = 0
    asked: dict[str, dict[str, int]] = {}
    due: tuple[str, int] | None = None
    late: tuple[str, dict[str, int]] | None = None  # of the first, on its way
    reads = 0
    for _ in range(cycles):
        for client in CLIENTS:
            others = next(group for group in GROUPS if client in group)
            if asked.keys().isdisjoint(others) and rng.random() < 0.35:
                asked[client] = ask(client)
        await edge
        if due is not None:
            got = int(ports[due[0]].data.value)
            assert got == due[1], f"{name}: {due[0]} must read {due[1]:#x}, not {got:#x}"
            reads += 1
        granted, late = late, None
        for i, group in enumerate(GROUPS):
            ready = i == 0 or granted is None
            for client in group:
                assert ports[client].ready.value == ready, f"{name}: ready of {client}"
            asks = next(iter(asked.keys() & group.keys()), None)
            if asks and ready:
                ports[asks].valid.value = 0
                taken = asks, asked.pop(asks)
                late, granted = (taken, granted) if i == 0 else (late, taken)
        due = model.serve(*granted) if granted else None
    return reads


@cocotb.test()
async def reads_what_was_written(dut):
    """One client a cycle, the first that asks; masks a lane; data in the cycle after."""
    given = bench.parameters()
    bench.start_clocks(dut)
    for name in given["points"]:
        for client in CLIENTS:
            Ports(dut, f"{name}__{client}").valid.value = 0
    await bench.reset(dut)
    tasks = [
        cocotb.start_soon(_run(dut, name, Geometry(**g), given.get("cycles", 1500)))
        for name, g in given["points"].items()
    ]
    reads = sum([await task for task in tasks])
    assert reads > 100 * len(tasks)
    bench.publish(reads=reads)
