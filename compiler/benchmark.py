"""The figures that the project is held to: which builds, their floors, and the table of both.

Nothing here builds: `python -m compiler benchmark` does, and gives each row its `report.json`, or
why there is none. A row without a report has no figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler import checkpoint, sizing
from compiler.checkpoint import Network
from compiler.stages import write

ZOO = Path(__file__).parents[1] / "train" / "zoo"

BASELINES = Path(__file__).parents[1] / "tests" / "baselines"

TIMING_SEED = 1
"""Of the weights of a network of which there is no checkpoint."""


@dataclass(frozen=True, slots=True)
class Row:
    """A build, and what it must reach.

    Attributes
    ----------
    board, network : str
        As on the command line.
    source : str or Network
        A file of `ZOO`; or a network to be given random weights, for its timing alone; or, starting
        with "!", why there is nothing to build.
    lanes, clock_mhz : int, float
        Least additions a cycle at its width of activations, and least clock after routing.
    least : float
        Images a second; 0 where none is asked for.
    activation_bits : int
    images : int
        To simulate.
    """

    board: str
    network: str
    source: str | Network
    lanes: int
    clock_mhz: float
    least: float
    activation_bits: int = 4
    images: int = 2

    @property
    def name(self) -> str:
        """Of its folder and its baseline."""
        return f"{self.board}-{self.network}"


WRN_20_2 = Network(20, 2.0, 10, (3, 32, 32))

ROWS = (
    Row("icebreaker", "wrn20-2", WRN_20_2, 256, 36, 40),
    Row("icebreaker", "wrn20-1", "cifar10-wrn20-1-a4.pt", 256, 36, 150),
    Row("icebreaker", "tinbinn", "!the compiler does not lower plain VGG networks", 128, 36, 40, 8),
    Row("hx8k", "wrn8-1", "digits-wrn8-1-a4.pt", 256, 85, 0, images=3),
    Row("ulx3s-25f", "wrn20-2", WRN_20_2, 1024, 80, 220),
)
"""The floors. TinBiNN's network is to take 25 ms: 40 images a second."""


def source_of(row: Row, folder: Path) -> Path:
    """The row's checkpoint; random weights are written into ``folder`` first."""
    if isinstance(row.source, str):
        return ZOO / row.source
    made = sizing.blank(row.source)
    rng = np.random.default_rng(TIMING_SEED)
    for name, tensor in made.tensors.items():
        if name.endswith(".weight"):
            tensor[:] = rng.choice(np.array([-1, 1], tensor.dtype), tensor.shape)
    path = folder / f"{row.network}.pt"
    checkpoint.save(path, made)
    return path


# -- tables ----------------------------------------------------------------------------------------

HEAD = (
    *("board", "network", "additions a cycle: peak (at least)", "achieved", "LUT", "block RAM"),
    *("Fmax MHz (at least), seed", "clock MHz", "cycles an image", "images/s (at least)"),
)


def table(results: Sequence[tuple[Row, Mapping[str, Any] | str]]) -> str:
    """Markdown: a row's figures beside its floors, or why it is not built."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    for row, result in results:
        cells = [row.board, _title(row)]
        if isinstance(result, str):
            floors = f"{row.lanes:,} additions, {row.clock_mhz:g} MHz, {_asked(row)}"
            cells += [f"not built: {result} (at least: {floors})", *[""] * (len(HEAD) - 3)]
        else:
            cells += _figures(row, result)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _title(row: Row) -> str:
    more = [] if row.activation_bits == 4 else [f"{row.activation_bits}-bit"]
    more += ["random weights"] if isinstance(row.source, Network) else []
    return f"{row.network} ({', '.join(more)})" if more else row.network


def _asked(row: Row) -> str:
    return f"{row.least:g} images/s" if row.least else "no speed"


def _figures(row: Row, report: Mapping[str, Any]) -> list[str]:
    rate, cells, budget = report["addsub_per_cycle"], report["cells"], report["budget"]
    return [
        f"{rate['peak']:,} ({row.lanes:,})",
        f"{rate['achieved']:.1f}",
        f"{cells['lut']:,} of {budget['lut']:,}",
        f"{cells['bram']} of {budget['bram']}",
        f"{report['fmax_mhz']:.1f} ({row.clock_mhz:g}), seed {report['seed']}",
        f"{report['clock_mhz']:g}",
        f"{report['cycles_per_image']['simulated']:,}",
        f"{report['images_per_second']:.0f} ({f'{row.least:g}' if row.least else '–'})",
    ]


# -- baselines -------------------------------------------------------------------------------------


def baseline_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What must not get worse unseen: exact, but for Fmax, which is that of its seed."""
    return {
        "board": report["board"],
        "network": report["network"],
        "lanes": report["lanes"],
        "cells": report["cells"],
        "cycles_per_image": report["cycles_per_image"],
        "fmax_mhz": round(report["fmax_mhz"], 2),
        "seed": report["seed"],
        "verilog_sha256": report["verilog"]["sha256"],
        "tools": {k: v for k, v in report["tools"].items() if k in TOOLS},
    }


TOOLS = ("yosys", "nextpnr-ice40", "nextpnr-ecp5", "verilator", "amaranth")
"""Those whose versions shape a baseline."""


def write_baseline(row: Row, report: Mapping[str, Any], folder: Path = BASELINES) -> Path:
    """Keep a row's figures, as those that later ones are compared with."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.name}.json"
    write(path, json.dumps(baseline_of(report), indent=1) + "\n")
    return path


def losses(baseline: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """Every figure that is not the baseline's, in words; an Fmax only if it is lower."""
    now = baseline_of(report)
    found = []
    for kind in ("cells", "cycles_per_image", "lanes"):
        for name, was in baseline[kind].items():
            if (got := now[kind].get(name)) != was:
                found.append(f"{kind} {name}: {was} before, {got} now")
    if now["seed"] == baseline["seed"] and now["fmax_mhz"] < baseline["fmax_mhz"]:
        found.append(f"fmax_mhz: {baseline['fmax_mhz']} before, {now['fmax_mhz']} now")
    return found


def document(
    results: Sequence[tuple[Row, Mapping[str, Any] | str]], versions: Mapping[str, str]
) -> str:
    """`docs/benchmarks.md`."""
    tools = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"""# Benchmarks

Written by `python -m compiler benchmark`: each figure is of a bitstream that the tools made with
timing met, and of the simulation of its Verilog, whose scores and layers equalled the golden model.
In brackets stands what the row must reach. Networks without a checkpoint have random weights (seed
{TIMING_SEED}), which change no cycle.

{table(results)}
Tools: {tools}. `tests/baselines` holds what later builds are compared with.
"""
