"""An Image that the bitstream holds: block RAM in the place of the flash."""

from __future__ import annotations

from amaranth.hdl import Cat, Elaboratable, Module, ResetInserter, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from compiler.cycles import FlashPace
from compiler.geometry import UNIT_CLOCKS
from hw.store import missing_clocks

ARRIVES = UNIT_CLOCKS + 2
"""Cycles from a look at `room` to the unit in the memory's way (`hw.store`)."""


class RomReader(wiring.Component):
    """Sends what it was made with, from the beginning on, as a flash of many lines does.

    Contract of `room`: as of `hw.flash.FlashReader`.

    Parameters
    ----------
    content : bytes
        What `compiler.image.flash_bytes` makes.
    lines : int
        Bits that come at once; a unit is of four times as many. 8 or 16.

    Members
    -------
    stb : Out(1), strobe, ``lines`` bits have come
    data : Out(UNIT_CLOCKS * lines), the bits that came last; the newest lowest
    room : In(1), one more unit may come

    Raises
    ------
    ValueError
        For other lines, or a content that is not of whole ones.
    """

    def __init__(self, content: bytes, lines: int) -> None:
        if lines not in (8, 16):
            raise ValueError(f"lines must be 8 or 16, not {lines!r}")
        if len(content) % (lines // 8):
            raise ValueError(f"content must be of whole words of {lines} bits")
        self._lines, self._content = lines, content
        super().__init__({"stb": Out(1), "data": Out(UNIT_CLOCKS * lines), "room": In(1)})

    @property
    def lines(self) -> int:
        return self._lines

    @property
    def pins(self) -> dict[str, wiring.Member]:
        return {}

    @property
    def pace(self) -> FlashPace:
        """For the prediction of cycles."""
        spare = -ARRIVES % UNIT_CLOCKS
        return FlashPace(UNIT_CLOCKS, UNIT_CLOCKS * self._lines, spare, start_cycles=2)

    def again_at(self, m: Module, strobe: Value) -> Elaboratable:
        """What goes into a design that lets it begin again at each strobe."""
        return ResetInserter(strobe)(self)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size = self._lines // 8
        words = [
            int.from_bytes(self._content[i : i + size], "big")
            for i in range(0, len(self._content), size)
        ]
        m.submodules.words = words = memory.Memory(shape=self._lines, depth=len(words), init=words)
        port = words.read_port()
        place = Signal(range(UNIT_CLOCKS), init=missing_clocks(self._lines))  # in a unit
        address, reads, read = Signal(range(words.depth)), Signal(), Signal()
        m.d.comb += [
            reads.eq(place.any() | self.room),
            port.addr.eq(address),
            port.en.eq(reads),
        ]
        m.d.sync += [read.eq(reads), self.stb.eq(read)]
        with m.If(reads):
            m.d.sync += [place.eq(place + 1), address.eq(address + 1)]
        with m.If(read):
            m.d.sync += self.data.eq(Cat(port.data, self.data))
        return m
