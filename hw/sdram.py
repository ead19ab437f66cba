"""The board's SDRAM between its flash and the engine: the flash is read once, then this."""

from __future__ import annotations

import math

from amaranth.hdl import Cat, Elaboratable, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from compiler.cycles import FlashPace
from compiler.geometry import UNIT_CLOCKS
from hw.flash import BOTH_WAYS, FlashReader, join_pins
from hw.store import missing_clocks

DATA_BITS, COLUMN_BITS, ROW_BITS, BANK_BITS = 16, 9, 13, 2
"""A chip of 32 MiB; of a larger one, which has more columns, some lie fallow. One bank is used."""

POWER_SECONDS = 200e-6
"""From stable power and clock to the first command."""

PRECHARGE_SECONDS, ACTIVATE_SECONDS, REFRESH_SECONDS = 20e-9, 20e-9, 70e-9
"""tRP, tRCD and tRFC: no part of 133 MHz or more that boards have takes longer (IS42S16160G,
MT48LC16M16A2, AS4C32M16SB, W9825G6KH)."""

REFRESH_EVERY = 64e-3 / (1 << ROW_BITS)

MODE_CYCLES = 2
"""tMRD."""

CLOSE_CYCLES = 4
"""From the end of the last access to the command that closes its row: more than tWR, and together
with `ACTIVATE_SECONDS` more than tRAS."""

POWER_REFRESHES = 8
"""Before the mode is set."""

LATENCY = 2
"""Clocks from a read command to its data, up to 100 MHz."""

CLOCKS_HZ = 75e6, 100e6
"""Of the engine. Slower, and what is read is gone before it is sampled; see `SdramReader`."""

MODE = 1 << 9 | LATENCY << 4 | 0b010
"""Single writes, and reads of four words one after another (`UNIT_CLOCKS`)."""

NOP, ACTIVATE, READ, WRITE = 0b111, 0b110, 0b101, 0b001
PRECHARGE, REFRESH, SET_MODE = 0b010, 0b100, 0b000
"""RAS, CAS and WE as they are driven, the first lowest."""

ALL_BANKS = 1 << 10
"""In the address of `PRECHARGE`."""

UNIT_BITS = UNIT_CLOCKS * DATA_BITS
"""Of a burst; a word of the Image has as many."""

FIFO_UNITS = 4
"""Of flash, that wait while a row is changed: the flash is asked for another while there is at most
one of them, and up to two are on their way then."""


