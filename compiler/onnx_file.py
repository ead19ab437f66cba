"""An ONNX file, opened with suspicion: bytes to tables of nodes and constants.

Nothing a file says is believed before it is checked, and nothing is allocated because it says so:
a tensor must have the bytes that its shape promises, external data must lie in the file's own
folder, and nodes must stand in order, which rules out cycles. What the nodes mean is
`compiler.onnx_read`'s business.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from compiler.errors import CheckpointError
from compiler.onnx_model import nearest_decimal

Array = NDArray[Any]

OLDEST_OPSET = 11
"""The first in which convolutions, pools and pads say their paddings as they do today."""

MAX_BYTES = 1 << 30
"""Largest file, and most external data, that is read: ten times a 20-10 network in float32."""

MAX_RANK = 16
"""Most dimensions of a tensor: numpy ends at 64, networks at 5."""

STANDARD = ("", "ai.onnx")
"""The domain of ONNX's own operators, under both its names."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator.

    Attributes
    ----------
    name : str
        Its own, or where it has none that of its first output.
    operator, domain : str
        The standard domain is "".
    inputs, outputs : tuple of str
        Names of values; "" for an optional one left out.
    attributes : dict
        int, float, str, lists of these, or arrays. A float is the float64 that the file's float32
        stands for. Subgraphs and the like are left out: the operators that have them are refused.
    """

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        kind = f"{self.domain}.{self.operator}" if self.domain else self.operator
        return f"{self.name} ({kind})"


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the whole graph; a dimension is None where it is left open."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """A checked file.

    Attributes
    ----------
    name : str
        Of the graph; may be empty.
    opset : int
        Version of the standard operators.
    nodes : tuple of Node
        Each reads only what stands before it.
    constants : dict
        Name to array, in the file's own types.
    """

    name: str
    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, Array]


def load(path: str | os.PathLike[str]) -> OnnxFile:
    """Read and check a file.

    Raises
    ------
    CheckpointError
        No such file; no ONNX; too large; a tensor whose bytes do not match its shape; external
        data outside the file's folder; values made twice, never, or in a cycle; operators of a
        version before `OLDEST_OPSET` or after the newest that the `onnx` package knows.
    """
    path = Path(path)
    return _checked(_parsed(path), path.parent)


def load_proto(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The same file as onnxruntime wants it: checked, and its external data brought inside."""
    path = Path(path)
    model = _parsed(path)
    constants = _checked(model, path.parent).constants
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            name, kind = text(tensor.name), tensor.data_type
            array = constants[name]
            tensor.Clear()
            tensor.name, tensor.data_type, tensor.raw_data = name, kind, array.tobytes()
            tensor.dims.extend(array.shape)
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise CheckpointError(f"network must be a file, and there is none at {path}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} must be at most {MAX_BYTES:,} bytes, not {size:,}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, RuntimeError, ValueError) as error:  # by implementation of protobuf
        hint = "the file may be truncated or of another kind"
        raise CheckpointError(f"{path} must be a whole ONNX file", hint) from error
    if not model.HasField("graph") or not model.graph.node:
        raise CheckpointError(f"{path} must hold a graph of operators, and it has none")
    if not model.graph.output:
        raise CheckpointError(f"{path} must have an output, and it has none")
    return model


def _checked(model: onnx.ModelProto, folder: Path) -> OnnxFile:
    graph = model.graph
    if graph.sparse_initializer:
        raise CheckpointError("constants must be dense, and the file has sparse ones")
    opset = _opset(model)
    reader = _TensorReader(folder)
    constants: dict[str, Array] = {}
    for tensor in graph.initializer:
        name = text(tensor.name)
        if name in constants:
            raise CheckpointError(f"constant {name!r} must be given once, not twice")
        constants[name] = reader.read(tensor, name)
    nodes = tuple(_node(proto, reader) for proto in graph.node)
    inputs = tuple(v for v in map(_value, graph.input) if v.name not in constants)
    outputs = tuple(_value(v) for v in graph.output)
    _check_order(nodes, [*constants, *(value.name for value in inputs)], outputs)
    return OnnxFile(text(graph.name), opset, inputs, outputs, nodes, constants)


def _opset(model: onnx.ModelProto) -> int:
    versions = {text(entry.domain): entry.version for entry in model.opset_import}
    found: int = versions.get("", versions.get("ai.onnx", 1))
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= found <= newest:
        raise CheckpointError(
            f"opset must be {OLDEST_OPSET} to {newest}, not {found}",
            "onnx.version_converter.convert_version brings a model to another",
        )
    return found


def _value(proto: onnx.ValueInfoProto) -> Value:
    kind = proto.type.tensor_type
    dtype = TensorProto.DataType.Name(kind.elem_type) if kind.elem_type in _NAMES else "?"
    if not kind.HasField("shape"):
        return Value(text(proto.name), dtype, None)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Value(text(proto.name), dtype, shape)


_NAMES = set(TensorProto.DataType.values())


def _check_order(nodes: Iterable[Node], given: list[str], outputs: Iterable[Value]) -> None:
    """Every value made once, and before it is read."""
    made = set(given)
    if len(made) != len(given):
        raise CheckpointError("names of inputs and constants must be unique")
    later = {name for node in nodes for name in node.outputs}
    for node in nodes:
        for name in node.inputs:
            if name and name not in made:
                rule = "nodes must stand after what they read, without a cycle"
                what = rule if name in later else "values must be made before they are read"
                raise CheckpointError(f"{node}: {what}, but it reads {name!r}")
        for name in filter(None, node.outputs):
            if name in made:
                raise CheckpointError(f"{node}: values must be made once, but {name!r} is not")
            made.add(name)
    for value in outputs:
        if value.name not in made:
            raise CheckpointError(f"output {value.name!r} must be made by a node, and is not")


# -- nodes -----------------------------------------------------------------------------------------


def _node(proto: onnx.NodeProto, reader: _TensorReader) -> Node:
    domain, operator = text(proto.domain), text(proto.op_type)
    inputs, outputs = (tuple(map(text, names)) for names in (proto.input, proto.output))
    name = text(proto.name) or next(filter(None, outputs), "") or operator
    attributes = {
        key: value
        for key, a in ((text(a.name), a) for a in proto.attribute)
        if (value := _attribute(a, reader, f"{name}.{key}")) is not None
    }
    standard = "" if domain in STANDARD else domain
    return Node(name, operator, standard, inputs, outputs, attributes)


def text(value: str | bytes) -> str:
    """A name in the file; protobuf gives bytes for one that is no text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _attribute(proto: AttributeProto, reader: _TensorReader, name: str) -> Any:
    match proto.type:
        case AttributeProto.INT:
            return proto.i
        case AttributeProto.FLOAT:
            return nearest_decimal(proto.f)
        case AttributeProto.STRING:
            return text(proto.s)
        case AttributeProto.TENSOR:
            return reader.read(proto.t, name)
        case AttributeProto.INTS:
            return list(proto.ints)
        case AttributeProto.FLOATS:
            return [nearest_decimal(f) for f in proto.floats]
        case AttributeProto.STRINGS:
            return [text(s) for s in proto.strings]
    return None


# -- tensors ---------------------------------------------------------------------------------------

_DTYPES = (
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)
"""Types of constants that are read: those numpy has."""


@dataclass(slots=True)
class _TensorReader:
    """Tensors of one file; counts the external bytes it has read."""

    folder: Path
    external_bytes: int = 0

    def read(self, tensor: TensorProto, name: str) -> Array:
        """A tensor as an array that owns nothing it was not given."""
        if tensor.data_type not in _DTYPES:
            known = tensor.data_type in _NAMES
            kind = TensorProto.DataType.Name(tensor.data_type) if known else tensor.data_type
            raise CheckpointError(f"constant {name!r} must be of a type that numpy has, not {kind}")
        shape = tuple(tensor.dims)
        if len(shape) > MAX_RANK or any(n < 0 for n in shape):
            raise CheckpointError(f"constant {name!r} must have a shape, not {list(shape[:20])}")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = math.prod(shape)
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._external(tensor, name, count, dtype).reshape(shape)
        if tensor.HasField("raw_data"):
            held = len(tensor.raw_data)
            if held != count * dtype.itemsize:
                raise _mismatch(name, shape, count * dtype.itemsize, "bytes", held)
        else:
            held = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
            if held != count:
                raise _mismatch(name, shape, count, "values", held)
        try:
            return np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, OverflowError) as error:
            raise CheckpointError(f"constant {name!r} must hold numbers of its type") from error

    def _external(self, tensor: TensorProto, name: str, count: int, dtype: np.dtype[Any]) -> Array:
        """A tensor from a file of the same folder, or below it."""
        entries = {text(entry.key): text(entry.value) for entry in tensor.external_data}
        place = _inside(self.folder, entries.get("location", ""), name)
        size, length = place.stat().st_size, count * dtype.itemsize
        offset = _whole(entries.get("offset", "0"), f"offset of constant {name!r}")
        stated = _whole(entries.get("length", str(length)), f"length of constant {name!r}")
        if stated != length:
            raise _mismatch(name, tuple(tensor.dims), length, "bytes", stated)
        if offset + length > size:
            raise CheckpointError(
                f"constant {name!r} must lie within {place.name}, {size:,} bytes long, "
                f"not at {offset:,} to {offset + length:,}"
            )
        self.external_bytes += length
        if self.external_bytes > MAX_BYTES:
            raise CheckpointError(f"external data must be at most {MAX_BYTES:,} bytes")
        return np.fromfile(place, dtype.newbyteorder("<"), count, offset=offset).astype(dtype)


def _inside(folder: Path, location: str, name: str) -> Path:
    """The file of external data, links followed; it must not leave the model's folder."""
    root = folder.resolve()
    try:
        place = (root / location).resolve()
        found = bool(location) and place.is_relative_to(root) and place.is_file()
    except (OSError, ValueError):  # a name no file can have
        found = False
    if not found:
        raise CheckpointError(
            f"external data of constant {name!r} must be a file in the model's folder, "
            f"not {location!r}"
        )
    return place


def _whole(text: str, subject: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise CheckpointError(f"{subject} must be a whole number, not {text[:40]!r}")
    return int(text)


def _mismatch(
    name: str, shape: tuple[int, ...], need: int, unit: str, found: int
) -> CheckpointError:
    return CheckpointError(
        f"constant {name!r} of shape {list(shape)} must have {need:,} {unit}, not {found:,}"
    )
