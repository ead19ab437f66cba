"""The serial restoring division, for what needs no throughput: pixels and scores."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class SerialDivider(wiring.Component):
    """``clip(dividend // divisor, 0, 2**steps - 1)``: `compiler.arith.restoring_division`.

    Timing: `done` is high for one cycle, ``steps`` cycles after `start`; `quotient` then holds until
    the next start.

    Parameters
    ----------
    dividend_bits, divisor_bits : int
        Widths, the dividend signed, the divisor not.
    short_steps, long_steps : int
        The two choices of ``steps``.

    Members
    -------
    start, long, dividend, divisor : In
    quotient : Out
    done : Out(1)
    """

    def __init__(
        self, dividend_bits: int, divisor_bits: int, short_steps: int, long_steps: int
    ) -> None:
        if not 1 <= short_steps <= long_steps:
            raise ValueError(f"short_steps must be 1 to {long_steps}, not {short_steps!r}")
        self._steps = short_steps, long_steps
        self._dividend_bits, self._divisor_bits = dividend_bits, divisor_bits
        super().__init__(
            {
                "start": In(1),
                "long": In(1),
                "dividend": In(signed(dividend_bits)),
                "divisor": In(divisor_bits),
                "quotient": Out(long_steps),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        short, long = self._steps
        shifted_bits = self._divisor_bits + long - 1
        rest_bits = max(self._dividend_bits, shifted_bits + 1) + 1
        remainder = Signal(signed(self._dividend_bits))
        shifted = Signal(shifted_bits)
        left = Signal(range(long + 1))
        rest = Signal(signed(rest_bits))
        bit = ~rest[-1]
        m.d.comb += rest.eq(remainder - shifted)
        m.d.sync += self.done.eq(left == 1)
        with m.If(self.start):
            m.d.sync += [
                remainder.eq(self.dividend),
                shifted.eq(
                    Mux(self.long, self.divisor << (long - 1), self.divisor << (short - 1))
                ),
                left.eq(Mux(self.long, long, short)),
                self.quotient.eq(0),
            ]
        with m.Elif(left != 0):
            m.d.sync += [
                remainder.eq(Mux(bit, rest, remainder)),
                shifted.eq(shifted >> 1),
                self.quotient.eq(Cat(bit, self.quotient)),
                left.eq(left - 1),
            ]
        return m
