"""The Image's store: bits of flash in, its words out again and again, beside other work."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import cocotb
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, with_timeout

from compiler.geometry import UNIT_CLOCKS, Geometry
from compiler.image import FRAME_BYTES, HEAD_BYTES, flash_crc, flash_words, frame
from hw.layout import memory_read
from hw.memory import ActivationMemory, MemoryArbiter
from hw.store import ImageStore
from sim import bench
from sim.benches.points import Points, Ports
from sim.drivers import STALLS, StreamSink, first_difference

SMALL = replace(Geometry(), memory_depth=32)

B2 = replace(SMALL, activation_bits=2, stream_bits=32)
B3 = replace(SMALL, activation_bits=3, stream_bits=32)
B8 = replace(SMALL, activation_bits=8, input_lanes=8, output_lanes=8, pump=1, word_channels=8)

POINTS = {
    "usual": (SMALL, 2),
    "b8": (B8, 2),
    "two_ports": (replace(SMALL, two_ports=True), 4),
    "half_words": (replace(SMALL, stream_bits=32), 2),
    "quad_b2": (B2, 4),
    "quad_short_words": (replace(SMALL, stream_bits=16), 4),
}
"""Lanes of each width that fills bytes; stream words as wide as the memory's, and short ones. And
how many lines of the flash."""

WHOLE_POINTS = {
    "b3": (B3, 2),
    "rom_b3": (B3, 8),
    "sdram": (replace(SMALL, two_ports=True), 16),
}
"""Words that are written whole, also because an SDRAM or a block RAM sends so many bits at once."""

GRID_POINTS = {
    "units": {
        "b2": (B2, 2),
        "short_words": (replace(SMALL, stream_bits=16), 2),
        "quad": (SMALL, 4),
        "quad_b8": (B8, 4),
    },
    "whole": {
        "quad_b3": (B3, 4),
        "quad_b5": (replace(B8, activation_bits=5, stream_bits=16), 4),
        "sdram_b8": (B8, 16),
    },
}
"""More of both for the nights."""

QUIET_CYCLES = 200
"""How long a refusal is watched: more than serving takes to begin."""


class StoreInMemory(wiring.Component):
    """A store with its memory, which another reader has first call on, a cycle late.

    Members
    -------
    stb, data, room, again, o, loaded, error : of the store
    other : In(memory_read)
    """

    def __init__(self, geometry: Geometry, lines: int) -> None:
        self._geometry, self._lines = geometry, lines
        super().__init__(
            {
                "stb": In(1),
                "data": In(UNIT_CLOCKS * lines),
                "room": Out(1),
                "again": Out(1),
                "o": Out(stream.Signature(geometry.stream_bits)),
                "loaded": Out(1),
                "error": Out(1),
                "other": In(memory_read(geometry)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = ImageStore(self._geometry, self._lines)
        m.submodules.memory = memory = ActivationMemory(self._geometry)
        clients = [{"other": "read"}, {"image_write": "write"}, {"image_read": "read"}]
        m.submodules.arbiter = arbiter = MemoryArbiter(self._geometry, clients)
        # It asks a cycle later, for the arbiter wants to know before.
        m.d.sync += [
            arbiter.other.valid.eq(self.other.valid),
            arbiter.other.address.eq(self.other.address),
        ]
        m.d.comb += [
            arbiter.soon.read.eq(self.other.valid),
            self.other.ready.eq(arbiter.other.ready),
            self.other.data.eq(arbiter.other.data),
        ]
        connect(m, store.write, arbiter.image_write)
        connect(m, store.read, arbiter.image_read)
        connect(m, store.o, flipped(self.o))
        arbiter.attach(m, memory)
        m.d.comb += [
            store.stb.eq(self.stb),
            store.data.eq(self.data),
            self.room.eq(store.room),
            self.again.eq(store.again),
            self.loaded.eq(store.loaded),
            self.error.eq(store.error),
        ]
        return m


def design(grid: bool = False):
    """Points run one after another, and so in more than one model: all of one are simulated."""
    found: dict[str, tuple[Points, dict[str, Any], dict[str, Any]]] = {}
    for case, usual in {"units": POINTS, "whole": WHOLE_POINTS}.items():
        chosen = usual | (GRID_POINTS[case] if grid else {})
        blocks = Points({name: StoreInMemory(*point) for name, point in chosen.items()})
        points = {name: (asdict(geometry), lines) for name, (geometry, lines) in chosen.items()}
        found[case] = (blocks, {}, {"points": points, "flips": 200 if grid else 8})
    return found


class _Flash:
    """What the reader of a flash does, as early as it can: a unit in four cycles, if there is room.

    Units are counted from the Image's words on; of the first one in a pass clocks may be missing.

    Attributes
    ----------
    sent : int
        Bytes that have come in this pass.
    passes : int
        How often it was told to begin again.
    data : bytes
        What is read; changed while it runs, it is so from the next byte on.
    """

    def __init__(self, point: _Point, data: bytes, *, slow: float = 0.0) -> None:
        self.data, self.sent, self.passes = data, 0, 0
        self._point, self._slow = point, slow
        self._task = cocotb.start_soon(self._run())

    async def _run(self) -> None:
        ports, rng = self._point.ports, self._point.rng
        coming: list[int | None] = [None, None]  # on its way
        here, clocks, pause = 0, 0, 9
        lines, unit = self._point.lines, UNIT_CLOCKS * self._point.lines
        lead = -(8 * HEAD_BYTES // lines) % UNIT_CLOCKS
        while True:
            await ReadOnly()
            room, again = ports.room.value == 1, ports.again.value == 1
            await self._point.edge
            if again:
                coming, clocks, pause = [None, None], 0, 9
                self.sent, self.passes = 0, self.passes + 1
            begins = not clocks or (clocks + lead) % UNIT_CLOCKS == 0
            goes = not pause and (room or not begins) and rng.random() >= self._slow
            pause -= pause > 0
            if goes:
                at, place = divmod(clocks * lines, 8)
                two = int.from_bytes(self.data[at : at + 2].ljust(2, b"\xff"), "big")
                coming.append((two >> 16 - lines - place) & ((1 << lines) - 1))
                if begins:
                    self.sent += (unit if clocks else unit - lead * lines) // 8
                clocks += 1
            else:
                coming.append(None)
            bits = coming.pop(0)
            if bits is not None:
                here = (here << lines | bits) & ((1 << unit) - 1)
            ports.stb.value, ports.data.value = int(bits is not None), here

    def stop(self) -> None:
        """Send no more."""
        self._task.cancel()
        self._point.ports.stb.value = 0


class _Point:
    """One store, its drivers, and somebody who takes the memory from it at random."""

    def __init__(self, dut, name: str, geometry: Geometry, lines: int, rng: random.Random) -> None:
        self.dut, self.name, self.g, self.lines, self.rng = dut, name, geometry, lines, rng
        self.unit_bytes = UNIT_CLOCKS * lines // 8
        self.ports, self.edge = Ports(dut, name), RisingEdge(dut.clk)
        self.busy = 0.5
        self.other: tuple[int, list[int]] | None = None  # an address to read, and what was there

    async def interfere(self) -> None:
        """Holds the memory's port in many cycles; reads what it is asked to."""
        ports = self.ports
        due: list[int] | None = None
        late: list[int] | None = None
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
            due, late = late, asked[1] if asked is not None else None

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

    def frame(self, words: list[int], room: int | None = None) -> bytes:
        """The words as they lie in flash; without ``room`` there is all the memory."""
        depth = self.g.memory_depth
        return frame(words, self.g.stream_bits, room or depth, self.g.address_bits)

    async def quiet(self, flash: _Flash, fault: str) -> None:
        """After a fault: the error stays, nothing is asked for."""
        sent = flash.sent
        for _ in range(QUIET_CYCLES):
            await self.edge
            assert self.ports.error.value == 1, f"{self.name}, {fault}: error must stay"
        more = flash.sent - sent
        assert more <= self.unit_bytes, f"{self.name}, {fault}: nothing more may be asked for"


