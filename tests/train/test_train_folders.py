"""ImageNet's folders: classes, what a training picture goes through, centre and 25 crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compiler.errors import DataError
from train.data import Augmentation, Share
from train.folders import CROPS, FolderSplit, read_imagenet

CPU = torch.device("cpu")
SCALE = Augmentation(flip=True, scale=(12, 20))


def small(folder: Path, workers: int = 0, side: int = 8) -> tuple[FolderSplit, FolderSplit]:
    training, test = read_imagenet(folder, CPU, workers, classes=2, images=(5, 2))
    return replace(training, side=side), replace(test, side=side)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_classes_are_folders_in_order(folder: Path) -> None:
    training, test = small(folder)
    assert training.labels == (0, 0, 0, 1, 1) and test.labels == (0, 1)
    assert [p.parent.name for p in training.paths] == ["n01"] * 3 + ["n02"] * 2
    assert len(training) == 5 and training.side == 8
    assert read_imagenet(folder, CPU, 0, 2, (5, 2))[0].side == 224


def test_an_epoch_shows_each_picture_once_with_its_label(folder: Path) -> None:
    training, _ = small(folder)
    batches = list(training.training_batches(2, SCALE, generator()))
    assert [tuple(x.shape) for x, _ in batches] == [(2, 3, 8, 8)] * 2
    assert all(x.dtype == torch.uint8 and y.dtype == torch.int64 for x, y in batches)
    whole = list(training.training_batches(5, SCALE, generator()))
    assert sorted(whole[0][1].tolist()) == [0, 0, 0, 1, 1]


def test_scale_crop_flip(folder: Path) -> None:
    training, _ = small(folder)
    slopes, flipped, starts = [], [], []
    for seed in range(60):
        (images, _), *_ = training.training_batches(5, SCALE, generator(seed))
        for image in images.float():
            across = float((image[0, :, 1:] - image[0, :, :-1]).mean())
            down = float((image[1, 1:] - image[1, :-1]).mean())
            assert down > 0 and float((image[2] - 9).abs().max()) == 0
            slopes.append(down)  # 250 over the height of the scaled picture
            flipped.append(across < 0)
            starts.append(float(image[1].min()))
    assert 250 / max(slopes) == pytest.approx(12, abs=1.5)  # the shorter side's least
    assert 250 / min(slopes) > 19  # and beyond its largest, where the height is the longer side
    assert 0.4 < np.mean(flipped) < 0.6
    assert min(starts) < 10 and max(starts) > 120  # crops lie anywhere


def test_neither_workers_nor_shares_change_an_epoch(folder: Path) -> None:
    alone = list(small(folder)[0].training_batches(4, SCALE, generator(3)))
    workers = list(small(folder, workers=2)[0].training_batches(4, SCALE, generator(3)))
    halves = [
        list(small(folder)[0].training_batches(4, SCALE, generator(3), Share(i, 2)))
        for i in range(2)
    ]
    for step, (images, labels) in enumerate(alone):
        assert torch.equal(images, workers[step][0]) and torch.equal(labels, workers[step][1])
        assert torch.equal(images, torch.cat([half[step][0] for half in halves]))
    other = next(iter(small(folder)[0].training_batches(4, SCALE, generator(4))))
    assert not torch.equal(other[0], alone[0][0])


def test_centre(folder: Path) -> None:
    _, test = small(folder)
    ((images, labels),) = test.batches()
    assert labels.tolist() == [0, 1]
    picture = Image.open(test.paths[0])  # 48x36: the shorter side becomes 256 * 8 / 224 = 9
    expected = np.asarray(picture.resize((12, 9), Image.Resampling.BILINEAR).crop((2, 0, 10, 8)))
    assert np.array_equal(images[0].numpy(), expected.transpose(2, 0, 1))


def test_25_crops_of_5_scales(folder: Path) -> None:
    _, test = small(folder)
    ((crops, labels),) = test.crops()
    assert crops.shape == (2, CROPS, 3, 8, 8) and CROPS == 25 and labels.tolist() == [0, 1]
    assert torch.equal(next(iter(test.crops()))[0], crops)
    steps = (crops[0, :, 1, 1:].float() - crops[0, :, 1, :-1].float()).mean((1, 2))
    scale = 250 / steps.reshape(5, 5).mean(1)
    sides = torch.tensor([8.0, 9, 11, 14, 17])  # 224, 256, 320, 384, 480 times 8 / 224
    torch.testing.assert_close(scale, sides, rtol=0.12, atol=0)
    assert len({tuple(c.flatten().tolist()) for c in crops[0, 20:]}) > 1
    assert [len(y) for _, y in test.batches(1, Share(1, 2))] == [1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "val" / "n02").rename(f / "val" / "n03"),
            "must have the same classes; n02",
        ),
        (lambda f: (f / "train" / "n01" / "1.JPEG").unlink(), "train must have 5 images, not 4"),
        (lambda f: (f / "val").rename(f / "validation"), "val does not exist"),
    ],
)
def test_wrong_folders(folder: Path, damage: object, message: str) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        small(folder)


def test_the_whole_set_is_expected(folder: Path) -> None:
    with pytest.raises(DataError, match="must have 1,000 classes, not 2"):
        read_imagenet(folder, CPU)


def test_a_damaged_picture_is_named(folder: Path) -> None:
    training, _ = small(folder)
    training.paths[2].write_bytes(b"junk")
    with pytest.raises(DataError, match=r"n01/2.JPEG cannot be read"):
        list(training.training_batches(5, SCALE, generator()))
