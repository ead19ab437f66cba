"""The Image's store: bytes of flash in, its words out again and again, beside other work."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace

import cocotb
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout

from compiler.geometry import Geometry
from compiler.image import FRAME_BYTES, flash_words, frame
from hw.layout import memory_read
from hw.memory import ActivationMemory, MemoryArbiter
from hw.store import ImageStore
from sim import bench
from sim.benches.points import Points, Ports
from sim.drivers import STALLS, StreamSink, StreamSource, first_difference

SMALL = replace(Geometry(), memory_depth=32)

POINTS = {
    "usual": SMALL,
    "b2": replace(SMALL, activation_bits=2, stream_bits=32),
    "b8": replace(SMALL, activation_bits=8, input_lanes=8, output_lanes=8, pump=1, word_channels=8),
    "half_words": replace(SMALL, stream_bits=32),
    "short_words": replace(SMALL, stream_bits=16),
}
"""Lanes of each width that there is; stream words as wide as the memory's, and short ones."""

QUIET_CYCLES = 200
"""How long a refusal is watched: more than serving takes to begin."""


class StoreInMemory(wiring.Component):
    """A store with its memory, which another reader has first call on.

    Members
    -------
    i, o, loaded, error : of the store
    other : In(memory_read)
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(geometry.stream_bits)),
                "loaded": Out(1),
                "error": Out(1),
                "other": In(memory_read(geometry)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = ImageStore(self._geometry)
        m.submodules.memory = memory = ActivationMemory(self._geometry)
        clients = {"other": "read", "image_write": "write", "image_read": "read"}
        m.submodules.arbiter = arbiter = MemoryArbiter(self._geometry, clients)
        connect(m, flipped(self.other), arbiter.other)
        connect(m, store.write, arbiter.image_write)
        connect(m, store.read, arbiter.image_read)
        connect(m, flipped(self.i), store.i)
        connect(m, store.o, flipped(self.o))
        for name in ("write", "address", "write_data", "write_mask"):
            m.d.comb += getattr(memory, name).eq(getattr(arbiter, name))
        m.d.comb += [
            arbiter.read_data.eq(memory.read_data),
            self.loaded.eq(store.loaded),
            self.error.eq(store.error),
        ]
        return m


def design(grid: bool = False):
    """All shapes of words in one model."""
    blocks = Points({name: StoreInMemory(geometry) for name, geometry in POINTS.items()})
    points = {name: asdict(geometry) for name, geometry in POINTS.items()}
    return {"": (blocks, {}, {"points": points, "flips": 200 if grid else 8})}


class _Point:
    """One store, its drivers, and somebody who takes the memory from it at random."""

    def __init__(self, dut, name: str, geometry: Geometry, rng: random.Random) -> None:
        self.dut, self.name, self.g, self.rng = dut, name, geometry, rng
        self.ports, self.edge = Ports(dut, name), RisingEdge(dut.clk)
        self.busy = 0.5
        self.other: tuple[int, list[int]] | None = None  # an address to read, and what was there

    async def interfere(self) -> None:
        """Holds the memory's port in many cycles; reads what it is asked to."""
        ports = self.ports
        due: list[int] | None = None
        while True:
            asked = self.other
            taken = asked is not None or self.rng.random() < self.busy
            ports.other__valid.value = int(taken)
            ports.other__address.value = asked[0] if asked else self.rng.randrange(32)
            if asked is not None:
                self.other = None
            await self.edge
            if due is not None:
                due.append(int(ports.other__data.value))
            due = asked[1] if asked is not None else None

    async def peek(self, address: int) -> int:
        """A word of the memory, read by the other client."""
        found: list[int] = []
        self.other = (address, found)
        while not found:
            await self.edge
        return found[0]

    def words(self, count: int) -> list[int]:
        """An Image of random words."""
        return [self.rng.getrandbits(self.g.stream_bits) for _ in range(count)]

    async def quiet(self, sink: StreamSink, source: StreamSource, fault: str) -> None:
        """After a fault: the error stays, no word is served, no byte is taken."""
        sent = source.sent
        for _ in range(QUIET_CYCLES):
            await self.edge
            where = f"{self.name}, {fault}"
            assert self.ports.error.value == 1, f"{where}: error must stay"
            assert self.ports.loaded.value == 0, f"{where}: must not be loaded"
        assert source.sent == sent, f"{where}: no more bytes may be taken"
        assert sink.received == 0, f"{where}: {sink.received} words served"


def _points(dut) -> list[_Point]:
    given = bench.parameters()["points"]
    rng = random.Random(cocotb.RANDOM_SEED)
    points = [_Point(dut, name, Geometry(**g), rng) for name, g in given.items()]
    for point in points:
        for name in ("i__valid", "o__ready", "other__valid"):
            getattr(point.ports, name).value = 0
    return points


