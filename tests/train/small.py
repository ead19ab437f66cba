"""What the trainer's tests train: 120 tiny images, and a job of seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from compiler.datasets import Dataset
from train.data import Augmentation
from train.network import Architecture
from train.recipe import Job, Recipe


def dataset() -> Dataset:
    """Three classes of 8x8 noise, told apart by which third of the rows is bright."""
    rng = np.random.default_rng(7)
    labels = (np.arange(120) % 3).astype(np.uint8)
    images = rng.integers(0, 100, (120, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 3 * label : 3 * label + 2] += 120
    return Dataset("digits", images, labels, images[:30], labels[:30], ("a", "b", "c"))


def job(**changes: Any) -> Job:
    """Four epochs of WRN 8-0.25; changes are the recipe's, the architecture's or the job's."""
    architecture = Architecture(8, 0.25, 3, (1, 8, 8), activation_bits=4)
    augmentation = Augmentation(flip=True, pad=1, cutout=2)
    recipe = Recipe(epochs=4, batch=25, quantise_from=1, seed=3, augmentation=augmentation)
    whole = Job("digits", architecture, recipe)

    def of(level: Any) -> dict[str, Any]:
        return {name: value for name, value in changes.items() if hasattr(level, name)}

    parts = {
        "architecture": replace(architecture, **of(architecture)),
        "recipe": replace(recipe, **of(recipe)),
    }
    return replace(whole, **parts | of(whole))


def ramp(width: int, height: int) -> np.ndarray:
    """Red tells the column, green the row, as shares of 250; blue is 9."""
    image = np.full((height, width, 3), 9, np.uint8)
    image[..., 0] = np.linspace(0, 250, width)[None, :]
    image[..., 1] = np.linspace(0, 250, height)[:, None]
    return image
