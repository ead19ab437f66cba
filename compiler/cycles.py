"""How many cycles a layer takes: the engine's pacing, cycle by cycle, without its data.

Who waits for whom is all that matters here: window words for the memory port and for room, steps
for words, tiles for the requantiser, and everything for weights. `_play` plays a layer
through. The benches hold it to the simulated engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from compiler import arith
from compiler.geometry import Geometry, groups_in

POOL_CYCLES = 4
"""From a pooling window's last word to the cycle in which its last mean may be written, besides one
for each time that means are given, and one for each tick of a slot."""

MAXIMUM_CYCLES = 2
"""From a window's last word to the cycle in which its maximum is written."""

SCORE_CYCLES = 8
"""Cycles that a score takes beyond its division."""

AGAIN_BITS = 128
"""Of flash between the Image's last word and its first in the next pass: CRC and frame."""

ADDEND_CYCLES = 8
"""Cycles that an addend takes beyond its division, besides those of a channel."""

Record = Mapping[str, int]


def layer_cycles(
    record: Record, geometry: Geometry, channels: int, flash: Flash | None = None
) -> int:
    """Predicted cycles from a layer's start to the next one's; of the last layer, to the class.

    ``channels`` is how many of its outputs are no padding; ``flash`` says when an Image's words
    come that is not resident, and is left as it is when the layer is done.
    """
    g = geometry
    if flash is None:
        ends = _group_ends(tuple(sorted(record.items())), g)
    else:
        ends = _play(record, g, flash)
    if record["last"]:
        used = channels - record["groups_less"] * g.output_lanes
        return ends[-1] + g.lane_cycles + used * (arith.SCORE_BITS + SCORE_CYCLES)
    return ends[-1] + then_next(_tail(record, g) + 1, g, flash)


def _averages(r: Record) -> bool:
    """Whether a layer is an average pool: it loads nothing, and no sum of the lanes is taken."""
    return bool(r["pool"]) and not r["maximum"]


def then_next(cycles: int, g: Geometry, flash: Flash | None) -> int:
    """Cycles in which no weights are read, and those until the next layer's record has been."""
    if flash is not None:
        flash.run(cycles)
        cycles += sum(flash.take() for _ in range(g.record_words))
    return cycles + next_layer_cycles(g)


def next_layer_cycles(g: Geometry) -> int:
    """From a layer's end to the next one's start: its record is read, a word in two cycles."""
    return 2 * g.record_words + 5


@dataclass(frozen=True, slots=True)
class FlashPace:
    """How fast a flash sends, or what stands for one (`hw.flash`, `hw.sdram`).

    Attributes
    ----------
    unit_cycles, unit_bits : int
        Cycles that a unit takes, which is stored at once, and its bits.
    spare_cycles : int
        That a unit may wait for the memory before the flash waits too.
    start_cycles : int
        From the end of a pass to the first bits of the next.
    row_units, row_cycles : int
        After so many units from a pass's beginning on it rests for so many cycles; 0 if never.
    most_cycles : int
        It rests so at the latest when so many have passed since it last did; 0 if it need not.
    """

    unit_cycles: int
    unit_bits: int
    spare_cycles: int
    start_cycles: int
    row_units: int = 0
    row_cycles: int = 0
    most_cycles: int = 0

    def in_units_of(self, bits: int) -> FlashPace:
        """The same where several units are stored at once."""
        times = bits // self.unit_bits
        return replace(
            self,
            unit_cycles=times * self.unit_cycles,
            unit_bits=bits,
            row_units=self.row_units // times,
        )


