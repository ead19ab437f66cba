"""Augmentation and batches, on uint8 images (N, C, H, W), all images of a batch at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.datasets import Dataset


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to training images, in this order."""

    flip: bool = False  # left to right, every second image by chance
    pad: int = 0  # pixels of random integers on each side, then a crop to the old size
    cutout: int = 0  # side in pixels of a square of random integers, 0: none


AUGMENTATION = {
    "digits": Augmentation(pad=1),
    "mnist": Augmentation(),
    "cifar10": Augmentation(flip=True, pad=4),
}
"""The paper's choice for each data set; digits, which it does not treat, move by one pixel."""


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """A new batch of the same shape and dtype; ``images`` stays as it was."""
    if augmentation.flip:
        chosen = _random(2, (len(images), 1, 1, 1), generator).bool()
        images = torch.where(chosen, images.flip(3), images)
    if augmentation.pad:
        images = pad_and_crop(images, augmentation.pad, generator)
    if augmentation.cutout:
        images = cut_out(images, augmentation.cutout, generator)
    return images


def pad_and_crop(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Surround by ``pad`` pixels of random integers 0 .. 255, crop anywhere to the old size."""
    n, channels, height, width = images.shape
    canvas = _noise((n, channels, height + 2 * pad, width + 2 * pad), generator)
    canvas[:, :, pad : pad + height, pad : pad + width] = images
    device = images.device
    rows = _random(2 * pad + 1, (n, 1), generator) + torch.arange(height, device=device)
    columns = _random(2 * pad + 1, (n, 1), generator) + torch.arange(width, device=device)
    image = torch.arange(n, device=device)[:, None, None]
    return canvas[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Fill a square with random integers; it may overhang, so every pixel is as likely as any."""
    n, _, height, width = images.shape
    device = images.device
    top = _random(height + side - 1, (n, 1), generator) - (side - 1)
    left = _random(width + side - 1, (n, 1), generator) - (side - 1)
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = (y >= top) & (y < top + side)
    columns = (x >= left) & (x < left + side)
    hole = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(hole, _noise(tuple(images.shape), generator), images)


@dataclass(frozen=True, slots=True)
class Split:
    """Images uint8 (N, C, H, W) and labels int64 (N,), as tensors on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(
        self, size: int, augmentation: Augmentation, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order; what does not fill a batch waits for another epoch."""
        size = min(size, len(self))
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        for first in range(0, len(self) - size + 1, size):
            chosen = order[first : first + size]
            yield augment(self.images[chosen], augmentation, generator), self.labels[chosen]

    def batches(self, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, as it is."""
        yield from zip(torch.split(self.images, size), torch.split(self.labels, size), strict=True)


def splits(dataset: Dataset, device: torch.device) -> tuple[Split, Split]:
    """The training and the test part of a data set."""
    return (
        _split(dataset.train_images, dataset.train_labels, device),
        _split(dataset.test_images, dataset.test_labels, device),
    )


def _split(images: object, labels: object, device: torch.device) -> Split:
    return Split(
        torch.tensor(images, dtype=torch.uint8, device=device),
        torch.tensor(labels, dtype=torch.int64, device=device),
    )


def _random(below: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(below, shape, generator=generator, device=generator.device)


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(
        256, shape, dtype=torch.uint8, generator=generator, device=generator.device
    )
