"""How often the float network and its integer form are right, and how often they agree."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler import datasets, golden
from compiler import graph as ir
from compiler.checkpoint import Checkpoint, Network
from compiler.datasets import Dataset
from compiler.errors import SignumError, UsageError
from compiler.graph import Graph
from compiler.lower import lower, quantised, rounded
from compiler.program import Program

RESIDUAL_BITS = 16
"""Width of the residual stream of every engine: where a Program's saturates."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of a set of test images, 0 .. 1.

    Attributes
    ----------
    images : int
        How many there were.
    float_ : float
        Right answers of the Graph in float64, with its quantisers.
    float_unquantised : float
        The same without any quantiser.
    golden : float
        Right answers of the integer Program.
    golden_agrees_float : float
        Images for which Program and quantised Graph name the same class.
    saturations : int
        Values of residual streams that saturated, over all images.
    """

    images: int
    float_: float
    float_unquantised: float
    golden: float
    golden_agrees_float: float
    saturations: int

    def report(self) -> dict[str, float | int]:
        """By the names of `report.json`."""
        return {name.rstrip("_"): value for name, value in asdict(self).items()}


def program_of(
    graph: Graph, activation_bits: int | None = None, calibration: NDArray[np.uint8] | None = None
) -> Program:
    """The Program that engines run: residual streams as wide as theirs.

    Parameters
    ----------
    activation_bits : int, optional
        Default: the checkpoint's own.
    calibration : (N, C, H, W) uint8, optional
        Used only where steps have to be chosen, so that a trained network has one Program whether
        or not its data is at hand.
    """
    return lower(graph, activation_bits, calibration).with_residual_bits(RESIDUAL_BITS)


def needs_calibration(checkpoint: Checkpoint, activation_bits: int | None) -> bool:
    """Whether a checkpoint has no steps for a width of activations."""
    q = checkpoint.quantiser
    return q is None or activation_bits not in (None, q.activation_bits)


def measure(
    graph: Graph,
    program: Program,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    calibration: NDArray[np.uint8] | None = None,
) -> Accuracy:
    """Run images through the float Graph, with and without quantisers, and through the Program."""
    stepped = rounded(quantised(graph, program.activation_bits, calibration), program)
    as_float = _classes(stepped, images, quantised_=True)
    without = _classes(graph, images, quantised_=False)
    result = golden.run(program, images)
    return Accuracy(
        len(images),
        float(np.mean(as_float == labels)),
        float(np.mean(without == labels)),
        float(np.mean(result.classes == labels)),
        float(np.mean(result.classes == as_float)),
        sum(result.saturations.values()),
    )


def _classes(graph: Graph, images: NDArray[np.uint8], *, quantised_: bool) -> NDArray[np.int64]:
    return np.asarray(np.argmax(ir.scores(graph, images, quantised_), axis=1))


# -- data ------------------------------------------------------------------------------------------

CALIBRATION_IMAGES = 256
"""Training images from which steps are chosen, where they have to be."""


def open_data(
    checkpoint: Checkpoint, name: str | None = None, folder: Path | None = None
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


def _check_suits(data: Dataset, network: Network) -> None:
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
