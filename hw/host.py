"""The board's end of the serial link: frames of bytes to the engine, answers back.

The host sends an image, waits for the reply, and may then send the next. Numbers of several bytes
are little-endian; scores are in two's complement.

==================  =====  =========================================================================
host to board       bytes  meaning
==================  =====  =========================================================================
0xA5                1      begins a request
length              3      number of pixel bytes
pixels              length in the order row, column, channel (H, W, C)
check               2      CRC-16 of length and pixels
==================  =====  =========================================================================

==================  =====  =========================================================================
board to host       bytes  meaning
==================  =====  =========================================================================
0x5A                1      begins a reply
status              1      a `Status`; if it is not OK, `check` follows
number of classes   1      n
scores              2 n    of each class in order
label               1      the class with the highest score
check               2      CRC-16 of all between 0x5A and here
==================  =====  =========================================================================

The CRC-16 has the polynomial 0x1021, starts at 0xFFFF, and is not reflected (`CRC`).

After OK and CRC the board listens at once. Any other status may come in the middle of a request,
so the board then ignores the line until it has been quiet for its timeout; the host must pause for
longer than that.
"""

from __future__ import annotations

from enum import IntEnum

from amaranth.hdl import (
    Array,
    Cat,
    Module,
    Mux,
    ResetInserter,
    Signal,
    Value,
    ValueLike,
)
from amaranth.lib import stream, wiring
from amaranth.lib.crc import catalog
from amaranth.lib.wiring import In, Out

from hw.scorer import ANSWER

REQUEST = 0xA5
"""First byte of a request."""

REPLY = 0x5A
"""First byte of a reply."""

LENGTH_BYTES = 3
"""Bytes of a request's length."""

CRC = catalog.CRC16_IBM_3740(data_width=8)
"""Check of requests and replies; ``CRC.compute(bytes)`` is its software twin."""

DEFAULT_TIMEOUT = 0.05
"""Seconds without a byte after which a request counts as broken off."""


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    LENGTH = 1
    """The length is not that of the network's images."""
    CRC = 2
    """The request was damaged on the way."""
    LINK = 3
    """The request broke off, or a byte of it was lost."""
    ENGINE = 4
    """The engine has no network yet, or reports an error."""


Answer = ANSWER
"""What the engine sends: one class' score; with the last one's, the label of the image."""


