"""The loader: takes the Image's stream apart and holds what is needed next."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import GAIN_BITS, MAGIC, Geometry
from hw.layout import stride_put, struct
from hw.pump import lane_domain, second_half, sum_domain

COMPARED_BITS = 16
"""Of a word of the Image's head that are compared at once."""


def loads_nothing(record: data.View) -> Value:
    """Whether a layer has neither parameters nor weights: it is an average pool."""
    pool: Value = record.pool
    return pool & ~record.maximum if len(record.maximum) else pool


def _differences(word: Value, expected: int) -> list[Value]:
    """Whether each part of a word differs: little enough logic for a word fresh out of memory."""
    starts = range(0, len(word), COMPARED_BITS)
    masked = (1 << COMPARED_BITS) - 1
    return [word[at : at + COMPARED_BITS] != (expected >> at & masked) for at in starts]


class Loader(wiring.Component):
    """Header, records, parameters and weights, each to its place, ahead of their use.

    Parameters lie in two banks, weights in a ring: a group's are loaded while the group before is
    computed. The next record is taken when the layer before is done.

    Members
    -------
    i : In(stream of stream_bits), the Image, again for each picture
    header : Out, valid while `known`; but `Geometry.intake_fields` until the first `next_layer`
    known : Out(1), low while the Image's header is being loaded
    input_ready : Out(1), header and the input's parameters are loaded
    input_done : In(1), strobe, frees those parameters
    next_layer : In(1), strobe, the next record is wanted
    record : Out, anything until the first one is there; record_ready : Out(1), strobe, it is
        complete, and so are the strides
    strides : Out(`stride_put`), words of a layer's strides as they come
    group_loaded : Out(1), strobe, one more group has all it needs
    group_done : In(1), strobe, frees the oldest group
    image_done : In(1), strobe, the picture is done: the Image may begin again
    error : Out(1), the stream is no Image for this geometry; until reset
    bias_address : In; bias, gain : Out, a channel's, one cycle later (of `sum_domain`)
    stairs_address : In; stairs : Out, the other parameters of a channel, in the same time
    weight_address : In; weights : Out, one cycle later; those of each pass in turn
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
                "strides": Out(stride_put(g)),
                "record_ready": Out(1),
                "group_loaded": Out(1),
                "group_done": In(1),
                "image_done": In(1),
                "error": Out(1),
                "bias_address": In(range(2 * g.groups_at_once * g.output_lanes)),
                "bias": Out(signed(g.bias_bits)),
                "gain": Out(GAIN_BITS),
                "stairs_address": In(range(2 * g.groups_at_once * g.output_lanes)),
                "stairs": Out(struct(g.stairs_fields)),
                "weight_address": In(range(g.weight_depth)),
                "weights": Out(g.pass_weight_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        header_words, record_words = g.words(g.header_fields), g.record_words
        stride_words = record_words - g.words(g.record_fields)
        # The first words only say what the rest is; they are checked and not kept.
        known = MAGIC | g.digest << 32
        expected = [known >> at & (1 << g.stream_bits) - 1 for at in range(0, 64, g.stream_bits)]
        intake_words = g.words(g.intake_fields)
        header = Signal((header_words - intake_words - len(expected)) * g.stream_bits)
        # Room for the record, and before the first layer's has come for what its place holds.
        room = max(record_words - stride_words, g.intake_from + intake_words)
        record = Signal(room * g.stream_bits)
        intake = record[-intake_words * g.stream_bits :]
        words = Cat(Const(0, len(expected) * g.stream_bits), header, intake)
        m.d.comb += [
            self.header.as_value().eq(words[: len(self.header.as_value())]),
            self.record.as_value().eq(record[: len(self.record.as_value())]),
        ]
        word, taken = self.i.payload, Signal()
        differs = Signal(len(_differences(word, 0)))
        count = Signal(range(max(header_words, record_words)))
        m.d.comb += self.known.eq(1)
        part_bits = (g.stride_words - 1).bit_length()
        part_of_row, row = count[:part_bits], count[part_bits:]
        of_strides = Signal()
        m.d.comb += [
            of_strides.eq(row < 1 << len(self.strides.row)),
            self.strides.row.eq(row),
            self.strides.word.eq(word),
        ]
        put_param, room_param, of_input = self._params(m)
        put_weight, room_weight = self._weights(m)
        params: Value | int = g.output_lanes * g.param_words
        if g.paired_groups:
            params = params << self.record.paired
        most = max(g.groups_at_once * g.output_lanes, 16)
        left = Signal(range(most * g.param_words + 1))
        steps = Signal(len(self.record.weight_words))
        group = Signal(len(self.record.groups_less))
        part = Signal(range(max(g.weight_bits // g.stream_bits, 2)))
        # Where a word goes, from a flip-flop each: decoding the state would come before every use.
        kept, as_weight = Signal(init=1), Signal()
        as_input, as_param = Signal(), Signal()
        goes = {
            **dict.fromkeys(("header", "record"), kept),
            "input": as_input,
            "params": as_param,
            "weights": as_weight,
        }
        m.d.comb += [
            put_param.eq(self.i.valid & (as_input | (as_param & room_param))),
            put_weight.eq(self.i.valid & as_weight & room_weight),
            of_input.eq(as_input),
            self.i.ready.eq(kept | as_input | (as_param & room_param) | (as_weight & room_weight)),
            taken.eq(self.i.valid & self.i.ready),
        ]

        def enter(state: str) -> None:
            m.next = state
            for place in (kept, as_input, as_param, as_weight):
                m.d.sync += place.eq(place is goes.get(state))

        with m.FSM():
            with m.State("header"):
                m.d.comb += self.known.eq(0)
                with m.If(self.i.valid):  # and taken: nothing is in the way here
                    m.d.sync += count.eq(count + 1)
                    for i, value in enumerate(expected):
                        with m.If(count == i):
                            m.d.sync += differs.eq(Cat(_differences(word, value)))
                    self._keep(m, header, count, word, len(expected))
                    self._keep(m, intake, count, word, header_words - intake_words)
                    with m.If(count == header_words - 1):
                        m.d.sync += count.eq(0)
                        enter("counted")
                with m.If(differs.any()):  # by the word before: more than those compared come
                    enter("error")
            with m.State("counted"):
                m.d.comb += self.known.eq(0)
                channels = self.header.channels + 1
                m.d.sync += left.eq(sum((channels for _ in range(g.param_words - 1)), channels))
                enter("input")
            with m.State("input"):
                with m.If(self.i.valid):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 1):
                        enter("input ready")
            with m.State("input ready"):
                m.d.comb += self.input_ready.eq(1)
                with m.If(self.input_done):
                    enter("idle")
            with m.State("idle"):
                with m.If(self.next_layer):
                    enter("record")
            with m.State("record"):
                with m.If(self.i.valid):
                    m.d.sync += count.eq(count + 1)
                    self._keep(m, record, count, word, stride_words)
                    m.d.comb += self.strides.parts.eq(of_strides << part_of_row)
                    with m.If(count == record_words - 1):
                        m.d.sync += count.eq(0)
                        enter("recorded")
            with m.State("recorded"):
                m.d.comb += self.record_ready.eq(1)
                m.d.sync += [group.eq(0), left.eq(params)]
                with m.If(loads_nothing(self.record)):
                    enter("idle")
                with m.Else():
                    enter("params")
            with m.State("params"):
                m.d.sync += [steps.eq(self.record.weight_words), part.eq(0)]
                with m.If(taken):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 1):
                        enter("weights")
            with m.State("weights"):
                m.d.sync += left.eq(params)
                with m.If(taken):
                    m.d.sync += part.eq(part + 1)
                    with m.If(part == g.weight_bits // g.stream_bits - 1):
                        m.d.sync += [part.eq(0), steps.eq(steps - 1)]
                        with m.If(steps == 1):
                            m.d.comb += self.group_loaded.eq(1)
                            m.d.sync += group.eq(group + 1)
                            enter("params")
                            with m.If(group == self.record.groups_less):
                                enter("idle")
                                with m.If(self.record.last):
                                    enter("last")
            with m.State("last"):
                with m.If(self.image_done):
                    enter("header")
            with m.State("error"):
                m.d.comb += [self.error.eq(1), self.known.eq(0)]
        return m

    def _keep(self, m: Module, kept: Value, count: Signal, word: Value, before: int = 0) -> None:
        """Put a word in its place: bits that nobody reads then cost nothing."""
        for i in range(len(kept) // len(word)):
            with m.If(count == before + i):
                m.d.sync += kept.word_select(i, len(word)).eq(word)

    def _params(self, m: Module) -> tuple[Signal, Signal, Signal]:
        """Two banks, filled in turn; returns (put a word, a bank is free, it is the input's)."""
        g = self._geometry
        size, parts = g.groups_at_once * g.output_lanes, g.param_words
        put, room = Signal(name="put_param"), Signal(name="room_param", init=1)
        m.submodules.params = mem = memory.Memory(
            shape=parts * g.stream_bits, depth=2 * size, init=[]
        )
        write = mem.write_port(granularity=g.stream_bits)
        biases, stairs = (mem.read_port(domain=sum_domain(g)) for _ in range(2))
        bank, index = Signal(), Signal(range(max(size, 2)))
        part = Signal(range(max(parts, 2)))
        complete = put & (part == parts - 1)
        held = Signal(range(3))  # groups whose parameters are loaded, or being loaded
        of_input = Signal()  # whose channels may leave a bank part empty: `input_done` ends it
        full: Value = index == size - 1
        if g.paired_groups:
            full |= ~self.record.paired & (index == g.output_lanes - 1)
        last = complete & full & ~of_input
        m.d.comb += [
            write.en.eq(put << part),
            write.addr.eq(Cat(index, bank) if size > 1 else bank),
            write.data.eq(self.i.payload.replicate(parts)),
            biases.addr.eq(self.bias_address),
            self.bias.eq(biases.data[: g.bias_bits].as_signed()),
            stairs.addr.eq(self.stairs_address),
            self.gain.eq(biases.data[g.bias_bits : g.early_bits]),
            self.stairs.as_value().eq(stairs.data[g.early_bits : g.param_bits]),
        ]
        with m.If(put):
            m.d.sync += part.eq(part + 1)
        with m.If(complete):
            m.d.sync += [part.eq(0), index.eq(index + 1)]
        with m.If(last | self.input_done):
            m.d.sync += [bank.eq(~bank), index.eq(0)]
        after = Signal.like(held)
        m.d.comb += after.eq(held + last - self.group_done)
        m.d.sync += [held.eq(after), room.eq(after != 2)]
        return put, room, of_input

    def _weights(self, m: Module) -> tuple[Signal, Signal]:
        """The ring; returns (put, there is room)."""
        g = self._geometry
        put, room = Signal(name="put_weight"), Signal(name="room_weight", init=1)
        # A word is what the lanes take in a pass; a step has one for each of them.
        m.submodules.weights = mem = memory.Memory(
            shape=g.pass_weight_bits, depth=g.weight_depth * g.pump, init=[]
        )
        slices = g.pass_weight_bits // g.stream_bits
        parts = slices * g.pump
        write = mem.write_port(granularity=g.stream_bits)
        read = mem.read_port(domain=lane_domain(g))
        part, address = Signal(range(max(parts, 2))), Signal(range(g.weight_depth))
        free = Signal(range(g.weight_depth + 1), init=g.weight_depth)
        complete = put & (part == parts - 1)
        slice_bits = (slices - 1).bit_length()
        of_pass = part[slice_bits : slice_bits + (g.pump - 1).bit_length()]
        m.d.comb += [
            write.en.eq(put << part[:slice_bits]),
            write.addr.eq(Cat(of_pass, address)),
            write.data.eq(self.i.payload.replicate(slices)),
            self.weights.eq(read.data),
        ]
        if g.pump == 1:
            m.d.comb += read.addr.eq(self.weight_address)
        else:  # the first pass is addressed in the cycle's second half, for the next one's first
            step, second = Signal.like(self.weight_address, reset_less=True), second_half(m)
            with m.If(~second):
                m.d.fast += step.eq(self.weight_address)
            m.d.comb += read.addr.eq(Cat(~second, step))
        with m.If(put):
            m.d.sync += part.eq(part + 1)
        with m.If(complete):
            m.d.sync += [part.eq(0), address.eq(address + 1)]
        released = Mux(self.group_done, self.record.weight_words, 0)
        after = Signal.like(free)
        m.d.comb += after.eq(free - complete + released)
        m.d.sync += [free.eq(after), room.eq(after != 0)]
        return put, room
