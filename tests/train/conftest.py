"""Fixtures of the trainer's tests: one thread, and a data set of 120 tiny images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from compiler.datasets import Dataset


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> Dataset:
    """Three classes of 8x8 noise, told apart by which third of the rows is bright."""
    rng = np.random.default_rng(7)
    labels = (np.arange(120) % 3).astype(np.uint8)
    images = rng.integers(0, 100, (120, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 3 * label : 3 * label + 2] += 120
    return Dataset("digits", images, labels, images[:30], labels[:30], ("a", "b", "c"))
