"""How many cycles a layer takes: the engine's pacing, cycle by cycle, without its data.

Who waits for whom is all that matters here: window words for the memory port and for room, steps
for words, tiles for the requantiser, and everything for weights. `group_cycles` plays that through
for one group of tiles; groups are alike, so a layer is a sum. The benches hold it to the simulated
engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from compiler import arith
from compiler.geometry import Geometry

LAUNCH = 2
"""Cycles from a group's weights being there to its first window word."""

POOL_CYCLES = 12
"""Cycles of a pooling layer before its first window and after its last."""

WORD_CYCLES = 2
"""Cycles a word of the Image takes to come: one to read it, one to take it (`hw.store`)."""

SCORE_CYCLES = 6
"""Cycles that a score takes beyond its division."""

Record = Mapping[str, int]


def layer_cycles(record: Record, geometry: Geometry, channels: int) -> int:
    """Predicted cycles from a layer's start to the next one's; of the last layer, to the class.

    ``channels`` is how many of its outputs are no padding.
    """
    if record["pool"]:
        return _pool_cycles(record, geometry)
    g, groups = geometry, record["groups_less"] + 1
    reads = record["residual_groups"]
    first, steady = _timed(record, g, reads > 0)
    plain = _timed(record, g, False)[1] if 0 < reads < groups else steady
    load = record["weight_words"] * (g.weight_bits // g.stream_bits)
    load = WORD_CYCLES * (load + g.output_lanes * g.param_words)
    # Weights of one group load while another's are used, as far as the ring holds both.
    ahead = 2 if 2 * record["weight_words"] <= g.weight_depth else 1
    loaded, done = 0, 0
    ends: list[int] = []
    for group in range(groups):
        loaded = max(loaded, ends[group - ahead] if group >= ahead else 0) + load
        pace = first if group == 0 else (steady if group < reads else plain)
        begun = max(loaded, done if not record["last"] or not ends else ends[-1] - steady)
        done = begun + pace
        if record["last"]:  # a group's last step waits for the scores of the group before
            used = min(g.output_lanes, channels - group * g.output_lanes)
            done = max(done, ends[-1] if ends else 0)
            ends.append(done + g.lane_cycles + max(used, 0) * (arith.SCORE_BITS + SCORE_CYCLES))
        else:
            ends.append(done)
    return ends[-1] if record["last"] else done + _tail(g) + next_layer_cycles(g)


def _timed(record: Record, geometry: Geometry, reading: bool) -> tuple[int, int]:
    """Cycles from launch to the last tile's last step: of a first group, and of a further one."""
    items = tuple(sorted(record.items()))
    one = group_cycles(items, geometry, reading, 1)
    return one, group_cycles(items, geometry, reading, 2) - one


def _tail(geometry: Geometry) -> int:
    """From a tile's last step to the end of its last activation."""
    g = geometry
    last = (g.output_lanes - 1) * g.channel_cycles + g.pixel_lanes - 1
    return g.lane_cycles - 1 + last + g.activation_cycles + 2


def _outside(r: Record) -> list[bool]:
    """Of each word that one group fetches, in order: whether it is padding, and so not read."""
    stride = 1 + r["stride2"]
    return [
        y < r["pad_top"] or y > r["row_last"] or x < r["pad_left"] or x > r["column_last"]
        for line in range(r["height_out_less"] + 1)
        for x in range(r["columns_less"] + 1)
        for y in range(line * stride, line * stride + r["kernel_h_less"] + 1)
        for _ in range(r["words_less"] + 1)
    ]


@dataclass(slots=True)
class _Fetch:
    """Words on their way into the window buffer (`hw.fetch`), counted from the layer's first."""

    outside: list[bool]
    groups: int
    fired: int = 0
    written: int = 0
    arriving: bool = False
    launch: int = 0  # not before this cycle

    def advance(self, cycle: int, free: bool, room: bool, consumed: int) -> None:
        """One cycle: ``free`` is the memory port, ``consumed`` how many words have been read."""
        size = len(self.outside)
        group, at = divmod(self.fired, size)
        # The buffer can mark the beginning of one group that has not been read yet.
        marked = at == 0 and group > 0 and consumed <= (group - 1) * size
        fires = group < self.groups and cycle >= self.launch and room and not marked
        fires = fires and (free or self.outside[at])
        self.written += self.arriving
        self.arriving = fires
        self.fired += fires
        if fires and at == size - 1:
            self.launch = cycle + 2


def _accesses(r: Record, g: Geometry, reading: bool) -> list[int]:
    """When a tile takes the memory port, in cycles after its last step."""
    reads, writes, activations = g.accesses
    taken = [*(reads if reading else ()), *writes] if r["residual"] else []
    taken += activations if r["requantise"] else []
    return [g.lane_cycles - 1 + cycle for cycle in taken]


@cache
def group_cycles(
    items: tuple[tuple[str, int], ...], g: Geometry, reading: bool, groups: int
) -> int:
    """Cycles from the launch to the last step of ``groups`` groups, weights being there.

    ``items`` are the record's.
    """
    r = dict(items)
    fetch, accesses = _Fetch(_outside(r), groups), _accesses(r, g, reading)
    # What the requantiser keeps apart: all that a tile might do.
    pattern = [g.lane_cycles - 1 + c for kind in g.accesses for c in kind] if r["residual"] else []
    taken: set[int] = set()
    booked: set[int] = set()
    window, across = r["window_less"] + 1, r["tiles_less"] + 1
    line = (r["columns_less"] + 1) * (r["kernel_h_less"] + 1) * (r["words_less"] + 1)
    lanes_apart = (g.pixel_lanes - 1) * r["step_pixel"]
    onward = r["step_window"] + window - 1 & 2 * g.window_depth - 1
    pace = g.tile_cycles
    lines = (r["height_out_less"] + 1) * groups
    base = place = freed = tile = row = 0
    held, last, half, cooldown, cycle = False, False, 0, 0, LAUNCH
    while row < lines or held:
        fetch_free, room = cycle not in taken, fetch.fired - freed < g.window_depth
        final = half == g.halves - 1
        gate = cooldown == 0 and booked.isdisjoint(cycle + c for c in pattern)
        valid = held and (gate or not (last and final))
        cooldown = max(0, cooldown - 1)
        take = (not held or (valid and final)) and row < lines
        take = take and base + place + lanes_apart < fetch.written
        if valid and final and last:
            cooldown = pace - 1
            booked.update(cycle + c for c in pattern)
            taken.update(cycle + c for c in accesses)
        fetch.advance(cycle, fetch_free, room, base + place)
        if take:
            held, last, half = True, place == window - 1, 0
            place += 1
            if r["shared"]:
                freed = base + place
            if last:
                tile += 1
                base += onward
                if tile == across:
                    tile, row = 0, row + 1
                    base = row * line
                place, freed = 0, base
        elif valid and final:
            held = False
        elif valid:
            half += 1
        cycle += 1
    return cycle - 1


def _pool_cycles(r: Record, g: Geometry) -> int:
    """Nine words a tile and a pause; reads are fewer, and hidden."""
    tiles = (r["height_out_less"] + 1) * (r["tiles_less"] + 1) * (r["groups_less"] + 1)
    return (
        POOL_CYCLES + tiles * (arith.POOL_KERNEL**2 + 1) + g.residual_lanes + next_layer_cycles(g)
    )


def next_layer_cycles(g: Geometry) -> int:
    """From a layer's end to the next one's start: its record is read."""
    return WORD_CYCLES * g.words(g.record_fields) + 2
