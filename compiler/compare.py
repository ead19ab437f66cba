"""Two networks on the same images, layer by layer: any two of float, golden, onnxruntime, RTL.

A checkpoint runs in float64, a Program in the golden model, an ONNX file in onnxruntime, unless
``FILE@MODEL`` says otherwise. Values are compared in real units (an integer less its zero, times
its step), for the tensors that both have by name: the activations, the residual stream and the
scores. Where both sides are integers they are compared as integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from compiler import accuracy, golden, graph, lower, networks
from compiler.datasets import Dataset
from compiler.errors import UsageError
from compiler.graph import Graph
from compiler.networks import NetworkFile
from compiler.program import Program

if TYPE_CHECKING:
    from compiler.onnx_run import Opinion

    Source = Graph | Program | Opinion

MODELS = ("float", "golden", "onnxruntime", "rtl")
"""What can run a file."""

Engine = Callable[[Program, NDArray[np.uint8]], Mapping[str, NDArray[np.int64]]]
"""A simulated engine: a Program and its pictures to the tensors that it leaves, and the scores."""

KINDS = ("activation", "residual", "score")
"""Tensors of a Program that are compared."""

SCORES = "scores"


@dataclass(frozen=True, slots=True)
class Operand:
    """A file, and which of `MODELS` runs it."""

    path: Path
    model: str

    @classmethod
    def parse(cls, text: str) -> Operand:
        """``FILE`` or ``FILE@MODEL``.

        Raises
        ------
        UsageError
            The file's kind is none that the model runs.
        """
        name, at, model = text.rpartition("@")
        named = bool(at) and model in MODELS
        path = Path(name if named else text)
        usual = {".onnx": "onnxruntime", ".json": "golden"}.get(path.suffix.lower(), "float")
        found = cls(path, model if named else usual)
        if at and not named and not path.exists():
            raise UsageError(f"the model after @ must be one of {', '.join(MODELS)}, not {model!r}")
        kinds = {"onnxruntime": path.suffix == ".onnx", "float": path.suffix != ".json"}
        if not kinds.get(found.model, True):
            raise UsageError(
                f"{found.model} must be given "
                f"{'a network file' if found.model == 'float' else 'an ONNX file'}, not {path}",
                "python -m compiler export makes ONNX" if found.model == "onnxruntime" else "",
            )
        return found


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its tensors in real units, in order of the flow.

    Attributes
    ----------
    kind : one of `MODELS`
    integers : dict
        Of a Program, the integers themselves.
    precision : float
        Relative: floats differ in their last digits, and that is no difference.
    """

    kind: str
    values: dict[str, NDArray[np.float64]]
    integers: dict[str, NDArray[np.int64]]
    precision: float = 1e-9


