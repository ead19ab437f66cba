"""The lanes' clock: the engine's, or one twice as fast from the same PLL."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value

from compiler.geometry import Geometry

FAST = "fast"
"""Domain of lanes that take two passes a cycle. Every second of its edges is one of ``sync``."""


def lane_domain(geometry: Geometry) -> str:
    """Domain of the lanes."""
    return "sync" if geometry.pump == 1 else FAST


def sum_domain(geometry: Geometry) -> str:
    """Domain in which the lanes' sums are read, and become activations."""
    return "sync" if geometry.slot_ticks == 1 else FAST


def second_half(m: Module) -> Value:
    """High in the second half of a ``sync`` cycle; for logic of the domain ``fast``.

    A flip-flop of ``sync`` turns with each of its edges, and one of ``fast`` follows half a cycle
    behind: so it needs no reset, and holds whatever the two started with.
    """
    turning, follower = Signal(name="turning"), Signal(name="follower")
    m.d.sync += turning.eq(~turning)
    m.d.fast += follower.eq(turning)
    return turning == follower
