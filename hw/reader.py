"""Where the Image comes from: block RAM. Others may stand behind the same stream."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import Out


class RomReader(wiring.Component):
    """Sends the words of an Image, again and again; one a cycle.

    Parameters
    ----------
    words : sequence of int
        `compiler.image.Image.words`.
    bits : int
        Width of a word.

    Members
    -------
    o : Out(stream of bits)
    """

    def __init__(self, words: Sequence[int], bits: int = 32) -> None:
        if not words:
            raise ValueError("words must not be empty")
        self._words, self._bits = tuple(words), bits
        super().__init__({"o": Out(stream.Signature(bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = len(self._words)
        m.submodules.rom = rom = memory.Memory(shape=self._bits, depth=depth, init=self._words)
        read = rom.read_port()
        address, following = Signal(range(depth)), Signal(range(depth))
        m.d.comb += [
            following.eq(
                Mux(self.o.valid & self.o.ready, Mux(address == depth - 1, 0, address + 1), address)
            ),
            read.addr.eq(following),
            self.o.payload.eq(read.data),
        ]
        m.d.sync += [address.eq(following), self.o.valid.eq(1)]
        return m
