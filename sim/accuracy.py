"""Networks in simulation, held to the golden model: on a bare engine, or as a whole board."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boards.link import Reply, encode_reply, encode_request, read_reply
from compiler.errors import MismatchError
from compiler.schedule import Schedule
from compiler.stages import Say, file_digest, silent
from hw.host import Status
from sim import check, native
from sim.check import Int, Run
from sim.runner import MODELS, Simulation

RESET_CYCLES = 1 << 14
"""Cycles after which every board is reset, and its flash awake. An SDRAM takes longer, but not
by so much as the bytes of an Image are given."""

PICTURES_AT_ONCE = 32
"""That each process simulates before they are compared with the golden model."""

COPY_CYCLES = 16
"""Cycles within which a byte of the Image is read: twice what it takes with the slower clock."""

AROUND = ("spi_flash", "sdr_sdram", "board")
"""Models of what is on a board beside the device."""


# -- a bare engine ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What an engine did with some pictures, all of it equal to golden.

    Attributes
    ----------
    run : Run
        Without tensors.
    seconds : float
        Of real time, for the simulation alone.
    """

    run: Run
    seconds: float


def on_engine(
    laid_out: Schedule,
    images: NDArray[np.uint8],
    *,
    layer_images: int = 1,
    say: Say = silent,
    cache: Path | None = None,
) -> EngineRun:
    """Simulate an engine alone, its Image on a stream; compare all scores and classes with golden.

    Parameters
    ----------
    layer_images : int
        Pictures of which every layer's tensor is compared too.

    Raises
    ------
    MismatchError
        At the first tensor that differs from the golden model's.
    """
    say(f"building the simulation of an engine of {laid_out.geometry.lanes} lanes")
    simulation = native.build(laid_out.geometry, cache)
    cores = native.processes()
    say(f"simulating {len(images)} pictures, every layer of {min(layer_images, len(images))}")
    runs, seconds = [], 0.0
    at_once = PICTURES_AT_ONCE * cores
    for first in range(0, len(images), at_once):
        pictures = images[first : first + at_once]
        started = time.monotonic()
        run = native.run(simulation, laid_out, pictures, layer_images=layer_images - first)
        seconds += time.monotonic() - started
        watched = len(pictures[: max(0, layer_images - first)])
        check.compare(laid_out, pictures[:watched], run.part(slice(watched)))
        check.compare(laid_out, pictures[watched:], run.part(slice(watched, None)))
        runs.append(replace(run, tensors={}))
        if len(images) > at_once:
            say(f"  {first + len(pictures):,} of {len(images):,}, equal to golden")
    return EngineRun(native.joined(runs), seconds)


def tensors_on_engine(
    laid_out: Schedule,
    images: NDArray[np.uint8],
    *,
    say: Say = silent,
    cache: Path | None = None,
) -> dict[str, Int]:
    """What a simulated engine leaves of each layer, and its scores, held to nothing.

    Returns
    -------
    dict of name to (N, C, H, W), by the names of the Program's tensors
    """
    say(f"building the simulation of an engine of {laid_out.geometry.lanes} lanes")
    simulation = native.build(laid_out.geometry, cache)
    say(f"simulating {len(images)} pictures")
    run = native.run(simulation, laid_out, images, layer_images=len(images))
    program = laid_out.program
    for name, maps in run.tensors.items():
        maps[:, check.stored_channels(program, name) :] = 0
    scores = run.scores + program.scores.zero
    return run.tensors | {program.scores.name: scores[:, :, None, None]}


# -- a whole board ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BoardRun:
    """What a simulated board did with some pictures.

    Attributes
    ----------
    scores, labels : (N, classes), (N,)
    cycles : (N,)
        From the first layer's start to the class, less the cycles in which a score waited for the
        serial line: those are the link's, and an engine whose answer is taken at once has none.
    host_cycles : (N,)
        From the request's first edge to the end of the reply: what a host sees.
    layer_cycles : (N, layers)
    layer_images : int
        Pictures of which every layer was compared with the golden model.
    start_cycles : int
        From configuration to the Image being loaded, once: reset, the flash's wake-up, the copy.
    verilog_sha256 : str
        Of what was simulated.
    """

    scores: Int
    labels: Int
    cycles: Int
    host_cycles: Int
    layer_cycles: Int
    layer_images: int
    start_cycles: int
    verilog_sha256: str


def cell_models(verilog: str) -> list[str]:
    """The vendor's cells that a design instantiates, of those that there is a model of."""
    known = {path.stem for path in MODELS.glob("*.v")} - set(AROUND)
    return sorted(known & set(re.findall(r"^\s*(\w+)\s", verilog, re.MULTILINE)))


def memory_wiring(verilog: str) -> dict[str, int]:
    """What the model of a board is told of the pins that a design reaches its memories by."""
    marks = {
        "FLASH": r"\bflash_cs_n\b",
        "USRMCLK": r"^\s*USRMCLK\s",
        "QUAD": r"\bflash_io2\b",
        "SDRAM": r"\bsdram_clk\b",
    }
    return {name: 1 for name, mark in marks.items() if re.search(mark, verilog, re.MULTILINE)}


