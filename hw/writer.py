"""The input writer: quantised pixels into activation memory, three columns of the window to a word."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler import arith
from compiler.geometry import Geometry
from hw.layout import memory_write, struct

COLUMNS = 3
"""Columns of the first layer's window."""


class InputWriter(wiring.Component):
    """Writes each pixel as the right, middle and left column of three neighbouring words.

    Word n of a slice holds columns n-1, n, n+1 in lanes ``column * tap_lanes + channel``, so that the
    first layer's window is three words high and one wide. What lies beyond a row's ends, and lanes
    that no channel uses, hold the zero point. The map has two words of guard at either end; see
    `compiler.schedule`.

    Members
    -------
    header : In
    start : In(1), strobe, an image begins
    q : In(8), q_valid : In(1), strobe: a channel of a pixel, channels first, then x, then y
    ready : Out(1), the next one may come
    done : Out(1), strobe, the image is written
    memory : Out(memory_write)
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        super().__init__(
            {
                "header": In(struct(geometry.header_fields)),
                "start": In(1),
                "q": In(arith.INPUT_BITS),
                "q_valid": In(1),
                "ready": Out(1),
                "done": Out(1),
                "memory": Out(memory_write(geometry)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g, h = self._geometry, self.header
        lanes = [Signal(arith.INPUT_BITS, name=f"lane{i}") for i in range(g.tap_lanes)]
        channel, column, left = Signal(4), Signal(9), Signal(24)
        real, ending = Signal(), Signal()  # the pixel exists; the last one has been taken
        word, slice_first = Signal(g.address_bits), Signal(g.address_bits)
        slot = Signal(range(COLUMNS))
        slices = arith.num_slices(arith.INPUT_BITS, g.activation_bits)
        slice_ = Signal(range(max(slices, 2)))

        with m.FSM():
            with m.State("idle"):
                m.d.sync += [lane.eq(h.zero) for lane in lanes]
                m.d.sync += [
                    word.eq(h.base - 1),
                    slice_first.eq(h.base - 1),
                    left.eq(h.pixels),
                    Cat(channel, column, real, ending, slot, slice_).eq(0),
                ]
                with m.If(self.start):
                    m.next = "write"  # the pixel before the first: all padding
            with m.State("take"):
                m.d.comb += self.ready.eq(1)
                with m.If(self.q_valid):
                    m.d.sync += Array(lanes)[channel].eq(self.q)
                    m.d.sync += [channel.eq(channel + 1), left.eq(left - 1), real.eq(1)]
                    with m.If(channel == h.channels):
                        m.d.sync += channel.eq(0)
                        m.next = "write"
            with m.State("write"):
                m.d.comb += self.memory.valid.eq(1)
                with m.If(self.memory.ready):
                    m.d.sync += slot.eq(slot + 1)
                    with m.If(slot == COLUMNS - 1):
                        m.d.sync += [
                            slot.eq(0),
                            slice_.eq(slice_ + 1),
                            word.eq(word + h.plane),
                        ]
                        with m.If(slice_ == slices - 1):
                            m.d.sync += slice_.eq(0)
                            m.next = "next"
            with m.State("next"):
                m.d.sync += [lane.eq(h.zero) for lane in lanes]
                m.d.sync += [word.eq(slice_first + 1), slice_first.eq(slice_first + 1)]
                with m.If(real):
                    m.d.sync += column.eq(Mux(column == h.width, 0, column + 1))
                m.d.sync += real.eq(0)
                with m.If(left != 0):
                    m.next = "take"
                with m.Elif(~ending):
                    m.d.sync += ending.eq(1)
                    m.next = "write"  # the pixel behind the last
                with m.Else():
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"

        # A row's first pixel is nobody's right column, its last nobody's left.
        beyond = ~real | ((slot == 0) & (column == 0)) | ((slot == 2) & (column == h.width))
        width = slices * g.activation_bits
        digits = [
            Cat(Mux(beyond, h.zero, lane), Const(0, width - arith.INPUT_BITS)) for lane in lanes
        ]
        rest = g.word_channels - COLUMNS * g.tap_lanes
        zero = Cat(h.zero, Const(0, width - arith.INPUT_BITS))
        words = [
            Cat(
                *(d.word_select(s, g.activation_bits) for d in digits * COLUMNS),
                *(zero.word_select(s, g.activation_bits) for _ in range(rest)),
            )
            for s in reversed(range(slices))
        ]
        tap = (1 << g.tap_lanes) - 1
        right = tap << 2 * g.tap_lanes | ((1 << rest) - 1) << COLUMNS * g.tap_lanes
        masks = [Const(mask, g.word_channels) for mask in (right, tap << g.tap_lanes, tap)]
        m.d.comb += [
            self.memory.address.eq(word + slot - 1),
            self.memory.data.eq(Array(words)[slice_]),
            self.memory.mask.eq(Array(masks)[slot]),
        ]
        return m