def sdram_pins() -> dict[str, wiring.Member]:
    """The pins of an SDRAM."""
    numbered = (("dqm", DATA_BITS // 8), ("ba", BANK_BITS), ("a", ROW_BITS))
    names = ["clk", "cke", "cs_n", "ras_n", "cas_n", "we_n"]
    names += [f"{name}{i}" for name, count in numbered for i in range(count)]
    return {f"sdram_{name}": Out(1) for name in names} | {
        f"sdram_dq{i}": Out(BOTH_WAYS) for i in range(DATA_BITS)
    }


class SdramReader(wiring.Component):
    """Copies what a flash sends to SDRAM once, and reads it from there each further time.

    To whoever takes it this is a flash that sends sixteen bits a cycle from its second pass on: a
    unit is the four words of a burst. The first pass comes at the flash's own pace, and is passed
    on as it is copied.

    A row of SDRAM takes its refresh with it: whenever a row is opened, at the latest when
    `REFRESH_EVERY` has nearly passed, the last one is closed and the SDRAM refreshed. So there is
    one sequence for all, of `turn_cycles`, in which nothing is read or written.

    Clock: the pad makes it, high in the second half of a cycle (`boards.records.Pin.pulse`), so
    commands and data are there half a period before and after the edge that takes them. A word that
    is read leaves with an edge, and is sampled a period and a half later: at 80 MHz the way out
    through the pad, the SDRAM's tAC of 6 ns and the way in have 18.7 ns. The next word follows a
    period after it, so these ways, with tOH of 2.5 ns, must take 6.3 ns at least. So the ways alone
    may take 4 to 12 ns; at 75 MHz 4 to 14, at 100 MHz 3 to 9.

    Contract of `room`: as of `hw.flash.FlashReader`.

    Timing: bits of a burst come in four cycles one after another, the next burst's right after them
    while there is room, but for `turn_cycles` after each row of 512 words.

    Parameters
    ----------
    clock_hz : float
        Of the ``sync`` domain, in `CLOCKS_HZ`.
    flash : FlashReader
        Of this clock and on four lines.

    Members
    -------
    flash_… : its pins (`hw.flash.flash_pins`)
    sdram_… : the SDRAM's pins (`sdram_pins`)
    again : In(1), strobe, begin again, from SDRAM; the first says that all is there
    stb : Out(1), strobe, 16 bits have come
    data : Out(64), the bits that came last; the newest lowest
    room : In(1), one more unit may come

    Raises
    ------
    ValueError
        For a clock out of range or a flash with other lines.
    """

    def __init__(self, clock_hz: float, flash: FlashReader) -> None:
        if not CLOCKS_HZ[0] <= clock_hz <= CLOCKS_HZ[1]:
            raise ValueError(f"clock_hz must be 75 to 100 MHz, not {clock_hz!r}")
        if UNIT_CLOCKS * flash.lines != DATA_BITS:
            raise ValueError(f"flash must answer on 4 lines, not {flash.lines!r}")
        self._flash, self._clock_hz = flash, clock_hz
        self._precharge = math.ceil(PRECHARGE_SECONDS * clock_hz)
        self._activate = math.ceil(ACTIVATE_SECONDS * clock_hz)
        self._refresh = math.ceil(REFRESH_SECONDS * clock_hz)
        # More than a burst, the pause behind it and the command before the next one. What is left
        # is more than a row takes.
        left = self.turn_cycles + UNIT_CLOCKS
        self._lasts = math.floor(REFRESH_EVERY * clock_hz) - left
        super().__init__(
            self.pins
            | {
                "again": In(1),
                "stb": Out(1),
                "data": Out(UNIT_BITS),
                "room": In(1),
            }
        )

    @property
    def lines(self) -> int:
        """Bits that come at once."""
        return DATA_BITS

    @property
    def pins(self) -> dict[str, wiring.Member]:
        return self._flash.pins | sdram_pins()

    @property
    def turn_cycles(self) -> int:
        """Cycles in which a row is closed, the SDRAM refreshed and a row opened."""
        return CLOSE_CYCLES + self._precharge + self._refresh + self._activate

    @property
    def pace(self) -> FlashPace:
        """For the prediction of cycles."""
        # A pass begins with a new row; what is read of it first is dropped (see `elaborate`).
        start = self.turn_cycles + LATENCY + UNIT_CLOCKS + 4
        return FlashPace(
            UNIT_CLOCKS,
            UNIT_BITS,
            spare_cycles=0,
            start_cycles=start,
            row_units=(1 << COLUMN_BITS) // UNIT_CLOCKS,
            row_cycles=self.turn_cycles,
            most_cycles=self._lasts - self._refresh - self._activate,
        )

    def again_at(self, m: Module, strobe: Value) -> Elaboratable:
        """What goes into a design that lets it begin again at each strobe."""
        m.d.comb += self.again.eq(strobe)
        return self

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.flash = flash = self._flash
        join_pins(m, flash, self, flash.pins)
        m.submodules.fifo = fifo = SyncFIFO(width=DATA_BITS, depth=FIFO_UNITS)
        copied = Signal()  # the flash has no more to say
        awake = Signal()  # the SDRAM has a mode
        clocks, whole = Signal(range(UNIT_CLOCKS)), Signal()  # of the flash's unit
        with m.If(flash.stb):
            m.d.sync += clocks.eq(clocks + 1)
        m.d.comb += [
            whole.eq(flash.stb & (clocks == UNIT_CLOCKS - 1) & ~copied),
            fifo.w_en.eq(whole),
            fifo.w_data.eq(flash.data),
            flash.room.eq(self.room & awake & ~copied & (fifo.level < 2)),
        ]
        come = self._access(m, fifo, copied, awake)

        words = Cat(getattr(self, f"sdram_dq{i}").i for i in range(DATA_BITS))
        takes = Mux(copied, come, whole)
        with m.If(takes):
            m.d.sync += self.data.eq(Cat(Mux(copied, words, flash.data), self.data))
        m.d.sync += self.stb.eq(takes & ~self.again)
        return m

    def _access(self, m: Module, fifo: SyncFIFO, copied: Signal, awake: Signal) -> Value:
        """Commands to the SDRAM; true when a word that was read is on its pins."""
        command, address = Signal(3, init=NOP), Signal(ROW_BITS)
        sent, drives = Signal(DATA_BITS), Signal()
        self._drive(m, command, address, sent, drives)

        power = math.ceil(POWER_SECONDS * self._clock_hz)
        pause = Signal(range(power), init=power - 1)
        refreshes = Signal(range(POWER_REFRESHES))
        age, due = Signal(range(self._lasts + 1)), Signal()  # since the last refresh
        m.d.comb += due.eq(age == self._lasts)
        with m.If(~due):
            m.d.sync += age.eq(age + 1)

        # The Image's words have four times 16 bits, what stands before them has six: so that a word
        # is a burst of its own, the first pass is written from column 2 on, and what lies before
        # it is read and dropped.
        before = missing_clocks(DATA_BITS)
        column, row = Signal(COLUMN_BITS, init=before), Signal(ROW_BITS)
        first = Signal()  # burst of a pass
        rewind, full, ended = Signal(), Signal(), Signal()  # a pass; a row, from this access on
        burst = Signal(range(UNIT_CLOCKS))
        # A bit for each cycle to come, the next one's lowest, from a read command on its pins on.
        coming = Signal(LATENCY + UNIT_CLOCKS)
        m.d.sync += [coming.eq(coming >> 1), command.eq(NOP), drives.eq(0)]

        def say(what: int, cycles: int, state: str) -> None:
            """A command, the cycles until the next one, and what that will be."""
            m.d.sync += [command.eq(what), pause.eq(cycles - 1)]
            m.next = state

        with m.If(pause.any()):
            m.d.sync += pause.eq(pause - 1)
        with m.Else(), m.FSM():
            with m.State("precharge"):
                m.d.sync += address.eq(ALL_BANKS)
                say(PRECHARGE, self._precharge, "refresh")
            with m.State("refresh"):
                m.d.sync += [age.eq(0), refreshes.eq(refreshes + 1)]
                say(REFRESH, self._refresh, "refresh")
                with m.If(awake):
                    m.next = "activate"
                with m.Elif(refreshes == POWER_REFRESHES - 1):
                    m.next = "mode"
            with m.State("mode"):
                m.d.sync += [address.eq(MODE), awake.eq(1)]
                say(SET_MODE, MODE_CYCLES, "activate")
            with m.State("activate"):
                m.d.sync += address.eq(row)
                say(ACTIVATE, self._activate, "open")
            with m.State("open"):
                rewinds = rewind & ~fifo.r_rdy
                with m.If(burst.any()):
                    m.d.sync += burst.eq(burst + 1)
                with m.Elif(due | ended | rewinds):
                    say(NOP, CLOSE_CYCLES, "precharge")
                    m.d.sync += ended.eq(0)
                    with m.If(rewinds):
                        m.d.sync += [rewind.eq(0), first.eq(1), row.eq(0), column.eq(0)]
                with m.Elif(fifo.r_rdy):
                    m.d.comb += fifo.r_en.eq(1)
                    m.d.sync += [command.eq(WRITE), address.eq(column), drives.eq(1)]
                    m.d.sync += column.eq(column + 1)
                    m.d.comb += full.eq(column.all())
                with m.Elif(copied & self.room & ~rewind):
                    m.d.sync += [command.eq(READ), address.eq(column), burst.eq(1), first.eq(0)]
                    word = ((1 << UNIT_CLOCKS) - 1) << LATENCY
                    kept = word & word << before
                    m.d.sync += coming.eq(coming >> 1 | Mux(first, kept, word))
                    m.d.sync += column.eq(column + UNIT_CLOCKS)
                    m.d.comb += full.eq(column[2:].all())
        with m.If(full):
            m.d.sync += [row.eq(row + 1), ended.eq(1)]
        with m.If(self.again):
            m.d.sync += [rewind.eq(1), copied.eq(1), coming.eq(0)]
        m.d.sync += sent.eq(fifo.r_data)
        return coming[0]

    def _drive(
        self, m: Module, command: Signal, address: Signal, sent: Signal, drives: Signal
    ) -> None:
        """The pins."""
        m.d.comb += [self.sdram_clk.eq(1), self.sdram_cke.eq(1)]  # what is active low is so always
        m.d.comb += Cat(self.sdram_ras_n, self.sdram_cas_n, self.sdram_we_n).eq(command)
        for i in range(ROW_BITS):
            m.d.comb += getattr(self, f"sdram_a{i}").eq(address[i])
        for i in range(DATA_BITS):
            pin = getattr(self, f"sdram_dq{i}")
            m.d.comb += [pin.o.eq(sent[i]), pin.oe.eq(drives)]
