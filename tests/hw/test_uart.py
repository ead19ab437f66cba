"""Serial receiver and transmitter: every byte, every rate error allowed, noise, and stalls."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from hw.uart import UartReceiver, UartTransmitter, divisor_for

DIVISORS = (4, 5, 12, 36)


def run(component, *testbenches):
    """Simulate with the 1 us clock until every testbench has ended."""
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    for testbench in testbenches:
        simulator.add_testbench(testbench)
    simulator.run()


def frame(byte, *, stop=1):
    """The line's levels for a byte, a bit each."""
    return [0, *(byte >> n & 1 for n in range(8)), stop]


async def drive(ctx, receiver, levels, bit_cycles):
    """Put levels on the line for a number of cycles each, which need not be whole."""
    elapsed = 0
    for count, level in enumerate(levels, 1):
        ctx.set(receiver.rx, level)
        cycles = round(count * bit_cycles) - elapsed
        await ctx.tick().repeat(cycles)
        elapsed += cycles
    ctx.set(receiver.rx, 1)


def receive(receiver, levels, bit_cycles, *, ready=1):
    """Bytes and the numbers of framing and overflow strobes that come of levels on the line."""
    received, strobes = [], {"framing": 0, "overflow": 0}

    async def sender(ctx):
        await ctx.tick().repeat(5)
        await drive(ctx, receiver, levels, bit_cycles)
        await ctx.tick().repeat(20 * receiver.divisor)

    async def monitor(ctx):
        ctx.set(receiver.o.ready, ready)
        signals = (receiver.o.valid, receiver.o.payload, receiver.framing_stb)
        async for *_, valid, payload, framing, overflow in ctx.tick().sample(
            *signals, receiver.overflow_stb
        ):
            if valid and ready:
                received.append(payload)
            strobes["framing"] += framing
            strobes["overflow"] += overflow

    simulator = Simulator(receiver)
    simulator.add_clock(1e-6)
    simulator.add_testbench(sender)
    simulator.add_testbench(monitor, background=True)
    simulator.run()
    return received, strobes


@pytest.mark.parametrize("divisor", [3, 0, -1])
def test_receiver_init_wrong_divisor(divisor):
    with pytest.raises(ValueError, match=rf"^divisor must be at least 4, not {divisor}$"):
        UartReceiver(divisor)


def test_transmitter_init_wrong_divisor():
    with pytest.raises(ValueError, match=r"^divisor must be at least 1, not 0$"):
        UartTransmitter(0)


@pytest.mark.parametrize(
    ("clock_hz", "baud", "divisor"),
    [(36e6, 1e6, 36), (36e6, 115_200, 312), (12e6, 3e6, 4), (36e6, 3e6, 12), (33e6, 1.02e6, 32)],
)
def test_divisor(clock_hz, baud, divisor):
    assert divisor_for(clock_hz, baud) == divisor


@pytest.mark.parametrize(("clock_hz", "baud"), [(12e6, 5e6), (36e6, 8e6), (12e6, 12e6)])
def test_divisor_wrong_baud(clock_hz, baud):
    with pytest.raises(ValueError, match="clock must be a multiple of baud within 2%"):
        divisor_for(clock_hz, baud)


@pytest.mark.parametrize("divisor", DIVISORS)
def test_loop(divisor):
    """Random bytes back to back: none lost, one each ten bits."""
    data = random.Random(divisor).sample(range(256), 40)
    top = Module()
    top.submodules.sender = sender = UartTransmitter(divisor)
    top.submodules.receiver = receiver = UartReceiver(divisor)
    top.d.comb += [receiver.rx.eq(sender.tx), receiver.o.ready.eq(1)]
    received, times = [], []

    async def send(ctx):
        ctx.set(sender.i.valid, 1)
        for byte in data:
            ctx.set(sender.i.payload, byte)
            await ctx.tick().until(sender.i.ready)
        ctx.set(sender.i.valid, 0)

    async def collect(ctx):
        cycle = 0
        while len(received) < len(data):
            _, _, valid, payload = await ctx.tick().sample(receiver.o.valid, receiver.o.payload)
            cycle += 1
            if valid:
                received.append(payload)
                times.append(cycle)

    run(top, send, collect)
    assert received == data
    assert {after - before for before, after in pairwise(times)} == {10 * divisor}


@pytest.mark.parametrize("divisor", DIVISORS)
def test_receiver_latency(divisor):
    receiver = UartReceiver(divisor)

    async def testbench(ctx):
        for level in frame(0x35)[:-1]:
            ctx.set(receiver.rx, level)
            await ctx.tick().repeat(divisor)
        ctx.set(receiver.rx, 1)
        cycles = 9 * divisor
        while not ctx.get(receiver.o.valid):
            await ctx.tick()
            cycles += 1
        assert cycles == 9 * divisor + (divisor - 1) // 2 + 4
        assert ctx.get(receiver.o.payload) == 0x35

    run(receiver, testbench)


@pytest.mark.parametrize("error", [-0.04, -0.02, 0.02, 0.04])
def test_receiver_rate_error(error):
    data = list(range(0, 256, 5))
    levels = [level for byte in data for level in frame(byte)]
    received, strobes = receive(UartReceiver(36), levels, 36 * (1 + error))
    assert received == data
    assert strobes == {"framing": 0, "overflow": 0}


def test_receiver_glitch():
    """A pulse shorter than half a bit is no start bit."""
    levels = [0] * 10 + [1] * 100 + [level for level in frame(0xA5) for _ in range(36)]
    assert receive(UartReceiver(36), levels, 1) == ([0xA5], {"framing": 0, "overflow": 0})


def test_receiver_framing():
    """A byte without stop bit is dropped, and a long break is one error."""
    levels = [*frame(0x55), *frame(0x00, stop=0), *[0] * 30, 1, *frame(0xAA)]
    assert receive(UartReceiver(12), levels, 12) == (
        [0x55, 0xAA],
        {"framing": 1, "overflow": 0},
    )


def test_receiver_overflow():
    """The byte that waits stays; each that comes meanwhile is lost and told."""
    receiver = UartReceiver(12)
    levels = [*frame(0x11), *frame(0x22), *frame(0x33)]
    _, strobes = receive(receiver, levels, 12, ready=0)
    assert strobes == {"framing": 0, "overflow": 2}


@pytest.mark.parametrize("divisor", [1, 2, 7])
def test_transmitter_line(divisor):
    """The line, cycle by cycle, for two bytes and the idle time after them."""
    sender = UartTransmitter(divisor)
    line = []

    async def send(ctx):
        ctx.set(sender.i.valid, 1)
        for byte in (0x96, 0x0F):
            ctx.set(sender.i.payload, byte)
            await ctx.tick().until(sender.i.ready)
        ctx.set(sender.i.valid, 0)

    async def watch(ctx):
        await ctx.tick()
        for _ in range(22 * divisor):
            line.append(ctx.get(sender.tx))
            await ctx.tick()

    run(sender, send, watch)
    expected = [*frame(0x96), *frame(0x0F), 1, 1]
    assert line == [level for level in expected for _ in range(divisor)]
