"""The window: from a layer's record to the activations of each step, in order."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.layout import memory_read, struct

FIFO_DEPTH = 2
"""Words on their way or waiting: covers the memory's latency at one word a cycle."""

FLAGS = (
    "commit",  # the last of the words a step needs: every pixel lane has its own
    "full",  # with this commit every pixel lane takes a new word, else its neighbour's
    "last",  # this commit ends a tile
    "group_first",  # this word belongs to the first step of a group of tiles
    "rewind",  # weights go back to the first of this memory word (shared by columns)
    "restart",  # weights go back to the first of the group
    "word_last",  # this is the last memory word of a pixel
)


def word_layout(geometry: Geometry) -> data.StructLayout:
    """A word of a window and where it stands in its tile (`FLAGS`)."""
    return data.StructLayout({"data": geometry.word_bits} | dict.fromkeys(FLAGS, 1))


class WindowFetch(wiring.Component):
    """Walks the tiles of one group and reads the words of their windows.

    Order: rows of tiles, tiles, window rows, memory words of a pixel, window columns. At stride 1 a
    word serves a pixel lane and, one column later, the lane to its left, so a window row takes
    pixel_lanes + columns - 1 words; at stride 2 pixel_lanes * columns. Pooling reads three words of
    residuals a row, and each group is the next plane of them. A word outside the map is not read:
    it is the padding.

    The address moves by one step of the record a word: the compiler has multiplied all there is to
    multiply.

    Throughput: one word a cycle while the memory is granted and the reader keeps up.

    Members
    -------
    record : In, constant while busy
    layer_start : In(1), strobe, before the first group of a layer
    start : In(1), strobe, walks one group; only while not busy
    busy : Out(1)
    memory : Out(memory_read)
    o : Out(stream of `word_layout`)
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
                "o": Out(stream.Signature(word_layout(geometry))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g, r = self._geometry, self.record
        fire, outside = Signal(), Signal()
        flags = Signal(data.StructLayout(dict.fromkeys(FLAGS, 1)))
        self._walk(m, fire, outside, flags)

        # Read, or pad, when there is room for the answer.
        level, arriving = Signal(range(FIFO_DEPTH + 1)), Signal()
        popped, room = Signal(), Signal()
        m.d.comb += [
            popped.eq(self.o.valid & self.o.ready),
            room.eq(level + arriving < FIFO_DEPTH + popped),
            self.memory.valid.eq(self.busy & room & ~outside),
            fire.eq(self.busy & room & (outside | self.memory.ready)),
        ]
        came, came_outside = Signal(flags.shape()), Signal()
        m.d.sync += [
            arriving.eq(fire),
            came.eq(flags),
            came_outside.eq(outside),
            level.eq(level + arriving - popped),
        ]
        word = Signal(word_layout(g))
        pad = Cat(r.pad for _ in range(g.word_channels)) & (~r.pool).replicate(g.word_bits)
        m.d.comb += word.data.eq(Mux(came_outside, pad, self.memory.data))
        for flag in FLAGS:
            m.d.comb += word[flag].eq(came[flag])
        # A short shift register: one LUT a bit, no RAM block.
        first, second = Signal(word.shape()), Signal(word.shape())
        with m.If(popped | (level == 0)):
            m.d.sync += first.eq(Mux(level == 2, second, word))
        with m.If(popped | (level == 1)):
            m.d.sync += second.eq(word)
        m.d.comb += [self.o.valid.eq(level != 0), self.o.payload.eq(first)]
        return m

    def _walk(self, m: Module, fire: Signal, outside: Signal, flags: data.View) -> None:
        """The loops: on to the next word each time ``fire`` is high."""
        g, r = self._geometry, self.record
        lanes = g.pixel_lanes
        pixel = Signal(range(max(lanes, 2)))
        column, row = Signal.like(r.kernel_w_less), Signal.like(r.kernel_h_less)
        word, tile, line = (
            Signal.like(r.words_less),
            Signal.like(r.tiles_less),
            Signal.like(r.height_out_less),
        )
        # Of the input map (pooling: x in memory words).
        x, y = Signal(signed(g.map_bits + 2)), Signal(signed(g.map_bits + 2))
        fresh = Signal()  # nothing of this group has been committed yet

        spread = r.stride2 & ~r.pool  # pixel lanes are two columns apart
        first_pixel = Mux(r.pool, lanes - 1, 0)
        last_pixel = (pixel == lanes - 1) if lanes > 1 else Signal(init=1)
        last_column, last_word = column == r.kernel_w_less, word == r.words_less
        last_row = row == r.kernel_h_less
        last_tile, last_line = tile == r.tiles_less, line == r.height_out_less
        begins = (column == 0) & (word == 0)
        m.d.comb += [
            outside.eq((x < 0) | (x >= r.width_in) | (y < 0) | (y >= r.height_in)),
            flags.commit.eq(last_pixel),
            flags.full.eq((column == 0) | spread),
            flags.last.eq(last_column & last_word & last_row),
            flags.group_first.eq(fresh),
            flags.rewind.eq(r.shared & (column != 0)),
            flags.restart.eq(begins & (r.shared | (row == 0))),
            flags.word_last.eq(last_word),
        ]
        address = self.memory.address
        step = Signal(g.address_bits)
        x_step, y_step = Signal(signed(g.kernel_bits + 3)), Signal(signed(g.kernel_bits + 2))
        back = -r.span
        with m.If(~last_pixel):
            m.d.comb += [step.eq(Mux(r.stride2, 2, 1)), x_step.eq(Mux(r.stride2, 2, 1))]
        with m.Elif(~last_column):
            across = Mux(spread, 1 - 2 * (lanes - 1), 1)
            m.d.comb += [step.eq(across), x_step.eq(across)]
        with m.Elif(~last_word):
            m.d.comb += [step.eq(r.step_word), x_step.eq(back)]
        with m.Elif(~last_row):
            m.d.comb += [step.eq(r.step_row), x_step.eq(back), y_step.eq(1)]
        with m.Elif(~last_tile):
            onward = Mux(r.pool, 2, Mux(r.stride2, 2 * lanes, lanes))
            m.d.comb += [step.eq(r.step_tile), x_step.eq(onward - r.span)]
            m.d.comb += y_step.eq(-r.kernel_h_less)
        with m.Elif(~last_line):
            m.d.comb += [step.eq(r.step_line), y_step.eq(Mux(r.stride2, 2, 1) - r.kernel_h_less)]
        with m.Else():
            m.d.comb += step.eq(r.step_group)

        end_column = last_pixel & last_column
        end_word = end_column & last_word
        end_row = end_word & last_row
        end_tile = end_row & last_tile
        with m.If(fire):
            m.d.sync += [
                address.eq(address + step),
                x.eq(Mux(end_tile, -r.pad_left, x + x_step)),
                y.eq(y + y_step),
                pixel.eq(Mux(last_pixel, Mux(spread & ~last_column, 0, lanes - 1), pixel + 1)),
            ]
            with m.If(end_column):
                m.d.sync += pixel.eq(first_pixel)
            with m.If(last_pixel):
                m.d.sync += [column.eq(Mux(last_column, 0, column + 1)), fresh.eq(0)]
            with m.If(end_column):
                m.d.sync += word.eq(Mux(last_word, 0, word + 1))
            with m.If(end_word):
                m.d.sync += row.eq(Mux(last_row, 0, row + 1))
            with m.If(end_row):
                m.d.sync += tile.eq(Mux(last_tile, 0, tile + 1))
            with m.If(end_tile):
                m.d.sync += line.eq(Mux(last_line, 0, line + 1))
                with m.If(last_line):
                    m.d.sync += self.busy.eq(0)
        with m.If(self.layer_start):
            m.d.sync += [address.eq(r.in_first), x.eq(-r.pad_left), pixel.eq(first_pixel)]
        with m.If(self.start):
            m.d.sync += [self.busy.eq(1), fresh.eq(1), y.eq(-r.pad_top)]


class StepIssue(wiring.Component):
    """Turns words of a window into steps: what the lanes add in one cycle.

    A commit gives every pixel lane its word; each word then feeds the input lanes in ``halves``
    steps. The last step of a tile waits for ``gate``: the requantiser paces the tiles.

    Members
    -------
    record : In
    i : In(stream of `word_layout`)
    gate : In(1), the last step of a tile may be issued
    valid : Out(1), a step is issued in this cycle
    x : Out, activations, [pixel lane][input lane]
    last : Out(1), the step ends a tile
    weight_address : Out, of this step's weights in the ring
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        lane = data.ArrayLayout(geometry.activation_bits, geometry.input_lanes)
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "i": In(stream.Signature(word_layout(geometry))),
                "gate": In(1),
                "valid": Out(1),
                "x": Out(data.ArrayLayout(lane, geometry.pixel_lanes)),
                "last": Out(1),
                "weight_address": Out(range(geometry.weight_depth)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g, r, word = self._geometry, self.record, self.i.payload
        lanes = g.pixel_lanes
        current = [Signal(g.word_bits, name=f"current{p}", reset_less=True) for p in range(lanes)]
        staged = [Signal(g.word_bits, name=f"staged{p}", reset_less=True) for p in range(lanes - 1)]
        held, half = Signal(), Signal(range(max(g.halves, 2)))
        last, word_last = Signal(), Signal()
        final = Signal()  # the last step of the words held
        m.d.comb += [
            final.eq(half == Mux(word_last, r.halves_less, g.halves - 1)),
            self.valid.eq(held & ~(last & final & ~self.gate)),
            self.last.eq(last & final),
            self.i.ready.eq(~word.commit | ~held | (self.valid & final)),
        ]
        for p in range(lanes):
            halves = [
                current[p].word_select(h, g.input_lanes * g.activation_bits)
                for h in range(g.halves)
            ]
            m.d.comb += self.x[p].eq(Array(halves)[half])

        with m.If(self.valid):
            m.d.sync += half.eq(half + 1)
            with m.If(final):
                m.d.sync += held.eq(0)
        taken = self.i.valid & self.i.ready
        with m.If(taken & ~word.commit):
            if lanes > 1:
                m.d.sync += Cat(*staged).eq(Cat(*staged[1:], word.data))
        with m.If(taken & word.commit):
            m.d.sync += [
                held.eq(1),
                half.eq(0),
                last.eq(word.last),
                word_last.eq(word.word_last),
                current[-1].eq(word.data),
            ]
            for p in range(lanes - 1):
                m.d.sync += current[p].eq(Mux(word.full, staged[p], current[p + 1]))
        self._address(m, taken & word.commit, final)
        return m

    def _address(self, m: Module, commit: object, final: Signal) -> None:
        """Weights follow one another in the ring; a window row or column may begin again."""
        g, word = self._geometry, self.i.payload
        address, word_first, base, following = (Signal(range(g.weight_depth)) for _ in range(4))
        m.d.comb += self.weight_address.eq(address)
        group = Mux(word.group_first, following, base)
        target = Mux(word.restart, group, Mux(word.rewind, word_first, address + 1))
        with m.If(commit):
            m.d.sync += address.eq(target)
            with m.If(~word.rewind):
                m.d.sync += word_first.eq(target)
            with m.If(word.group_first):
                m.d.sync += [
                    base.eq(following),
                    following.eq(following + self.record.weight_words),
                ]
        with m.Elif(self.valid & ~final):
            m.d.sync += address.eq(address + 1)
