"""Augmentation and batches, on uint8 images (N, C, H, W), all images of a batch at once.

Small data sets live as bytes where the network does, and are augmented there (`Split`); ImageNet
is decoded from its files by worker processes (`train.folders`). The loop knows both as `Part`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compiler.errors import UsageError
from train.datasets import ImageSet


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to training images, in this order."""

    flip: bool = False  # left to right, every second image by chance
    pad: int = 0  # pixels of random integers on each side, then a crop to the old size
    cutout: int = 0  # side in pixels of a square of random integers, 0: none
    scale: tuple[int, int] | None = None  # shorter side in pixels, drawn evenly, before the crop


AUGMENTATION = {
    "digits": Augmentation(pad=1),
    "mnist": Augmentation(),
    "fashion-mnist": Augmentation(),
    "cifar10": Augmentation(flip=True, pad=4),
    "cifar100": Augmentation(flip=True, pad=4),
    "svhn": Augmentation(pad=4),
    "svhn-core": Augmentation(pad=4),
    "imagenet32": Augmentation(flip=True, pad=4),
    "imagenet": Augmentation(flip=True, scale=(256, 480)),
}
"""The paper's choice for each data set. It does not treat digits, which move by one pixel, nor
Fashion-MNIST, which goes as MNIST does."""

CUTOUT = 18
"""Side of the paper's square on CIFAR, in pixels."""


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
class Share:
    """The part of every batch that one of several processes computes."""

    index: int = 0
    count: int = 1

    def of(self, size: int) -> slice:
        """The share of ``size`` images; `UsageError` where they cannot be shared out evenly."""
        if size % self.count:
            raise UsageError(
                f"a batch must divide evenly among {self.count} processes, not {size} images",
                hint=f"--batch {max(1, round(size / self.count)) * self.count}",
            )
        part = size // self.count
        return slice(self.index * part, (self.index + 1) * part)


WHOLE = Share()


class Part(Protocol):
    """The training or the test part of a data set, as the loop sees it.

    Images are uint8 (N, C, H, W), labels int64 (N,), on ``device``. The same generator state gives
    the same batches, whoever asks for which share of them.
    """

    @property
    def device(self) -> torch.device:
        """Where batches lie."""

    def __len__(self) -> int: ...

    def training_batches(
        self,
        size: int,
        augmentation: Augmentation,
        generator: torch.Generator,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order; what does not fill a batch waits for another epoch."""

    def batches(self, size: int = 500, share: Share = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image of the share once, as it is tested."""


@dataclass(frozen=True, slots=True)
class Split:
    """A `Part` in memory: images uint8 (N, C, H, W) and labels int64 (N,) on one device."""

    images: Tensor
    labels: Tensor

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(
        self,
        size: int,
        augmentation: Augmentation,
        generator: torch.Generator,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order; what does not fill a batch waits for another epoch.

        Every process augments the whole batch and keeps its share: that costs little beside a
        training step, and needs no second rule for who draws which random number.
        """
        size = min(size, len(self))
        mine = share.of(size)
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        for first in range(0, len(self) - size + 1, size):
            chosen = order[first : first + size]
            images = augment(self.images[chosen], augmentation, generator)
            yield images[mine], self.labels[chosen[mine]]

    def batches(self, size: int = 500, share: Share = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image of the share once, in order, as it is."""
        images, labels = (part[share.index :: share.count] for part in (self.images, self.labels))
        yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)


def splits(dataset: ImageSet, device: torch.device) -> tuple[Split, Split]:
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