def _points(dut) -> list[_Point]:
    given = bench.parameters()["points"]
    rng = random.Random(cocotb.RANDOM_SEED)
    points = [_Point(dut, name, Geometry(**g), lines, rng) for name, (g, lines) in given.items()]
    for point in points:
        for name in ("stb", "o__ready", "other__valid"):
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
            sink = StreamSink(dut, point.ports.name("o"), stall=stalls[(i + 1) % 3])
            data = point.frame(words)
            flash = _Flash(point, data, slow=0.3 * (i % 2))
            got = await with_timeout(sink.receive(2 * count + 3), 1, "ms")
            problem = first_difference((words * 5)[: len(got)], got)
            assert not problem, f"{point.name}, {count} words: {problem}"
            assert point.ports.loaded.value == 1 and point.ports.error.value == 0
            await ClockCycles(dut.clk, 50)
            assert (flash.passes, flash.sent) == (1, 0), "a whole Image must not be read again"
            sink.stop()
            flash.stop()
            kept = [await point.peek(address) for address in range(depth - count)]
            assert kept == below, f"{point.name}, {count} words: words below must stay"
            mask = (1 << point.g.stream_bits) - 1
            stored = [await point.peek(depth - 1 - k) & mask for k in range(count)]
            assert stored == words, f"{point.name}: word k must lie at depth - 1 - k"
        task.cancel()


