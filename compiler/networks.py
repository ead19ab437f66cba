"""A network file of any kind: our checkpoints, and other people's ONNX.

The commands ask a file for three things: what it is (its name, its images, its classes), which
quantisers it has, and its Graph. A `Checkpoint` answers all three; so does an `OnnxNetwork`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler import checkpoint
from compiler.checkpoint import Checkpoint, Quantiser
from compiler.graph import Graph, build
from compiler.graph import Quantiser as QuantiserNode

ONNX = ".onnx"
"""Suffix of the files that are read as ONNX."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a network of unknown origin is known to be.

    Attributes
    ----------
    input : (channels, height, width)
    """

    name: str
    classes: int
    input: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class OnnxNetwork:
    """A network out of an ONNX file, with the attributes of a `Checkpoint` that commands use."""

    graph: Graph
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> Description:
        """Name, classes and image."""
        graph = self.graph
        return Description(graph.network, len(graph.labels), graph.image.shape)

    @property
    def quantiser(self) -> Quantiser | None:
        """The steps that the file has; None where some are missing."""
        found = list(self.graph.all(QuantiserNode))
        steps = {q.name: q.step for q in found if q.step is not None}
        bits = {q.bits for q in found if not self.graph.reads_image(q)}
        return Quantiser(max(bits), steps) if len(steps) == len(found) and bits else None


NetworkFile = Checkpoint | OnnxNetwork


def load(path: str | os.PathLike[str]) -> NetworkFile:
    """Read a network file; its suffix says of which kind it is.

    Raises
    ------
    CheckpointError, LoweringError
        See `checkpoint.load` and `onnx_read.read`.
    """
    if Path(path).suffix.lower() != ONNX:
        return checkpoint.load(path)
    from compiler import onnx_read  # here, so that the compiler starts without it

    return OnnxNetwork(onnx_read.read(path))


def graph_of(network: NetworkFile) -> Graph:
    """The float Graph of a network file."""
    return network.graph if isinstance(network, OnnxNetwork) else build(network)


def suffix_of(path: Path) -> str:
    """Suffix under which a copy of the file is read as the same kind."""
    suffix = path.suffix.lower()
    return suffix if suffix in (ONNX, ".mat") else ".pt"


def digest_of(path: Path) -> str:
    """SHA-256 of all that the network is, whatever files it lies in."""
    return hashlib.sha256(whole_file(path)).hexdigest()


def whole_file(path: Path) -> bytes:
    """A network file's bytes, with what an ONNX file keeps outside brought inside."""
    if path.suffix.lower() != ONNX:
        return path.read_bytes()
    from compiler import onnx_file

    packed: bytes = onnx_file.load_proto(path).SerializeToString()
    return packed
