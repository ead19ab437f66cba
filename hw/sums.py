"""Where sums wait between the lanes, which make many at once, and the requantiser."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, ClockSignal, Const, Instance, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.pump import lane_domain, sum_domain

PORT_BITS = 16
"""Of a block RAM's writing port: some bits of each of the sums that are written at once. Its
reading port gives those of one."""


class SumMemory(wiring.Component):
    """A tile's sums: written a pass at a time by the lanes, or half of one, read one by one.

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
    write : In(1); pass_ : In, which one, and second : In(1), its second half (only with
        `Geometry.split_sums`); sums : In, what comes then: [output lane * pixels + pixel]
    address : In, [output lane * pixels + pixel] of the tile, of the first that is read
    value : Out, signed, `Geometry.slot_abreast` of them
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        self._geometry = g = geometry
        self._blocks = primitive == "spram" and g.sums_in_blocks
        half = {"second": In(1)} if g.split_sums else {}
        super().__init__(
            {
                "write": In(1),
                "pass_": In(range(max(g.pump, 2))),
                **half,
                "sums": In(data.ArrayLayout(signed(g.accumulator_bits), g.sums_at_once)),
                "address": In(range(max(g.output_lanes * g.pixel_lanes, 2))),
                "value": Out(g.slot_abreast * g.accumulator_bits),
            }
        )

    @property
    def num_blocks(self) -> int:
        """Block RAMs that it takes."""
        return -(-self._geometry.accumulator_bits // self._block_bits) if self._blocks else 0

    @property
    def _block_bits(self) -> int:
        """Of each sum, in a block RAM."""
        return PORT_BITS // self._geometry.sums_at_once

    def _written(self) -> Value:
        """Which of a tile's parts is."""
        return Cat(self.second, self.pass_) if self._geometry.split_sums else self.pass_

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
        parts = g.pump * (g.pass_sums // g.sums_at_once)
        for p in range(parts):
            word = [
                Signal(signed(g.accumulator_bits), name=f"held{p}_{i}", reset_less=True)
                for i in range(len(self.sums))
            ]
            with m.If(self.write & (self._written() == p)):
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
        choices, width = g.sums_at_once, self._block_bits
        choice_bits = (choices - 1).bit_length()
        lane, word = self.address[:choice_bits], self.address[choice_bits:]
        written = self._written()
        for at in range(0, g.accumulator_bits, width):
            read = Signal(PORT_BITS, name=f"read{at}")
            of_block = [min(at + i, g.accumulator_bits - 1) for i in range(width)]
            bits = [total[bit] for bit in of_block for total in self.sums]
            m.submodules[f"block{at // width}"] = Instance(
                "SB_RAM40_4K",
                p_WRITE_MODE=0,  # 256 words of 16 bits
                # 2,048 of 2, or 1,024 of 4: of each 8 or 4 bits that which the highest address
                # bits say
                p_READ_MODE=choice_bits,
                i_WCLK=ClockSignal(lane_domain(g)),
                i_WCLKE=1,
                i_WE=self.write,
                i_WADDR=Cat(written, Const(0, 11 - len(written))),
                i_MASK=Const(0, 16),
                i_WDATA=Cat(*bits),
                i_RCLK=ClockSignal(sum_domain(g)),
                i_RCLKE=1,
                i_RE=1,
                i_RADDR=Cat(word, Const(0, 8 - len(word)), lane),
                o_RDATA=read,
            )
            # In the middle of those it is one of: where a narrow port has its bits.
            parts += [read[i * choices + choices // 2 - 1] for i in range(width)]
        m.d.comb += self.value.eq(Cat(*parts)[: g.accumulator_bits])
