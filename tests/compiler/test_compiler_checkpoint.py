"""The checkpoint reader: what it gives back, and every way it must say no."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler import checkpoint as schema
from compiler.checkpoint import Checkpoint, Network, layers, load, save, validate
from compiler.errors import CheckpointError
from tests.support.networks import random_checkpoint

Document = dict[str, Any]


@pytest.fixture(scope="module")
def sound() -> Checkpoint:
    return random_checkpoint(0, learned=True)


def saved(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    path = tmp_path / "net.pt"
    save(path, checkpoint)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learned": True, "bits": None},
        {"weights": "32bit", "bits": 8},
        {"channel_scales": True, "input_relu": True},
        {"shape": (1, 9, 7), "classes": 3, "padding": "keras", "skip": False},
    ],
)
def test_a_saved_checkpoint_comes_back(tmp_path: Path, options: dict[str, Any]) -> None:
    want = random_checkpoint(1, **options)
    got = load(saved(tmp_path, want))
    assert (got.network, got.quantiser, got.training) == (
        want.network,
        want.quantiser,
        want.training,
    )
    assert got.tensors.keys() == want.tensors.keys()
    for name, array in want.tensors.items():
        assert got.tensors[name].dtype == array.dtype
        assert (got.tensors[name] == array).all()


def test_weights_are_packed_first_sign_highest(tmp_path: Path, sound: Checkpoint) -> None:
    document = torch.load(saved(tmp_path, sound), weights_only=True)
    signs = sound.tensors["conv0.weight"].ravel()
    packed = document["tensors"]["conv0.weight"]
    assert packed.dtype == torch.uint8 and len(packed) == -(-len(signs) // 8)
    for i, sign in enumerate(signs):
        assert (int(packed[i // 8]) >> (7 - i % 8)) & 1 == (sign > 0)


def test_saving_replaces_the_file_whole_or_not_at_all(
    tmp_path: Path, sound: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, sound)
    before = path.read_bytes()

    def broken(document: object, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        save(path, sound)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# -- files that are none ---------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none at .*nowhere\.pt"):
        load(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("content", [b"", b"not a torch file", b"PK\x03\x04 nor a zip file"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="must"):
        load(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, sound: Checkpoint, part: float) -> None:
    path = saved(tmp_path, sound)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match="must be a whole torch file"):
        load(path)


class Exploit:
    """Unpickling this runs a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(tmp_path: Path, legacy: bool) -> None:
    path, proof = tmp_path / "net.pt", tmp_path / "was-run"
    document = {"format": schema.FORMAT, "training": Exploit(proof)}
    torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=False)
    assert proof.exists(), "the payload must be a real one"
    proof.unlink()
    with pytest.raises(CheckpointError, match="plain data, not code"):
        load(path)
    assert not proof.exists()


# -- documents that contradict themselves ----------------------------------------------------------


def put(*keys: str, value: Any) -> Callable[[Document], None]:
    """Set ``document[keys[0]][keys[1]]...``."""

    def change(document: Document) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def poke(name: str, value: float) -> Callable[[Document], None]:
    """Set one element of a tensor."""
    return lambda document: document["tensors"][name].view(-1)[0].fill_(value) and None


def cast(name: str, dtype: torch.dtype) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document["tensors"][name] = document["tensors"][name].to(dtype)

    return change