@dataclass(slots=True)
class Flash:
    """Words on their way from flash into the ring (`hw.flash`, `hw.store`) during a picture.

    A unit that waits longer than is spare makes all that follow it late: where several wait so one
    after another that is too much, for the first of them is on its way already.

    Attributes
    ----------
    pace : FlashPace
    word_units : int
        Units of a word.
    ring : int
        Words it holds at most.
    ahead : int
        Words in it.
    coming : int
        Words of the Image that have not come yet; then those of the next picture follow.
    """

    pace: FlashPace
    word_units: int
    ring: int
    ahead: int
    coming: int
    cycle: int = 0  # of the unit, negative before it; it is to be written in the last one
    waited: int = 0  # cycles in that one, of those that are spare: the next unit comes meanwhile
    unit: int = 0  # of the word
    units: int = 0  # of the row
    rested: int = 0  # cycles since the last rest, negative during one
    resting: int = 0  # cycles that are left of a rest in which a unit waits

    def writes(self) -> bool:
        """Whether a unit wants to be written in this cycle."""
        return self.cycle == self.pace.unit_cycles - 1 and self.ahead < self.ring

    def run(self, cycles: int = 1, *, writes: bool = True) -> None:
        """Let time pass; ``writes`` says whether the memory takes what comes."""
        last = self.pace.unit_cycles - 1
        while cycles:
            step = min(cycles, last - self.cycle)
            self.cycle, cycles = self.cycle + step, cycles - step
            self.rested += step
            if not cycles:
                return
            if not (writes and self.ahead < self.ring):
                self.waited = min(self.waited + cycles, self.pace.spare_cycles)
                self._wait(cycles)
                return
            self.rested += 1
            self._written()
            cycles -= 1

    def _is_due(self) -> bool:
        """Whether it has to rest before it goes on."""
        return 0 < self.pace.most_cycles <= self.rested

    def _wait(self, cycles: int) -> None:
        """While a unit waits a rest may pass that nobody notices, or the most of one."""
        self.rested, self.resting = self.rested + cycles, max(0, self.resting - cycles)
        if self._is_due():
            rest, most = self.pace.row_cycles, self.pace.most_cycles
            over = (self.rested - most) % (most + rest)
            self.rested, self.resting = over - rest, max(0, rest - over)

    def _written(self) -> None:
        self.cycle, self.waited, self.unit = self.waited - self.resting, 0, self.unit + 1
        self.units, self.resting = self.units + 1, 0
        due = self._is_due()
        if self.units == self.pace.row_units:
            self.units, due = 0, True
        if due:
            self.cycle, self.rested = self.cycle - self.pace.row_cycles, -self.pace.row_cycles
        if self.unit == self.word_units:
            self.unit, self.ahead, self.coming = 0, self.ahead + 1, self.coming - 1
            if not self.coming:
                pace = self.pace
                between = AGAIN_BITS // pace.unit_bits * pace.unit_cycles
                self.cycle, self.units = -between - pace.start_cycles, 0
                self.rested = -pace.start_cycles

    def shares(self, reads: bool, writes: bool, wants: bool, one: bool) -> tuple[bool, bool]:
        """One cycle of the memory's ports, of which a unit goes before a word that is wanted.

        ``reads`` and ``writes`` say which are free; ``one``, that they are one and the same.
        Returns whether there is still one to read by, and whether there is such a word.
        """
        if one and self.writes():
            reads = wants = False
        wants = wants and self.ahead > 0
        self.ahead -= wants and reads
        self.run(writes=writes)
        return reads, wants

    def take(self) -> int:
        """Take a word as soon as there is one, which needs two cycles; returns the wait for it."""
        waited = 0
        while not self.ahead:
            self.run()
            waited += 1
        self.ahead -= 1
        self.run(2)
        return waited


def _tail(r: Record, g: Geometry) -> int:
    """From a group's last step to its last activation."""
    if r["maximum"]:
        return MAXIMUM_CYCLES
    if _averages(r):
        # Means that are given together have a slot of their own; where others hold two pixels the
        # last but one's ends a tile.
        ends = _pooled_cycles(g) - min(g.slot_pixels, g.slot_ticks) + g.turn_cycles
        return ends + g.activation_cycles - g.value_cycles
    if r["divide"]:
        last = g.output_lanes * _divided_cycles(g) - 1 - g.channel_cycles
        return g.lane_cycles + last + g.activation_cycles - 1
    *_, activations = _accesses(r, g)
    return activations[-1] - 1


def _pooled_cycles(g: Geometry) -> int:
    """From a pooling window's last word to the cycle in which its last mean may be written."""
    waits = int(g.pixel_lanes > 1)  # see `hw.pool`
    return POOL_CYCLES + g.residual_lanes // g.slot_abreast + g.slot_ticks + waits


def _tiles_apart(r: Record, g: Geometry) -> int:
    """Fewest cycles from a tile's last step to the next one's."""
    if r["pool"]:
        return 1
    if r["divide"]:
        # The next one's accesses must not meet this one's last write; it may start in two cycles.
        meets = g.written_behind - 2 in g.booked
        return g.lane_cycles + g.output_lanes * _divided_cycles(g) + meets
    return g.tiles_apart


def _divided_cycles(g: Geometry) -> int:
    """Of a channel whose addend is divided."""
    return arith.SCORE_BITS + ADDEND_CYCLES + g.channel_cycles


