"""The window's words: from a layer's record to reads of the activation memory, in order."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.layout import memory_read, struct


def _before(place: Signal, pad: Value) -> Value:
    """Whether a row or column is padding in front; of one alone that is no comparison."""
    return pad & (place == 0) if len(pad) == 1 else place < pad


class WindowFetch(wiring.Component):
    """Reads each column that windows need once for every row of tiles, ahead of its use.

    Order: rows of tiles, columns of the map, rows of the window, memory words of a pixel. So a
    window's words stand one after another in the buffer behind (`hw.window`), and the next window's
    begin a few columns further on. Pooling walks over memory words of residuals in the same way,
    and each group is the next plane of them. A word outside the map is not read: it is the padding.

    The address moves by one step of the record a word: the compiler has multiplied all there is to
    multiply.

    Throughput: one word a cycle while the memory is granted and there is room.

    Members
    -------
    record : In, constant while busy
    layer_start : In(1), strobe, before the first group of a layer
    start : In(1), strobe, walks one group; only while not busy
    busy : Out(1)
    memory : Out(memory_read)
    room : In(1), one more word may come
    coming : Out(1), strobe, a word comes in the next cycle
    data : Out, that word
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "layer_start": In(1),
                "start": In(1),
                "busy": Out(1),
                "memory": Out(memory_read(geometry)),
                "room": In(1),
                "coming": Out(1),
                "data": Out(geometry.word_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g, r = self._geometry, self.record
        word, row = Signal.like(r.words_less), Signal.like(r.kernel_h_less)
        column, line = Signal.like(r.columns_less), Signal.like(r.height_out_less)
        y = Signal.like(r.row_last)  # of the map, counted from the padding like the columns
        column_outside = Signal()  # compared like the counters below
        outside, came_outside = Signal(), Signal()
        # Counters that stand at their last: compared before they get there, since the address and
        # all else waits for it.
        last_word, last_row, last_column, last_line = (
            Signal(name=f"last_{name}") for name in ("word", "row", "column", "line")
        )
        counters = (
            (word, last_word, r.words_less),
            (row, last_row, r.kernel_h_less),
            (column, last_column, r.columns_less),
            (line, last_line, r.height_out_less),
        )
        m.d.comb += [
            outside.eq(_before(y, r.pad_top) | (y > r.row_last) | column_outside),
            # Padding is not read, but whether it is padding is known later than the port's address.
            self.memory.valid.eq(self.busy & self.room),
            self.coming.eq(self.busy & self.room & (outside | self.memory.ready)),
        ]
        pad = Cat(r.pad for _ in range(g.word_channels)) & (~r.pool).replicate(g.word_bits)
        m.d.sync += came_outside.eq(outside)
        m.d.comb += self.data.eq(Mux(came_outside, pad, self.memory.data))

        step, y_step = Signal(g.address_bits), Signal(len(y))
        with m.If(~last_word):
            m.d.comb += step.eq(r.step_word)
        with m.Elif(~last_row):
            m.d.comb += [step.eq(r.step_row), y_step.eq(1)]
        with m.Elif(~last_column):
            m.d.comb += [step.eq(r.step_column), y_step.eq(-r.kernel_h_less)]
        with m.Elif(~last_line):
            m.d.comb += [step.eq(r.step_line), y_step.eq(1 + r.stride2 - r.kernel_h_less)]
        with m.Else():
            m.d.comb += step.eq(r.step_group)
        with m.If(self.coming):
            m.d.sync += [
                self.memory.address.eq(self.memory.address + step),
                y.eq(y + y_step),
            ]
            turned: Value = Const(1, 1)
            for counter, last, less in counters:
                onward = Signal.like(counter, name=f"next_{counter.name}")
                m.d.comb += onward.eq(Mux(last, 0, counter + 1))
                with m.If(turned):
                    m.d.sync += [counter.eq(onward), last.eq(onward == less)]
                    if counter is column:
                        beyond = _before(onward, r.pad_left) | (onward > r.column_last)
                        m.d.sync += column_outside.eq(beyond)
                # A net of its own for each, whatever synthesis would rather share.
                turning = Signal(name=f"{counter.name}_turns", attrs={"keep": "true"})
                m.d.comb += turning.eq(turned & last)
                turned = turning
            with m.If(turned):
                m.d.sync += self.busy.eq(0)
        with m.If(~self.busy):  # the counters stand at 0, and the record may be a new one
            m.d.sync += [last.eq(less == 0) for _, last, less in counters]
            m.d.sync += column_outside.eq(r.pad_left.any())
        with m.If(self.layer_start):
            m.d.sync += self.memory.address.eq(r.in_first)
        with m.If(self.start):
            m.d.sync += [self.busy.eq(1), y.eq(0)]
        return m