def board_simulation(verilog: Path, cache: Path | None = None) -> Simulation:
    """A model of a board: the Verilog that is synthesised, and a flash on its pins.

    It knows no network: `flash_arguments` put one into its flash when it runs.

    Raises
    ------
    MismatchError
        What is simulated is not that file.
    """
    text = verilog.read_text()
    models = cell_models(text)
    simulation = Simulation.build(
        verilog, "board", sources=[*models, *AROUND], defines=memory_wiring(text), cache=cache
    )
    digests = {file_digest(path) for path in (verilog, simulation.verilog)}
    if len(digests) > 1:
        raise MismatchError(f"{simulation.verilog} must be the {verilog} that is synthesised")
    return simulation


def flash_arguments(image: Path, offset: int) -> list[str]:
    """For the simulator: what the flash holds at a byte offset."""
    return [f"+flash={image.absolute()}", f"+flash_offset={offset}"]


def start_patience(image: Path) -> int:
    """Cycles after which a board must have taken an Image, or refused it."""
    return RESET_CYCLES + COPY_CYCLES * image.stat().st_size


def on_board(
    verilog: Path,
    image: Path,
    laid_out: Schedule,
    images: NDArray[np.uint8],
    clock_hz: float,
    baud: int,
    *,
    image_offset: int,
    layer_images: int = 2,
    say: Say = silent,
    cache: Path | None = None,
) -> BoardRun:
    """Simulate the Verilog that is synthesised, pin by pin, and hold it to the golden model.

    The Image comes out of a simulated flash, once or for each picture. Then the pictures go in
    over the serial line and
    the answers come back over it, at its real rate.

    Parameters
    ----------
    image : Path
        `compiler.image.flash_bytes` of ``laid_out``, as it is written to flash at ``image_offset``.

    Raises
    ------
    MismatchError
        A reply or a layer differs from what it must be.
    """
    say("building the simulation of top.v")
    simulation = board_simulation(verilog, cache)
    say(f"simulating {len(images)} pictures, every layer of {min(layer_images, len(images))}")
    classes = laid_out.program.scores.channels
    pixels = check.pixels_of(images)
    empty = Reply(Status.OK, (0,) * classes, 0)
    values = simulation.run(
        "sim.benches.top",
        test_filter="classifies",
        plusargs=flash_arguments(image, image_offset),
        parameters={
            "requests": np.array(
                [list(encode_request(p.tobytes())) for p in pixels], dtype=np.uint8
            ),
            "reply_bytes": len(encode_reply(empty)),
            "geometry": asdict(laid_out.geometry),
            "clock_hz": clock_hz,
            "pump": laid_out.geometry.pump,
            "baud": baud,
            "start_patience": start_patience(image),
            "patience_ps": int((20 * laid_out.cycles + start_patience(image)) / clock_hz * 1e12),
            "layer_pictures": min(layer_images, len(images)),
            "regions": [list(map(list, layer)) for layer in check.extents(laid_out)],
        },
        timeout_s=24 * 3600.0,
    ).values
    run = _collected(values, laid_out)
    compared = min(layer_images, len(images))
    scores, labels, cycles, layer_cycles, tensors = run
    whole = Run(scores, labels, cycles, layer_cycles, tensors)
    check.compare(laid_out, images[:compared], whole.part(slice(compared)))
    check.compare(laid_out, images[compared:], whole.part(slice(compared, None)))
    host = np.asarray(values["host_ps"]) / int(values["period_ps"])
    host_cycles = np.rint(host).astype(np.int64)
    return BoardRun(
        scores,
        labels,
        cycles,
        host_cycles,
        layer_cycles,
        compared,
        round(int(values["start_ps"]) / int(values["period_ps"])),
        file_digest(verilog),
    )


def _collected(
    values: dict[str, object], laid_out: Schedule
) -> tuple[Int, Int, Int, Int, dict[str, Int]]:
    """(scores, labels, cycles, layer cycles, tensors) of a bench's values."""
    scores, labels = replies_of(values)
    period = int(values["period_ps"])  # type: ignore[call-overload]
    started, done, offered = (
        np.rint(np.asarray(values[name]) / period).astype(np.int64)
        for name in ("started", "done", "offered")
    )
    held = (offered[:, :-1, 1] - offered[:, :-1, 0] - 1).sum(axis=1)
    keys = [key for key in sorted(values, key=_number) if key.startswith("memory")]
    return (
        scores,
        labels,
        offered[:, -1, 0] - started[:, 0] - held,
        done - started,
        check.tensors_of(laid_out, [np.asarray(values[key]) for key in keys]),
    )


def replies_of(values: dict[str, object]) -> tuple[Int, Int]:
    """(scores, labels) of a bench's replies, all of which must say OK."""
    replies = [_read(np.asarray(r, dtype=np.uint8).tobytes()) for r in values["replies"]]  # type: ignore[attr-defined]
    return (
        np.array([reply.scores for reply in replies], dtype=np.int64),
        np.array([reply.label for reply in replies], dtype=np.int64),
    )


def _number(name: str) -> int:
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else -1


def _read(reply: bytes) -> Reply:
    """A reply's bytes, which must say OK."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return reply[at - count : at]

    found = read_reply(take)
    if found.status is not Status.OK:
        raise MismatchError(f"the board must answer OK, not {found.status.name}")
    return found
