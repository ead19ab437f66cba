"""Small designs that the tests of the tool chain build."""

from amaranth.hdl import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out


class Blink(wiring.Component):
    """A counter on the LEDs, and the line looped back through a flip-flop."""

    rx: In(1)
    tx: Out(1, init=1)
    ready: Out(1)
    busy: Out(1)
    error: Out(1)

    def elaborate(self, platform):
        m = Module()
        count = Signal(12)
        m.d.sync += [count.eq(count + 1), self.tx.eq(self.rx)]
        m.d.comb += [self.ready.eq(count[-1]), self.busy.eq(count[-2]), self.error.eq(count[-3])]
        return m


class Recorder(wiring.Component):
    """Writes what comes in serially into a memory, and reads it back elsewhere."""

    rx: In(1)
    tx: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = words = memory.Memory(shape=16, depth=256, init=range(256))
        write, read = words.write_port(), words.read_port()
        bits = Signal(32)
        m.d.sync += bits.eq(bits << 1 | self.rx)
        m.d.comb += [
            *(write.addr.eq(bits[:8]), write.data.eq(bits[8:24]), write.en.eq(bits[24])),
            *(read.addr.eq(bits[16:24]), self.tx.eq(read.data.xor())),
        ]
        return m


class Multiplier(wiring.Component):
    """What may not be built."""

    rx: In(1)
    tx: Out(1)

    def elaborate(self, platform):
        m = Module()
        bits = Signal(32)
        product = Signal(32)
        m.d.sync += [bits.eq(bits << 1 | self.rx), product.eq(bits[:16] * bits[16:])]
        m.d.comb += self.tx.eq(product.xor())
        return m


class Flashing(wiring.Component):
    """The line goes to the flash, and the flash to the line."""

    rx: In(1)
    tx: Out(1)
    flash_cs_n: Out(1)
    flash_clk: Out(1)
    flash_cipo: In(1)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += [self.flash_clk.eq(self.rx), self.tx.eq(self.flash_cipo)]
        return m
