"""Drivers of `amaranth.lib.stream` ports as they appear in Verilog, with stalls and rule checks.

A port `i` is the signals `i__payload`, `i__valid`, `i__ready`. A word moves at a rising clock edge
that finds valid and ready high. The rules, checked on every output at every edge:

- valid, once high, stays high until the word has moved;
- the payload does not change while it waits;
- valid does not wait for ready (the pattern `LAZY` hangs a design that breaks this one).

A payload is an integer, as wide as the signal; `pack` and `unpack` translate lanes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cocotb
from cocotb.task import Task
from cocotb.triggers import Event, RisingEdge

GARBAGE_WHILE_IDLE = True
"""Payload is random while valid is low, so that a design which samples it then is caught."""


@dataclass(frozen=True)
class Stall:
    """When one side of a stream holds the other up.

    Attributes
    ----------
    name : str
        For reports.
    probability : float
        Of an idle cycle; of the start of a burst where `burst` is more than 1.
    burst : int
        Longest run of idle cycles.
    lazy : bool
        Of a sink only: ready stays low until valid is high.
    """

    name: str
    probability: float = 0.0
    burst: int = 1
    lazy: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability < 1.0:
            raise ValueError(f"probability must be in [0, 1), not {self.probability!r}")
        if self.burst < 1:
            raise ValueError(f"burst must be at least 1, not {self.burst!r}")

    @property
    def never(self) -> bool:
        """Whether there is no idle cycle at all (the fast path)."""
        return self.probability == 0.0 and not self.lazy

    def idle_cycles(self, rng: random.Random) -> Iterator[int]:
        """Endless: how many idle cycles stand before each word."""
        while True:
            count = 0
            while rng.random() < self.probability:
                count += rng.randint(1, self.burst) if self.burst > 1 else 1
            yield count


NEVER = Stall("never")
RANDOM = Stall("random", probability=0.4)
BURSTS = Stall("bursts", probability=0.08, burst=24)
LAZY = Stall("lazy", probability=0.2, lazy=True)

STALLS = {stall.name: stall for stall in (NEVER, RANDOM, BURSTS)}
"""The three patterns every block is tested with, on each side."""


class StreamRuleError(AssertionError):
    """A design broke a rule of streams."""


def pack(lanes: Iterable[int], width: int) -> int:
    """Words of `width` bits side by side, the first lowest; negative words as two's complement."""
    mask = (1 << width) - 1
    value = 0
    for position, lane in enumerate(lanes):
        value |= (int(lane) & mask) << (position * width)
    return value


def unpack(value: int, width: int, count: int, *, signed: bool = False) -> list[int]:
    """The opposite of `pack`."""
    mask, sign = (1 << width) - 1, 1 << (width - 1)
    lanes = [(value >> (position * width)) & mask for position in range(count)]
    return [lane - ((lane & sign) << 1) for lane in lanes] if signed else lanes


class _Port:
    """The signals of one stream port and the clock it runs on."""

    def __init__(self, dut: Any, name: str, clock: Any, stall: Stall, seed: int | None) -> None:
        self.name = name
        self.clock = dut.clk if clock is None else clock
        self.stall = stall
        self.valid = getattr(dut, f"{name}__valid")
        self.ready: Any = getattr(dut, f"{name}__ready", None)
        self.payload: Any = getattr(dut, f"{name}__payload", None)
        # A one-bit signal is a scalar to cocotb, and has no length.
        self.width: int = getattr(self.payload, "__len__", lambda: 1)()
        seed = cocotb.RANDOM_SEED if seed is None else seed
        self.rng = random.Random(f"{seed}/{name}")

    def is_ready(self) -> bool:
        """Whether the other side takes (an always-ready stream may have no such signal)."""
        return self.ready is None or self.ready.value == 1


class StreamSource(_Port):
    """Sends words into an input of the design.

    Parameters
    ----------
    dut : handle
        The design.
    name : str
        Of the port: "i" for `i__payload`, `i__valid`, `i__ready`.
    clock : handle or None
        None is `dut.clk`.
    stall : Stall
    seed : int or None
        Of the stalls; None is the run's seed.

    Attributes
    ----------
    sent : int
        Words taken by the design so far.
    """

    def __init__(
        self,
        dut: Any,
        name: str = "i",
        *,
        clock: Any = None,
        stall: Stall = NEVER,
        seed: int | None = None,
    ) -> None:
        super().__init__(dut, name, clock, stall, seed)
        if stall.lazy:
            raise ValueError("only a sink can be lazy: a source must not wait for ready")
        self.sent = 0
        self.valid.value = 0

    def start(self, words: Iterable[int]) -> Task[None]:
        """Send in the background; await the task for the last transfer."""
        return cocotb.start_soon(self.send(words))

    async def send(self, words: Iterable[int]) -> None:
        """Send words; returns just after the edge at which the last one moved."""
        edge = RisingEdge(self.clock)
        idle = None if self.stall.never else self.stall.idle_cycles(self.rng)
        raised = False
        for word in words:
            if idle is not None and (pause := next(idle)):
                self._rest()
                raised = False
                for _ in range(pause):
                    await edge
            if self.payload is not None:
                self.payload.value = int(word)
            if not raised:
                self.valid.value = 1
                raised = True
            await edge
            while not self.is_ready():
                await edge
            self.sent += 1
        self._rest()

    def _rest(self) -> None:
        self.valid.value = 0
        if GARBAGE_WHILE_IDLE and self.payload is not None:
            self.payload.value = self.rng.getrandbits(self.width)


