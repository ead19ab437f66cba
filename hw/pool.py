"""Average pooling of the residual stream: sums over 3x3 windows, times 36/count."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from compiler import arith
from compiler.geometry import Geometry
from hw.layout import struct
from hw.requantise import TILE, pooled_bits, value_layout

COLUMNS = arith.POOL_KERNEL
"""Columns of memory words: enough for pixel_lanes neighbouring windows at stride 2."""


def covers(word: int, pixel_in: int, pixel_out: int, lanes: int, pad: int) -> bool:
    """Whether window ``pixel_out`` holds pixel ``pixel_in`` of the ``word``-th column of words.

    Counted from the tile's first output: window p spans columns 2p - pad .. 2p - pad + 2, and with
    a pad the first column of words is the one to the left.
    """
    column = (word - pad) * lanes + pixel_in
    return 0 <= column - (2 * pixel_out - pad) < arith.POOL_KERNEL


class Pool(wiring.Component):
    """Window sums of `compiler.arith.pool` before its right shift, a memory word of them at a time.

    Takes nine words a tile (three columns of three), one a cycle, and gives residual_lanes values,
    `Geometry.slot_abreast` a cycle, while the next tile's words come in. Pixels outside the map
    read as 0. With several pixel lanes a word waits in registers first: block RAM is slow, and so
    is the choice of pixels.

    Members
    -------
    record : In
    tile : In(`TILE`), of the tile being given; tile_step : Out(1), on to the next
    valid : In(1), a word of a window comes; word : In(word_bits), residuals
    value : Out, signed, those that are given together
    place : Out(`value_layout`)
    """

    def __init__(self, geometry: Geometry) -> None:
        cycles = geometry.residual_lanes // geometry.slot_abreast
        if cycles > COLUMNS * arith.POOL_KERNEL:
            raise ValueError(f"residual_lanes must be given in at most 9 cycles, not {cycles}")
        self._geometry = geometry
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "tile": In(TILE),
                "tile_step": Out(1),
                "valid": In(1),
                "word": In(geometry.word_bits),
                "value": Out(geometry.slot_abreast * pooled_bits(geometry)),
                "place": Out(value_layout(geometry)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._valid, self._word = self.valid, self.word
        if self._geometry.pixel_lanes > 1:
            self._valid, self._word = Signal(), Signal.like(self.word, reset_less=True)
            m.d.sync += [self._valid.eq(self.valid), self._word.eq(self.word)]
        column, row, full = Signal(2), Signal(2), Signal()
        last_column = column == COLUMNS - 1
        last_row = row == arith.POOL_KERNEL - 1
        m.d.comb += full.eq(self._valid & last_column & last_row)
        with m.If(self._valid):
            m.d.sync += row.eq(Mux(last_row, 0, row + 1))
            with m.If(last_row):
                m.d.sync += column.eq(Mux(last_column, 0, column + 1))
        whole = Signal()  # the sums are those of a window, in the cycle after its last word
        m.d.sync += whole.eq(full)
        self._emit(m, full, whole, self._sum(m, column, full))
        return m

    def _sum(self, m: Module, column: Signal, full: Signal) -> list[Value]:
        """Adds a memory word to the windows that hold its pixels; sums in the residuals' order.

        They begin again with the word after the one that makes them ``full``: to begin takes a
        LUT's input that an adder leaves free.
        """
        g = self._geometry
        lanes, width = g.pixel_lanes, g.residual_bits
        bits = width + (arith.POOL_KERNEL**2 - 1).bit_length()
        begun = Signal()
        with m.If(self._valid):
            m.d.sync += begun.eq(~full)
        # Which pixels of the word a window holds: the same for all channels.
        masks = {(q, p): self._mask(m, column, q, p) for p in range(lanes) for q in range(lanes)}
        sums = []
        for c in range(g.residual_channels):
            pixels = [
                self._word.word_select(c * lanes + q, width).as_signed() for q in range(lanes)
            ]
            # Of two, a window that holds one alone holds the one away from the pad.
            alone = Signal(signed(width), name=f"alone{c}")
            m.d.comb += alone.eq(Mux(self.record.pad_left, pixels[-1], pixels[0]))
            for p in range(lanes):
                total = Signal(signed(bits), name=f"total{c}_{p}")
                part = self._part(m, pixels, alone, masks, p, f"{c}_{p}")
                with m.If(self._valid):
                    m.d.sync += total.eq(Mux(begun, total + part, part))
                sums.append(total)
        return sums

    def _mask(self, m: Module, column: Signal, q: int, p: int) -> Signal:
        mask = Signal(name=f"mask{q}_{p}")
        held = [
            (column == w) & (self.record.pad_left == pad)
            for w in range(COLUMNS)
            for pad in (0, 1)
            if covers(w, q, p, self._geometry.pixel_lanes, pad)
        ]
        m.d.comb += mask.eq(Cat(*held).any())
        return mask

    def _part(
        self, m: Module, pixels: list, alone: Signal, masks: dict, p: int, name: str
    ) -> Signal:
        """The pixels of a word that window p holds."""
        parts = [Mux(masks[q, p], pixel, 0) for q, pixel in enumerate(pixels)]
        part = Signal(signed(self._geometry.residual_bits + len(parts)), name=f"part{name}")
        if len(pixels) == 2:  # both, one, or none: their sum serves both windows
            first, second = masks[0, p], masks[1, p]
            both = pixels[0] + pixels[1]
            m.d.comb += part.eq(Mux(first & second, both, Mux(first | second, alone, 0)))
        else:
            m.d.comb += part.eq(sum(parts[1:], parts[0]))
        return part

    def _emit(self, m: Module, full: Signal, whole: Signal, sums: list[Value]) -> None:
        g, r = self._geometry, self.record
        together = g.slot_abreast
        lanes, count = g.pixel_lanes, g.residual_lanes // together
        drain = [Signal(s.shape(), name=f"drain{i}") for i, s in enumerate(sums)]
        left = Signal(range(count + 1))
        short_row, first_column, row_end, tile_last = (Signal() for _ in range(4))
        m.d.comb += self.tile_step.eq(full)
        with m.If(full):
            m.d.sync += [
                first_column.eq(self.tile.first_column),
                row_end.eq(self.tile.row_end),
                tile_last.eq(self.tile.row_end & self.tile.last_row),
                short_row.eq(
                    (r.short_top & self.tile.first_row) | (r.short_bottom & self.tile.last_row)
                ),
            ]
        with m.If(whole):
            m.d.sync += [d.eq(s) for d, s in zip(drain, sums, strict=True)]
            m.d.sync += left.eq(count)
        with m.Elif(left != 0):
            m.d.sync += [Cat(*drain).eq(Cat(*drain[together:])), left.eq(left - 1)]
        first = (0 - left)[: (lanes - 1).bit_length()] if lanes > together else 0
        pixels = [first + i for i in range(together)]
        for i, (total, pixel) in enumerate(zip(drain, pixels, strict=False)):
            short_column = (r.short_left & first_column & (pixel == 0)) | (
                r.short_right & row_end & (pixel == r.tail_less)
            )
            both, one = short_row & short_column, short_row ^ short_column
            # 9 = 8 + 1, 6 = 4 + 2, 4
            times = Mux(both, total << 3, total << 2) + Mux(both, total, Mux(one, total << 1, 0))
            m.d.sync += self.value.word_select(i, pooled_bits(g)).eq(times)
        m.d.sync += [
            self.place.valid.eq(left != 0),
            self.place.pixel.eq(first),
            self.place.fits.eq(Cat(~row_end | (pixel <= r.tail_less) for pixel in pixels)),
            self.place.word_end.eq(left == 1),
            self.place.word_last.eq(1),
            self.place.tile_end.eq(left <= lanes // together),
            self.place.row_end.eq(row_end),
            self.place.tile_last.eq(tile_last),
        ]
