"""The data sets that only the trainer reads, beside those of `compiler.datasets`.

Pixels are raw bytes, never scaled or centred; nothing that is read is unpickled or run. What a
publisher gives a checksum for is held to it, everything else to its exact size.

=============  =============================  =====================================================
name           images                         read from
=============  =============================  =====================================================
digits ...     see `compiler.datasets`        (also mnist and cifar10)
fashion-mnist  60,000 + 10,000 of 1x28x28     the four idx files, gzipped (checked) or not
cifar100       50,000 + 10,000 of 3x32x32     the binary version: its archive (checked), or
                                              train.bin and test.bin
svhn           604,388 + 26,032 of 3x32x32    {train,extra,test}_32x32.mat (checked)
svhn-core      73,257 + 26,032 of 3x32x32     the same without the extra images
imagenet32     1,281,167 + 50,000 of 3x32x32  train_data_batch_1 .. 10.npz, val_data.npz (checked)
=============  =============================  =====================================================

ImageNet itself is not held in memory: see `train.folders`.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compiler import datasets as shared
from compiler.datasets import Bytes, Dataset
from compiler.errors import DataError, UsageError

Labels = NDArray[np.uint8] | NDArray[np.uint16]

FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist"
CIFAR100_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
IMAGENET32_URL = "https://image-net.org/download-images (Downsampled ImageNet, 32x32, npz format)"

FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CIFAR100_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
SVHN_MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}
IMAGENET32_MD5 = {
    "train_data_batch_1.npz": "464fde20de6eb44c28cc1a8c11544bb1",
    "train_data_batch_2.npz": "bdb56e71882c3fd91619d789d5dd7c79",
    "train_data_batch_3.npz": "83ff36d76ea26867491a281ea6e1d03b",
    "train_data_batch_4.npz": "98ff184fe109d5c2a0f6da63843880c7",
    "train_data_batch_5.npz": "62b8803e13c3e6de9498da7aaaae57c8",
    "train_data_batch_6.npz": "e0b06665f890b029f1d8d0a0db26e119",
    "train_data_batch_7.npz": "9731f469aac1622477813c132c5a847a",
    "train_data_batch_8.npz": "60aed934b9d26b7ee83a1a83bdcfbe0f",
    "train_data_batch_9.npz": "b96328e6affd718660c2561a6fe8c14c",
    "train_data_batch_10.npz": "1dc618d544c554220dd118f72975470c",
    "val_data.npz": "a8c04a389f2649841fb7a01720da9dd9",
}
"""As two public loaders give them; the publisher's page has none for single files."""

SVHN_IMAGES = {"train_32x32.mat": 73_257, "test_32x32.mat": 26_032, "extra_32x32.mat": 531_131}
IMAGENET32_IMAGES = (1_281_167, 50_000)
CIFAR100_RECORD = 2 + 3 * 32 * 32
"""Bytes of a record: coarse label, fine label, then the planes R, G, B, each row by row."""

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

Digests = Mapping[str, str]


