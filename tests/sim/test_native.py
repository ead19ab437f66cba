"""The engine under a C++ main: what cocotb sees of it, cycle by cycle; and how it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import MismatchError
from compiler.geometry import Geometry
from compiler.schedule import Schedule, schedule
from sim import accuracy, check, native
from sim.benches.engine import engine
from sim.benches.networks import random_program
from sim.runner import BenchError, Simulation
from tests.conftest import ROOT

pytestmark = pytest.mark.cocotb

PICTURES = 5


@pytest.fixture(scope="module")
def plan() -> Schedule:
    return schedule(random_program(3), Geometry())


@pytest.fixture(scope="module")
def images(plan) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (PICTURES, *plan.program.image.shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return native.build(Geometry())


@pytest.mark.parametrize("cores", [1, 2])
def test_it_notes_what_cocotb_notes(monkeypatch, simulation, plan, images, cores):
    """Scores, classes, every layer's tensors, and all cycles, whoever runs which picture."""
    monkeypatch.setattr(native, "processes", lambda: cores)
    component, _ = engine(Geometry())
    slow = Simulation.build(component, "top")
    (expected,) = check.run(slow, [plan], [images])
    got = native.run(simulation, plan, images, layer_images=PICTURES - 1)
    for name in ("scores", "labels", "cycles", "layer_cycles"):
        assert np.array_equal(getattr(got, name), getattr(expected, name)), name
    assert list(got.tensors) == list(expected.tensors)
    for name, maps in expected.tensors.items():
        assert np.array_equal(got.tensors[name], maps[: PICTURES - 1]), name


def test_every_batch_is_held_to_golden(monkeypatch, plan, images):
    """A difference in a layer of the first pictures is found, and one in the last one's scores."""
    monkeypatch.setattr(native, "processes", lambda: 1)
    monkeypatch.setattr(accuracy, "PICTURES_AT_ONCE", 2)
    said: list[str] = []
    done = accuracy.on_engine(plan, images, layer_images=3, say=said.append)
    assert len(done.run.scores) == PICTURES
    assert f"{PICTURES} of {PICTURES}, equal to golden" in said[-1]
    truth = native.run
    calls: list[int] = []

    def tampered(simulation, laid_out, pictures, *, layer_images=0):
        run = truth(simulation, laid_out, pictures, layer_images=layer_images)
        calls.append(layer_images)
        if len(calls) == 2:
            run.tensors["stage2.add.r"][-1, 0, 0, 0] += 1
        return run

    monkeypatch.setattr(native, "run", tampered)
    with pytest.raises(MismatchError, match=r"stage2\.add\.r: simulation must equal"):
        accuracy.on_engine(plan, images, layer_images=3)
    assert calls == [3, 1]

    def wrong_score(simulation, laid_out, pictures, *, layer_images=0):
        run = truth(simulation, laid_out, pictures, layer_images=layer_images)
        if len(pictures) == 1:
            run.scores[0, 0] += 1
        return run

    monkeypatch.setattr(native, "run", wrong_score)
    with pytest.raises(MismatchError, match="scores: simulation must equal"):
        accuracy.on_engine(plan, images)


def test_a_refused_image_is_an_error(simulation, plan, images):
    """One for another geometry, to the same program."""
    foreign = schedule(plan.program, replace(Geometry(), weight_depth=512))
    with pytest.raises(BenchError, match="the engine refused the Image"):
        native.run(simulation, foreign, images)


def test_ctrl_c_leaves_no_process(simulation, plan, tmp_path):
    """Neither of this program's nor of those it started."""
    script = f"""
import numpy as np
from pathlib import Path
from compiler.geometry import Geometry
from compiler.schedule import schedule
from sim import native
from sim.benches.networks import random_program
plan = schedule(random_program(3), Geometry())
native.processes = lambda: 2
started = native._run_all
def tell(commands):
    Path({str(tmp_path / "folder")!r}).write_text(commands[0][1])
    started(commands)
native._run_all = tell
images = np.zeros((20000, *plan.program.image.shape), dtype=np.uint8)
native.run(native.build(Geometry()), plan, images)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "folder").exists() or not (place := _running(tmp_path)):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
        process.wait()
    assert place
    assert not _running(tmp_path)
    assert not Path((tmp_path / "folder").read_text()).exists()


def _running(tmp_path: Path) -> list[int]:
    """Processes with the job's folder in their command."""
    job = os.fsencode(Path((tmp_path / "folder").read_text()).parent)
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if job in words:
            found.append(int(entry.parent.name))
    return found
