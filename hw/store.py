"""The Image behind the maps: out of the flash, checked, and served again for every picture."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.crc import catalog
from amaranth.lib.wiring import In, Out

from compiler.geometry import COUNT_BITS, MAGIC, UNIT_CLOCKS, Geometry
from hw.layout import memory_read, memory_write

CRC = catalog.CRC32_MPEG_2
"""Check of what lies in flash, as its bits come; behind its own value it holds zero."""

FIELD_BITS = 32
"""Of magic, number of words, ring and CRC."""

HEAD_BITS = 3 * FIELD_BITS
"""Before the words."""


def missing_clocks(lines: int) -> int:
    """Of a pass's first unit: units of `UNIT_CLOCKS` are counted from the Image's words on."""
    return -(HEAD_BITS // lines) % UNIT_CLOCKS


class ImageStore(wiring.Component):
    """Reads what `compiler.image.frame` wrote to flash, checks it, and serves its words.

    The words lie in a ring at the memory's end, downwards from its last word; the frame says how
    many the ring holds. The rest of a memory word is undefined. An Image that the ring holds whole
    is copied there once. Of a longer one the first pass over the flash only checks the CRC; then it
    is read again for each picture, as far ahead as the ring has room. Each pass is checked.

    What comes in four clocks of the flash, a byte or two, is written as it comes, by means of the
    mask, so there is no register as wide as a word, neither here nor on the way out. Where bytes
    end in the midst of an activation, as of 3 bits, there are two: whole words are written.

    Timing: a word is served in the cycle after its read is granted, so at most every second cycle
    has one. Such a unit is offered to the memory from two cycles after its last bits on, and two
    more may come until it is written.

    Contract of `o`: the consumer, once it has raised ``ready``, keeps it high until it has a word,
    as `hw.loader.Loader` does. The memory is read only while ``ready`` is high, and ``valid`` is
    high in the one cycle in which it gives the word. So ``valid`` waits for ``ready``, against the
    rule of streams: a consumer that waits for it in turn gets nothing.

    Parameters
    ----------
    geometry : Geometry
        Its stream words must be of whole units and fit a memory word.
    lines : int
        Of the flash: bits that come at once (`hw.flash.FlashReader`).

    Members
    -------
    stb, data : In(1), In(UNIT_CLOCKS * lines), room : Out(1), as of `hw.flash.FlashReader`
        Nothing more is asked for once a whole Image is there, or after an error.
    again : Out(1), strobe, the flash is to be read from the beginning
    o : Out(stream of stream_bits)
        Words of the Image, again and again.
    write : Out(memory_write), at any time
    read : Out(memory_read), while it is served
    loaded : Out(1), the Image was there and its CRC right; until reset. No word is served before.
    error : Out(1)
        The magic or the CRC was wrong, in whatever pass; until reset. No further pass begins then.

    Raises
    ------
    ValueError
        The geometry's stream words do not fit.
    """

    def __init__(self, geometry: Geometry, lines: int = 2) -> None:
        self._geometry = g = geometry
        comes = UNIT_CLOCKS * lines
        self._lines, self._unit = lines, g.stored_bits(comes)
        if g.stream_bits % comes or not 0 < g.stream_bits <= g.word_bits:
            raise ValueError(
                f"stream_bits must be a multiple of {comes} up to the memory's {g.word_bits}, not "
                f"{g.stream_bits!r}"
            )
        super().__init__(
            {
                "stb": In(1),
                "data": In(comes),
                "room": Out(1),
                "again": Out(1),
                "o": Out(stream.Signature(g.stream_bits)),
                "write": Out(memory_write(g)),
                "read": Out(memory_read(g)),
                "loaded": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ring = Signal(self._geometry.address_bits + 1, reset_less=True)
        streamed, last = ring[0], ring[1:]
        unit_stb = self._check(m, ring, streamed)
        self._move(m, unit_stb, streamed, last)
        return m

    def _check(self, m: Module, ring: Signal, streamed: Signal) -> Signal:
        """Take the frame apart; true when the last bits of a unit to be kept are in `data`."""
        g, lines = self._geometry, self._lines
        # What comes now; one flip-flop a phase costs less than a number of the phase.
        magic, count, size, body, check = phases = [
            Signal(name=name, init=name == "magic")
            for name in ("magic", "count", "size", "body", "check")
        ]
        bits = self.data[:lines]
        fields = FIELD_BITS // lines, g.stream_bits // lines
        position = Signal(range(max(fields)))  # of a clock's bits in their field
        left = Signal(COUNT_BITS, reset_less=True)  # words after this one
        step, end, more, wrong = Signal(), Signal(), Signal(), Signal()
        m.submodules.crc = crc = ResetInserter(self.again)(CRC(data_width=lines).create())
        m.d.comb += [
            step.eq(self.stb & ~self.error & ~self.again),
            end.eq(step & (position == Mux(body, fields[1], fields[0]) - 1)),
            crc.valid.eq(step),
            crc.data.eq(bits),
        ]
        with m.If(step):
            m.d.sync += position.eq(position + 1)
        if set(fields) != {1 << len(position)}:  # else it is 0 then of itself
            with m.If(end):
                m.d.sync += position.eq(0)

        less = Signal(COUNT_BITS + 1)  # its last carry says that there are more words
        m.d.comb += [less.eq(left + body.replicate(COUNT_BITS)), more.eq(less[-1])]
        with m.If((step & count) | (end & body)):
            m.d.sync += left.eq(Mux(body, less, Cat(bits, left)))
        with m.If(step & size & ~self.loaded):  # in use from then on
            m.d.sync += ring.eq(Cat(bits, ring))

        index, expected = position[: (fields[0] - 1).bit_length()], Signal(lines)
        # A table for each line: a choice of whole words would be a product in the netlist.
        wanted = f"{MAGIC:0{FIELD_BITS}b}"[::-1]
        tables = [Const(int(wanted[n::lines], 2), fields[0]) for n in range(lines)]
        told = Cat(table.bit_select(index, 1) for table in tables)
        m.d.comb += [
            expected.eq(Mux(magic, told, crc.crc[-lines:])),
            wrong.eq((magic | check) & (bits != expected)),
        ]
        m.d.sync += [
            self.error.eq(self.error | (step & wrong)),
            self.again.eq(end & check & ~wrong),
            self.loaded.eq(self.loaded | self.again),
        ]
        with m.If(end & ~wrong & ~(body & more)):
            m.d.sync += Cat(phases).eq(Cat(check & streamed, *phases[:-1]))
        kept = self.loaded | ~streamed
        if self._unit != len(self.data):
            return end & body & kept
        return step & body & kept & (position[: (UNIT_CLOCKS - 1).bit_length()] == UNIT_CLOCKS - 1)

    def _move(self, m: Module, unit_stb: Signal, streamed: Signal, last: Signal) -> None:
        """Units into the ring, and words out of it."""
        g = self._geometry
        size = g.stream_bits // self._unit
        masked = self._unit // (g.activation_bits * g.mask_channels) if size > 1 else g.mask_bits
        # A unit waits for the memory in `unit`, the one after it in `data`, or in what left that.
        here: Value = self.data
        if self._unit != len(self.data):
            left = Signal(self._unit - len(self.data), reset_less=True)
            with m.If(self.stb):
                m.d.sync += left.eq(Cat(self.data[-self._lines :], left))
            here = Cat(self.data, left)
        held, waiting, unit = Signal(), Signal(), Signal(self._unit, reset_less=True)
        number = Signal(range(size))
        move, written, filled, emptied = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            move.eq((unit_stb | waiting) & ~held),
            written.eq(self.write.valid & self.write.ready),
            filled.eq(written & (number == size - 1)),
            emptied.eq(self.read.valid & self.read.ready),
            self.room.eq((~held | written) & ~self.error & ~(self.loaded & ~streamed)),
        ]
        m.d.sync += [
            waiting.eq((unit_stb | waiting) & held),
            held.eq((held & ~written) | move),
        ]
        with m.If(move):
            m.d.sync += unit.eq(here)
        with m.If(written):
            m.d.sync += number.eq(number + 1)

        # Downwards from the memory's end, so the last word's address is the only one to keep; what
        # counts are the complements, which begin with 0 and need no other in their carries. Whoever
        # moved last says whether equal addresses mean that all is full or all empty. Two cycles lie
        # between a word's last byte and another's first, and between reads, so that comparisons may
        # be a cycle late.
        front, back = Signal(g.address_bits), Signal(g.address_bits)
        ahead, arrived = Signal(), Signal()
        full, empty = Signal(), Signal(init=1)
        front_turns, back_turns = Signal(), Signal()
        if g.two_ports:
            m.d.comb += [self.write.address.eq(~front), self.read.address.eq(~back)]
        else:  # one choice here is cheaper than two addresses there
            here = Signal(g.address_bits)
            m.d.comb += here.eq(~Mux(self.write.valid, front, back))
            m.d.comb += [self.write.address.eq(here), self.read.address.eq(here)]
        with m.If(filled):
            m.d.sync += front.eq(Mux(front_turns, 0, front + 1))
        with m.If(emptied):
            m.d.sync += back.eq(Mux(back_turns, 0, back + 1))
        with m.If(filled | emptied):
            m.d.sync += ahead.eq(filled)
        m.d.sync += [
            full.eq((front == back) & ahead & self.loaded),
            empty.eq((front == back) & ~ahead & streamed),
            front_turns.eq(front == ~last),
            back_turns.eq(back == ~last),
            arrived.eq(emptied),
        ]
        m.d.comb += [
            self.write.valid.eq(held & ~full),
            self.write.data.eq(unit.replicate(-(-g.word_bits // self._unit))),
            self.write.mask.eq(
                Cat((number == size - 1 - n).replicate(masked) for n in range(size))
            ),
            self.read.valid.eq(self.loaded & self.o.ready & ~arrived & ~empty),
            self.o.valid.eq(arrived),
            self.o.payload.eq(self.read.data[: g.stream_bits]),
        ]
