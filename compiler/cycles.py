"""How many cycles a layer takes: the engine's pacing, cycle by cycle, without its data.

Who waits for whom is all that matters here: window words for the memory port and for room, steps
for words, tiles for the requantiser, and everything for weights. `group_cycles` plays that through
for one group of tiles; groups are alike, so a layer is a sum. The benches hold it to the simulated
engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from compiler import arith
from compiler.geometry import Geometry

FIFO_DEPTH = 2
"""Words between the memory and the lanes, as in `hw.fetch`."""

LAUNCH = 2
"""Cycles from a group's weights being there to its first window word."""

SCORE_CYCLES = 6
"""Cycles that a score takes beyond its division."""

Record = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Word:
    outside: bool
    commit: bool
    steps: int
    last: bool


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
    load += g.output_lanes * g.param_words
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
    one = group_cycles(record, geometry, reading, 1)
    return one, group_cycles(record, geometry, reading, 2) - one


def _tail(geometry: Geometry) -> int:
    """From a tile's last step to its last activation in the write register."""
    values = (geometry.output_lanes - 1) * geometry.channel_cycles + geometry.pixel_lanes
    return geometry.lane_cycles + values + 2 + -(-geometry.activation_bits // 2)


def _words(r: Record, g: Geometry) -> list[_Word]:
    """The window words of one group, in order."""
    rows, columns, words = r["kernel_h_less"] + 1, r["kernel_w_less"] + 1, r["words_less"] + 1
    stride = 2 if r["stride2"] else 1
    if stride == 2:
        pattern = [
            (c + 2 * p, p == g.pixel_lanes - 1)
            for c in range(columns)
            for p in range(g.pixel_lanes)
        ]
    else:
        pattern = [(i, i >= g.pixel_lanes - 1) for i in range(g.pixel_lanes + columns - 1)]
    sequence = []
    for ty in range(r["height_out_less"] + 1):
        for tx in range(r["tiles_less"] + 1):
            for row in range(rows):
                y = ty * stride - r["pad_top"] + row
                for word in range(words):
                    steps = r["halves_less"] + 1 if word == words - 1 else g.halves
                    for i, (dx, commit) in enumerate(pattern):
                        x = tx * g.pixel_lanes * stride - r["pad_left"] + dx
                        inside = 0 <= y < r["height_in"] and 0 <= x < r["width_in"]
                        end = row == rows - 1 and word == words - 1 and i == len(pattern) - 1
                        sequence.append(_Word(not inside, commit, steps, end))
    return sequence


@dataclass(slots=True)
class _Port:
    """Who else wants the memory: the requantiser's accesses, booked when a tile ends."""

    record: Record
    geometry: Geometry
    reading: bool
    booked: set[int] = field(default_factory=set)
    writes: deque[int] = field(default_factory=deque)

    def book(self, cycle: int) -> None:
        """A tile's last step is issued in this cycle."""
        r, g = self.record, self.geometry
        start, word = cycle + g.lane_cycles + 1, g.phase_cycles  # its first value; a word's time
        filled = word - g.channel_cycles + g.pixel_lanes + 1
        for k in range(g.residual_words if r["residual"] else 0):
            self.booked.add(start + k * word + filled)
            if self.reading:
                self.booked.add(start + k * word - 2)
        if r["requantise"]:
            last = start + (g.output_lanes - 1) * g.channel_cycles
            first = last + 3 + -(-g.activation_bits // 2)
            self.writes.extend(first + p for p in range(g.pixel_lanes))

    def is_free(self, cycle: int) -> bool:
        """Whether a window word can be read; activations are written where the stream is not."""
        if cycle in self.booked:
            return False
        if self.writes and self.writes[0] <= cycle:
            self.writes.popleft()
            return False
        return True


@dataclass(slots=True)
class _Issue:
    """The words the lanes hold, and the requantiser's pace (`hw.fetch.StepIssue`)."""

    record: Record
    geometry: Geometry
    left: int = 0  # steps over the words held
    last: bool = False
    cooldown: int = 0

    def issues(self, cycle: int) -> bool:
        """Whether a step is issued in this cycle."""
        phase = cycle % self.geometry.phase_cycles if self.record["residual"] else 0
        gate = self.cooldown == 0 and phase == 0
        return self.left > 1 or (self.left == 1 and (not self.last or gate))

    def advance(self, issues: bool) -> bool:
        """On to the next cycle; returns whether a tile has ended."""
        self.cooldown = max(0, self.cooldown - 1)
        self.left -= issues
        ended = issues and self.left == 0 and self.last
        if ended:
            self.cooldown = self.geometry.tile_cycles - 1
        return ended


def group_cycles(r: Record, g: Geometry, reading: bool, groups: int) -> int:
    """Cycles from the launch to the last step of ``groups`` groups, weights being there."""
    sequence = _words(r, g)
    port, issue = _Port(r, g, reading), _Issue(r, g)
    fifo: deque[_Word] = deque()
    arriving: _Word | None = None
    index, cycle, launch = 0, 0, 0
    tiles = (r["height_out_less"] + 1) * (r["tiles_less"] + 1) * groups
    while tiles:
        issues = issue.issues(cycle)
        pops = bool(fifo) and (not fifo[0].commit or issue.left == int(issues))
        room = len(fifo) + (arriving is not None) < FIFO_DEPTH + pops
        free = port.is_free(cycle)
        following = sequence[index % len(sequence)]
        fires = index < len(sequence) * groups and cycle >= launch and room
        fires = fires and (following.outside or free)
        if issue.advance(issues):
            tiles -= 1
            port.book(cycle)
        if pops and (head := fifo.popleft()).commit:
            issue.left, issue.last = head.steps, head.last
        if arriving is not None:
            fifo.append(arriving)
        arriving = following if fires else None
        index += fires
        if fires and index % len(sequence) == 0:
            launch = cycle + 2
        cycle += 1
    return cycle - 1 + LAUNCH


def _pool_cycles(r: Record, g: Geometry) -> int:
    """Nine words a tile and a pause; what lies outside the map takes its cycle too.

    A tile's write falls into the next one's reads, which two times in three (measured) costs a
    cycle.
    """
    tiles = (r["height_out_less"] + 1) * (r["tiles_less"] + 1) * (r["groups_less"] + 1)
    pace = tiles * (arith.POOL_KERNEL**2 + 1) + 2 * tiles // 3
    return LAUNCH + pace + r["groups_less"] + 1 + g.residual_lanes + 8 + next_layer_cycles(g)


def next_layer_cycles(g: Geometry) -> int:
    """From a layer's end to the next one's start: its record is read."""
    return g.words(g.record_fields) + 4
