"""The computer's end of the link, against a model of the board in memory and behind a terminal."""

from __future__ import annotations

import binascii
import os
import threading
import tty
from dataclasses import dataclass, field

import pytest

from boards.link import (
    ATTEMPTS,
    PAUSE,
    Link,
    LinkError,
    Reply,
    encode_reply,
    encode_request,
    read_reply,
)
from compiler.errors import UsageError
from hw.host import CRC, DEFAULT_TIMEOUT, REPLY, Status

IMAGE = bytes(range(48))
GOOD = Reply(Status.OK, (-32768, -1, 0, 32767), 3)


@dataclass
class Board:
    """A port with a board behind it, which answers each request with the next of its replies.

    A reply may be bytes, to be sent as they are; the last one is repeated.
    """

    replies: list[Reply | bytes]
    size: int = len(IMAGE)
    requests: list[bytes] = field(default_factory=list)
    waiting: bytes = b"left from before"

    def reset_input_buffer(self):
        self.waiting = b""

    def write(self, data):
        self.requests.append(data)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        self.waiting += reply if isinstance(reply, bytes) else encode_reply(reply)

    def read(self, size):
        taken, self.waiting = self.waiting[:size], self.waiting[size:]
        return taken


def link_to(*replies):
    board = Board(list(replies))
    return Link(board, "tty", pause=0), board


def reader(data):
    left = bytearray(data)

    def read(size):
        assert len(left) >= size, "read too far"
        taken = bytes(left[:size])
        del left[:size]
        return taken

    return read


def test_crc_check_value():
    """The published check value of CRC-16/CCITT with initial value 0xFFFF."""
    assert CRC.compute(b"123456789") == 0x29B1


def test_request_bytes():
    """Byte for byte, with another implementation of the CRC."""
    check = binascii.crc_hqx(b"\x06\0\0" + b"123456", 0xFFFF)
    assert encode_request(b"123456") == bytes.fromhex("a5 060000 313233343536") + bytes(
        [check & 0xFF, check >> 8]
    )


def test_request_length():
    request = encode_request(bytes(0x12345))
    assert request[:4] == bytes.fromhex("a5 452301")
    assert len(request) == 0x12345 + 6


def test_request_empty():
    with pytest.raises(ValueError, match="pixels must be 1 to"):
        encode_request(b"")


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        Reply(Status.OK, (5,), 0),
        Reply(Status.OK, tuple(range(255)), 254),
        *(Reply(status) for status in Status if status is not Status.OK),
    ],
    ids=lambda reply: f"{reply.status.name}-{len(reply.scores)}",
)
@pytest.mark.parametrize("noise", [b"", b"\0\xff\xa5"])
def test_reply_round_trip(reply, noise):
    assert read_reply(reader(noise + encode_reply(reply))) == reply


@pytest.mark.parametrize("at", range(3, len(encode_reply(GOOD))))
def test_reply_damaged(at):
    damaged = bytearray(encode_reply(GOOD))
    damaged[at] ^= 1
    with pytest.raises(LinkError, match=r"^reply must end with the check "):
        read_reply(reader(damaged))


def test_reply_unknown_status():
    body = bytes([9])
    with pytest.raises(LinkError, match=r"^status must be 0 to 4, not 9$"):
        read_reply(reader(bytes([REPLY]) + body + CRC.compute(body).to_bytes(2, "little")))


def test_pause_outlasts_the_board():
    assert PAUSE > 2 * DEFAULT_TIMEOUT


def test_classify():
    link, board = link_to(GOOD)
    assert link.classify(IMAGE) == GOOD
    assert board.requests == [encode_request(IMAGE)]


@pytest.mark.parametrize("status", [Status.CRC, Status.LINK])
def test_classify_again(status):
    link, board = link_to(Reply(status), GOOD)
    assert link.classify(IMAGE) == GOOD
    assert board.requests == [encode_request(IMAGE)] * 2


def test_classify_gives_up():
    link, board = link_to(Reply(Status.CRC))
    with pytest.raises(LinkError, match="3 attempts on tty ended with status CRC") as error:
        link.classify(IMAGE)
    assert len(board.requests) == ATTEMPTS
    assert error.value.exit_code == 1


def test_classify_wrong_size():
    link, _ = link_to(Reply(Status.LENGTH))
    with pytest.raises(
        UsageError, match="images must have the size of the board's network, not 48"
    ):
        link.classify(IMAGE)


def test_classify_no_network():
    link, _ = link_to(Reply(Status.ENGINE))
    with pytest.raises(LinkError, match="the board on tty must have a network") as error:
        link.classify(IMAGE)
    assert "boards flash" in error.value.hint


@pytest.mark.parametrize("sent", [b"", bytes([REPLY]), encode_reply(GOOD)[:-1]])
def test_classify_silence(sent):
    link, _ = link_to(sent)
    with pytest.raises(LinkError, match=r"^the board on tty must reply in time, but sent "):
        link.classify(IMAGE)


@pytest.mark.parametrize(("status", "pauses"), [(Status.CRC, 0), (Status.LINK, 1)])
def test_pauses(status, pauses, monkeypatch):
    """After what may have come in mid-request, the board needs silence; after the rest none."""
    slept = []
    monkeypatch.setattr("boards.link.time.sleep", slept.append)
    Link(Board([Reply(status), GOOD]), pause=7).classify(IMAGE)
    assert slept == [7] * pauses


def test_open_missing():
    with pytest.raises(UsageError, match="port '/dev/none' must open: ") as error:
        Link.open("/dev/none", 115_200)
    assert error.value.hint.startswith("ports: ")


@pytest.fixture
def terminal():
    """A pseudo-terminal: the board's end as a file, and the name of the computer's end."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    with os.fdopen(ours, "r+b", buffering=0) as file:
        yield file, os.ttyname(theirs)
    os.close(theirs)


def test_serial_port(terminal):
    """Through pyserial and the kernel, byte for byte."""
    file, device = terminal
    expected = encode_request(IMAGE)
    received = bytearray()

    def serve():
        while len(received) < len(expected):
            received.extend(file.read(64))
        file.write(encode_reply(GOOD))

    thread = threading.Thread(target=serve)
    thread.start()
    link = Link.open(device, 115_200, timeout=10)
    assert link.classify(IMAGE) == GOOD
    thread.join()
    assert received == expected
    link.close()


def test_serial_port_silent(terminal):
    _, device = terminal
    link = Link.open(device, 115_200, timeout=0.05)
    with pytest.raises(LinkError, match="must reply in time, but sent 0 of 1 bytes"):
        link.classify(IMAGE)
    link.close()
