"""The loader: takes the Image's stream apart and holds what is needed next."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import MAGIC, Geometry
from hw.layout import struct


def loads_nothing(record: data.View) -> Value:
    """Whether a layer has neither parameters nor weights: it is an average pool."""
    pool: Value = record.pool
    return pool & ~record.maximum if len(record.maximum) else pool


class Loader(wiring.Component):
    """Header, records, parameters and weights, each to its place, ahead of their use.

    Parameters lie in two banks, weights in a ring: a group's are loaded while the group before is
    computed. The next record is taken when the layer before is done.

    Members
    -------
    i : In(stream of stream_bits), the Image, again for each picture
    header : Out, valid while `known`
    known : Out(1), low while the Image's header is being loaded
    input_ready : Out(1), header and the input's parameters are loaded
    input_done : In(1), strobe, frees those parameters
    next_layer : In(1), strobe, the next record is wanted
    record : Out; record_ready : Out(1), strobe, it is complete
    group_loaded : Out(1), strobe, one more group has all it needs
    group_done : In(1), strobe, frees the oldest group
    image_done : In(1), strobe, the picture is done: the Image may begin again
    error : Out(1), the stream is no Image for this geometry; until reset
    param_address : In, param_data : Out, one cycle later
    weight_address : In, weights : Out, one cycle later
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = g = geometry
        super().__init__(
            {
                "i": In(stream.Signature(g.stream_bits)),
                "header": Out(struct(g.header_fields)),
                "known": Out(1, init=1),
                "input_ready": Out(1),
                "input_done": In(1),
                "next_layer": In(1),
                "record": Out(struct(g.record_fields)),
                "record_ready": Out(1),
                "group_loaded": Out(1),
                "group_done": In(1),
                "image_done": In(1),
                "error": Out(1),
                "param_address": In(range(2 * g.output_lanes)),
                "param_data": Out(g.param_words * g.stream_bits),
                "weight_address": In(range(g.weight_depth)),
                "weights": Out(g.weight_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        header_words, record_words = g.words(g.header_fields), g.words(g.record_fields)
        # The first words only say what the rest is; they are checked and not kept.
        known = MAGIC | g.digest << 32
        expected = [known >> at & (1 << g.stream_bits) - 1 for at in range(0, 64, g.stream_bits)]
        header = Signal((header_words - len(expected)) * g.stream_bits)
        record = Signal(record_words * g.stream_bits)
        m.d.comb += [
            self.header.as_value().eq(
                Cat(Const(0, len(expected) * g.stream_bits), header)[: len(self.header.as_value())]
            ),
            self.record.as_value().eq(record[: len(self.record.as_value())]),
        ]
        word, taken = self.i.payload, self.i.valid & self.i.ready
        count = Signal(range(max(header_words, record_words)))
        m.d.comb += self.known.eq(1)
        put_param, room_param, of_input = self._params(m)
        put_weight, room_weight = self._weights(m)
        left = Signal(range(max(g.output_lanes, 16) * g.param_words + 1))
        steps = Signal(len(self.record.weight_words))
        group = Signal(len(self.record.groups_less))
        part = Signal(range(max(g.weight_bits // g.stream_bits, 2)))

        with m.FSM():
            with m.State("header"):
                m.d.comb += [self.i.ready.eq(1), self.known.eq(0)]
                with m.If(taken):
                    m.d.sync += [header.eq(Cat(header[g.stream_bits :], word)), count.eq(count + 1)]
                    for i, value in enumerate(expected):
                        with m.If((count == i) & (word != value)):
                            m.next = "error"
                    with m.If(count == header_words - 1):
                        m.d.sync += count.eq(0)
                        m.next = "counted"
            with m.State("counted"):
                m.d.comb += self.known.eq(0)
                channels = self.header.channels + 1
                m.d.sync += left.eq(sum((channels for _ in range(g.param_words - 1)), channels))
                m.next = "input"
            with m.State("input"):
                m.d.comb += [self.i.ready.eq(1), put_param.eq(taken), of_input.eq(1)]
                with m.If(taken):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 1):
                        m.next = "input ready"
            with m.State("input ready"):
                m.d.comb += self.input_ready.eq(1)
                with m.If(self.input_done):
                    m.next = "idle"
            with m.State("idle"):
                with m.If(self.next_layer):
                    m.next = "record"
            with m.State("record"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(taken):
                    m.d.sync += [record.eq(Cat(record[g.stream_bits :], word)), count.eq(count + 1)]
                    with m.If(count == record_words - 1):
                        m.d.sync += count.eq(0)
                        m.next = "recorded"
            with m.State("recorded"):
                m.d.comb += self.record_ready.eq(1)
                m.d.sync += [group.eq(0), left.eq(g.output_lanes * g.param_words)]
                with m.If(loads_nothing(self.record)):
                    m.next = "idle"
                with m.Else():
                    m.next = "params"
            with m.State("params"):
                m.d.comb += [self.i.ready.eq(room_param), put_param.eq(taken)]
                m.d.sync += [steps.eq(self.record.weight_words), part.eq(0)]
                with m.If(taken):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 1):
                        m.next = "weights"
            with m.State("weights"):
                m.d.comb += [self.i.ready.eq(room_weight), put_weight.eq(taken)]
                m.d.sync += left.eq(g.output_lanes * g.param_words)
                with m.If(taken):
                    m.d.sync += part.eq(part + 1)
                    with m.If(part == g.weight_bits // g.stream_bits - 1):
                        m.d.sync += [part.eq(0), steps.eq(steps - 1)]
                        with m.If(steps == 1):
                            m.d.comb += self.group_loaded.eq(1)
                            m.d.sync += group.eq(group + 1)
                            m.next = "params"
                            with m.If(group == self.record.groups_less):
                                m.next = "idle"
                                with m.If(self.record.last):
                                    m.next = "last"
            with m.State("last"):
                with m.If(self.image_done):
                    m.next = "header"
            with m.State("error"):
                m.d.comb += [self.error.eq(1), self.known.eq(0)]
        return m

    def _params(self, m: Module) -> tuple[Signal, Signal, Signal]:
        """Two banks, filled in turn; returns (put a word, a bank is free, it is the input's)."""
        g = self._geometry
        size, parts = g.output_lanes, g.param_words
        put, room = Signal(name="put_param"), Signal(name="room_param")
        m.submodules.params = mem = memory.Memory(
            shape=parts * g.stream_bits, depth=2 * size, init=[]
        )
        write, read = mem.write_port(granularity=g.stream_bits), mem.read_port()
        bank, index = Signal(), Signal(range(max(size, 2)))
        part = Signal(range(max(parts, 2)))
        complete = put & (part == parts - 1)
        held = Signal(range(3))  # groups whose parameters are loaded, or being loaded
        of_input = Signal()  # whose channels may leave a bank part empty: `input_done` ends it
        last = complete & (index == size - 1) & ~of_input
        m.d.comb += [
            write.en.eq(put << part),
            write.addr.eq(Cat(index, bank) if size > 1 else bank),
            write.data.eq(self.i.payload.replicate(parts)),
            read.addr.eq(self.param_address),
            self.param_data.eq(read.data),
            room.eq(held != 2),
        ]
        with m.If(put):
            m.d.sync += part.eq(part + 1)
        with m.If(complete):
            m.d.sync += [part.eq(0), index.eq(index + 1)]
        with m.If(last | self.input_done):
            m.d.sync += [bank.eq(~bank), index.eq(0)]
        m.d.sync += held.eq(held + last - self.group_done)
        return put, room, of_input

    def _weights(self, m: Module) -> tuple[Signal, Signal]:
        """The ring; returns (put, there is room)."""
        g = self._geometry
        put, room = Signal(name="put_weight"), Signal(name="room_weight")
        m.submodules.weights = mem = memory.Memory(
            shape=g.weight_bits, depth=g.weight_depth, init=[]
        )
        parts = g.weight_bits // g.stream_bits
        write, read = mem.write_port(granularity=g.stream_bits), mem.read_port()
        part, address = Signal(range(max(parts, 2))), Signal(range(g.weight_depth))
        free = Signal(range(g.weight_depth + 1), init=g.weight_depth)
        complete = put & (part == parts - 1)
        m.d.comb += [
            write.en.eq(put << part),
            write.addr.eq(address),
            write.data.eq(self.i.payload.replicate(parts)),
            read.addr.eq(self.weight_address),
            self.weights.eq(read.data),
            room.eq(free != 0),
        ]
        with m.If(put):
            m.d.sync += part.eq(part + 1)
        with m.If(complete):
            m.d.sync += [part.eq(0), address.eq(address + 1)]
        released = Mux(self.group_done, self.record.weight_words, 0)
        m.d.sync += free.eq(free - complete + released)
        return put, room
