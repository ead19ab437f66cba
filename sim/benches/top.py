"""A whole board at its pins: pictures in over the serial line, answers out, layers watched inside.

What is simulated is the Verilog that is synthesised, with a flash on its pins that holds the Image
(`sim/models/board.v`). The vendor's PLL passes its input on (see
`sim/models`), so the bench gives the pin ``clk`` the frequency that the PLL would make.
"""

from __future__ import annotations

import re

import cocotb
import numpy as np
from cocotb.simtime import get_sim_time
from cocotb.triggers import (
    FallingEdge,
    First,
    RisingEdge,
    SimTimeoutError,
    Timer,
    ValueChange,
    with_timeout,
)

from compiler.geometry import Geometry
from sim import bench
from sim.benches.engine import Memory


class BlockMemory(Memory):
    """The activation memory of a board: one array, or blocks of single-port RAM."""

    def __init__(self, engine, geometry: Geometry) -> None:
        if "memory" in {child._name for child in engine.memory}:
            super().__init__(engine, geometry)
            return
        # A cell whose name a signal has already gets a suffix, and is escaped: spram0, \\spram0$11.
        found = {
            int(name[1]): child.mem
            for child in engine.memory
            if (name := re.fullmatch(r"\\?spram(\d+)(\$\d+ ?)?", child._name))
            and hasattr(child, "mem")
        }
        assert found, "the activation memory must be of blocks that can be read"
        self._of_blocks([found[i] for i in sorted(found)], geometry)


class Watch:
    """Notes when layers start and are done and when scores come, and what stands in memory.

    Nothing here wakes up in every cycle: the simulation runs at its own speed between events.

    Attributes
    ----------
    started, done : list of ps, a layer each
    offered : list of (ps, ps), each score's first cycle and the one after its last
    records : list of arrays, the regions asked for, in order
    """

    def __init__(self, engine, geometry: Geometry, layers: list, pictures: int) -> None:
        self.started: list[int] = []
        self.done: list[int] = []
        self.offered: list[tuple[int, int]] = []
        self.records: list[np.ndarray] = []
        self._engine = engine
        self._layers, self._pictures = layers, pictures
        self._memory = BlockMemory(engine, geometry)
        for watch in (self._starts(), self._ends(), self._scores()):
            cocotb.start_soon(watch)

    async def _starts(self) -> None:
        while True:
            await RisingEdge(self._engine.layer_start)
            self.started.append(now())

    async def _ends(self) -> None:
        while True:
            await RisingEdge(self._engine.layer_done)
            self.done.append(now())
            picture, layer = divmod(len(self.done) - 1, len(self._layers))
            if picture < self._pictures:
                await RisingEdge(self._engine.clk)  # what was written last is in the memory now
                self.records += [self._memory.read(*region) for region in self._layers[layer]]

    async def _scores(self) -> None:
        valid = self._engine.o_answer__valid
        while True:
            await RisingEdge(valid)
            since = now()
            await FallingEdge(valid)
            self.offered.append((since, now()))


def now() -> int:
    """Simulated time in ps."""
    return int(get_sim_time("ps"))


async def send(pin, data: bytes, bit_ps: int) -> None:
    """Bytes on a serial line, back to back, as the host's adapter sends them."""
    for byte in data:
        for bit in (0, *((byte >> i) & 1 for i in range(8)), 1):
            pin.value = bit
            await Timer(bit_ps, "ps")


