"""The serial restoring division, for what needs no throughput: pixels and scores."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class SerialDivider(wiring.Component):
    """``clip(dividend // divisor, 0, 2**steps - 1)``: `compiler.arith.restoring_division`.

    Timing: `done` is high for one cycle, ``steps`` + 1 cycles after `start`; `quotient` then holds
    until the next start.

    Parameters
    ----------
    dividend_bits, divisor_bits : int
        Widths, the dividend signed, the divisor not.
    steps : int
        Width of the quotient.

    Members
    -------
    start, dividend, divisor : In
    quotient : Out
    done : Out(1)
    """

    def __init__(self, dividend_bits: int, divisor_bits: int, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps!r}")
        self._steps = steps
        self._dividend_bits, self._divisor_bits = dividend_bits, divisor_bits
        super().__init__(
            {
                "start": In(1),
                "dividend": In(signed(dividend_bits)),
                "divisor": In(divisor_bits),
                "quotient": Out(steps),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shifted_bits = self._divisor_bits + self._steps - 1
        remainder = Signal(signed(self._dividend_bits))
        less_shifted = Signal(shifted_bits)  # complemented, as the subtraction's carry takes it
        # In a flip-flop of its own: whether a step changes the remainder is known last.
        running, left = Signal(), Signal(range(self._steps))
        rest = Signal(signed(max(self._dividend_bits, shifted_bits + 1) + 1))
        bit = ~rest[-1]
        m.d.comb += rest.eq(remainder - ~less_shifted)
        m.d.sync += self.done.eq(running & (left == 0))
        with m.If(self.start):
            m.d.sync += [
                remainder.eq(self.dividend),
                less_shifted.eq(~(self.divisor << (self._steps - 1))),
                left.eq(self._steps - 1),
                running.eq(1),
            ]
        with m.Elif(running):
            m.d.sync += [
                remainder.eq(Mux(bit, rest, remainder)),
                less_shifted.eq(Cat(less_shifted[1:], 1)),
                self.quotient.eq(Cat(bit, self.quotient)),
                left.eq(left - 1),
                running.eq(left != 0),
            ]
        return m
