"""The board's SPI flash as a stream of bits, two at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

from amaranth.hdl import Cat, Const, Elaboratable, Module, ResetInserter, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from compiler.cycles import FlashPace
from compiler.geometry import UNIT_CLOCKS

WAKE = 0xAB
"""Release from deep power-down, in which the configuration of an iCE40 leaves its flash."""

READS = {2: 0x3B, 4: 0x6B}
"""Fast read, dual and quad output, by the lines that the flash answers on: 24 bits of address and 8
clocks without meaning, then bytes without end. Up to 104 MHz on usual flashes."""

WRITABLE, WRITE_STATUS_2, QUAD_ENABLE = 0x50, 0x31, 0x02
"""A flash has its write protection and hold on the pins IO2 and IO3 until bit 1 of its second
status register says otherwise. Written after the first command it lasts until power fails: nothing
wears out, and whatever holds the pins later finds them as it knows them."""

WAKE_SECONDS = 30e-6
"""Pause after `WAKE`: ten times what a W25Q128JV takes (tRES1), and what the slowest do."""

ADDRESS_BITS, DUMMY_CLOCKS = 24, 8

WAKE_AT = 8
"""Clocks for which the flash is left alone first: it wants to be deselected between commands."""

WRITABLE_AT, STATUS_AT = 48, 64
"""Clocks of a quad flash's last 128 in which its mode is set."""

BOTH_WAYS = wiring.Signature({"o": Out(1), "oe": Out(1), "i": In(1)})
"""A pin in both directions, from inside: what to drive, whether to, and what is there."""


def flash_pins(lines: int) -> dict[str, wiring.Member]:
    """The flash's pins, by the lines that it answers on; `FlashReader` says what they do."""
    further = {"flash_io2": Out(BOTH_WAYS), "flash_io3": Out(BOTH_WAYS)}
    return {
        "flash_cs_n": Out(1, init=1),
        "flash_clk": Out(1),
        "flash_copi": Out(BOTH_WAYS),
        "flash_cipo": In(1),
    } | (further if lines == 4 else {})


def join_pins(
    m: Module,
    inside: wiring.Component,
    outside: wiring.Component,
    pins: Mapping[str, wiring.Member],
) -> None:
    """Let a component's pins be those of the one around it."""
    for name, pin in pins.items():
        theirs, ours = getattr(inside, name), getattr(outside, name)
        if pin.is_signature:
            connect(m, theirs, flipped(ours))
        elif pin.flow is Out:
            m.d.comb += ours.eq(theirs)
        else:
            m.d.comb += theirs.eq(ours)


