"""Average pooling of the residual stream: sums over 3x3 windows, times 36/count."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from compiler import arith
from compiler.geometry import Geometry
from hw.fetch import word_layout
from hw.layout import struct
from hw.requantise import TileCounter, pooled_bits, value_layout

COLUMNS = arith.POOL_KERNEL
"""Memory words a window row takes: enough for pixel_lanes neighbouring windows at stride 2."""


def covers(word: int, pixel_in: int, pixel_out: int, lanes: int, pad: int) -> bool:
    """Whether window ``pixel_out`` holds pixel ``pixel_in`` of the row's ``word``-th memory word.

    Counted from the tile's first output: window p spans columns 2p - pad .. 2p - pad + 2, and with a
    pad the row's first word is the one to the left.
    """
    column = (word - pad) * lanes + pixel_in
    return 0 <= column - (2 * pixel_out - pad) < arith.POOL_KERNEL


class Pool(wiring.Component):
    """Window sums of `compiler.arith.pool` before its right shift, a memory word of them at a time.

    Takes nine words a tile (three rows of three), one a cycle, and gives residual_lanes values, one a
    cycle, while the next tile's words come in. Pixels outside the map read as 0.

    Members
    -------
    record : In
    layer_start : In(1), strobe
    i : In(stream of `word_layout`)
    value : Out, signed
    place : Out(`value_layout`)
    """

    def __init__(self, geometry: Geometry) -> None:
        if geometry.residual_lanes > COLUMNS * arith.POOL_KERNEL:
            raise ValueError(f"residual_lanes must be at most 9, not {geometry.residual_lanes}")
        self._geometry = geometry
        super().__init__(
            {
                "record": In(struct(geometry.record_fields)),
                "layer_start": In(1),
                "i": In(stream.Signature(word_layout(geometry))),
                "value": Out(signed(pooled_bits(geometry))),
                "place": Out(value_layout(geometry)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        column, row, full = Signal(2), Signal(2), Signal()
        m.d.comb += self.i.ready.eq(1)
        last_column = column == COLUMNS - 1
        last_row = row == arith.POOL_KERNEL - 1
        m.d.sync += full.eq(self.i.valid & last_column & last_row)
        with m.If(self.i.valid):
            m.d.sync += column.eq(Mux(last_column, 0, column + 1))
            with m.If(last_column):
                m.d.sync += row.eq(Mux(last_row, 0, row + 1))
        with m.If(self.layer_start):
            m.d.sync += Cat(column, row).eq(0)
        sums = self._sum(m, column, (column == 0) & (row == 0))
        self._emit(m, full, sums)
        return m

    def _sum(self, m: Module, column: Signal, first: object) -> list[Signal]:
        """Adds a memory word to the windows that hold its pixels; sums in the residuals' order."""
        g = self._geometry
        lanes, width = g.pixel_lanes, g.residual_bits
        bits = width + (arith.POOL_KERNEL**2 - 1).bit_length()
        sums = []
        for c in range(g.residual_channels):
            pixels = [
                self.i.payload.data.word_select(c * lanes + q, width).as_signed()
                for q in range(lanes)
            ]
            for p in range(lanes):
                total = Signal(signed(bits), name=f"sum{c}_{p}")
                parts = [Mux(first, 0, total)]
                for q, pixel in enumerate(pixels):
                    held = [
                        (column == w) & (self.record.pad_left == pad)
                        for w in range(COLUMNS)
                        for pad in (0, 1)
                        if covers(w, q, p, lanes, pad)
                    ]
                    if held:
                        parts.append(Mux(Cat(*held).any(), pixel, 0))
                with m.If(self.i.valid):
                    m.d.sync += total.eq(sum(parts[1:], parts[0]))
                sums.append(total)
        return sums

    def _emit(self, m: Module, full: Signal, sums: list[Signal]) -> None:
        g, r = self._geometry, self.record
        lanes, count = g.pixel_lanes, g.residual_lanes
        drain = [Signal(s.shape(), name=f"drain{i}") for i, s in enumerate(sums)]
        left = Signal(range(count + 1))
        short_row, first_column, row_end, tile_last = (Signal() for _ in range(4))
        m.submodules.tiles = tiles = TileCounter(g)
        m.d.comb += [
            tiles.record.eq(r),
            tiles.restart.eq(self.layer_start),
            tiles.step.eq(full),
        ]
        with m.If(full):
            m.d.sync += [d.eq(s) for d, s in zip(drain, sums, strict=True)]
            m.d.sync += [
                left.eq(count),
                first_column.eq(tiles.first_column),
                row_end.eq(tiles.row_end),
                tile_last.eq(tiles.row_end & tiles.last_row),
                short_row.eq(
                    (r.short_top & tiles.first_row) | (r.short_bottom & tiles.last_row)
                ),
            ]
        with m.Elif(left != 0):
            m.d.sync += [Cat(*drain).eq(Cat(*drain[1:])), left.eq(left - 1)]
        pixel = (0 - left)[: (lanes - 1).bit_length()] if lanes > 1 else 0
        short_column = (r.short_left & first_column & (pixel == 0)) | (
            r.short_right & row_end & (pixel == r.tail_less)
        )
        total = drain[0]
        both, one = short_row & short_column, short_row ^ short_column
        m.d.comb += [
            # 9 = 8 + 1, 6 = 4 + 2, 4
            self.value.eq(
                Mux(both, total << 3, total << 2) + Mux(both, total, Mux(one, total << 1, 0))
            ),
            self.place.valid.eq(left != 0),
            self.place.pixel.eq(pixel),
            self.place.fits.eq(~row_end | (pixel <= r.tail_less)),
            self.place.word_end.eq(left == 1),
            self.place.word_last.eq(1),
            self.place.tile_end.eq(left <= lanes),
            self.place.row_end.eq(row_end),
            self.place.tile_last.eq(tile_last),
        ]