class ImageSet(Protocol):
    """What every data set in memory has: see `compiler.datasets.Dataset`."""

    @property
    def name(self) -> str:
        """As users call it."""

    @property
    def train_images(self) -> Bytes:
        """(N, C, H, W)."""

    @property
    def train_labels(self) -> Labels:
        """(N,), each below ``len(class_names)``."""

    @property
    def test_images(self) -> Bytes:
        """(N, C, H, W)."""

    @property
    def test_labels(self) -> Labels:
        """(N,)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In order of the labels."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""


@dataclass(frozen=True, slots=True)
class ManyClasses:
    """A data set of more classes than a byte can count; otherwise as `Dataset`."""

    name: str
    train_images: Bytes
    train_labels: Labels
    test_images: Bytes
    test_labels: Labels
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def load(name: str, folder: Path | None = None) -> ImageSet:
    """Read the data set ``name`` from ``folder`` (or the usual sub-folder of it).

    Raises `UsageError` for an unknown name or a folder not given, `DataError` for files that are
    missing, truncated, of another kind, or not what their publisher's checksum says.
    """
    if name in shared.NAMES:
        return shared.load(name, folder)
    if name not in READERS:
        raise UsageError(f"data set must be one of {', '.join(NAMES)}, not {name!r}")
    if folder is None:
        raise UsageError(f"data set {name!r} needs a folder", hint="--data DIR")
    return READERS[name](folder)


def read_fashion_mnist(folder: Path, digests: Digests = FASHION_MD5) -> Dataset:
    """Fashion-MNIST from ``folder``, ``folder/fashion-mnist`` or ``folder/FashionMNIST/raw``."""
    stem = "train-images-idx3-ubyte"
    home = _home(
        folder, ("", "fashion-mnist", "FashionMNIST/raw"), (stem, f"{stem}.gz"), FASHION_URL
    )
    for name, digest in digests.items():
        if (home / name).exists():
            _check_digest(home / name, digest, FASHION_URL)
    try:
        found = shared.read_mnist(home)  # the same four names and formats
    except DataError as error:
        raise DataError(str(error), hint=f"get it from {FASHION_URL}") from error
    return replace(found, name="fashion-mnist", class_names=FASHION_CLASSES)


def read_cifar100(
    folder: Path, records: tuple[int, int] = (50_000, 10_000), digest: str = CIFAR100_MD5
) -> Dataset:
    """CIFAR-100 with its 100 fine labels from the binary version, unpacked or not.

    ``records`` are the images of train.bin and test.bin; ``digest`` is the archive's MD5.
    """
    home = _home(
        folder, ("", "cifar-100-binary"), ("train.bin", Path(CIFAR100_URL).name), CIFAR100_URL
    )
    if (home / "train.bin").exists():
        members = {p.name: p.read_bytes() for p in home.iterdir() if p.suffix in (".bin", ".txt")}
    else:
        members = _unpacked(home / Path(CIFAR100_URL).name, digest)
    splits = [
        _cifar100_part(members, home / name, count)
        for name, count in zip(("train.bin", "test.bin"), records, strict=True)
    ]
    names = members.get("fine_label_names.txt", b"").decode().split()
    class_names = tuple(names) if len(names) == 100 else tuple(map(str, range(100)))
    return Dataset("cifar100", *splits[0], *splits[1], class_names)


def _cifar100_part(members: Mapping[str, bytes], path: Path, records: int) -> tuple[Bytes, Bytes]:
    if path.name not in members:
        raise DataError(f"{path} does not exist", hint=f"get it from {CIFAR100_URL}")
    data = np.frombuffer(members[path.name], dtype=np.uint8)
    if len(data) != records * CIFAR100_RECORD:
        raise DataError(
            f"{path} must have {records * CIFAR100_RECORD:,} bytes, not {len(data):,}",
            hint=f"unpack {CIFAR100_URL} again",
        )
    table = data.reshape(records, CIFAR100_RECORD)
    labels = table[:, 1].copy()
    _check_labels(labels, 0, 99, path)
    return table[:, 2:].reshape(records, 3, 32, 32).copy(), labels


def _unpacked(path: Path, digest: str) -> dict[str, bytes]:
    """The files of a tar archive, in memory: nothing it names is written anywhere."""
    _check_digest(path, digest, CIFAR100_URL)
    try:
        with tarfile.open(path) as archive:
            files = [member for member in archive.getmembers() if member.isfile()]
            opened = ((Path(member.name).name, archive.extractfile(member)) for member in files)
            return {name: file.read() for name, file in opened if file is not None}
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error, CIFAR100_URL) from error


def read_svhn(
    folder: Path,
    extra: bool = True,
    images: Mapping[str, int] = SVHN_IMAGES,
    digests: Digests = SVHN_MD5,
) -> Dataset:
    """SVHN, cropped digits, from ``folder`` or ``folder/svhn``; the digit 0 is class 0.

    ``extra`` appends the 531,131 easier images to the training set, as all tables do.
    """
    home = _home(folder, ("", "svhn", "SVHN"), ("train_32x32.mat",), SVHN_URL)

    def part(name: str) -> tuple[Bytes, Bytes]:
        return _read_mat(home / name, images[name], digests.get(name, ""))

    training = [part(f"{name}_32x32.mat") for name in ("train", "extra")[: 1 + extra]]
    test_images, test_labels = part("test_32x32.mat")
    return Dataset(
        "svhn" if extra else "svhn-core",
        np.concatenate([pictures for pictures, _ in training]),
        np.concatenate([labels for _, labels in training]),
        test_images,
        test_labels,
        tuple("0123456789"),
    )


def _read_mat(path: Path, images: int, digest: str) -> tuple[Bytes, Bytes]:
    """A MATLAB 5 file of X (32, 32, 3, N) uint8 and y (N, 1), where 10 is the digit 0."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    _check_digest(path, digest, SVHN_URL)
    try:
        found = loadmat(path, variable_names=("X", "y"))
        x, y = found["X"], found["y"].reshape(-1)
    except KeyError as error:
        raise DataError(f"{path} must hold the array {error}", f"get it from {SVHN_URL}") from error
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError, zlib.error) as error:
        raise _unreadable(path, error, SVHN_URL) from error
    if x.dtype != np.uint8 or x.shape != (32, 32, 3, images) or len(y) != images:
        raise DataError(
            f"{path} must hold X of uint8 (32, 32, 3, {images}) and {images:,} labels, "
            f"not {x.dtype} {x.shape} and {len(y):,}",
            hint=f"get it from {SVHN_URL}",
        )
    _check_labels(y, 1, 10, path)
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), (y % 10).astype(np.uint8)