async def receive(pin, count: int, bit_ps: int, patience_ps: int) -> bytes:
    """Bytes off a serial line, each bit sampled in its middle."""
    data = bytearray()
    for _ in range(count):
        if pin.value == 1:
            try:
                await with_timeout(FallingEdge(pin), patience_ps, "ps")
            except SimTimeoutError:
                told = f"must answer {count} bytes, and sent {len(data)}: {data.hex()}"
                raise AssertionError(f"the board {told}") from None
        await Timer(bit_ps + bit_ps // 2, "ps")
        byte = 0
        for i in range(8):
            byte |= int(pin.value) << i
            await Timer(bit_ps, "ps")
        assert pin.value == 1, "a byte must end with a stop bit"
        data.append(byte)
    return bytes(data)


async def started(dut, given: dict) -> int:
    """Let the board take its Image; returns the time it took, in ps, whether it liked it or not."""
    bench.start_clocks(dut, given["pump"] * given["clock_hz"] / 1e6)
    dut.rx.value = 1
    component = dut.top.component
    store, engine = component.store, component.engine
    patience = given["start_patience"] * clock_period(given)
    await with_timeout(First(RisingEdge(store.loaded), RisingEdge(store.error)), patience, "ps")
    if store.error.value == 0:  # the engine reads the Image's beginning: then it may be asked
        known = First(ValueChange(engine.num_pixels), RisingEdge(engine.error))
        await with_timeout(known, patience, "ps")
    assert component.ready.value == store.loaded.value, "`ready` says that the Image is loaded"
    return now()


async def known(engine) -> None:
    """Let the engine read the Image's header; one that is not resident comes from flash again."""
    while engine.num_pixels.value == 0:
        await RisingEdge(engine.clk)


@cocotb.test()
async def classifies(dut):
    """Sends each picture's request, publishes the replies, the cycles and the layers."""
    given = bench.parameters()
    bit_ps = round(1e12 / given["baud"])
    start_ps = await started(dut, given)
    assert dut.top.component.store.loaded.value == 1, "the board must take the Image in its flash"
    engine = dut.top.component.engine
    await with_timeout(known(engine), given["start_patience"] * clock_period(given), "ps")
    geometry = Geometry(**given["geometry"])
    watch = Watch(engine, geometry, given["regions"], given["layer_pictures"])
    replies, spans = [], []
    for request in given["requests"]:
        since = now()
        awaited = cocotb.start_soon(
            receive(dut.tx, given["reply_bytes"], bit_ps, given["patience_ps"])
        )
        await send(dut.rx, request.tobytes(), bit_ps)
        replies.append(np.frombuffer(await awaited, np.uint8))
        await Timer(bit_ps // 2, "ps")  # to the end of the last stop bit
        spans.append(now() - since)
    bench.publish(
        start_ps=start_ps,
        replies=np.array(replies),
        host_ps=np.array(spans),
        started=np.array(watch.started).reshape(len(replies), -1),
        done=np.array(watch.done).reshape(len(replies), -1),
        offered=np.array(watch.offered).reshape(len(replies), -1, 2),
        period_ps=clock_period(given),
        **{f"memory{i}": record for i, record in enumerate(watch.records)},
    )


@cocotb.test()
async def answers(dut):
    """Sends each picture's request and publishes the replies; looks at nothing but the pins."""
    given = bench.parameters()
    bit_ps = round(1e12 / given["baud"])
    bench.start_clock(dut.clk, given["pump"] * given["clock_hz"] / 1e6)
    dut.rx.value = 1
    await Timer(given["start_patience"] * clock_period(given), "ps")
    replies = []
    for request in given["requests"]:
        awaited = cocotb.start_soon(
            receive(dut.tx, given["reply_bytes"], bit_ps, given["patience_ps"])
        )
        await send(dut.rx, request.tobytes(), bit_ps)
        replies.append(np.frombuffer(await awaited, np.uint8))
        await Timer(bit_ps // 2, "ps")
    bench.publish(replies=np.array(replies))


@cocotb.test()
async def refuses(dut):
    """An Image that is damaged: the error's LED is lit, the answer says so, nothing is computed."""
    given = bench.parameters()
    bit_ps = round(1e12 / given["baud"])
    await started(dut, given)
    component = dut.top.component
    assert component.store.error.value == 1, "the board must refuse the Image in its flash"
    events = []

    async def watch(signal) -> None:
        while True:
            await RisingEdge(signal)
            events.append(signal._name)

    engine = component.engine
    for signal in (engine.layer_start, engine.o_answer__valid, engine.busy, component.store.loaded):
        cocotb.start_soon(watch(signal))
    await Timer(bit_ps, "ps")
    assert dut.error.value == given["lit"], "the error's LED must be lit"
    reply = cocotb.start_soon(receive(dut.tx, given["reply_bytes"], bit_ps, given["patience_ps"]))
    await send(dut.rx, given["request"].tobytes(), bit_ps)
    bench.publish(reply=np.frombuffer(await reply, np.uint8))
    await Timer(given["patience_ps"], "ps")
    assert not events, f"nothing may run, and there was {events}"
    assert dut.error.value == given["lit"], "the error's LED must stay lit"


def clock_period(given: dict) -> int:
    """Of the engine, in ps: the pin's clock is that of its lanes."""
    return int(given["pump"] * bench.period_ps(given["pump"] * given["clock_hz"] / 1e6))
