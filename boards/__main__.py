"""The command line of the boards: ``python -m boards list|flash|run``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from boards import flash
from boards.link import Link, Reply
from boards.records import BOARDS, Board, find
from compiler import datasets
from compiler.errors import SignumError, UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        options.command(options, console)
    except SignumError as error:
        if options.verbose >= 2:
            traceback.print_exc()
        console.print(error.report(), markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        if options.verbose >= 2:
            traceback.print_exc()
        console.print("interrupted", markup=False)
        return INTERRUPTED
    return 0


def list_command(options: argparse.Namespace, console: Console) -> None:  # noqa: ARG001
    """Print the boards that are known."""
    if options.json:
        _print_json([_summary(board) for board in BOARDS])
        return
    line = "{:12} {:8} {:12} {:>6} {:>5} {:>6} {:>4} {:>7} {:>10}\n"
    sys.stdout.write(
        line.format("board", "also", "device", "LUT", "BRAM", "SPRAM", "DSP", "MHz", "baud")
    )
    for board in BOARDS:
        budget = board.budget
        sys.stdout.write(
            line.format(
                *(board.name, ",".join(board.aliases), f"{board.device}-{board.package}"),
                *(budget.lut, budget.bram, budget.spram, budget.dsp),
                *(f"{board.clock_hz / 1e6:g}", board.baud),
            )
        )


def _holds_its_network(bitstream: Path) -> bool:
    """Whether a build said that its Image is part of its bitstream."""
    report = bitstream.with_name("report.json")
    if not report.exists():
        return False
    held: bool = json.loads(report.read_text()).get("image", {}).get("from") == "bitstream"
    return held


def flash_command(options: argparse.Namespace, console: Console) -> None:
    """Write a bitstream and its network, or print the commands that would."""
    bitstream = options.build / "top.bin" if options.build.is_dir() else options.build
    image = options.image
    if image is None and not _holds_its_network(bitstream):
        image = bitstream.with_name("image.bin")
    board = find(options.board)
    writes = flash.plan(board, None if options.image_only else bitstream, image)
    if options.dry_run:
        for write in writes:
            sys.stdout.write(f"{write}\n")
        return
    flash.run(writes, lambda line: console.print(line, markup=False))


def run_command(options: argparse.Namespace, console: Console) -> None:
    """Send images to a board, and print the class and the scores of each."""
    board = find(options.board)
    images, labels = _images(options)
    right = 0
    with closing(Link.open(options.port, options.baud or board.baud, options.timeout)) as link:
        for index, (reply, seconds) in enumerate(_classify(link, images)):
            truth = None if labels is None else int(labels[index])
            right += reply.label == truth
            _print_reply(index, reply, truth, seconds, as_json=options.json)
    if labels is not None:
        console.print(f"{right} of {len(images)} right ({right / len(images):.2%})", markup=False)


def _classify(link: Link, images: NDArray[np.uint8]) -> Iterator[tuple[Reply, float]]:
    """Reply to each image (N, H, W, C), and the seconds it took with its transport."""
    for image in images:
        start = time.monotonic()
        yield link.classify(image.tobytes()), time.monotonic() - start


def _images(options: argparse.Namespace) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Images (N, H, W, C) to send and, of a data set, their labels."""
    if options.dataset is not None:
        dataset = datasets.load(options.dataset, options.data)
        images = dataset.test_images[: options.images].transpose(0, 2, 3, 1)
        return images, dataset.test_labels[: options.images]
    try:
        images = np.load(options.file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{options.file} must be a numpy file: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UsageError(
            f"{options.file} must hold uint8 images (H, W, C) or (N, H, W, C), not "
            f"{images.dtype} {images.shape}"
        )
    return images.reshape(-1, *images.shape[-3:])[: options.images], None


def _print_reply(
    index: int, reply: Reply, truth: int | None, seconds: float, *, as_json: bool
) -> None:
    if as_json:
        record = {"index": index, "label": reply.label, "scores": reply.scores, "truth": truth}
        _print_json(record | {"seconds": round(seconds, 6)})
        return
    verdict = "" if truth is None else f" (is {truth})"
    scores = " ".join(map(str, reply.scores))
    sys.stdout.write(f"{index}: class {reply.label}{verdict}  {scores}  {seconds * 1e3:.1f} ms\n")


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _summary(board: Board) -> dict[str, Any]:
    """What a script may want to know of a board."""
    names = ("name", "title", "aliases", "family", "device", "package", "clock_hz", "baud")
    return {name: getattr(board, name) for name in names} | {
        "budget": dataclasses.asdict(board.budget),
        "flash": dataclasses.asdict(board.flash),
        "lanes": board.geometry.lanes,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m boards", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="count", default=0, help="-vv: tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", parents=[common], help="boards that are known")
    listing.add_argument("--json", action="store_true", help="for scripts")
    listing.set_defaults(command=list_command)

    writing = commands.add_parser("flash", parents=[common], help="write a bitstream and a network")
    writing.add_argument("build", type=Path, metavar="BUILD", help="folder of a build, or top.bin")
    writing.add_argument("--board", required=True, help="see `list`")
    writing.add_argument(
        "--image", type=Path, metavar="FILE", help="network; default: image.bin beside top.bin"
    )
    writing.add_argument(
        "--image-only", action="store_true", help="write the network, and leave the bitstream"
    )
    writing.add_argument("--dry-run", action="store_true", help="print the commands only")
    writing.set_defaults(command=flash_command)

    running = commands.add_parser("run", parents=[common], help="send images to a board")
    running.add_argument("--board", required=True, help="see `list`")
    running.add_argument("--port", required=True, help="serial device, such as /dev/ttyUSB1")
    running.add_argument("--baud", type=int, help="bit rate; default: the board's")
    running.add_argument("--timeout", type=float, default=10.0, help="seconds to await a reply")
    source = running.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", choices=datasets.NAMES, help="send its test images")
    source.add_argument("--file", type=Path, help=".npy of uint8 (H, W, C) or (N, H, W, C)")
    running.add_argument("--data", type=Path, help="folder of the data set")
    running.add_argument("--images", type=int, default=None, help="how many; default: all")
    running.add_argument("--json", action="store_true", help="one JSON line an image")
    running.set_defaults(command=run_command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
