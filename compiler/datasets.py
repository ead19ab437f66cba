"""The data sets that networks are trained and compared on, as raw bytes.

One function, `load`, one record, `Dataset`. Pixels are never scaled or centred here: a network's
first layer is the batch norm of the raw 0 .. 255 values. Needs numpy alone (scikit-learn for
digits, imported when asked for).

========  ========================  ==============================================================
name      images                    read from
========  ========================  ==============================================================
digits    1,437 + 360 of 1x8x8      scikit-learn's copy of the UCI optical digits; no folder
mnist     60,000 + 10,000, 1x28x28  the four idx files, gzipped or not
cifar10   50,000 + 10,000, 3x32x32  the binary version, data_batch_1 .. 5.bin and test_batch.bin
========  ========================  ==============================================================
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError, UsageError

Bytes = NDArray[np.uint8]

NAMES = ("digits", "mnist", "cifar10")

DIGITS_SPLIT_SEED = 0
"""Shuffles the digits before the split; part of the data set's definition, never varied."""

CIFAR_RECORD = 1 + 3 * 32 * 32
"""Bytes of a record: the label, then the planes R, G, B, each row by row."""

MNIST_URL = "http://yann.lecun.com/exdb/mnist/"
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images (N, C, H, W) uint8 and labels (N,) uint8, each below ``len(class_names)``."""

    name: str
    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def load(name: str, folder: Path | None = None) -> Dataset:
    """Read the data set ``name`` from ``folder`` (or the usual sub-folder of it).

    Raises `UsageError` for an unknown name or a folder not given, `DataError` for files that are
    missing, truncated or of another kind.
    """
    if name == "digits":
        return read_digits()
    if name not in NAMES:
        raise UsageError(f"data set must be one of {', '.join(NAMES)}, not {name!r}")
    if folder is None:
        raise UsageError(f"data set {name!r} needs a folder", hint="--data DIR")
    return read_mnist(folder) if name == "mnist" else read_cifar10(folder)


def read_digits() -> Dataset:
    """UCI digits; pixels 0 .. 16 become ``round(255 * v / 16)``.

    Held out are 360 of 1,797: every fifth image of the shuffled set sorted by class, so classes
    are in proportion to within one image.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "data set 'digits' is read from scikit-learn, which is not installed",
            hint="pip install scikit-learn",
        ) from error
    bunch = load_digits()
    images = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.uint8)
    shuffled = np.random.RandomState(DIGITS_SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = np.arange(len(labels)) % 5 == 0
    train, test = np.sort(by_class[~held_out]), np.sort(by_class[held_out])
    return Dataset(
        "digits",
        np.ascontiguousarray(images[train]),
        labels[train],
        np.ascontiguousarray(images[test]),
        labels[test],
        tuple("0123456789"),
    )


def read_mnist(folder: Path) -> Dataset:
    """MNIST from ``folder``, ``folder/mnist`` or ``folder/MNIST/raw``."""
    home = _home(folder, ("", "mnist", "MNIST/raw"), "train-images-idx3-ubyte", MNIST_URL)
    splits: list[Bytes] = []
    for split in ("train", "t10k"):
        images = _read_idx(_plain_or_gzipped(home / f"{split}-images-idx3-ubyte", MNIST_URL), 3)
        path = _plain_or_gzipped(home / f"{split}-labels-idx1-ubyte", MNIST_URL)
        labels = _read_idx(path, 1)
        if images.shape[1:] != (28, 28):
            raise DataError(f"MNIST images must be 28x28, not {images.shape[1:]}; in {home}")
        if len(images) != len(labels):
            raise DataError(f"{path} must hold {len(images):,} labels, not {len(labels):,}")
        _check_labels(labels, 10, path)
        splits += [images[:, None], labels]
    train_images, train_labels, test_images, test_labels = splits
    return Dataset(
        "mnist", train_images, train_labels, test_images, test_labels, tuple("0123456789")
    )


def read_cifar10(folder: Path, records: int = 10_000) -> Dataset:
    """CIFAR-10 from ``folder`` or ``folder/cifar-10-batches-bin``; ``records`` images a file."""
    home = _home(folder, ("", "cifar-10-batches-bin"), "data_batch_1.bin", CIFAR_URL)
    batches = [_read_cifar_file(home / f"data_batch_{i}.bin", records) for i in range(1, 6)]
    test_images, test_labels = _read_cifar_file(home / "test_batch.bin", records)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    return Dataset(
        "cifar10",
        np.concatenate([images for images, _ in batches]),
        np.concatenate([labels for _, labels in batches]),
        test_images,
        test_labels,
        tuple(names.split()),
    )


def _read_cifar_file(path: Path, records: int) -> tuple[Bytes, Bytes]:
    data = np.frombuffer(_read(path, CIFAR_URL), dtype=np.uint8)
    if len(data) != records * CIFAR_RECORD:
        raise DataError(
            f"{path} must have {records * CIFAR_RECORD:,} bytes, not {len(data):,}",
            hint=f"unpack {CIFAR_URL} again",
        )
    table = data.reshape(records, CIFAR_RECORD)
    labels = table[:, 0].copy()
    _check_labels(labels, 10, path)
    return table[:, 1:].reshape(records, 3, 32, 32).copy(), labels


def _read_idx(path: Path, dimensions: int) -> Bytes:
    """An idx file of unsigned bytes (magic 0x0000080D, D dimensions as big-endian int32)."""
    data = _read(path, MNIST_URL)
    magic, header = 0x800 + dimensions, 4 + 4 * dimensions
    found = int.from_bytes(data[:4], "big")
    if len(data) < header or found != magic:
        raise DataError(f"{path} must start with the idx magic {magic:#010x}, not {found:#010x}")
    shape = tuple(np.frombuffer(data, dtype=">u4", count=dimensions, offset=4).tolist())
    if len(data) - header != math.prod(shape):
        raise DataError(
            f"{path} must have {math.prod(shape):,} bytes after its header, "
            f"not {len(data) - header:,}",
            hint=f"get it again from {MNIST_URL}",
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _read(path: Path, url: str) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", hint=f"get it from {url}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", hint=f"get it from {url}") from error


def _plain_or_gzipped(path: Path, url: str) -> Path:
    zipped = path.with_name(path.name + ".gz")
    for candidate in (path, zipped):
        if candidate.exists():
            return candidate
    raise DataError(f"neither {path} nor {zipped.name} exists", hint=f"get it from {url}")


def _home(folder: Path, places: tuple[str, ...], stem: str, url: str) -> Path:
    """The first of ``folder/place`` that holds a file whose name starts with ``stem``."""
    for place in places:
        if any((folder / place / name).exists() for name in (stem, stem + ".gz")):
            return folder / place
    looked = ", ".join(str(folder / place) for place in places)
    raise DataError(f"{stem} was not found; looked in {looked}", hint=f"get it from {url}")


def _check_labels(labels: Bytes, classes: int, path: Path) -> None:
    if len(labels) and int(labels.max()) >= classes:
        raise DataError(f"labels must be below {classes}, not {int(labels.max())}; in {path}")