class StreamSink(_Port):
    """Takes words from an output of the design, and holds the design to the rules of streams.

    Takes from its construction on; words wait in order until they are asked for.

    Parameters
    ----------
    dut, name, clock, stall, seed
        As of `StreamSource`; the port is "o" unless said.
    limit : int or None
        Take so many words, then hold ready low; None takes without end.

    Attributes
    ----------
    words : list of int
        Taken and not yet asked for.
    received : int
        Words taken so far.
    cycles : list of int
        The cycle at which each word moved, counted from the construction.
    """

    def __init__(
        self,
        dut: Any,
        name: str = "o",
        *,
        clock: Any = None,
        stall: Stall = NEVER,
        seed: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(dut, name, clock, stall, seed)
        if self.ready is None and not stall.never:
            raise ValueError(f"port {name!r} has no ready, so its sink cannot stall")
        self.words: list[int] = []
        self.received = 0
        self.cycles: list[int] = []
        self.limit = limit
        self._cycle = 0
        self._arrival = Event()
        if self.ready is not None:
            self.ready.value = int(stall.never)
        self._task = cocotb.start_soon(self._always_ready() if stall.never else self._stalling())

    async def receive(self, count: int) -> list[int]:
        """The next `count` words, waiting for them as long as it takes."""
        while len(self.words) < count:
            self._arrival.clear()
            await self._arrival.wait()
        words, self.words = self.words[:count], self.words[count:]
        return words

    def stop(self) -> None:
        """Take no more; ready goes low."""
        self._task.cancel()
        if self.ready is not None:
            self.ready.value = 0

    def _full(self) -> bool:
        return self.limit is not None and self.received >= self.limit

    def _take(self) -> None:
        self.words.append(0 if self.payload is None else int(self.payload.value))
        self.cycles.append(self._cycle)
        self.received += 1
        self._arrival.set()

    async def _always_ready(self) -> None:
        """The fast path: where nothing ever waits, no rule about waiting can be broken."""
        edge, valid = RisingEdge(self.clock), self.valid
        while not self._full():
            await edge
            if valid.value == 1:
                self._take()
            self._cycle += 1
        if self.ready is not None:
            self.ready.value = 0

    async def _stalling(self) -> None:
        edge = RisingEdge(self.clock)
        idle = self.stall.idle_cycles(self.rng)
        pause, taking, waiting = next(idle), False, None
        while not self._full():
            if not pause and not self.stall.lazy:
                self.ready.value, taking = 1, True
            await edge
            waiting = self._checked(waiting)
            if taking and waiting is not None:
                self._take()
                self.ready.value, taking, waiting = 0, False, None
                pause = next(idle)
            elif pause:
                pause -= 1
            elif self.stall.lazy and waiting is not None:
                self.ready.value, taking = 1, True
            self._cycle += 1

    def _checked(self, waiting: int | None) -> int | None:
        """The payload that waits at this edge, or None; compared with the one before."""
        valid = self.valid.value == 1
        if waiting is not None and not valid:
            raise StreamRuleError(
                f"port {self.name!r}: valid must stay high until its word has moved, "
                f"and fell in cycle {self._cycle}"
            )
        if not valid:
            return None
        payload = 0 if self.payload is None else int(self.payload.value)
        if waiting is not None and payload != waiting:
            raise StreamRuleError(
                f"port {self.name!r}: the payload must not change while it waits, and went "
                f"from {waiting:#x} to {payload:#x} in cycle {self._cycle}"
            )
        return payload


def first_difference(expected: Sequence[int], got: Sequence[int]) -> str:
    """Empty if equal, else a sentence with the first index, both values and the number of faults.

    For messages: a bench asserts that this is empty.
    """
    if len(expected) != len(got):
        return f"{len(expected)} words expected, {len(got)} got"
    faults = [
        index for index, pair in enumerate(zip(expected, got, strict=True)) if len({*pair}) > 1
    ]
    if not faults:
        return ""
    shown = ", ".join(f"[{i}] expected {expected[i]} got {got[i]}" for i in faults[:4])
    return f"{len(faults)} of {len(expected)} words differ: {shown}"