class Host(wiring.Component):
    """Takes requests from a stream of bytes, hands images to an engine, and replies.

    An image that has been begun is always completed, with zeros if need be, and the engine's answer
    is always awaited: so engine and link stay in step whatever the host sends. Nothing is buffered:
    the engine has each pixel in the cycle its byte arrives, and is held up while a score is sent.

    The engine must answer each image with `num_classes` elements, or raise `engine_error`. Raised
    before the answer has begun it ends the request with `Status.ENGINE`; raised within an answer it
    cuts the reply short, and the host times out.

    Parameters
    ----------
    timeout : int
        Cycles without a byte after which a request counts as broken off; the next power of two is
        taken.
    size_bits : int
        Width of `num_pixels`, up to 24; each bit costs about five LUTs.

    Members
    -------
    i_bytes, o_bytes : In, Out(stream.Signature(8))
        From and to the host.
    link_error_stb : In(1)
        A byte was damaged or lost on its way to `i_bytes`.
    o_pixels : Out(stream.Signature(8))
        Bytes of an image.
    i_answer : In(stream.Signature(Answer))
        A score for each class, in order.
    num_pixels : In(size_bits)
        Bytes of an image of the loaded network; 0 while there is none. Stable during a request.
    num_classes : In(8)
        Elements of an answer. Stable during a request.
    engine_error : In(1)
        The engine cannot answer.
    busy : Out(1)
        A request is being served.
    error : Out(1)
        The last request did not end with `Status.OK`.
    """

    def __init__(self, timeout: int, size_bits: int = 8 * LENGTH_BYTES) -> None:
        if timeout < 1:
            raise ValueError(f"timeout must be at least 1, not {timeout!r}")
        if not 1 <= size_bits <= 8 * LENGTH_BYTES:
            raise ValueError(f"size_bits must be 1 to {8 * LENGTH_BYTES}, not {size_bits!r}")
        self._timeout = 1 << (timeout - 1).bit_length()
        super().__init__(
            {
                "i_bytes": In(stream.Signature(8)),
                "o_bytes": Out(stream.Signature(8)),
                "link_error_stb": In(1),
                "o_pixels": Out(stream.Signature(8)),
                "i_answer": In(stream.Signature(Answer)),
                "num_pixels": In(size_bits),
                "num_classes": In(8),
                "engine_error": In(1),
                "busy": Out(1),
                "error": Out(1),
            }
        )
        self._status = Signal(Status)
        self._count = Signal.like(self.num_pixels)  # pixels that the engine has
        self._complete = Signal()  # it has all of them
        self._index = Signal(range(LENGTH_BYTES))  # byte within a field
        self._quiet = Signal()  # no byte came for the timeout
        self._broken = Signal()  # no use waiting for the rest of the request
        self._replying = Signal()
        self._replied_stb = Signal()
        self._check_byte = Signal(8)
        self._check_stb = Signal()  # the byte that is being transferred counts for the check
        self._checking = Signal()  # that of the cycle before is being taken into it

    @property
    def timeout(self) -> int:
        return self._timeout

    def elaborate(self, platform: object) -> Module:
        m = Module()
        with m.FSM(name="request") as request:
            self._add_request(m)
        with m.FSM(name="reply") as reply:
            self._add_reply(m)
        idle, replying = request.ongoing("IDLE"), request.ongoing("REPLY")
        m.d.comb += [self.busy.eq(~idle), self._replying.eq(replying)]
        with m.If(idle):
            m.d.sync += self._status.eq(Status.OK)
        following = Signal.like(self._count)  # compared as it comes: too much waits for it
        m.d.comb += following.eq(Mux(idle, 0, self._count + 1))
        with m.If(idle | (self.o_pixels.valid & self.o_pixels.ready)):
            m.d.sync += self._count.eq(following)
            m.d.sync += self._complete.eq(following == self.num_pixels)
        self._add_check(m, restart=idle | replying & reply.ongoing("BEGIN"))
        listening = [request.ongoing(name) for name in ("LENGTH", "PIXELS", "CHECK", "QUIET")]
        self._add_watch(m, idle=idle, listening=Cat(listening).any())
        return m

    def _add_check(self, m: Module, *, restart: Value) -> None:
        """The CRC, of requests and replies in turn: they never overlap.

        It takes a byte a cycle later: what is being sent is known late.
        """
        crc = CRC.create()
        # Its own `start` costs a LUT a bit, to begin and take a byte in one cycle.
        m.submodules.crc = ResetInserter(restart)(crc)
        byte = Signal(8)
        m.d.sync += [
            self._checking.eq(self._check_stb),
            byte.eq(Mux(self._replying, self.o_bytes.payload, self.i_bytes.payload)),
        ]
        m.d.comb += [
            crc.valid.eq(self._checking),
            crc.data.eq(byte),
            self._check_byte.eq(Mux(self._index[0], crc.crc[8:], crc.crc[:8])),
        ]

    def _add_watch(self, m: Module, *, idle: Value, listening: Value) -> None:
        """Find requests that have lost a byte, or go silent while we listen."""
        lost = Signal()
        timer = Signal(range(self._timeout + 1))
        m.d.comb += [self._quiet.eq(timer[-1]), self._broken.eq(lost | self._quiet)]
        with m.If(idle):
            m.d.sync += lost.eq(0)
        with m.If(self.link_error_stb):
            m.d.sync += lost.eq(1)
        m.d.sync += timer.eq(timer + 1)
        with m.If(self.i_bytes.valid | self.link_error_stb | ~listening):
            m.d.sync += timer.eq(0)

    def _add_request(self, m: Module) -> None:
        """States of a request, from its first byte until the line is free for the next."""
        i, o = self.i_bytes, self.o_pixels
        length, differs = Signal(8 * LENGTH_BYTES), Signal()
        m.d.comb += length.eq(self.num_pixels)
        with m.State("IDLE"):
            m.d.comb += i.ready.eq(1)
            with m.If(i.valid & (i.payload == REQUEST)):
                m.next = "LENGTH"

        with m.State("LENGTH"):
            m.d.comb += [i.ready.eq(1), self._check_stb.eq(i.valid)]
            bytes_of_length = Array(length.word_select(n, 8) for n in range(LENGTH_BYTES))
            m.d.comb += differs.eq(i.payload != bytes_of_length[self._index])
            with m.If(i.valid):
                m.d.sync += self._index.eq(self._index + 1)
                with m.If(differs):
                    m.d.sync += self._status.eq(Status.LENGTH)
                with m.If(self._index == LENGTH_BYTES - 1):
                    m.d.sync += self._index.eq(0)
                    m.next = "PIXELS"
                    with m.If(differs | (self._status != Status.OK)):
                        m.next = "REPLY"
                    with m.If(self._complete | self.engine_error):  # 0 of 0 pixels: no network.
                        self._end(m, Status.ENGINE)
            with m.Elif(self._broken):
                m.d.sync += self._index.eq(0)
                self._end(m, Status.LINK)

        with m.State("PIXELS"):
            m.d.comb += [
                o.payload.eq(i.payload),
                o.valid.eq(i.valid & ~self._complete),
                i.ready.eq(o.ready & ~self._complete),
                self._check_stb.eq(o.valid & o.ready),
            ]
            with m.If(self._complete):
                m.next = "CHECK"
            with m.Elif(self._broken & ~i.valid):
                m.d.sync += self._status.eq(Status.LINK)
                m.next = "FILL"
            with m.If(self.engine_error):
                self._end(m, Status.ENGINE)

        with m.State("FILL"):
            m.d.comb += [o.payload.eq(0), o.valid.eq(~self._complete), i.ready.eq(1)]
            with m.If(self._complete):
                m.next = "AWAIT"
            with m.If(self.engine_error):
                self._end(m, Status.ENGINE)

        with m.State("CHECK"):
            m.d.comb += i.ready.eq(1)
            with m.If(i.valid):
                m.d.sync += self._index[0].eq(~self._index[0])
                with m.If(i.payload != self._check_byte):
                    m.d.sync += self._status.eq(Status.CRC)
                with m.If(self._index[0]):
                    m.next = "AWAIT"
            with m.Elif(self._broken):
                m.d.sync += [self._status.eq(Status.LINK), self._index.eq(0)]
                m.next = "AWAIT"

        with m.State("AWAIT"):
            with m.If(self._status == Status.OK):
                with m.If(self.i_answer.valid):
                    m.next = "REPLY"
            with m.Else():
                m.d.comb += self.i_answer.ready.eq(1)
                with m.If(self.i_answer.valid & self.i_answer.p.last):
                    m.next = "REPLY"
            with m.If(self.engine_error):
                self._end(m, Status.ENGINE)

        with m.State("REPLY"), m.If(self._replied_stb):
            m.next = "QUIET"
            with m.If((self._status == Status.OK) | (self._status == Status.CRC)):
                m.next = "IDLE"

        with m.State("QUIET"):
            m.d.comb += self.i_bytes.ready.eq(1)
            with m.If(self._quiet):
                m.next = "IDLE"

    def _end(self, m: Module, status: Status) -> None:
        """End the request: reply with a status."""
        m.d.sync += self._status.eq(status)
        m.next = "REPLY"

    def _add_reply(self, m: Module) -> None:
        """States of a reply; rests in the first until the request has ended."""
        i = self.i_answer
        with m.State("BEGIN"), m.If(self._send(m, REPLY, valid=self._replying, checked=False)):
            m.next = "STATUS"

        with m.State("STATUS"), m.If(self._send(m, self._status)):
            m.d.sync += self.error.eq(self._status != Status.OK)
            m.next = "CHECK"
            with m.If(self._status == Status.OK):
                m.next = "NUM_CLASSES"

        with m.State("NUM_CLASSES"), m.If(self._send(m, self.num_classes)):
            m.next = "SCORE_LOW"

        with m.State("SCORE_LOW"):
            with m.If(self._send(m, i.p.score[:8], valid=i.valid)):
                m.next = "SCORE_HIGH"
            with m.If(self.engine_error & ~i.valid):
                m.d.sync += [self._status.eq(Status.ENGINE), self.error.eq(1)]
                m.next = "CHECK"

        with m.State("SCORE_HIGH"), m.If(self._send(m, i.p.score[8:])):
            # The last element stays: it has the label.
            m.d.comb += i.ready.eq(~i.p.last)
            m.next = "SCORE_LOW"
            with m.If(i.p.last):
                m.next = "LABEL"

        with m.State("LABEL"), m.If(self._send(m, i.p.label)):
            m.d.comb += i.ready.eq(1)
            m.next = "CHECK"

        with (
            m.State("CHECK"),
            m.If(self._send(m, self._check_byte, valid=~self._checking, checked=False)),
        ):
            m.d.sync += self._index[0].eq(~self._index[0])
            with m.If(self._index[0]):
                m.d.comb += self._replied_stb.eq(1)
                m.next = "BEGIN"

    def _send(
        self, m: Module, payload: ValueLike, *, valid: ValueLike = 1, checked: bool = True
    ) -> Value:
        """Offer a byte to the host; true in the cycle in which it is taken."""
        taken = Value.cast(valid) & self.o_bytes.ready
        m.d.comb += [self.o_bytes.payload.eq(payload), self.o_bytes.valid.eq(valid)]
        if checked:
            m.d.comb += self._check_stb.eq(taken)
        return taken
