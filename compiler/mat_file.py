"""A MATLAB file, opened with suspicion: bytes to named numeric arrays and cells of them.

`load` walks the file's elements itself and believes no size before it has seen the bytes; what
holds is decoded by `scipy.io.loadmat`, one variable at a time. scipy's reader allocates and
recurses as a file tells it to; here it meets only arrays whose shapes agree with their bytes.

Read are arrays of numbers and logicals, and cells of these. Whatever else a file holds (structs,
objects, functions, text, sparse matrices) is never decoded: it comes back as `Other`, for a message
to name.

Format: MathWorks, "MAT-File Level 5 File Format", as MATLAB writes it with ``-v6`` and ``-v7`` and
scipy's ``savemat`` by default.
"""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from compiler.errors import CheckpointError

MAX_BYTES = 1 << 29
"""Largest file, and most bytes of arrays made from one: ten 20-10 networks, a byte a weight."""

MAX_VARIABLES = 1 << 12
"""Most variables, and most arrays of a cell: a network has some hundred."""

MAX_DIMENSIONS = 16
"""numpy ends at 64, kernels at 5."""

START = b"MATLAB "
"""What every file of version 5 and later begins with."""

HEADER_BYTES = 128

HINT = "the file may be truncated or damaged"

# Types of elements; those of data may be narrower than their array's class.
INT8, INT32, UINT32, MATRIX, COMPRESSED, UTF8 = 1, 5, 6, 14, 15, 16

STORED_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""Bytes of one number by the type of its element."""

CLASSES = (
    *("unknown", "cell", "struct", "object", "char", "sparse", "double", "single", "int8"),
    *("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "function", "opaque"),
)
"""Classes of arrays, in the order of their numbers in a file."""

DECODED_BYTES = {name: np.dtype(name).itemsize for name in CLASSES[6:16]}
"""Bytes of one decoded number, by the classes that are decoded."""

COMPLEX_FLAG = 1 << 11

Order = Literal["little", "big"]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Other:
    """A variable that is not decoded; ``kind`` says what it is, as in "an object"."""

    kind: str


Variable = Array | tuple[Array, ...] | Other
"""An array; the arrays of a cell, its first dimension fastest; or something else."""


def recognises(path: Path) -> bool:
    """Whether a file begins as MATLAB files of version 5 and later do."""
    try:
        with path.open("rb") as file:
            return file.read(len(START)) == START
    except OSError:  # whoever reads it in earnest says why it cannot be read
        return False


def load(path: Path) -> dict[str, Variable]:
    """Read the variables of a MATLAB file, in the order of the file.

    Arrays have MATLAB's shape (at least two dimensions) and the type of their class, bool for
    logicals.

    Raises
    ------
    CheckpointError
        The file cannot be read, is of another version, is truncated or contradicts itself, has a
        name twice, or holds more than `MAX_BYTES`.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        message = f"checkpoint must be a file that can be read: {path}: {error.strerror}"
        raise CheckpointError(message) from error
    if size > MAX_BYTES:
        _refuse(str(path), f"must have at most {MAX_BYTES:,} bytes, not {size:,}", "")
    return _Reader(str(path), content).variables()


def _refuse(where: str, rule: str, hint: str = HINT) -> NoReturn:
    raise CheckpointError(f"{where} {rule}", hint)


@dataclass(slots=True)
class _Elements:
    """Elements one after the other; every size is held against the bytes that are there."""

    where: str
    data: memoryview
    order: Order
    position: int = 0

    def __bool__(self) -> bool:
        return self.position < len(self.data)

    def take(self) -> tuple[int, memoryview]:
        """Type and payload of the next element."""
        word = self._number()
        if word >> 16:  # type, size and up to four bytes in one
            kind, size, padding = word & 0xFFFF, word >> 16, 4 - (word >> 16)
            if padding < 0:
                _refuse(self.where, f"must not have a small element of {size} bytes; 4 is the most")
        else:
            kind, size = word, self._number()
            padding = 0 if kind == COMPRESSED else -size % 8
        payload = self._bytes(size)
        self.position = min(self.position + padding, len(self.data))
        return kind, payload

    def rest(self) -> _Elements:
        """What has not been taken."""
        return _Elements(self.where, self.data[self.position :], self.order)

    def _number(self) -> int:
        return int.from_bytes(self._bytes(4), self.order)

    def _bytes(self, count: int) -> memoryview:
        left = len(self.data) - self.position
        if count > left:
            _refuse(self.where, f"must go on for {count:,} bytes where it has {left:,}")
        self.position += count
        return self.data[self.position - count : self.position]


