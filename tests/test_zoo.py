"""The checkpoints that are shipped: what their cards and the README say of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compiler import accuracy, checkpoint, datasets, graph

ZOO = Path(__file__).parents[1] / "train" / "zoo"


def measured(
    name: str, dataset: str, folder: Path | None, images: int, residual_bits: int
) -> accuracy.Accuracy:
    data = datasets.load(dataset, folder)
    network = graph.build(checkpoint.load(ZOO / f"{name}.pt"))
    engine = replace(accuracy.ENGINE, residual_bits=residual_bits)
    program = accuracy.program_of(network, engine=engine)
    return accuracy.measure(network, program, data.test_images[:images], data.test_labels[:images])


@pytest.mark.parametrize(("residual_bits", "agrees", "images"), [(16, 0.995, 1), (8, 0.99, 2)])
def test_digits(residual_bits: int, agrees: float, images: int) -> None:
    result = measured("digits-wrn8-1-a4", "digits", None, 360, residual_bits)
    assert result.golden >= 0.97
    assert result.golden_agrees_float >= agrees
    assert round(360 * abs(result.golden - result.float_)) <= images


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("residual_bits", "agrees", "apart"), [(16, 0.995, 1), (8, 0.955, 4)])
@pytest.mark.parametrize(
    ("name", "dataset", "images", "least"),
    [("mnist-wrn8-1-a4", "mnist", 10_000, 0.99), ("cifar10-wrn20-1-a4", "cifar10", 1000, 0.86)],
)
def test_image_sets(
    *,
    name: str,
    dataset: str,
    images: int,
    least: float,
    residual_bits: int,
    agrees: float,
    apart: int,
    data_folder: Path,
) -> None:
    """At 8 bits, those of the boards' engines, rounding turns some answers, either way."""
    result = measured(name, dataset, data_folder, images, residual_bits)
    assert result.golden >= least
    assert result.golden_agrees_float >= agrees
    assert round(images * abs(result.golden - result.float_)) <= apart * max(2, images // 1000)
