"""The Program's rules and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from compiler.arith import Pads
from compiler.errors import ProgramError
from compiler.program import Add, Conv, Op, Pool, Program, Quantise, SumPixels, Tensor, reads
from tests.support.networks import random_program


@pytest.fixture(scope="module")
def program() -> Program:
    return random_program(0)


def rebuilt(program: Program, **changes: Any) -> Program:
    fields = {
        name: getattr(program, name)
        for name in ("network", "activation_bits", "tensors", "ops", "labels")
    }
    return Program(**(fields | changes))


@pytest.mark.parametrize(
    "options",
    [{}, {"channel_scales": True}, {"learned": True, "padding": "keras"}, {"skip": False}],
)
def test_json_gives_the_same_program_and_the_same_bytes(options: dict[str, Any]) -> None:
    program = random_program(1, **options)
    text = program.to_json()
    assert Program.from_json(text) == program
    assert Program.from_json(text).to_json() == text


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(version=2),
        lambda d: d.update(format="other"),
        lambda d: d.pop("ops"),
        lambda d: d["ops"][0].update(op="Multiply"),
        lambda d: d["ops"][1].update(weights="not base 64!"),
        lambda d: d["tensors"][0].update(colour="red"),
        lambda d: d["tensors"][1].update(zero=300),
    ],
)
def test_other_json_is_refused(program: Program, change: Callable[[Any], Any]) -> None:
    document = json.loads(program.to_json())
    change(document)
    with pytest.raises(ProgramError):
        Program.from_json(json.dumps(document))
    with pytest.raises(ProgramError, match="file must be a Program"):
        Program.from_json("[1, 2")


def first(program: Program, kind: type[Op]) -> int:
    return next(i for i, op in enumerate(program.ops) if isinstance(op, kind))


def with_op(program: Program, kind: type[Op], change: Callable[[Any], Op]) -> Program:
    ops = list(program.ops)
    i = first(program, kind)
    ops[i] = change(ops[i])
    return rebuilt(program, ops=tuple(ops))


def with_output(program: Program, writer: type[Op], /, **changes: Any) -> Program:
    """Change the tensor that the first operation of a kind writes."""
    name = program.ops[first(program, writer)].output
    changed = (replace(t, **changes) if t.name == name else t for t in program.tensors)
    return rebuilt(program, tensors=tuple(changed))


def staircase(**changes: Any) -> Callable[[Quantise], Quantise]:
    return lambda op: replace(op, staircase=replace(op.staircase, **changes))


MUTANTS: dict[str, Callable[[Program], Program]] = {
    "activation_bits must be 2 to 8": lambda p: rebuilt(p, activation_bits=9),
    "labels must be 5": lambda p: rebuilt(p, labels=("a",)),
    "tensor names must be unique": lambda p: rebuilt(p, tensors=(p.tensors[0],) * len(p.tensors)),
    "every tensor but the image": lambda p: rebuilt(p, ops=p.ops[:-1]),
    "first tensor must be the image": lambda p: rebuilt(
        p, tensors=(replace(p.image, kind="sum"), *p.tensors[1:])
    ),
    "output must be": lambda p: rebuilt(p, ops=(p.ops[1], p.ops[0], *p.ops[2:])),
    "must be written before": lambda p: with_op(
        p, Conv, lambda op: replace(op, source="head.relu")
    ),
    "must have a shape and a range": lambda p: with_output(p, Conv, low=1, high=0),
    "zero must be in range": lambda p: with_output(p, Quantise, zero=256),
    "scores: zero must be in range": lambda p: rebuilt(
        p, tensors=(*p.tensors[:-1], replace(p.scores, zero=-1))
    ),
    "shapes must agree": lambda p: with_output(p, Quantise, height=9),
    "staircase must have 3 channels": lambda p: with_op(p, Quantise, staircase(offsets=(1,))),
    "divisors must be at least 1": lambda p: with_op(p, Quantise, staircase(divisors=(0, 1, 1))),
    "gains must be": lambda p: with_op(p, Quantise, staircase(gains=(2, 1, 1))),
    "fraction_bits must be 0 to 12": lambda p: with_op(p, Quantise, staircase(fraction_bits=13)),
    "range must be the staircase's": lambda p: with_op(p, Quantise, staircase(bits=7)),
    "kernel and stride": lambda p: with_op(p, Conv, lambda op: replace(op, stride=0)),
    "weights must be 108 bits": lambda p: with_op(
        p, Conv, lambda op: replace(op, weights=op.weights[1:])
    ),
    "output size must be": lambda p: with_op(
        p, Conv, lambda op: replace(op, pads=Pads(0, 0, 0, 0))
    ),
    "range must be the exact bound": lambda p: with_output(p, Conv, high=1),
    "output kind": lambda p: with_output(p, Conv, kind="sum"),
    "source kind": lambda p: with_op(p, Conv, lambda op: replace(op, source="image")),
    "kinds": lambda p: with_output(p, SumPixels, kind="accumulator"),
    "shift must be 0 beside a division": lambda p: with_op(
        p,
        Add,
        lambda op: replace(op, shift=1, division=p.ops[0].staircase),  # type: ignore[union-attr]
    ),
    "conv0.r: staircase must have 4 channels": lambda p: with_op(
        p,
        Add,
        lambda op: replace(op, shift=0, division=p.ops[0].staircase),  # type: ignore[union-attr]
    ),
    "range must be that of a two's complement width": lambda p: with_output(p, Add, high=1000),
    "channels must not shrink": lambda p: with_output(p, Pool, channels=1),
    "right_shift must be at least 0": lambda p: with_op(
        p, Pool, lambda op: replace(op, right_shift=-1)
    ),
    "pool: range must be that of a two's complement": lambda p: with_output(p, Pool, high=1000),
}


@pytest.mark.parametrize("message", MUTANTS)
def test_verify_catches_a_mutant_by_name(program: Program, message: str) -> None:
    assert program.verify() is program
    with pytest.raises(ProgramError, match=message):
        MUTANTS[message](program).verify()


def test_every_operation_reads_what_exists(program: Program) -> None:
    names = {tensor.name for tensor in program.tensors}
    assert all(set(reads(op)) <= names for op in program.ops)
    assert any(len(reads(op)) == 2 for op in program.ops)


def test_tensor_widths() -> None:
    assert Tensor("a", "activation", 1, 1, 1, 0, 15).bits == 4
    assert Tensor("r", "residual", 1, 1, 1, -128, 127).bits == 8
    assert Tensor("acc", "accumulator", 1, 1, 1, -128, 128).bits == 9


def test_additions_of_a_small_network_by_hand() -> None:
    program = random_program(0, width=1, shape=(3, 32, 32), classes=10)
    stage = [2 * 16 * 16 * 1024, (16 * 32 + 32 * 32) * 256, (32 * 64 + 64 * 64) * 64]
    assert program.addsub_per_image == 9 * (3 * 16 * 1024 + sum(stage)) + 640
    assert program.weight_bits == 9 * (3 * 16 + 512 + 1536 + 6144) + 640
