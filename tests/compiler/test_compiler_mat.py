"""The published networks: both layouts read right, and files that are none refused."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler import datasets, mat_file, mat_networks, networks
from compiler import graph as ir
from compiler.__main__ import main
from compiler.accuracy import calibration_of, measure, program_of
from compiler.checkpoint import Checkpoint, load
from compiler.errors import CheckpointError, SignumError
from compiler.lower import quantised
from compiler.mat_file import Other
from sim.__main__ import main as simulate
from tests.support.mat_files import (
    Layout,
    Variables,
    forward,
    random_published,
    variables_of,
    write,
)
from tests.support.networks import random_images

LAYOUTS: tuple[Layout, ...] = ("keras", "matconvnet")

both_layouts = pytest.mark.parametrize("layout", LAYOUTS)

TINY = {"width": 1 / 16, "classes": 3}
"""The smallest network there is: 1, 2 and 4 channels."""


@pytest.fixture(scope="module")
def tiny() -> dict[Layout, Checkpoint]:
    return {layout: random_published(layout, **TINY) for layout in LAYOUTS}


# -- what a sound file becomes ---------------------------------------------------------------------


@both_layouts
@pytest.mark.parametrize(
    "options",
    [
        {"depth": 8, "width": 0.25, "classes": 10},
        {"depth": 14, "width": 0.5, "classes": 7},
        {"depth": 20, "width": 0.1875, "classes": 100},
        {"depth": 8, "width": 0.25, "classes": 1},
        {"depth": 8, "width": 0.25, "classes": 10, "learned": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_file_gives_the_network_it_was_written_from(
    tmp_path: Path, layout: Layout, options: dict[str, Any]
) -> None:
    want = random_published(layout, **options)
    got = load(write(tmp_path / "any.name", variables_of(layout, want)))
    assert got.network == want.network
    assert got.quantiser is None
    assert got.tensors.keys() == want.tensors.keys()
    for name, array in want.tensors.items():
        # MatConvNet files hold deviations and scales in single precision
        assert got.tensors[name].dtype == array.dtype
        np.testing.assert_allclose(got.tensors[name], array, rtol=2e-7, err_msg=name)


@both_layouts
@pytest.mark.parametrize(("depth", "learned"), [(8, False), (14, True)])
def test_scores_are_those_of_an_independent_computation(
    tmp_path: Path, layout: Layout, depth: int, learned: bool
) -> None:
    variables = variables_of(layout, random_published(layout, 3, depth=depth, learned=learned))
    images = random_images(5, 4, (3, 32, 32))
    graph = ir.build(load(write(tmp_path / "net.mat", variables)))
    want = forward(layout, variables, images)
    np.testing.assert_allclose(ir.scores(graph, images), want, rtol=1e-5, atol=1e-5)


def test_a_learned_input_alone_is_what_keras_files_have(tmp_path: Path) -> None:
    """The published file's first batch norm has four rows, all others have two."""
    variables = variables_of("keras", random_published("keras", 1))
    first = next(iter(variables))
    affine = np.float32([[0.7, -0.6, 0.5], [0.2, 0.1, -0.3]])
    variables[first] = np.concatenate([affine, variables[first]])
    images = random_images(6, 4, (3, 32, 32))
    found = load(write(tmp_path / "net.mat", variables))
    assert (found.tensors["input.bn.gamma"] == affine[0]).all()
    assert (found.tensors["input.bn.beta"] == affine[1]).all()
    want = forward("keras", variables, images)
    np.testing.assert_allclose(ir.scores(ir.build(found), images), want, rtol=1e-5, atol=1e-5)


def test_the_two_layouts_differ_where_their_authors_do(tmp_path: Path) -> None:
    networks = {
        layout: load(write(tmp_path / layout, variables_of(layout, random_published(layout))))
        for layout in LAYOUTS
    }
    keras, matconvnet = (networks[layout].network for layout in LAYOUTS)
    assert (keras.padding, keras.epsilon, keras.input_relu) == ("keras", 1e-5, False)
    assert (matconvnet.padding, matconvnet.epsilon, matconvnet.input_relu) == ("matlab", 0.0, True)
    assert not keras.count_padding and not matconvnet.count_padding


