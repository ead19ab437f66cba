"""ImageNet from its folders of JPEG files, decoded by worker processes.

``DIR/train/<class>/*.JPEG`` and ``DIR/val/<class>/*.JPEG``, classes in the order of their names
(the validation images sorted into folders, as every tool expects them). Needs Pillow.

Training: the shorter side scaled to a random number of pixels, a random square, flipped by chance
(K. He et al., "Deep residual learning", 2016). Test: the centre of a picture whose shorter side is
256, or 25 squares: 5 scales times 5 random places.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compiler.errors import DataError
from train.data import WHOLE, Augmentation, Share

if TYPE_CHECKING:
    from PIL.Image import Image

URL = "https://image-net.org/challenges/LSVRC/2012/"
CLASSES = 1000
IMAGES = (1_281_167, 50_000)
SUFFIXES = (".jpeg", ".jpg", ".png")

SIDE = 224
"""Pixels of a square that the network sees."""

TEST_SHORTER_SIDE = 256
CROP_SCALES = (224, 256, 320, 384, 480)
CROPS_A_SCALE = 5
CROPS = len(CROP_SCALES) * CROPS_A_SCALE


@dataclass(frozen=True, slots=True)
class FolderSplit:
    """A `train.data.Part` whose images stay in their files.

    Attributes
    ----------
    paths : tuple of Path
    labels : tuple of int
    device : torch.device
        Where batches are brought.
    workers : int
        Processes that decode; 0: this one does.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    device: torch.device
    workers: int = 0
    side: int = SIDE

    def __len__(self) -> int:
        return len(self.paths)

    def training_batches(
        self,
        size: int,
        augmentation: Augmentation,
        generator: torch.Generator,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, each picture's chances from its own seed.

        So neither the number of workers nor of processes changes what an epoch shows.
        """
        size = min(size, len(self))
        mine = share.of(size)
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        seed = torch.randint(1 << 62, (), generator=generator, device=generator.device)
        chosen = [
            order[first : first + size][mine].tolist()
            for first in range(0, len(self) - size + 1, size)
        ]
        yield from self._load(chosen, _Training(augmentation, int(seed), self.side))

    def batches(self, size: int = 500, share: Share = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image of the share once: the centre square at one scale."""
        yield from self._load(self._in_order(size, share), _Centre(self.side))

    def crops(self, size: int = 20, share: Share = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image of the share once as `CROPS` squares: (N, CROPS, 3, H, W), (N,)."""
        yield from self._load(self._in_order(size, share), _ManyCrops(self.side))

    def _in_order(self, size: int, share: Share) -> list[list[int]]:
        indices = list(range(share.index, len(self), share.count))
        return [indices[first : first + size] for first in range(0, len(indices), size)]

    def _load(
        self, batches: list[list[int]], view: Callable[[Image, int], np.ndarray[Any, Any]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            _Pictures(self.paths, self.labels, view),
            batch_sampler=batches,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for images, labels in loader:
            yield (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )


def read_imagenet(
    folder: Path,
    device: torch.device,
    workers: int = 0,
    classes: int = CLASSES,
    images: tuple[int, int] = IMAGES,
) -> tuple[FolderSplit, FolderSplit]:
    """The training and the validation part of ImageNet (ILSVRC 2012) in ``folder``.

    Raises `DataError` where folders are missing, have other classes than each other, or not
    ``classes`` and ``images`` of them.
    """
    _pillow()
    parts = [_list(folder / name) for name in ("train", "val")]
    names = [[path.name for path in found] for found in parts]
    if names[0] != names[1]:
        odd = sorted(set(names[0]) ^ set(names[1]))[0]
        raise DataError(f"{folder}/train and val must have the same classes; {odd} is in one only")
    if len(names[0]) != classes:
        raise DataError(f"{folder}/train must have {classes:,} classes, not {len(names[0]):,}")
    result = []
    for found, name, count in zip(parts, ("train", "val"), images, strict=True):
        paths = tuple(path for files in found.values() for path in files)
        labels = tuple(label for label, files in enumerate(found.values()) for _ in files)
        if len(paths) != count:
            raise DataError(
                f"{folder / name} must have {count:,} images, not {len(paths):,}",
                hint=f"get it from {URL}",
            )
        result.append(FolderSplit(paths, labels, device, workers))
    return result[0], result[1]


def _list(folder: Path) -> dict[Path, list[Path]]:
    """Class folder to its pictures, both in order of their names."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; it must hold one folder of JPEG files a class",
            hint=f"get it from {URL}",
        )
    return {
        place: sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
        for place in sorted(folder.iterdir())
        if place.is_dir()
    }


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "data set 'imagenet' is decoded by Pillow, which is not installed",
            hint="pip install pillow",
        ) from error
    return Image


@dataclass(frozen=True, slots=True)
class _Pictures(Dataset[tuple[Tensor, int]]):
    """What a worker process reads: index to (view of the picture, label)."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    view: Callable[[Image, int], np.ndarray[Any, Any]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            with _pillow().open(self.paths[index]) as file:
                picture = file.convert("RGB")
        except OSError as error:
            raise DataError(f"{self.paths[index]} cannot be read: {error}") from error
        return torch.from_numpy(self.view(picture, index)), self.labels[index]


@dataclass(frozen=True, slots=True)
class _Training:
    """Scale, crop, flip."""

    augmentation: Augmentation
    seed: int
    side: int

    def __call__(self, picture: Image, index: int) -> np.ndarray[Any, Any]:
        chance = random.Random(f"{self.seed}:{index}")
        low, high = self.augmentation.scale or (self.side, self.side)
        picture = _scaled(picture, chance.randint(low, high))
        pixels = _square(picture, self.side, chance)
        flip = self.augmentation.flip and chance.random() < 0.5
        return np.ascontiguousarray(pixels[:, :, ::-1] if flip else pixels)


@dataclass(frozen=True, slots=True)
class _Centre:
    side: int

    def __call__(self, picture: Image, _: int) -> np.ndarray[Any, Any]:
        picture = _scaled(picture, round(TEST_SHORTER_SIDE * self.side / SIDE))
        left, top = (picture.width - self.side) // 2, (picture.height - self.side) // 2
        return _pixels(picture.crop((left, top, left + self.side, top + self.side)))


@dataclass(frozen=True, slots=True)
class _ManyCrops:
    side: int

    def __call__(self, picture: Image, index: int) -> np.ndarray[Any, Any]:
        chance = random.Random(index)
        scaled = [_scaled(picture, round(s * self.side / SIDE)) for s in CROP_SCALES]
        return np.stack(
            [_square(p, self.side, chance) for p in scaled for _ in range(CROPS_A_SCALE)]
        )


def _scaled(picture: Image, shorter: int) -> Image:
    """The whole picture, its shorter side ``shorter`` pixels."""
    factor = shorter / min(picture.size)
    width, height = (max(shorter, round(n * factor)) for n in picture.size)
    return picture.resize((width, height), _pillow().Resampling.BILINEAR)


def _square(picture: Image, side: int, chance: random.Random) -> np.ndarray[Any, Any]:
    """A square anywhere in the picture, (3, side, side)."""
    left = chance.randint(0, picture.width - side)
    top = chance.randint(0, picture.height - side)
    return _pixels(picture.crop((left, top, left + side, top + side)))


def _pixels(picture: Image) -> np.ndarray[Any, Any]:
    """uint8 (3, H, W), a copy."""
    return np.array(picture, dtype=np.uint8).transpose(2, 0, 1).copy()
