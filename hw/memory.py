"""Activation memory: one port, one word of ``word_channels`` lanes a cycle, and who gets it."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry
from hw.layout import memory_read, memory_write

SPRAM_DEPTH = 16384
SPRAM_BITS = 16


class ActivationMemory(wiring.Component):
    """Single-ported memory with a write mask bit a lane.

    Timing: each cycle is an access: a write, or else a read, be it that nobody wants. ``read_data``
    is valid in the cycle after a read, and in no other: single-port RAM blocks give garbage after a
    write.

    Parameters
    ----------
    geometry : Geometry
    primitive : "inferred" or "spram"
        What it is made of: whatever synthesis infers, or the iCE40 UP5K's SB_SPRAM256KA.
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        if primitive not in ("inferred", "spram"):
            raise ValueError(f"primitive must be 'inferred' or 'spram', not {primitive!r}")
        if primitive == "spram" and geometry.memory_depth > SPRAM_DEPTH:
            raise ValueError(
                f"memory_depth must be at most {SPRAM_DEPTH}, not {geometry.memory_depth}"
            )
        self._geometry = geometry
        self._primitive = primitive
        super().__init__(
            {
                "write": In(1),
                "address": In(geometry.address_bits),
                "write_data": In(geometry.word_bits),
                "write_mask": In(geometry.word_channels),
                "read_data": Out(geometry.word_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self._primitive == "spram":
            self._elaborate_spram(m)
        else:
            self._elaborate_inferred(m)
        return m

    def _elaborate_inferred(self, m: Module) -> None:
        g = self._geometry
        m.submodules.memory = mem = memory.Memory(shape=g.word_bits, depth=g.memory_depth, init=[])
        read = mem.read_port()
        write = mem.write_port(granularity=g.activation_bits)
        m.d.comb += [
            read.en.eq(~self.write),
            read.addr.eq(self.address),
            self.read_data.eq(read.data),
            write.en.eq(self.write.replicate(g.word_channels) & self.write_mask),
            write.addr.eq(self.address),
            write.data.eq(self.write_data),
        ]

    def _elaborate_spram(self, m: Module) -> None:
        """Lanes stand in nibbles (bytes above 4 bits), the unit of the block's write mask."""
        g = self._geometry
        nibbles = -(-g.activation_bits // 4)
        width = 4 * nibbles
        padding = Const(0, width - g.activation_bits)
        b = g.activation_bits
        lanes_in = [Cat(self.write_data.word_select(i, b), padding) for i in range(g.word_channels)]
        written = Cat(*lanes_in)
        mask = Cat(*(self.write_mask[i].replicate(nibbles) for i in range(g.word_channels)))
        blocks = -(-len(written) // SPRAM_BITS)
        outputs = []
        for i in range(blocks):
            output = Signal(SPRAM_BITS, name=f"output{i}")
            m.submodules[f"spram{i}"] = Instance(
                "SB_SPRAM256KA",
                i_ADDRESS=Cat(self.address, Const(0, 14 - g.address_bits)),
                i_DATAIN=written[i * SPRAM_BITS : (i + 1) * SPRAM_BITS],
                i_MASKWREN=mask[i * 4 : (i + 1) * 4],
                i_WREN=self.write,
                i_CHIPSELECT=1,
                i_CLOCK=ClockSignal(),
                i_STANDBY=0,
                i_SLEEP=0,
                i_POWEROFF=1,  # active low
                o_DATAOUT=output,
            )
            outputs.append(output)
        word = Cat(*outputs)
        m.d.comb += self.read_data.eq(
            Cat(*(word[i * width : i * width + b] for i in range(g.word_channels)))
        )


class MemoryArbiter(wiring.Component):
    """Gives each cycle of the memory to the first of its clients that asks.

    Parameters
    ----------
    geometry : Geometry
    clients : dict of name to "read" or "write", highest priority first.

    Members
    -------
    <name> : In(memory_read) or In(memory_write)
    """

    def __init__(self, geometry: Geometry, clients: dict[str, str]) -> None:
        self._clients = clients
        signatures = {"read": memory_read(geometry), "write": memory_write(geometry)}
        ports = {
            "write": Out(1),
            "address": Out(geometry.address_bits),
            "write_data": Out(geometry.word_bits),
            "write_mask": Out(geometry.word_channels),
            "read_data": In(geometry.word_bits),
        }
        super().__init__(ports | {name: In(signatures[kind]) for name, kind in clients.items()})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        taken: Value = Const(0, 1)
        for name in self._clients:
            client = getattr(self, name)
            m.d.comb += client.ready.eq(~taken)
            taken = taken | client.valid
        for name, kind in self._clients.items():
            if kind == "read":
                m.d.comb += getattr(self, name).data.eq(self.read_data)
        # Lowest priority first. The last one's address stands there anyway: whether it asks is
        # known late, and a read that nobody wants does no harm.
        *others, (last, kind) = self._clients.items()
        m.d.comb += self.address.eq(getattr(self, last).address)
        if kind == "write":
            m.d.comb += self.write.eq(getattr(self, last).valid)
        for name, kind in reversed(others):
            with m.If(getattr(self, name).valid):
                m.d.comb += [
                    self.address.eq(getattr(self, name).address),
                    self.write.eq(kind == "write"),
                ]
        writers = [getattr(self, n) for n, kind in self._clients.items() if kind == "write"]
        m.d.comb += [
            self.write_data.eq(writers[-1].data),
            self.write_mask.eq(writers[-1].mask),
        ]
        for writer in reversed(writers[:-1]):
            with m.If(writer.valid):
                m.d.comb += [self.write_data.eq(writer.data), self.write_mask.eq(writer.mask)]
        return m
