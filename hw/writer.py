"""The input writer: quantised pixels to memory, one or three rows of the window to a word."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler import arith
from compiler.geometry import Geometry
from hw.layout import memory_write, struct


class InputWriter(wiring.Component):
    """Writes each pixel as the top, middle and bottom row of three words, one above another.

    A slice's word of pixel (x, y) holds rows y-1, y, y+1 of column x in lanes
    ``row * tap_lanes + channel``, so that the first layer's window is one word high and three wide,
    and columns are fetched once for a row of them (where a mask bit is for several lanes a channel
    has as many, and is in the first). What lies above and below the image, and lanes that no
    channel uses, hold the zero point. With ``plain_input`` a word holds its own pixel alone.

    Two cycles a lane: a pixel takes 6 * slices cycles for each of its lanes, which the host's link
    hides.

    Members
    -------
    header : In
    start : In(1), strobe, an image begins
    q : In(8), q_valid : In(1), strobe: a channel of a pixel, channels first, then x, then y; stays
    ready : Out(1), the next one may come
    done : Out(1), strobe, the image is written
    memory : Out(memory_write); soon : Out(1), it will ask in the next cycle
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
                "soon": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g, h = self._geometry, self.header
        rows = g.input_rows
        # The last row takes the lanes that are left over.
        spare = g.mask_bits - rows * g.tap_channels
        lane, last_lane = Signal(range(g.tap_channels + spare)), g.tap_channels + spare - 1
        column, row = Signal.like(h.width), Signal.like(h.height)
        slot = Signal(range(rows))  # the row of its word that the pixel is written as
        first_row, taken = Signal(), Signal(rows)  # taken: rows of the word that are written
        word = self.memory.address
        slices = g.input_slices
        slice_ = Signal(range(max(slices, 2)))
        last_slot, last_slice = slot == rows - 1, slice_ == slices - 1
        last_column, last_row = column == h.width, row == h.height

        with m.FSM():
            with m.State("idle"):
                # As the top row the first pixel is in the word below it.
                first = g.input_first + (h.width + 1 if rows > 1 else 0)
                m.d.sync += [
                    word.eq(first),
                    Cat(lane, column, row, slot, slice_).eq(0),
                    first_row.eq(1),
                ]
                with m.If(self.start):
                    m.next = "take"
            with m.State("take"):
                m.d.comb += self.ready.eq(1)
                with m.If(self.q_valid):
                    m.next = "prepare"
            with m.State("prepare"):  # what is written goes through a register: see `digit`
                m.d.sync += self.memory.valid.eq(1)
                m.d.comb += self.soon.eq(1)
                if rows > 1:  # what no pixel is above or below is written with the pixel's own row
                    top, own = slot == 0, slot == 1
                    m.d.sync += taken.eq(
                        Cat(
                            Mux(first_row, own | (top & ~last_row), top & ~last_row),
                            own,
                            Mux(last_row, own | (last_slot & ~first_row), last_slot & ~first_row),
                        )
                    )
                else:
                    m.d.sync += taken.eq(1)
                m.next = "write"
            with m.State("write"):
                with m.If(self.memory.ready):
                    m.d.sync += self.memory.valid.eq(0)
                    m.next = "prepare"
                    step = Signal(g.address_bits)
                    up = ~Cat(h.width, Const(0, g.address_bits - len(h.width)))  # a row of words
                    m.d.comb += step.eq(
                        Mux(last_slot, Mux(last_slice, h.step_back, h.step_slice), up)
                    )
                    m.d.sync += [slot.eq(Mux(last_slot, 0, slot + 1)), word.eq(word + step)]
                    with m.If(last_slot):
                        m.d.sync += slice_.eq(Mux(last_slice, 0, slice_ + 1))
                    with m.If(last_slot & last_slice):
                        m.d.sync += lane.eq(lane + 1)
                        with m.If(lane < h.channels):
                            m.next = "take"
                        with m.Elif(lane == last_lane):
                            m.next = "next"
            with m.State("next"):
                m.d.sync += [lane.eq(0), word.eq(word + 1)]
                m.d.sync += column.eq(Mux(last_column, 0, column + 1))
                m.next = "take"
                with m.If(last_column):
                    m.d.sync += [first_row.eq(0), row.eq(row + 1)]
                    with m.If(last_row):
                        m.d.comb += self.done.eq(1)
                        m.next = "idle"

        value = Mux(lane > h.channels, h.zero, self.q)
        digit = self._digit(m, value, slice_, "digit")
        beside = digit  # of the rows above and below
        if rows > 1:
            beside = self._digit(m, Mux(slot == 1, h.zero, value), slice_, "beside")
        digits, masks = [], []
        for lane_index in range(g.mask_bits):
            at = min(lane_index // g.tap_channels, rows - 1)
            masks.append(taken[at] & (lane == lane_index - at * g.tap_channels))
            digits.append(beside if rows > 1 and at != 1 else digit)
        written: list[Value] = list(digits)
        if g.mask_channels > 1:
            empty = [self._digit(m, h.zero, slice_, "empty")] * (g.mask_channels - 1)
            written = [part for own in digits for part in (own, *empty)]
        m.d.comb += [self.memory.data.eq(Cat(written)), self.memory.mask.eq(Cat(*masks))]
        return m

    def _digit(self, m: Module, value: Value, slice_: Signal, name: str) -> Signal:
        """The slice of a value that is written; it is known late, and its way to the memory is
        long."""
        g = self._geometry
        width = g.input_slices * g.activation_bits
        wide = Cat(value, Const(0, width - arith.INPUT_BITS))
        digits = [wide.word_select(s, g.activation_bits) for s in reversed(range(g.input_slices))]
        digit = Signal(g.activation_bits, name=name)
        m.d.sync += digit.eq(Array(digits)[slice_])
        return digit
