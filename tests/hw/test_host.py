"""The board's end of the link against the computer's: whole frames, faults, stalls.

`Bench` joins a `Host` to a sender of bytes, a model engine and a collector of replies. Requests are
made and replies taken apart by `boards.link`, so both ends are held to each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

import pytest
from amaranth.hdl import Module, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from boards.link import Reply, encode_reply, encode_request
from hw.host import REPLY, REQUEST, Host, Status
from hw.uart import UartReceiver, UartTransmitter

NUM_PIXELS = 12
SCORES = (5, -1, 32767, -32768)
TIMEOUT = 64
GOOD = Reply(Status.OK, SCORES, 2)


def image(seed: int, size: int = NUM_PIXELS) -> bytes:
    return random.Random(seed).randbytes(size)


def broken(frame: bytes, at: int = -1) -> bytes:
    """A frame with one bit of one byte changed."""
    changed = bytearray(frame)
    changed[at] ^= 0x10
    return bytes(changed)


async def until(ctx, condition, value=0):
    """A value in the first cycle in which a condition holds.

    A background process that still waits at the end in Amaranth's own `until` makes pytest fail.
    """
    while True:
        *_, met, sampled = await ctx.tick().sample(condition, Value.cast(value))
        if met:
            return sampled


class Pause(int):
    """In a script: a number of cycles without a byte."""


LOST = object()
"""In a script: the link tells that a byte was lost."""

ANSWERED = object()
"""In a script: wait until another reply is complete and the line may be used."""


@dataclass
class Bench:
    """Runs a script of what the host sends, and keeps what comes of it.

    Attributes
    ----------
    stalls : tuple of float
        Probabilities that in a cycle the sender, the engine's input, its output, and the receiver
        of replies do nothing.
    jams_at : int or None
        Number of pixels after which the engine takes no more, and then raises its error.
    fails_at : int or None
        Number of scores after which the engine raises its error instead.
    """

    num_pixels: int = NUM_PIXELS
    size_bits: int = 24
    scores: tuple[int, ...] = SCORES
    stalls: tuple[float, float, float, float] = (0, 0, 0, 0)
    jams_at: int | None = None
    engine_error: int = 0
    fails_at: int | None = None
    seed: int = 0
    images: list[bytes] = field(default_factory=list)
    sent: bytes = b""
    errors: list[int] = field(default_factory=list)

    def run(self, *script, cycles=4000):
        """Send the script's frames; ends when they are sent and the host is idle, or fails."""
        self.host = host = Host(TIMEOUT, self.size_bits)
        simulator = Simulator(host)
        simulator.add_clock(1e-6)
        simulator.add_testbench(partial(self._send, script=script, cycles=cycles))
        for bench in (self._take_pixels, self._take_replies):
            simulator.add_testbench(bench, background=True)
        simulator.run()
        return self

    def _flow(self, index):
        """Whether the party with this index acts, cycle after cycle."""
        chance = random.Random(f"{self.seed} {index}")
        return lambda: chance.random() >= self.stalls[index]

    async def _send(self, ctx, script, cycles):
        host, acts = self.host, self._flow(0)
        ctx.set(host.num_pixels, self.num_pixels)
        ctx.set(host.num_classes, len(self.scores))
        ctx.set(host.engine_error, self.engine_error)
        await ctx.tick()
        for item in script:
            if item is LOST:
                ctx.set(host.link_error_stb, 1)
                await ctx.tick()
                ctx.set(host.link_error_stb, 0)
            elif item is ANSWERED:
                await self._until_idle(ctx, cycles)
            elif isinstance(item, Pause):
                await ctx.tick().repeat(item)
            else:
                for byte in item:
                    while not acts():
                        await ctx.tick()
                    ctx.set(host.i_bytes.payload, byte)
                    ctx.set(host.i_bytes.valid, 1)
                    await self._until(ctx, host.i_bytes.ready, cycles)
                    ctx.set(host.i_bytes.valid, 0)
        await self._until_idle(ctx, cycles)

    async def _until_idle(self, ctx, cycles):
        await self._until(ctx, ~self.host.busy, cycles)
        self.errors.append(ctx.get(self.host.error))

    async def _until(self, ctx, condition, cycles):
        for _ in range(cycles):
            *_, met = await ctx.tick().sample(condition)
            if met:
                return
        pytest.fail(f"the host hangs: {condition!r} is not met within {cycles} cycles")

    async def _take_pixels(self, ctx):
        """The engine: takes an image, then answers it."""
        host, acts = self.host, self._flow(1)
        pixels = bytearray()
        while len(pixels) != self.jams_at:
            ready = acts()
            ctx.set(host.o_pixels.ready, ready)
            *_, valid, payload = await ctx.tick().sample(host.o_pixels.valid, host.o_pixels.payload)
            if not (valid and ready):
                continue
            pixels.append(payload)
            if len(pixels) == self.num_pixels:
                ctx.set(host.o_pixels.ready, 0)
                self.images.append(bytes(pixels))
                pixels.clear()
                await self._answer(ctx)
        ctx.set(host.o_pixels.ready, 0)
        await ctx.tick().repeat(30)
        ctx.set(host.engine_error, 1)

    async def _answer(self, ctx):
        host, acts = self.host, self._flow(2)
        label = self.scores.index(max(self.scores))
        for index, score in enumerate(self.scores):
            while not acts():
                await ctx.tick()
            if index == self.fails_at:
                ctx.set(host.engine_error, 1)
                return
            last = index == len(self.scores) - 1
            element = {"score": score, "label": label if last else 0xEE, "last": last}
            ctx.set(host.i_answer.payload, element)
            ctx.set(host.i_answer.valid, 1)
            await until(ctx, host.i_answer.ready)
            ctx.set(host.i_answer.valid, 0)

    async def _take_replies(self, ctx):
        """The receiver of replies; holds the stream to its rules."""
        host, acts = self.host, self._flow(3)
        offered = None
        while True:
            ready = acts()
            ctx.set(host.o_bytes.ready, ready)
            *_, valid, payload = await ctx.tick().sample(host.o_bytes.valid, host.o_bytes.payload)
            assert offered is None or (valid, payload) == (1, offered), "an offer was withdrawn"
            offered = payload if valid and not ready else None
            if valid and ready:
                self.sent += bytes([payload])


