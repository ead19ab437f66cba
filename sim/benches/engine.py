"""The whole engine: Images and pictures in, scores out, and every layer's memory on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator

import cocotb
import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import connect, flipped
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout

from compiler.geometry import MASKED_BITS, Geometry
from hw.engine import Engine
from sim import bench
from sim.drivers import STALLS, StreamSink, StreamSource, first_difference

SPRAM_BITS = 16

REFUSAL_CYCLES = 3000
"""How long a refused Image is watched: more than a small network takes."""


def design():
    """Three random networks one after another on the engine of the shipped board."""
    from compiler import golden
    from compiler.schedule import schedule
    from sim.benches.networks import PADDINGS, random_program
    from sim.check import parameters_of

    geometry = Geometry()
    component, models = engine(geometry, "spram")
    rng = np.random.default_rng(1)
    programs = [random_program(i, padding=padding) for i, padding in enumerate(PADDINGS)]
    images = [rng.integers(0, 256, (2, *p.image.shape), dtype=np.uint8) for p in programs]
    schedules = [schedule(program, geometry) for program in programs]
    given = parameters_of(schedules, images, layers=False)
    for i, (program, pictures) in enumerate(zip(programs, images, strict=True)):
        given[f"expected{i}"] = golden.run(program, pictures).scores
    return {"": (component, {"sources": models}, given)}


class ServedEngine(wiring.Component):
    """An engine whose Image comes as fast as `hw.store` serves it, but from the bench's stream.

    Each word takes the activation memory's port for a cycle, when the engine wants one, and comes
    in the next: so the cycles are those of an engine on a board, for Images one after another.

    Members
    -------
    those of `hw.engine.Engine`, less image_read and image_write
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        self._engine = Engine(geometry, primitive)
        members = self._engine.signature.members
        own = ("image_read", "image_write")
        super().__init__({name: members[name] for name in members if name not in own})

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = inner = self._engine
        connect(m, flipped(self.i_pixels), inner.i_pixels)
        connect(m, inner.o_answer, flipped(self.o_answer))
        for name in ("num_pixels", "num_classes", "busy", "error", "layer_start", "layer_done"):
            m.d.comb += getattr(self, name).eq(getattr(inner, name))
        arrived, read = Signal(), inner.image_read
        m.d.sync += arrived.eq(read.valid & read.ready)
        m.d.comb += [
            read.valid.eq(inner.i_image.ready & self.i_image.valid & ~arrived),
            inner.i_image.valid.eq(arrived),
            inner.i_image.payload.eq(self.i_image.payload),
            self.i_image.ready.eq(arrived),
        ]
        return m


def engine(geometry: Geometry, primitive: str = "inferred") -> tuple[ServedEngine, list[str]]:
    """An engine and the cell models it needs."""
    return ServedEngine(geometry, primitive), (
        ["SB_RAM40_4K", "SB_SPRAM256KA"] if primitive == "spram" else []
    )


