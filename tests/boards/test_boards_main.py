"""The command line: lists boards, and sends images to one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from boards import __main__ as command_line
from boards.__main__ import main
from boards.link import Link, Reply
from boards.records import BOARDS
from compiler import datasets
from hw.host import Status


class FakeLink:
    """Answers each image with its first bytes as scores."""

    opened: tuple = ()
    sent: list[bytes] = []  # noqa: RUF012

    @classmethod
    def open(cls, *arguments):
        cls.opened, cls.sent = arguments, []
        return cls()

    def close(self):
        pass

    def classify(self, pixels):
        self.sent.append(pixels)
        scores = tuple(pixels[:3])
        return Reply(Status.OK, scores, scores.index(max(scores)))


@pytest.fixture
def link(monkeypatch):
    assert callable(Link.open)
    monkeypatch.setattr(command_line, "Link", FakeLink)
    return FakeLink


@pytest.fixture
def images(tmp_path):
    file = tmp_path / "images.npy"
    np.save(file, np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3))
    return file


RUN = ["run", "--board", "icebreaker", "--port", "/dev/x"]


def test_list(capfd):
    assert main(["list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["board", *(board.name for board in BOARDS)]


def test_list_json(capfd):
    assert main(["list", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert [board["name"] for board in listed] == [board.name for board in BOARDS]
    assert listed[0]["budget"] == {"lut": 5280, "bram": 30, "spram": 4, "dsp": 8}


def test_run_file(link, images, capfd):
    assert main([*RUN, "--file", str(images), "--images", "2"]) == 0
    assert link.opened == ("/dev/x", 2_000_000, 10.0)
    assert link.sent == [bytes(range(12)), bytes(range(12, 24))]
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("0: class 2  0 1 2  ")
    assert len(lines) == 2


def test_run_single_image(link, tmp_path):
    file = tmp_path / "image.npy"
    np.save(file, np.zeros((4, 5, 3), np.uint8))
    assert main([*RUN, "--file", str(file), "--baud", "9600"]) == 0
    assert link.opened[1] == 9600
    assert link.sent == [bytes(60)]


def test_run_dataset_json(link, capfd):
    """Pixels leave in H, W, C order, and labels are compared."""
    assert main([*RUN, "--dataset", "digits", "--images", "5", "--json"]) == 0
    digits = datasets.load("digits")
    assert link.sent == [image.transpose(1, 2, 0).tobytes() for image in digits.test_images[:5]]
    output = capfd.readouterr()
    records = [json.loads(line) for line in output.out.splitlines()]
    assert [record["truth"] for record in records] == digits.test_labels[:5].tolist()
    right = sum(record["truth"] == record["label"] for record in records)
    assert f"{right} of 5 right" in output.err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2)), "must hold uint8 images"),
        (np.zeros((2, 2, 3), np.float32), "must hold uint8 images"),
        (np.array([{}], dtype=object), "must be a numpy file"),
    ],
)
def test_run_wrong_file(link, tmp_path, capfd, array, message):
    file = tmp_path / "odd.npy"
    np.save(file, array)
    assert main([*RUN, "--file", str(file)]) == 2
    assert message in capfd.readouterr().err


def test_run_missing_port(images, capfd):
    arguments = ["run", "--board", "ice40", "--port", "/dev/none", "--file", str(images)]
    assert main(arguments) == 2
    assert "port '/dev/none' must open" in capfd.readouterr().err


def test_interrupt(monkeypatch, capfd):
    def interrupted(options, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "list_command", interrupted)
    assert main(["list"]) == 130
    assert "interrupted" in capfd.readouterr().err
