"""Two networks on the same images, layer by layer: a float checkpoint, or an integer Program.

Values are compared in real units (an integer less its zero, times its step), for the tensors that
both have by name: the activations, the residual stream and the scores. Two Programs are also
compared as integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from compiler import accuracy, checkpoint, golden, graph
from compiler.datasets import Dataset
from compiler.errors import UsageError
from compiler.program import Program

SCORES = "scores"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its tensors in real units, in order of the flow.

    Attributes
    ----------
    kind : "float" or "golden"
    integers : dict
        Of a Program, the integers themselves.
    """

    kind: str
    values: dict[str, NDArray[np.float64]]
    integers: dict[str, NDArray[np.int64]]


def compare(
    a: Path, b: Path, dataset: str | None = None, data: Path | None = None, images: int = 16
) -> dict[str, Any]:
    """Run both and compare what they have in common.

    Raises
    ------
    SignumError
        A file is neither a checkpoint nor a Program, or the two take different images.
    """
    sides = [_open(path) for path in (a, b)]
    shapes = [_shape(side) for side in sides]
    if shapes[0] != shapes[1]:
        raise UsageError(f"A and B must take the same images, not {shapes[0]} and {shapes[1]}")
    pictures, source = _pictures(sides, shapes[0], dataset, data, images)
    run = [_run(side, pictures) for side in sides]
    layers = [_difference(name, run[0], run[1]) for name in run[0].values if name in run[1].values]
    classes = [np.argmax(side.values[SCORES].reshape(len(pictures), -1), axis=1) for side in run]
    return {
        "a": {"path": str(a), "kind": run[0].kind},
        "b": {"path": str(b), "kind": run[1].kind},
        "images": len(pictures),
        "pictures": source,
        "layers": layers,
        "first_difference": next((x["name"] for x in layers if x["different"]), None),
        "agreement": float(np.mean(classes[0] == classes[1])),
    }


def _open(path: Path) -> checkpoint.Checkpoint | Program:
    if path.suffix == ".json":
        if not path.is_file():
            raise UsageError(f"there must be a file at {path}")
        return Program.from_json(path.read_text())
    return checkpoint.load(path)


def _shape(side: checkpoint.Checkpoint | Program) -> tuple[int, int, int]:
    return side.image.shape if isinstance(side, Program) else side.network.input


def _pictures(
    sides: list[Any], shape: tuple[int, int, int], name: str | None, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Test images of the data set that one of the two was trained on, or noise."""
    found: Dataset | None = None
    for side in sides:
        if found is None and isinstance(side, checkpoint.Checkpoint):
            found, _ = accuracy.open_data(side, name, data)
    if found is None:
        return accuracy.noise(shape, count), "noise"
    return found.test_images[:count], found.name


def _run(side: checkpoint.Checkpoint | Program, pictures: NDArray[np.uint8]) -> Side:
    if isinstance(side, Program):
        kinds = ("activation", "residual", "score")
        wanted = [t for t in side.tensors if t.kind in kinds]
        integers = golden.run(side, pictures, [t.name for t in wanted]).tensors
        integers = {t.name: integers[t.name] for t in wanted}
        real = {
            t.name: np.asarray((integers[t.name] - t.zero) * t.step, np.float64) for t in wanted
        }
        last = side.scores.name
        real[SCORES] = real.pop(last)
        integers[SCORES] = integers.pop(last)
        return Side("golden", real, integers)
    network = graph.build(side)
    names = [
        n.name for n in network.nodes if isinstance(n, graph.Quantiser | graph.Add | graph.AvgPool)
    ]
    values = graph.run(network, pictures, names=names)
    floats = {name: values[name] for name in names} | {SCORES: values[network.output]}
    return Side("float", floats, {})


def _difference(name: str, a: Side, b: Side) -> dict[str, Any]:
    """How far one tensor is apart, and where first."""
    exact = name in a.integers and name in b.integers
    x, y = (a.integers[name], b.integers[name]) if exact else (a.values[name], b.values[name])
    if x.shape != y.shape:
        raise UsageError(f"{name} must have one shape in A and B, not {x.shape} and {y.shape}")
    real_x, real_y = a.values[name], b.values[name]
    power = float(np.sqrt(np.square(real_x).mean()))
    error = float(np.sqrt(np.square(real_x - real_y).mean()))
    # Floats differ in their last digits; that is no difference.
    wrong = np.argwhere(x != y if exact else ~np.isclose(x, y, rtol=1e-9, atol=1e-9 * (power or 1)))
    first = tuple(int(i) for i in wrong[0]) if len(wrong) else None
    return {
        "name": name,
        "relative_error": error / power if power else error,
        "values": int(x.size),
        "different": len(wrong),
        "first": first,
        "a": None if first is None else x[first].item(),
        "b": None if first is None else y[first].item(),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print a comparison."""
    a, b = result["a"], result["b"]
    table = Table(
        title=f"A {a['path']} ({a['kind']}), B {b['path']} ({b['kind']}); "
        f"{result['images']} pictures of {result['pictures']}",
        title_justify="left",
    )
    for head in ("tensor", "relative error", "different", "first at", "A", "B"):
        table.add_column(head, justify="left" if head == "tensor" else "right", no_wrap=True)
    for layer in result["layers"]:
        at = "" if layer["first"] is None else str(layer["first"])
        shown = ["" if layer[side] is None else f"{layer[side]:.6g}" for side in ("a", "b")]
        table.add_row(
            layer["name"],
            f"{layer['relative_error']:.3g}",
            f"{layer['different']:,} of {layer['values']:,}",
            *(at, *shown),
        )
    console.print(table)
    first = result["first_difference"] or "none"
    console.print(f"first difference: {first}; same class for {result['agreement']:.2%}")