class Memory:
    """The activation memory, seen from outside, whatever it is made of."""

    def __init__(self, engine, geometry: Geometry) -> None:
        memory = engine.memory
        names = {child._name for child in memory}
        blocks = [f"spram{i}" for i in range(len(names)) if f"spram{i}" in names]
        # The signal of a block's output has its name too; it has no contents.
        blocks = [block for block in blocks if hasattr(getattr(memory, block), "mem")]
        if blocks:
            self._of_blocks([getattr(memory, block).mem for block in blocks], geometry)
        else:
            self._arrays, self._bits = [memory.memory], geometry.word_bits
            self._used = list(range(geometry.word_bits))

    def _of_blocks(self, arrays: list, geometry: Geometry) -> None:
        """Single-port RAM, in whose nibbles stands what a mask bit is for (`hw.memory`)."""
        b = geometry.activation_bits * geometry.mask_channels
        width = -(-b // MASKED_BITS) * MASKED_BITS
        self._arrays, self._bits = arrays, SPRAM_BITS
        self._used = [i * width + j for i in range(geometry.mask_bits) for j in range(b)]

    def read(self, first: int, words: int) -> np.ndarray:
        """Words as (words, bits) uint8, the least significant bit first."""
        rows = []
        for i in range(first, first + words):
            value = 0
            for n, array in enumerate(self._arrays):
                value |= int(array[i].value) << self._bits * n
            rows.append([value >> bit & 1 for bit in self._used])
        return np.array(rows, dtype=np.uint8)


class Watcher:
    """Notes the cycles of each layer and of each class, and what stands in memory after a layer.

    Attributes
    ----------
    spans : list of (start, done) cycles, a layer each
    classes : list of the cycles in which a class was answered
    records : list of arrays, the regions asked for, in order
    """

    def __init__(self, engine, geometry: Geometry, layers: list) -> None:
        self.spans: list[tuple[int, int]] = []
        self.classes: list[int] = []
        self.records: list[np.ndarray] = []
        self._engine, self._layers = engine, layers
        self._memory = Memory(engine.engine, geometry)
        self._task = cocotb.start_soon(self._watch(RisingEdge(engine.clk)))

    async def _watch(self, edge) -> None:
        engine, layers = self._engine, self._layers
        cycle, started = 0, 0
        while True:
            await edge
            cycle += 1
            if engine.layer_start.value == 1:
                started = cycle
            if engine.o_answer__valid.value == 1 and engine.o_answer__ready.value == 1:
                if len(self.classes) * len(layers) <= len(self.spans):
                    self.classes.append(cycle)
                self.classes[-1] = cycle
            if engine.layer_done.value == 1:
                for first, words in layers[len(self.spans) % len(layers)]:
                    self.records.append(self._memory.read(first, words))
                self.spans.append((started, cycle))

    def stop(self) -> None:
        """Watch no more."""
        self._task.cancel()


def _every_picture(given: dict, name: str) -> Iterator[int]:
    """Words of all Images (again for each picture), or bytes of all pictures, without a pause."""
    for number in range(len(given["networks"])):
        for picture in given[f"pixels{number}"]:
            yield from (picture if name == "pixels" else given[f"{name}{number}"]).tolist()


@cocotb.test()
async def computes(dut):
    """Networks one after another, Images and pictures on end; publishes all there is to compare.

    Scores, labels, the memory after each layer, and when each layer began and ended. Where the
    parameters hold the expected scores they are compared here too.
    """
    given = bench.parameters()
    geometry = Geometry(**given["geometry"])
    bench.start_clocks(dut)
    stall = STALLS[given.get("stall", "never")]
    image = StreamSource(dut, "i_image", stall=stall)
    pixels = StreamSource(dut, "i_pixels", stall=stall)
    answer = StreamSink(dut, "o_answer", stall=stall)
    await bench.reset(dut)
    image.start(_every_picture(given, "words"))
    pixels.start(_every_picture(given, "pixels"))
    for number, network in enumerate(given["networks"]):
        watcher = Watcher(dut, geometry, network["regions"])
        answers = []
        for _ in given[f"pixels{number}"]:
            answers.append(
                await with_timeout(answer.receive(network["classes"]), given["timeout_us"], "us")
            )
            assert dut.error.value == 0
            while len(watcher.spans) < len(answers) * len(network["regions"]):
                await RisingEdge(dut.clk)  # lanes that no class uses are still on their way
        watcher.stop()
        values = np.array(answers, dtype=np.int64)
        if f"expected{number}" in given:
            _hold_scores(given[f"expected{number}"], values)
        bench.publish(
            **{
                f"answers{number}": values,
                f"spans{number}": np.array(watcher.spans, dtype=np.int64),
                f"classes{number}": np.array(watcher.classes, dtype=np.int64),
            },
            **{f"memory{number}_{i}": r for i, r in enumerate(watcher.records)},
        )
    assert answer.received == sum(
        n["classes"] * len(given[f"pixels{i}"]) for i, n in enumerate(given["networks"])
    )


def _hold_scores(expected: np.ndarray, answers: np.ndarray) -> None:
    mask = (1 << 16) - 1
    problem = first_difference(
        (expected.ravel() & mask).tolist(), (answers.ravel() & mask).tolist()
    )
    assert not problem, problem
    assert (answers[:, -1] >> 16 & 0xFF == expected.argmax(axis=1)).all()
    lasts = np.arange(1, answers.shape[1] + 1) == answers.shape[1]
    assert (answers >> 24 == lasts).all()


@cocotb.test()
async def refuses(dut):
    """Garbage, or another geometry's Image, raises ``error`` until reset; nothing is computed."""
    given = bench.parameters()
    words, picture = given["words0"].tolist(), given["pixels0"][0].tolist()
    rng = random.Random(cocotb.RANDOM_SEED)
    bits = Geometry(**given["geometry"]).stream_bits
    garbage = [rng.getrandbits(bits) for _ in words]
    at = 63 // bits  # the word that ends with the geometry's digest
    faults = {
        "garbage": garbage,
        "zeros": [0] * len(words),
        "magic": [words[0] ^ 1, *words[1:]],
        "geometry": [*words[:at], words[at] ^ 1 << bits - 1, *words[at + 1 :]],
        "shifted": words[1:],
    }
    if "foreign" in given:
        faults["foreign"] = given["foreign"].tolist()
    bench.start_clocks(dut)
    for fault, wrong in faults.items():
        image, pixels = StreamSource(dut, "i_image"), StreamSource(dut, "i_pixels")
        answer = StreamSink(dut, "o_answer")
        await bench.reset(dut)
        tasks = [image.start([*wrong, *words, *words]), pixels.start(picture + picture)]
        await ClockCycles(dut.clk, 8)
        assert dut.error.value == 1, f"{fault}: error must rise"
        assert image.sent <= 2, f"{fault}: {image.sent} words taken"
        for _ in range(REFUSAL_CYCLES):
            await RisingEdge(dut.clk)
            quiet = (dut.busy, dut.layer_start, dut.layer_done, dut.o_answer__valid, dut.num_pixels)
            assert all(signal.value == 0 for signal in quiet), f"{fault}: something runs"
            assert dut.error.value == 1, f"{fault}: error must stay"
        assert (image.sent, pixels.sent, answer.received) == (image.sent, 0, 0), fault
        answer.stop()
        for task in tasks:
            task.cancel()
    # After a reset the right one is taken.
    image, pixels = StreamSource(dut, "i_image"), StreamSource(dut, "i_pixels")
    answer = StreamSink(dut, "o_answer")
    await bench.reset(dut)
    image.start(words)
    pixels.start(picture)
    await with_timeout(answer.receive(given["networks"][0]["classes"]), given["timeout_us"], "us")
    assert dut.error.value == 0
