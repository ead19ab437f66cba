"""The engine alone under a C++ main (`engine.cpp`): the same Verilog and cycles, much faster.

The main feeds and takes; what it noted is judged here and in `sim.check`, as a cocotb bench's is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.geometry import Geometry
from compiler.image import Image
from compiler.schedule import Schedule
from sim import check
from sim.benches.engine import engine
from sim.check import Run
from sim.rtl import counters
from sim.runner import BenchError, Simulation, default_seed

MAIN = Path(__file__).parent / "engine.cpp"

POLL_S = 0.01
"""Pause between two looks at whether a process has ended."""


def build(geometry: Geometry, cache: Path | None = None) -> Simulation:
    """A program that runs pictures through an engine whose Image comes at the store's pace."""
    component, _ = engine(geometry)
    return Simulation.build(component, "top", main=MAIN, cache=cache)


def processes() -> int:
    """Cores that this process may use: so many simulations run at once."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(
    simulation: Simulation, schedule: Schedule, images: NDArray[np.uint8], *, layer_images: int = 0
) -> Run:
    """Run pictures, shared out among processes, each from a reset; the tensors of the first ones.

    Raises
    ------
    BenchError
        The engine refused the Image, or gave no answer in twenty times the cycles predicted.
    """
    counters.runs += 1
    shares = np.array_split(np.arange(len(images)), min(processes(), len(images)))
    with tempfile.TemporaryDirectory(prefix="signum-") as place:
        folders = [Path(place, str(i)) for i in range(len(shares))]
        watched = [int((share < layer_images).sum()) for share in shares]
        commands = []
        for folder, share, count in zip(folders, shares, watched, strict=True):
            _write_job(folder, schedule, images[share])
            patience = 20 * (schedule.cycles + schedule.header["pixels"] * 64)
            sizes = (len(share), len(schedule.layers), schedule.program.scores.channels)
            numbers = (*sizes, count, patience, default_seed())
            commands.append([str(simulation.program), str(folder), *map(str, numbers)])
        _run_all(commands)
        runs = [
            check.collect(_read_results(folder, schedule, count, len(share)), 0, schedule, count)
            for folder, share, count in zip(folders, shares, watched, strict=True)
        ]
    return joined(runs)


def joined(runs: list[Run]) -> Run:
    """Runs on pictures that follow one another, as one."""
    tensors = [run.tensors for run in runs if run.tensors]
    return Run(
        np.concatenate([run.scores for run in runs]),
        np.concatenate([run.labels for run in runs]),
        np.concatenate([run.cycles for run in runs]),
        np.concatenate([run.layer_cycles for run in runs]),
        {name: np.concatenate([t[name] for t in tensors]) for name in (tensors or [{}])[0]},
    )


def _write_job(folder: Path, schedule: Schedule, images: NDArray[np.uint8]) -> None:
    """What `engine.cpp` reads."""
    folder.mkdir()
    regions = [
        (i, first, words)
        for i, layer in enumerate(check.extents(schedule))
        for first, words in layer
    ]
    np.array(Image.of(schedule).words(), dtype="<u8").tofile(folder / "words")
    np.array(regions, dtype="<u8").tofile(folder / "regions")
    check.pixels_of(images).tofile(folder / "pixels")


def _read_results(
    folder: Path, schedule: Schedule, layer_images: int, pictures: int
) -> Mapping[str, Any]:
    """What `engine.cpp` wrote, as `check.collect` takes it."""
    sizes = [words for layer in check.extents(schedule) for _, words in layer]
    values: dict[str, Any] = {
        f"{name}0": np.fromfile(folder / name, dtype="<u8").astype(np.int64).reshape(shape)
        for name, shape in {"answers": (pictures, -1), "spans": (-1, 2), "classes": -1}.items()
    }
    if layer_images:
        memory = np.fromfile(folder / "memory", dtype=np.uint8)
        words = memory.reshape(layer_images * sum(sizes), -1)
        bits = np.split(words, np.cumsum(sizes * layer_images)[:-1])
        for k, region in enumerate(bits):
            values[f"memory0_{k}"] = np.unpackbits(region, axis=1, bitorder="little")
    return values


def _run_all(commands: list[list[str]]) -> None:
    """Run programs at once; when one fails, or on Ctrl-C, none is left behind."""
    running: list[subprocess.Popen[str]] = []
    try:
        running += [
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C comes here alone, and is passed on below
            )
            for command in commands
        ]
        while any(process.poll() is None for process in running) and not any(
            process.returncode for process in running
        ):
            time.sleep(POLL_S)
        for process in running:
            if process.returncode:
                said = process.stderr.read().strip() if process.stderr else ""
                raise BenchError(
                    f"the simulated engine must end with status 0, not {process.returncode}: "
                    f"{said or 'it said nothing'}"
                )
    finally:
        for process in running:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stderr:
                process.stderr.close()
