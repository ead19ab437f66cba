"""The figures that the project is held to: which builds, their floors, and the table of both.

Nothing here builds: `python -m compiler benchmark` does, and gives each row its `report.json`, or
why there is none. A row without a report has no figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler import checkpoint
from compiler.arith import conv_scale
from compiler.checkpoint import Checkpoint
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
    source : str
        A file of `ZOO`.
    width : float
        Of the network that is made of it, see `widened`; 0 for what the file holds.
    activation_bits : int
    lanes, clock_mhz : int, float
        Least additions a cycle at its width of activations, and least clock after routing.
    least : float
        Images a second; 0 where none is asked for.
    images : int
        To simulate.
    """

    board: str
    network: str
    source: str
    lanes: int
    clock_mhz: float
    least: float
    width: float = 0
    activation_bits: int = 4
    images: int = 2

    @property
    def name(self) -> str:
        """Of its folder and its baseline."""
        return f"{self.board}-{self.network}"


ROWS = (
    Row("icebreaker", "wrn20-2", "cifar10-wrn20-1-a4.pt", 256, 36, 40, width=2.0),
    Row("icebreaker", "wrn20-1", "cifar10-wrn20-1-a4.pt", 256, 36, 150),
    Row("hx8k", "wrn8-1", "digits-wrn8-1-a4.pt", 256, 85, 0, images=3),
    Row("ulx3s-25f", "wrn20-2", "cifar10-wrn20-1-a4.pt", 1024, 80, 220, width=2.0),
)
"""The floors."""


def widened(trained: Checkpoint, width: float) -> Checkpoint:
    """A network of another width and random weight bits, for its timing alone.

    All else is the trained one's, channel by channel, again and again. A layer's sums grow with its
    width as its scale falls, so the moments suit; steps have to be chosen anew, for they are
    aligned with the scales. It has learned nothing: no data set goes with it.
    """
    network = replace(trained.network, width=width)
    rng = np.random.default_rng(TIMING_SEED)
    tensors = {}
    for name, (dtype, shape) in checkpoint.tensor_shapes(network).items():
        if name.endswith(".weight"):
            tensors[name] = rng.choice(np.array([-1, 1], dtype), shape)
        else:
            tensors[name] = np.resize(trained.tensors[name], shape)
    for layer in checkpoint.layers(network):
        tensors[f"{layer.name}.scale"] = np.array(conv_scale(layer.fan_in))
    return replace(trained, network=network, tensors=tensors, quantiser=None, training={})


def source_of(row: Row, folder: Path) -> Path:
    """The row's checkpoint; one that has to be made is written into ``folder``."""
    path = ZOO / row.source
    if row.width:
        made = widened(checkpoint.load(path), row.width)
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
    return f"{row.network} (random weight bits)" if row.width else row.network


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


def changes(row: Row, report: Mapping[str, Any], folder: Path = BASELINES) -> list[str]:
    """Every figure that is not the row's baseline, in words; an Fmax only if it is lower."""
    path = folder / f"{row.name}.json"
    if not path.exists():
        return []
    baseline, now = json.loads(path.read_text()), baseline_of(report)
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
In brackets stands what the row is to reach. Where there is no checkpoint yet the weight bits are
random (seed {TIMING_SEED}), and all else is of a trained network (`compiler.benchmark.widened`).

{table(results)}
Tools: {tools}. `tests/baselines` holds what later builds are compared with.
"""
