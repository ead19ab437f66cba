"""Where sums wait between the lanes, which make many at once, and the requantiser."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, ClockSignal, Const, Instance, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.pump import lane_domain, sum_domain

BLOCK_BITS = 2
"""A block RAM written 16 bits at a time and read two at a time: two bits of eight sums."""


class SumMemory(wiring.Component):
    """A tile's sums: written a pass at a time by the lanes, read one by one.

    Timing: written at the end of the cycle, of the lanes' clock, of `write`; `value` is that of the
    cycle before's `address`, in cycles of `sum_domain`. A word must not be read at the edge at
    which it is written.

    Parameters
    ----------
    geometry : Geometry
    primitive : str
        See `hw.memory.ActivationMemory`. With "spram", on an UltraPlus, block RAMs of unequal ports
        do the choosing; elsewhere registers and multiplexers.

    Members
    -------
    write : In(1), pass_ : In, which one; sums : In, of that pass: [output lane * pixels + pixel]
    address : In, [output lane * pixels + pixel] of the tile, of the first that is read
    value : Out, signed, `Geometry.slot_abreast` of them
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        self._geometry = g = geometry
        values = g.pass_lanes * g.pixel_lanes
        self._blocks = primitive == "spram" and g.sums_in_blocks
        super().__init__(
            {
                "write": In(1),
                "pass_": In(range(max(g.pump, 2))),
                "sums": In(data.ArrayLayout(signed(g.accumulator_bits), values)),
                "address": In(range(max(g.output_lanes * g.pixel_lanes, 2))),
                "value": Out(g.slot_abreast * g.accumulator_bits),
            }
        )

    @property
    def num_blocks(self) -> int:
        """Block RAMs that it takes."""
        return -(-self._geometry.accumulator_bits // BLOCK_BITS) if self._blocks else 0

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self._blocks:
            self._elaborate_blocks(m)
        else:
            self._elaborate_registers(m)
        return m

    def _elaborate_registers(self, m: Module) -> None:
        g = self._geometry
        held = []
        for p in range(g.pump):
            word = [
                Signal(signed(g.accumulator_bits), name=f"held{p}_{i}", reset_less=True)
                for i in range(len(self.sums))
            ]
            with m.If(self.write & (self.pass_ == p)):
                m.d[lane_domain(g)] += [h.eq(s) for h, s in zip(word, self.sums, strict=True)]
            held += word
        together = g.slot_abreast
        first = self.address[(together - 1).bit_length() :]
        for i in range(together):
            value = self.value.word_select(i, g.accumulator_bits)
            m.d[sum_domain(g)] += value.eq(Array(held[i::together])[first])

    def _elaborate_blocks(self, m: Module) -> None:
        g = self._geometry
        parts: list[Value] = []
        lane, word = self.address[:3], self.address[3:]
        for at in range(0, g.accumulator_bits, BLOCK_BITS):
            read = Signal(16, name=f"read{at}")
            of_block = [min(at + i, g.accumulator_bits - 1) for i in range(BLOCK_BITS)]
            bits = [total[bit] for bit in of_block for total in self.sums]
            m.submodules[f"block{at // BLOCK_BITS}"] = Instance(
                "SB_RAM40_4K",
                p_WRITE_MODE=0,  # 256 words of 16 bits
                p_READ_MODE=3,  # 2,048 of 2: of each byte the bit that the highest address bits say
                i_WCLK=ClockSignal(lane_domain(g)),
                i_WCLKE=1,
                i_WE=self.write,
                i_WADDR=Cat(self.pass_, Const(0, 11 - len(self.pass_))),
                i_MASK=Const(0, 16),
                i_WDATA=Cat(*bits),
                i_RCLK=ClockSignal(sum_domain(g)),
                i_RCLKE=1,
                i_RE=1,
                i_RADDR=Cat(word, Const(0, 8 - len(word)), lane),
                o_RDATA=read,
            )
            parts += [read[3], read[11]]
        m.d.comb += self.value.eq(Cat(*parts)[: g.accumulator_bits])