class FlashReader(wiring.Component):
    """Wakes the flash, then reads it from `offset` on, endlessly, at two or four bits a clock.

    SPI mode 0, most significant bit first. A reset at any time deselects the flash and starts over:
    that is how to read from the beginning again.

    The flash's clock has one or two cycles. With one, `flash_clk` says that there is a clock in
    this cycle, and the pad makes it: low, then high in the cycle's second half (on iCE40 a double
    data rate output). Data are called for by the clock's falling edge, the end of that cycle, and
    are sampled at the end of the next one. A period then has to hold the way out through the pad,
    the flash's own delay (tCLQV, 6 to 7 ns on a W25Q128JV) and the way in: on a UP5K some 20 ns of
    the 41.7 ns at 24 MHz, and of the 25 ns at 40 MHz. They stay until the falling edge after that,
    which comes out of a pad with the edge that samples them, so hold is the delay of both pads.
    With two cycles `flash_clk` is the clock itself, and data are sampled two cycles after its
    falling edge. Either way data may come ``late`` cycles later, where a clock is too fast for the
    ways in and out, or registers stand in them.

    Timing: the first `stb` comes `start_cycles` after reset, further ones every `clock_cycles`.

    Contract of `room`: it is looked at before each unit of `UNIT_CLOCKS`, when up to two units
    before that are still on their way or stand in `data`. While it is low the flash's clock stands
    still, and `data` stays as it is once they have come.

    Parameters
    ----------
    clock_hz : float
        Of the ``sync`` domain, up to 100 MHz.
    offset : int
        Byte address of what to read, 24 bits.
    clock_cycles : int
        Of the flash's clock: 1 where the pad makes it, else 2.
    lines : int
        On which the flash answers: 2, or 4 if it is one whose mode is set as a W25Q128JV's is.
    late : int
        Cycles that data come later than said above, 0 or 1.

    Members
    -------
    flash_cs_n, flash_clk : Out(1), flash_cipo : In(1), flash_copi : Out(BOTH_WAYS)
        The flash's pins (`flash_pins`); the last is IO0, which sends the last of a clock's bits.
    flash_io2, flash_io3 : Out(BOTH_WAYS), with four lines
        Held high until the flash sends.
    stb : Out(1), strobe, a clock's bits have come
    data : Out(UNIT_CLOCKS * lines), the bits that came last; the newest lowest
    room : In(1), one more unit may come

    Raises
    ------
    ValueError
        For a clock, an offset, a number of cycles, of lines or of late ones out of range.
    """

    def __init__(
        self,
        clock_hz: float,
        offset: int,
        clock_cycles: int = 2,
        lines: int = 2,
        *,
        late: int = 0,
    ) -> None:
        if not 0 < clock_hz <= 100e6:
            raise ValueError(f"clock_hz must be at most 100 MHz, not {clock_hz!r}")
        if not 0 <= offset < 1 << ADDRESS_BITS:
            raise ValueError(f"offset must be an address of {ADDRESS_BITS} bits, not {offset!r}")
        if clock_cycles not in (1, 2):
            raise ValueError(f"clock_cycles must be 1 or 2, not {clock_cycles!r}")
        if lines not in READS:
            raise ValueError(f"lines must be 2 or 4, not {lines!r}")
        if late not in (0, 1):  # one more, and a unit would come where there is no room for it
            raise ValueError(f"late must be 0 or 1, not {late!r}")
        self._offset, self._cycles, self._lines, self._late = offset, clock_cycles, lines, late
        # What the flash is told stands at the end of the counter, WAKE in its beginning.
        self._command_clocks = 64 if lines == 2 else 128
        pause = math.ceil(WAKE_SECONDS * clock_hz / clock_cycles)
        self._period = 1 << (2 * WAKE_AT + pause + self._command_clocks - 1).bit_length()
        super().__init__(
            flash_pins(lines) | {"stb": Out(1), "data": Out(UNIT_CLOCKS * lines), "room": In(1)}
        )

    @property
    def clock_cycles(self) -> int:
        return self._cycles

    @property
    def lines(self) -> int:
        return self._lines

    @property
    def start_cycles(self) -> int:
        """From the end of reset to the first bits."""
        return self._cycles * (self._period + 1) + 1 + self._late

    @property
    def late(self) -> int:
        return self._late

    @property
    def pins(self) -> dict[str, wiring.Member]:
        return flash_pins(self._lines)

    def again_at(self, m: Module, strobe: Value) -> Elaboratable:
        """What goes into a design that lets it begin again at each strobe."""
        return ResetInserter(strobe)(self)

    @property
    def pace(self) -> FlashPace:
        """For the prediction of cycles."""
        unit = UNIT_CLOCKS * self._cycles
        # From a look at `room` to the unit in the memory's way (`hw.store`); looks go on meanwhile.
        arrives = unit + self._cycles + self._late + 2
        return FlashPace(unit, UNIT_CLOCKS * self._lines, -arrives % unit, self.start_cycles)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # One counter does it all, a clock of the flash a count. The read command's last clock,
        # which calls for the first bits, is the first of a unit's four, and so on at each turn.
        count = Signal(range(self._period))
        low = count[: (self._command_clocks - 1).bit_length()]
        above, octet = count[len(low) :], low[3:]
        reading, step = Signal(), Signal()  # the counter goes round and round while it reads
        waking = (octet == WAKE_AT >> 3) & ~above.any()
        told = low >= self._command_clocks - 8 - ADDRESS_BITS - DUMMY_CLOCKS
        if self._lines == 4:
            told |= (octet == WRITABLE_AT >> 3) | (octet[1:] == STATUS_AT >> 4)
        commanding = above.all() & told
        selected = waking | commanding | reading
        m.d.comb += step.eq(~reading | (count[:2] != UNIT_CLOCKS - 1) | self.room)
        clocked = step
        if self._cycles > 1:
            second = Signal()
            m.d.sync += second.eq(~second & step)
            clocked = second
        with m.If(clocked):
            m.d.sync += [count.eq(count + 1), reading.eq(reading | count.all())]
        drives = Signal()
        m.d.sync += [
            self.flash_cs_n.eq(~selected),
            self.flash_clk.eq(selected & clocked),
            self.flash_copi.o.eq(self._command_bit(low)),
            drives.eq(~reading & (waking | (commanding & ~octet.all()))),
        ]
        m.d.comb += self.flash_copi.oe.eq(drives)
        bits = [self.flash_copi.i, self.flash_cipo]
        if self._lines == 4:
            for pin in (self.flash_io2, self.flash_io3):
                m.d.comb += [pin.o.eq(1), pin.oe.eq(drives)]
                bits.append(pin.i)
        due = self.flash_clk & reading
        for _ in range(self._cycles + self._late):
            due, before = Signal(), due
            m.d.sync += due.eq(before)
        m.d.sync += self.stb.eq(due)
        with m.If(due):
            m.d.sync += self.data.eq(Cat(bits, self.data))
        return m

    def _command_bit(self, index: Signal) -> Signal:
        """What the flash is told: its mode and to read in the last clocks, `WAKE` in earlier ones.

        All of it is in one table, for `WAKE` stands where the last clocks say nothing. Synthesis
        makes a few LUTs of it, where a register to shift out of would take more.
        """
        read = READS[self._lines] << ADDRESS_BITS | self._offset
        said = {WAKE_AT: (WAKE, 8)}
        if self._lines == 4:
            said |= {
                WRITABLE_AT: (WRITABLE, 8),
                STATUS_AT: (WRITE_STATUS_2 << 8 | QUAD_ENABLE, 16),
            }
        said[self._command_clocks - 8 - ADDRESS_BITS - DUMMY_CLOCKS] = (read, 8 + ADDRESS_BITS)
        table = 0
        for first, (value, bits) in said.items():
            for i in range(bits):
                table |= (value >> (bits - 1 - i) & 1) << (first + i)
        return Const(table, self._command_clocks).bit_select(index, 1)
