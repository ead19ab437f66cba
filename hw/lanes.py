"""The lanes: every cycle, input_lanes activations of pixel_lanes pixels into output_lanes sums each."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry


class Lanes(wiring.Component):
    """Sums of ±activations by pair sharing; equals `compiler.arith.pair_sum` step by step.

    ``x0 + x1`` and ``x0 - x1`` of each pair are made once for all output lanes, each of which takes
    one of them, negated or not, by one LUT4 a bit. Negation is by one's complement: the parameters'
    bias makes up for it (`compiler.schedule`).

    Timing: three cycles from a step to its sums. With a tile's last step `captured` is high and `sums`
    are the tile's; the accumulators start from 0 with the step behind it. One step a cycle. Weights
    come one cycle after their step (a RAM block's latency).

    Members
    -------
    valid, x, last : In, a step as `hw.fetch.StepIssue` issues it
    weights : In, for output lane o and pair i: bit 2*(o*pairs + i) ``same``, the next ``negate``
    sums : Out, signed, [output lane * pixel_lanes + pixel lane]
    captured : Out(1)
    """

    latency = 3

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = g = geometry
        lane = data.ArrayLayout(g.activation_bits, g.input_lanes)
        super().__init__(
            {
                "valid": In(1),
                "x": In(data.ArrayLayout(lane, g.pixel_lanes)),
                "last": In(1),
                "weights": In(g.weight_bits),
                "sums": Out(
                    data.ArrayLayout(signed(g.accumulator_bits), g.output_lanes * g.pixel_lanes)
                ),
                "captured": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        b, pairs = g.activation_bits, g.input_lanes // 2
        valid = [Signal(name=f"valid{i}") for i in range(3)]
        last = [Signal(name=f"last{i}") for i in range(3)]
        m.d.sync += [
            Cat(*valid).eq(Cat(self.valid, *valid)),
            Cat(*last).eq(Cat(self.valid & self.last, *last)),
        ]
        m.d.comb += self.captured.eq(last[2])
        for p in range(g.pixel_lanes):
            sums, differences = [], []
            for i in range(pairs):
                total = Signal(b + 1, name=f"sum{p}_{i}", reset_less=True)
                difference = Signal(signed(b + 1), name=f"difference{p}_{i}", reset_less=True)
                m.d.sync += [
                    total.eq(self.x[p][2 * i] + self.x[p][2 * i + 1]),
                    difference.eq(self.x[p][2 * i] - self.x[p][2 * i + 1]),
                ]
                sums.append(total)
                differences.append(difference)
            for o in range(g.output_lanes):
                terms = []
                for i in range(pairs):
                    same, negate = self.weights.bit_select(2 * (o * pairs + i), 2)
                    term = Signal(signed(b + 2), name=f"term{o}_{p}_{i}", reset_less=True)
                    chosen = Signal(signed(b + 2), name=f"chosen{o}_{p}_{i}")
                    m.d.comb += chosen.eq(Mux(same, sums[i], differences[i]))
                    m.d.sync += term.eq(chosen ^ Mux(negate, Const(-1, signed(b + 2)), 0))
                    terms.append(term)
                width = b + 2 + (pairs - 1).bit_length()
                total = Signal(signed(width), name=f"total{o}_{p}", reset_less=True)
                m.d.sync += total.eq(_tree(terms))
                accumulator = Signal(signed(g.accumulator_bits), name=f"accumulator{o}_{p}")
                after = Signal(signed(g.accumulator_bits), name=f"after{o}_{p}")
                m.d.comb += after.eq(accumulator + total)
                with m.If(valid[2]):
                    m.d.sync += accumulator.eq(Mux(last[2], 0, after))
                m.d.comb += self.sums[o * g.pixel_lanes + p].eq(after)
        return m


def _tree(terms: list) -> object:
    """Balanced sum."""
    while len(terms) > 1:
        pairs = [a + b for a, b in zip(terms[0::2], terms[1::2], strict=False)]
        terms = pairs + ([terms[-1]] if len(terms) % 2 else [])
    return terms[0]
