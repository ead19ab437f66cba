"""The trainer's own data sets, on small files of the exact formats, written here."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from compiler.errors import DataError, UsageError
from tests.train.test_train_datasets import idx
from train.data import AUGMENTATION, splits
from train.datasets import (
    CIFAR100_MD5,
    FASHION_MD5,
    IMAGENET32_MD5,
    NAMES,
    SVHN_IMAGES,
    SVHN_MD5,
    load,
    read_cifar100,
    read_fashion_mnist,
    read_imagenet32,
    read_svhn,
)

RNG = np.random.default_rng(5)


def pictures(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *shape)).astype(np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# -- CIFAR-100 -------------------------------------------------------------------------------------


def cifar100_files(n: int, m: int) -> tuple[dict[str, bytes], list[np.ndarray]]:
    """train.bin of n images and test.bin of m: coarse label, fine label, planes."""
    files, arrays = {}, []
    for name, count in (("train.bin", n), ("test.bin", m)):
        images, fine = pictures(count, 3, 32, 32), RNG.integers(0, 100, count).astype(np.uint8)
        rows = (bytes([y // 5, y]) + x.tobytes() for x, y in zip(images, fine, strict=True))
        files[name] = b"".join(rows)
        arrays += [images, fine]
    files["fine_label_names.txt"] = "\n".join(f"thing_{i}" for i in range(100)).encode()
    return files, arrays


@pytest.mark.parametrize("place", ["", "cifar-100-binary"])
def test_cifar100_unpacked(tmp_path: Path, place: str) -> None:
    files, arrays = cifar100_files(5, 3)
    (tmp_path / place).mkdir(exist_ok=True)
    for name, data in files.items():
        (tmp_path / place / name).write_bytes(data)
    found = read_cifar100(tmp_path, (5, 3))
    got = found.train_images, found.train_labels, found.test_images, found.test_labels
    assert all(np.array_equal(a, b) for a, b in zip(got, arrays, strict=True))
    assert found.name == "cifar100" and found.class_names[42] == "thing_42"
    assert found.image_shape == (3, 32, 32)


def test_cifar100_from_its_archive(tmp_path: Path) -> None:
    files, arrays = cifar100_files(5, 3)
    path = tmp_path / "cifar-100-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    found = read_cifar100(tmp_path, (5, 3), md5(path))
    assert np.array_equal(found.train_images, arrays[0])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing was unpacked
    with pytest.raises(DataError, match=f"must have the published MD5 {CIFAR100_MD5}") as caught:
        read_cifar100(tmp_path, (5, 3))
    assert "https://www.cs.toronto.edu" in caught.value.hint
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        read_cifar100(tmp_path, (5, 3), md5(path))


def test_cifar100_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.bin was not found; looked in") as caught:
        load("cifar100", tmp_path)
    assert "https://www.cs.toronto.edu" in caught.value.hint
    files, _ = cifar100_files(5, 3)
    (tmp_path / "train.bin").write_bytes(files["train.bin"])
    with pytest.raises(DataError, match=r"test.bin does not exist"):
        read_cifar100(tmp_path, (5, 3))
    (tmp_path / "test.bin").write_bytes(files["test.bin"][:-1])
    with pytest.raises(DataError, match=r"test.bin must have 9,222 bytes, not 9,221"):
        read_cifar100(tmp_path, (5, 3))
    (tmp_path / "test.bin").write_bytes(b"\0\x64" + files["test.bin"][2:])
    with pytest.raises(DataError, match=r"labels must be 0 \.\. 99, not 100"):
        read_cifar100(tmp_path, (5, 3))
    with pytest.raises(DataError, match=r"train.bin must have 153,700,000 bytes"):
        load("cifar100", tmp_path)


# -- Fashion-MNIST ---------------------------------------------------------------------------------


def write_fashion(folder: Path) -> dict[str, str]:
    """The four gzipped files; returns their digests."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "train-images-idx3-ubyte.gz": pictures(6, 28, 28),
        "train-labels-idx1-ubyte.gz": np.arange(6),
        "t10k-images-idx3-ubyte.gz": pictures(4, 28, 28),
        "t10k-labels-idx1-ubyte.gz": np.arange(6, 10),
    }
    for name, values in parts.items():
        (folder / name).write_bytes(gzip.compress(idx(values)))
    return {name: md5(folder / name) for name in parts}


