"""Serial bytes: 8 data bits, no parity, one stop bit, least significant bit first."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

MAX_RATE_ERROR = 0.02
"""Largest relative error of a bit's duration: ten bits then drift by a fifth of a bit, and the
other side may be as wrong again."""


def divisor_for(clock_hz: float, baud: float) -> int:
    """Cycles a bit, for a clock and a bit rate.

    Raises
    ------
    ValueError
        If the rate cannot be met within `MAX_RATE_ERROR`.
    """
    divisor = max(round(clock_hz / baud), UartReceiver.MIN_DIVISOR)
    if abs(divisor * baud / clock_hz - 1) > MAX_RATE_ERROR:
        raise ValueError(
            f"clock must be a multiple of baud within {MAX_RATE_ERROR:.0%}, not {clock_hz / 1e6:g} "
            f"MHz for {baud:g} baud"
        )
    return divisor


class UartReceiver(wiring.Component):
    """Receives bytes.

    A bit is sampled once, in its middle. A byte is handed on in the middle of its stop bit, and the
    next start bit may follow at once, so a sender may be up to half a bit in ten too fast or slow.
    A byte that is still waiting when the next one is complete stays; the next one is lost.

    Parameters
    ----------
    divisor : int
        Cycles a bit, at least `MIN_DIVISOR`.

    Members
    -------
    rx : In(1)
        The line, idle at 1; asynchronous.
    o : Out(stream.Signature(8))
        Bytes, valid 9 · divisor + (divisor - 1) // 2 + 4 cycles after their start bit's edge.
    framing_stb : Out(1)
        The stop bit was 0: the byte is not handed on, and the line must go idle before the next.
    overflow_stb : Out(1)
        A byte was lost because the one before it had not been taken.
    """

    MIN_DIVISOR = 4

    def __init__(self, divisor: int) -> None:
        if divisor < self.MIN_DIVISOR:
            raise ValueError(f"divisor must be at least {self.MIN_DIVISOR}, not {divisor!r}")
        self._divisor = divisor
        super().__init__(
            {
                "rx": In(1, init=1),
                "o": Out(stream.Signature(8)),
                "framing_stb": Out(1),
                "overflow_stb": Out(1),
            }
        )

    @property
    def divisor(self) -> int:
        return self._divisor

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rx = Signal(init=1)
        m.submodules.rx = FFSynchronizer(self.rx, rx, init=1)

        # Ones until the start bit, the first 0, has come through all nine places.
        samples = Signal(9, init=-1)
        timer = Signal(range(self._divisor))
        sample_stb = Signal()
        m.d.comb += sample_stb.eq(timer == 0)
        m.d.sync += timer.eq(timer - 1)
        with m.If(sample_stb):
            m.d.sync += timer.eq(self._divisor - 1)

        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [timer.eq((self._divisor - 1) // 2), samples.eq(-1)]
                with m.If(~rx):
                    m.next = "START"
            with m.State("START"), m.If(sample_stb):
                m.d.sync += samples.eq(Cat(samples[1:], rx))
                m.next = "BITS"
                with m.If(rx):  # A glitch.
                    m.next = "IDLE"
            with m.State("BITS"), m.If(sample_stb):
                with m.If(samples[0]):
                    m.d.sync += samples.eq(Cat(samples[1:], rx))
                with m.Elif(rx):
                    m.next = "IDLE"
                    m.d.comb += self.overflow_stb.eq(self.o.valid & ~self.o.ready)
                    with m.If(~self.overflow_stb):
                        m.d.sync += [self.o.payload.eq(samples[1:]), self.o.valid.eq(1)]
                with m.Else():
                    m.d.comb += self.framing_stb.eq(1)
                    m.next = "BREAK"
            with m.State("BREAK"), m.If(rx):
                m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Sends bytes, back to back if they come fast enough: one every 10 · divisor cycles.

    Parameters
    ----------
    divisor : int
        Cycles a bit, at least 1.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes; the start bit begins one cycle after the transfer.
    tx : Out(1)
        The line, idle at 1, from a flip-flop.
    """

    def __init__(self, divisor: int) -> None:
        if divisor < 1:
            raise ValueError(f"divisor must be at least 1, not {divisor!r}")
        self._divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    @property
    def divisor(self) -> int:
        return self._divisor

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # The stop bit is the highest 1: alone in the register it is the line's idle state as well.
        bits = Signal(10, init=1)
        timer = Signal(range(self._divisor))
        free = Signal(init=1)  # from a register: much waits for it
        taken = self.i.valid & free
        # What the stop bit still waits for in the next cycle: at a cycle a bit, one less.
        coming = bits[1:] if self._divisor > 1 else bits[2:]
        m.d.sync += free.eq((timer <= 1) & (coming == 0) & ~taken)
        m.d.comb += [self.tx.eq(bits[0]), self.i.ready.eq(free)]
        with m.If(taken):
            m.d.sync += [
                bits.eq(Cat(Const(0, 1), self.i.payload, Const(1, 1))),
                timer.eq(self._divisor - 1),
            ]
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(bits[1:] != 0):
            m.d.sync += [bits.eq(bits >> 1), timer.eq(self._divisor - 1)]
        return m