@cocotb.test()
async def serves_again_and_again(dut):
    """Every word of Images of any length, twice around and on; nothing else is written."""
    bench.start_clocks(dut)
    for point in _points(dut):
        task = cocotb.start_soon(point.interfere())
        depth, stalls = point.g.memory_depth, list(STALLS.values())
        for i, count in enumerate((1, 2, 7, depth - 1, depth)):
            await bench.reset(dut)
            below = [await point.peek(address) for address in range(depth - count)]
            words = point.words(count)
            source = StreamSource(dut, point.ports.name("i"), stall=stalls[i % 3])
            sink = StreamSink(dut, point.ports.name("o"), stall=stalls[(i + 1) % 3])
            data = frame(words, point.g.stream_bits)
            sending = source.start([*data, *point.rng.randbytes(20)])
            got = await with_timeout(sink.receive(2 * count + 3), 1, "ms")
            problem = first_difference((words * 5)[: len(got)], got)
            assert not problem, f"{point.name}, {count} words: {problem}"
            assert point.ports.loaded.value == 1 and point.ports.error.value == 0
            assert source.sent == len(data), "bytes behind the Image must be left alone"
            sink.stop()
            sending.cancel()
            point.ports.i__valid.value = 0
            kept = [await point.peek(address) for address in range(depth - count)]
            assert kept == below, f"{point.name}, {count} words: words below must stay"
            mask = (1 << point.g.stream_bits) - 1
            stored = [await point.peek(depth - 1 - k) & mask for k in range(count)]
            assert stored == words, f"{point.name}: word k must lie at depth - 1 - k"
        task.cancel()


@cocotb.test()
async def serves_a_word_every_other_cycle(dut):
    """With the memory to itself and a consumer that is always ready."""
    bench.start_clocks(dut)
    for point in _points(dut):
        await bench.reset(dut)
        words = point.words(9)
        StreamSource(dut, point.ports.name("i")).start(frame(words, point.g.stream_bits))
        sink = StreamSink(dut, point.ports.name("o"))
        await with_timeout(sink.receive(20), 1, "ms")
        assert [b - a for a, b in zip(sink.cycles, sink.cycles[1:], strict=False)] == [2] * 19
        sink.stop()


def _faults(
    data: bytes, depth: int, bits: int, flips: int, rng: random.Random
) -> Iterator[tuple[str, bytes]]:
    """What flash may hold in place of an Image; the CRC is right unless that is the fault.

    ``flips`` single bits are turned over at random, beside every bit of the CRC.
    """

    def closed(body: bytes) -> bytes:
        return body + zlib.crc32(body).to_bytes(FRAME_BYTES, "little")

    head, words = data[:FRAME_BYTES], data[2 * FRAME_BYTES : -FRAME_BYTES]
    for bit in range(8 * FRAME_BYTES):
        magic = (int.from_bytes(head, "little") ^ 1 << bit).to_bytes(FRAME_BYTES, "little")
        yield f"bit {bit} of the magic", closed(magic + data[FRAME_BYTES:-FRAME_BYTES])
    for count in (0, depth + 1, 2 * depth, 3 * depth, 1 << 16, 1 << 31, (1 << 32) - 1):
        body = head + count.to_bytes(FRAME_BYTES, "little") + words
        yield f"{count} words", closed(body)
    size = bits // 8
    for wrong in (-1, 1):  # one word fewer, or more, than there are
        told = (len(words) // size + wrong).to_bytes(FRAME_BYTES, "little")
        yield f"{wrong} words", head + told + data[2 * FRAME_BYTES :] + bytes(size)
    yield "erased flash", b"\xff" * len(data)
    yield "zeros", bytes(len(data))
    for bit in [
        *range(-8 * FRAME_BYTES, 0),
        *(rng.randrange(64, 8 * len(data)) for _ in range(flips)),
    ]:
        at, place = divmod(bit % (8 * len(data)), 8)
        flipped_bit = bytes([data[at] ^ 1 << place])
        yield f"bit {bit} turned over", data[:at] + flipped_bit + data[at + 1 :]


@cocotb.test()
async def refuses(dut):
    """Whatever is wrong: an error until reset, and no word; after it, the right Image is served."""
    given = bench.parameters()
    bench.start_clocks(dut)
    refused = 0
    for point in _points(dut):
        task = cocotb.start_soon(point.interfere())
        point.busy = 0.2
        depth, bits = point.g.memory_depth, point.g.stream_bits
        words = point.words(5)
        data = frame(words, bits)
        assert flash_words(data, bits) == words
        for fault, wrong in _faults(data, depth, bits, given["flips"], point.rng):
            await bench.reset(dut)
            source = StreamSource(dut, point.ports.name("i"))
            sink = StreamSink(dut, point.ports.name("o"))
            sending = source.start([*wrong, *bytes(8)])
            for _ in range(40 * len(wrong)):
                await point.edge
                if point.ports.error.value == 1:
                    break
            else:
                raise AssertionError(f"{point.name}, {fault}: error must rise")
            await point.quiet(sink, source, fault)
            refused += 1
            sending.cancel()
            sink.stop()
        await bench.reset(dut)
        sink = StreamSink(dut, point.ports.name("o"))
        sending = StreamSource(dut, point.ports.name("i")).start(data)
        assert await with_timeout(sink.receive(10), 1, "ms") == words * 2, f"{point.name}: restart"
        sink.stop()
        sending.cancel()
        task.cancel()
        await ClockCycles(dut.clk, 2)
    bench.publish(refused=refused)
