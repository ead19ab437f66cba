"""Activation memory: one word of ``word_channels`` lanes a cycle and port, and who gets it."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import MASKED_BITS, Geometry
from hw.layout import memory_read, memory_write

SPRAM_DEPTH = 16384
SPRAM_BITS = 16

SOON = data.StructLayout({"read": 1, "write": 1})
"""Whether a reader / a writer will ask in the next cycle."""


def _access(geometry: Geometry) -> dict[str, wiring.Member]:
    """What the memory's arbiter says to it."""
    written = {"write_address": Out(geometry.address_bits)} if geometry.two_ports else {}
    return {
        "write": Out(1),
        "address": Out(geometry.address_bits),
        "write_data": Out(geometry.word_bits),
        "write_mask": Out(geometry.mask_bits),
        "read_data": In(geometry.word_bits),
        **written,
    }


class ActivationMemory(wiring.Component):
    """Memory with a write mask, a bit for `Geometry.mask_channels` lanes.

    Timing: each cycle is an access: a write, or else a read, be it that nobody wants. ``read_data``
    is valid in the cycle after a read, and in no other: single-port RAM blocks give garbage after a
    write. With `Geometry.two_ports` each cycle reads, and may write some other word as well.

    Parameters
    ----------
    geometry : Geometry
    primitive : "inferred" or "spram"
        What it is made of: whatever synthesis infers, or the iCE40 UP5K's SB_SPRAM256KA.

    Members
    -------
    write : In(1), write_data, write_mask : In
    address : In; with two ports of what is read, and write_address : In
    read_data : Out
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        if primitive not in ("inferred", "spram"):
            raise ValueError(f"primitive must be 'inferred' or 'spram', not {primitive!r}")
        if primitive == "spram" and geometry.memory_depth > SPRAM_DEPTH:
            raise ValueError(
                f"memory_depth must be at most {SPRAM_DEPTH}, not {geometry.memory_depth}"
            )
        if primitive == "spram" and geometry.two_ports:
            raise ValueError("two_ports must be False where the memory is single-port RAM")
        self._geometry = geometry
        self._primitive = primitive
        super().__init__({name: member.flip() for name, member in _access(geometry).items()})

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
        write = mem.write_port(granularity=g.activation_bits * g.mask_channels)
        m.d.comb += [
            read.en.eq(1 if g.two_ports else ~self.write),
            read.addr.eq(self.address),
            self.read_data.eq(read.data),
            write.en.eq(self.write.replicate(g.mask_bits) & self.write_mask),
            write.addr.eq(self.write_address if g.two_ports else self.address),
            write.data.eq(self.write_data),
        ]

    def _elaborate_spram(self, m: Module) -> None:
        """What a mask bit is for stands in a nibble, the unit of the block's own (above 4 bits, in
        two)."""
        g = self._geometry
        b = g.activation_bits * g.mask_channels
        nibbles = -(-b // MASKED_BITS)
        width = MASKED_BITS * nibbles
        padding = Const(0, width - b)
        written = Cat(Cat(self.write_data.word_select(i, b), padding) for i in range(g.mask_bits))
        mask = Cat(*(self.write_mask[i].replicate(nibbles) for i in range(g.mask_bits)))
        blocks = -(-len(written) // SPRAM_BITS)
        outputs = []
        for i in range(blocks):
            output = Signal(SPRAM_BITS, name=f"output{i}")
            m.submodules[f"spram{i}"] = Instance(
                "SB_SPRAM256KA",
                i_ADDRESS=Cat(self.address, Const(0, 14 - g.address_bits)),
                i_DATAIN=written[i * SPRAM_BITS : (i + 1) * SPRAM_BITS],
                i_MASKWREN=mask.word_select(i, SPRAM_BITS // MASKED_BITS),
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
            Cat(*(word[i * width : i * width + b] for i in range(g.mask_bits)))
        )


class MemoryArbiter(wiring.Component):
    """Gives each cycle of the memory to the first of its clients that asks.

    With `Geometry.two_ports` there are two to give, and readers and writers do not mind each other.

    Parameters
    ----------
    geometry : Geometry
    clients : list of dicts of name to "read" or "write"
        Highest priority first. Those of one dict never ask for a port in the same cycle: none of
        them waits for another, and no choice among them is made.

    Members
    -------
    soon : In(`SOON`), one of the first dict's readers / writers will ask in the next cycle: whether
        the others may is then known from a register
    <name> : In(memory_read) or In(memory_write)
    and what it says to the memory (`attach`)
    """

    def __init__(self, geometry: Geometry, clients: list[dict[str, str]]) -> None:
        self._geometry, self._clients = geometry, clients
        kinds = {name: kind for group in clients for name, kind in group.items()}
        signatures = {"read": memory_read(geometry), "write": memory_write(geometry)}
        super().__init__(
            {"soon": In(SOON)}
            | _access(geometry)
            | {name: In(signatures[kind]) for name, kind in kinds.items()}
        )

    def attach(self, m: Module, memory: ActivationMemory) -> None:
        """Connect the memory."""
        for name, member in _access(self._geometry).items():
            mine, its = getattr(self, name), getattr(memory, name)
            m.d.comb += its.eq(mine) if member.flow is Out else mine.eq(its)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        readers = [
            name for group in self._clients for name, kind in group.items() if kind == "read"
        ]
        writers = [name for group in self._clients for name in group if name not in readers]
        granted: dict[str, Signal] = {}
        asked = Signal(SOON)  # by one of the first
        m.d.sync += asked.eq(self.soon)
        if g.two_ports:
            self._grant(m, granted, readers, asked.read)
            self._grant(m, granted, writers, asked.write)
        else:
            self._grant(m, granted, [*readers, *writers], asked.read | asked.write)
        for name in readers:
            m.d.comb += getattr(self, name).data.eq(self.read_data)
        m.d.comb += [
            self.write.eq(Cat(granted[name] for name in writers).any()),
            self.write_data.eq(self._chosen({n: granted[n] for n in writers}, "data")),
            self.write_mask.eq(self._chosen({n: granted[n] for n in writers}, "mask")),
        ]
        if g.two_ports:
            m.d.comb += [
                self.address.eq(self._chosen({n: granted[n] for n in readers}, "address")),
                self.write_address.eq(self._chosen({n: granted[n] for n in writers}, "address")),
            ]
        else:
            m.d.comb += self.address.eq(self._chosen(granted, "address"))
        return m

    def _grant(
        self, m: Module, granted: dict[str, Signal], sharing: list[str], asked: Value
    ) -> None:
        """One port, among those that share it."""
        taken: Value = Const(0, 1)
        before = taken
        for group in self._clients:
            names = [name for name in group if name in sharing]
            for name in names:
                client = getattr(self, name)
                granted[name] = Signal(name=f"{name}_granted")
                m.d.comb += [client.ready.eq(~taken), granted[name].eq(client.valid & ~taken)]
            asks = Cat(getattr(self, name).valid for name in names).any()
            if names:
                before, taken = taken, taken | (asked if group is self._clients[0] else asks)
        # Whether the last one asks is known late, and a read that nobody wants does no harm: its
        # address stands there unless somebody else asks.
        last, kind = list(self._clients[-1].items())[-1]
        if kind == "read" and last in sharing:
            m.d.comb += granted[last].eq(~before)

    def _chosen(self, granted: dict[str, Signal], member: str) -> Value:
        """A member of the client that is granted, zero if none is: two a LUT4, where a chain of
        choices takes one, and is as deep as there are clients."""
        values = [getattr(getattr(self, name), member) for name in granted]
        masked = [v & g.replicate(len(v)) for v, g in zip(values, granted.values(), strict=True)]
        return reduce(or_, masked)
