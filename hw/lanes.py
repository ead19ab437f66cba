"""The lanes: every cycle a few channels of a few pixels, into the sums of all output lanes."""

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

    Timing: `Geometry.lane_cycles` from a step to its sums. With a tile's last step `captured` is
    high and `sums` are the tile's; the accumulators start from 0 with the step behind it. One step
    a cycle. Weights come one cycle after their step (a RAM block's latency).

    Members
    -------
    valid, x, last : In, a step as `hw.window.WindowBuffer` issues it
    weights : In, for output lane o and pair i: bit 2*(o*pairs + i) ``same``, the next ``negate``
    sums : Out, signed, [output lane * pixel_lanes + pixel lane]
    captured : Out(1)
    """

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
        cycles = g.lane_cycles
        valid = [Signal(name=f"valid{i}") for i in range(cycles)]
        last = [Signal(name=f"last{i}") for i in range(cycles)]
        m.d.sync += [
            Cat(*valid).eq(Cat(self.valid, *valid)),
            Cat(*last).eq(Cat(self.valid & self.last, *last)),
        ]
        m.d.comb += self.captured.eq(last[-1])
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
                total = _tree(m, terms, f"{o}_{p}")
                accumulator = Signal(signed(g.accumulator_bits), name=f"accumulator{o}_{p}")
                after = Signal(signed(g.accumulator_bits), name=f"after{o}_{p}")
                m.d.comb += after.eq(accumulator + total)
                with m.If(valid[-1]):
                    m.d.sync += accumulator.eq(Mux(last[-1], 0, after))
                m.d.comb += self.sums[o * g.pixel_lanes + p].eq(after)
        return m


def _tree(m: Module, terms: list[Signal], name: str) -> Signal:
    """Balanced sum, a register behind every adder: it shares the adder's logic cells."""
    level = 0
    while len(terms) > 1 or level == 0:
        sums = []
        for i in range(0, len(terms), 2):
            pair = terms[i : i + 2]
            total = Signal(signed(len(terms[0]) + len(pair) - 1), reset_less=True)
            total.name = f"total{name}_{level}_{i // 2}"
            m.d.sync += total.eq(sum(pair[1:], pair[0]))
            sums.append(total)
        terms, level = sums, level + 1
    return terms[0]
