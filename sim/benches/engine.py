"""The whole engine: Images and pictures in, scores out, and every layer's memory on the way."""

from __future__ import annotations

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge, with_timeout

from compiler.geometry import Geometry
from hw.engine import Engine
from sim import bench
from sim.drivers import STALLS, StreamSink, StreamSource

SPRAM_BITS = 16


def design():
    """The engine of the shipped boards, on its own; `sim.check` runs networks on it."""
    return {}


def engine(geometry: Geometry, primitive: str = "inferred") -> tuple[Engine, list[str]]:
    """An engine and the cell models it needs."""
    return Engine(geometry, primitive), (["SB_SPRAM256KA"] if primitive == "spram" else [])


class Memory:
    """The activation memory, seen from outside, whatever it is made of."""

    def __init__(self, engine, geometry: Geometry) -> None:
        memory = engine.memory
        names = {child._name for child in memory}
        blocks = [f"spram{i}" for i in range(len(names)) if f"spram{i}" in names]
        # The signal of a block's output has its name too; it has no contents.
        blocks = [block for block in blocks if hasattr(getattr(memory, block), "mem")]
        b = geometry.activation_bits
        if blocks:
            self._arrays = [getattr(memory, block).mem for block in blocks]
            self._bits, lane = SPRAM_BITS, -(-b // 4) * 4
        else:
            self._arrays = [memory.memory]
            self._bits, lane = geometry.word_bits, b
        self._used = [i * lane + j for i in range(geometry.word_channels) for j in range(b)]

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

    def __init__(self, engine, clock, layers: list) -> None:
        self.spans: list[tuple[int, int]] = []
        self.classes: list[int] = []
        self.records: list[np.ndarray] = []
        self._engine, self._layers = engine, layers
        self._memory = Memory(engine)
        self._task = cocotb.start_soon(self._watch(RisingEdge(clock)))

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


@cocotb.test()
async def computes(dut):
    """Sends each network's Image and pictures; publishes scores, labels, layers and cycles."""
    given = bench.parameters()
    bench.start_clock(dut.clk)
    stall = STALLS[given.get("stall", "never")]
    image = StreamSource(dut, "i_image", stall=stall)
    pixels = StreamSource(dut, "i_pixels", stall=stall)
    answer = StreamSink(dut, "o_answer", stall=stall)
    await bench.reset(dut)
    for number, network in enumerate(given["networks"]):
        watcher = Watcher(dut, dut.clk, network["regions"])
        answers = []
        for picture in given[f"pixels{number}"]:
            image.start(given[f"words{number}"].tolist())
            pixels.start(picture.tolist())
            answers.append(
                await with_timeout(answer.receive(network["classes"]), given["timeout_us"], "us")
            )
            assert dut.error.value == 0
            while dut.busy.value == 1:  # lanes that no class uses are still on their way
                await RisingEdge(dut.clk)
        watcher.stop()
        bench.publish(
            **{
                f"answers{number}": np.array(answers, dtype=np.int64),
                f"spans{number}": np.array(watcher.spans, dtype=np.int64),
                f"classes{number}": np.array(watcher.classes, dtype=np.int64),
            },
            **{f"memory{number}_{i}": r for i, r in enumerate(watcher.records)},
        )
