"""How a value of an ONNX file looks at a map: its axes, whatever order exporters left them in.

A network of this family only ever computes maps of channels, rows and columns. Exporters transpose
them (NHWC), flatten them before a matrix product, drop axes of size 1 and put them back. None of
that computes anything, so a `View` follows it and the Graph never hears of it.

Each dimension of a view is a string of the letters N, C, H, W: "C" is the channels, "HWC" the whole
map flattened with the channels fastest, "" an axis of size 1 that somebody inserted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.arith import Pads
from compiler.graph import Shape

NCHW = ("N", "C", "H", "W")
NHWC = ("N", "H", "W", "C")

NO_PADS = Pads(0, 0, 0, 0)


class Refused(Exception):  # noqa: N818  (becomes one line of a LoweringError)
    """A node cannot be lowered; the text is the reason."""


@dataclass(frozen=True, slots=True)
class View:
    """A map, and how a value of the file sees it.

    Attributes
    ----------
    node : str
        The Graph node whose map it is.
    shape : (C, H, W)
        Of that map.
    batch : int
        Size of N.
    axes : tuple of str
    pads : Pads
        Zeros around the map that no node has taken in yet.
    more : int
        Zero channels behind the map, likewise.
    meant : str
        Letters of the axes that a mean has been taken over, while others are still to come.
    alias : str
        Name of an Identity that the value came through, or "".
    shared : bool
        Whether other operators compute with the map too.
    """

    node: str
    shape: Shape
    batch: int
    axes: tuple[str, ...] = NCHW
    pads: Pads = NO_PADS
    more: int = 0
    meant: str = ""
    alias: str = ""
    shared: bool = False

    def size(self, letters: str) -> int:
        """Of a dimension, with zeros around and behind."""
        c, h, w = self.shape
        sizes = {
            "N": self.batch,
            "C": c + self.more,
            "H": h + self.pads.top + self.pads.bottom,
            "W": w + self.pads.left + self.pads.right,
        }
        return math.prod(sizes[letter] for letter in letters)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of all dimensions: the shape that the file sees."""
        return tuple(map(self.size, self.axes))

    def wide(self, letters: str) -> str:
        """Those of the letters whose axes are longer than 1; the batch may be, so N always is."""
        return "".join(x for x in letters if x == "N" or self.size(x) > 1)

    def plain(self) -> View:
        """Itself, if it is the whole map of its node and nothing else."""
        if self.pads != NO_PADS or self.more:
            what = "zeros around it" if self.pads != NO_PADS else "zero channels behind it"
            raise Refused(f"it reads a map with {what}: only convolutions and pools may")
        if self.meant:
            raise Refused(f"it reads a mean over {self.meant} alone: it must be over all pixels")
        return self

    def ordered(self, axes: tuple[str, ...] = NCHW) -> View:
        """The same map with exactly ``axes``, if that differs only in axes of size 1."""
        seen, wanted = list(map(self.wide, self.axes)), list(map(self.wide, axes))
        if seen != wanted:
            raise Refused(f"it must read {_said(axes)}, not {_said(self.axes)}")
        return replace(self, axes=axes)

    # -- what moves axes about -----------------------------------------------------------------

    def transposed(self, order: Sequence[int] | None) -> View:
        """Dimensions in another order; reversed where none is given."""
        rank = len(self.axes)
        order = list(range(rank))[::-1] if order is None else list(order)
        if sorted(order) != list(range(rank)):
            raise Refused(f"it must permute {rank} axes, not {order}")
        return replace(self, axes=tuple(self.axes[i] for i in order))

    def squeezed(self, axes: Iterable[int] | None) -> View:
        """Without some axes of size 1; without all but the batch where none are given."""
        if axes is None:
            gone = {i for i, letters in enumerate(self.axes) if not self.wide(letters)}
        else:
            gone = set(axes)
            if any(self.size(self.axes[i]) != 1 for i in gone):
                raise Refused(f"it must squeeze axes of size 1, not of {self.sizes}")
        return replace(self, axes=tuple(x for i, x in enumerate(self.axes) if i not in gone))

    def unsqueezed(self, axes: Iterable[int]) -> View:
        """With new axes of size 1, numbered as they stand afterwards."""
        found = list(self.axes)
        for i in sorted(axes):
            found.insert(i, "")
        return replace(self, axes=tuple(found))

    def reshaped(self, shape: Sequence[int]) -> View:
        """Neighbouring axes joined, or joined ones parted, as far as a shape asks for it.

        Parameters
        ----------
        shape : sequence of int
            As Reshape takes it: 0 keeps a size, -1 (once) takes what is left.
        """
        sizes = self.sizes
        wanted = [sizes[i] if n == 0 and i < len(sizes) else int(n) for i, n in enumerate(shape)]
        known = math.prod(n for n in wanted if n > 0)
        if wanted.count(-1) == 1 and not math.prod(sizes) % known:
            wanted[wanted.index(-1)] = math.prod(sizes) // known
        if min(wanted, default=1) < 1 or math.prod(wanted) != math.prod(sizes):
            raise Refused(f"it must keep the size of {list(sizes)}, not make it {list(shape)}")
        letters = list("".join(self.axes))
        axes = []
        for n in wanted:
            taken = ""
            while letters and (self.size(taken) < n or (not taken and self.size(letters[0]) == 1)):
                taken += letters.pop(0)
            if self.size(taken) != n:
                raise Refused(f"it must not part an axis: {list(sizes)} to {wanted}")
            axes.append(taken)
        return replace(self, axes=tuple(axes))

    # -- what computes -------------------------------------------------------------------------

    def by_channel(self, constant: NDArray[Any]) -> NDArray[np.float64]:
        """A constant that is broadcast against the map, as one number or one a channel: () or (C,).

        Refuses what differs from pixel to pixel or image to image, and what would widen the map.
        """
        found = np.asarray(constant, np.float64)
        rank = len(self.axes)
        if not np.isfinite(found).all():
            raise Refused("its constant must be finite")
        if found.ndim > rank:
            raise Refused(f"its constant must have at most {rank} axes, not {found.ndim}")
        if found.ndim == 0:
            return found
        found = found.reshape((1,) * (rank - found.ndim) + found.shape)
        channel = next((i for i, x in enumerate(self.axes) if self.wide(x) == "C"), None)
        for i, size in enumerate(self.sizes):
            if found.shape[i] not in (1, size):
                raise Refused(f"its constant of {found.shape} must fit the map's {self.sizes}")
            first = np.take(found, [0], axis=i)
            if i != channel and found.shape[i] > 1:
                if (found != first).any():
                    raise Refused("its constant must be one number, or one a channel")
                found = first
        return found.reshape(()) if found.size < self.shape[0] else found.reshape(-1)


def _said(axes: Iterable[str]) -> str:
    return f"({', '.join(x or '1' for x in axes)})"