@pytest.mark.parametrize("place", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path: Path, place: str) -> None:
    digests = write_fashion(tmp_path / place)
    found = read_fashion_mnist(tmp_path, digests)
    assert found.name == "fashion-mnist" and found.class_names[9] == "Ankle boot"
    assert found.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    raw = gzip.decompress((tmp_path / place / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert found.test_images.tobytes() == raw[16:]
    with pytest.raises(DataError, match="must have the published MD5 8d4fb7e6c68d591d"):
        load("fashion-mnist", tmp_path)


def test_fashion_mnist_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was not found; looked in") as caught:
        load("fashion-mnist", tmp_path)
    assert "github.com/zalandoresearch" in caught.value.hint
    digests = write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte") as caught:
        read_fashion_mnist(tmp_path, digests)
    assert "github.com/zalandoresearch" in caught.value.hint


# -- SVHN ------------------------------------------------------------------------------------------

FEW = {"train_32x32.mat": 4, "extra_32x32.mat": 3, "test_32x32.mat": 2}


@pytest.mark.parametrize("extra", [True, False])
def test_svhn(tmp_path: Path, extra: bool) -> None:
    (tmp_path / "svhn").mkdir()
    parts = {name: (pictures(n, 3, 32, 32), np.arange(n) % 3 + 8) for name, n in FEW.items()}
    for name, (images, labels) in parts.items():
        x = images.transpose(2, 3, 1, 0)
        y = labels.astype(np.uint8)[:, None]
        savemat(tmp_path / "svhn" / name, {"X": x, "y": y}, do_compression=True)
    digests = {name: md5(tmp_path / "svhn" / name) for name in FEW}
    found = read_svhn(tmp_path, extra, FEW, digests)
    names = ["train_32x32.mat", "extra_32x32.mat"][: 1 + extra]
    assert np.array_equal(found.train_images, np.concatenate([parts[n][0] for n in names]))
    assert found.train_labels.tolist() == [8, 9, 0, 8, 8, 9, 0][: 4 + 3 * extra]  # 10 is digit 0
    assert np.array_equal(found.test_images, parts["test_32x32.mat"][0])
    assert found.test_labels.tolist() == [8, 9]
    assert found.name == ("svhn" if extra else "svhn-core")
    with pytest.raises(DataError, match="published MD5 e26dedcc434d2e4c54c9b2d4a06d8373"):
        load("svhn", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 4), np.uint8)}, "must hold the array 'y'"),
        ({"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1))}, "X of uint8"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((5, 1))}, "and 4 labels"),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.zeros((4, 1))}, "1 .. 10, not 0"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_svhn_wrong(tmp_path: Path, content: dict[str, np.ndarray] | bytes, message: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / "train_32x32.mat").write_bytes(content)
    else:
        savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(DataError, match=message):
        read_svhn(tmp_path, False, FEW, {})


def test_svhn_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_32x32.mat was not found") as caught:
        load("svhn", tmp_path)
    assert "ufldl.stanford.edu" in caught.value.hint


# -- ImageNet32 ------------------------------------------------------------------------------------


def write_imagenet32(folder: Path, each: int = 2, test: int = 3) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, n in [*((f"train_data_batch_{i}", each) for i in range(1, 11)), ("val_data", test)]:
        labels = RNG.integers(1, 1001, n)
        labels[:1] = 1000
        np.savez(folder / f"{name}.npz", data=pictures(n, 3072), labels=labels, mean=np.zeros(3072))
    return {name: md5(folder / name) for name in IMAGENET32_MD5}


@pytest.mark.parametrize("place", ["", "imagenet32"])
def test_imagenet32(tmp_path: Path, place: str) -> None:
    digests = write_imagenet32(tmp_path / place)
    found = read_imagenet32(tmp_path, (20, 3), digests)
    assert found.train_images.shape == (20, 3, 32, 32) and found.image_shape == (3, 32, 32)
    with np.load(tmp_path / place / "train_data_batch_10.npz") as last:
        assert np.array_equal(found.train_images[18:].reshape(2, -1), last["data"])
        assert np.array_equal(found.train_labels[18:], last["labels"] - 1)
    assert found.test_labels[0] == 999 and len(found.class_names) == 1000
    _, test = splits(found, torch.device("cpu"))
    assert test.labels.dtype == torch.int64 and int(test.labels[0]) == 999
    with pytest.raises(DataError, match=r"must hold 1,281,167 and 50,000 images, not 20 and 3"):
        read_imagenet32(tmp_path, digests=digests)
    with pytest.raises(DataError, match="must have the published MD5 464fde20de6eb44c28cc1a8c1154"):
        load("imagenet32", tmp_path)


def test_imagenet32_validation_beside(tmp_path: Path) -> None:
    digests = write_imagenet32(tmp_path / "Imagenet32_train_npz")
    (tmp_path / "Imagenet32_val_npz").mkdir()
    (tmp_path / "Imagenet32_train_npz/val_data.npz").rename(
        tmp_path / "Imagenet32_val_npz/val_data.npz"
    )
    assert len(read_imagenet32(tmp_path, (20, 3), digests).test_labels) == 3


class Bomb:
    """A pickle that says so when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_imagenet32_is_never_unpickled(tmp_path: Path) -> None:
    write_imagenet32(tmp_path)
    path = tmp_path / "train_data_batch_1.npz"
    np.savez(path, data=np.array([Bomb()], dtype=object), labels=np.ones(1, int))
    with pytest.raises(DataError, match="cannot be read: Object arrays cannot be loaded"):
        read_imagenet32(tmp_path, (20, 3), {})
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="cannot be read"):
        read_imagenet32(tmp_path, (20, 3), {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8)}, "must hold the arrays data and labels"),
        ({"data": np.zeros((2, 3072)), "labels": np.ones(2, int)}, r"data of uint8 \(2, 3072\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": np.ones(3, int)}, r"uint8 \(3, 3072\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": np.zeros(2, int)}, "1 .. 1000, not 0"),
    ],
)
def test_imagenet32_wrong(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    write_imagenet32(tmp_path)
    np.savez(tmp_path / "train_data_batch_4.npz", **content)
    with pytest.raises(DataError, match=message):
        read_imagenet32(tmp_path, (20, 3), {})


def test_imagenet32_truncated_or_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_data_batch_1.npz was not found") as caught:
        load("imagenet32", tmp_path)
    assert "image-net.org" in caught.value.hint
    write_imagenet32(tmp_path)
    path = tmp_path / "val_data.npz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"val_data.npz cannot be read"):
        read_imagenet32(tmp_path, (20, 3), {})
    path.unlink()
    with pytest.raises(DataError, match=r"val_data.npz does not exist"):
        read_imagenet32(tmp_path, (20, 3), {})


# -- all of them -----------------------------------------------------------------------------------


def test_every_set_has_a_reader_and_the_papers_augmentation() -> None:
    assert set(AUGMENTATION) == {*NAMES, "imagenet"}
    assert AUGMENTATION["svhn"].pad == 4 and not AUGMENTATION["svhn"].flip
    assert AUGMENTATION["cifar100"] == AUGMENTATION["imagenet32"] == AUGMENTATION["cifar10"]
    assert AUGMENTATION["imagenet"].scale == (256, 480) and AUGMENTATION["imagenet"].flip


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar100", "svhn", "svhn-core", "imagenet32"])
def test_a_folder_is_needed(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' needs a folder"):
        load(name)


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="one of digits, mnist, cifar10, fashion-mnist, cifar100"):
        load("stl10")


def test_published_checksums_are_whole() -> None:
    digests = [*FASHION_MD5.values(), *SVHN_MD5.values(), *IMAGENET32_MD5.values(), CIFAR100_MD5]
    assert len(set(digests)) == 4 + 3 + 11 + 1
    assert all(len(d) == 32 and set(d) <= set("0123456789abcdef") for d in digests)
    assert sum(SVHN_IMAGES.values()) == 73_257 + 26_032 + 531_131