def compare(
    a: Operand,
    b: Operand,
    dataset: str | None = None,
    data: Path | None = None,
    images: int = 16,
    *,
    activation_bits: int | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Run both and compare what they have in common.

    Parameters
    ----------
    activation_bits : int, optional
        Of the integers made of a network file, and of its float then; default: the file's own.
    engine : Engine, optional
        What simulates; needed where a side's model is "rtl".

    Raises
    ------
    SignumError
        A file is of no kind that we read, or the two take different images.
    """
    operands = (a, b)
    found = None
    files = [_network_file(operand) for operand in operands]
    for read in files:
        if found is None and read is not None:
            found, _ = accuracy.open_data(read, dataset, data)
    sides = [
        _open(operand, read, activation_bits, found)
        for operand, read in zip(operands, files, strict=True)
    ]
    shapes = [_shape(side) for side in sides]
    if shapes[0] != shapes[1]:
        raise UsageError(f"A and B must take the same images, not {shapes[0]} and {shapes[1]}")
    pictures = found.test_images[:images] if found else accuracy.noise(shapes[0], images)
    source = found.name if found else "noise"
    run = [
        _run(operand.model, side, pictures, engine)
        for operand, side in zip(operands, sides, strict=True)
    ]
    layers = [_difference(name, run[0], run[1]) for name in run[0].values if name in run[1].values]
    classes = [np.argmax(side.values[SCORES].reshape(len(pictures), -1), axis=1) for side in run]
    return {
        "a": {"path": str(a.path), "kind": run[0].kind},
        "b": {"path": str(b.path), "kind": run[1].kind},
        "images": len(pictures),
        "pictures": source,
        "layers": layers,
        "first_difference": next((x["name"] for x in layers if x["different"]), None),
        "agreement": float(np.mean(classes[0] == classes[1])),
    }


def _network_file(operand: Operand) -> NetworkFile | None:
    """What float, golden and RTL read; None where a Program or an ONNX file runs as it stands."""
    if operand.path.suffix == ".json" or operand.model == "onnxruntime":
        return None
    return networks.load(operand.path)


def _open(
    operand: Operand, read: NetworkFile | None, bits: int | None, data: Dataset | None
) -> Source:
    if operand.model == "onnxruntime":
        from compiler import onnx_run  # here, so that the compiler starts without it

        return onnx_run.opinion(operand.path)
    if read is None:
        if not operand.path.is_file():
            raise UsageError(f"there must be a file at {operand.path}")
        return Program.from_json(operand.path.read_text())
    network = networks.graph_of(read)
    calibration = None
    if accuracy.needs_calibration(read, bits):
        calibration = accuracy.calibration_of(data)
    if operand.model == "float":
        return network if bits is None else lower.quantised(network, bits, calibration)
    return accuracy.program_of(network, bits, calibration)


def _shape(side: Source) -> tuple[int, int, int]:
    return side.image.shape if isinstance(side, Graph | Program) else side.shape


def _run(model: str, side: Source, pictures: NDArray[np.uint8], engine: Engine | None) -> Side:
    if isinstance(side, Program):
        wanted = [t for t in side.tensors if t.kind in KINDS]
        if model == "rtl":
            if engine is None:
                raise ValueError("engine must be given where a side's model is 'rtl'")
            integers = dict(engine(side, pictures))
            wanted = [t for t in wanted if t.name in integers]
        else:
            integers = golden.run(side, pictures, [t.name for t in wanted]).tensors
        meaning = {t.name: (t.zero, t.step) for t in wanted}
        return _of_integers(model, integers, meaning, side.scores.name)
    if not isinstance(side, Graph):
        return _of_opinion(side, pictures)
    names = [
        n.name for n in side.nodes if isinstance(n, graph.Quantiser | graph.Add | graph.AvgPool)
    ]
    values = graph.run(side, pictures, names=names)
    floats = {name: values[name] for name in names} | {SCORES: values[side.output]}
    return Side("float", floats, {})


def _of_opinion(side: Opinion, pictures: NDArray[np.uint8]) -> Side:
    """What onnxruntime says of a file: of an exported Program integers, else single precision."""
    wanted = [name for name, (kind, *_) in side.meaning.items() if kind in KINDS]
    found = side.run(pictures, wanted or side.names)
    if side.meaning:
        meaning = {name: side.meaning[name][1:] for name in wanted}
        integers = {name: found[name].astype(np.int64) for name in wanted}
        return _of_integers("onnxruntime", integers, meaning, side.output)
    values = {name: np.asarray(found[name], np.float64) for name in side.names}
    scores = values.pop(side.output)
    return Side("onnxruntime", values | {SCORES: scores.reshape(*scores.shape[:2], 1, 1)}, {}, 1e-5)


def _of_integers(
    kind: str,
    integers: dict[str, NDArray[np.int64]],
    meaning: dict[str, tuple[int, float]],
    scores: str,
) -> Side:
    """A side of integers, each tensor with its zero and its step."""
    ordered = {(SCORES if name == scores else name): integers[name] for name in meaning}
    real = {
        (SCORES if name == scores else name): np.asarray((integers[name] - zero) * step, np.float64)
        for name, (zero, step) in meaning.items()
    }
    return Side(kind, real, ordered)


def _difference(name: str, a: Side, b: Side) -> dict[str, Any]:
    """How far one tensor is apart, and where first."""
    exact = name in a.integers and name in b.integers
    x, y = (a.integers[name], b.integers[name]) if exact else (a.values[name], b.values[name])
    if x.shape != y.shape:
        raise UsageError(f"{name} must have one shape in A and B, not {x.shape} and {y.shape}")
    real_x, real_y = a.values[name], b.values[name]
    power = float(np.sqrt(np.square(real_x).mean()))
    error = float(np.sqrt(np.square(real_x - real_y).mean()))
    near = max(a.precision, b.precision)
    wrong = np.argwhere(x != y if exact else ~np.isclose(x, y, rtol=near, atol=near * (power or 1)))
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
