"""The lanes: every cycle a few channels of a few pixels, into the sums of all output lanes."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.pump import lane_domain, second_half
from hw.sums import SumMemory


class Lanes(wiring.Component):
    """Sums of ±activations by pair sharing; equals `compiler.arith.pair_sum` step by step.

    ``x0 + x1`` and ``x0 - x1`` of each pair are made once for all output lanes, each of which takes
    one of them, negated or not, by one LUT4 a bit. Narrow activations' sums are centred, so that
    they are no longer than differences (`Geometry.pair_centre`), and negation is by one's
    complement: the parameters' bias makes up for both (`compiler.schedule`).

    With `Geometry.pump` 2 everything behind the pair sums runs twice as fast (`hw.pump`): the same
    pair sums serve half of the output lanes in a cycle's first half and the others in its second,
    by the same adders; the accumulators of the two stand in a ring.

    Behind the last step of a slice of the input but the last, the accumulators are shifted left by
    a slice's bits (`arith.slices`), where `Geometry.window_slices` says so.

    With `Geometry.split_sums` no step may come in the cycle behind a tile's last. The ring goes on
    meanwhile, as it does whenever there is no step, for then 0 is added: so each pass's sums come
    by a second time, and the half of them that was not taken is.

    Timing: a tile's sums stand in a memory (`hw.sums.SumMemory`) from `Geometry.lane_cycles` after
    its last step on, where they may be addressed, until `tiles_apart` later. The accumulators start
    from 0 with the step behind it. One step a cycle. Weights come one cycle after their step (a RAM
    block's latency), pass by pass.

    Parameters
    ----------
    geometry : Geometry
    primitive : str
        See `hw.sums.SumMemory`.

    Members
    -------
    valid, x, last, slice_end : In, a step as `hw.window.WindowBuffer` issues it
    weights : In
        Of a pass, for its output lane o and pair i: bit 2*(o*pairs + i) ``same``, the next
        ``negate``.
    sum_address : In, [output lane * pixel_lanes + pixel lane], of the first of those that are read
        together
    sum : Out, signed, `Geometry.slot_abreast` of them, one cycle of `hw.pump.sum_domain` later
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        self._geometry = g = geometry
        self._primitive = primitive
        lane = data.ArrayLayout(g.activation_bits, g.input_lanes)
        super().__init__(
            {
                "valid": In(1),
                "x": In(data.ArrayLayout(lane, g.pixel_lanes)),
                "last": In(1),
                "slice_end": In(1),
                "weights": In(g.pass_weight_bits),
                "sum_address": In(range(max(g.output_lanes * g.pixel_lanes, 2))),
                "sum": Out(g.slot_abreast * g.accumulator_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        m.submodules.memory = memory = SumMemory(g, self._primitive)
        m.d.comb += [memory.address.eq(self.sum_address), self.sum.eq(memory.value)]
        fast = m.d[lane_domain(g)]
        # With the pair sums, the terms, and behind each level of the tree.
        valid = [Signal(name=f"valid{i}", reset_less=i > 0) for i in range(g.tree_levels + 2)]
        last = [Signal(name=f"last{i}", reset_less=True) for i in range(g.tree_levels + 2)]
        ends = [Signal(name=f"slice_end{i}", reset_less=True) for i in range(len(last))]
        m.d.sync += [
            valid[0].eq(self.valid),
            last[0].eq(self.valid & self.last),
            ends[0].eq(self.slice_end),
        ]
        for stages in (valid, last, ends):
            fast += Cat(*stages[1:]).eq(Cat(*stages))
        m.d.comb += [memory.write.eq(last[-1]), memory.pass_.eq(0)]
        finished = Signal(init=1)  # the sum that the ring passes on has been taken
        raised = Signal(reset_less=True)  # it stands a slice above the steps that follow
        if g.pump > 1:
            written = Signal(reset_less=True)
            fast += written.eq(last[-1])
            # The first pass enters with a cycle's first half; the levels say in which it comes out.
            second = second_half(m)
            m.d.comb += [
                memory.write.eq(written),
                memory.pass_.eq(second if g.tree_levels % 2 == 0 else ~second),
            ]
            if g.split_sums:
                between = Signal(reset_less=True)
                fast += [between.eq(written), finished.eq(between)]
                fast += raised.eq(valid[-1] & ends[-1] & ~last[-1])
                m.d.comb += [memory.write.eq(written | finished), memory.second.eq(finished)]
            else:
                with m.If(valid[-1]):
                    fast += [finished.eq(last[-1]), raised.eq(ends[-1])]
        for p in range(g.pixel_lanes):
            sums, differences = self._pairs(m, p)
            for o in range(g.pass_lanes):
                terms = []
                for i in range(g.input_lanes // 2):
                    at = 2 * (o * (g.input_lanes // 2) + i)
                    same, negate = self.weights.bit_select(at, 2)
                    width = signed(g.activation_bits + (1 if g.pair_centre else 2))
                    term = Signal(width, name=f"term{o}_{p}_{i}", reset_less=True)
                    chosen = Signal(width, name=f"chosen{o}_{p}_{i}")
                    m.d.comb += chosen.eq(Mux(same, sums[i], differences[i]))
                    fast += term.eq(chosen ^ Mux(negate, Const(-1, width), 0))
                    terms.append(term)
                total = self._tree(m, terms, f"{o}_{p}", valid[-2])
                # In a ring it starts with 0 and is never left otherwise: a reset would join the
                # enable, which two clocks then wait for.
                accumulator = Signal(
                    signed(g.accumulator_bits), name=f"accumulator{o}_{p}", reset_less=g.pump > 1
                )
                after = Signal.like(accumulator, name=f"after{o}_{p}", reset_less=True)
                if g.pump == 1:
                    m.d.comb += after.eq(accumulator + total)
                    going_on = after
                    if g.window_slices > 1:
                        going_on = Mux(ends[-1], after << g.activation_bits, after)
                    with m.If(valid[-1]):
                        fast += accumulator.eq(Mux(last[-1], 0, going_on))
                else:
                    going_on = after
                    if g.window_slices > 1:
                        going_on = Mux(raised, after << g.activation_bits, after)
                    with m.If(1 if g.split_sums else valid[-1]):
                        fast += [
                            after.eq(accumulator + total),
                            accumulator.eq(Mux(finished, 0, going_on)),
                        ]
                half, at = divmod(o * g.pixel_lanes + p, g.sums_at_once)
                if half == 0:
                    m.d.comb += memory.sums[at].eq(after)
                else:
                    with m.If(memory.second):
                        m.d.comb += memory.sums[at].eq(after)
        return m

    def _pairs(self, m: Module, p: int) -> tuple[list[Signal], list[Signal]]:
        """Sum and difference of each pair of a pixel's activations."""
        b, centre = self._geometry.activation_bits, self._geometry.pair_centre
        sums, differences = [], []
        for i in range(self._geometry.input_lanes // 2):
            width = signed(b + 1) if centre else b + 1
            total = Signal(width, name=f"sum{p}_{i}", reset_less=True)
            above = Signal(b, name=f"difference{p}_{i}", reset_less=True)
            first, second = self.x[p][2 * i], self.x[p][2 * i + 1]
            # The complement is short of the centre, the highest activation.
            both = first - ~second if centre else first + second
            m.d.sync += [total.eq(both), above.eq((first - second)[1:])]
            sums.append(total)
            # Both are odd, or both even; but of a centred sum and a difference one is.
            odd = ~total[0] if centre else total[0]
            differences.append(Cat(odd, above).as_signed())
        return sums, differences

    def _tree(self, m: Module, terms: list[Signal], name: str, valid: Signal) -> Signal:
        """Balanced sum, a register behind every adder: it shares the adder's logic cells.

        Where the ring never rests it is 0 unless there is a step: the last register alone, for one
        with a reset shares no tile with one that has none, and adders leave room in most of theirs.
        """
        for level in range(self._geometry.tree_levels):
            sums = []
            for i in range(0, len(terms), 2):
                pair = terms[i : i + 2]
                total = Signal(signed(len(terms[0]) + len(pair) - 1), reset_less=True)
                total.name = f"total{name}_{level}_{i // 2}"
                m.d[lane_domain(self._geometry)] += total.eq(sum(pair[1:], pair[0]))
                if self._geometry.split_sums and level == self._geometry.tree_levels - 1:
                    with m.If(~valid):
                        m.d[lane_domain(self._geometry)] += total.eq(0)
                sums.append(total)
            terms = sums
        return terms[0]
