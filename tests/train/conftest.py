"""Fixtures of the trainer's tests: one thread, and a data set of 120 tiny images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from compiler.datasets import Dataset
from tests.train import small


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> Dataset:
    """Three classes of 8x8 noise, told apart by which third of the rows is bright."""
    return small.dataset()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; 3 + 2 training pictures, 1 + 1 for validation, lossless, of several shapes."""
    shapes = iter([(40, 30), (30, 40), (32, 32), (64, 24), (25, 25), (48, 36), (36, 48)])
    for part, counts in (("train", (3, 2)), ("val", (1, 1))):
        for name, count in zip(("n01", "n02"), counts, strict=True):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(small.ramp(*next(shapes))).save(place / f"{i}.JPEG", format="PNG")
    return tmp_path
