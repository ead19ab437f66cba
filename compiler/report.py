"""`report.json`: every figure of a build by its fixed name, and the same as a table.

A figure that was not measured is None (null), never guessed; fractions run 0 .. 1.
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from compiler.geometry import Geometry
from compiler.program import Add, Conv, Pool, Program, SumPixels, reads
from compiler.schedule import Schedule

Report = dict[str, Any]


def memory(program: Program, residual_bits: int) -> dict[str, int]:
    """Bits of weights, and the most that activations and residuals take at once.

    A tensor lives from the layer that writes it to the last that reads it, both included: a layer
    reads its window while it writes. A residual sum takes the place of what it is added to, and
    accumulators never stand in memory.
    """
    layer_of = _layers(program)
    last = {name: layer_of[i] for i, op in enumerate(program.ops) for name in reads(op)}
    merged = {op.residual for op in program.ops if isinstance(op, Add)}
    most = {"activation": 0, "residual": 0}
    for layer in range(max(layer_of) + 1):
        now = dict.fromkeys(most, 0)
        for i, op in enumerate(program.ops):
            out = program[op.output]
            end = last.get(op.output, -1)
            # What is added to is gone in the layer of the addition, where its sum counts.
            if out.kind in now and layer_of[i] <= layer <= end - (op.output in merged):
                width = residual_bits if out.kind == "residual" else out.bits
                now[out.kind] += out.channels * out.height * out.width * width
        most = {kind: max(bits, now[kind]) for kind, bits in most.items()}
    return {
        "weights_bits": program.weight_bits,
        "activations_bits": most["activation"],
        "residual_bits": most["residual"],
    }


def _layers(program: Program) -> list[int]:
    """For each operation the layer of the engine that does it: a convolution with what follows."""
    found: list[int] = []
    for i, op in enumerate(program.ops):
        begins = isinstance(op, Conv | Pool | SumPixels)
        joined = i > 0 and isinstance(program.ops[i - 1], SumPixels)
        found.append((found[-1] if found else 0) + int(begins and not joined))
    return found


def lanes(geometry: Geometry) -> dict[str, int]:
    """Of the geometry, by the names of `report.json`."""
    return {
        "input": geometry.input_lanes,
        "output": geometry.output_lanes,
        "pixels": geometry.pixel_lanes,
    }


def work(
    laid_out: Schedule, simulated: int | None, clock_hz: float, pass_cycles: int = 0
) -> Report:
    """Additions, cycles and speed; ``simulated`` cycles an image, or None.

    ``images_per_second`` is the clock over the simulated cycles, the Image being resident; or over
    ``pass_cycles``, in which it is read from flash for a picture, if those are more.
    """
    additions, peak = laid_out.program.addsub_per_image, laid_out.geometry.lanes
    achieved = additions / simulated if simulated else None
    return {
        "addsub_per_image": additions,
        "cycles_per_image": {"predicted": laid_out.cycles, "simulated": simulated},
        "addsub_per_cycle": {"peak": peak, "achieved": achieved},
        "utilisation": achieved / peak if achieved else None,
        "clock_mhz": clock_hz / 1e6,
        "images_per_second": clock_hz / max(simulated, pass_cycles) if simulated else None,
    }


def to_json(report: Report) -> str:
    """The file's text."""
    return json.dumps(report, indent=1) + "\n"


# -- for people ------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Print the figures as a table."""
    accuracy, cycles, cells = report["accuracy"], report["cycles_per_image"], report["cells"]
    budget, rate = report["budget"], report["addsub_per_cycle"]
    table = Table(
        title=f"{report['network']} on {report['board']} ({report['device']}), "
        f"{report['activation_bits']}-bit activations",
        show_header=False,
        title_justify="left",
    )
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, *parts: str) -> None:
        table.add_row(name, ", ".join(part for part in parts if part))

    row(
        "accuracy",
        f"float {percent(accuracy['float'])}",
        f"golden {percent(accuracy['golden'])}",
        f"of {number(accuracy['images'])} test images",
        f"float activations {percent(accuracy['float_unquantised'])}",
    )
    row("golden = float", f"{percent(accuracy['golden_agrees_float'])} of the answers")
    equal = {True: "equal to golden in every layer compared", False: "DIFFERS", None: "not run"}
    row(
        "simulated RTL",
        equal[accuracy["golden_equals_rtl"]],
        f"{percent(accuracy['rtl'])} of {number(accuracy['rtl_images'])} images right",
    )
    row(
        "cycles an image",
        f"{number(cycles['simulated'])} simulated",
        f"{number(cycles['predicted'])} predicted",
    )
    row(
        "additions a cycle",
        f"{number(rate['achieved'], 1)} of {number(rate['peak'])}",
        f"utilisation {percent(report['utilisation'])}",
    )
    row(
        "clock",
        f"{number(report['clock_mhz'], 2)} MHz",
        f"routed for {number(report['fmax_mhz'], 2)} MHz",
    )
    row(
        "images a second",
        f"{number(report['images_per_second'])}",
        f"{number(report['host_images_per_second'])} over the serial link",
    )
    row(
        "cells",
        *(f"{cells[kind]:,} of {budget[kind]:,} {kind.upper()}" for kind in budget),
        f"{cells['ff']:,} FF",
    )
    bits = report["memory"]
    row(
        "memory",
        *(f"{bits[f'{name}_bits']:,} bits of {name}" for name in ("weights", "activations")),
        f"{bits['residual_bits']:,} of residuals",
    )
    row("bitstream", report["bitstream"]["path"], f"{report['bitstream']['bytes']:,} bytes")
    row("Image", report["image"]["path"], f"{report['image']['bytes']:,} bytes")
    row("seconds", *(f"{name} {took:g}" for name, took in report["seconds"].items()))
    console.print(table)


def percent(value: float | None) -> str:
    """A fraction, or a dash."""
    return "–" if value is None else f"{100 * value:.2f} %"


def number(value: float | None, places: int = 0) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:,.{places}f}"
