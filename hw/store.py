"""The Image in the activation memory: copied there once, checked, then served for every picture."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.crc import catalog
from amaranth.lib.wiring import In, Out

from compiler.geometry import MAGIC, Geometry
from hw.layout import memory_read, memory_write

CRC = catalog.CRC32_ISO_HDLC(data_width=1)
"""Check of what lies in flash, that of zlib; a bit at a time, for bytes come cycles apart."""

FIELD_BITS = 32
"""Of magic, word count and CRC."""

BITS = (2, 4, 8)
"""Widths of activations of which a byte holds a whole number."""


class ImageStore(wiring.Component):
    """Copies what `compiler.image.flash_bytes` wrote to flash, checks it, and serves its words.

    Word k of the N stream words lies in the low lanes of memory word ``depth - 1 - k``; the rest
    of that memory word is undefined. Bytes are written as they come, by means of the mask, so there
    is no register as wide as a word, neither here nor on the way out.

    Timing: a byte is taken in the eighth cycle that it is offered, later if the memory was busy. A
    word is served in the cycle after its read is granted, so at most every second cycle has one.

    Contract of `o`: the consumer, once it has raised ``ready``, keeps it high until it has a word,
    as `hw.loader.Loader` does. The memory is read only while ``ready`` is high, and ``valid`` is
    high in the one cycle in which it gives the word. So ``valid`` waits for ``ready``, against the
    rule of streams: a consumer that waits for it in turn gets nothing.

    Parameters
    ----------
    geometry : Geometry
        Its stream words must be of whole bytes and fit a memory word.

    Members
    -------
    i : In(stream of 8)
        Bytes from flash; no more are taken once the Image is loaded or refused.
    o : Out(stream of stream_bits)
        Words 0 .. N-1 of the Image, again and again.
    write : Out(memory_write), while the Image is copied
    read : Out(memory_read), while it is served
    loaded : Out(1), the Image is there and its CRC right; until reset
    error : Out(1)
        The magic or the CRC is wrong, or N is 0 or more than `memory_depth`; until reset. No word
        is ever served then.

    Raises
    ------
    ValueError
        The geometry's activations do not fill bytes, or its stream words do not fit.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = g = geometry
        if g.activation_bits not in BITS:
            raise ValueError(
                f"activation_bits must be 2, 4 or 8 for an Image in activation memory, not "
                f"{g.activation_bits!r}"
            )
        if g.stream_bits % 8 or not 0 < g.stream_bits <= g.word_bits:
            raise ValueError(
                f"stream_bits must be a multiple of 8 up to the memory's {g.word_bits}, not "
                f"{g.stream_bits!r}"
            )
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(g.stream_bits)),
                "write": Out(memory_write(g)),
                "read": Out(memory_read(g)),
                "loaded": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        # What is being copied; one flip-flop a phase costs less than a number of the phase.
        magic, count, words, check = (
            Signal(name=name, init=name == "magic") for name in ("magic", "count", "words", "check")
        )
        phases = Cat(magic, count, words, check, self.loaded)
        position = Signal(range(max(FIELD_BITS, g.stream_bits)))  # of a bit in its field
        bit, step, end, wrong = Signal(), Signal(), Signal(), Signal()
        m.submodules.crc = crc = CRC.create()
        m.d.comb += [
            bit.eq(self.i.payload.bit_select(position[:3], 1)),
            step.eq(self.i.valid & ~self.loaded & ~self.error & (self.write.ready | ~words)),
            end.eq(step & (position == Mux(words, g.stream_bits, FIELD_BITS) - 1)),
            self.i.ready.eq(step & position[:3].all()),
            crc.valid.eq(step),
        ]
        with m.If(step):
            m.d.sync += position.eq(position + 1)
        if {g.stream_bits, FIELD_BITS} != {1 << len(position)}:  # else it is 0 then of itself
            with m.If(end):
                m.d.sync += position.eq(0)

        # Downwards from the memory's end: setting a counter to all ones costs nothing, and the
        # last word's address is the only one to keep.
        address, final = Signal(g.address_bits, init=-1), Signal(g.address_bits, reset_less=True)
        last, next_word, arrived = Signal(), Signal(), Signal()
        m.d.comb += [
            last.eq(address == final),
            next_word.eq((end & words) | (self.read.valid & self.read.ready)),
        ]
        with m.If(next_word):
            m.d.sync += address.eq(Mux(last, -1, address - 1))

        # -N, made bit by bit: all ones above an address if and only if N is 1 to `memory_depth`,
        # and below the address of the last word.
        nonzero, negated, below = Signal(), Signal(), Signal()
        m.d.comb += [negated.eq(bit ^ nonzero), below.eq(position < g.address_bits)]
        with m.If(step):
            m.d.sync += nonzero.eq(count & (nonzero | bit))
        with m.If(step & count & below):
            m.d.sync += final.eq(Cat(final[1:], negated))

        # Fed its own remainder, the CRC shifts that out as it should come.
        remainder = crc.crc[0]
        m.d.comb += [
            crc.data.eq(Mux(check, ~remainder, bit)),
            wrong.eq(
                (magic & (bit != Const(MAGIC, FIELD_BITS).bit_select(position, 1)))
                | (count & ~below & ~negated)
                | (check & (bit != remainder))
            ),
        ]
        m.d.sync += self.error.eq(self.error | (step & wrong))
        with m.If(end & ~wrong & (last | ~words)):
            m.d.sync += phases.eq(phases << 1)

        m.d.sync += arrived.eq(self.read.valid & self.read.ready)
        byte, lanes = position[3:], 8 // g.activation_bits
        m.d.comb += [
            self.read.valid.eq(self.loaded & self.o.ready & ~arrived),
            self.read.address.eq(address),
            self.o.valid.eq(arrived),
            self.o.payload.eq(self.read.data[: g.stream_bits]),
            # A byte is written in each of its eight cycles, which is simpler than in one.
            self.write.valid.eq(self.i.valid & words),
            self.write.address.eq(address),
            self.write.data.eq(self.i.payload.replicate(-(-g.word_bits // 8))),
            self.write.mask.eq(
                Cat((byte == n).replicate(lanes) for n in range(g.stream_bits // 8))
            ),
        ]
        return m