@dataclass(frozen=True, slots=True)
class _Matrix:
    """The head of an array element; its content is not yet checked."""

    name: str
    class_name: str
    is_complex: bool
    shape: tuple[int, ...]
    content: _Elements

    def other(self) -> Other:
        """What a message calls it where it is not decoded."""
        article = "an" if self.class_name[0] in "aeiou" else "a"
        return Other(f"{article} {self.class_name}{' of complex numbers' * self.is_complex}")


@dataclass(slots=True)
class _Reader:
    """One file; ``left`` is how many bytes may still be made from it."""

    where: str
    content: bytes
    left: int = MAX_BYTES

    def variables(self) -> dict[str, Variable]:
        """All of them; nameless ones are MATLAB's own and left out."""
        order = self._byte_order()
        elements = _Elements(self.where, memoryview(self.content)[HEADER_BYTES:], order)
        found: dict[str, Variable] = {}
        while elements:
            kind, data = elements.take()
            if kind == COMPRESSED:
                kind, data = self._inflated(data, order)
            if kind != MATRIX:
                _refuse(
                    self.where, f"must hold arrays (type {MATRIX}), not elements of type {kind}"
                )
            matrix = _matrix(_Elements(self.where, data, order))
            if not matrix.name or matrix.name.startswith("_"):
                continue
            if matrix.name in found:
                _refuse(self.where, f"must not have the variable {matrix.name!r} twice")
            if len(found) == MAX_VARIABLES:
                _refuse(self.where, f"must have at most {MAX_VARIABLES:,} variables", "")
            found[matrix.name] = self._decoded(matrix, data)
        return found

    def _byte_order(self) -> Order:
        """From the end of the header, which also tells the version."""
        header = self.content[:HEADER_BYTES]
        if not header.startswith(START) or len(header) < HEADER_BYTES:
            _refuse(self.where, "must begin with the header of a MATLAB file")
        version, mark = header[124:126], header[126:]
        if mark == b"IM" and version == b"\0\1":
            return "little"
        if mark == b"MI" and version == b"\1\0":
            return "big"
        hint = "in MATLAB: save(..., '-v7')" if b"HDF5" in header or b"7.3" in header else HINT
        _refuse(self.where, f"must be of version 5 to 7, not {bytes(version + mark)!r}", hint)

    def _inflated(self, data: memoryview, order: Order) -> tuple[int, memoryview]:
        """The one element in a compressed one; no more is inflated than its tag promises."""
        stream = zlib.decompressobj()
        try:
            tag = stream.decompress(data, 8)
            kind, size = int.from_bytes(tag[:4], order), int.from_bytes(tag[4:], order)
            self._spend(size, "a compressed element")
            content = stream.decompress(stream.unconsumed_tail, size + 1)
        except zlib.error as error:
            message = f"{self.where} must hold data that can be inflated: {error}"
            raise CheckpointError(message, HINT) from error
        if len(content) != size or len(tag) < 8:
            at_least = "more" if len(content) > size else f"{len(content):,}"
            _refuse(self.where, f"must inflate to {size:,} bytes as a tag says, not to {at_least}")
        return kind, memoryview(content)

    def _spend(self, count: int, what: str) -> None:
        if count > self.left:
            rule = f"must hold at most {MAX_BYTES:,} bytes of arrays; {what} would exceed that"
            _refuse(self.where, rule, "")
        self.left -= count

    def _decoded(self, matrix: _Matrix, data: memoryview) -> Variable:
        """What an array element holds, once its sizes have been checked all the way down."""
        if matrix.class_name == "cell":
            parts = self._cell_parts(matrix)
            if not all(map(_is_plain, parts)):
                return Other("a cell of other things than arrays")
        elif _is_plain(matrix):
            parts = [matrix]
        else:
            return matrix.other()
        for part in parts:
            self._check_content(part)
        array = self._decode(matrix.name, data)
        return tuple(array.ravel(order="F")) if array.dtype == object else array

    def _cell_parts(self, matrix: _Matrix) -> list[_Matrix]:
        count = math.prod(matrix.shape)
        where = f"{self.where}: {matrix.name}"
        if count > MAX_VARIABLES:
            _refuse(where, f"must have at most {MAX_VARIABLES:,} cells, not {count:,}")
        elements, parts = matrix.content, []
        for _ in range(count):
            kind, data = elements.take()
            if kind != MATRIX:
                _refuse(where, f"must have arrays in its cells, not elements of type {kind}")
            parts.append(_matrix(_Elements(where, data, elements.order)))
        if elements:
            _refuse(where, f"must end after {count:,} cells")
        return parts

    def _check_content(self, matrix: _Matrix) -> None:
        """The values of a plain array take the bytes that its shape says."""
        count = math.prod(matrix.shape)
        where = matrix.content.where
        self._spend(count * DECODED_BYTES[matrix.class_name], matrix.name or where)
        kind, data = matrix.content.take()
        size = STORED_BYTES.get(kind)
        if size is None:
            _refuse(where, f"must hold numbers, not data of type {kind}")
        if len(data) != count * size or matrix.content:
            shape = "x".join(map(str, matrix.shape))
            _refuse(where, f"must hold {count * size:,} bytes for its {shape} values")

    def _decode(self, name: str, data: memoryview) -> Array:
        """One element by scipy, as a file of its own."""
        from scipy.io import loadmat

        order: Order = "little" if self.content[126:128] == b"IM" else "big"
        tag = MATRIX.to_bytes(4, order) + len(data).to_bytes(4, order)
        file = io.BytesIO(self.content[:HEADER_BYTES] + tag + data)
        try:
            array = loadmat(file, mat_dtype=True)[name]
        except Exception as error:  # scipy promises no kind
            message = f"{self.where}: {name} must be an array that scipy can read: {error}"
            raise CheckpointError(message, HINT) from error
        return np.asarray(array)


