"""A build as named steps: each keeps its products under the digest of all that it depends on.

A step that has run leaves a stamp in ``.stamps``: the digest of its inputs, options and tools, the
digests of its products, its result, and how long it took. While those hold it is not run again,
and its stamp answers for it. Products appear whole (`write`), the stamp last: what an interrupted
step left behind is never taken for its answer.

What several builds have in common is run once for all of them: products of a step that is shared
are also kept under the digest of its inputs, where the next build with those inputs finds them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import UsageError

STAMPS = ".stamps"

SHARED_KEPT = 16
"""Shared results that are kept; those not used for the longest time go first."""

Result = dict[str, Any]
"""What a step says beside its files, in JSON's types."""

Say = Callable[[str], None]
"""Receives a line for people."""


def silent(line: str) -> None:
    """A `Say` that says nothing."""


def digest(*parts: object) -> str:
    """A name for the whole of some inputs; no two different lists have the same."""
    text = json.dumps([str(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_digest(*packages: str) -> str:
    """Digest of the project's own code in ``packages``: the version of the tool that it is."""
    root = Path(__file__).parents[1]
    files = sorted(
        path
        for package in packages
        for pattern in ("*.py", "*.v")
        for path in (root / package).rglob(pattern)
    )
    return digest(*[(path.relative_to(root).as_posix(), file_digest(path)) for path in files])


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: a temporary file beside it, then one rename.

    Raises
    ------
    UsageError
        If the folder cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(
            f"{path.parent} must be a folder that can be written to: {error.strerror}",
            "--out DIR names another",
        ) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_folder(path: Path) -> Path:
    """Make a folder that a build can write into.

    Raises
    ------
    UsageError
        It cannot be made, or not be written to.
    """
    try:
        (path / STAMPS).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(
            f"{path} must be a folder that can be written to: {error.strerror}",
            "--out DIR names another",
        ) from error
    return path


@dataclass(slots=True)
class Stages:
    """The steps of one build in one folder.

    Attributes
    ----------
    folder : Path
        From `make_folder`.
    names : tuple of str
        Every step, in order.
    start : str or None
        The steps before this one are not run: their files are taken as they stand. It and those
        after it run even if nothing has changed.
    say : Say
        Told which step runs.
    shared : Path or None
        Folder of the results that builds share; None shares nothing.
    seconds : dict
        What each step took when it last ran.
    ran : list of str
        The steps that did run in this process.
    """

    folder: Path
    names: tuple[str, ...]
    start: str | None = None
    say: Say = silent
    shared: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.start is not None and self.start not in self.names:
            raise UsageError(
                f"stage must be one of {', '.join(self.names)}, not {self.start!r}",
                "--from STAGE restarts there",
            )

    def skipped(self, name: str) -> bool:
        """Whether a step stands before the one to start from."""
        return self.start is not None and self.names.index(name) < self.names.index(self.start)

    def run(
        self,
        name: str,
        inputs: Sequence[object],
        products: Sequence[str],
        work: Callable[[], Result | None],
        *,
        share: bool = False,
    ) -> Result:
        """Run a step, or answer from its stamp; ``work`` writes the products.

        With ``share`` the result is that of any build with the same inputs: see `shared`.

        Raises
        ------
        UsageError
            A step before `start` has left no files to start from.
        """
        stamp = self.folder / STAMPS / f"{name}.json"
        key = digest(*inputs)
        kept = self._kept(stamp, products, key)
        if kept is not None:
            self.seconds[name] = kept["seconds"]
            self._announce(name, "taken as it stands" if self.skipped(name) else "unchanged")
            return dict(kept["result"])
        if self.skipped(name):
            raise UsageError(
                f"--from {self.start} needs the files of stage {name!r} in {self.folder}, "
                f"and they are not there ({', '.join(products)})",
                "build without --from first",
            )
        stamp.unlink(missing_ok=True)
        place = self.shared / f"{name}-{key[:20]}" if share and self.shared else None
        if place and self.start is None and (found := self._borrow(place, products, stamp)):
            self.seconds[name] = found["seconds"]
            self._announce(name, "as another build has made it")
            return dict(found["result"])
        self._announce(name)
        started = time.monotonic()
        result = json.loads(json.dumps(work() or {}))
        self.seconds[name] = round(time.monotonic() - started, 2)
        self.ran.append(name)
        document = {
            "digest": key,
            "products": self._digests(products),
            "seconds": self.seconds[name],
            "result": result,
        }
        write(stamp, json.dumps(document, indent=1) + "\n")
        if place:
            self._lend(place, products, stamp)
        return dict(result)

    def _borrow(self, place: Path, products: Sequence[str], stamp: Path) -> dict[str, Any] | None:
        """Copy a shared result into the folder; returns its stamp, or None if it is not whole."""
        try:
            contents = {name: (place / name).read_bytes() for name in products}
            document = dict(json.loads((place / stamp.name).read_text()))
            told = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
            if document["products"] != told:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        for name, data in contents.items():
            write(self.folder / name, data)
        write(stamp, json.dumps(document, indent=1) + "\n")
        os.utime(place)
        return document

    def _lend(self, place: Path, products: Sequence[str], stamp: Path) -> None:
        """Keep a result for other builds."""
        place.mkdir(parents=True, exist_ok=True)
        for path in (*(self.folder / name for name in products), stamp):
            write(place / path.name, path.read_bytes())
        oldest = sorted(place.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in oldest[:-SHARED_KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    def _kept(self, stamp: Path, products: Sequence[str], key: str) -> dict[str, Any] | None:
        """What a stamp remembers, if it may be believed."""
        if self.start is not None and not self.skipped(stamp.stem):
            return None
        try:
            document = dict(json.loads(stamp.read_text()))
            if self.skipped(stamp.stem):  # whatever the files hold now
                return document if all((self.folder / p).is_file() for p in products) else None
            same = document["digest"] == key and document["products"] == self._digests(products)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return document if same else None

    def _digests(self, products: Sequence[str]) -> Mapping[str, str]:
        return {name: file_digest(self.folder / name) for name in products}

    def _announce(self, name: str, note: str = "") -> None:
        place = f"[{self.names.index(name) + 1}/{len(self.names)}]"
        self.say(f"{place} {name}{f': {note}' if note else ''}")


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a block takes."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = round(time.monotonic() - started, 2)