@cocotb.test()
async def streams_a_longer_image(dut):
    """Of Images that the ring does not hold, every word of several passes; nothing else is
    written."""
    bench.start_clocks(dut)
    for point in _points(dut):
        task = cocotb.start_soon(point.interfere())
        depth, stalls = point.g.memory_depth, list(STALLS.values())
        for i, (count, room) in enumerate(
            [(2, 1), (5, 4), (7, 3), (depth + 1, depth), (3 * depth, depth - 5)]
        ):
            point.busy = (0.0, 0.5, 0.9)[i % 3]
            await bench.reset(dut)
            below = [await point.peek(address) for address in range(depth - room)]
            words = point.words(count)
            sink = StreamSink(dut, point.ports.name("o"), stall=stalls[i % 3])
            data = point.frame(words, room)
            flash = _Flash(point, data, slow=0.3 * (i % 2))
            got = await with_timeout(sink.receive(3 * count + 1), 10, "ms")
            problem = first_difference((words * 4)[: len(got)], got)
            assert not problem, f"{point.name}, {count} words, room {room}: {problem}"
            assert point.ports.loaded.value == 1 and point.ports.error.value == 0
            assert flash.passes >= 4, "each pass must be read from its beginning"
            sink.stop()
            flash.stop()
            kept = [await point.peek(address) for address in range(depth - room)]
            assert kept == below, f"{point.name}, {count} words, room {room}: words below"
        task.cancel()


@cocotb.test()
async def reads_ahead_while_nobody_asks(dut):
    """As many words as the ring holds, at a unit in four cycles; then the flash is left alone."""
    bench.start_clocks(dut)
    for point in _points(dut):
        await bench.reset(dut)
        room, words = 20, point.words(50)
        flash, size = _Flash(point, point.frame(words, room)), point.g.stream_bits // 8
        while not flash.passes:
            await point.edge
        pace = 0
        while flash.sent < HEAD_BYTES + room * size - point.unit_bytes:
            await point.edge
            pace += 1
        filled = HEAD_BYTES + room * size
        assert pace <= UNIT_CLOCKS * filled / point.unit_bytes + 20, f"{point.name}: {pace} cycles"
        await ClockCycles(dut.clk, 100)
        # What is written at once waits for that, and another unit behind it.
        held = point.g.stored_bits(8 * point.unit_bytes) // 8
        assert flash.sent == filled + held + point.unit_bytes, f"{point.name}: {flash.sent}"
        sink = StreamSink(dut, point.ports.name("o"))
        got = await with_timeout(sink.receive(70), 1, "ms")
        assert got == (words * 2)[:70], point.name
        # What is there comes at once, but that units which come go first, until both alternate.
        late = sink.cycles[room - 1] - sink.cycles[0] - 2 * (room - 1)
        assert 0 <= late <= 3, f"{point.name}: {late} cycles late"
        sink.stop()
        flash.stop()


@cocotb.test()
async def serves_a_word_every_other_cycle(dut):
    """With the memory to itself and a consumer that is always ready."""
    bench.start_clocks(dut)
    for point in _points(dut):
        await bench.reset(dut)
        words = point.words(9)
        flash = _Flash(point, point.frame(words))
        sink = StreamSink(dut, point.ports.name("o"))
        await with_timeout(sink.receive(20), 1, "ms")
        assert [b - a for a, b in zip(sink.cycles, sink.cycles[1:], strict=False)] == [2] * 19
        sink.stop()
        flash.stop()