def _matrix(elements: _Elements) -> _Matrix:
    """Flags, dimensions and name at the head of an array element."""
    where = elements.where
    kind, data = elements.take()
    if kind != UINT32 or len(data) != 8:
        _refuse(where, "must have arrays that begin with their flags")
    flags = int.from_bytes(data[:4], elements.order)
    number = flags & 0xFF
    class_name = CLASSES[number] if number < len(CLASSES) else CLASSES[0]
    shape: tuple[int, ...] = ()
    if class_name != "opaque":  # an object of MATLAB's newer kind: its name stands here at once
        shape = _shape(elements)
    kind, data = elements.take()
    if kind not in (INT8, UTF8):
        _refuse(where, f"must have text as the name of an array, not data of type {kind}")
    name = bytes(data).decode("latin-1")
    content = elements.rest()
    if name:
        content.where = f"{where}: {name}"
    return _Matrix(name, class_name, bool(flags & COMPLEX_FLAG), shape, content)


def _shape(elements: _Elements) -> tuple[int, ...]:
    kind, data = elements.take()
    sizes = [bytes(data[i : i + 4]) for i in range(0, len(data), 4)]
    shape = tuple(int.from_bytes(size, elements.order, signed=True) for size in sizes)
    if kind != INT32 or len(data) % 4 or not 2 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 0:
        rule = f"must have arrays of 2 to {MAX_DIMENSIONS} dimensions, each at least 0"
        _refuse(elements.where, rule)
    return shape


def _is_plain(matrix: _Matrix) -> bool:
    return matrix.class_name in DECODED_BYTES and not matrix.is_complex
