"""Small designs to try runner and drivers on; some break a rule on purpose."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class Counter(wiring.Component):
    """Counts enabled cycles, modulo `2 ** width`."""

    def __init__(self, width):
        super().__init__({"en": In(1), "count": Out(width)})

    def elaborate(self, platform):
        m = Module()
        with m.If(self.en):
            m.d.sync += self.count.eq(self.count + 1)
        return m


class Increment(wiring.Component):
    """Stream register that adds one to each word; `fault` breaks one rule of streams.

    Faults: "drop" lets valid fall before the transfer, "change" alters a waiting payload, "wait"
    raises valid only once ready is seen.
    """

    def __init__(self, width, fault=""):
        self._fault = fault
        super().__init__({"i": In(stream.Signature(width)), "o": Out(stream.Signature(width))})

    def elaborate(self, platform):
        m = Module()
        full = Signal()
        payload = Signal.like(self.o.payload)
        age = Signal(4)
        m.d.comb += [
            self.o.valid.eq(full),
            self.o.payload.eq(payload),
            self.i.ready.eq(~full | (self.o.ready & self.o.valid)),
        ]
        with m.If(self.i.ready):
            m.d.sync += [full.eq(self.i.valid), payload.eq(self.i.payload + 1), age.eq(0)]
        with m.Elif(age != 15):
            m.d.sync += age.eq(age + 1)
        match self._fault:
            case "drop":
                m.d.comb += self.o.valid.eq(full & (age != 3))
            case "change":
                m.d.comb += self.o.payload.eq(Mux(age == 2, ~payload, payload))
            case "wait":
                m.d.comb += self.o.valid.eq(full & self.o.ready)
        return m


class Multiplier(wiring.Component):
    """What must not be found in this project."""

    def __init__(self):
        super().__init__({"a": In(8), "b": In(8), "o": Out(16)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.a * self.b)
        return m


class Table(wiring.Component):
    """A memory with contents, read a cycle after the address."""

    def __init__(self, contents):
        self._contents = contents
        super().__init__({"address": In(range(len(contents))), "data": Out(16)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = Memory(
            shape=16, depth=len(self._contents), init=self._contents
        )
        port = table.read_port()
        m.d.comb += [port.addr.eq(self.address), self.data.eq(port.data)]
        return m
