"""Augmentation: what moves, what fills, and that the generator alone decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.datasets import Dataset
from train.data import AUGMENTATION, Augmentation, augment, cut_out, pad_and_crop, splits


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 200, channels: int = 3, size: int = 32) -> torch.Tensor:
    shape = (n, channels, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator(99))


def test_crops_show_the_image_shifted_and_noise_around() -> None:
    given = images(300, size=6)
    before = given.clone()
    got = pad_and_crop(given, 2, generator())
    assert torch.equal(given, before)
    assert got.shape == given.shape and got.dtype == torch.uint8
    shifts = []
    for old, new in zip(given, got, strict=True):
        padded = torch.full((3, 10, 10), 0, dtype=torch.uint8)
        padded[:, 2:8, 2:8] = old
        inside = torch.zeros(10, 10, dtype=torch.bool)
        inside[2:8, 2:8] = True
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(
                padded[:, y : y + 6, x : x + 6][:, inside[y : y + 6, x : x + 6]],
                new[:, inside[y : y + 6, x : x + 6]],
            )
        ]
        assert len(fits) >= 1
        shifts.append(fits[0])
    assert set(shifts) == {(y, x) for y in range(5) for x in range(5)}


def test_padding_is_random_integers_0_to_255() -> None:
    got = pad_and_crop(torch.full((400, 3, 4, 4), 7, dtype=torch.uint8), 4, generator())
    noise = got[got != 7].numpy()
    counts = np.bincount(noise, minlength=256)
    assert (np.delete(counts, 7) > 0).all()
    assert noise.mean() == pytest.approx(127.5, abs=5)


def test_flip_is_left_to_right_for_about_half() -> None:
    given = images()
    got = augment(given, Augmentation(flip=True), generator())
    flipped = (got == given.flip(3)).flatten(1).all(1)
    same = (got == given).flatten(1).all(1)
    assert bool((flipped | same).all())
    assert 60 < int(flipped.sum()) < 140


def test_cutout_covers_every_pixel_equally_often() -> None:
    given = torch.zeros(6000, 1, 10, 10, dtype=torch.uint8)
    got = cut_out(given, 4, generator())
    share = (got != 0).float().mean((0, 1))  # noise is 0 once in 256
    expected = (4 / 13) ** 2 * 255 / 256  # 13 places a dimension, 4 of them cover a pixel
    assert float(share.min()) > expected * 0.8
    assert float(share.max()) < expected * 1.2
    assert int((got != 0).flatten(1).sum(1).max()) <= 16


def test_the_papers_choices() -> None:
    assert AUGMENTATION["cifar10"] == Augmentation(flip=True, pad=4)
    assert AUGMENTATION["mnist"] == Augmentation()
    given = images(5)
    assert augment(given, AUGMENTATION["mnist"], generator()) is given


def test_the_generator_alone_decides() -> None:
    everything = Augmentation(flip=True, pad=4, cutout=18)
    given = images(20)
    first = augment(given, everything, generator(1))
    torch.manual_seed(5)
    assert torch.equal(first, augment(given, everything, generator(1)))
    assert not torch.equal(first, augment(given, everything, generator(2)))


def test_an_epoch_shows_each_image_once_with_its_label(tiny: Dataset) -> None:
    training, test = splits(tiny, torch.device("cpu"))
    batches = list(training.training_batches(25, Augmentation(), generator()))
    assert [len(labels) for _, labels in batches] == [25] * 4

    def pairs(images: torch.Tensor, labels: torch.Tensor) -> set[tuple[bytes, int]]:
        return {(x.numpy().tobytes(), int(y)) for x, y in zip(images, labels, strict=True)}

    seen = set().union(*(pairs(*batch) for batch in batches))
    assert len(seen) == 100
    assert seen <= pairs(training.images, training.labels)
    assert torch.equal(torch.cat([x for x, _ in test.batches(7)]), test.images)
