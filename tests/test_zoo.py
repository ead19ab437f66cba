"""The checkpoints that are shipped: what their cards and the README say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler import accuracy, checkpoint, datasets, graph
from compiler.lower import lower

ZOO = Path(__file__).parents[1] / "train" / "zoo"


def measured(name: str, dataset: str, folder: Path | None, images: int) -> accuracy.Accuracy:
    data = datasets.load(dataset, folder)
    network = graph.build(checkpoint.load(ZOO / f"{name}.pt"))
    program = lower(network, None, data.train_images[:256]).with_residual_bits(16)
    return accuracy.measure(network, program, data.test_images[:images], data.test_labels[:images])


def test_digits() -> None:
    result = measured("digits-wrn8-1-a4", "digits", None, 360)
    assert result.golden >= 0.97
    assert result.golden_agrees_float >= 0.995
    assert abs(result.golden - result.float_) <= 1 / 360


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset", "images", "least"),
    [("mnist-wrn8-1-a4", "mnist", 10_000, 0.99), ("cifar10-wrn20-1-a4", "cifar10", 1000, 0.86)],
)
def test_image_sets(name: str, dataset: str, images: int, least: float, data_folder: Path) -> None:
    result = measured(name, dataset, data_folder, images)
    assert result.golden >= least
    assert result.golden_agrees_float >= 0.995
    assert round(images * abs(result.golden - result.float_)) <= max(2, images // 1000)