@both_layouts
@pytest.mark.parametrize("compress", [False, True])
def test_compressed_or_not_is_the_same(
    tmp_path: Path, layout: Layout, compress: bool, tiny: dict[Layout, Checkpoint]
) -> None:
    found = load(write(tmp_path / "net.mat", variables_of(layout, tiny[layout]), compress))
    assert (found.tensors["conv0.weight"] == tiny[layout].tensors["conv0.weight"]).all()


def test_layers_are_found_whatever_their_names_are(
    tmp_path: Path, tiny: dict[Layout, Checkpoint]
) -> None:
    variables = variables_of("keras", tiny["keras"])
    renamed = {f"layer_{i}x": array for i, array in enumerate(variables.values())}
    found = load(write(tmp_path / "net.mat", renamed))
    for name, array in tiny["keras"].tensors.items():
        assert (found.tensors[name] == array).all()


# -- the commands ----------------------------------------------------------------------------------


@both_layouts
def test_the_commands_take_a_published_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    layout: Layout,
    tiny: dict[Layout, Checkpoint],
) -> None:
    path = str(write(tmp_path / "net.mat", variables_of(layout, tiny[layout])))
    assert main(["inspect", path, "--activation-bits", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["network"] == "wrn8-0.0625"
    assert found["layers"][-1]["name"] == "head.conv"
    assert main(["compare", path, path, "--images", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["first_difference"] is None
    assert main(["inspect", path]) == 1
    assert "hint: --activation-bits 4" in capsys.readouterr().err


# -- files that are none ---------------------------------------------------------------------------


def element(kind: int, data: bytes) -> bytes:
    """An element of a MATLAB file."""
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(name: str, class_: int, shape: tuple[int, ...], content: bytes, flags: int = 0) -> bytes:
    """An array element with ``content`` behind its name."""
    head = element(6, struct.pack("<II", class_ | flags << 8, 0))
    head += element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name.encode())
    return element(14, head + content)


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
DOUBLE, CELL, OBJECT, OPAQUE = 6, 1, 3, 17


def nested(depth: int) -> bytes:
    """A cell in a cell in a cell."""
    inner = matrix("", DOUBLE, (1, 1), element(9, bytes(8)))
    for _ in range(depth):
        inner = matrix("", CELL, (1, 1), inner)
    return matrix("x", CELL, (1, 1), inner)


def compressed(content: bytes) -> bytes:
    data = zlib.compress(content)
    return struct.pack("<II", 15, len(data)) + data


BROKEN_BYTES = {
    "half a header": (HEADER[:100], "must begin with the header"),
    "version 7.3": (
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM",
        r"must be of version 5 to 7.*\nhint: in MATLAB: save\(..., '-v7'\)",
    ),
    "no byte order": (HEADER[:126] + b"XX", "must be of version 5 to 7"),
    "nothing in it": (HEADER, "must be a network as Keras or MatConvNet .* a file of nothing"),
    "an end in a tag": (HEADER + b"\x0e\0\0\0\x01", "must go on for 4 bytes where it has 1"),
    "a size beyond": (HEADER + struct.pack("<II", 14, 1 << 31), "must go on for 2,147,483,648"),
    "a large small element": (HEADER + struct.pack("<II", 9 << 16 | 6, 0), "small element of 9"),
    "no array": (HEADER + element(9, bytes(8)), r"must hold arrays \(type 14\), not .* type 9"),
    "no flags": (HEADER + element(14, element(9, bytes(8))), "begin with their flags"),
    "a negative size": (HEADER + matrix("x", 6, (-1, 1), b""), "each at least 0"),
    "one dimension": (HEADER + matrix("x", 6, (1,), b""), "2 to 16 dimensions"),
    "many dimensions": (HEADER + matrix("x", 6, (1,) * 17, b""), "2 to 16 dimensions"),
    "too few numbers": (
        HEADER + matrix("x", DOUBLE, (2, 2), element(9, bytes(24))),
        ": x must hold 32 bytes for its 2x2 values",
    ),
    "a shape that overflows": (
        HEADER + matrix("x", DOUBLE, (1 << 30,) * 4, element(9, bytes(8))),
        "must hold at most 536,870,912 bytes of arrays; x would exceed that",
    ),
    "text for numbers": (
        HEADER + matrix("x", DOUBLE, (1, 4), element(16, b"abcd")),
        ": x must hold numbers, not data of type 16",
    ),
    "900 million cells": (
        HEADER + matrix("x", CELL, (30000, 30000), b""),
        ": x must have at most 4,096 cells, not 900,000,000",
    ),
    "a cell that ends": (HEADER + matrix("x", CELL, (2, 1), b""), ": x must go on for 4 bytes"),
    "cells in cells": (HEADER + nested(5000), "a network as Keras or MatConvNet .* a file of x"),
    "a name twice": (
        HEADER + 2 * matrix("x", DOUBLE, (1, 1), element(9, bytes(8))),
        "must not have the variable 'x' twice",
    ),
    "a bomb": (
        HEADER + compressed(struct.pack("<II", 14, 1 << 30)),
        "must hold at most 536,870,912 bytes of arrays; a compressed element",
    ),
    "more than promised": (
        HEADER + compressed(struct.pack("<II", 14, 100) + bytes(10_000_000)),
        "must inflate to 100 bytes as a tag says, not to more",
    ),
    "less than promised": (
        HEADER + compressed(struct.pack("<II", 14, 100) + bytes(10)),
        "must inflate to 100 bytes as a tag says, not to 10",
    ),
    "no deflate stream": (HEADER + element(15, bytes(16)), "must hold data that can be inflated"),
    "an object": (
        HEADER + matrix("BinaryWeights", OBJECT, (1, 1), b""),
        "BinaryWeights must be a cell of arrays, not an object",
    ),
    "an object of the newer kind": (
        HEADER
        + element(14, element(6, struct.pack("<II", OPAQUE, 0)) + element(1, b"BinaryWeights")),
        "BinaryWeights must be a cell of arrays, not an opaque",
    ),
    "complex weights": (
        HEADER + matrix("BinaryWeights", DOUBLE, (1, 1), 2 * element(9, bytes(8)), flags=8),
        "not a double of complex numbers",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_BYTES)
def test_broken_bytes_are_refused_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    content, message = BROKEN_BYTES[kind]
    path = tmp_path / "net.mat"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert re.search(message, caught.value.report(), re.DOTALL)
    assert peak < 8 * len(content) + (4 << 20)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("compress", [False, True])
@both_layouts
def test_truncated_files_are_refused(
    tmp_path: Path, layout: Layout, compress: bool, tiny: dict[Layout, Checkpoint]
) -> None:
    path = write(tmp_path / "net.mat", variables_of(layout, tiny[layout]), compress)
    content = path.read_bytes()
    for length in [*range(8, 200, 11), *range(200, len(content), len(content) // 20)]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load(path)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "net.mat"
    path.write_bytes(HEADER)
    with path.open("r+b") as file:
        file.truncate(mat_file.MAX_BYTES + 1)  # a hole: it takes no disk
    with pytest.raises(CheckpointError, match="must have at most 536,870,912 bytes"):
        load(path)


def test_files_of_big_endian_machines_are_read(tmp_path: Path) -> None:
    head = struct.pack(">4I2i", 6, 8, DOUBLE, 0, 5, 8) + struct.pack(">2i", 1, 2)
    name = struct.pack(">2H", 1, 1) + b"x".ljust(4)
    body = head + name + struct.pack(">2I2d", 9, 16, 0.5, -3.0)
    path = tmp_path / "net.mat"
    path.write_bytes(HEADER[:124] + b"\1\0MI" + struct.pack(">2I", 14, len(body)) + body)
    found = mat_file.load(path)["x"]
    assert isinstance(found, np.ndarray) and found.tolist() == [[0.5, -3.0]]


def test_what_is_not_decoded_is_named(tmp_path: Path) -> None:
    variables = {"s": {"a": 1.0}, "t": "text", "c": np.array([[1j]]), "n": np.zeros((0, 3))}
    found = mat_file.load(write(tmp_path / "x.mat", variables))
    kinds = {name: v.kind if isinstance(v, Other) else v.shape for name, v in found.items()}
    want = {"s": "a struct", "t": "a char", "c": "a double of complex numbers", "n": (0, 3)}
    assert kinds == want


# -- networks that contradict themselves -----------------------------------------------------------

Change = Callable[[Variables], None]


def put(name: str, value: Any) -> Change:
    """Set a variable."""
    return lambda variables: variables.update({name: value})


def put_cell(name: str, index: int, value: Any) -> Change:
    """Set one cell (from 0) of a variable."""

    def change(variables: Variables) -> None:
        variables[name] = variables[name].copy()
        variables[name].ravel()[index] = value

    return change


def drop(name: str) -> Change:
    """Leave a variable out."""
    return lambda variables: variables.pop(name) is None


def by_name(variables: Variables) -> None:
    """As MATLAB's own `save` would order them."""
    ordered = dict(sorted(variables.items()))
    variables.clear()
    variables.update(ordered)


KERNEL = np.zeros((1, 3, 3, 1, 1), np.uint8)

BROKEN_KERAS: dict[str, tuple[Change, str]] = {
    "a kernel less": (drop("conv2d_3"), r"kernels must be 6n \+ 2 in number, 8 or more, not 7"),
    "a norm less": (
        drop("batch_normalization_v1_87"),
        "batch norms must be 9 in number, one more than kernels, not 8",
    ),
    "float weights": (
        put("conv2d_1", KERNEL.astype(np.float32)),
        "conv2d_1 must be 1-bit weights, logical or uint8, not float32",
    ),
    "weights of 2": (put("conv2d_1", KERNEL + 2), "conv2d_1 must be of 0 and 1, not of 2"),
    "no leading one": (
        put("conv2d_1", np.zeros((3, 3, 1, 2, 2), np.uint8)),
        r"conv2d_1 must be of shape \(1, K, K, C_in, C_out\).*not \(3, 3, 1, 2, 2\)",
    ),
    "an empty kernel": (put("conv2d_1", KERNEL[:, :, :, :0]), "each at least 1, not"),
    "a wide kernel": (
        put("conv2d_3", np.zeros((1, 3, 3, 1, 3), np.uint8)),
        r"conv2d_3 must be \(3, 3, 1, 2\) .* as stage2.block1.conv1 of a wrn8-0.0625, "
        r"not \(3, 3, 1, 3\)",
    ),
    "three rows": (
        put("batch_normalization_v1_86", np.ones((3, 1), np.float32)),
        "batch_normalization_v1_86 must be of 2 rows .* or 4 .*, not of 3",
    ),
    "many channels": (
        put("batch_normalization_v1_86", np.ones((2, 5), np.float32)),
        "batch_normalization_v1_86 must be of 1 channels as stage1.block1.bn2 .*, not of 5",
    ),
    "not a number": (
        put("batch_normalization_v1_86", np.full((2, 1), np.nan, np.float32)),
        "batch_normalization_v1_86 must be finite in its mean",
    ),
    "beyond single precision": (
        put("batch_normalization_v1_86", np.array([[1e300], [1.0]])),
        "batch_normalization_v1_86 must be finite in its mean, in single precision",
    ),
    "negative variance": (
        put("batch_normalization_v1_86", -np.ones((2, 1), np.float32)),
        "batch_normalization_v1_86 must be of variances of at least 0, not -1.0",
    ),
    "text": (put("conv2d_1", "text"), "conv2d_1 must be a kernel or a batch norm, not a char"),
    "a struct": (put("extra", {"a": 1.0}), "extra must be a kernel or a batch norm, not a struct"),
}

BROKEN_MATCONVNET: dict[str, tuple[Change, str]] = {
    "no moments": (drop("Moments"), "Moments must be a cell of arrays, not missing"),
    "no cell": (put("BNG", np.ones((9, 1))), r"BNG must be .*not an array of shape \(9, 1\)"),
    "text in a cell": (put_cell("BNG", 2, "text"), "BNG must be a cell of arrays, not a cell of o"),
    "few norms": (
        lambda variables: variables.update(BNB=variables["BNB"][:8]),
        "BNB must be a cell of 9, not of 8",
    ),
    "few scales": (put("LayerWeights", np.ones((7, 1))), "LayerWeights must be an array of 8, not"),
    "no scales": (put("LayerWeights", "text"), "LayerWeights must be an array of 8, not a char"),
    "scale 0": (
        put("LayerWeights", np.zeros((8, 1))),
        r"LayerWeights\(1\) must be a positive finite number, not 0.0",
    ),
    "scale inf": (put("LayerWeights", np.full((8, 1), np.inf)), r"LayerWeights\(1\) must be a pos"),
    "three moments": (
        put_cell("Moments", 2, np.ones((1, 3))),
        r"Moments\{3\} must be of shape \(C, 2\): mean and standard deviation, not \(1, 3\)",
    ),
    "negative deviation": (
        put_cell("Moments", 2, -np.ones((1, 2))),
        r"Moments\{3\} must be of deviations of at least 0, not -1.0",
    ),
    "a deviation that overflows": (
        put_cell("Moments", 2, np.array([[0.0, 1e30]])),
        r"Moments\{3\} must be finite in its variance",
    ),
    "other scales": (
        put_cell("BNG", 2, np.ones((3, 1))),
        r"BNG\{3\} must be of 1 numbers, as many as Moments\{3\} has channels, not 3",
    ),
    "stride": (
        put("Stride", np.ones((1, 8))),
        r"Stride\(4\) must be 2, not 1",
    ),
    "padding": (put("Padding", np.zeros((1, 8))), r"Padding\(1\) must be 1, not 0"),
    "a flat kernel": (
        put_cell("BinaryWeights", 1, np.zeros((3, 2, 1, 1), np.uint8)),
        r"BinaryWeights\{2\} must be of shape \(K, K, C_in, C_out\), each at least 1, not \(3, 2",
    ),
}


def assert_refused(path: Path, variables: Variables, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(write(path, variables))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("kind", BROKEN_KERAS)
def test_a_broken_keras_file_is_refused_by_name(
    tmp_path: Path, kind: str, tiny: dict[Layout, Checkpoint]
) -> None:
    change, message = BROKEN_KERAS[kind]
    variables = variables_of("keras", tiny["keras"])
    change(variables)
    assert_refused(tmp_path / "net.mat", variables, message)


@pytest.mark.parametrize("kind", BROKEN_MATCONVNET)
def test_a_broken_matconvnet_file_is_refused_by_name(
    tmp_path: Path, kind: str, tiny: dict[Layout, Checkpoint]
) -> None:
    change, message = BROKEN_MATCONVNET[kind]
    variables = variables_of("matconvnet", tiny["matconvnet"])
    change(variables)
    assert_refused(tmp_path / "net.mat", variables, message)


def test_layers_out_of_order_are_refused(tmp_path: Path) -> None:
    """Sorted by name conv2d_10 stands before conv2d_2, which has its shape."""
    variables = variables_of("keras", random_published("keras", depth=14, **TINY))
    by_name(variables)
    assert_refused(tmp_path / "net.mat", variables, "conv2d_2 must stand before conv2d_13")


# -- files changed at random -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound_files(
    tmp_path_factory: pytest.TempPathFactory, tiny: dict[Layout, Checkpoint]
) -> list[bytes]:
    folder = tmp_path_factory.mktemp("sound")
    return [
        write(folder / "net.mat", variables_of(layout, tiny[layout]), compress).read_bytes()
        for layout in LAYOUTS
        for compress in (False, True)
    ]


def changed(
    data: st.DataObject, sound_files: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes overwritten, cut out or doubled, in the file or beneath its compression."""
    content = bytearray(data.draw(st.sampled_from(sound_files)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        count = data.draw(st.integers(1, 16))
        new = data.draw(
            st.one_of(
                st.binary(min_size=count, max_size=count),
                st.sampled_from([b"", b"\xff" * count, bytes(count), bytes(content[at:][:40]) * 2]),
            )
        )
        content[at : at + count] = new
    path = tmp_path_factory.getbasetemp() / "changed.mat"
    path.write_bytes(content)
    with contextlib.suppress(SignumError):  # anything else fails, warnings too
        assert isinstance(mat_networks.read(path), Checkpoint)


@given(data=st.data())
def test_a_changed_file_is_read_or_refused(
    data: st.DataObject, sound_files: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed(data, sound_files, tmp_path_factory)


@pytest.mark.nightly
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_ten_thousand_changed_files(
    data: st.DataObject, sound_files: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed(data, sound_files, tmp_path_factory)


# -- the published files ---------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "padding", "epsilon", "input_relu"),
    [("keras", "keras", 1e-5, False), ("matlab", "matlab", 0.0, True)],
)
def test_the_published_networks_are_read(
    data_folder: Path, name: str, padding: str, epsilon: float, input_relu: bool
) -> None:
    found = load(data_folder / "published" / f"mcdonnell_wrn20-10_cifar10_{name}.mat")
    network = found.network
    assert (network.name, network.classes, network.input) == ("wrn20-10", 10, (3, 32, 32))
    assert (network.padding, network.epsilon, network.input_relu) == (padding, epsilon, input_relu)
    weights = sum(t.size for n, t in found.tensors.items() if n.endswith(".weight"))
    assert weights == 26_737_120
    # His scales are the method's, in both files.
    assert found.tensors["conv0.scale"] == pytest.approx(np.sqrt(2 / 27), rel=1e-7)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["keras", "matlab"])
def test_the_published_networks_answer_right(data_folder: Path, name: str) -> None:
    """The first 32 test images; the author states 96.25 % and 96.18 % of all 10,000."""
    graph = ir.build(load(data_folder / "published" / f"mcdonnell_wrn20-10_cifar10_{name}.mat"))
    data = datasets.load("cifar10", data_folder)
    images, labels = data.test_images[:32], data.test_labels[:32]
    stepped = quantised(graph, 4, data.train_images[:16])
    program = program_of(stepped)
    found = measure(stepped, program, images, labels, models=["float_unquantised", "golden"])
    assert found.float_unquantised is not None and found.golden is not None
    assert found.float_unquantised >= 29 / 32
    assert found.golden >= 29 / 32


@pytest.mark.data
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["keras", "matlab"])
def test_a_published_network_survives_onnx(data_folder: Path, tmp_path: Path, name: str) -> None:
    """Written as float ONNX and read back it lowers to the identical Program, steps and all."""
    file = data_folder / "published" / f"mcdonnell_wrn20-10_cifar10_{name}.mat"
    onnx = tmp_path / "net.onnx"
    assert main(["export", str(file), "--unquantised", "-o", str(onnx)]) == 0
    data = datasets.load("cifar10", data_folder)
    calibration = calibration_of(data)
    programs = [
        program_of(networks.graph_of(networks.load(path)), 4, calibration) for path in (file, onnx)
    ]
    assert len(programs[0].ops) > 50
    assert programs[0] == programs[1]


@pytest.mark.data
@pytest.mark.nightly
@pytest.mark.cocotb
@pytest.mark.parametrize("name", ["keras", "matlab"])
def test_a_published_network_equals_golden_in_rtl(data_folder: Path, name: str, capsys) -> None:
    """One image on the shipped lanes and more memory, every layer of it."""
    file = data_folder / "published" / f"mcdonnell_wrn20-10_cifar10_{name}.mat"
    options = ["--activation-bits", "4", "--dataset", "cifar10", "--data", str(data_folder)]
    assert simulate(["accuracy", str(file), *options, "--images", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"]["rtl"] == 1
    cycles = found["cycles_per_image"]
    assert cycles["simulated"] == pytest.approx(cycles["predicted"], rel=0.005)


@pytest.mark.data
@pytest.mark.nightly
@pytest.mark.parametrize(("name", "published"), [("keras", 9625), ("matlab", 9618)])
def test_the_published_accuracy_is_reached(
    data_folder: Path, tmp_path: Path, name: str, published: int
) -> None:
    """All 10,000 test images: his figure in float, and hardly less in 4-bit activations."""
    graph = ir.build(load(data_folder / "published" / f"mcdonnell_wrn20-10_cifar10_{name}.mat"))
    data = datasets.load("cifar10", data_folder)
    images, labels = data.test_images, data.test_labels
    calibration = calibration_of(data)
    stepped = quantised(graph, 4, calibration)
    program = program_of(stepped, None, calibration)
    models = ["float_unquantised", "golden"]
    found = measure(stepped, program, images, labels, models=models, folder=tmp_path)
    assert found.float_unquantised == pytest.approx(published / 10_000, abs=0.0003)
    assert found.golden is not None and found.golden >= published / 10_000 - 0.002
