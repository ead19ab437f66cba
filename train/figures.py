"""The paper's figures with our results, as PNG and SVG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compiler.errors import UsageError
from train.reproduce import Curve

SIZE = (7.0, 4.5)
"""Inches."""


def draw(
    folder: Path, name: str, title: str, axes: tuple[str, str], curves: Iterable[Curve]
) -> list[Path]:
    """Draw points, joined where they are a run's epochs, into ``folder/name.png`` and ``.svg``.

    Raises `UsageError` where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "figures need matplotlib, which is not installed", hint="pip install matplotlib"
        ) from error
    figure = Figure(figsize=SIZE, layout="constrained")
    plot = figure.add_subplot(title=title, xlabel=axes[0], ylabel=axes[1])
    drawn = [curve for curve in curves if curve.x]
    for curve in drawn:
        joined = axes[0] == EPOCHS
        face = "none" if curve.paper else None
        plot.plot(
            curve.x,
            curve.y,
            marker="o",
            markerfacecolor=face,
            linestyle="-" if joined else "none",
            label=curve.name,
        )
    if axes[0] == EPOCHS:
        plot.set_xscale("log", base=2)
    plot.grid(alpha=0.3)
    if drawn:
        plot.legend(fontsize="small")
    else:
        plot.text(0.5, 0.5, "not run", ha="center", transform=plot.transAxes)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths


EPOCHS = "epochs"
"""The axis along which a curve's points are joined, on a logarithmic scale: cycles double."""