STALLS = [(0, 0, 0, 0), (0.9, 0, 0, 0), (0, 0.7, 0.7, 0), (0, 0, 0, 0.8), (0.5, 0.5, 0.5, 0.5)]


def expect(*replies: Reply) -> bytes:
    return b"".join(map(encode_reply, replies))


@pytest.mark.parametrize("timeout", [0, -5])
def test_init_wrong_timeout(timeout):
    with pytest.raises(ValueError, match=rf"^timeout must be at least 1, not {timeout}$"):
        Host(timeout)


@pytest.mark.parametrize("size_bits", [0, 25])
def test_init_wrong_size_bits(size_bits):
    with pytest.raises(ValueError, match=rf"^size_bits must be 1 to 24, not {size_bits}$"):
        Host(1, size_bits)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (3, 4), (1000, 1024)])
def test_init_timeout(asked, given):
    assert Host(asked).timeout == given


@pytest.mark.parametrize("stalls", STALLS)
def test_frames_back_to_back(stalls):
    """Requests without a gap: each image arrives whole and is answered."""
    images = [image(seed) for seed in range(4)]
    bench = Bench(stalls=stalls).run(*map(encode_request, images))
    assert bench.images == images
    assert bench.sent == expect(GOOD, GOOD, GOOD, GOOD)
    assert bench.errors == [0]


@pytest.mark.parametrize("num_classes", [1, 2, 10, 100, 255])
def test_number_of_classes(num_classes):
    chance = random.Random(num_classes)
    scores = tuple(chance.randrange(-(1 << 15), 1 << 15) for _ in range(num_classes))
    bench = Bench(scores=scores).run(encode_request(image(1)))
    assert bench.sent == expect(Reply(Status.OK, scores, scores.index(max(scores))))


@pytest.mark.parametrize("size", [1, 255, 256, 257])
def test_number_of_pixels(size):
    bench = Bench(num_pixels=size).run(encode_request(image(1, size)))
    assert bench.images == [image(1, size)]
    assert bench.sent == expect(GOOD)


@pytest.mark.parametrize("length", [300, 300 + 512, 300 + 0x10000])
def test_size_bits(length):
    """All three bytes of a length count, however narrow the counter is."""
    request = encode_request(image(1, length))[:310]
    bench = Bench(num_pixels=300, size_bits=9).run(request)
    assert bench.sent == expect(GOOD if length == 300 else Reply(Status.LENGTH))


