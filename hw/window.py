"""The window buffer: words of a few columns, and the steps that the lanes take over them."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import INPUT_COLUMNS, Geometry
from hw.layout import struct


class WindowBuffer(wiring.Component):
    """A ring of words, written in the order of `hw.fetch` and read window by window.

    A window is a run of words, column by column; with its last word the reader goes back to where
    the next one begins (`step_window`), so each word is fetched once for a row of tiles and read as
    often as windows hold it; or, for the first of two groups (``paired``), to where this one began.
    With a row's last window it goes on to the next row's first word. In the first layer the slices
    of the image stand side by side in a column, and each is read in turn (``sliced``). What lies
    before the window that is being read makes room. Pixel lanes read the same ring `step_pixel`
    apart, each from its own copy.

    Each word feeds the input lanes in ``halves`` steps, or goes to the pool. The last step of a
    window waits for `gate`: the requantiser paces the tiles.

    Members
    -------
    record : In
    mark : In(1), strobe, the next word that comes is a group's first; only while not `marked`
    marked : Out(1), that word has not been read yet
    room : Out(1), one more word may come
    coming : In(1), strobe, a word comes in the next cycle; data : In, that word
    gate : In(1), a tile's last step may be issued
    valid : Out(1), a step is issued in this cycle
    x : Out, activations, [pixel lane][input lane]
    last : Out(1), the step ends a tile
    slice_end : Out(1), it ends a slice of the input
    weight_address : Out, of this step's weights in the ring
    pool_valid : Out(1), a word while the record says pool; nothing holds it up
    pool_word : Out(word_bits); pool_last : Out(1), it ends its window
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        lane = data.ArrayLayout(geometry.activation_bits, geometry.input_lanes)
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "mark": In(1),
                "marked": Out(1),
                "room": Out(1),
                "coming": In(1),
                "data": In(geometry.word_bits),
                "gate": In(1),
                "valid": Out(1),
                "x": Out(data.ArrayLayout(lane, geometry.pixel_lanes)),
                "last": Out(1),
                "slice_end": Out(1),
                "weight_address": Out(range(geometry.weight_depth)),
                "pool_valid": Out(1),
                "pool_word": Out(geometry.word_bits),
                "pool_last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g, r = self._geometry, self.record
        # Ring pointers have one bit more than addresses, to tell full from empty.
        bits = g.window_bits + 1
        fired, written, freed, first = (Signal(bits) for _ in range(4))
        pointer, following = Signal(bits), Signal(bits)
        arriving, take = Signal(), Signal()
        words = self._memory(m, written, arriving, pointer, take)

        # From a register, so for one word more than there are; hence it may fill all but one place.
        ahead = Signal(bits)
        m.d.comb += ahead.eq(fired - freed)
        m.d.sync += self.room.eq(ahead < g.window_depth - 1)
        m.d.sync += [arriving.eq(self.coming), fired.eq(fired + self.coming)]
        next_written = Signal(bits)
        m.d.comb += next_written.eq(written + arriving)
        m.d.sync += written.eq(next_written)
        # Compared a cycle ahead: too much waits for it.
        there = Signal()
        m.d.sync += there.eq(Mux(take, following != next_written, pointer != next_written))
        available = there
        farthest = Signal(bits)  # what the last lane reads
        if g.pixel_lanes > 1 or g.window_slices > 1:
            # A lane that goes on step by step never gets ahead of what is written; the last one
            # may, or one that goes on by slices. Between layers, when the record is anything, there
            # is nothing for the first one.
            reach = Signal(bits)  # from the first lane to the last
            m.d.sync += reach.eq(sum(r.step_pixel for _ in range(1, g.pixel_lanes)))
            next_farthest = Signal(bits)
            m.d.comb += [farthest.eq(pointer + reach), next_farthest.eq(following + reach)]
            behind, next_behind, all_there = Signal(signed(bits)), Signal(signed(bits)), Signal()
            m.d.comb += [
                behind.eq(farthest - next_written),
                next_behind.eq(next_farthest - next_written),
            ]
            m.d.sync += all_there.eq(Mux(take, next_behind < 0, behind < 0))
            available = there & all_there

        # One word on: the next of the window, or the next window's first.
        turn, fresh = Signal.like(r.turn_less), Signal()
        last_word = self._count(m, "place", r.window_less, take)
        done = last_word  # with the window, if not the other group takes it too
        if g.paired_groups:
            again, second, begin = Signal(), Signal(), Signal(bits)
            m.d.comb += again.eq(r.paired & ~second)
            done = last_word & ~again
            with m.If(take & last_word):
                m.d.sync += second.eq(again)
        row_end = self._count(m, "tile", r.tiles_less, take & done)
        m.d.comb += fresh.eq(self.marked & (pointer == first))
        base = Mux(last_word & row_end, farthest, pointer) if g.pixel_lanes > 1 else pointer
        onward = self._onward(m, take, last_word) if g.window_slices > 1 else 1
        m.d.comb += following.eq(base + Mux(last_word & ~row_end, r.step_window, onward))
        if g.paired_groups:
            with m.If(last_word & again):
                m.d.comb += following.eq(begin)
            with m.If(take & done):
                m.d.sync += begin.eq(following)
        with m.If(take):
            m.d.sync += [
                pointer.eq(following),
                turn.eq(Mux(turn == r.turn_less, 0, turn + 1)),
            ]
            with m.If(done | r.shared):  # a window over the whole map is read once
                m.d.sync += freed.eq(following)
            with m.If(fresh):
                m.d.sync += self.marked.eq(0)
        with m.If(self.mark):
            m.d.sync += [self.marked.eq(1), first.eq(fired)]

        # The word read, held by the memory until the lanes or the pool have used it.
        stepping = Signal()
        last, half = Signal(), Signal(range(max(g.halves, 2)))
        final, free = Signal(), Signal()
        m.d.comb += [
            final.eq(half == g.halves - 1),
            self.last.eq(last & final),
            self.valid.eq(stepping & (~self.last | self.gate)),
            self.pool_word.eq(words[0]),
            self.pool_last.eq(last),
            free.eq(~stepping | (self.valid & final)),
            # With a step left idle behind a tile its next word comes a cycle later.
            take.eq(available & (~stepping | (final & ~last) if g.split_sums else free)),
        ]
        if g.window_slices > 1:
            m.d.comb += self.slice_end.eq(self._last_of_slice & final)
        with m.If(take):
            m.d.sync += [stepping.eq(~r.pool), self.pool_valid.eq(r.pool)]
            m.d.sync += [last.eq(last_word), half.eq(0)]
        with m.Elif(free):
            m.d.sync += [stepping.eq(0), self.pool_valid.eq(0)]
        with m.Elif(self.valid):
            m.d.sync += half.eq(half + 1)
        for lane, word in enumerate(words):
            steps = [word.word_select(h, len(word) // g.halves) for h in range(g.halves)]
            m.d.comb += self.x[lane].eq(steps[0])
            for h in range(1, g.halves):
                with m.If(half == h):
                    m.d.comb += self.x[lane].eq(steps[h])
        self._address(m, take, fresh, turn == 0, final)
        return m

    def _onward(self, m: Module, take: Signal, last_word: Signal) -> Value:
        """From a word of the window to its next: a slice of the image has one in each column.

        Behind a slice's last it is the next slice's in the window's first column; behind the last
        of all, where a row ends, the one that follows in the ring.
        """
        slices, sliced = self._geometry.window_slices, self.record.sliced
        column, self._last_of_slice = Signal(range(INPUT_COLUMNS)), Signal(name="last_of_slice")
        ends = column == INPUT_COLUMNS - 1
        with m.If(take):
            m.d.sync += column.eq(Mux(sliced & ~ends, column + 1, 0))
            m.d.sync += self._last_of_slice.eq(ends)
        back = 1 - (INPUT_COLUMNS - 1) * slices
        return Mux(sliced & ~last_word, Mux(ends, back, slices), 1)

    @staticmethod
    def _count(m: Module, name: str, less: Value, step: Value) -> Signal:
        """Counts from 0 to ``less`` and over again; whether it stands there, from a register.

        ``less`` must be the same from a cycle before a step on, and may change while it is at 0.
        """
        count, onward = Signal.like(less, name=name), Signal.like(less, name=f"next_{name}")
        last = Signal(name=f"{name}_last")
        m.d.comb += onward.eq(Mux(last, 0, count + 1))
        m.d.sync += last.eq(Mux(step, onward == less, count == less))
        with m.If(step):
            m.d.sync += count.eq(onward)
        return last

    def _memory(
        self, m: Module, written: Signal, arriving: Signal, pointer: Signal, take: Signal
    ) -> list[Signal]:
        """The ring, a copy for each pixel lane; returns the words read."""
        g = self._geometry
        words = []
        at = pointer
        for lane in range(g.pixel_lanes):
            ring = memory.Memory(shape=g.word_bits, depth=g.window_depth, init=[])
            m.submodules[f"ring{lane}"] = ring
            write, read = ring.write_port(), ring.read_port()
            m.d.comb += [
                write.en.eq(arriving),
                write.addr.eq(written),
                write.data.eq(self.data),
                read.en.eq(take),
                read.addr.eq(at),
            ]
            words.append(read.data)
            at = at + self.record.step_pixel
        return words

    def _address(
        self, m: Module, take: Signal, fresh: Signal, restart: object, final: Signal
    ) -> None:
        """Weights follow one another in the ring, and begin again with each turn."""
        g = self._geometry
        address, base, following = (Signal(range(g.weight_depth)) for _ in range(3))
        m.d.comb += self.weight_address.eq(address)
        with m.If(take):
            m.d.sync += address.eq(Mux(restart, Mux(fresh, following, base), address + 1))
            with m.If(fresh):
                m.d.sync += [
                    base.eq(following),
                    following.eq(following + self.record.weight_words),
                ]
        with m.Elif(self.valid & ~final):
            m.d.sync += address.eq(address + 1)
