"""The Image straight out of flash, again for each picture: for memories that do not hold it."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.crc import catalog
from amaranth.lib.wiring import In, Out

from compiler.geometry import MAGIC, Geometry
from hw.flash import ADDRESS_BITS

CRC = catalog.CRC32_ISO_HDLC(data_width=8)

FIELD_BYTES, FIELD_BITS = 4, 32
"""Of magic, word count and CRC."""

DESELECT_CYCLES = 8
"""For which `rewind` is held: 80 ns at 100 MHz, and a flash wants 50."""


class ImageReplay(wiring.Component):
    """Checks what `compiler.image.frame` wrote once, then serves its words pass by pass.

    The first pass over the bytes gives nothing out. Only when its CRC was right the following ones
    do; should one of those be wrong, none follows it. Between two passes the flash starts over.

    Timing: a byte is taken in the cycle that it comes, unless a word waits for the engine. So the
    flash sets the pace, and what the engine waits for a picture is at least a pass.

    Parameters
    ----------
    geometry : Geometry
        Its stream words must be of at least four bytes.

    Members
    -------
    i : In(stream of 8), bytes of the flash from the Image's first on
    rewind : Out(1), resets whoever sends them
    o : Out(stream of stream_bits), words 0 .. N-1 of the Image, again and again
    loaded : Out(1), the first pass was right; until reset
    error : Out(1), magic, length or CRC is wrong; until reset
    """

    def __init__(self, geometry: Geometry) -> None:
        self._bits = geometry.stream_bits
        self._count_bits = ADDRESS_BITS - (self._bits // 8 - 1).bit_length()
        if self._bits < FIELD_BITS:
            raise ValueError(f"stream_bits must be at least 32, not {self._bits!r}")
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "rewind": Out(1),
                "o": Out(stream.Signature(geometry.stream_bits)),
                "loaded": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = CRC.create()
        last, place = Signal(self._bits, reset_less=True), Signal(range(self._bits // 8))
        field = Cat(last[-(FIELD_BITS - 8) :], self.i.payload)
        left = Signal(FIELD_BITS)
        taken, whole, words = Signal(), Signal(), Signal()
        m.d.comb += [
            taken.eq(self.i.valid & self.i.ready),
            whole.eq(taken & (place == Mux(words, self._bits // 8, FIELD_BYTES) - 1)),
            crc.valid.eq(taken),
            crc.data.eq(self.i.payload),
            crc.start.eq(self.rewind),
            self.i.ready.eq(~self.rewind & ~self.error & ~self.o.valid),
            self.o.payload.eq(last),
        ]
        with m.If(taken):
            m.d.sync += [
                last.eq(Cat(last, self.i.payload)[8:]),
                place.eq(Mux(whole, 0, place + 1)),
            ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        pause = Signal(range(DESELECT_CYCLES))
        with m.FSM():
            with m.State("magic"):
                with m.If(whole):
                    m.next = "count"
                    with m.If(field != MAGIC):
                        m.next = "error"
            with m.State("count"):
                m.d.sync += left.eq(field)
                with m.If(whole):
                    m.next = "words"
            with m.State("words"):
                m.d.comb += words.eq(1)
                # None, or more than the flash has: their end would never come, or hours later.
                with m.If((left == 0) | left[self._count_bits :].any()):
                    m.next = "error"
                with m.Elif(whole):
                    m.d.sync += [left.eq(left - 1), self.o.valid.eq(self.loaded)]
                    with m.If(left == 1):
                        m.next = "check"
            with m.State("check"):
                with m.If(whole):
                    m.next = "checked"
            with m.State("checked"):
                m.d.comb += self.i.ready.eq(0)
                m.next = "rewind"
                with m.If(crc.match_detected):
                    m.d.sync += self.loaded.eq(1)
                with m.Else():
                    m.next = "error"
            with m.State("rewind"):
                m.d.comb += self.rewind.eq(1)
                m.d.sync += pause.eq(pause + 1)
                with m.If(pause == DESELECT_CYCLES - 1):
                    m.next = "magic"
            with m.State("error"):
                m.d.comb += self.error.eq(1)
        return m
