"""What the benches of blocks share: several parameter points in one model, and ports as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped

from compiler.geometry import Geometry
from hw.layout import stride_put, struct

SMALL = Geometry(
    input_lanes=4,
    output_lanes=8,
    pump=1,
    residual_bits=16,
    max_left_shift=5,
    memory_depth=1024,
    window_depth=64,
    weight_depth=128,
    stream_bits=32,
)
"""A geometry unlike the default one in whatever can differ."""

WIDE = Geometry(
    input_lanes=8,
    output_lanes=8,
    pixel_lanes=4,
    pump=1,
    activation_bits=3,
    word_channels=32,
    residual_bits=16,
    memory_depth=2048,
    max_left_shift=7,
    shift_bits=4,
    stream_bits=32,
)
"""Four pixels at once, three slices of the input, and words of a width that is no power of two."""


EIGHT = Geometry(
    activation_bits=8,
    accumulator_bits=21,
    residual_bits=16,
    max_left_shift=5,
    bias_bits=16,
    offset_bits=32,
    divisor_bits=24,
    memory_depth=2048,
)
"""Eight bits: the input in one slice, parameters of two words."""

PAIR = Geometry(
    input_lanes=8,
    output_lanes=4,
    pixel_lanes=2,
    pump=1,
    residual_bits=16,
    max_left_shift=5,
    memory_depth=2048,
    stream_bits=32,
)
"""Two pixels at once, and two steps a memory word."""

TWO_PORTS = Geometry(
    input_lanes=8,
    output_lanes=4,
    pixel_lanes=4,
    pump=1,
    max_left_shift=1,
    memory_depth=2048,
    two_ports=True,
    stream_bits=32,
)
"""Four pixels at once, residuals of 8 bits, and memory of block RAM whose ports are both used."""

PAIRED = Geometry(
    input_lanes=8,
    pixel_lanes=4,
    pump=1,
    max_left_shift=1,
    memory_depth=4096,
    weight_depth=512,
    two_ports=True,
    planes_apart=True,
    paired_groups=True,
    stream_bits=32,
)
"""Two groups of output channels on a window, and planes of a map that lie apart."""


class Points(wiring.Component):
    """Several components side by side, each behind ports that begin with its name.

    One compilation then serves all parameter points of a block.

    Members
    -------
    <name> : the members of the component of that name
    """

    def __init__(self, blocks: Mapping[str, wiring.Component]) -> None:
        self._blocks = dict(blocks)
        super().__init__({name: Out(block.signature) for name, block in blocks.items()})

    def elaborate(self, platform):
        m = Module()
        for name, block in self._blocks.items():
            m.submodules[name] = block
            connect(m, flipped(getattr(self, name)), block)
        return m


class Ports:
    """The ports of one point: ``ports.start`` is the handle ``<point>__start``."""

    def __init__(self, dut: Any, point: str) -> None:
        self._dut, self._point = dut, point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dut, f"{self._point}__{name}")

    def name(self, port: str) -> str:
        """Full name of a port, for the stream drivers."""
        return f"{self._point}__{port}"


def fields(layout: Sequence[tuple[str, int]], values: Mapping[str, int]) -> int:
    """A record of `compiler.geometry` as one integer, as the hardware's structure has it."""
    return int(struct(tuple(layout)).const({name: values[name] for name, _ in layout}).as_bits())


def stride_puts(geometry: Geometry, record: Mapping[str, int]) -> Iterator[int]:
    """What `hw.layout.stride_put` says, word by word, while a layer's strides are loaded."""
    g, put = geometry, stride_put(geometry)
    for row, layout in enumerate(g.stride_rows):
        for part, word in enumerate(split(fields(layout, record), g.stream_bits, g.stride_words)):
            values = {"parts": 1 << part, "row": row, "word": int(word)}
            yield int(put.const(values).as_bits())


def join(values: Iterable[int], width: int) -> int:
    """Fields of ``width`` bits side by side, the first lowest, in two's complement."""
    mask = (1 << width) - 1
    return sum((int(v) & mask) << width * i for i, v in enumerate(values))


def split(value: int, width: int, count: int, *, signed: bool = False) -> np.ndarray:
    """The opposite of `join`."""
    mask, half = (1 << width) - 1, 1 << (width - 1)
    parts = [value >> width * i & mask for i in range(count)]
    return np.array([p - 2 * half if signed and p >= half else p for p in parts], dtype=np.int64)
