"""A whole board at its pins: one model, any network in its flash, and what is no network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from boards import records
from boards.build import Plan, fit, plan
from boards.link import encode_request, read_reply
from compiler.image import flash_bytes
from compiler.schedule import Schedule, streamed
from hw.host import Status
from sim import accuracy
from sim.benches import networks
from sim.check import pixels_of
from sim.rtl import counters
from tests.support.networks import random_images

pytestmark = pytest.mark.cocotb

BOARD = records.find("ice40")

PICTURES = 3

STATUS_BYTES = 4
"""Of a reply that is not OK: its beginning, the status, and the check."""


@dataclass(frozen=True)
class Made:
    """What a build writes."""

    plan: Plan
    verilog: Path


def make(chosen: Plan, folder: Path, content: bytes = b"") -> Made:
    verilog = folder / "top.v"
    verilog.write_text(chosen.top(content).verilog())
    return Made(chosen, verilog)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make(plan(BOARD, 4), tmp_path_factory.mktemp("board"))


def image_of(made: Made, seed: int, room: int | None = None, **network):
    """A small network laid out for the board, and the file that goes to its flash.

    ``room`` is how many words of memory its Image may take, if not all there are.
    """
    bits = made.plan.geometry.activation_bits
    program = networks.random_program(seed, padding=networks.PADDINGS[seed], bits=bits, **network)
    laid_out, image = fit(program, made.plan)
    if room is not None:
        image = replace(image, room=room)
        assert image.streamed
        laid_out = streamed(laid_out, room, made.plan.reader().pace)
    path = made.verilog.with_name(f"image{seed}_{room}.bin")
    path.write_bytes(flash_bytes(image))
    return laid_out, path


def run_on(made: Made, seed: int, room: int | None = None, **network) -> accuracy.BoardRun:
    """Random pictures through a network of `image_of`."""
    laid_out, path = image_of(made, seed, room, **network)
    images = random_images(seed, PICTURES, laid_out.program.image.shape)
    return accuracy.on_board(
        *(made.verilog, path, laid_out, images, made.plan.clock_hz, made.plan.baud),
        image_offset=made.plan.board.flash.image_offset,
    )


@pytest.fixture
def on_board(made):
    return partial(run_on, made)


def test_one_model_runs_every_image(made, on_board):
    """Scores of all pictures and every layer of some equal golden; a network is data."""
    accuracy.board_simulation(made.verilog)
    builds = counters.builds
    for seed in (0, 1):
        run = on_board(seed)
        size = image_of(made, seed)[1].stat().st_size
        print(f"network {seed}: {size} bytes, started in {run.start_cycles} cycles, {run.cycles}")
        assert 2 * size < run.start_cycles < 2 * size + 4096  # four bits a cycle
        assert len(np.unique(run.scores, axis=0)) > 1
    assert counters.builds == builds


@pytest.mark.parametrize("room", [64, 270, 300])
def test_image_from_flash_during_the_picture(made, on_board, room):
    """An Image for which there is too little room: every layer equals golden, as fast as
    predicted."""
    laid_out, _ = image_of(made, 0, room)
    run = on_board(0, room)
    resident = image_of(made, 0)[0].cycles
    assert laid_out.cycles > resident
    hold_to(laid_out, run)


def hold_to(laid_out: Schedule, run: accuracy.BoardRun) -> None:
    """Cycles that were predicted, to half a per cent."""
    print(f"{run.cycles}, predicted {laid_out.cycles}")
    for layer, cycles in zip(laid_out.layers, run.layer_cycles.T, strict=True):
        print(f"  {layer.name:<24}{layer.cycles:>8}{cycles.tolist()!s:>24}")
    assert run.cycles == pytest.approx(laid_out.cycles, rel=0.005)


@pytest.mark.slow
def test_image_from_sdram_during_the_picture(tmp_path):
    """Copied there once, and read so fast that a ring of few words does for the whole Image."""
    ulx3s = records.find("ulx3s-25f")
    there, flash = (plan(ulx3s, 4, image_from=source) for source in ("sdram", "flash"))
    made = make(there, tmp_path)
    # So large that a refresh more or less, for they go on between pictures, is less than that.
    network: dict = {"shape": (3, 16, 10), "channels": (16, 32)}
    for room in (16, 32, 64):
        laid_out, _ = image_of(made, 0, room, **network)
        slower, _ = image_of(Made(flash, made.verilog), 0, room, **network)
        assert laid_out.cycles < 0.8 * slower.cycles
        hold_to(laid_out, run_on(made, 0, room, **network))


@pytest.mark.nightly
def test_activations_that_no_byte_is_full_of(tmp_path):
    """Of 3 bits: words of the Image are written whole."""
    made = make(plan(BOARD, 3), tmp_path)
    for room in (32, None):
        hold_to(image_of(made, 0, room)[0], run_on(made, 0, room))


@pytest.mark.nightly
def test_image_from_the_bitstream(tmp_path):
    """Out of block RAM, through a ring of few words; the design has no pins for a flash."""
    chosen, room = plan(BOARD, 4, image_from="bitstream"), 16
    laid_out, path = image_of(Made(chosen, tmp_path / "top.v"), 0, room)
    made = make(chosen, tmp_path, path.read_bytes())
    assert "flash" not in made.verilog.read_text()
    hold_to(laid_out, run_on(made, 0, room))


@pytest.mark.parametrize("fault", ["magic", "count", "ring", "body", "crc", "nothing there"])
def test_refuses_what_is_no_image(made, fault):
    laid_out, path = image_of(made, 0)
    data = bytearray(path.read_bytes())
    data[{"magic": 0, "count": 4, "ring": 11, "body": len(data) // 2}.get(fault, -1)] ^= 0x10
    wrong = made.verilog.with_name("wrong.bin")
    wrong.write_bytes(b"\xff" * 64 if fault == "nothing there" else data)
    period_ps = 1e12 / made.plan.clock_hz
    pixels = pixels_of(random_images(0, 1, laid_out.program.image.shape))[0].tobytes()
    values = (
        accuracy.board_simulation(made.verilog)
        .run(
            "sim.benches.top",
            test_filter="refuses",
            plusargs=accuracy.flash_arguments(wrong, BOARD.flash.image_offset),
            parameters={
                "clock_hz": made.plan.clock_hz,
                "pump": made.plan.geometry.pump,
                "baud": made.plan.baud,
                "start_patience": accuracy.start_patience(path),
                "patience_ps": int(4 * laid_out.cycles * period_ps),
                "lit": int(not BOARD.pins["error"].inverted),
                "request": np.frombuffer(encode_request(pixels), np.uint8),
                "reply_bytes": STATUS_BYTES,
            },
        )
        .values
    )
    sent = iter(np.asarray(values["reply"]).tobytes())
    reply = read_reply(lambda count: bytes(next(sent) for _ in range(count)))
    assert reply.status is Status.ENGINE


def test_another_offset_finds_nothing(made, on_board, monkeypatch):
    """The design reads where its board's record says, and nowhere else."""
    shifted = BOARD.flash.image_offset + 1
    monkeypatch.setattr(
        accuracy,
        "flash_arguments",
        lambda image, _: [f"+flash={image}", f"+flash_offset={shifted}"],
    )
    with pytest.raises(accuracy.MismatchError, match="must take the Image in its flash"):
        on_board(0)