def _accesses(r: Record, g: Geometry) -> tuple[list[int], list[int], list[int]]:
    """`Geometry.accesses` of a layer, from a tile's last step on."""
    begin = g.lane_cycles
    if r["maximum"]:
        return [], [], [MAXIMUM_CYCLES]
    if _averages(r):
        return [], [_pooled_cycles(g) + g.residual_cycles - g.value_cycles], []
    if r["divide"]:
        each = _divided_cycles(g)
        firsts = range(0, g.output_lanes, g.residual_channels)
        back = each - 1 - g.channel_cycles
        reads = [begin + first * each + (0 if r["divide_sum"] else back) for first in firsts]
        lasts = [first + g.residual_channels - 1 for first in firsts]
        return reads, [begin + last * each + back + g.residual_cycles for last in lasts], []
    reads, writes, activations = ([begin + c for c in kind] for kind in g.accesses)
    return reads, writes, activations


def _outside(r: Record) -> list[bool]:
    """Of each word that one group fetches, in order: whether it is padding, and so not read."""
    stride = 1 + r["stride2"]
    rows, words = range(r["kernel_h_less"] + 1), range(r["words_less"] + 1)
    # From a window's first, in order; slices of the image are all of one row.
    ys = [0 if r["sliced"] else y for y in rows for _ in words]
    return [
        not (r["pad_top"] <= y <= r["row_last"] and r["pad_left"] <= x <= r["column_last"])
        for line in range(r["height_out_less"] + 1)
        for x in range(r["columns_less"] + 1)
        for y in (line * stride + y for y in ys)
    ]


@dataclass(slots=True)
class _Load:
    """Parameters and weights on their way from the Image (`hw.loader`, `hw.store`)."""

    r: Record
    g: Geometry
    group: int = 0
    word: int = 0  # of the group
    banks: int = 0  # of parameters, in use
    steps: int = 0  # of weights, in use
    arriving: bool = False
    ready: int = 0  # groups that are loaded and not launched

    def __post_init__(self) -> None:
        if _averages(self.r):  # all there is to load has been
            self.group = self.ready = self.r["groups_less"] + 1

    def wants(self) -> bool:
        """Whether a word is asked for: one is on its way at a time."""
        if self.arriving or self.group > self.r["groups_less"]:
            return False
        if self.word < self._params:
            return self.banks < 2
        return self.steps < self.g.weight_depth

    def advance(self, granted: bool, released: bool) -> None:
        """One cycle; ``released`` says that a group is done."""
        if released:
            self.banks -= 1
            self.steps -= self.r["weight_words"]
        if self.arriving:
            self.word += 1
            params, parts = self._params, self._parts
            if self.word == params:
                self.banks += 1
            elif self.word > params and (self.word - params) % parts == 0:
                self.steps += 1
            if self.word == params + self.r["weight_words"] * parts:
                self.ready, self.group, self.word = self.ready + 1, self.group + 1, 0
        self.arriving = granted

    @property
    def _params(self) -> int:
        return self.g.output_lanes * self.g.param_words * groups_in(self.r)

    @property
    def _parts(self) -> int:
        return self.g.weight_bits // self.g.stream_bits


@dataclass(slots=True)
class _Fetch:
    """Words on their way into the window buffer (`hw.fetch`), counted from the layer's first."""

    outside: list[bool]
    fired: int = 0
    written: int = 0
    arriving: bool = False
    busy: bool = False
    marked: int | None = None  # a group's first word, which has not been read yet

    def asks(self, room: bool) -> bool:
        """Whether nobody below has the port in this cycle."""
        return self.busy and room

    def fires(self, port: bool, room: bool) -> bool:
        """Whether a word comes, read or padding."""
        return self.asks(room) and (port or self.outside[self.fired % len(self.outside)])

    def advance(self, fires: bool, start: bool) -> None:
        """One cycle."""
        self.written += self.arriving
        self.arriving = fires
        if start:
            self.busy, self.marked = True, self.fired
        self.fired += fires
        if fires and self.fired % len(self.outside) == 0:
            self.busy = False


