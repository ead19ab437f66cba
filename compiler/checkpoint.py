"""The checkpoint file: what `train` writes and the compiler reads (docs/checkpoint.md binds both).

`load` also reads the published networks of docs/formats.md, which become the same Checkpoint.

In memory a `Checkpoint` holds numpy arrays, its 1-bit weights as +1 and -1 (int8); in the file they
are packed eight to a byte. Nothing a file says is believed before it is checked, and nothing in it
is ever run.
"""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compiler import mat_file
from compiler.arith import POOL_KERNEL, Pads, same_pads
from compiler.errors import CheckpointError

FORMAT = "signum-checkpoint"
VERSION = 1

MAX_DEPTH = 1202
"""Deepest network accepted: a bound on what a broken description can make a reader do."""

MAX_CHANNELS = 1 << 16
"""Most channels or pixels a side accepted, for the same reason."""

FAMILIES = {"wrn": (3, 16), "wrn-imagenet": (4, 64)}
"""Stages, and channels of the first at width 1."""

STEP_TOLERANCE = 1e-5
"""How far a shifted ReLU's step may be from one over a whole number, as a share of it."""

_DOCUMENT_KEYS = ("format", "version", "network", "quantiser", "training", "tensors")

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Network:
    """Description of a pre-activation wide residual network; the fields are the file's keys.

    Attributes
    ----------
    depth : int
        Number of convolutions, 6n + 2; in the ImageNet form, which has four stages, 8n + 2.
    width : float
        Stage s (from 0) has ``round(16 * width * 2**s)`` channels, in the ImageNet form 64.
    batch_norm : "fixed", "learned", "none"
        None: ``max(-1, x)`` stands for every batch norm and ReLU but the input's, which is learned.
    input : (channels, height, width)
        Raw pixels, 0 .. 255.
    skip : bool
        False: a plain network, each block's convolutions in a chain without additions.
    padding : "torch", "matlab", "keras"
        See `Network.pads` and docs/checkpoint.md.
    """

    depth: int
    width: float
    classes: int
    input: tuple[int, int, int]
    weights: Literal["1bit", "32bit"] = "1bit"
    batch_norm: Literal["fixed", "learned", "none"] = "fixed"
    input_relu: bool = False
    skip: bool = True
    epsilon: float = 1e-5
    padding: Literal["torch", "matlab", "keras"] = "torch"
    family: Literal["wrn", "wrn-imagenet"] = "wrn"

    @property
    def name(self) -> str:
        """For people: "wrn20-4", "plain8-1"."""
        return f"{self.family if self.skip else 'plain'}{self.depth}-{self.width:g}"

    @property
    def blocks(self) -> int:
        """Residual blocks a stage."""
        return (self.depth - 2) // (2 * self.stages)

    @property
    def stages(self) -> int:
        return FAMILIES[self.family][0]

    @property
    def stem(self) -> bool:
        """Whether batch norm, ReLU and a 3x3 maximum of stride 2 follow the first convolution."""
        return self.family == "wrn-imagenet"

    @property
    def shifted_relu(self) -> bool:
        return self.batch_norm == "none"

    def channels(self, stage: int) -> int:
        """Channels of a stage, counted from 0."""
        channels: int = round(FAMILIES[self.family][1] * self.width * 2**stage)
        return channels

    def pads(self, size: tuple[int, int], kernel: int, stride: int) -> Pads:
        """Padding of a convolution, or of the 3x3 pool, over a map of ``size``."""
        if self.padding == "keras":
            return same_pads(size, kernel, stride)
        return Pads(*[kernel // 2] * 4)

    @property
    def count_padding(self) -> bool:
        """Whether the average pool's mean counts the padding."""
        return self.padding == "torch"


@dataclass(frozen=True, slots=True)
class Quantiser:
    """Steps of the quantised activations: the real value of one unit of q, one a tensor."""

    activation_bits: int
    steps: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A trained network as its file holds it.

    Attributes
    ----------
    tensors : dict of numpy arrays
        By the names of docs/checkpoint.md; ``<conv>.weight`` is int8 (+1, -1) where weights are
        1-bit, in ``(C_out, C_in, K, K)``.
    quantiser : Quantiser or None
        None: float activations.
    training : dict
        How it was trained, for people; nothing reads it for meaning.
    """

    network: Network
    tensors: Tensors
    quantiser: Quantiser | None = None
    training: Mapping[str, Any] | None = None


# -- what a description implies --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution of a described network; sizes are (height, width)."""

    name: str
    c_in: int
    c_out: int
    kernel: int
    stride: int
    size_in: tuple[int, int]
    size_out: tuple[int, int]
    pads: Pads

    @property
    def fan_in(self) -> int:
        return self.c_in * self.kernel**2

    @property
    def num_weights(self) -> int:
        return self.c_out * self.fan_in


def blocks(network: Network) -> Iterator[tuple[str, int, int, int]]:
    """``(name, c_in, c_out, stride)`` of each residual block, in order of the flow."""
    c_in = network.channels(0)
    for stage in range(network.stages):
        c_out = network.channels(stage)
        for block in range(network.blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            yield f"stage{stage + 1}.block{block + 1}", c_in, c_out, stride
            c_in = c_out


def layers(network: Network) -> tuple[Layer, ...]:
    """Every convolution in order of the flow; the head's 1x1 counted over the whole last map."""
    size = network.input[1:]

    def layer(name: str, c_in: int, c_out: int, kernel: int, stride: int) -> Layer:
        nonlocal size
        before, pads = size, network.pads(size, kernel, stride)
        size = pads.output_size(before, kernel, stride)
        return Layer(name, c_in, c_out, kernel, stride, before, size, pads)

    kernel, stride = (7, 2) if network.stem else (3, 1)
    found = [layer("conv0", network.input[0], network.channels(0), kernel, stride)]
    if network.stem:
        size = network.pads(size, POOL_KERNEL, 2).output_size(size, POOL_KERNEL, 2)
    for name, c_in, c_out, stride in blocks(network):
        found.append(layer(f"{name}.conv1", c_in, c_out, 3, stride))
        found.append(layer(f"{name}.conv2", c_out, c_out, 3, 1))
    found.append(layer("head.conv", network.channels(network.stages - 1), network.classes, 1, 1))
    return tuple(found)


def batch_norms(network: Network) -> dict[str, int]:
    """Name to channels of every batch norm, in order of the flow."""
    found = {"input.bn": network.input[0]}
    if network.shifted_relu:
        return found
    if network.stem:
        found["stem.bn"] = network.channels(0)
    for name, c_in, c_out, _ in blocks(network):
        found |= {f"{name}.bn1": c_in, f"{name}.bn2": c_out}
    return found | {"head.bn1": network.channels(network.stages - 1), "head.bn2": network.classes}


def quantisers(network: Network) -> tuple[str, ...]:
    """Names of the quantised tensors, in order of the flow: the keys of ``steps``."""
    relus = [f"{name}.relu{i}" for name, *_ in blocks(network) for i in (1, 2)]
    stem = ("stem.relu",) if network.stem else ()
    return ("input", *stem, *relus, "head.relu")


def has_learned_affine(network: Network, batch_norm: str) -> bool:
    """Whether ``<batch_norm>.gamma`` and ``.beta`` exist.

    Learned everywhere, or only at the input, where a ReLU follows its batch norm (without them
    half of every pixel's range would be lost) or no other is.
    """
    learned = network.batch_norm != "fixed"
    return learned or (batch_norm == "input.bn" and network.input_relu)


def tensor_shapes(network: Network) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name to (dtype, shape) of every tensor in memory; a scale may be ``()`` or ``(C_out,)``."""
    binary = network.weights == "1bit"
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in layers(network):
        shape = (layer.c_out, layer.c_in, layer.kernel, layer.kernel)
        found[f"{layer.name}.weight"] = ("int8" if binary else "float32", shape)
        if binary:
            found[f"{layer.name}.scale"] = ("float64", ())
    for name, channels in batch_norms(network).items():
        affine = ("gamma", "beta") if has_learned_affine(network, name) else ()
        for part in ("mean", "variance", *affine):
            found[f"{name}.{part}"] = ("float32", (channels,))
    return found


# -- rules -----------------------------------------------------------------------------------------


def _require(holds: bool, subject: str, rule: str, actual: object, hint: str = "") -> None:
    if not holds:
        raise CheckpointError(f"{subject} must be {rule}, not {actual!r}", hint)


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and isinstance(value, int | float) and 0 < value < math.inf


def _dictionary(subject: str, found: object, keys: Iterable[str]) -> dict[str, Any]:
    """``found``, known to be a dictionary of exactly ``keys``."""
    if not isinstance(found, dict):
        raise CheckpointError(f"{subject} must be a dictionary, not {type(found).__name__}")
    expected = set(keys)
    if missing := sorted(expected - set(found)):
        raise CheckpointError(f"{subject} must have the key {missing[0]!r}; it is missing")
    if unknown := sorted(map(repr, set(found) - expected)):
        raise CheckpointError(f"{subject} must not have the key {unknown[0]}; it is unknown")
    return found


_NETWORK_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "family": (lambda v: v in tuple(FAMILIES), "'wrn' or 'wrn-imagenet'"),
    "width": (
        lambda v: _is_positive(v) and 1 <= round(64 * v) <= MAX_CHANNELS,
        f"a positive number up to {MAX_CHANNELS // 64}",
    ),
    "classes": (lambda v: _is_int(v, 1, MAX_CHANNELS), f"1 to {MAX_CHANNELS}"),
    "input": (
        lambda v: (
            isinstance(v, list | tuple)
            and len(v) == 3
            and all(_is_int(n, 1, MAX_CHANNELS) for n in v)
        ),
        f"three integers (channels, height, width), 1 to {MAX_CHANNELS}",
    ),
    "weights": (lambda v: v in ("1bit", "32bit"), "'1bit' or '32bit'"),
    "batch_norm": (
        lambda v: v in ("fixed", "learned", "none"),
        "'fixed', 'learned' or 'none'",
    ),
    "input_relu": (lambda v: type(v) is bool, "True or False"),
    "skip": (lambda v: type(v) is bool, "True or False"),
    "epsilon": (
        lambda v: type(v) in (int, float) and math.isfinite(v) and v >= 0,
        "a finite number of at least 0",
    ),
    "padding": (lambda v: v in ("torch", "matlab", "keras"), "'torch', 'matlab' or 'keras'"),
}


def _read_network(found: object) -> Network:
    document = _dictionary("network", found, [f.name for f in fields(Network)])
    for key, (holds, rule) in _NETWORK_RULES.items():
        _require(holds(document[key]), f"network.{key}", rule, document[key])
    depth, step = document["depth"], 2 * FAMILIES[document["family"]][0]
    whole = _is_int(depth, step + 2, MAX_DEPTH) and depth % step == 2
    rule = f"{step}n + 2, {step + 2} to {MAX_DEPTH}"
    _require(whole, "network.depth", rule, depth)
    network = Network(**{**document, "input": tuple(document["input"])})
    _require(network.channels(0) >= 1, "network.width", "wide enough for a channel", network.width)
    most = network.channels(network.stages - 1)
    _require(most <= MAX_CHANNELS, "network.width", f"for at most {MAX_CHANNELS} channels", most)
    return network


def _read_quantiser(found: object, network: Network) -> Quantiser | None:
    if found is None:
        return None
    document = _dictionary("quantiser", found, ("activation_bits", "steps"))
    bits = document["activation_bits"]
    _require(_is_int(bits, 2, 8), "quantiser.activation_bits", "2 to 8", bits)
    steps = _dictionary("quantiser.steps", document["steps"], quantisers(network))
    for name, step in steps.items():
        _require(_is_positive(step), f"quantiser.steps[{name!r}]", "a positive finite number", step)
    for name, step in steps.items():
        whole = name == "input" or abs(round(1 / step) * step - 1) < STEP_TOLERANCE
        rule = f"one over a whole number up to {(1 << bits) - 1}, where no batch norm stands"
        holds = not network.shifted_relu or (whole and round(1 / step) < 1 << bits)
        _require(holds or name == "input", f"quantiser.steps[{name!r}]", rule, step)
    return Quantiser(bits, {name: float(steps[name]) for name in quantisers(network)})


def _check_tensors(tensors: Tensors, network: Network) -> None:
    """Names, types, shapes and values of the tensors in memory against the description."""
    expected = tensor_shapes(network)
    hint = f"the description is of {network.name}, weights {network.weights!r}"
    _dictionary("tensors", tensors, expected)
    for name, (dtype, shape) in expected.items():
        array = tensors[name]
        _require(isinstance(array, np.ndarray), f"tensor {name}", "an array", type(array).__name__)
        _require(array.dtype == dtype, f"tensor {name}", dtype, str(array.dtype), hint)
        allowed = [shape]
        if name.endswith(".scale"):
            allowed.append((len(tensors[name.removesuffix(".scale") + ".weight"]),))
        rule = "of shape " + " or ".join(map(str, allowed))
        _require(array.shape in allowed, f"tensor {name}", rule, array.shape, hint)
        _check_values(name, array)


def _check_values(name: str, array: NDArray[Any]) -> None:
    if array.dtype == np.int8:
        _require(bool((np.abs(array) == 1).all()), f"tensor {name}", "+1 and -1", "other values")
        return
    bad = array[~np.isfinite(array)]
    if bad.size:
        _require(False, f"tensor {name}", "finite", float(bad.flat[0]), "training diverged")
    if name.endswith(".variance"):
        lowest = float(array.min())
        _require(lowest >= 0, f"tensor {name}", "at least 0", lowest)
    if name.endswith(".scale"):
        lowest = float(array.min())
        _require(lowest > 0, f"tensor {name}", "positive", lowest)


def validate(checkpoint: Checkpoint) -> Checkpoint:
    """Hold a Checkpoint to every rule of docs/checkpoint.md; return it.

    Raises
    ------
    CheckpointError
        Naming the key or tensor, the rule, and the actual value.
    """
    network = _read_network(asdict(checkpoint.network))
    if checkpoint.quantiser is not None:
        q = checkpoint.quantiser
        _read_quantiser({"activation_bits": q.activation_bits, "steps": dict(q.steps)}, network)
    _check_tensors(checkpoint.tensors, network)
    return checkpoint


# -- packed weights --------------------------------------------------------------------------------


def pack_signs(signs: NDArray[np.int8]) -> NDArray[np.uint8]:
    """+1 and -1 of any shape to bits, the first in the most significant, +1 being 1."""
    return np.packbits(signs.reshape(-1) > 0)


def _unpack_signs(name: str, packed: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int8]:
    count = math.prod(shape)
    _require(packed.dtype == np.uint8, f"tensor {name}", "uint8 (packed bits)", str(packed.dtype))
    size = (-(-count // 8),)
    rule = f"of shape {size}, {count} bits"
    _require(packed.shape == size, f"tensor {name}", rule, packed.shape)
    bits = np.unpackbits(packed)
    _require(not bits[count:].any(), f"tensor {name}", "0 in the bits past its end", "1")
    return (bits[:count].astype(np.int8) * 2 - 1).reshape(shape)


# -- files -----------------------------------------------------------------------------------------


def _open(path: Path) -> object:
    """`torch.load` that runs nothing; every way it can fail is a CheckpointError."""
    import torch  # here, so that the compiler starts without it

    if not path.is_file():
        raise CheckpointError(f"checkpoint must be a file, and there is none at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        hint = "only numbers, strings, dictionaries and tensors are read; nothing was run"
        message = f"checkpoint {path} must hold plain data, not code or unknown types"
        raise CheckpointError(message, hint) from error
    except Exception as error:  # torch raises a dozen kinds for damaged files
        hint = "the file may be truncated or of another kind"
        raise CheckpointError(f"checkpoint {path} must be a whole torch file", hint) from error


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint and hold it to every rule of docs/checkpoint.md.

    A MATLAB file is recognised by its first bytes, and read as `mat_networks.read` does.

    Raises
    ------
    CheckpointError
        No such file; not a torch file; code in it; a wrong version, key, type, shape or value.
    """
    if mat_file.recognises(Path(path)):
        from compiler import mat_networks  # makes Checkpoints, and so imports this module

        return mat_networks.read(Path(path))
    document = _open(Path(path))
    top = document if isinstance(document, dict) else {}
    found, version = top.get("format"), top.get("version")
    _require(found == FORMAT, "format", repr(FORMAT), found, f"{path} is not a Signum checkpoint")
    _require(version == VERSION, "version", str(VERSION), version, "written by another release?")
    _dictionary("checkpoint", top, _DOCUMENT_KEYS)
    _require(isinstance(top["training"], dict), "training", "a dictionary", top["training"])
    network = _read_network(top["network"])
    quantiser = _read_quantiser(top["quantiser"], network)
    tensors = _read_tensors(top["tensors"], network)
    return Checkpoint(network, tensors, quantiser, top["training"])


def _read_tensors(found: object, network: Network) -> Tensors:
    import torch

    expected = tensor_shapes(network)
    given = _dictionary("tensors", found, expected)
    tensors: Tensors = {}
    for name, (dtype, shape) in expected.items():
        tensor = given[name]
        plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        _require(plain, f"tensor {name}", "a dense tensor", type(tensor).__name__)
        try:
            array = tensor.detach().numpy()
        except TypeError as error:  # bfloat16 and other types numpy lacks
            raise CheckpointError(f"tensor {name} must be {dtype}, not {tensor.dtype}") from error
        tensors[name] = _unpack_signs(name, array, shape) if dtype == "int8" else array
    _check_tensors(tensors, network)
    return tensors


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all: a temporary file beside it, then one rename.

    Raises
    ------
    CheckpointError
        Where the checkpoint breaks a rule; nothing is written then.
    """
    import torch

    validate(checkpoint)
    document = _document(checkpoint)
    document["tensors"] = {
        name: torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())
        for name, array in document["tensors"].items()
    }
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _document(checkpoint: Checkpoint) -> dict[str, Any]:
    """The dictionary of docs/checkpoint.md, its tensors numpy arrays, weights packed."""
    q = checkpoint.quantiser
    return {
        "format": FORMAT,
        "version": VERSION,
        "network": {**asdict(checkpoint.network), "input": list(checkpoint.network.input)},
        "quantiser": q and {"activation_bits": q.activation_bits, "steps": dict(q.steps)},
        "training": dict(checkpoint.training or {}),
        "tensors": {
            name: pack_signs(array) if array.dtype == np.int8 else array
            for name, array in checkpoint.tensors.items()
        },
    }