def read_imagenet32(
    folder: Path,
    images: tuple[int, int] = IMAGENET32_IMAGES,
    digests: Digests = IMAGENET32_MD5,
) -> ManyClasses:
    """ImageNet at 32x32 (Chrabaszcz et al. 2017) from the npz batches in ``folder`` or below it.

    ``images`` is how many the ten training batches have together, and the test batch.
    """
    places = ("", "imagenet32", "Imagenet32_train_npz")
    home = _home(folder, places, ("train_data_batch_1.npz",), IMAGENET32_URL)
    beside = home.parent / "Imagenet32_val_npz" / "val_data.npz"
    test = home / "val_data.npz"
    training = [home / f"train_data_batch_{i}.npz" for i in range(1, 11)]
    parts = [_read_npz(path, digests.get(path.name, "")) for path in training]
    part = _read_npz(beside if beside.exists() else test, digests.get(test.name, ""))
    result = ManyClasses(
        "imagenet32",
        np.concatenate([pictures for pictures, _ in parts]),
        np.concatenate([labels for _, labels in parts]),
        *part,
        tuple(map(str, range(1, 1001))),
    )
    found = len(result.train_labels), len(result.test_labels)
    if found != images:
        raise DataError(
            f"{home} must hold {images[0]:,} and {images[1]:,} images, "
            f"not {found[0]:,} and {found[1]:,}",
            hint=f"get it from {IMAGENET32_URL}",
        )
    return result


def _read_npz(path: Path, digest: str) -> tuple[Bytes, Labels]:
    """One batch: ``data`` (N, 3072) uint8, planes R, G, B row by row, ``labels`` (N,) 1 .. 1000."""
    _check_digest(path, digest, IMAGENET32_URL)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            data, labels = archive["data"], archive["labels"].reshape(-1)
    except KeyError as error:
        raise DataError(
            f"{path} must hold the arrays data and labels", hint=f"get it from {IMAGENET32_URL}"
        ) from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error, IMAGENET32_URL) from error
    if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
        raise DataError(
            f"{path} must hold data of uint8 ({len(labels)}, 3072), not {data.dtype} {data.shape}",
            hint=f"get it from {IMAGENET32_URL}",
        )
    _check_labels(labels, 1, 1000, path)
    return data.reshape(-1, 3, 32, 32), (labels - 1).astype(np.uint16)


READERS: dict[str, Callable[[Path], ImageSet]] = {
    "fashion-mnist": read_fashion_mnist,
    "cifar100": read_cifar100,
    "svhn": read_svhn,
    "svhn-core": lambda folder: read_svhn(folder, extra=False),
    "imagenet32": read_imagenet32,
}

NAMES = (*shared.NAMES, *READERS)


# -- checks ----------------------------------------------------------------------------------------


def _home(folder: Path, places: tuple[str, ...], names: tuple[str, ...], url: str) -> Path:
    """The first of ``folder/place`` that holds a file of one of ``names``."""
    for place in places:
        if any((folder / place / name).exists() for name in names):
            return folder / place
    looked = ", ".join(str(folder / place) for place in places)
    raise DataError(f"{names[0]} was not found; looked in {looked}", hint=f"get it from {url}")


def _check_digest(path: Path, digest: str, url: str) -> None:
    """Hold a file to its published MD5 (which finds damage, not malice); "" is none."""
    if not path.exists():
        raise DataError(f"{path} does not exist", hint=f"get it from {url}")
    if not digest:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != digest:
        raise DataError(
            f"{path} must have the published MD5 {digest}, not {found}",
            hint=f"it is damaged, cut short or repacked: get it again from {url}",
        )


def _unreadable(path: Path, error: Exception, url: str) -> DataError:
    return DataError(f"{path} cannot be read: {error}", hint=f"get it from {url}")


def _check_labels(labels: NDArray[np.integer], low: int, high: int, path: Path) -> None:
    wrong = labels[(labels < low) | (labels > high)]
    if wrong.size:
        raise DataError(f"labels must be {low} .. {high}, not {int(wrong[0])}; in {path}")
