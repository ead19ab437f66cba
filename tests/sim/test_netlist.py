"""The netlist answers as golden does, and a netlist with one cell changed does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from boards import records
from boards.build import fit, plan
from boards.toolchain import Build
from compiler.errors import MismatchError
from compiler.image import flash_bytes
from sim.benches import networks
from sim.netlist import on_netlist
from sim.runner import BenchError
from tests.support.networks import random_images

pytestmark = [pytest.mark.synth, pytest.mark.cocotb, pytest.mark.nightly]

BOARD = records.find("icebreaker")

PICTURES = 2


@pytest.fixture(scope="module")
def netlist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("netlist")
    return Build(folder).synthesise(plan(BOARD, 4).top().verilog(), speed=BOARD.speed).verilog


def answers(netlist: Path):
    chosen = plan(BOARD, 4)
    laid_out, image = fit(networks.random_program(0, channels=(5, 20)), chosen)
    path = netlist.with_name("image.bin")
    path.write_bytes(flash_bytes(image))
    images = random_images(0, PICTURES, laid_out.program.image.shape)
    return on_netlist(
        *(netlist, path, laid_out, images, chosen.clock_hz, chosen.baud),
        image_offset=BOARD.flash.image_offset,
    )


def test_netlist_equals_golden(netlist):
    scores = answers(netlist)
    assert scores.shape[0] == PICTURES
    assert (scores[0] != scores[1]).any()


SUM_BIT = re.compile(
    r"\.LUT_INIT\(16'h(\w{4})\)(?:(?!SB_LUT4 #).)*?"
    r"\.O\(\\component\.engine\.lanes\.accumulator0_0_SB_DFF\w*_D \)",
    re.DOTALL,
)
"""The LUT in front of a bit of the first accumulator."""


def test_another_netlist_does_not(netlist):
    """One bit of one accumulator is the other way round: the comparison sees one wrong cell."""
    text = netlist.read_text()
    lut = SUM_BIT.search(text)
    assert lut, "the netlist must keep the accumulators' names"
    changed = netlist.with_name("changed.v")
    wrong = f"{int(lut[1], 16) ^ 0xFFFF:04x}"
    changed.write_text(text[: lut.start(1)] + wrong + text[lut.end(1) :])
    with pytest.raises(MismatchError) as caught:
        answers(changed)
    # A bench that fails, or ends early, is a mismatch too, and has compared nothing.
    assert not isinstance(caught.value, BenchError)
