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
from compiler import graph as ir
from compiler.arith import SIGNED_INPUT_ZERO, Pads, conv_scale
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
    made : str
        What is made of the file, for its timing: "widened" to twice its width, or "tinbinn"; else
        it is the network that the file holds.
    activation_bits : int
    shape : str
        ``--lanes`` of the build; "" for the board's.
    lanes, clock_mhz : int, float
        Least additions a cycle at its width of activations, and least clock after routing.
    least : float
        Images a second; 0 where none is asked for.
    images : int
        To simulate.
    image_from : str
        As on the command line.
    """

    board: str
    network: str
    source: str
    lanes: int
    clock_mhz: float
    least: float
    made: str = ""
    activation_bits: int = 4
    shape: str = ""
    images: int = 2
    image_from: str = "flash"

    @property
    def name(self) -> str:
        """Of its folder and its baseline."""
        source = "" if self.image_from == "flash" else f"-{self.image_from}"
        return f"{self.board}-{self.network}{source}"


ROWS = (
    Row("icebreaker", "wrn20-2", "cifar10-wrn20-1-a4.pt", 256, 36, 40, "widened"),
    Row("icebreaker", "wrn20-1", "cifar10-wrn20-1-a4.pt", 256, 36, 150),
    Row("icebreaker", "wrn20-2-a2", "cifar10-wrn20-1-a4.pt", 448, 36, 75, "widened", 2, "32x16x1"),
    Row("icebreaker", "tinbinn", "cifar10-wrn20-1-a4.pt", 128, 36, 40, "tinbinn", 8, "8x8x2"),
    Row("hx8k", "wrn8-1", "digits-wrn8-1-a4.pt", 256, 85, 0, images=3),
    Row("ulx3s-25f", "wrn20-1", "cifar10-wrn20-1-a4.pt", 1024, 80, 0),
    Row("ulx3s-25f", "wrn20-2", "cifar10-wrn20-1-a4.pt", 1024, 80, 220, "widened"),
    Row(
        *("ulx3s-25f", "wrn20-2", "cifar10-wrn20-1-a4.pt", 1024, 80, 340, "widened"),
        image_from="sdram",
    ),
)
"""The floors."""


def widened(trained: Checkpoint, width: float = 2.0) -> Checkpoint:
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


def tinbinn(trained: Checkpoint) -> ir.Graph:
    """The network of TinBiNN (arXiv 1903.06630), with random weight bits: for its timing alone.

    BinaryConnect's at half its width: pairs of 3x3 convolutions of 48, 96 and 128 channels, a 2x2
    maximum behind each pair, fully connected layers of 256, 256 and 10. As in `widened` batch norms
    have the moments of a trained network, here of those layers whose inputs are rectified alike.
    Scales are positive, so a maximum may as well stand behind the ReLU.
    """
    rng = np.random.default_rng(TIMING_SEED)
    moments = {
        kind: np.concatenate(
            [t.ravel() for n, t in trained.tensors.items() if n.endswith(f".bn2.{kind}")]
        ).astype(np.float64)
        for kind in ("mean", "variance")
    }
    nodes: list[ir.Node] = [ir.Input("image", (3, 32, 32))]

    def norm(name: str, mean: ir.Float, variance: ir.Float) -> None:
        one = np.ones(len(mean))
        nodes.append(ir.BatchNorm(name, nodes[-1].name, mean, variance, one, 0 * one, 1e-5))

    def layer(name: str, c_in: int, c_out: int, kernel: int, pads: int) -> None:
        signs = rng.choice(np.array([-1, 1], np.int8), (c_out, c_in, kernel, kernel))
        scale, around = np.asarray(conv_scale(signs[0].size)), Pads(pads, pads, pads, pads)
        nodes.append(ir.Conv(name, nodes[-1].name, signs, scale, 1, around))
        norm(f"{name}.bn", *(np.resize(moments[kind], c_out) for kind in ("mean", "variance")))

    def rectified(name: str, maximum: bool = False) -> None:
        nodes.append(ir.Relu(f"{name}.relu", nodes[-1].name))
        if maximum:
            nodes.append(ir.MaxPool(f"{name}.pool", nodes[-1].name, 2, 2, Pads(0, 0, 0, 0)))
        nodes.append(ir.Quantiser(f"{name}.q", nodes[-1].name, 8, 0, None))

    pixel = (trained.tensors[f"input.bn.{kind}"] for kind in ("mean", "variance"))
    norm("input.bn", *(values.astype(np.float64) for values in pixel))
    nodes.append(ir.Quantiser("input.q", "input.bn", 8, SIGNED_INPUT_ZERO, None))
    channels, size = 3, 32
    for stage, c_out in enumerate((48, 96, 128), 1):
        for i in (1, 2):
            layer(f"conv{stage}.{i}", channels, c_out, 3, 1)
            rectified(f"conv{stage}.{i}", maximum=i == 2)
            channels = c_out
        size //= 2
    for i, c_out in enumerate((256, 256, 10), 1):
        layer(f"dense{i}", channels, c_out, size, 0)
        if c_out > 10:
            rectified(f"dense{i}")
        channels, size = c_out, 1
    return ir.Graph("tinbinn", tuple(nodes), tuple(map(str, range(10))))


def source_of(row: Row, folder: Path) -> Path:
    """The row's network file; one that has to be made is written into ``folder``."""
    path = ZOO / row.source
    match row.made:
        case "widened":
            made = widened(checkpoint.load(path))
            path = folder / f"{row.network}.pt"
            checkpoint.save(path, made)
        case "tinbinn":
            from compiler.export_float import to_onnx  # here, so that nothing else waits for it

            model = to_onnx(tinbinn(checkpoint.load(path)))
            path = folder / f"{row.network}.onnx"
            write(path, model.SerializeToString())
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
    notes = ["random weight bits"] if row.made else []
    notes += ["Image in SDRAM"] if row.image_from == "sdram" else []
    return f"{row.network} ({', '.join(notes)})" if notes else row.network


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
random (seed {TIMING_SEED}), and batch norms are a trained network's (`widened` and `tinbinn` in
`compiler/benchmark.py`).

{table(results)}
Tools: {tools}. `tests/baselines` holds what later builds are compared with.
"""