REFUSALS = {
    "format": (put("format", value="other"), "format must be 'signum-checkpoint', not 'other'"),
    "no format": (drop("format"), "format must be 'signum-checkpoint', not None"),
    "version": (put("version", value=2), "version must be 1, not 2"),
    "missing part": (drop("tensors"), "checkpoint must have the key 'tensors'"),
    "unknown part": (put("extra", value=1), "checkpoint must not have the key 'extra'"),
    "training": (put("training", value=[1]), r"training must be a dictionary, not \[1\]"),
    "network": (put("network", value=3), "network must be a dictionary, not int"),
    "missing key": (drop("network", "padding"), "network must have the key 'padding'"),
    "unknown key": (put("network", "stride", value=2), "must not have the key 'stride'"),
    "family": (
        put("network", "family", value="vgg"),
        "network.family must be 'wrn' or 'wrn-imagenet', not 'vgg'",
    ),
    "depth": (put("network", "depth", value=10), r"network.depth must be 6n \+ 2.*not 10"),
    "deep": (put("network", "depth", value=6 * 10**9 + 2), "network.depth must be"),
    "depth type": (put("network", "depth", value=8.0), "network.depth must be.*not 8.0"),
    "width": (put("network", "width", value=0), "network.width must be a positive number.*not 0"),
    "width nan": (put("network", "width", value=float("nan")), "network.width must be"),
    "wide": (put("network", "width", value=1e9), "network.width must be"),
    "classes": (put("network", "classes", value=0), "network.classes must be"),
    "classes bool": (put("network", "classes", value=True), "network.classes must be"),
    "input": (put("network", "input", value=[3, 8]), "network.input must be three integers"),
    "weights": (put("network", "weights", value="2bit"), "network.weights must be"),
    "batch_norm": (put("network", "batch_norm", value="off"), "network.batch_norm must be"),
    "imagenet's depth": (
        put("network", "family", value="wrn-imagenet"),
        r"network.depth must be 8n \+ 2.*not 8",
    ),
    "input_relu": (put("network", "input_relu", value=1), "network.input_relu must be True or"),
    "skip": (put("network", "skip", value="yes"), "network.skip must be True or False"),
    "epsilon": (put("network", "epsilon", value=-1e-5), "network.epsilon must be"),
    "padding": (put("network", "padding", value="valid"), "network.padding must be"),
    "quantiser": (put("quantiser", value=[]), "quantiser must be a dictionary"),
    "bits": (put("quantiser", "activation_bits", value=9), "activation_bits must be 2 to 8, not 9"),
    "no step": (drop("quantiser", "steps", "head.relu"), "steps must have the key 'head.relu'"),
    "step 0": (put("quantiser", "steps", "input", value=0.0), r"steps\['input'\] must be a pos"),
    "step inf": (
        put("quantiser", "steps", "input", value=float("inf")),
        r"steps\['input'\] must be a positive finite number, not inf",
    ),
    "step bool": (put("quantiser", "steps", "input", value=True), r"steps\['input'\] must be"),
    "no tensor": (drop("tensors", "conv0.scale"), "tensors must have the key 'conv0.scale'"),
    "more tensors": (put("tensors", "a.b", value=torch.ones(1)), "must not have the key 'a.b'"),
    "no array": (put("tensors", "conv0.scale", value=0.5), "conv0.scale must be a dense tensor"),
    "dtype": (cast("head.bn1.mean", torch.float64), "head.bn1.mean must be float32, not 'float64'"),
    "bfloat16": (cast("head.bn1.mean", torch.bfloat16), "mean must be float32, not torch.bfloat16"),
    "shape": (
        put("tensors", "head.bn1.mean", value=torch.ones(7)),
        r"head.bn1.mean must be of shape \(16,\), not \(7,\)",
    ),
    "scale shape": (
        put("tensors", "conv0.scale", value=torch.ones(3, dtype=torch.float64)),
        r"conv0.scale must be of shape \(\) or \(4,\), not \(3,\)",
    ),
    "unpacked": (
        put("tensors", "conv0.weight", value=torch.ones(4, 3, 3, 3)),
        r"conv0.weight must be uint8 \(packed bits\), not 'float32'",
    ),
    "too few bits": (
        put("tensors", "conv0.weight", value=torch.zeros(13, dtype=torch.uint8)),
        r"conv0.weight must be of shape \(14,\), 108 bits, not \(13,\)",
    ),
    "bits past the end": (
        put("tensors", "conv0.weight", value=torch.full((14,), 255, dtype=torch.uint8)),
        "conv0.weight must be 0 in the bits past its end",
    ),
    "nan": (poke("head.bn2.mean", float("nan")), "head.bn2.mean must be finite, not nan"),
    "inf": (poke("head.bn2.gamma", float("inf")), "head.bn2.gamma must be finite, not inf"),
    "variance": (poke("head.bn1.variance", -1.0), "head.bn1.variance must be at least 0, not -1.0"),
    "scale 0": (poke("conv0.scale", 0.0), "conv0.scale must be positive, not 0.0"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_broken_document_is_refused_by_name(tmp_path: Path, sound: Checkpoint, kind: str) -> None:
    change, message = REFUSALS[kind]
    path = saved(tmp_path, sound)
    document = torch.load(path, weights_only=True)
    change(document)
    torch.save(document, path)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="format must be") as caught:
        load(path)
    assert "is not a Signum checkpoint" in caught.value.hint


def test_save_refuses_what_load_would(tmp_path: Path, sound: Checkpoint) -> None:
    tensors = sound.tensors | {"conv0.weight": np.zeros_like(sound.tensors["conv0.weight"])}
    broken = Checkpoint(sound.network, tensors, sound.quantiser)
    with pytest.raises(CheckpointError, match=r"conv0.weight must be \+1 and -1"):
        save(tmp_path / "net.pt", broken)
    assert not list(tmp_path.iterdir())
    assert validate(sound) is sound


# -- what a description implies --------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "width"), [(8, 1), (14, 2), (20, 4), (26, 10)])
def test_number_of_weights_follows_the_formula(depth: int, width: int) -> None:
    network = Network(depth, width, 10, (3, 32, 32))
    c, n = 16 * width, (depth - 2) // 6
    stages = 9 * c * c * (2 * n + (2 + 4 + 8 * (n - 1)) + (8 + 16 + 32 * (n - 1)))
    assert sum(layer.num_weights for layer in layers(network)) == 27 * c + stages + 40 * c


def test_layers_of_a_small_network_by_hand() -> None:
    found = layers(Network(8, 1, 10, (3, 9, 8)))
    assert [layer.name for layer in found] == [
        "conv0",
        *[f"stage{s}.block1.conv{i}" for s in (1, 2, 3) for i in (1, 2)],
        "head.conv",
    ]
    shrinking = found[3]
    assert (shrinking.c_in, shrinking.c_out, shrinking.kernel, shrinking.stride) == (16, 32, 3, 2)
    assert (shrinking.size_in, shrinking.size_out) == ((9, 8), (5, 4))
    assert (found[-1].kernel, found[-1].size_out, found[-1].fan_in) == (1, (3, 2), 64)
