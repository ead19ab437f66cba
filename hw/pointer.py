"""Addresses that walk through the activation memory, by strides that the compiler has made."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Shape, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import STRIDES, Geometry
from hw.layout import stride_put


class Pointer(wiring.Component):
    """One address, and a table of what may be added to it: a column of `STRIDES`.

    In block RAM the table costs no register, and its output chooses, so the way to the next address
    is one adder. In turn a stride has to be looked up a cycle before it is wanted.

    Timing: `restart` looks up the first row, and in the cycle after it, when `begins` is high, that
    becomes the address; it stands there from the next cycle on. `look` in one cycle, and `step` in
    the next or any later one. Both may come every cycle, and `look` with `begins`.

    Where block RAMs are short one pointer may lend its table to another, which begins with it: the
    lender looks for both, for whichever steps in the next cycle.

    Parameters
    ----------
    geometry : Geometry
    walk : str
        Which of `STRIDES`.
    primitive : str
        See `hw.memory.ActivationMemory`. With "spram" the table is a block RAM; elsewhere, where
        they are scarcer than registers, it is those.
    lends, borrows : bool
        It lends its table; it has none of its own.

    Members
    -------
    strides : In(`stride_put`), the table as it is loaded
    restart : In(1), strobe, a layer begins: the table is there
    begins : Out(1), strobe, a cycle later
    row : In, look : In(1), the stride that comes next
    step : In(1), add it
    stride : Out, what the table says; In, of one that borrows, in the place of the table's members
    address : Out
    """

    def __init__(
        self,
        geometry: Geometry,
        walk: str,
        primitive: str = "inferred",
        *,
        lends: bool = False,
        borrows: bool = False,
    ) -> None:
        self._geometry = geometry
        self._style = "block" if primitive == "spram" else "registers"
        self._first = list(STRIDES).index(walk) * geometry.address_bits
        put = stride_put(geometry)
        row = put["row"].shape
        self._rows = 1 << Shape.cast(row).width
        self._lends, self._borrows = lends, borrows
        table = {"strides": In(put), "row": In(row), "look": In(1)}
        super().__init__(
            {
                **({} if borrows else table),
                **({"stride": In(geometry.address_bits)} if borrows else {}),
                **({"stride": Out(geometry.address_bits)} if lends else {}),
                "restart": In(1),
                "begins": Out(1),
                "step": In(1),
                "address": Out(geometry.address_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        stride = self.stride if self._borrows else self._table(m)
        if self._lends:
            m.d.comb += self.stride.eq(stride)
        m.d.sync += self.begins.eq(self.restart)
        with m.If(self.restart):
            m.d.sync += self.address.eq(0)
        with m.Elif(self.begins | self.step):
            m.d.sync += self.address.eq(self.address + stride)
        return m

    def _table(self, m: Module) -> Signal:
        """The table; returns what it says."""
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
        return stride
