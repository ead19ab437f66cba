"""What a network answers to a long list of images, kept chunk by chunk.

A wide network takes an hour for a test set. The answers to each chunk of images are written to a
file of their own as soon as they are there, so that a run that was interrupted goes on where it
stopped, and a longer run takes over those of a shorter one. A folder of answers is named by a
digest of all that they follow from, the network and the code that interprets it, and each file
holds that of its images: no other network's answers are ever taken for these.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UsageError
from compiler.stages import Say, digest, silent, write

CHUNK = 256
"""Images a file: half a minute of a wide network, and work for many cores at once."""

MODELS = ("float_unquantised", "float", "golden")
"""What answers, by the names of `report.json`: the Graph without its quantisers (in float32, as
networks are trained and published), the Graph with them and with its pools rounded (in float64),
the integer Program."""

Images = NDArray[np.uint8]
Classes = NDArray[np.int64]

Interpreter = Callable[[Images], tuple[Classes, int]]
"""(N, C, H, W) images to the class of each, and to how many values saturated on the way."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The answers to N images.

    Attributes
    ----------
    classes : (N,) int64
    saturations : int
        Values that saturated, over all images.
    seconds : float
        What computing them took, whenever that was.
    """

    classes: Classes
    saturations: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """How fast they were computed."""
        return len(self.classes) / self.seconds if self.seconds else 0.0


def collect(
    name: str,
    key: str,
    interpreter: Interpreter,
    images: Images,
    folder: Path | None = None,
    say: Say = silent,
) -> Answers:
    """Answer every image; what ``folder`` has of the answers is taken from there.

    Parameters
    ----------
    name : str
        Of what answers, for people.
    key : str
        A digest of all that the answers follow from, but for the images.
    folder : Path, optional
        Where answers are kept; made if it is not there. Default: nowhere.
    say : Say
        Told after each chunk how far the run is.

    Raises
    ------
    UsageError
        The folder cannot be made or written to.
    """
    place = None if folder is None else _make(folder / f"{name}-{key[:16]}")
    parts: list[Answers] = []
    for first in range(0, len(images), CHUNK):
        chunk = images[first : first + CHUNK]
        path = None if place is None else place / f"{first:06}.json"
        kept = None if path is None else _kept(path, chunk)
        parts.append(kept or _answer(interpreter, chunk, path))
        if kept is None and len(images) > CHUNK:
            so_far = _joined(parts)
            rate = f"{so_far.images_per_second:.1f} images/s"
            say(f"{name}: {len(so_far.classes):,} of {len(images):,} images, {rate}")
    return _joined(parts)


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} must be a folder that can be made: {error.strerror}"
        raise UsageError(message, "--out DIR names another") from error
    return folder


def _joined(parts: list[Answers]) -> Answers:
    return Answers(
        np.concatenate([part.classes for part in parts]),
        sum(part.saturations for part in parts),
        sum(part.seconds for part in parts),
    )


def _answer(interpreter: Interpreter, images: Images, path: Path | None) -> Answers:
    """Compute the answers to one chunk, and keep them."""
    started = time.monotonic()
    classes, saturations = interpreter(images)
    found = Answers(classes, saturations, round(time.monotonic() - started, 6))
    if path is not None:
        document = {
            "images": _images_digest(images),
            "classes": classes.tolist(),
            "saturations": saturations,
            "seconds": found.seconds,
        }
        write(path, json.dumps(document) + "\n")
    return found


def _kept(path: Path, images: Images) -> Answers | None:
    """The answers in a file, if it is whole and they are to these images."""
    try:
        document = dict(json.loads(path.read_text()))
        classes = np.array(document["classes"], np.int64)
        if document["images"] != _images_digest(images) or classes.shape != (len(images),):
            return None
        return Answers(classes, int(document["saturations"]), float(document["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _images_digest(images: Images) -> str:
    return digest(images.shape, hashlib.sha256(images.tobytes()).hexdigest())


def content_digest(value: Any) -> str:
    """Digest of numbers, text, arrays, and of dataclasses and sequences of these."""
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return digest(value.dtype, value.shape, content)
    if is_dataclass(value):
        parts = [content_digest(getattr(value, field.name)) for field in fields(value)]
        return digest(type(value).__name__, *parts)
    if isinstance(value, tuple | list):
        return digest(*map(content_digest, value))
    return digest(repr(value))