class _Walk:
    """The reader of the window buffer (`hw.window`); words are counted from the layer's first.

    Attributes
    ----------
    at, farthest : int
        The word that the first pixel lane takes next, and the last of what all lanes take then.
    freed : int
        Words before this one make room.
    last, ends_group : bool
        The word taken last ends a tile; and a group.
    more : bool
        There is another word to take.
    """

    def __init__(self, r: Record, g: Geometry) -> None:
        self._window, self._shared = r["window_less"] + 1, r["shared"]
        self._across, self._lines = r["tiles_less"] + 1, r["height_out_less"] + 1
        rows, words = r["kernel_h_less"] + 1, r["words_less"] + 1
        self._line_words = (r["columns_less"] + 1) * rows * words
        self._slices = rows if r["sliced"] else 1
        self._onward = r["step_window"] + self._window - 1 & 2 * g.window_depth - 1
        self._reach = (g.pixel_lanes - 1) * r["step_pixel"]
        self._turns, self._groups = groups_in(r), r["groups_less"] + 1
        self._base = self._place = self._tile = self._line = self._turn = 0
        self.at = self.freed = 0
        self.farthest = self._reach
        self.last, self.ends_group, self.more = False, False, True

    def take(self) -> None:
        """Take the next word."""
        self._place += 1
        self.last, self.ends_group = self._place == self._window, False
        if self._shared:
            self.freed = self._base + self._place
        if self.last:
            self._place, self._turn = 0, self._turn + 1
            if self._turn == self._turns:
                self._next_tile()
        self.at = self._base + self._offset()
        self.farthest = self.at + self._reach

    def _offset(self) -> int:
        """Of a place in its window: of the image's slices each is taken in turn."""
        slice_, column = divmod(self._place, self._window // self._slices)
        return self._place if self._slices == 1 else column * self._slices + slice_

    def _next_tile(self) -> None:
        self._turn, self._tile = 0, self._tile + 1
        self._base += self._onward
        if self._tile == self._across:
            self._tile, self._line = 0, self._line + 1
            self._base = self._line * self._line_words
            self.ends_group = self._line % self._lines == 0
            self.more = self._line < self._lines * self._groups
        self.freed = self._base


@cache
def _group_ends(items: tuple[tuple[str, int], ...], g: Geometry) -> list[int]:
    """What `_play` makes of a record's items where the Image is resident."""
    return _play(dict(items), g, None)


def _play(r: Record, g: Geometry, flash: Flash | None) -> list[int]:
    """The cycle of each group's last step, from the layer's start on.

    A layer is played through: who waits for whom, without the values.
    """
    load, fetch = _Load(r, g), _Fetch(_outside(r))
    reads, writes, activations = _accesses(r, g)
    # What the requantiser keeps apart is all that a tile might do.
    paced = r["residual"] and not r["divide"] and not r["pool"]
    pattern = [g.lane_cycles + c for c in g.booked] if paced else []
    halves, apart = 1 if r["pool"] else g.halves, _tiles_apart(r, g)
    walk = _Walk(r, g)
    booked: set[int] = set()  # cycles that a tile might use, and those it does
    taken_reads: set[int] = set()
    taken_writes: set[int] = taken_reads if not g.two_ports else set()
    released: set[int] = set()
    ends: list[int] = []
    launched = half = clear = cycle = 0
    held, room = False, True
    idle = g.split_sums and not r["pool"]  # a step behind each tile
    while len(ends) <= r["groups_less"]:
        port = cycle not in taken_reads
        coming_room = fetch.fired - walk.freed < g.window_depth - 1
        wants = load.wants() and not fetch.asks(room)
        if flash is not None:
            port, wants = flash.shares(port, cycle not in taken_writes, wants, not g.two_ports)
        granted = port and wants
        fires = fetch.fires(port, room)
        start = cycle > 0 and load.ready > 0 and not fetch.busy and fetch.marked is None
        start = start and launched <= r["groups_less"]
        final = half == halves - 1
        gate = cycle >= clear and booked.isdisjoint(cycle + c for c in pattern)
        valid = held and (gate or not (walk.last and final))
        free = not held or (valid and final and not (idle and walk.last))
        take = free and walk.farthest < fetch.written and walk.more
        if valid and final and walk.last:
            clear = cycle + apart
            booked.update(cycle + c for c in pattern)
            group = len(ends)
            taken_writes.update(cycle + c for c in writes if r["residual"])
            taken_reads.update(cycle + c for c in reads if group < r["residual_groups"])
            taken_writes.update(cycle + c for c in activations if r["requantise"] or r["maximum"])
            if walk.ends_group:
                ends.append(cycle)
                done = cycle + _tail(r, g)
                if r["last"]:
                    clear = (
                        cycle + g.lane_cycles + g.output_lanes * (arith.SCORE_BITS + SCORE_CYCLES)
                    )
                    done = clear
                released.add(done + 1)
        if take:
            held, half = True, 0
            if walk.at == fetch.marked:
                fetch.marked = None
            walk.take()
        elif valid and final:
            held = False
        elif valid:
            half += 1
        if start:
            launched += 1
        load.advance(granted, cycle in released)
        load.ready -= start
        fetch.advance(fires, start)
        room = coming_room
        cycle += 1
    return ends
