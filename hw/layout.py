"""The compiler's layouts as Amaranth shapes, and the port of the activation memory."""

from __future__ import annotations

from amaranth.hdl import Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from compiler.geometry import Geometry

SIGNED = frozenset({"bias", "start"})


def struct(fields: tuple[tuple[str, int], ...]) -> data.StructLayout:
    """Fields of `compiler.geometry` as a structure, the first in the least significant bits."""
    return data.StructLayout(
        {name: signed(width) if name in SIGNED else unsigned(width) for name, width in fields}
    )


def stride_put(geometry: Geometry) -> data.StructLayout:
    """A word of the stream on its way into the tables of strides (`hw.pointer`).

    parts : a bit for each word of a row: this is it
    row : of `Geometry.stride_rows`
    word : of the stream
    """
    rows = len(geometry.stride_rows)
    return data.StructLayout(
        {
            "parts": geometry.stride_words,
            "row": range(1 << (rows - 1).bit_length()),
            "word": geometry.stream_bits,
        }
    )


def side_by_side(values: Value, geometry: Geometry) -> list[Value]:
    """Signed values that are taken together (`Geometry.slot_abreast`), the first lowest."""
    width = len(values) // geometry.slot_abreast
    return [values.word_select(i, width).as_signed() for i in range(geometry.slot_abreast)]


def memory_read(geometry: Geometry) -> wiring.Signature:
    """A reader's side of the activation memory: data come in the cycle after ``valid & ready``."""
    return wiring.Signature(
        {
            "valid": Out(1),
            "ready": In(1),
            "address": Out(geometry.address_bits),
            "data": In(geometry.word_bits),
        }
    )


def memory_write(geometry: Geometry) -> wiring.Signature:
    """A writer's side: written at the end of the cycle of ``valid & ready``; a mask bit for
    `Geometry.mask_channels` lanes."""
    return wiring.Signature(
        {
            "valid": Out(1),
            "ready": In(1),
            "address": Out(geometry.address_bits),
            "data": Out(geometry.word_bits),
            "mask": Out(geometry.mask_bits),
        }
    )
