"""Scores of the classes, and which is the highest."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from compiler import arith

ANSWER = data.StructLayout({"score": signed(arith.SCORE_BITS), "label": 8, "last": 1})
"""One class's score; with the last one, `label` is the class of the highest (ties: the lowest)."""


class Scorer(wiring.Component):
    """Numbers the scores as they come and keeps the highest.

    Members
    -------
    classes : In(8)
    quotient : In, unsigned: the score plus 2**(SCORE_BITS - 1)
    valid : In(1), strobe; the quotient stays until `taken`
    taken : Out(1), strobe, it has been passed on, in the cycle before
    o : Out(stream of `ANSWER`)
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "classes": In(8),
                "quotient": In(arith.SCORE_BITS),
                "valid": In(1),
                "taken": Out(1),
                "o": Out(stream.Signature(ANSWER)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        label, best_label = Signal(8), Signal(8)
        less_best = Signal(arith.SCORE_BITS)  # complemented, as a comparison's carry takes it
        better, last, passed = Signal(), Signal(), Signal()
        answer = self.o.payload
        m.d.comb += [
            answer.score.eq(self.quotient ^ (1 << (arith.SCORE_BITS - 1))),
            answer.label.eq(Mux(better, label, best_label)),
            answer.last.eq(last),
            passed.eq(self.o.valid & self.o.ready),
        ]
        m.d.sync += self.taken.eq(passed)
        with m.If(self.valid):
            m.d.sync += [
                self.o.valid.eq(1),
                better.eq((label == 0) | (self.quotient > ~less_best)),
                last.eq(label + 1 == self.classes),
            ]
        with m.Elif(passed):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.taken):
            m.d.sync += label.eq(Mux(last, 0, label + 1))
            with m.If(better):
                m.d.sync += [less_best.eq(~self.quotient), best_label.eq(label)]
        return m
