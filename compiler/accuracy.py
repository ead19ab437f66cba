"""How often the float network and its integer form are right, and how often they agree."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler import arith, datasets, golden, int8
from compiler import graph as ir
from compiler.answers import MODELS, Answers, Interpreter, collect, content_digest
from compiler.checkpoint import Network
from compiler.datasets import Dataset
from compiler.errors import SignumError, UsageError
from compiler.geometry import Geometry, geometry_for
from compiler.graph import Graph
from compiler.lower import lower, quantised, rounded
from compiler.networks import Description, NetworkFile
from compiler.program import Program
from compiler.schedule import stream_bits
from compiler.stages import Say, digest, file_digest, silent

ENGINE = Geometry()
"""Of the engine that Programs are for unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of a set of test images, 0 .. 1; None for what was not measured.

    Attributes
    ----------
    images : int
        How many there were.
    float_ : float
        Right answers of the Graph with its quantisers, its pools rounded (`lower.rounded`).
    float_unquantised : float
        The same without any quantiser, or rounded pools.
    golden : float
        Right answers of the integer Program.
    golden_agrees_float : float
        Images for which Program and quantised Graph name the same class.
    saturations : int
        Values of residual streams that saturated, over all images.
    golden_images_per_second : float
        How fast the golden model was.
    """

    images: int
    float_: float | None
    float_unquantised: float | None
    golden: float | None
    golden_agrees_float: float | None
    saturations: int | None
    golden_images_per_second: float | None

    def report(self) -> dict[str, float | int | None]:
        """By the names of `report.json`."""
        return {name.rstrip("_"): value for name, value in asdict(self).items()}


def nothing_measured() -> dict[str, None]:
    """`Accuracy.report` where there are no images."""
    return {field.name.rstrip("_"): None for field in fields(Accuracy)}


def program_of(
    graph: Graph,
    activation_bits: int | None = None,
    calibration: NDArray[np.uint8] | None = None,
    engine: Geometry = ENGINE,
) -> Program:
    """The Program that an engine runs: residual streams as wide as its own.

    Parameters
    ----------
    activation_bits : int, optional
        Default: the checkpoint's own.
    calibration : (N, C, H, W) uint8, optional
        Used only where steps have to be chosen, so that a trained network has one Program whether
        or not its data is at hand.
    engine : Geometry
        A board's, for activations of whatever width.
    """
    stepped = quantised(graph, activation_bits, calibration)
    program = lower(stepped, None, calibration, engine.residual_bits)
    width = stream_bits(program, geometry_for(engine, program.activation_bits))
    if width != engine.residual_bits:
        program = lower(stepped, None, calibration, width)
    return program.with_residual_bits(width)


def needs_calibration(checkpoint: NetworkFile, activation_bits: int | None) -> bool:
    """Whether a checkpoint has no steps for a width of activations."""
    q = checkpoint.quantiser
    return q is None or activation_bits not in (None, q.activation_bits)


def measure(
    graph: Graph,
    program: Program,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    calibration: NDArray[np.uint8] | None = None,
    *,
    models: Collection[str] = MODELS,
    folder: Path | None = None,
    say: Say = silent,
) -> Accuracy:
    """Run images through the float Graph, with and without quantisers, and through the Program.

    Parameters
    ----------
    calibration : (N, C, H, W) uint8, optional
        What the Program's steps were chosen from, where the Graph has none.
    models : collection of str
        Which of `MODELS` to run.
    folder : Path, optional
        Where answers are kept as they come, for a run that goes on (`answers.collect`).
    say : Say
        Told how far a long run is.
    """
    found: dict[str, Answers] = {}
    for name in MODELS:
        if name in models:
            key, interpreter = _model(name, graph, program, calibration)
            found[name] = collect(name, key, interpreter, images, folder, say)
    classes = {name: answers.classes for name, answers in found.items()}

    def share(name: str, truth: NDArray[np.integer] | None) -> float | None:
        if name not in classes or truth is None:
            return None
        return float(np.mean(classes[name] == truth))

    return Accuracy(
        len(images),
        share("float", labels),
        share("float_unquantised", labels),
        share("golden", labels),
        share("golden", classes.get("float")),
        found["golden"].saturations if "golden" in found else None,
        found["golden"].images_per_second if "golden" in found else None,
    )


def _model(
    name: str, graph: Graph, program: Program, calibration: NDArray[np.uint8] | None
) -> tuple[str, Interpreter]:
    """One of `MODELS`: a digest of all that its answers follow from, and what computes them."""
    code = [file_digest(Path(module.__file__ or "")) for module in (arith, ir)]
    if name == "golden":
        code += [file_digest(Path(module.__file__ or "")) for module in (golden, int8)]
        return digest(program.to_json(), *code), partial(_golden, program)
    if name == "float":
        stepped = rounded(quantised(graph, program.activation_bits, calibration), program)
        return digest(content_digest(stepped.nodes), *code), partial(_float, stepped)
    # Without quantisers a network is the same whatever their widths and steps are.
    nodes = [
        replace(n, bits=0, step=None) if isinstance(n, ir.Quantiser) else n for n in graph.nodes
    ]
    return digest(content_digest(nodes), *code), partial(_float_unquantised, graph)


def _golden(program: Program, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    result = golden.run(program, images)
    return result.classes, sum(result.saturations.values())


def _float(graph: Graph, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    return np.argmax(ir.scores(graph, images), axis=1), 0


def _float_unquantised(graph: Graph, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    scores = ir.scores(graph, images, quantised=False, dtype=np.float32)
    return np.argmax(scores, axis=1), 0


# -- data ------------------------------------------------------------------------------------------

CALIBRATION_IMAGES = 128
"""Training images from which steps are chosen, where they have to be."""


def open_data(
    checkpoint: NetworkFile, name: str | None = None, folder: Path | None = None
) -> tuple[Dataset | None, str]:
    """The data set to compare on, or None and why there is none.

    Parameters
    ----------
    name : str, optional
        Default: what the checkpoint was trained on.
    folder : Path, optional
        Default: ``$SIGNUM_DATA``.

    Raises
    ------
    UsageError, DataError
        What was asked for by name or folder cannot be had, or does not suit the network.
    """
    asked = name is not None or folder is not None
    name = name or dict(checkpoint.training or {}).get("dataset")
    if not isinstance(name, str):
        return None, "the checkpoint names no data set; --dataset NAME does"
    place = os.environ.get("SIGNUM_DATA")
    try:
        data = datasets.load(name, folder or (Path(place) if place else None))
        _check_suits(data, checkpoint.network)
    except SignumError as error:
        if asked:
            raise
        return None, f"{error}{f' ({error.hint})' if error.hint else ''}"
    return data, ""


def _check_suits(data: Dataset, network: Network | Description) -> None:
    if data.image_shape != network.input:
        raise UsageError(
            f"data set {data.name!r} must have images of {network.input}, not {data.image_shape}",
            "--dataset NAME takes the one that the network was trained on",
        )
    if len(data.class_names) > network.classes:
        raise UsageError(
            f"data set {data.name!r} must have at most {network.classes} classes, "
            f"not {len(data.class_names)}"
        )


def calibration_of(data: Dataset | None) -> NDArray[np.uint8] | None:
    """The training images that steps are chosen from."""
    return None if data is None else data.train_images[:CALIBRATION_IMAGES]


def noise(shape: tuple[int, int, int], count: int) -> NDArray[np.uint8]:
    """Pictures of nothing, always the same, to compare models on where there is no data."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)
