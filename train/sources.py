"""A data set ready to train on, wherever its images are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from compiler.errors import UsageError
from train import datasets
from train.data import Part, splits
from train.folders import CLASSES, SIDE, read_imagenet

NAMES = (*datasets.NAMES, "imagenet")


@dataclass(frozen=True, slots=True)
class Source:
    """Name, image shape (C, H, W), number of classes, and the two parts."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    training: Part
    test: Part


def open_source(name: str, folder: Path | None, device: torch.device, workers: int = 0) -> Source:
    """Read a data set onto ``device``, or open ImageNet's folders for ``workers`` processes.

    Raises as `train.datasets.load` and `train.folders.read_imagenet` do.
    """
    if name == "imagenet":
        if folder is None:
            raise UsageError("data set 'imagenet' needs a folder", hint="--data DIR")
        training, test = read_imagenet(folder, device, workers)
        return Source(name, (3, SIDE, SIDE), CLASSES, training, test)
    dataset = datasets.load(name, folder)
    return Source(name, dataset.image_shape, len(dataset.class_names), *splits(dataset, device))
