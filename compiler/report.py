"""`report.json`: every figure of a build by its fixed name, and the same as a table.

A figure that was not measured is None (null), never guessed; fractions run 0 .. 1.
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from compiler.geometry import Geometry
from compiler.program import Program, reads
from compiler.schedule import Schedule

Report = dict[str, Any]


def memory(program: Program, residual_bits: int) -> dict[str, int]:
    """Bits of weights, and the most that activations and residuals take at once.

    A tensor lives from the operation that writes it to the last that reads it; the engine needs no
    copy of a residual that it adds to, nor any of accumulators.
    """
    last = {name: i for i, op in enumerate(program.ops) for name in reads(op)}
    most = {"activation": 0, "residual": 0}
    live: dict[str, int] = {}
    for i, op in enumerate(program.ops):
        out = program[op.output]
        live = {name: bits for name, bits in live.items() if last.get(name, -1) >= i}
        if out.kind == "residual":  # in place of the one it is added to
            live.pop(getattr(op, "residual", None) or "", None)
        if out.kind in most:
            width = residual_bits if out.kind == "residual" else out.bits
            live[op.output] = out.channels * out.height * out.width * width
        for kind, bits in most.items():
            now = sum(b for name, b in live.items() if program[name].kind == kind)
            most[kind] = max(bits, now)
    return {
        "weights_bits": program.weight_bits,
        "activations_bits": most["activation"],
        "residual_bits": most["residual"],
    }


def lanes(geometry: Geometry) -> dict[str, int]:
    """Of the geometry, by the names of `report.json`."""
    return {
        "input": geometry.input_lanes,
        "output": geometry.output_lanes,
        "pixels": geometry.pixel_lanes,
    }


def work(laid_out: Schedule, simulated: int | None, clock_hz: float) -> Report:
    """Additions, cycles and speed; ``simulated`` cycles an image, or None.

    ``images_per_second`` is the clock over the simulated cycles, the Image being resident.
    """
    additions, peak = laid_out.program.addsub_per_image, laid_out.geometry.lanes
    achieved = additions / simulated if simulated else None
    return {
        "addsub_per_image": additions,
        "cycles_per_image": {"predicted": laid_out.cycles, "simulated": simulated},
        "addsub_per_cycle": {"peak": peak, "achieved": achieved},
        "utilisation": achieved / peak if achieved else None,
        "clock_mhz": clock_hz / 1e6,
        "images_per_second": clock_hz / simulated if simulated else None,
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
