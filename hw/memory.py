"""Activation memory: one port, one word of ``word_channels`` lanes a cycle, and who gets it."""

from __future__ import annotations

from functools import reduce
from operator import or_

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
    clients : list of dicts of name to "read" or "write"
        Highest priority first. Those of one dict never ask in the same cycle: none of them waits
        for another, and no choice among them is made.

    Members
    -------
    soon : In(1), one of the first dict's clients will ask in the next cycle: whether the others
        may is then known from a register
    <name> : In(memory_read) or In(memory_write)
    """

    def __init__(self, geometry: Geometry, clients: list[dict[str, str]]) -> None:
        self._clients = clients
        kinds = {name: kind for group in clients for name, kind in group.items()}
        signatures = {"read": memory_read(geometry), "write": memory_write(geometry)}
        ports = {
            "soon": In(1),
            "write": Out(1),
            "address": Out(geometry.address_bits),
            "write_data": Out(geometry.word_bits),
            "write_mask": Out(geometry.word_channels),
            "read_data": In(geometry.word_bits),
        }
        super().__init__(ports | {name: In(signatures[kind]) for name, kind in kinds.items()})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        taken: Value = Const(0, 1)
        before = taken
        asked = Signal()  # by one of the first
        m.d.sync += asked.eq(self.soon)
        granted: dict[str, Signal] = {}
        writers = []
        for group in self._clients:
            for name, kind in group.items():
                client = getattr(self, name)
                granted[name] = Signal(name=f"{name}_granted")
                m.d.comb += [client.ready.eq(~taken), granted[name].eq(client.valid & ~taken)]
                if kind == "write":
                    writers.append(name)
                else:
                    m.d.comb += client.data.eq(self.read_data)
            asks = Cat(getattr(self, name).valid for name in group).any()
            before, taken = taken, taken | (asked if group is self._clients[0] else asks)
        # Whether the last one asks is known late, and a read that nobody wants does no harm: its
        # address stands there unless somebody else asks.
        last, last_kind = list(self._clients[-1].items())[-1]
        if last_kind == "read":
            m.d.comb += granted[last].eq(~before)
        m.d.comb += [
            self.write.eq(Cat(granted[name] for name in writers).any()),
            self.address.eq(self._chosen(granted, "address")),
            self.write_data.eq(self._chosen({n: granted[n] for n in writers}, "data")),
            self.write_mask.eq(self._chosen({n: granted[n] for n in writers}, "mask")),
        ]
        return m

    def _chosen(self, granted: dict[str, Signal], member: str) -> Value:
        """A member of the client that is granted, zero if none is: two a LUT4, where a chain of
        choices takes one, and is as deep as there are clients."""
        values = [getattr(getattr(self, name), member) for name in granted]
        masked = [v & g.replicate(len(v)) for v, g in zip(values, granted.values(), strict=True)]
        return reduce(or_, masked)