def test_pixels_may_be_the_first_byte_of_a_request():
    pixels = bytes([REQUEST, REPLY] * (NUM_PIXELS // 2))
    assert Bench().run(encode_request(pixels)).images == [pixels]


def test_noise_before_request():
    noise = bytes(byte for byte in range(256) if byte != REQUEST)
    bench = Bench().run(noise, encode_request(image(3)))
    assert (bench.images, bench.sent) == ([image(3)], expect(GOOD))


@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("at", [4, 9, -2, -1])
def test_wrong_check(at, stalls):
    """The engine is served and its answer dropped; the next request may follow at once."""
    bench = Bench(stalls=stalls)
    bench.run(broken(encode_request(image(1)), at), ANSWERED, encode_request(image(2)))
    assert [len(pixels) for pixels in bench.images] == [NUM_PIXELS] * 2
    assert bench.images[1] == image(2)
    assert bench.sent == expect(Reply(Status.CRC), GOOD)
    assert bench.errors == [1, 0]


@pytest.mark.parametrize("size", [NUM_PIXELS - 1, NUM_PIXELS + 1, NUM_PIXELS + 256, 70_000])
def test_wrong_length(size):
    """The engine sees nothing; the reply does not wait for the rest of the request."""
    start = encode_request(image(1, size))[:50]
    bench = Bench().run(start, ANSWERED, encode_request(image(2)))
    assert bench.images == [image(2)]
    assert bench.sent == expect(Reply(Status.LENGTH), GOOD)
    assert bench.errors == [1, 0]


def test_wrong_length_reply_at_once():
    bench = Bench()
    bench.run(encode_request(image(1, 13))[:4], Pause(TIMEOUT // 2))
    assert bench.sent == expect(Reply(Status.LENGTH))


def test_listens_again_after_quiet():
    """What comes before the line was quiet is ignored, a whole request included."""
    wrong = encode_request(image(1, 40))
    bench = Bench().run(wrong, Pause(TIMEOUT // 2), encode_request(image(2)), ANSWERED)
    assert bench.sent == expect(Reply(Status.LENGTH))
    assert bench.images == []


@pytest.mark.parametrize("stalls", [STALLS[0], STALLS[4]])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 9, 15, 16, 17])
def test_broken_off(length, stalls):
    """Wherever a request stops, the engine gets zeros for the rest, if it got any."""
    request = encode_request(image(1))[:length]
    bench = Bench(stalls=stalls).run(request, ANSWERED, encode_request(image(2)))
    begun = image(1)[: max(length - 4, 0)].ljust(NUM_PIXELS, b"\0")
    assert bench.images == ([begun] if length >= 4 else []) + [image(2)]
    assert bench.sent == expect(Reply(Status.LINK), GOOD)
    assert bench.errors == [1, 0]


@pytest.mark.parametrize("length", range(1, NUM_PIXELS + 6))
def test_lost_byte(length):
    """As soon as a byte is lost, the rest is ignored until the line is quiet."""
    request = encode_request(image(1))
    script = (request[:length], LOST, Pause(4), request[length:], ANSWERED)
    bench = Bench().run(*script, encode_request(image(2)))
    assert bench.images[-1] == image(2)
    assert bench.sent == expect(Reply(Status.LINK), GOOD)


def test_lost_byte_between_requests():
    """A fault outside of a request is none of it."""
    bench = Bench().run(LOST, encode_request(image(1)), ANSWERED, LOST, Pause(3))
    assert bench.sent == expect(GOOD)


def test_slow_engine_is_no_timeout():
    """A byte that waits for the engine is not the host's silence."""
    bench = Bench(stalls=(0, 0.99, 0.99, 0), seed=3).run(encode_request(image(1)), cycles=20_000)
    assert (bench.images, bench.sent) == ([image(1)], expect(GOOD))


@pytest.mark.parametrize("settings", [{"num_pixels": 0}, {"engine_error": 1}])
def test_engine_not_ready(settings):
    bench = Bench(**settings).run(encode_request(image(1)), ANSWERED, encode_request(image(2)))
    assert bench.images == []
    assert bench.sent == expect(Reply(Status.ENGINE), Reply(Status.ENGINE))
    assert bench.errors == [1, 1]


def test_engine_fails_before_answer():
    bench = Bench(fails_at=0).run(encode_request(image(1)))
    assert bench.sent == expect(Reply(Status.ENGINE))


def test_engine_fails_within_answer():
    """The reply is cut short, and the next request is told so."""
    bench = Bench(fails_at=2).run(encode_request(image(1)), ANSWERED, encode_request(image(2)))
    begun = expect(GOOD)[: 3 + 2 * 2]
    second = expect(Reply(Status.ENGINE))
    assert bench.sent.startswith(begun) and bench.sent.endswith(second)
    assert len(bench.sent) == len(begun) + 2 + len(second)
    assert bench.errors == [1, 1]


@pytest.mark.parametrize("taken", [0, 5])
def test_engine_stuck(taken):
    """An engine that takes no more pixels, and says so, is an error and not a hang."""
    bench = Bench(jams_at=taken).run(encode_request(image(1))[: 4 + taken + 1])
    assert bench.sent == expect(Reply(Status.ENGINE))


@pytest.mark.parametrize("seed", range(6))
def test_random_faults(seed):
    """Any mixture of good and bad requests: in the end the host listens and answers."""
    chance = random.Random(seed)
    script, expected = [], []
    for number in range(6):
        request = encode_request(image(number))
        kind = chance.choice(["good", "check", "length", "stop", "lost"])
        expected.append({"good": GOOD, "check": Reply(Status.CRC)}.get(kind, Reply(Status.LINK)))
        if kind == "check":
            request = broken(request, chance.randrange(4, len(request)))
        elif kind == "length":
            request = encode_request(image(number, chance.choice([1, 11, 13, 200])))
            expected[-1] = Reply(Status.LENGTH)
        elif kind == "stop":
            request = request[: chance.randrange(1, len(request))]
        parts = [request]
        if kind == "lost":
            cut = chance.randrange(1, len(request))
            parts = [request[:cut], LOST, Pause(2), request[cut:]]
        script += [*parts, ANSWERED]
    stalls = tuple(chance.choice([0, 0.3, 0.6]) for _ in range(4))
    bench = Bench(stalls=stalls, seed=seed).run(*script, encode_request(image(99)))
    assert bench.sent == expect(*expected, GOOD)
    assert bench.images[-1] == image(99)


DIVISOR = 4


class Line(wiring.Component):
    """Both ends of a serial line in one: bytes in and out, and the `Host` behind the line."""

    def __init__(self):
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})
        self.host = Host(16 * DIVISOR)

    def elaborate(self, platform):
        m = Module()
        m.submodules.host = host = self.host
        m.submodules.there = there = UartTransmitter(DIVISOR)
        m.submodules.receiver = receiver = UartReceiver(DIVISOR)
        m.submodules.sender = sender = UartTransmitter(DIVISOR)
        m.submodules.back = back = UartReceiver(DIVISOR)
        wiring.connect(m, wiring.flipped(self.i), there.i)
        wiring.connect(m, receiver.o, host.i_bytes)
        wiring.connect(m, host.o_bytes, sender.i)
        wiring.connect(m, back.o, wiring.flipped(self.o))
        m.d.comb += [
            receiver.rx.eq(there.tx),
            back.rx.eq(sender.tx),
            host.link_error_stb.eq(receiver.framing_stb | receiver.overflow_stb),
        ]
        return m


@pytest.mark.parametrize(("jam", "status"), [(1, Status.OK), (30, Status.OK), (120, Status.LINK)])
def test_over_the_line(jam, status):
    """Through real bits: an engine that stops for longer than a byte lasts costs the request."""
    line = Line()
    host, received, images = line.host, bytearray(), bytearray()
    expected = expect(Reply(status) if status else GOOD)

    async def send(ctx):
        ctx.set(host.num_pixels, NUM_PIXELS)
        ctx.set(host.num_classes, len(SCORES))
        ctx.set(line.i.valid, 1)
        for byte in encode_request(image(1)):
            ctx.set(line.i.payload, byte)
            await until(ctx, line.i.ready)
        ctx.set(line.i.valid, 0)
        await ctx.tick().repeat(10 * DIVISOR * (len(expected) + 4) + jam)
        await until(ctx, ~host.busy)

    async def collect(ctx):
        ctx.set(line.o.ready, 1)
        while True:
            received.append(await until(ctx, line.o.valid, line.o.payload))

    async def engine(ctx):
        while len(images) < NUM_PIXELS:
            ctx.set(host.o_pixels.ready, 0)
            await ctx.tick().repeat(jam if len(images) == 5 else 1)
            ctx.set(host.o_pixels.ready, 1)
            images.append(await until(ctx, host.o_pixels.valid, host.o_pixels.payload))
        ctx.set(host.o_pixels.ready, 0)
        ctx.set(host.i_answer.valid, 1)
        for index, score in enumerate(SCORES):
            last = index == len(SCORES) - 1
            ctx.set(host.i_answer.payload, {"score": score, "label": 2, "last": last})
            await until(ctx, host.i_answer.ready)
        ctx.set(host.i_answer.valid, 0)

    simulator = Simulator(line)
    simulator.add_clock(1e-6)
    simulator.add_testbench(send)
    for bench in (collect, engine):
        simulator.add_testbench(bench, background=True)
    simulator.run()
    assert bytes(received) == expected
    assert len(images) == NUM_PIXELS
    assert (bytes(images) == image(1)) == (status is Status.OK)
