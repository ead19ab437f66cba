"""The requantiser: from accumulators to residuals, activations, scores; and all their traffic."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from compiler import arith
from compiler.geometry import GAIN_BITS, NO_CHANNEL, POOL_SHIFT, Geometry
from hw.layout import memory_read, memory_write, side_by_side, stride_put, struct
from hw.memory import SOON
from hw.pointer import Pointer
from hw.pump import second_half, sum_domain

WHOLE_TICKS = frozenset({3, 6, *range(9, 27, 2)})
"""Ticks that have a register where sums are taken at the engine's clock."""

STAIRS_CYCLES = 3
"""How much later than its bias a channel's staircase is addressed, and half a cycle, where a slot
has two ticks."""

LOW_BITS = 16
"""Of a sum whose carry is known within half a cycle: the rest is added with it and without."""

RESIDUAL_MEMBERS = {"strides", "pooled", "pooled_place", "residual_read", "residual_write"}
"""Those that there are only with `Geometry.residuals`."""

PLACES = ("word_first", "word_end", "word_last", "tile_end", "row_end", "tile_last")


def value_layout(geometry: Geometry) -> data.StructLayout:
    """Where a slot stands that travels through the requantiser: `Geometry.slot_values` values.

    pixel : pixel lane of its first value
    fits : a bit for each pixel of it, which lies in the map (the last tile of a row may reach
        beyond it)
    word_first, word_end : it begins / ends a memory word of residuals
    word_last : it is in the tile's last memory word of residuals
    tile_end : last channels of the tile
    divide : not valid yet: its addend goes to the divider first
    row_end, tile_last : last tile of a row / of the group
    """
    return data.StructLayout(
        {"valid": 1, "pixel": range(max(geometry.pixel_lanes, 2)), "fits": geometry.slot_pixels}
        | {"divide": int(geometry.addend_division)}
        | dict.fromkeys(PLACES, 1)
    )


def pooled_bits(geometry: Geometry) -> int:
    """Width of a pooling window's sum times 36/count."""
    return geometry.residual_bits + (arith.POOL_UNIT - 1).bit_length()


TILE = data.StructLayout({"first_column": 1, "row_end": 1, "first_row": 1, "last_row": 1})
"""Whether a tile is the first / last of its row, in the first / last row."""


