"""The Image pass by pass: bytes that begin again at each rewind, words out from the second on."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import replace

import cocotb
from cocotb.triggers import RisingEdge, with_timeout

from compiler.geometry import MAGIC, Geometry
from compiler.image import FRAME_BYTES, frame
from hw.replay import DESELECT_CYCLES, ImageReplay
from sim import bench
from sim.benches.points import Points, Ports
from sim.drivers import STALLS, StreamSink, first_difference

WIDTHS = (32, 64)

QUIET_CYCLES = 200
"""How long a refusal is watched."""


def design(grid: bool = False):
    """Both widths of words in one model."""
    points = {f"w{bits}": ImageReplay(replace(Geometry(), stream_bits=bits)) for bits in WIDTHS}
    return {"": (Points(points), {}, {"flips": 100 if grid else 8})}


class Tape:
    """What a flash does: its bytes in order, held up at random, from the first after a rewind.

    Attributes
    ----------
    passes : list of int, cycles that each rewind took
    data : bytes, may be changed
    """

    def __init__(self, dut, point: str, data: bytes, rng: random.Random) -> None:
        self.ports, self.data, self._rng = Ports(dut, point), data, rng
        self.passes: list[int] = []
        self.task = cocotb.start_soon(self._run(RisingEdge(dut.clk)))

    async def _run(self, edge) -> None:
        ports, at, rewinding, given = self.ports, 0, 0, False
        while True:
            given = given or self._rng.random() < 0.7
            byte = self.data[at % len(self.data)] if given else self._rng.getrandbits(8)
            ports.i__valid.value, ports.i__payload.value = int(given), byte
            await edge
            if ports.rewind.value == 1:
                assert ports.i__ready.value == 0, "no byte may be taken while the flash is reset"
                at, given, rewinding = 0, False, rewinding + 1
                continue
            if rewinding:
                self.passes.append(rewinding)
            rewinding = 0
            if given and ports.i__ready.value == 1:
                at, given = at + 1, False

    def stop(self) -> None:
        """Send no more."""
        self.task.cancel()
        self.ports.i__valid.value = 0


async def begin(dut) -> None:
    """Clock, reset, and nothing offered."""
    bench.start_clock(dut.clk)
    for bits in WIDTHS:
        ports = Ports(dut, f"w{bits}")
        ports.i__valid.value = ports.o__ready.value = 0
    await bench.reset(dut)


@cocotb.test()
async def serves_pass_by_pass(dut):
    """Words of Images of any length, thrice, however the engine takes them; none in the first."""
    await begin(dut)
    rng = random.Random(cocotb.RANDOM_SEED)
    for bits in WIDTHS:
        for count, stall in zip((1, 2, 9), STALLS.values(), strict=True):
            await bench.reset(dut)
            words = [rng.getrandbits(bits) for _ in range(count)]
            tape = Tape(dut, f"w{bits}", frame(words, bits), rng)
            sink = StreamSink(dut, f"w{bits}__o", stall=stall)
            got = await with_timeout(sink.receive(3 * count), 1, "ms")
            problem = first_difference(words * 3, got)
            assert not problem, f"{bits} bits, {count} words: {problem}"
            assert tape.ports.loaded.value == 1 and tape.ports.error.value == 0
            assert tape.passes[:3] == [DESELECT_CYCLES] * len(tape.passes[:3])
            assert len(tape.passes) >= 3, "a pass without words, then one for each three times"
            sink.stop()
            tape.stop()


def faults(data: bytes, flips: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """What flash may hold in place of an Image; the CRC is right where another thing is wrong."""

    def closed(body: bytes) -> bytes:
        return body + zlib.crc32(body).to_bytes(FRAME_BYTES, "little")

    head, words = data[:FRAME_BYTES], data[2 * FRAME_BYTES : -FRAME_BYTES]
    for bit in range(8 * FRAME_BYTES):
        yield f"bit {bit} of the magic", closed((MAGIC ^ 1 << bit).to_bytes(4, "little") + words)
    for count in (0, 1 << 23, 1 << 31, (1 << 32) - 1):
        yield f"{count} words", closed(head + count.to_bytes(FRAME_BYTES, "little") + words)
    yield "erased", b"\xff" * len(data)
    yield "zeros", bytes(len(data))
    for bit in (rng.randrange(64, 8 * len(data)) for _ in range(flips)):
        at, place = divmod(bit, 8)
        yield f"bit {bit}", data[:at] + bytes([data[at] ^ 1 << place]) + data[at + 1 :]


@cocotb.test()
async def refuses(dut):
    """Whatever is wrong: an error until reset, and not a word."""
    await begin(dut)
    rng, refused = random.Random(cocotb.RANDOM_SEED), 0
    for bits in WIDTHS:
        data = frame([rng.getrandbits(bits) for _ in range(5)], bits)
        for fault, wrong in faults(data, bench.parameters()["flips"], rng):
            await bench.reset(dut)
            tape = Tape(dut, f"w{bits}", wrong, rng)
            sink = StreamSink(dut, f"w{bits}__o")
            where = f"{bits} bits, {fault}"
            for _ in range(40 * len(wrong)):
                await RisingEdge(dut.clk)
                if tape.ports.error.value == 1:
                    break
            else:
                raise AssertionError(f"{where}: error must rise")
            for _ in range(QUIET_CYCLES):
                await RisingEdge(dut.clk)
                assert tape.ports.error.value == 1, f"{where}: error must stay"
                assert tape.ports.i__ready.value == 0, f"{where}: no byte may be taken"
            assert sink.received == 0 and tape.ports.loaded.value == 0, where
            refused += 1
            sink.stop()
            tape.stop()
    bench.publish(refused=refused)


@cocotb.test()
async def stops_when_a_later_pass_is_wrong(dut):
    """The flash changes under way: the pass it is found in is the last."""
    await begin(dut)
    rng = random.Random(cocotb.RANDOM_SEED)
    words = [rng.getrandbits(64) for _ in range(4)]
    tape = Tape(dut, "w64", frame(words, 64), rng)
    sink = StreamSink(dut, "w64__o")
    assert await with_timeout(sink.receive(8), 1, "ms") == words * 2
    changed = [words[0] ^ 1, *words[1:]]
    tape.data = frame(changed, 64)[:-1] + b"\0"
    await with_timeout(RisingEdge(tape.ports.error), 1, "ms")
    for _ in range(QUIET_CYCLES):
        await RisingEdge(dut.clk)
        assert tape.ports.error.value == 1
    assert sink.received <= 16
