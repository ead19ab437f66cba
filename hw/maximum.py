"""Maxima of activations over windows: a memory word, which is a pixel of all its lanes, a cycle."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.layout import memory_write, struct
from hw.requantise import TILE


class Maximum(wiring.Component):
    """`compiler.arith.max_pool`, and in the lanes that fall ``2**bits - 1`` less it.

    Pixels outside the map read as 0, which is never larger. Each group of the record is a plane of
    memory words; the answers follow one another in memory as the windows do.

    Members
    -------
    record : In
    layer_start : In(1), strobe
    tile : In(`TILE`), of the window being written; tile_step : Out(1), on to the next
    valid : In(1), a word of a window comes
    word : In(word_bits); last : In(1), it ends its window
    falling : In, a bit a lane, in the cycle after a window's last word
    memory : Out(memory_write); never held up
    soon : Out(1), it will ask in the next cycle
    group_done : Out(1), strobe, the plane's last word is written
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "layer_start": In(1),
                "tile": In(TILE),
                "tile_step": Out(1),
                "valid": In(1),
                "word": In(geometry.word_bits),
                "last": In(1),
                "falling": In(geometry.word_channels),
                "memory": Out(memory_write(geometry)),
                "soon": Out(1),
                "group_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        b = g.activation_bits
        begins, chosen, full = Signal(init=1), Signal(), Signal()
        best = [Signal(b, name=f"best{lane}") for lane in range(g.word_channels)]
        # Flags come from the lanes' clock, and the memory is far: what is written waits in between.
        result = Signal(len(self.word), reset_less=True)
        m.d.comb += self.soon.eq(chosen)
        m.d.sync += [
            chosen.eq(self.valid & self.last),
            full.eq(chosen),
            result.eq(Cat(*(v ^ self.falling[i].replicate(b) for i, v in enumerate(best)))),
        ]
        with m.If(self.valid):
            m.d.sync += begins.eq(self.last)
            for lane, value in enumerate(best):
                new = self.word.word_select(lane, b)
                with m.If(begins | (new > value)):
                    m.d.sync += value.eq(new)
        with m.If(self.layer_start):
            m.d.sync += self.memory.address.eq(self.record.out_first)
        with m.Elif(full):
            m.d.sync += self.memory.address.eq(self.memory.address + 1)
        m.d.comb += [
            self.memory.valid.eq(full),
            self.memory.data.eq(result),
            self.memory.mask.eq(-1),
            self.tile_step.eq(full),
            self.group_done.eq(full & self.tile.row_end & self.tile.last_row),
        ]
        return m
