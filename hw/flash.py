"""The board's SPI flash as a stream of bits, two at a time."""

from __future__ import annotations

import math

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

WAKE = 0xAB
"""Release from deep power-down, in which the configuration of an iCE40 leaves its flash."""

READ = 0x3B
"""Fast read, dual output: 24 bits of address and 8 clocks without meaning, then bytes without end,
two bits a clock. Needs no mode to be set and no further pin; up to 104 MHz on usual flashes."""

WAKE_SECONDS = 30e-6
"""Pause after `WAKE`: ten times what a W25Q128JV takes (tRES1), and what the slowest do."""

PAIR_BITS = 2

BYTE_PAIRS = 4

ADDRESS_BITS, DUMMY_CLOCKS = 24, 8

WAKE_AT = 8
"""Clocks for which the flash is left alone first: it wants to be deselected between commands."""

COMMAND_CLOCKS = 64
"""The last of the counter, in which the read command stands at the end."""

BOTH_WAYS = wiring.Signature({"o": Out(1), "oe": Out(1), "i": In(1)})
"""A pin in both directions, from inside: what to drive, whether to, and what is there."""


class FlashReader(wiring.Component):
    """Wakes the flash, then reads it from `offset` on, endlessly, at two bits a clock.

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
    falling edge.

    Timing: the first `stb` comes `start_cycles` after reset, further ones every `clock_cycles`.

    Contract of `room`: it is looked at before each byte, when up to two bytes before that are still
    on their way or stand in `data`. While it is low the flash's clock stands still, and `data`
    stays as it is once they have come.

    Parameters
    ----------
    clock_hz : float
        Of the ``sync`` domain, up to 100 MHz.
    offset : int
        Byte address of what to read, 24 bits.
    clock_cycles : int
        Of the flash's clock: 1 where the pad makes it, else 2.

    Members
    -------
    flash_cs_n, flash_clk : Out(1), flash_cipo : In(1), flash_copi : Out(BOTH_WAYS)
        The flash's pins; the last is its IO0, which sends the even bits.
    stb : Out(1), strobe, a pair of bits has come
    data : Out(8), the eight bits that came last; the newest pair lowest, of that the later bit
    room : In(1), one more byte may come

    Raises
    ------
    ValueError
        For a clock, an offset or a number of cycles out of range.
    """

    def __init__(self, clock_hz: float, offset: int, clock_cycles: int = 2) -> None:
        if not 0 < clock_hz <= 100e6:
            raise ValueError(f"clock_hz must be at most 100 MHz, not {clock_hz!r}")
        if not 0 <= offset < 1 << ADDRESS_BITS:
            raise ValueError(f"offset must be an address of {ADDRESS_BITS} bits, not {offset!r}")
        if clock_cycles not in (1, 2):
            raise ValueError(f"clock_cycles must be 1 or 2, not {clock_cycles!r}")
        self._offset, self._cycles = offset, clock_cycles
        pause = math.ceil(WAKE_SECONDS * clock_hz / clock_cycles)
        self._period = 1 << (2 * WAKE_AT + pause + COMMAND_CLOCKS - 1).bit_length()
        super().__init__(
            {
                "flash_cs_n": Out(1, init=1),
                "flash_clk": Out(1),
                "flash_copi": Out(BOTH_WAYS),
                "flash_cipo": In(1),
                "stb": Out(1),
                "data": Out(8),
                "room": In(1),
            }
        )

    @property
    def clock_cycles(self) -> int:
        return self._cycles

    @property
    def start_cycles(self) -> int:
        """From the end of reset to the first pair of bits."""
        return self._cycles * (self._period + 1) + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # One counter does it all, a clock of the flash a count. The read command's last clock,
        # which calls for the first pair of bits, is the first of a byte's four, and so on at each
        # turn.
        count = Signal(range(self._period))
        low, above = count[:6], count[6:]
        reading, step = Signal(), Signal()  # the counter goes round and round while it reads
        waking = (low[3:] == WAKE_AT >> 3) & ~above.any()
        commanding = above.all() & (low >= COMMAND_CLOCKS - 8 - ADDRESS_BITS - DUMMY_CLOCKS)
        selected = waking | commanding | reading
        m.d.comb += step.eq(~reading | (count[:2] != BYTE_PAIRS - 1) | self.room)
        clocked = step
        if self._cycles > 1:
            second = Signal()
            m.d.sync += second.eq(~second & step)
            clocked = second
        with m.If(clocked):
            m.d.sync += [count.eq(count + 1), reading.eq(reading | count.all())]
        m.d.sync += [
            self.flash_cs_n.eq(~selected),
            self.flash_clk.eq(selected & clocked),
            self.flash_copi.o.eq(self._command_bit(low)),
            self.flash_copi.oe.eq(~reading & (waking | (commanding & ~low[3:].all()))),
        ]
        due = self.flash_clk & reading
        for _ in range(self._cycles):
            due, before = Signal(), due
            m.d.sync += due.eq(before)
        m.d.sync += self.stb.eq(due)
        with m.If(due):
            m.d.sync += self.data.eq(Cat(self.flash_copi.i, self.flash_cipo, self.data))
        return m

    def _command_bit(self, index: Signal) -> Signal:
        """What the flash is told in each of 64 clocks: `WAKE`, and the read command at the end.

        A table, which synthesis makes a few LUTs of, takes no register to shift out of. Where
        nobody listens it says what needs the fewest of them.
        """
        read = f"{READ << ADDRESS_BITS | self._offset:0{8 + ADDRESS_BITS}b}" + "0" * DUMMY_CLOCKS
        wake = f"{WAKE:08b}".rjust(WAKE_AT + 8, "0").ljust(COMMAND_CLOCKS - len(read), "0")
        return Const(int((wake + read)[::-1], 2), COMMAND_CLOCKS).bit_select(index, 1)
