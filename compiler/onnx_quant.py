"""Quantisers in ONNX files: QONNX's operators, the standard's pairs, and rounding spelled out.

A quantiser here is ``clip(round(x / step), low, high) * step``, ``high - low + 1`` a power of two.
Ties go upwards in this project and to even numbers in ONNX's Round, QuantizeLinear and Quant: a
value that lies exactly between two steps may come out one step apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.onnx_file import Node
from compiler.onnx_fold import quant_range
from compiler.onnx_view import Refused

Array = NDArray[Any]

CHAIN = re.compile("CS(?:HF|R)S|S(?:CHF|CR|HFC|RC)S")
"""Rounding spelled out, a letter an operator (see `_letter`): x/step, round, clip, times step. The
clip may stand anywhere before the last."""

INVERSE = 1e-6
"""What a chain multiplies by before rounding must be the inverse of what it does behind, so
nearly: both are in single precision."""


LARGEST = 1e18
"""Bound of a network's numbers and their inverses: the squares of these are still floats."""

ENDS = 1e-3
"""Ends of a clip must be whole numbers of steps, so nearly."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What a quantiser has: multiples ``low .. high`` of ``step``.

    Raises
    ------
    Refused
        2 to 8 bits cannot number them, 0 is none of them, or the step is no positive number.
    """

    step: float
    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 / LARGEST < self.step < LARGEST:
            raise Refused(f"its step must be a positive number, not {self.step:g}")
        if self.high - self.low + 1 not in {1 << bits for bits in range(2, 9)}:
            levels = self.high - self.low + 1
            raise Refused(f"it must have 2**2 .. 2**8 levels, not {levels:,}")
        if not self.low <= 0 <= self.high:
            raise Refused(f"0 must be one of its levels, not {self.low} .. {self.high} alone")

    @property
    def bits(self) -> int:
        """Width of the unsigned integer that numbers them."""
        return (self.high - self.low).bit_length()


def number(value: Any, what: str) -> float:
    """The one number that a constant is."""
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise Refused(f"its {what} must be one constant number")
    return float(value.reshape(()))


def quant_levels(node: Node, scale: Any, zero: Any, bits: Any) -> Levels:
    """Of QONNX's Quant (or IntQuant): ``clip(round(x/scale + zero), low, high) - zero``."""
    rounding = str(node.attributes.get("rounding_mode", "ROUND")).upper()
    if rounding not in ("ROUND", "HALF_EVEN", "HALF_UP"):
        raise Refused(f"it must round to nearest, not {rounding}")
    low, high = quant_range(node, number(bits, "bit width"))
    shift = _whole(number(zero, "zero point"), "zero point")
    return Levels(number(scale, "scale"), low - shift, high - shift)


def quantize_linear_levels(scale: Any, zero: Any) -> Levels:
    """Of a QuantizeLinear to 8 bits and the DequantizeLinear behind it."""
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    if kind not in (np.uint8, np.int8):
        raise Refused(f"it must quantise to 8 bits, not to {kind}")
    shift = 0 if zero is None else int(number(zero, "zero point"))
    ends = np.iinfo(kind)
    return Levels(number(scale, "scale"), int(ends.min) - shift, int(ends.max) - shift)


def chain_levels(nodes: Sequence[Node], constants: Mapping[str, Any]) -> tuple[Levels, int] | None:
    """A quantiser spelled out by the first of ``nodes``, each of which alone reads the one before.

    Returns its levels and how many nodes it takes; None where there is none.
    """
    letters = "".join(_letter(node, constants) for node in nodes)
    found = CHAIN.match(letters)
    if found is None:
        return None
    inside = list(zip(found.group(), nodes, strict=False))
    before, behind = (_factor(n, constants) for letter, n in inside if letter == "S")
    if abs(before * behind - 1) > INVERSE:
        return None
    clips = [ends for letter, n in inside if letter == "C" and (ends := _ends(n, constants))]
    low, high = clips[0]
    if found.group().startswith("C"):  # of x itself
        low, high = low * before, high * before
    ends = (round(low), round(high)) if np.isfinite([low, high]).all() else (0, 0)
    if abs(low - ends[0]) > ENDS or abs(high - ends[1]) > ENDS:
        return None
    return Levels(behind, *ends), len(inside)


def _letter(node: Node, constants: Mapping[str, Any]) -> str:
    """C clip, S scale, H plus a half, F floor, R round; anything else ends a chain."""
    match node.operator:
        case "Floor":
            return "F"
        case "Round":
            return "R"
        case "Clip":
            return "C" if _ends(node, constants) is not None else "."
        case "Mul" | "Div":
            return "S" if _factor(node, constants) else "."
        case "Add":
            return "H" if 0.5 in (_scalar(name, constants) for name in node.inputs) else "."
    return "."


def _scalar(name: str, constants: Mapping[str, Any]) -> float | None:
    value = constants.get(name)
    if not isinstance(value, np.ndarray) or value.size != 1:
        return None
    return float(value.reshape(()))


def _factor(node: Node, constants: Mapping[str, Any]) -> float:
    """What a Mul or Div by a constant multiplies by; 0 where there is none."""
    if len(node.inputs) != 2:
        return 0.0
    a, b = (_scalar(name, constants) for name in node.inputs)
    if node.operator == "Div":
        return 1 / b if a is None and b else 0.0
    return a or b or 0.0


def _ends(node: Node, constants: Mapping[str, Any]) -> tuple[float, float] | None:
    """Both ends of a Clip."""
    if len(node.inputs) != 3:
        return None
    low, high = (_scalar(name, constants) for name in node.inputs[1:])
    return None if low is None or high is None else (low, high)


def _whole(value: float, what: str) -> int:
    if not np.isfinite(value) or value != int(value):
        raise Refused(f"its {what} must be a whole number, not {value:g}")
    return int(value)
