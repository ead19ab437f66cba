"""A comparison drawn: error and share of differing values, layer by layer. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.errors import UsageError

SUFFIXES = (".svg", ".png", ".pdf")

PER_LAYER = 0.28
"""Inches of width."""


def check(path: Path) -> None:
    """Refuse what could not be drawn to.

    Raises
    ------
    UsageError
        Another suffix, no such folder, or matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a picture must end with one of {', '.join(SUFFIXES)}, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"the picture's folder must exist, and {path.parent} does not")
    _figure_type()


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw what `compare.compare` found; the first difference is marked in both panes."""
    layers = result["layers"]
    names = [layer["name"] for layer in layers]
    places = range(len(names))
    figure = _figure_type()(figsize=(3 + PER_LAYER * len(names), 6), layout="constrained")
    error, share = figure.subplots(2, sharex=True, height_ratios=(2, 1))
    a, b = (f"{result[side]['path']} ({result[side]['kind']})" for side in ("a", "b"))
    error.set_title(
        f"A {a}\nB {b}\n{result['images']} pictures of {result['pictures']}, "
        f"same class for {result['agreement']:.2%}",
        loc="left",
        fontsize="medium",
    )
    errors = [layer["relative_error"] for layer in layers]
    error.plot(places, errors, marker="o", markersize=4)
    if any(errors):
        # Logarithmic down to the smallest error, and 0 below it.
        error.set_yscale("symlog", linthresh=min(e for e in errors if e))
    error.set_ylim(bottom=0)
    error.set_ylabel("relative error (rms)")
    share.bar(places, [100 * layer["different"] / layer["values"] for layer in layers])
    share.set_ylabel("values that differ, %")
    share.set_ylim(0, 100)
    share.set_xticks(places, names, rotation=90, fontsize="small")
    first = result["first_difference"]
    if first is not None:
        for pane in (error, share):
            pane.axvline(names.index(first), color="tab:red", linestyle=":")
        error.annotate(
            f"first difference: {first}",
            (names.index(first), 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -12),
            textcoords="offset points",
            color="tab:red",
        )
    figure.savefig(path)


def _figure_type() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "a picture needs matplotlib, which is not installed", hint="pip install matplotlib"
        ) from error
    return Figure
