"""The requantiser: from accumulators to residuals, activations, scores; and all their traffic."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from compiler import arith
from compiler.geometry import NO_CHANNEL, POOL_SHIFT, STEPS_PER_CYCLE, VALUE_CYCLES, Geometry
from hw.layout import memory_read, memory_write, stride_put, struct
from hw.pointer import Pointer

STAIRS_CYCLES = 2
"""From the address of a channel's bias to that of its staircase: the bias and the residual."""

RESIDUAL_MEMBERS = {"strides", "pooled", "pooled_place", "residual_read", "residual_write"}
"""Those that there are only with `Geometry.residuals`."""

PLACES = ("word_first", "word_end", "word_last", "tile_end", "row_end", "tile_last")


def value_layout(geometry: Geometry) -> data.StructLayout:
    """Where a value stands that travels through the requantiser.

    pixel : pixel lane
    fits : the pixel lies in the map (the last tile of a row may reach beyond it)
    word_first, word_end : first / last value of a memory word of residuals
    word_last : it is in the tile's last memory word of residuals
    tile_end : last channel of the tile
    divide : not valid yet: its addend goes to the divider first
    row_end, tile_last : last tile of a row / of the group
    """
    return data.StructLayout(
        {"valid": 1, "pixel": range(max(geometry.pixel_lanes, 2)), "fits": 1}
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
    """Takes a tile's accumulators value by value: output lane by output lane, pixel by pixel.

    Each value passes: bias and shift (`arith.shift`), residual addition (`arith.add_residual`),
    and the restoring division of its staircase (`arith.restoring_division`), one value a cycle,
    two cycles and one for each two bits of activation. A tile takes `Geometry.tile_cycles`.

    Its memory accesses must not be held up by anything, so `gate` lets a tile of the residual
    stream start only where none of them (`Geometry.accesses`) meets one of the tile before.

    While the image is taken in (`input_mode`), and in the last layer, one value at a time goes to a
    serial divider instead, and the next waits for `quotient_done`. Where addends are divided each
    goes there first, and comes back as the quotient, less its zero, to be added and written.

    Members
    -------
    record : In; strides : In(`stride_put`), of the residual stream (`hw.pointer`)
    input_mode : In(1); channels : In(3), of the image, less one
    layer_start : In(1), strobe
    start : In(1), a tile's last step is issued (see `hw.window.WindowBuffer`)
    gate : Out(1), a tile's last step may be issued
    sum_address : Out, of a sum of the tile (`hw.lanes.Lanes`); sum : In, one cycle later
    tile : In(`TILE`), of the tile being taken; tile_step : Out(1), it is done
    byte_valid, byte : In, one pixel of one channel; byte_ready : Out, it has been taken
    pooled : In, a pooling window's sum times 36/count; pooled_place : In(`value_layout`). This and
        all else of `RESIDUAL_MEMBERS` only with `Geometry.residuals`
    bias_address, stairs_address : Out; bias, stairs : In, one cycle later (`hw.loader.Loader`)
    input_done : In(1), strobe: the parameters of the input, or of a layer that does not come here,
        are not needed any more
    residual_read, residual_write, activation_write : memory ports
    soon : Out(1), one of them will ask in the next cycle
    dividend, divisor, keep, quotient_start : Out, to the serial divider
    quotient_done : In(1); quotient : In, holds until the next start
    group_done : Out(1), strobe: the group's last value is through
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        self._geometry = g = geometry
        self._primitive = primitive
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
            "sum": In(signed(g.accumulator_bits)),
            "tile": In(TILE),
            "tile_step": Out(1),
            "byte_valid": In(1),
            "byte": In(8),
            "byte_ready": Out(1),
            "pooled": In(signed(pooled_bits(g))),
            "pooled_place": In(value_layout(g)),
            "bias_address": Out(range(2 * g.output_lanes)),
            "bias": In(signed(g.bias_bits)),
            "stairs_address": Out(range(2 * g.output_lanes)),
            "stairs": In(g.param_bits - g.bias_bits),
            "input_done": In(1),
            "residual_read": Out(memory_read(g)),
            "residual_write": Out(memory_write(g)),
            "activation_write": Out(memory_write(g)),
            "soon": Out(1),
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
        g = self._geometry
        self._asking: list[Value] = []  # of the memory's ports, each in the cycle before
        self._divides = self.record.divide if g.addend_division else Const(0, 1)
        begin = self._pace(m)
        first = self._sequence(m, begin)
        middle = self._delay(m, first, 2, "middle")
        place = self._delay(m, middle, 1, "place")
        param = self._stairs(m)
        moved = self._move(m, middle)
        if g.residuals:
            x, at_x = self._add(m, first, moved, place)
            self._write_residuals(m, x, at_x, param)
        else:
            x, at_x = self._pass(m, moved, place)
        q, at_q, useful = self._divide(m, x, at_x, param)
        self._write_activations(m, q, at_q, useful)
        m.d.comb += self.soon.eq(Cat(self._asking).any())
        sequence_done = self._sequence_done
        with m.If(self.record.last):
            m.d.comb += self.group_done.eq(sequence_done & self._tile_last & ~self.input_mode)
        with m.Else():
            last = at_q.tile_end & at_q.tile_last & (at_q.pixel == g.pixel_lanes - 1)
            m.d.comb += self.group_done.eq(at_q.valid & last)
        return m

    def _delay(self, m: Module, value: data.View, cycles: int, name: str) -> data.View:
        for i in range(cycles):
            later = Signal(value.shape(), name=f"{name}_q{i + 1}")
            m.d.sync += later.eq(value)
            value = later
        return value

    def _pace(self, m: Module) -> Signal:
        """When tiles may end, and when their sequence begins; returns the latter."""
        g = self._geometry
        self._sequence_done = Signal()
        clear = self._book(m) | ~self.record.residual if g.residuals else Const(1, 1)
        cooldown = Signal(range(g.tile_cycles))
        scoring = Signal()
        slow = self.record.last | self._divides
        with m.If(self.start):
            m.d.sync += [cooldown.eq(g.tile_cycles - 1), scoring.eq(slow)]
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
        pattern = sum(1 << cycle for kind in g.accesses for cycle in kind)
        booked = Signal(pattern.bit_length())  # the coming cycles, of the first value's place
        booking = (self.start & self.record.residual).replicate(len(booked)) & pattern
        if g.addend_division and g.written_behind > 0:
            # Its values took their own time, so the last write comes later than was booked.
            ends = self._sequence_done & self._divides
            booking = booking | (ends << g.written_behind)
        m.d.sync += booked.eq((booked | booking) >> 1)
        return (booked >> 1) & pattern == 0

    def _sequence(self, m: Module, begin: Signal) -> data.View:
        """Walks the output lanes of a tile; returns the place of this cycle's value."""
        g, r = self._geometry, self.record
        lanes, cycles = g.pixel_lanes, g.channel_cycles
        running, bank = Signal(), Signal()
        given, waiting = Signal(), Signal()  # slow: the value is given; its quotient is not there
        returned = Signal()  # dividing: the quotient has come and is given
        channel, slot = Signal(range(max(g.output_lanes, 2))), Signal(range(max(cycles, 2)))
        image_channel = Signal(3)
        slow = Signal()  # the record, and the mode, have long stood when a value comes
        m.d.sync += slow.eq(self.input_mode | r.last | self._divides)
        held = self._divides & ~returned
        final_slot, last_channel = Signal(), Signal()  # the latter compared as it comes
        self._tile_last = tile_last = self.tile.row_end & self.tile.last_row
        done = self._sequence_done
        m.d.comb += [
            self.tile_step.eq(done & ~self.input_mode),
            final_slot.eq((slot == cycles - 1) & ~held & (~slow | (given & ~waiting))),
            done.eq(running & final_slot & (last_channel | self.input_mode)),
            self.byte_ready.eq(self.input_mode & done),
        ]
        index = Mux(self.input_mode, image_channel, channel)[: (g.output_lanes - 1).bit_length()]
        pixel = Signal((lanes - 1).bit_length())
        m.d.sync += [self.bias_address.eq(Cat(index, bank)), pixel.eq(slot)]
        m.d.comb += self.sum_address.eq(Cat(pixel, self.bias_address[: len(index)]))
        with m.If(running):
            with m.If((slot != cycles - 1) & ~held):
                m.d.sync += slot.eq(slot + 1)
            with m.If(slow):
                m.d.sync += [given.eq(~final_slot), waiting.eq(waiting | ~given)]
                m.d.sync += returned.eq(given & ~waiting & ~final_slot)
            with m.If(final_slot):
                m.d.sync += [slot.eq(0), channel.eq(channel + 1)]
                m.d.sync += last_channel.eq(channel == g.output_lanes - 2)
            with m.If(done):
                m.d.sync += running.eq(0)
                with m.If(self.input_mode):
                    last = image_channel == self.channels
                    m.d.sync += image_channel.eq(Mux(last, 0, image_channel + 1))
        with m.If(self.quotient_done):
            m.d.sync += waiting.eq(0)
        with m.If(begin | (self.input_mode & self.byte_valid & ~running)):
            m.d.sync += [running.eq(1), slot.eq(0), channel.eq(0)]
            m.d.sync += last_channel.eq(g.output_lanes == 1)
        with m.If(self.input_done | (done & tile_last & ~self.input_mode)):
            m.d.sync += bank.eq(~bank)

        place = Signal(value_layout(g))
        if g.addend_division:
            m.d.comb += place.divide.eq(running & r.divide & ~given)
        in_word = channel & (g.residual_channels - 1)
        m.d.comb += [
            place.valid.eq(
                running
                & Mux(
                    slow,
                    Mux(self._divides, given & ~waiting & ~returned, ~given),
                    slot < lanes,
                )
            ),
            place.pixel.eq(slot),
            place.fits.eq(~self.tile.row_end | (slot <= r.tail_less) if lanes > 1 else 1),
            place.word_first.eq((in_word == 0) & (slot == 0)),
            place.word_end.eq((in_word == g.residual_channels - 1) & (slot == lanes - 1)),
            place.word_last.eq(channel >= g.output_lanes - g.residual_channels),
            place.tile_end.eq(last_channel),
            place.row_end.eq(self.tile.row_end),
            place.tile_last.eq(tile_last),
        ]
        return place

    def _stairs(self, m: Module) -> Signal:
        """A channel's staircase, when its value is there; its bias came before."""
        g = self._geometry
        address = self.bias_address
        for i in range(STAIRS_CYCLES - 1):
            later = Signal.like(address, name=f"address_q{i + 1}")
            m.d.sync += later.eq(address)
            address = later
        m.d.sync += self.stairs_address.eq(address)
        param = Signal(struct(g.param_fields))
        m.d.comb += param.as_value().eq(Cat(Const(0, g.bias_bits), self.stairs))
        return param

    def _move(self, m: Module, place: data.View) -> Signal:
        """Bias and shift of a value: a sum of the lanes, a pooled one, or a pixel."""
        g, r = self._geometry, self.record
        total = Signal(signed(self.value_bits + 1), reset_less=True)
        pixel = self.byte << g.input_shift
        value, offset = Mux(self.input_mode, pixel, self.sum), self.bias
        if not g.residuals:  # nothing is shifted
            m.d.sync += total.eq(value + offset)
            return total
        value, offset = Mux(r.pool, self.pooled, value), Mux(r.pool, r.pad, offset)
        if g.addend_division:
            divided = r.divide & place.valid
            value = Mux(divided, self.quotient - r.quotient_zero, value)
            offset = Mux(divided, 0, offset)
        m.d.sync += total.eq(value + offset)
        aligned = Signal(signed(self.value_bits + 1))
        m.d.comb += aligned.eq(Mux(r.pool, total >> POOL_SHIFT, total))
        moved = Signal(signed(max(self.value_bits, g.accumulator_bits + 1 + g.max_left_shift)))
        down = Signal.like(r.down)
        m.d.sync += down.eq(Mux(self.input_mode, g.max_left_shift, r.down))
        m.d.comb += moved.eq((aligned << g.max_left_shift) >> down)
        return moved

    def _pass(self, m: Module, moved: Signal, place: data.View) -> tuple:
        """Instead of `_add`, where there is no stream: in the same time."""
        x, at_x = Signal(signed(self.x_bits), reset_less=True), Signal(place.shape())
        m.d.sync += [x.eq(moved), at_x.eq(place)]
        return x, at_x

    def _add(self, m: Module, first: data.View, moved: Signal, place: data.View) -> tuple:
        """Residual addition, saturating. ``first`` is the place three cycles before.

        The memory is asked for from a register.
        """
        g, r = self._geometry, self.record
        width = g.residual_bits
        at = Signal(place.shape())
        pooled = self._delay(m, self.pooled_place, 1, "pooled")  # its sum is in `_move`'s register
        m.d.comb += at.eq(Mux(r.pool, pooled.as_value(), place.as_value()))
        group = Signal.like(r.residual_groups)
        with m.If(self.layer_start):
            m.d.sync += group.eq(0)
        with m.Elif(self._sequence_done & self._tile_last):
            m.d.sync += group.eq(group + 1)
        reading = Signal()
        m.d.sync += reading.eq(group < r.residual_groups)
        m.submodules.read_pointer = pointer = self._pointer(m, first)
        event, loading, loads_zero = Signal(), Signal(), Signal()
        added = Const(1, 1)  # what is read is added now: a value that is divided comes here twice
        wanted = first.valid
        if g.addend_division:
            added = ~at.divide ^ (r.divide & r.divide_sum)
            wanted = Mux(r.divide & r.divide_sum, first.divide, first.valid)
        m.d.comb += [
            pointer.step.eq(event),
            self.residual_read.address.eq(pointer.address),
        ]
        coming = wanted & first.word_first & r.residual
        self._asking.append(coming & reading)
        m.d.sync += [event.eq(coming), self.residual_read.valid.eq(coming & reading)]
        m.d.sync += [loading.eq(event), loads_zero.eq(~reading | self.input_mode)]
        stream = Signal(g.residual_lanes * width)
        with m.If(loading):
            m.d.sync += stream.eq(Mux(loads_zero, 0, self.residual_read.data))
        with m.Elif(at.valid):
            m.d.sync += stream.eq(stream >> width)
        # Zeros follow the words that are read, so where none are read zeros are added.
        total = Signal(signed(len(moved) + 1))
        m.d.comb += total.eq(moved + (stream[:width] & added.replicate(width)).as_signed())
        summed, at_x = Signal(total.shape(), reset_less=True), Signal(at.shape())
        m.d.sync += [summed.eq(total), at_x.eq(at)]
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
        sign, over = summed[-1], Signal()
        outside = summed[width - 1 :] != sign.replicate(len(summed) - width + 1)
        dividing = at_x.divide if g.addend_division else Const(0, 1)
        x = Signal(signed(self.x_bits))
        m.d.comb += [
            over.eq(r.residual & outside & ~dividing),
            x.eq(Mux(over, Mux(sign, low, high), summed)),
        ]
        return x, at_x

    def _divide(self, m: Module, x: Signal, at: data.View, param: data.View) -> tuple:
        """The staircase: 2**F * (gain * x) + start, then the comparisons.

        The divisor is held as its complement: a carry chain that subtracts takes that, and the
        registers in front of it make it for nothing, where a complement behind them is a LUT a bit.

        Returns the activation, its place, and whether the layer has a use for it. That, and whether
        it completes a word, is known a cycle early, for the memory's port waits for it.
        """
        g = self._geometry
        b = g.activation_bits
        turned = Signal(signed(self.x_bits))
        alive = param.gain[0] ^ param.gain[1]
        m.d.comb += turned.eq((x ^ param.gain[1].replicate(len(x))) & alive.replicate(len(x)))
        y, less_d = Signal(signed(self.dividend_bits)), Signal(g.divisor_bits)
        place, q = Signal(at.shape()), Signal(b)
        keep = Signal()
        m.d.sync += [
            y.eq((turned << g.fraction_bits) + param.start),
            less_d.eq(~param.divisor),
            keep.eq(param.gain != NO_CHANNEL),
            place.eq(at),
        ]
        starts = place.valid & (self.input_mode | self.record.last) & (place.pixel == 0)
        if g.addend_division:
            starts |= place.divide
        m.d.comb += [
            self.dividend.eq(y),
            self.divisor.eq(~less_d),
            self.keep.eq(keep),
            self.quotient_start.eq(starts),
        ]
        # Activations need no more of the dividend than the reach of their own offsets.
        y = y[: self.quotient_bits].as_signed()
        for j in range(b - 1, -1, -1):
            rest, bit = (
                Signal(signed(max(self.quotient_bits, len(less_d) + j + 1) + 1), name=f"rest{j}"),
                Signal(name=f"bit{j}"),
            )
            m.d.comb += [rest.eq(y - (~less_d << j)), bit.eq(~rest[-1])]
            after = Signal(signed(self.quotient_bits), name=f"after{j}")
            m.d.comb += after.eq(Mux(bit, rest, y))
            y, q = after, Cat(bit, q)[:b]
            if (b - j) % STEPS_PER_CYCLE == 0 or j == 0:
                registers = []
                for value, name in ((y, "y"), (less_d, "less_d"), (q, "q")):
                    registers.append(Signal.like(value, name=f"{name}{j}", reset_less=True))
                    m.d.sync += registers[-1].eq(value)
                y, less_d, q = registers
                following = Signal(at.shape(), name=f"place{j}")
                m.d.sync += following.eq(place)
                before, place = place, following
        for i in range(g.activation_cycles - g.division_cycles - VALUE_CYCLES):
            later, following = Signal.like(q, name=f"q_held{i}"), Signal(at.shape())
            following.as_value().name = f"place_held{i}"
            m.d.sync += [later.eq(q), following.eq(place)]
            q, before, place = later, place, following
        useful, done = Signal(), Signal()
        coming = before.valid & self.record.requantise & ~self.input_mode
        ends = coming & before.tile_end & before.fits
        m.d.sync += [useful.eq(coming), done.eq(ends)]
        m.d.comb += self.activation_write.valid.eq(done)
        self._asking.append(ends)
        return q, place, useful

    def _write_residuals(self, m: Module, x: Signal, at: data.View, param: data.View) -> None:
        g, r = self._geometry, self.record
        port, width = self.residual_write, g.residual_bits
        packed, full = Signal(g.residual_lanes * width), Signal()
        kept = Signal(width)
        m.d.comb += kept.eq(Mux(at.fits & ((param.gain != NO_CHANNEL) | r.pool), x[:width], 0))
        for i in range(g.residual_cycles - VALUE_CYCLES):
            later = Signal.like(kept, name=f"kept_held{i}", reset_less=True)
            m.d.sync += later.eq(kept)
            kept, at = later, self._delay(m, at, 1, f"written{i}")
        m.submodules.write_pointer = pointer = self._pointer(m, at)
        with m.If(at.valid):
            m.d.sync += packed.eq(Cat(packed[width:], kept))
        filled = at.valid & at.word_end & r.residual & ~self.input_mode
        m.d.sync += full.eq(filled)
        self._asking.append(filled)
        m.d.comb += [
            port.valid.eq(full),
            port.address.eq(pointer.address),
            port.data.eq(packed),
            port.mask.eq(-1),
            pointer.step.eq(full),
        ]

    def _pointer(self, m: Module, place: data.View) -> Pointer:
        """Address of memory words of residuals, in the order in which tiles take them.

        The stride behind a word is looked up in the cycle of ``place``, its value's.
        """
        pointer = Pointer(self._geometry, "residual", self._primitive)
        behind = Cat(~place.word_last | place.tile_last, place.word_last)
        m.d.comb += [
            pointer.strides.eq(self.strides),
            pointer.restart.eq(self.layer_start),
            pointer.row.eq(behind),
            pointer.look.eq(1),
        ]
        return pointer

    def _write_activations(self, m: Module, q: Signal, at: data.View, useful: Signal) -> None:
        """Collects a pixel's activations; with the last output lane they go into their word."""
        g, r = self._geometry, self.record
        b, lanes = g.activation_bits, g.pixel_lanes
        port = self.activation_write
        chunks = g.word_channels // g.output_lanes
        packed = [
            Signal((g.output_lanes - 1) * b, name=f"packed{p}", reset_less=True)
            for p in range(lanes)
        ]
        # The place of the next pixel; of the plane's first; and of the pixel after this one.
        place, plane, beyond = (Signal(g.address_bits) for _ in range(3))
        chunk = Signal(range(max(chunks, 2)))
        m.d.comb += [
            port.address.eq(place),
            beyond.eq(place + (at.fits if lanes > 1 else 1)),
        ]
        for p in range(lanes):
            with m.If((at.pixel == p) if lanes > 1 else 1):
                m.d.comb += port.data.eq(Cat(packed[p], q).replicate(chunks))
                with m.If(useful):
                    m.d.sync += packed[p].eq(Cat(packed[p], q)[b:])
        with m.If(useful & at.tile_end):
            m.d.sync += place.eq(beyond)
            # The next group's part of the same words, or the next plane.
            with m.If(at.tile_last & (at.pixel == lanes - 1)):
                m.d.sync += chunk.eq(Mux(chunk == chunks - 1, 0, chunk + 1))
                with m.If(chunk == chunks - 1):
                    m.d.sync += plane.eq(beyond)
                with m.Else():
                    m.d.sync += place.eq(plane)
        with m.If(self.layer_start):
            m.d.sync += [place.eq(r.out_first), plane.eq(r.out_first), chunk.eq(0)]
        masks = [((1 << g.output_lanes) - 1) << g.output_lanes * i for i in range(chunks)]
        m.d.comb += port.mask.eq(Array(Const(v, g.word_channels) for v in masks)[chunk])
