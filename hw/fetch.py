"""The window: from a layer's record to the activations of each step, in order."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.layout import memory_read, struct

FIFO_DEPTH = 3
"""Words on their way or waiting: covers the memory's latency at one word a cycle."""

FLAGS = (
    "commit",  # the last of the words a step needs: every pixel lane has its own
    "full",  # with this commit every pixel lane takes a new word, else its neighbour's
    "first",  # this commit begins a tile
    "slice_first",  # this commit begins a slice of a tile
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

    Order: rows of tiles, tiles, slices, window rows, memory words of a pixel, window columns. At
    stride 1 a word serves a pixel lane and, one column later, the lane to its left, so a window row
    takes pixel_lanes + columns - 1 words; at stride 2 pixel_lanes * columns. Pooling reads three
    words of residuals a row, and each group is the next plane of them. A word outside the map is not
    read: it is the padding.

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
        active, advance = Signal(), Signal()
        request = Signal(
            data.StructLayout(
                {"address": g.address_bits, "outside": 1, "pad": 1}
                | {"flags": data.StructLayout(dict.fromkeys(FLAGS, 1))}
            )
        )
        requested, fire = Signal(), Signal()
        m.d.comb += [
            advance.eq(active & (~requested | fire)),
            self.busy.eq(active | requested),
        ]
        self._walk(m, active, advance, request)
        with m.If(advance):
            m.d.sync += requested.eq(1)
        with m.Elif(fire):
            m.d.sync += requested.eq(0)

        # Read, or pad, when there is room for the answer.
        room = Signal(range(FIFO_DEPTH + 1), init=FIFO_DEPTH)
        arriving, came = Signal(), Signal(request.shape())
        m.d.comb += [
            self.memory.address.eq(request.address),
            self.memory.valid.eq(requested & (room != 0) & ~request.outside),
            fire.eq(requested & (room != 0) & (request.outside | self.memory.ready)),
        ]
        popped = self.o.valid & self.o.ready
        m.d.sync += [arriving.eq(fire), room.eq(room - fire + popped)]
        with m.If(fire):
            m.d.sync += came.eq(request)
        word = Signal(word_layout(g))
        pad = Mux(came.pad, r.pad, 0)
        m.d.comb += word.data.eq(
            Mux(came.outside, Cat(pad for _ in range(g.word_channels)), self.memory.data)
        )
        for flag in FLAGS:
            m.d.comb += word[flag].eq(came.flags[flag])
        self._fifo(m, arriving, word, popped)
        return m

    def _walk(self, m: Module, active: Signal, advance: Signal, request: data.View) -> None:
        """The loops: one word each time ``advance`` is high, into the request register."""
        g, r = self._geometry, self.record
        lanes = g.pixel_lanes
        pixel = Signal(range(max(lanes, 2)))
        column, row, word, slice_ = Signal(6), Signal(6), Signal(8), Signal(3)
        tile, tile_row = Signal(8), Signal(9)
        # x, y are of the input map (pooling: x in memory words); tile_ is where the tile begins.
        x, tile_x = Signal(signed(11)), Signal(signed(11))
        y, tile_y = Signal(signed(11)), Signal(signed(11))
        group, plane_first, plane = (Signal(g.address_bits) for _ in range(3))
        line, tile_line = Signal(g.address_bits), Signal(g.address_bits)
        fresh = Signal()  # nothing of this group has been committed yet

        spread = r.stride2 & ~r.pool  # pixel lanes are two columns apart
        first_pixel = Mux(r.pool, lanes - 1, 0)
        last_pixel = (pixel == lanes - 1) if lanes > 1 else 1
        last_column = column == r.kernel_w_less
        last_word = word == r.words_less
        last_row = row == r.kernel_h_less
        last_slice = slice_ == r.slices_less
        last_tile = tile == r.tiles_less
        last_tile_row = tile_row == r.height_out_less
        tile_step = Mux(r.pool, 2, Mux(r.stride2, 2 * lanes, lanes))
        row_step = Mux(r.stride2, r.width_in << 1, r.width_in)

        with m.If(self.layer_start):
            m.d.sync += group.eq(r.in_base)
        with m.If(self.start):
            m.d.sync += [
                Cat(column, row, word, slice_, tile, tile_row).eq(0),
                pixel.eq(first_pixel),
                x.eq(-r.pad_left),
                tile_x.eq(-r.pad_left),
                y.eq(-r.pad_top),
                tile_y.eq(-r.pad_top),
                line.eq(Mux(r.pad_top, -r.width_in, 0)),
                tile_line.eq(Mux(r.pad_top, -r.width_in, 0)),
                plane.eq(group),
                plane_first.eq(group),
                fresh.eq(1),
                active.eq(1),
            ]
        with m.If(advance):
            begins = (column == 0) & (word == 0)
            m.d.sync += [
                request.address.eq(line + plane + x),
                request.outside.eq((x < 0) | (x >= r.width_in) | (y < 0) | (y >= r.height_in)),
                request.pad.eq((slice_ == 0) & ~r.pool),
                request.flags.commit.eq(last_pixel),
                request.flags.full.eq((column == 0) | spread),
                request.flags.first.eq(begins & (row == 0) & (slice_ == 0)),
                request.flags.slice_first.eq(begins & (row == 0)),
                request.flags.last.eq(last_column & last_word & last_row & last_slice),
                request.flags.group_first.eq(fresh),
                request.flags.rewind.eq(r.shared & (column != 0)),
                request.flags.restart.eq(begins & (r.shared | ((row == 0) & (slice_ == 0)))),
                request.flags.word_last.eq(last_word),
            ]
            with m.If(last_pixel):
                m.d.sync += fresh.eq(0)
            with m.If(~last_pixel):
                m.d.sync += [pixel.eq(pixel + 1), x.eq(x + Mux(r.stride2, 2, 1))]
            with m.Elif(~last_column):
                m.d.sync += [
                    column.eq(column + 1),
                    pixel.eq(Mux(spread, 0, lanes - 1)),
                    x.eq(x + Mux(spread, 1 - 2 * (lanes - 1), 1)),
                ]
            with m.Else():
                m.d.sync += [column.eq(0), pixel.eq(first_pixel), x.eq(tile_x)]
                with m.If(~last_word):
                    m.d.sync += [word.eq(word + 1), plane.eq(plane + r.in_plane)]
                with m.Elif(~last_row):
                    m.d.sync += [word.eq(0), plane.eq(plane_first)]
                    m.d.sync += [row.eq(row + 1), y.eq(y + 1), line.eq(line + r.width_in)]
                with m.Else():
                    m.d.sync += [word.eq(0), row.eq(0), y.eq(tile_y), line.eq(tile_line)]
                    with m.If(~last_slice):
                        m.d.sync += [
                            slice_.eq(slice_ + 1),
                            plane.eq(plane_first + r.in_plane),
                            plane_first.eq(plane_first + r.in_plane),
                        ]
                    with m.Else():
                        m.d.sync += [slice_.eq(0), plane.eq(group), plane_first.eq(group)]
                        with m.If(~last_tile):
                            m.d.sync += [
                                tile.eq(tile + 1),
                                x.eq(tile_x + tile_step),
                                tile_x.eq(tile_x + tile_step),
                            ]
                        with m.Else():
                            m.d.sync += [
                                tile.eq(0),
                                x.eq(-r.pad_left),
                                tile_x.eq(-r.pad_left),
                                tile_row.eq(tile_row + 1),
                                y.eq(tile_y + Mux(r.stride2, 2, 1)),
                                tile_y.eq(tile_y + Mux(r.stride2, 2, 1)),
                                line.eq(tile_line + row_step),
                                tile_line.eq(tile_line + row_step),
                            ]
                            with m.If(last_tile_row):
                                m.d.sync += active.eq(0)
                                with m.If(r.pool):
                                    m.d.sync += group.eq(group + r.in_plane)

    def _fifo(self, m: Module, push: Signal, word: data.View, pop: object) -> None:
        """A short shift register: one LUT a bit, no RAM block."""
        level = Signal(range(FIFO_DEPTH + 1))
        entries = [Signal(word.shape(), name=f"entry{i}") for i in range(FIFO_DEPTH)]
        for i, entry in enumerate(entries):
            with m.If(pop | (level == i)):
                if i + 1 < FIFO_DEPTH:
                    m.d.sync += entry.eq(Mux(pop & (level != i + 1), entries[i + 1], word))
                else:
                    m.d.sync += entry.eq(word)
        m.d.sync += level.eq(level + push - pop)
        m.d.comb += [self.o.valid.eq(level != 0), self.o.payload.eq(entries[0])]


class StepIssue(wiring.Component):
    """Turns words of a window into steps: what the lanes add in one cycle.

    A commit gives every pixel lane its word; each word then feeds the input lanes in ``halves`` steps.
    The last step of a tile waits for ``gate``: the requantiser paces the tiles.

    Members
    -------
    record : In
    i : In(stream of `word_layout`)
    gate : In(1), the last step of a tile may be issued
    valid : Out(1), a step is issued in this cycle
    x : Out, activations, [pixel lane][input lane]
    first, shift, last : Out(1), the step begins a tile / a later slice of one / ends a tile
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
                "first": Out(1),
                "shift": Out(1),
                "last": Out(1),
                "weight_address": Out(range(geometry.weight_depth)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g, r, word = self._geometry, self.record, self.i.payload
        lanes = g.pixel_lanes
        current = [Signal(g.word_bits, name=f"current{p}") for p in range(lanes)]
        staged = [Signal(g.word_bits, name=f"staged{p}") for p in range(lanes - 1)]
        held, half = Signal(), Signal(range(max(g.halves, 2)))
        first, slice_first, last, word_last = (Signal() for _ in range(4))
        final = Signal()  # the last step of the words held
        m.d.comb += [
            final.eq(half == Mux(word_last, r.halves_less, g.halves - 1)),
            self.valid.eq(held & ~(last & final & ~self.gate)),
            self.first.eq(first & (half == 0)),
            self.shift.eq(slice_first & ~first & (half == 0)),
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
                first.eq(word.first),
                slice_first.eq(word.slice_first),
                last.eq(word.last),
                word_last.eq(word.word_last),
                current[-1].eq(word.data),
            ]
            for p in range(lanes - 1):
                m.d.sync += current[p].eq(Mux(word.full, staged[p], current[p + 1]))
        self._address(m, taken & word.commit)
        return m

    def _address(self, m: Module, commit: object) -> None:
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
        with m.Elif(self.valid):
            m.d.sync += address.eq(address + 1)