def _faults(data: bytes, bits: int, flips: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """What flash may hold in place of an Image; the CRC is right where only the magic is wrong.

    ``flips`` single bits are turned over at random, beside every bit of the CRC.
    """

    def flipped_at(bit: int) -> bytes:
        at, place = divmod(bit % (8 * len(data)), 8)
        return data[:at] + bytes([data[at] ^ 1 << place]) + data[at + 1 :]

    for bit in range(8 * FRAME_BYTES):
        body = flipped_at(bit)[:-FRAME_BYTES]
        yield f"bit {bit} of the magic", body + flash_crc(body).to_bytes(FRAME_BYTES, "big")
    count = int.from_bytes(data[FRAME_BYTES : 2 * FRAME_BYTES], "big")
    for wrong in (count - 1, count + 1, 0):  # one word fewer, or more, than there are; one alone
        told = wrong.to_bytes(FRAME_BYTES, "big")
        yield f"{wrong} words", data[:FRAME_BYTES] + told + data[2 * FRAME_BYTES :] + bytes(bits)
    yield "erased flash", b"\xff" * len(data)
    yield "zeros", bytes(len(data))
    first, last = 8 * HEAD_BYTES, 8 * len(data)
    for bit in [*range(-8 * FRAME_BYTES, 0), *(rng.randrange(first, last) for _ in range(flips))]:
        yield f"bit {bit} turned over", flipped_at(bit)


@cocotb.test()
async def refuses(dut):
    """Whatever is wrong: an error until reset, and no word; after it, the right Image is served."""
    given = bench.parameters()
    bench.start_clocks(dut)
    refused = 0
    for point in _points(dut):
        task = cocotb.start_soon(point.interfere())
        point.busy = 0.2
        bits, words = point.g.stream_bits, point.words(5)
        for room, every in ((None, 1), (3, 7)):
            data = point.frame(words, room)
            assert flash_words(data, bits) == words
            for fault, wrong in [*_faults(data, bits, given["flips"], point.rng)][::every]:
                await bench.reset(dut)
                sink = StreamSink(dut, point.ports.name("o"))
                flash = _Flash(point, wrong)
                for _ in range(10 * len(wrong) + 100):
                    await point.edge
                    if point.ports.error.value == 1:
                        break
                else:
                    raise AssertionError(f"{point.name}, {fault}: error must rise")
                await point.quiet(flash, fault)
                assert point.ports.loaded.value == 0, f"{point.name}, {fault}: must not be loaded"
                assert sink.received == 0, f"{point.name}, {fault}: {sink.received} words served"
                refused += 1
                flash.stop()
                sink.stop()
            await bench.reset(dut)
            sink = StreamSink(dut, point.ports.name("o"))
            flash = _Flash(point, data)
            assert await with_timeout(sink.receive(10), 1, "ms") == words * 2, f"{point.name}"
            sink.stop()
            flash.stop()
        task.cancel()
        await ClockCycles(dut.clk, 2)
    bench.publish(refused=refused)


@cocotb.test()
async def finds_what_is_damaged_later(dut):
    """An Image that was right, and is read wrong in a later pass: the error, and no pass after
    it."""
    bench.start_clocks(dut)
    for point in _points(dut):
        words = point.words(9)
        data = point.frame(words, 4)
        for bit in (3, 8 * HEAD_BYTES + 20, 8 * len(data) - 1):
            await bench.reset(dut)
            flash = _Flash(point, data)
            sink = StreamSink(dut, point.ports.name("o"))
            await with_timeout(sink.receive(2 * len(words)), 1, "ms")
            damaged = bytearray(data)
            damaged[bit // 8] ^= 0x80 >> bit % 8
            while flash.sent > 0:
                await point.edge
            flash.data, passes = bytes(damaged), flash.passes
            for _ in range(10 * len(data) + 100):
                await point.edge
                if point.ports.error.value == 1:
                    break
            else:
                raise AssertionError(f"{point.name}, bit {bit}: error must rise")
            await point.quiet(flash, f"bit {bit}")
            assert flash.passes == passes, f"{point.name}, bit {bit}: no pass may follow"
            assert sink.received <= (passes - 1 + (bit > 8 * HEAD_BYTES)) * len(words)
            sink.stop()
            flash.stop()
