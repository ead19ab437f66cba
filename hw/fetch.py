"""The window's words: from a layer's record to reads of the activation memory, in order."""

from __future__ import annotations

from amaranth.hdl import Array, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import STRIDES, Geometry
from hw.layout import memory_read, stride_put, struct
from hw.pointer import Pointer

BEHIND = {
    n: STRIDES["fetch"].index(f"step_{n}") for n in ("word", "row", "column", "line", "group")
}
"""Row of the stride behind a memory word; behind the last of a column's row, of a column, …"""


def _before(place: Signal, pad: Value) -> Value:
    """Whether a row or column is padding in front; of one alone that is no comparison."""
    return pad & (place == 0) if len(pad) == 1 else place < pad


class WindowFetch(wiring.Component):
    """Reads each column that windows need once for every row of tiles, ahead of its use.

    Order: rows of tiles, columns of the map, rows of the window, memory words of a pixel. So a
    window's words stand one after another in the buffer behind (`hw.window`), and the next window's
    begin a few columns further on. In the first layer (``sliced``) what are rows elsewhere are the
    slices of the input, whose words hold all rows of a window. Pooling walks over memory words of
    residuals in the same way, and each group is the next plane of them. A word outside the map is
    not read: it is the padding.

    The address moves by one stride a word (`hw.pointer`): the compiler has multiplied all there is
    to multiply. Strides are looked up ahead, so the counters are one word ahead of the address.

    Throughput: one word a cycle while the memory is granted and there is room.

    Members
    -------
    record : In, constant while busy; strides : In(`stride_put`)
    layer_start : In(1), strobe, before the first group of a layer
    start : In(1), strobe, walks one group; only while not busy, and from the cycle after
        `layer_start` on
    busy : Out(1)
    memory : Out(memory_read)
    room : In(1), one more word may come
    coming : Out(1), strobe, a word comes in the next cycle
    data : Out, that word
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        self._geometry = geometry
        self._primitive = primitive
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "strides": In(stride_put(geometry)),
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
        m.submodules.pointer = pointer = Pointer(g, "fetch", self._primitive)
        outside, came_outside, ends_group = Signal(), Signal(), Signal()  # of the word at the port
        advance = Signal()
        m.d.comb += [
            pointer.strides.eq(self.strides),
            pointer.restart.eq(self.layer_start),
            pointer.step.eq(self.coming),
            pointer.look.eq(advance),
            self.memory.address.eq(pointer.address),
            # Padding is not read, but whether it is padding is known later than the port's address.
            self.memory.valid.eq(self.busy & self.room),
            self.coming.eq(self.busy & self.room & (outside | self.memory.ready)),
            advance.eq(self.coming | pointer.begins),
        ]
        slice_, came_slice = (Signal(range(g.window_slices)) for _ in range(2))
        slices = [min(i, g.window_slices - 1) for i in range(1 << len(slice_))]
        digit = Array(r.pad.word_select(i, g.activation_bits) for i in slices)[came_slice]
        pad = Mux(r.pool, 0, digit).replicate(g.word_channels)
        m.d.sync += [came_outside.eq(outside), came_slice.eq(slice_)]
        m.d.comb += self.data.eq(Mux(came_outside, pad, self.memory.data))
        self._count(m, advance, pointer.row, outside, ends_group, slice_)
        with m.If(self.coming & ends_group):
            m.d.sync += self.busy.eq(0)
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
        return m

    def _count(
        self,
        m: Module,
        advance: Signal,
        stride: Signal,
        outside: Signal,
        ends_group: Signal,
        slice_: Signal,
    ) -> None:
        """Where the word is that follows the one at the port; what is known of it goes with it."""
        r, sliced = self.record, self.record.sliced if len(self.record.sliced) else Const(0, 1)
        word, row = Signal.like(r.words_less), Signal.like(r.kernel_h_less)
        column, line = Signal.like(r.columns_less), Signal.like(r.height_out_less)
        y = Signal.like(r.row_last)  # of the map, counted from the padding like the columns
        column_outside = Signal()
        # Counters that stand at their last, and with them: compared before they get there.
        last_word, last_row, last_column, last_line = (
            Signal(name=f"last_{name}") for name in ("word", "row", "column", "line")
        )
        counters = (
            (word, last_word, r.words_less),
            (row, last_row, r.kernel_h_less),
            (column, last_column, r.columns_less),
            (line, last_line, r.height_out_less),
        )
        y_step = Signal(len(y))
        height_less = Mux(sliced, 0, r.kernel_h_less)
        with m.If(~last_word):
            m.d.comb += stride.eq(BEHIND["word"])
        with m.Elif(~last_row):
            m.d.comb += [stride.eq(BEHIND["row"]), y_step.eq(~sliced)]
        with m.Elif(~last_column):
            m.d.comb += [stride.eq(BEHIND["column"]), y_step.eq(-height_less)]
        with m.Elif(~last_line):
            m.d.comb += stride.eq(BEHIND["line"])
            m.d.comb += y_step.eq(1 + r.stride2 - height_less)
        with m.Else():
            m.d.comb += stride.eq(BEHIND["group"])
        # Whether a word advances is known late: it only enables, and nothing waits for it.
        restart, turned = self.layer_start, Const(1, 1)
        for counter, last, less in counters:
            onward = Signal.like(counter, name=f"next_{counter.name}")
            m.d.comb += onward.eq(Mux(last | restart, 0, counter + 1))
            with m.If((advance & turned) | restart):
                m.d.sync += [counter.eq(onward), last.eq(onward == less)]
                if counter is column:
                    # Compared with the map's last as it leaves it, not as it comes: that is sooner.
                    wraps, past = last | restart, Signal()
                    in_front = wraps & r.pad_left
                    if len(r.pad_left) > 1:
                        in_front = onward < r.pad_left
                    m.d.sync += past.eq(~wraps & (past | (column == r.column_last)))
                    m.d.sync += column_outside.eq(
                        in_front | (~wraps & (past | (column == r.column_last)))
                    )
            turned = turned & last
        with m.If(advance):
            m.d.sync += outside.eq(_before(y, r.pad_top) | (y > r.row_last) | column_outside)
            m.d.sync += [ends_group.eq(turned), slice_.eq(row)]
        with m.If(advance | restart):
            m.d.sync += y.eq(Mux(turned | restart, 0, y + y_step))
