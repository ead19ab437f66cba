"""The board's SPI flash as a stream of bytes."""

from __future__ import annotations

import math

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

WAKE = 0xAB
"""Release from deep power-down, in which the configuration of an iCE40 leaves its flash."""

READ = 0x03
"""Followed by 24 bits of address, then bytes without end; up to 50 MHz on every SPI NOR flash."""

WAKE_SECONDS = 30e-6
"""Pause after `WAKE`: ten times what a W25Q128JV takes (tRES1), and what the slowest do."""

BIT_CYCLES, BYTE_CYCLES = 2, 16

ADDRESS_BITS = 24


class FlashReader(wiring.Component):
    """Wakes the flash, then reads it from `offset` on, endlessly.

    SPI mode 0, most significant bit first, at half the clock; all pins come from flip-flops. A bit
    is taken two cycles after the falling edge that called for it, with the one that calls for the
    next: as late as can be, and the delay of both pads holds it until then.

    Timing: the first byte is valid `start_cycles` after reset, each further one `BYTE_CYCLES` after
    the one before. While a byte waits to be taken the flash's clock stands still.

    A reset at any time deselects the flash and starts over.

    Parameters
    ----------
    clock_hz : float
        Of the ``sync`` domain, up to 100 MHz.
    offset : int
        Byte address of what to read, 24 bits.

    Members
    -------
    flash_cs_n, flash_clk, flash_copi : Out(1), flash_cipo : In(1)
        The flash's pins.
    o : Out(stream of 8)

    Raises
    ------
    ValueError
        For a clock or an offset out of range.
    """

    def __init__(self, clock_hz: float, offset: int) -> None:
        if not 0 < clock_hz <= 100e6:
            raise ValueError(f"clock_hz must be at most 100 MHz, not {clock_hz!r}")
        if not 0 <= offset < 1 << ADDRESS_BITS:
            raise ValueError(f"offset must be an address of {ADDRESS_BITS} bits, not {offset!r}")
        self._offset = offset
        pause = math.ceil(WAKE_SECONDS * clock_hz)
        self._period = 1 << (BYTE_CYCLES + pause + self._command_cycles - 1).bit_length()
        super().__init__(
            {
                "flash_cs_n": Out(1, init=1),
                "flash_clk": Out(1),
                "flash_copi": Out(1),
                "flash_cipo": In(1),
                "o": Out(stream.Signature(8)),
            }
        )

    @property
    def start_cycles(self) -> int:
        """From the end of reset to the first byte."""
        return self._period + BYTE_CYCLES + 1

    @property
    def _command_cycles(self) -> int:
        return BIT_CYCLES * (8 + ADDRESS_BITS)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # One counter does it all: the wake-up stands at its beginning and the read command at its
        # end, so that their bits and those of all bytes after are numbered by its low bits.
        count = Signal(range(self._period))
        within, above = count[: BYTE_CYCLES.bit_length() - 1], count[BYTE_CYCLES.bit_length() - 1 :]
        waking, commanding = ~above.any(), count[self._command_cycles.bit_length() - 1 :].all()
        reading, held, byte_end = Signal(), Signal(), Signal()
        shift = Signal(8, reset_less=True)
        selected = waking | commanding | reading
        m.d.comb += [
            held.eq(self.o.valid & ~self.o.ready),
            # The pins are one cycle behind the counter.
            byte_end.eq(self.flash_clk & (within == 0)),
            self.o.payload.eq(shift),
        ]
        m.d.sync += [
            count.eq(count + ~held),
            self.flash_cs_n.eq(~selected),
            self.flash_clk.eq(count[0] & selected & ~held),
            self.flash_copi.eq(self._command_bit(count)),
            self.o.valid.eq(held | (byte_end & reading)),
        ]
        with m.If(byte_end & waking):  # the wake-up's own end is no longer in the first 16 cycles
            m.d.sync += reading.eq(1)
        with m.If(self.flash_clk):
            m.d.sync += shift.eq(Cat(self.flash_cipo, shift))
        return m

    def _command_bit(self, count: Signal) -> Signal:
        """What the flash is told at a count: `WAKE` in the first half, then the read command.

        A table, which synthesis makes a few LUTs of, takes no register to shift out of. Where
        nobody listens it says what needs the fewest of them.
        """
        width = 8 + ADDRESS_BITS
        read = f"{READ << ADDRESS_BITS | self._offset:0{width}b}"
        wake = f"{WAKE:08b}" + read[8:]
        table = int((wake + read)[::-1], 2)
        index = Cat(count[1 : 1 + (width - 1).bit_length()], count[-1])
        return Const(table, 2 * width).bit_select(index, 1)