class TileCounter(wiring.Component):
    """Where in a group of tiles one is.

    Members
    -------
    record : In
    restart : In(1), back to the group's first tile
    step : In(1), on to the next tile, wrapping at the end of the group
    o : Out(`TILE`)
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "restart": In(1),
                "step": In(1),
                "o": Out(TILE),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        r, o = self.record, self.o
        # Downwards, so that the end is known a cycle ahead without a look at the record.
        columns, rows = Signal.like(r.tiles_less), Signal.like(r.height_out_less)
        with m.If(self.step):
            m.d.sync += [
                columns.eq(Mux(o.row_end, r.tiles_less, columns - 1)),
                o.row_end.eq(Mux(o.row_end, r.tiles_less == 0, columns == 1)),
                o.first_column.eq(o.row_end),
            ]
            with m.If(o.row_end):
                m.d.sync += [
                    rows.eq(Mux(o.last_row, r.height_out_less, rows - 1)),
                    o.last_row.eq(Mux(o.last_row, r.height_out_less == 0, rows == 1)),
                    o.first_row.eq(o.last_row),
                ]
        with m.If(self.restart):
            m.d.sync += [
                columns.eq(r.tiles_less),
                rows.eq(r.height_out_less),
                o.row_end.eq(r.tiles_less == 0),
                o.last_row.eq(r.height_out_less == 0),
                o.first_column.eq(1),
                o.first_row.eq(1),
            ]
        return m


class Requantiser(wiring.Component):
    """Takes a tile's accumulators slot by slot: output lane by output lane, pixel by pixel.

    Each value passes: bias and shift (`arith.shift`), residual addition (`arith.add_residual`),
    and the division of its staircase (`arith.restoring_division`), a slot of `Geometry.slot_values`
    values a cycle, in the domain `hw.pump.sum_domain`. A tile takes `Geometry.tile_cycles`.

    What says where a value belongs, what is read for it and what is written stays in ``sync``, a
    slot at a time. A slot's values are the pixels of a channel side by side, each in a data path of
    its own (`Geometry.slot_abreast`); or they follow one another at the data's registers, the first
    in a cycle's first half wherever ``sync`` meets them (`Geometry.slot_ticks`).

    Its memory accesses must not be held up by anything, so `gate` lets a tile of the residual
    stream start only where none of them (`Geometry.accesses`) meets one of the tile before.

    While the image is taken in (`input_mode`), and in the last layer, one value at a time goes to a
    serial divider instead, by the first data path, and the next waits for `quotient_done`. Where
    addends are divided each goes there first, and comes back as the quotient, less its zero, to be
    added and written. Such a value, and a pooled one, fills its slot twice where the slot's values
    follow one another.

    Members
    -------
    record : In; strides : In(`stride_put`), of the residual stream (`hw.pointer`)
    input_mode : In(1); channels : In(3), of the image, less one
    layer_start : In(1), strobe
    start : In(1), a tile's last step is issued (see `hw.window.WindowBuffer`)
    gate : Out(1), a tile's last step may be issued
    sum_address : Out, of the first of a tile's sums that are taken together (`hw.lanes.Lanes`);
        sum : In, `slot_abreast` of them, one cycle of `hw.pump.sum_domain` later
    tile : In(`TILE`), of the tile being taken; tile_step : Out(1), it is done
    byte_valid, byte : In, one pixel of one channel; byte_ready : Out, it has been taken
    pooled : In, sums of pooling windows times 36/count, `slot_abreast` of them; pooled_place :
        In(`value_layout`). This and all else of `RESIDUAL_MEMBERS` only with `Geometry.residuals`
    bias_address, stairs_address : Out; bias and gain, stairs : In, in the same time
        (`hw.loader.Loader`)
    input_done : In(1), strobe: the parameters of the input, or of a layer that does not come here,
        are not needed any more
    residual_read, residual_write, activation_write : memory ports
    soon : Out(`hw.memory.SOON`), one of them will ask in the next cycle
    dividend, divisor, keep, quotient_start : Out, to the serial divider
    quotient_done : In(1); quotient : In, holds until the next start
    group_done : Out(1), strobe: the group's last value is through
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        self._geometry = g = geometry
        self._primitive = primitive
        self._domain = sum_domain(g)
        self._lead = g.lane_cycles - 2  # a sum is addressed two cycles after its tile has begun
        pooled, residual = (pooled_bits(g), g.residual_bits) if g.residuals else (0, 0)
        self.value_bits = max(g.accumulator_bits, g.bias_bits, g.pixel_bits, pooled) + 1
        self.x_bits = max(g.accumulator_bits, g.pixel_bits, residual)
        self.quotient_bits = g.activation_offset_bits + 1
        self.dividend_bits = max(self.x_bits + g.fraction_bits, g.offset_bits) + 1
        members = {
            "record": In(struct(g.record_fields)),
            "strides": In(stride_put(g)),
            "input_mode": In(1),
            "channels": In(3),
            "layer_start": In(1),
            "start": In(1),
            "gate": Out(1),
            "sum_address": Out(range(max(g.output_lanes * g.pixel_lanes, 2))),
            "sum": In(g.slot_abreast * g.accumulator_bits),
            "tile": In(TILE),
            "tile_step": Out(1),
            "byte_valid": In(1),
            "byte": In(8),
            "byte_ready": Out(1),
            "pooled": In(g.slot_abreast * pooled_bits(g)),
            "pooled_place": In(value_layout(g)),
            "bias_address": Out(range(2 * g.groups_at_once * g.output_lanes)),
            "bias": In(signed(g.bias_bits)),
            "gain": In(GAIN_BITS),
            "stairs_address": Out(range(2 * g.groups_at_once * g.output_lanes)),
            "stairs": In(struct(g.stairs_fields)),
            "input_done": In(1),
            "residual_read": Out(memory_read(g)),
            "residual_write": Out(memory_write(g)),
            "activation_write": Out(memory_write(g)),
            "soon": Out(SOON),
            "dividend": Out(signed(self.dividend_bits)),
            "divisor": Out(g.divisor_bits),
            "keep": Out(1),
            "quotient_start": Out(1),
            "quotient_done": In(1),
            "quotient": In(arith.SCORE_BITS),
            "group_done": Out(1),
        }
        left_out = set() if g.residuals else RESIDUAL_MEMBERS
        super().__init__({n: member for n, member in members.items() if n not in left_out})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g, r = self._geometry, self.record
        self._reading: Value = Const(0, 1)  # in the next cycle
        self._writing: list[Value] = []
        self._divides = r.divide if g.addend_division else Const(0, 1)
        # A value fills its slot; there is no such slot where a slot is one value.
        self._single = (r.pool if g.residuals else Const(0, 1)) | self._divides
        self._second = Const(0, 1)
        if g.slot_ticks > 1:  # the same as `second_half`, from a flip-flop
            self._second = Signal(name="second")
            m.d[self._domain] += self._second.eq(~second_half(m))
        begin = self._pace(m)
        first = self._sequence(m, begin)
        added = middle = self._delay(m, first, 3, "middle")  # whose residual is added
        if g.residuals:
            # A pooled value is in the register that sums of the lanes are in then.
            pooled = self._delay(m, self.pooled_place, 1, "pooled")
            added = Signal(middle.shape())
            m.d.comb += added.eq(Mux(r.pool, pooled.as_value(), middle.as_value()))
        x, large, gain = self._value(m, first, added)
        at_x = self._delay(m, added, g.value_cycles - 3, "at_x")
        turned, kept = self._turn(m, x, large, gain, added)
        if g.residuals:
            self._write_residuals(m, kept, at_x)
        q = self._divide(m, turned, gain, middle)
        written = self._write_activations(m, q, at_x)
        scored = self._sequence_done & self._tile_last & ~self.input_mode
        m.d.comb += [
            self.soon.read.eq(self._reading),
            self.soon.write.eq(Cat(self._writing).any()),
            self.group_done.eq(Mux(r.last, scored, written)),
        ]
        return m

    def _delay(self, m: Module, value: data.View, cycles: int, name: str) -> data.View:
        for i in range(cycles):
            later = Signal(value.shape(), name=f"{name}_q{i + 1}")
            m.d.sync += later.eq(value)
            value = later
        return value

    def _ticks(self, m: Module, number: int, values: list[Value], name: str) -> list[Value]:
        """The same of values side by side."""
        return [self._tick(m, number, value, name) for value in values]

    def _tick(
        self, m: Module, number: int, value: Value, name: str, clear: Value | None = None
    ) -> Signal:
        """A value at tick ``number``, counted from its sum's address.

        Where values follow one another ticks are those of the lanes' clock, and each has a
        register. Else they are half cycles; those of `WHOLE_TICKS` have one, and what others would
        hold is logic in between.
        """
        later = Signal(value.shape(), name=f"{name}_t{number}", reset_less=True)
        if self._geometry.slot_ticks == 1 and number not in WHOLE_TICKS:
            m.d.comb += later.eq(value if clear is None else Mux(clear, 0, value))
            return later
        m.d[self._domain] += later.eq(value)
        if clear is not None:
            with m.If(clear):
                m.d[self._domain] += later.eq(0)
        return later

    def _pace(self, m: Module) -> Signal:
        """When tiles may end, and when their sequence begins; returns the latter."""
        g = self._geometry
        self._sequence_done = Signal()
        clear = self._book(m) | ~self.record.residual if g.residuals else Const(1, 1)
        cooldown = Signal(range(g.tiles_apart))
        scoring = Signal()
        slow = self.record.last | self._divides
        with m.If(self.start):
            m.d.sync += [cooldown.eq(g.tiles_apart - 1), scoring.eq(slow)]
        with m.Elif(cooldown != 0):
            m.d.sync += cooldown.eq(cooldown - 1)
        with m.If(self._sequence_done):
            m.d.sync += scoring.eq(0)
        # Known a cycle ahead, but for a tile that ends in this one.
        m.d.sync += self.gate.eq(~self.start & (cooldown[1:] == 0) & clear & ~scoring)
        late = Signal(self._lead)
        m.d.sync += late.eq(Cat(self.start, late))
        return Cat(self.start, late)[-1]

    def _book(self, m: Module) -> Value:
        """Books the accesses of tiles of the residual stream; whether another's would meet none."""
        g = self._geometry
        pattern = sum(1 << cycle for cycle in g.booked)
        booked = Signal(pattern.bit_length())  # the coming cycles, of the first value's place
        booking = (self.start & self.record.residual).replicate(len(booked)) & pattern
        if g.addend_division and g.written_behind > 0:
            # Its values took their own time, so the last write comes later than was booked.
            ends = self._sequence_done & self._divides
            booking = booking | (ends << g.written_behind)
        m.d.sync += booked.eq((booked | booking) >> 1)
        return (booked >> 1) & pattern == 0

    def _sequence(self, m: Module, begin: Signal) -> data.View:
        """Walks the slots of a tile; returns the place of this cycle's."""
        g, r = self._geometry, self.record
        lanes, cycles, together = g.pixel_lanes, g.channel_cycles, g.slot_channels
        running, bank = Signal(), Signal()
        given, waiting = Signal(), Signal()  # slow: the value is given; its quotient is not there
        returned = Signal()  # dividing: the quotient has come and is given
        channel, part = Signal(range(max(g.output_lanes, 2))), Signal(range(max(cycles, 2)))
        image_channel = Signal(3)
        slow = Signal()  # the record, and the mode, have long stood when a value comes
        m.d.sync += slow.eq(self.input_mode | r.last | self._divides)
        held = self._divides & ~returned
        final_part, last_channel = Signal(), Signal()  # the latter compared as it comes
        done = self._sequence_done
        tile_done, tile_last = done, self.tile.row_end & self.tile.last_row
        word_last = channel >= g.output_lanes - g.residual_channels
        banks: Value = bank
        if g.paired_groups:  # a tile has the sums of two
            turn, last_turn = Signal(), Signal()
            m.d.comb += last_turn.eq(turn | ~r.paired)
            with m.If(done):
                m.d.sync += turn.eq(~last_turn & ~self.input_mode)
            tile_done, tile_last, word_last = (
                there & last_turn for there in (tile_done, tile_last, word_last)
            )
            banks = Cat(turn, bank)
        self._tile_last = tile_last
        m.d.comb += [
            self.tile_step.eq(tile_done & ~self.input_mode),
            final_part.eq((part == cycles - 1) & ~held & (~slow | (given & ~waiting))),
            done.eq(running & final_part & (last_channel | self.input_mode)),
            self.byte_ready.eq(self.input_mode & done),
        ]
        slot_bits = (g.slot_cycles - 1).bit_length()
        pixel = Cat(Const(0, (g.slot_pixels - 1).bit_length()), part[slot_bits:])
        pixel = pixel[: (lanes - 1).bit_length()]
        index = Mux(self.input_mode, image_channel, channel)[: (g.output_lanes - 1).bit_length()]
        self._address(m, index, pixel, banks, slow)
        with m.If(running):
            with m.If((part != cycles - 1) & ~held):
                m.d.sync += part.eq(part + 1)
            with m.If(slow):
                m.d.sync += [given.eq(~final_part), waiting.eq(waiting | ~given)]
                m.d.sync += returned.eq(given & ~waiting & ~final_part)
            with m.If(final_part):
                m.d.sync += [part.eq(0), channel.eq(channel + Mux(slow, 1, together))]
                m.d.sync += last_channel.eq(
                    channel == Mux(slow, g.output_lanes - 2, g.output_lanes - 2 * together)
                )
            with m.If(done):
                m.d.sync += running.eq(0)
                with m.If(self.input_mode):
                    last = image_channel == self.channels
                    m.d.sync += image_channel.eq(Mux(last, 0, image_channel + 1))
        with m.If(self.quotient_done):
            m.d.sync += waiting.eq(0)
        with m.If(begin | (self.input_mode & self.byte_valid & ~running)):
            m.d.sync += [running.eq(1), part.eq(0), channel.eq(0)]
            m.d.sync += last_channel.eq(g.output_lanes == Mux(slow, 1, together))
        with m.If(self.input_done | (done & tile_last & ~self.input_mode)):
            m.d.sync += bank.eq(~bank)

        place = Signal(value_layout(g))
        if g.addend_division:
            m.d.comb += place.divide.eq(running & r.divide & ~given)
        in_word = channel & (g.residual_channels - 1)
        ends_word = g.residual_channels - Mux(self._divides, 1, min(together, g.residual_channels))
        m.d.comb += [
            place.valid.eq(
                running
                & Mux(
                    slow,
                    Mux(self._divides, given & ~waiting & ~returned, ~given),
                    part[:slot_bits] == 0,
                )
            ),
            place.pixel.eq(pixel),
            place.fits.eq(
                Cat(
                    ~self.tile.row_end | (pixel + i <= r.tail_less) if lanes > 1 else 1
                    for i in range(g.slot_pixels)
                )
            ),
            place.word_first.eq((in_word == 0) & (part == 0)),
            place.word_end.eq((in_word == ends_word) & (pixel == lanes - g.slot_pixels)),
            place.word_last.eq(word_last),
            place.tile_end.eq(last_channel),
            place.row_end.eq(self.tile.row_end),
            place.tile_last.eq(tile_last),
        ]
        return place

    def _address(self, m: Module, index: Value, pixel: Value, bank: Value, slow: Signal) -> None:
        """Of a value's sum and bias, and some ticks later of its staircase."""
        g = self._geometry
        # Of the slot, in the cycle before.
        channel, of_pixel, in_bank = Signal(len(index)), Signal(len(pixel)), Signal(len(bank))
        m.d.sync += [channel.eq(index), of_pixel.eq(Mux(slow, 0, pixel)), in_bank.eq(bank)]
        at = Cat(channel, in_bank)
        if g.slot_ticks == 1:
            stairs = Signal.like(at, name="stairs_channel")
            m.d.sync += [stairs.eq(at), self.stairs_address.eq(stairs)]
            m.d.comb += [self.bias_address.eq(at), self.sum_address.eq(Cat(of_pixel, channel))]
            return
        # The slot's values in turn; but slow ones all the time the one that stands there.
        later, of_values = at, Signal(at.shape(), name="stairs_channel", reset_less=True)
        for i in range(STAIRS_CYCLES):
            before, later = later, Signal(at.shape(), name=f"channel_q{i + 1}")
            m.d.sync += later.eq(before)
        with m.If(~self._second):  # half a cycle behind, where the first value is known then
            m.d[self._domain] += of_values.eq(later)
        if g.slot_pixels > 1:
            in_turn = Mux(slow, 0, self._second)
            m.d.comb += [
                self.bias_address.eq(at),
                self.sum_address.eq(Cat(in_turn, of_pixel[1:], channel)),
                self.stairs_address.eq(of_values),
            ]
        else:
            in_turn = Mux(slow, channel[0], self._second)
            m.d.comb += [
                self.bias_address.eq(Cat(in_turn, at[1:])),
                self.sum_address.eq(Cat(in_turn, channel[1:])),
                self.stairs_address.eq(Cat(Mux(slow, channel[0], ~self._second), of_values[1:])),
            ]

    def _value(
        self, m: Module, first: data.View, added: data.View
    ) -> tuple[list[Value], list[Value], Value]:
        """Bias and shift of sums of the lanes, of pooled ones or of a pixel, and the residual's
        addition, which does not saturate yet; whether each was too large for any residual to bring
        it back; and the gain. All are there at tick 6."""
        g, r = self._geometry, self.record
        gain: Value = self.gain
        for tick in range(2, 7):
            gain = self._tick(m, tick, gain, "gain")
        values, offset = side_by_side(self.sum, g), self.bias
        values[0] = Mux(self.input_mode, self.byte << g.input_shift, values[0])
        if g.residuals:
            pooled = side_by_side(self.pooled, g)
            values = [Mux(r.pool, *both) for both in zip(pooled, values, strict=True)]
            offset = Mux(r.pool, r.pad, offset)
        if g.addend_division:  # there is one value
            back = self._delay(m, first, 2, "back")
            divided = r.divide & back.valid
            values = [Mux(divided, self.quotient - r.quotient_zero, *values)]
            offset = Mux(divided, 0, offset)
        values = self._ticks(m, 2, values, "value")
        offset = self._tick(m, 2, offset, "offset")
        totals: list[Value] = []
        for value in values:
            total = Signal(signed(self.value_bits))
            m.d.comb += total.eq(value + offset)
            totals.append(total)
        totals = self._ticks(m, 3, totals, "total")
        if not g.residuals:  # nothing is shifted or added
            for tick in range(4, 7):
                totals = self._ticks(m, tick, totals, "total")
            return totals, [Const(0, 1)] * len(totals), gain
        down = Signal.like(r.down)
        m.d.sync += down.eq(Mux(self.input_mode, g.max_left_shift, r.down))
        # Right shifts in two ticks, the widest first.
        width = signed(max(self.value_bits, g.accumulator_bits + 1 + g.max_left_shift))
        high = len(down) - 1
        coarses: list[Value] = []
        for total in totals:
            aligned = Signal(signed(self.value_bits))
            m.d.comb += aligned.eq(Mux(r.pool, total >> POOL_SHIFT, total))
            wide = aligned << g.max_left_shift
            coarse = Signal(wide.shape())
            m.d.comb += coarse.eq(Mux(down[high], wide >> (1 << high), wide))
            coarses.append(coarse)
        all_moved: list[Value] = []
        for coarse in self._ticks(m, 4, coarses, "coarse"):
            moved = Signal(width)
            m.d.comb += moved.eq(coarse >> down[:high])
            all_moved.append(moved)
        all_moved = self._ticks(m, 5, all_moved, "moved")
        sums: list[Value] = []
        for moved, residual in zip(all_moved, self._residual(m, first, added), strict=True):
            summed = Signal(signed(len(moved) + 1))
            m.d.comb += summed.eq(moved + residual)
            sums.append(summed)
        # Four times what a residual can be: none brings it back. In two parts, for to compare all
        # bits takes longer than a tick.
        large = []
        for moved in all_moved:
            above = moved[g.residual_bits + 1 :]
            half = len(above) // 2
            parts = [
                part != moved[-1].replicate(len(part)) for part in (above[:half], above[half:])
            ]
            large.append(self._tick(m, 6, Cat(parts), "large"))
        return self._ticks(m, 6, sums, "summed"), large, gain

    def _residual(self, m: Module, first: data.View, added: data.View) -> list[Value]:
        """Residuals that are added to values, at tick 5. The memory is asked from a register."""
        g, r = self._geometry, self.record
        width = g.residual_bits
        group = Signal.like(r.residual_groups)
        with m.If(self.layer_start):
            m.d.sync += group.eq(0)
        with m.Elif(self._sequence_done & self._tile_last):
            m.d.sync += group.eq(group + 1)
        reading = Signal()
        m.d.sync += reading.eq(group < r.residual_groups)
        m.submodules.read_pointer = pointer = self._pointer(m, first, lends=g.split_sums)
        self._reader = pointer
        event, loading, loads_zero = Signal(), Signal(), Signal()
        takes = Const(1, 1)  # what is read is added now: a value that is divided comes here twice
        wanted = first.valid
        if g.addend_division:
            takes = ~added.divide ^ (r.divide & r.divide_sum)
            wanted = Mux(r.divide & r.divide_sum, first.divide, first.valid)
        m.d.comb += [
            pointer.step.eq(event),
            self.residual_read.address.eq(pointer.address),
        ]
        coming = wanted & first.word_first & r.residual
        self._reading = coming & reading
        m.d.sync += [event.eq(coming), self.residual_read.valid.eq(coming & reading)]
        m.d.sync += [loading.eq(event), loads_zero.eq(~reading | self.input_mode)]
        stream = Signal(g.residual_lanes * width)
        onward = stream >> width * g.slot_values
        if g.addend_division and g.slot_ticks > 1:
            onward = Mux(r.divide, stream >> width, onward)
        with m.If(loading):
            m.d.sync += stream.eq(Mux(loads_zero, 0, self.residual_read.data))
        with m.Elif(added.valid):
            m.d.sync += stream.eq(onward)
        # Zeros follow the words that are read, so where none are read zeros are added.
        values = [stream.word_select(i, width) for i in range(g.slot_values)]
        if g.slot_ticks > 1:
            values = [Mux(self._second & ~self._divides, values[1], values[0])]
        taken = [(value & takes.replicate(width)).as_signed() for value in values]
        return self._ticks(m, 5, taken, "residual")

    def _turn(
        self, m: Module, xs: list[Value], larges: list[Value], gain: Value, added: data.View
    ) -> tuple[list[Value], list[Value]]:
        """Saturation, where values are residuals; at tick 8, times the gain, and as they are kept.

        The gain turns them by one's complement: `start` makes up for it (`compiler.schedule`).
        """
        g, r = self._geometry, self.record
        # Turned before it is known whether one overflows, and with it the sign that decides.
        turn = gain[1]
        x7s = self._ticks(m, 7, [x[: self.x_bits] ^ turn.replicate(self.x_bits) for x in xs], "x")
        gain7 = self._tick(m, 7, gain, "gain")
        dividing: Value = Const(0, 1)
        if g.residuals and g.addend_division:
            dividing = self._delay(m, added, 1, "adding").divide
        turned, kept = [], []
        for x, x7, large in zip(xs, x7s, larges, strict=True):
            value = x7
            if g.residuals:
                width = g.residual_bits
                outside, over = Signal(), Signal()
                near = x[width - 1 : width + 3]  # its sign with them, if it is not large
                m.d.comb += [
                    outside.eq(large.any() | (near != near[-1].replicate(len(near)))),
                    over.eq(r.residual & outside & ~dividing),
                ]
                over = self._tick(m, 7, over, "over")
                sign = self._tick(m, 7, x[-1] ^ turn, "sign")
                low = Mux(over, (~sign).replicate(width - 1), x7[: width - 1])
                high = Mux(over, sign.replicate(self.x_bits - width + 1), x7[width - 1 :])
                value = Cat(low, high)
                nobody = (gain7 == NO_CHANNEL) & ~r.pool
                straight = value[:width] ^ gain7[1].replicate(width)
                kept.append(self._tick(m, 8, straight, "kept", clear=nobody))
            alive = gain7[0] ^ gain7[1]
            turned.append(self._tick(m, 8, value.as_signed(), "turned", clear=~alive))
        return turned, kept

    def _divide(
        self, m: Module, turned: list[Value], gain: Value, middle: data.View
    ) -> list[Value]:
        """The staircase: 2**F * turned + start, then the comparisons; answers activations.

        Non-restoring: a remainder is kept below 0, complemented where it is not, so that each step
        adds the divisor, and a step's bit is whether the remainder has changed its side.
        """
        g = self._geometry
        b = g.activation_bits
        d = self.stairs.divisor
        dividends: list[Value] = []
        for value in turned:
            y = Signal(signed(self.dividend_bits))
            m.d.comb += y.eq((value << g.fraction_bits) + self.stairs.start)
            dividends.append(~y)
        below = self._ticks(m, 9, dividends, "below")
        d = self._tick(m, 9, d, "divisor")
        # Of a slot that is filled twice this is the first value, in its cycle's second half.
        place = self._delay(m, middle, 2, "asking")
        starts = place.valid & (self.input_mode | self.record.last) & (place.pixel == 0)
        if g.addend_division:
            starts |= place.divide
        m.d.comb += [
            self.dividend.eq(~below[0]),
            self.divisor.eq(d),
            self.keep.eq(gain != NO_CHANNEL),  # of the value that has stood there for a while
            self.quotient_start.eq(starts),
        ]
        # Activations need no more of the dividend than the reach of their own offsets, and that of
        # the first step.
        near = min(max(self.quotient_bits, g.divisor_bits + b), len(below[0]))
        rests: list[Value] = []
        for value in below:
            rest = Signal(signed(near + 1))
            m.d.comb += rest.eq(value[:near].as_signed())
            rests.append(rest)
        above: list[Value] = [Const(1, 1)] * len(rests)
        q: list[Value] = [Const(0, 0)] * len(rests)
        for j in range(b - 1, -1, -1):
            tick = 10 + 2 * (b - 1 - j)
            far: list[Value] = [Const(0, 1)] * len(rests)
            if j == b - 2:
                rests, far = map(list, zip(*(self._near(m, tick, r) for r in rests), strict=True))
            steps = [self._step(m, tick, *both, d << j) for both in zip(rests, far, strict=True)]
            d = self._tick(m, tick, d, "divisor")
            if j < b - 1:
                q = self._ticks(m, tick, q, "q")
                above = [bits[0] for bits in q]
            rests = [
                # Its sign is known behind the first step.
                Cat(self._tick(m, tick + 1, whole, "rest", clear=f), Const(1, 1)).as_signed()
                for (_, whole), f in zip(steps, far, strict=True)
            ]
            d = self._tick(m, tick + 1, d, "divisor")
            bits = zip(steps, above, q, strict=True)
            q = self._ticks(m, tick + 1, [Cat(t ^ a, rest) for (t, _), a, rest in bits], "q")
        return q

    def _near(self, m: Module, tick: int, rest: Value) -> tuple[Value, Value]:
        """A remainder behind the first step without the bits that none has which later steps could
        turn, and at ``tick`` whether it is so far below that it needs them: such a one is set to
        the lowest that the others can say, and stays below 0 in all steps."""
        g = self._geometry
        bits = g.divisor_bits + g.activation_bits - 1
        if bits >= len(rest) - 1:
            return rest, Const(0, 1)
        far = self._tick(m, tick, ~rest[bits:-1].all(), "far")
        return Cat(rest[:bits], rest[-1]).as_signed(), far

    def _step(
        self, m: Module, tick: int, rest: Value, far: Value, divisor: Value
    ) -> tuple[Value, Value]:
        """Behind ``tick``: whether ``rest + divisor`` is to be complemented, and what it becomes
        then, without its sign.

        With a tick for the addition and one for the complement neither is longer than half a cycle:
        of the sum's upper part both are made, that without a carry and that with one.
        """
        if self._geometry.slot_ticks == 1:
            total = Signal(signed(len(rest)), name=f"total_t{tick}")
            m.d.comb += total.eq(rest + divisor)
            turns, whole = ~total[-1] & ~far, total[:-1]
            return turns, whole ^ turns.replicate(len(whole))
        if len(rest) <= LOW_BITS + 2:
            total = self._tick(m, tick, (rest + divisor)[: len(rest)], "total")
            turns, whole = Signal(name=f"turns_t{tick}"), total[:-1]
            m.d.comb += turns.eq(~total[-1] & ~far)
            return turns, whole ^ turns.replicate(len(whole))
        # The lower part has a bit of the upper, which tells its carry: a carry itself would leave
        # the chain by a LUT, and reach a flip-flop somewhere else.
        low = (rest[: LOW_BITS + 1] + divisor[: LOW_BITS + 1])[: LOW_BITS + 1]
        low = self._tick(m, tick, low, "low")
        base, added = rest[LOW_BITS:], divisor[LOW_BITS:]
        # 1 + 1 below the lowest bit: a carry in, where a third operand would be an adder.
        one = Const(1, 1)
        carried = (Cat(one, base) + Cat(one, added))[1 : len(base) + 1]
        without = self._tick(m, tick, (base + added)[: len(base)], "without")
        carried = self._tick(m, tick, carried, "carried")
        carry = low[LOW_BITS] ^ without[0]
        turns, upper = Signal(name=f"turns_t{tick}"), Mux(carry, carried[1:], without[1:])
        m.d.comb += turns.eq(~upper[-1] & ~far)
        whole = Cat(low, upper[:-1])
        return turns, whole ^ turns.replicate(len(whole))

    def _slot(self, m: Module, values: list[Value], name: str) -> list[Value]:
        """A slot's values side by side; where they follow one another, in its cycle's second
        half."""
        if self._geometry.slot_ticks == 1:
            return values
        (value,) = values
        before = Signal(value.shape(), name=f"{name}_before", reset_less=True)
        m.d[self._domain] += before.eq(value)
        return [before, value]

    def _write_residuals(self, m: Module, kept: list[Value], at: data.View) -> None:
        g, r = self._geometry, self.record
        port, width = self.residual_write, g.residual_bits
        packed, full = Signal(g.residual_lanes * width), Signal()
        values = self._slot(m, kept, "kept")
        fits = [at.fits[min(i, g.slot_pixels - 1)] for i in range(g.slot_values)]
        slot: Value = Cat(v & fit.replicate(width) for v, fit in zip(values, fits, strict=True))
        if g.slot_ticks > 1:
            single = values[-1] & at.fits[0].replicate(width)
            slot = Cat(slot, single)
        for i in range(g.residual_cycles - g.value_cycles):
            later = Signal(len(slot), name=f"kept_held{i}", reset_less=True)
            m.d.sync += later.eq(slot)
            slot, at = later, self._delay(m, at, 1, f"written{i}")
        m.submodules.write_pointer = pointer = self._pointer(m, at, borrows=g.split_sums)
        with m.If(at.valid):
            m.d.sync += packed.eq(
                Cat(packed, slot[: g.slot_values * width])[g.slot_values * width :]
            )
            if g.slot_ticks > 1:
                with m.If(self._single):
                    m.d.sync += packed.eq(Cat(packed, slot[-width:])[width:])
        filled = at.valid & at.word_end & r.residual & ~self.input_mode
        if g.split_sums:  # a word is never read and written in the same cycle
            m.d.comb += pointer.stride.eq(self._reader.stride)
            with m.If(filled):
                m.d.comb += self._reader.row.eq(self._behind(at))
        m.d.sync += full.eq(filled)
        self._writing.append(filled)
        m.d.comb += [
            port.valid.eq(full),
            port.address.eq(pointer.address),
            port.data.eq(packed),
            port.mask.eq(-1),
            pointer.step.eq(full),
        ]

    def _pointer(
        self, m: Module, place: data.View, *, lends: bool = False, borrows: bool = False
    ) -> Pointer:
        """Address of memory words of residuals, in the order in which tiles take them.

        The stride behind a word is looked up in the cycle of ``place``, its value's.
        """
        pointer = Pointer(self._geometry, "residual", self._primitive, lends=lends, borrows=borrows)
        if borrows:
            m.d.comb += pointer.restart.eq(self.layer_start)
            return pointer
        m.d.comb += [
            pointer.strides.eq(self.strides),
            pointer.restart.eq(self.layer_start),
            pointer.row.eq(self._behind(place)),
            pointer.look.eq(1),
        ]
        return pointer

    @staticmethod
    def _behind(place: data.View) -> Value:
        """Row of `STRIDES` of what follows a memory word of residuals."""
        return Cat(~place.word_last | place.tile_last, place.word_last)

    def _write_activations(self, m: Module, q: list[Value], at_x: data.View) -> Value:
        """Collects a word of activations for each pixel; with the last output lanes they are
        written, one pixel after the other. Returns whether a group's last ones are."""
        g, r = self._geometry, self.record
        b, lanes = g.activation_bits, g.pixel_lanes
        port = self.activation_write
        chunks = g.word_channels // g.output_lanes
        at = self._delay(m, at_x, g.division_cycles - 1, "at_q")
        if g.slot_ticks > 1:  # the last tick of an odd number
            q = self._ticks(m, 10 + 2 * b, q, "q")
        before, slot = at, Cat(self._slot(m, q, "q"))
        at = self._delay(m, at, 1, "at_q_last")
        for i in range(g.activation_cycles - g.division_cycles - g.value_cycles):
            later = Signal(len(slot), name=f"q_held{i}", reset_less=True)
            m.d.sync += later.eq(slot)
            before, slot, at = at, later, self._delay(m, at, 1, f"place_held{i}")
        # Whether a word is completed is known a cycle early, for the memory's port waits for it.
        useful, done = Signal(), Signal()
        coming = before.valid & r.requantise & ~self.input_mode
        m.d.sync += [useful.eq(coming), done.eq(coming & before.tile_end & (before.pixel == 0))]
        last: Value = at.valid & at.tile_end & at.tile_last & (at.pixel == lanes - g.slot_pixels)
        for i in range(g.turn_cycles):
            later = Signal(name=f"last_held{i}")
            m.d.sync += later.eq(last)
            last = later
        packed = [
            Signal(g.output_lanes * b, name=f"packed{p}", reset_less=True) for p in range(lanes)
        ]
        for p in range(lanes):
            of_slot = at.pixel == p - p % g.slot_pixels if lanes > g.slot_pixels else Const(1, 1)
            mine = slot.word_select(p % g.slot_pixels, b * g.slot_channels)
            taken = useful & of_slot
            # A pixel whose turn comes after the next tile's first slot takes its own later.
            slot_comes = p // g.slot_pixels * g.slot_cycles
            for i in range(1 + p * g.pixel_apart - slot_comes - g.channel_cycles):
                values, takes = Signal.like(mine, name=f"late{p}_{i}"), Signal(name=f"takes{p}_{i}")
                m.d.sync += [values.eq(mine), takes.eq(taken)]
                mine, taken = values, takes
            with m.If(taken):
                m.d.sync += packed[p].eq(Cat(packed[p], mine)[len(mine) :])
        # The turn of each pixel, from the cycle before; where its row and its group end with it.
        turn = Signal((lanes - 1) * g.pixel_apart + 1)
        row_end, tile_last = Signal(), Signal()
        with m.If(done):
            m.d.sync += [row_end.eq(at.row_end), tile_last.eq(at.tile_last)]
        m.d.sync += turn.eq(Cat(done, turn))
        ahead = Cat(done, turn)  # the pixels' turns in the next cycle
        fits = [~row_end | (p <= r.tail_less) if p else Const(1, 1) for p in range(lanes)]
        writes = Cat(ahead[p * g.pixel_apart] & fits[p] for p in range(lanes))
        self._writing.append(writes.any())
        m.d.sync += port.valid.eq(writes.any())
        # The place of the next pixel; of the plane's first; and of the pixel after this one.
        place, plane, beyond = (Signal(g.address_bits) for _ in range(3))
        chunk = Signal(range(max(chunks, 2)))
        m.d.comb += [port.address.eq(place), beyond.eq(place + port.valid)]
        turns = [turn[p * g.pixel_apart] for p in range(lanes)]
        for p in range(lanes):
            with m.If(turns[p] if lanes > 1 else 1):
                m.d.comb += port.data.eq(packed[p].replicate(chunks))
        m.d.sync += place.eq(beyond)
        if g.scattered:
            following = Signal(g.address_bits)
            m.d.comb += following.eq(plane + r.out_plane)
        if g.paired_groups:  # the two groups' places in turn
            other, begun = Signal(g.address_bits), Signal()
            with m.If(turns[-1] & r.paired):
                m.d.sync += [other.eq(beyond), begun.eq(~tile_last)]
                m.d.sync += place.eq(Mux(begun, other, following))
                with m.If(~begun):
                    m.d.sync += plane.eq(following)
        # The next group's part of the same words, or the next plane.
        with m.If(turns[-1] & tile_last):
            m.d.sync += chunk.eq(Mux(chunk == chunks - 1, 0, chunk + 1))
            with m.If(chunk == chunks - 1):
                if g.scattered:
                    m.d.sync += [plane.eq(following), place.eq(following)]
                else:
                    m.d.sync += plane.eq(beyond)
            with m.Else():
                m.d.sync += place.eq(plane)
        with m.If(self.layer_start):
            m.d.sync += [place.eq(r.out_first), plane.eq(r.out_first), chunk.eq(0)]
        masked = g.mask_bits // chunks
        masks = [((1 << masked) - 1) << masked * i for i in range(chunks)]
        m.d.comb += port.mask.eq(Array(Const(v, g.mask_bits) for v in masks)[chunk])
        return last
