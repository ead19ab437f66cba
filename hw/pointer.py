"""Addresses that walk through the activation memory, by strides that the compiler has made."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Shape, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import STRIDES, Geometry
from hw.layout import stride_put


class Pointer(wiring.Component):
    """An address, and a table of what may be added to it: a column of `STRIDES`.

    In block RAM the table costs no register, and its output chooses, so the way to the next address
    is one adder. In turn a stride has to be looked up a cycle before it is wanted.

    Timing: `restart` looks up the first row, and in the cycle after it, when `begins` is high, that
    becomes the address; it stands there from the next cycle on. `look` in one cycle, and `step` in
    the next or any later one. Both may come every cycle, and `look` with `begins`.

    Several addresses may walk by one table, each at its own pace, which begin together. Then the
    one that steps must be the one for which the cycle before has looked.

    Parameters
    ----------
    geometry : Geometry
    walk : str
        Which of `STRIDES`.
    walkers : int
        How many addresses there are.
    primitive : str
        See `hw.memory.ActivationMemory`. With "spram" the table is a block RAM; elsewhere, where
        they are scarcer than registers, it is those.

    Members
    -------
    strides : In(`stride_put`), the table as it is loaded
    restart : In(1), strobe, a layer begins: the table is there
    begins : Out(1), strobe, a cycle later
    row : In, look : In(1), the stride that comes next
    step : In(walkers), add it
    address : Out, each walker's
    """

    def __init__(
        self, geometry: Geometry, walk: str, walkers: int = 1, primitive: str = "inferred"
    ) -> None:
        self._geometry = geometry
        self._style = "block" if primitive == "spram" else "registers"
        self._first = list(STRIDES).index(walk) * geometry.address_bits
        put = stride_put(geometry)
        row = put["row"].shape
        self._rows = 1 << Shape.cast(row).width
        super().__init__(
            {
                "strides": In(put),
                "restart": In(1),
                "begins": Out(1),
                "row": In(row),
                "look": In(1),
                "step": In(walkers),
                "address": Out(data.ArrayLayout(geometry.address_bits, walkers)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        row, stride = Signal.like(self.row), Signal(g.address_bits)
        m.d.comb += row.eq(Mux(self.restart, 0, self.row))
        pieces = []
        for part in range(g.stride_words):  # of the stream's words those that hold some of it
            start = part * g.stream_bits
            low, high = max(self._first, start), start + g.stream_bits
            high = min(self._first + g.address_bits, high)
            if low >= high:
                continue
            table = memory.Memory(
                shape=high - low,
                depth=self._rows,
                init=[],
                attrs={"ram_style": self._style},
            )
            m.submodules[f"table{part}"] = table
            write, read = table.write_port(), table.read_port()
            m.d.comb += [
                write.en.eq(self.strides.parts[part]),
                write.addr.eq(self.strides.row),
                write.data.eq(self.strides.word[low - start : high - start]),
                read.addr.eq(row),
                read.en.eq(self.look | self.restart),
            ]
            pieces.append(read.data)
        m.d.comb += stride.eq(Cat(pieces))
        m.d.sync += self.begins.eq(self.restart)
        for step, address in zip(self.step, self.address, strict=True):
            with m.If(self.restart):
                m.d.sync += address.eq(0)
            with m.Elif(self.begins | step):
                m.d.sync += address.eq(address + stride)
        return m
