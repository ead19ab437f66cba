"""The whole engine: Images and pictures in, scores out, and every layer's memory on the way."""

from __future__ import annotations

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout

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

    def __init__(self, engine) -> None:
        memory = engine.memory
        names = {child._name for child in memory}
        if "spram0" in names:
            blocks = sorted(n for n in names if n.startswith("spram") and n[5:].isdigit())
            self._arrays = [getattr(memory, name).mem for name in blocks if hasattr(getattr(memory, name), "mem")]
            self._bits = SPRAM_BITS
        else:
            self._arrays = [memory.memory]
            self._bits = 0

    def read(self, first: int, words: int) -> np.ndarray:
        """Words as (words, blocks) uint64, the least significant block first."""
        return np.array(
            [[int(a[i].value) for a in self._arrays] for i in range(first, first + words)],
            dtype=object,
        ).astype(np.uint64)


async def watch_layers(engine, clock, memory, layers, records: list, spans: list) -> None:
    """At the end of each layer, note its cycles and the regions it wrote."""
    cycle = 0
    edge = RisingEdge(clock)
    started = 0
    index = 0
    while True:
        await edge
        cycle += 1
        if engine.layer_start.value == 1:
            started = cycle
        if engine.layer_done.value == 1:
            spans.append((started, cycle))
            if layers:
                records.extend(memory.read(f, w) for f, w in layers[index % len(layers)])
            index += 1


@cocotb.test()
async def computes(dut):
    """Sends each network's Image and pictures; publishes scores, labels, layers and cycles."""
    given = bench.parameters()
    bench.start_clock(dut.clk)
    stall = STALLS[given.get("stall", "never")]
    image = StreamSource(dut, "i_image", stall=stall)
    pixels = StreamSource(dut, "i_pixels", stall=stall)
    answer = StreamSink(dut, "o_answer", stall=stall)
    memory = Memory(dut)
    await bench.reset(dut)
    for number, network in enumerate(given["networks"]):
        words = given[f"words{number}"]
        spans: list = []
        records: list = []
        watcher = cocotb.start_soon(
            watch_layers(dut, dut.clk, memory, network["regions"], records, spans)
        )
        answers = []
        for picture in given[f"pixels{number}"]:
            image.start(words.tolist())
            pixels.start(picture.tolist())
            got = await with_timeout(
                answer.receive(network["classes"]), given["timeout_us"], "us"
            )
            answers.append(got)
            assert dut.error.value == 0
        await ClockCycles(dut.clk, 20)
        watcher.cancel()
        values = {f"answers{number}": np.array(answers, dtype=np.int64)}
        values[f"spans{number}"] = np.array(spans, dtype=np.int64)
        values |= {f"memory{number}_{i}": r for i, r in enumerate(records)}
        bench.publish(**values)
