"""Activation memory behind its arbiter: who is granted, what is written, what is read."""

from __future__ import annotations

from dataclasses import asdict, replace

import cocotb
import numpy as np
from amaranth.hdl import Module
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
    "twos": (replace(Geometry(), activation_bits=2, word_channels=32), "spram"),
    "two_ports": (
        replace(Geometry(), memory_depth=64, two_ports=True),
        "inferred",
    ),
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
        for name, kind in GROUPS[0].items():
            m.d.comb += getattr(self._arbiter.soon, kind).eq(getattr(self, name).valid)
        self._arbiter.attach(m, self._memory)
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
        chosen = np.repeat(split(mask, 1, g.mask_bits) == 1, g.mask_channels)
        old = self.rows.get(address, np.zeros_like(lanes))
        self.rows[address] = np.where(chosen, lanes, old)

    def serve(self, granted: dict[str, tuple[str, dict[str, int]]]) -> tuple[str, int] | None:
        """Do what is asked for by port; returns the client that reads with what it must read.

        What is written in the same cycle is not there yet.
        """
        asked = dict(granted.values())
        readers = [client for client in asked if CLIENTS[client] == "read"]
        read = [(client, self.read(asked[client]["address"])) for client in readers]
        for client in asked.keys() - readers:
            self.write(**asked[client])
        return read[0] if read else None

    def read(self, address: int) -> int:
        return join(self.rows[address], self.g.activation_bits)


async def _run(dut, name: str, geometry: Geometry, cycles: int) -> int:
    edge, model = RisingEdge(dut.clk), _Model(geometry)
    rng = np.random.default_rng([cocotb.RANDOM_SEED, len(name)])
    ports = {client: Ports(dut, f"{name}__{client}") for client in CLIENTS}
    every = (1 << geometry.mask_bits) - 1

    def number(bits: int) -> int:
        return int.from_bytes(rng.bytes(-(-bits // 8)), "little") & (1 << bits) - 1

    def ask(client: str, address: int | None = None) -> dict[str, int]:
        request = {"address": int(rng.choice(model.addresses)) if address is None else address}
        if CLIENTS[client] == "write":
            request["data"] = number(geometry.word_bits)
            request["mask"] = number(geometry.mask_bits) if address is None else every
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
    port = {kind: kind if geometry.two_ports else "both" for kind in ("read", "write")}
    sharing = [
        {client for client, kind in group.items() if port[kind] == of}
        for group in GROUPS
        for of in dict.fromkeys(port.values())
    ]
    asked: dict[str, dict[str, int]] = {}
    due: tuple[str, int] | None = None
    late: dict[str, tuple[str, dict[str, int]]] = {}  # by port, of the first, on its way
    reads = 0
    for _ in range(cycles):
        for client in CLIENTS:
            others = next(group for group in sharing if client in group)
            if asked.keys().isdisjoint(others) and rng.random() < 0.35:
                asked[client] = ask(client)
        await edge
        if due is not None:
            got = int(ports[due[0]].data.value)
            assert got == due[1], f"{name}: {due[0]} must read {due[1]:#x}, not {got:#x}"
            reads += 1
        granted, late = late, {}
        for i, group in enumerate(GROUPS):
            before = set(granted)
            for client, kind in group.items():
                ready = i == 0 or port[kind] not in before
                assert ports[client].ready.value == ready, f"{name}: ready of {client}"
                if client in asked and ready:
                    ports[client].valid.value = 0
                    (late if i == 0 else granted)[port[kind]] = client, asked.pop(client)
        due = model.serve(granted)
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
