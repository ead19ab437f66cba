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

    One lane a cycle: a pixel takes 3 * slices cycles for each of its lanes, which the host's link
    hides.

    Members
    -------
    header : In
    start : In(1), strobe, an image begins
    q : In(8), q_valid : In(1), strobe: a channel of a pixel, channels first, then x, then y; stays
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
        # The last column takes the lanes that are left over.
        spare = g.word_channels - COLUMNS * g.tap_lanes
        lane, last_lane = Signal(range(g.tap_lanes + spare)), g.tap_lanes + spare - 1
        column, left = Signal(9), Signal(24)
        real, ending = Signal(), Signal()  # the pixel exists; the one behind the last is written
        pixel_word, word = Signal(g.address_bits), Signal(g.address_bits)
        slot = Signal(range(COLUMNS))
        slices = arith.num_slices(arith.INPUT_BITS, g.activation_bits)
        slice_ = Signal(range(max(slices, 2)))

        with m.FSM():
            with m.State("idle"):
                m.d.sync += [
                    pixel_word.eq(h.base - 2),
                    word.eq(h.base - 2),
                    left.eq(h.pixels),
                    Cat(lane, column, real, ending, slot, slice_).eq(0),
                ]
                with m.If(self.start):
                    m.next = "write"  # the pixel before the first: all padding
            with m.State("take"):
                m.d.comb += self.ready.eq(1)
                m.d.sync += real.eq(1)
                with m.If(self.q_valid):
                    m.d.sync += left.eq(left - 1)
                    m.next = "write"
            with m.State("write"):
                m.d.comb += self.memory.valid.eq(1)
                with m.If(self.memory.ready):
                    m.d.sync += [slot.eq(slot + 1), word.eq(word + 1)]
                    with m.If(slot == COLUMNS - 1):
                        m.d.sync += [
                            slot.eq(0),
                            slice_.eq(slice_ + 1),
                            word.eq(word + h.plane - (COLUMNS - 1)),
                        ]
                        with m.If(slice_ == slices - 1):
                            m.d.sync += [slice_.eq(0), word.eq(pixel_word), lane.eq(lane + 1)]
                            with m.If(real & (lane < h.channels)):
                                m.next = "take"
                            with m.Elif(lane == last_lane):
                                m.next = "next"
            with m.State("next"):
                m.d.sync += [
                    lane.eq(0),
                    word.eq(pixel_word + 1),
                    pixel_word.eq(pixel_word + 1),
                    real.eq(0),
                ]
                with m.If(real):
                    m.d.sync += column.eq(Mux(column == h.width, 0, column + 1))
                with m.If(left != 0):
                    m.next = "take"
                with m.Elif(~ending):
                    m.d.sync += ending.eq(1)
                    m.next = "write"  # the pixel behind the last
                with m.Else():
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"

        # Slot 0 is the word to the left, where the pixel is the right column. A row's first pixel
        # is nobody's right column, its last nobody's left.
        padding = (
            ~real
            | (lane > h.channels)
            | ((slot == 0) & (column == 0))
            | ((slot == COLUMNS - 1) & (column == h.width))
        )
        width = slices * g.activation_bits
        value = Cat(Mux(padding, h.zero, self.q), Const(0, width - arith.INPUT_BITS))
        digits = [value.word_select(s, g.activation_bits) for s in reversed(range(slices))]
        first = [Const(1 << (COLUMNS - 1 - i) * g.tap_lanes, g.word_channels) for i in range(COLUMNS)]
        inside = (lane < g.tap_lanes) | (slot == 0)
        m.d.comb += [
            self.memory.address.eq(word),
            self.memory.data.eq(Array(digits)[slice_].replicate(g.word_channels)),
            self.memory.mask.eq(Mux(inside, Array(first)[slot] << lane, 0)),
        ]
        return m
