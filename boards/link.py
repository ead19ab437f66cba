"""The computer's end of the serial link to a board; `hw.host` defines the protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from compiler.errors import SignumError, ToolchainError, UsageError
from hw.host import CRC, DEFAULT_TIMEOUT, LENGTH_BYTES, REPLY, REQUEST, Status

ATTEMPTS = 3
"""Times an image is sent before a damaged link is given up."""

PAUSE = 2.5 * DEFAULT_TIMEOUT
"""Seconds of silence after which a board surely listens again: it rounds its timeout up, to less
than twice as much."""


class LinkError(SignumError):
    """A board does not answer, or answers nonsense."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a board says of an image.

    Attributes
    ----------
    status : Status
        Everything below is empty unless it is OK.
    scores : tuple of int
        Of each class in order, 16 bits with sign.
    label : int
        The class with the highest score, as the board found it; -1 if there is none.
    """

    status: Status
    scores: tuple[int, ...] = ()
    label: int = -1


def encode_request(pixels: bytes) -> bytes:
    """The frame that carries an image's bytes in H, W, C order."""
    if not 0 < len(pixels) < 1 << 8 * LENGTH_BYTES:
        raise ValueError(f"pixels must be 1 to 2**24 - 1 bytes, not {len(pixels)}")
    body = len(pixels).to_bytes(LENGTH_BYTES, "little") + pixels
    return bytes([REQUEST]) + body + _check(body)


def encode_reply(reply: Reply) -> bytes:
    """The frame a board sends: the twin of `read_reply`, for models of boards."""
    body = bytes([reply.status])
    if reply.status is Status.OK:
        scores = b"".join(score.to_bytes(2, "little", signed=True) for score in reply.scores)
        body += bytes([len(reply.scores)]) + scores + bytes([reply.label])
    return bytes([REPLY]) + body + _check(body)


def read_reply(read: Callable[[int], bytes]) -> Reply:
    """Read one reply; bytes in front of it are skipped.

    Parameters
    ----------
    read : callable
        Returns as many bytes as asked for, or raises.

    Raises
    ------
    LinkError
        The reply's check or status is wrong.
    """
    while read(1)[0] != REPLY:
        pass
    body = read(1)
    if body[0] == Status.OK:
        body += read(1)
        body += read(2 * body[1] + 1)
    if (check := read(2)) != _check(body):
        raise LinkError(
            f"reply must end with the check {_check(body).hex()}, not {check.hex()}",
            hint="is the bit rate that of the bitstream? try a shorter cable",
        )
    try:
        status = Status(body[0])
    except ValueError:
        raise LinkError(f"status must be 0 to {max(Status)}, not {body[0]}") from None
    if status is not Status.OK:
        return Reply(status)
    scores = [
        int.from_bytes(body[at : at + 2], "little", signed=True)
        for at in range(2, len(body) - 1, 2)
    ]
    return Reply(status, tuple(scores), body[-1])


def _check(body: bytes) -> bytes:
    return CRC.compute(body).to_bytes(2, "little")


class Port(Protocol):
    """What a link needs of a serial port; `serial.Serial` has it."""

    def read(self, size: int, /) -> bytes:
        """Up to this many bytes, fewer if the port's timeout passes."""

    def write(self, data: bytes, /) -> object:
        """Send all of the bytes."""

    def reset_input_buffer(self) -> None:
        """Forget what has come and was not read."""

    def close(self) -> None:
        """Give the device back."""


class Link:
    """A board on a serial port.

    Parameters
    ----------
    port : Port
        Open, with a timeout longer than the board takes for an image.
    name : str
        Of the port, for messages.
    pause : float
        Seconds of silence that make the board listen again.
    """

    def __init__(self, port: Port, name: str = "the port", pause: float = PAUSE) -> None:
        self._port = port
        self._name = name
        self._pause = pause

    @classmethod
    def open(cls, device: str, baud: int, timeout: float = 10.0) -> Self:
        """Open a serial device by its path, such as ``/dev/ttyUSB1``.

        Raises
        ------
        ToolchainError
            pyserial is not installed.
        UsageError
            The device cannot be opened, or not at this rate.
        """
        try:
            import serial
            from serial.tools import list_ports
        except ImportError:
            raise ToolchainError("pyserial must be installed", "pip install pyserial") from None
        try:
            return cls(serial.Serial(device, baud, timeout=timeout, write_timeout=timeout), device)
        except (serial.SerialException, ValueError) as error:
            found = ", ".join(sorted(port.device for port in list_ports.comports())) or "none"
            raise UsageError(f"port {device!r} must open: {error}", f"ports: {found}") from error

    def classify(self, pixels: bytes) -> Reply:
        """Send an image and await its scores; a request damaged on the way is sent again.

        Parameters
        ----------
        pixels : bytes
            In H, W, C order.

        Raises
        ------
        LinkError
            The board does not answer, cannot answer, or the link damages every request.
        UsageError
            The board's network takes images of another size.
        """
        reply = Reply(Status.LINK)
        for _ in range(ATTEMPTS):
            reply = self._exchange(encode_request(pixels))
            match reply.status:
                case Status.OK:
                    return reply
                case Status.LENGTH:
                    raise UsageError(
                        f"images must have the size of the board's network, not {len(pixels)} bytes"
                    )
                case Status.ENGINE:
                    raise LinkError(
                        f"the board on {self._name} must have a network, but its engine has none "
                        "or found it damaged",
                        hint="write one: python -m boards flash BITSTREAM --image IMAGE",
                    )
        raise LinkError(
            f"the link must carry a request undamaged, but {ATTEMPTS} attempts on {self._name} "
            f"ended with status {reply.status.name}",
            hint="use a lower bit rate or a shorter cable",
        )

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    def _exchange(self, request: bytes) -> Reply:
        self._port.reset_input_buffer()
        self._port.write(request)
        reply = read_reply(self._read)
        if reply.status not in (Status.OK, Status.CRC):
            time.sleep(self._pause)
        return reply

    def _read(self, size: int) -> bytes:
        data = self._port.read(size)
        if len(data) < size:
            raise LinkError(
                f"the board on {self._name} must reply in time, but sent {len(data)} of {size} "
                "bytes",
                hint="is it the right port, and is the board programmed?",
            )
        return data
