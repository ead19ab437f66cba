"""Readers of data sets: exact formats, written here byte by byte, and what they refuse."""

from __future__ import annotations

import builtins
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from compiler.datasets import load, read_cifar10
from compiler.errors import DataError, UsageError

PINNED_TEST_LABELS = [9, 2, 5, 7, 6, 9, 7, 3, 3, 3, 4, 6]


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, zipped: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (7, 28, 28)),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 7),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (3, 28, 28)),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 3),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in parts.items():
        data = idx(values)
        path = folder / (name + ".gz" if zipped else name)
        path.write_bytes(gzip.compress(data) if zipped else data)
    return parts


def write_cifar(folder: Path, records: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (6, records, 3, 32, 32)).astype(np.uint8)
    labels = rng.integers(0, 10, (6, records)).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, pictures, classes in zip(names, images, labels, strict=True):
        rows = (bytes([y]) + x.tobytes() for x, y in zip(pictures, classes, strict=True))
        (folder / name).write_bytes(b"".join(rows))
    return images, labels


def test_digits() -> None:
    digits = load("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == digits.train_labels.dtype == np.uint8
    levels = np.floor(np.arange(17) * 255 / 16 + 0.5)
    assert np.array_equal(np.unique(digits.train_images), levels)
    counts = np.bincount(digits.test_labels)
    whole = counts + np.bincount(digits.train_labels)
    assert np.abs(counts - whole / 5).max() <= 1
    assert len(digits.class_names) == 10


def test_digits_split_is_fixed_and_disjoint() -> None:
    from sklearn.datasets import load_digits

    first, second = load("digits"), load("digits")
    assert np.array_equal(first.test_images, second.test_images)
    assert first.test_labels[:12].tolist() == PINNED_TEST_LABELS
    both = np.concatenate([first.train_images, first.test_images]).reshape(1797, 64)
    expected = np.floor(load_digits().data * 255 / 16 + 0.5)
    assert np.array_equal(np.unique(both, axis=0), np.unique(expected, axis=0))


def test_digits_without_sklearn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match="scikit-learn") as caught:
        load("digits")
    assert caught.value.hint == "pip install scikit-learn"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
def test_mnist(tmp_path: Path, zipped: bool, place: str) -> None:
    parts = write_mnist(tmp_path / place, zipped)
    mnist = load("mnist", tmp_path)
    assert np.array_equal(mnist.train_images[:, 0], parts["train-images-idx3-ubyte"])
    assert np.array_equal(mnist.train_labels, parts["train-labels-idx1-ubyte"])
    assert np.array_equal(mnist.test_images[:, 0], parts["t10k-images-idx3-ubyte"])
    assert np.array_equal(mnist.test_labels, parts["t10k-labels-idx1-ubyte"])
    assert mnist.image_shape == (1, 28, 28)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("keep", [2, 10, 500])
def test_mnist_truncated(tmp_path: Path, zipped: bool, keep: int) -> None:
    write_mnist(tmp_path, zipped)
    path = tmp_path / ("t10k-images-idx3-ubyte" + (".gz" if zipped else ""))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="t10k-images"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros(9)), "idx magic 0x00000803, not 0x00000801"),
        ("train-images-idx3-ubyte", b"PK\3\4" * 9, "idx magic 0x00000803, not 0x504b0304"),
        ("train-images-idx3-ubyte", idx(np.zeros((7, 28, 27))), "28x28"),
        ("train-labels-idx1-ubyte", idx(np.zeros(6)), "must hold 7 labels, not 6"),
        ("train-labels-idx1-ubyte", idx(np.full(7, 10)), "labels must be below 10, not 10"),
        ("train-labels-idx1-ubyte", idx(np.zeros(7)) + b"x", "must have 7 bytes after"),
    ],
)
def test_mnist_wrong(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    write_mnist(tmp_path, zipped=False)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        load("mnist", tmp_path)


def test_mnist_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked in .*MNIST/raw") as caught:
        load("mnist", tmp_path)
    assert "http" in caught.value.hint
    write_mnist(tmp_path, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte\.gz"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path: Path, place: str) -> None:
    images, labels = write_cifar(tmp_path / place)
    cifar = read_cifar10(tmp_path, records=4)
    assert np.array_equal(cifar.train_images, images[:5].reshape(20, 3, 32, 32))
    assert np.array_equal(cifar.train_labels, labels[:5].reshape(20))
    assert np.array_equal(cifar.test_images, images[5])
    assert np.array_equal(cifar.test_labels, labels[5])
    assert cifar.class_names[3] == "cat"


@pytest.mark.parametrize("cut", [1, 3073])
def test_cifar10_truncated(tmp_path: Path, cut: int) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"data_batch_3\.bin must have 12,292 bytes"):
        read_cifar10(tmp_path, records=4)


def test_cifar10_wrong_label_missing_file(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match="labels must be below 10, not 10"):
        read_cifar10(tmp_path, records=4)
    path.unlink()
    with pytest.raises(DataError, match=r"test_batch\.bin does not exist"):
        read_cifar10(tmp_path, records=4)


def test_unknown_name_and_folder_not_given(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of digits, mnist, cifar10, not 'svhn'"):
        load("svhn", tmp_path)
    with pytest.raises(UsageError, match="'mnist' needs a folder"):
        load("mnist")
    with pytest.raises(DataError, match="cifar-10-batches-bin"):
        load("cifar10", tmp_path)
