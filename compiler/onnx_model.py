"""An ONNX model while it is being written: names, constants, and the checks before it leaves.

What is written is ONNX's own operator set at version `OPSET`, no other domain, so any runtime that
knows the standard runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

from compiler.arith import Pads

OPSET = 17
"""Version of the operators: old enough for runtimes of 2022, and it has every one we need."""

IR_VERSION = 8
"""Version of the file format that came with `OPSET`."""

BATCH = "N"
"""Name of the first dimension of every value: how many images there are is left open."""

Shape = tuple[int, ...]


@dataclass(slots=True)
class Model:
    """A graph under construction; every method returns the name of the value it makes.

    Attributes
    ----------
    name : str
        Of the network, for people.
    taken : set of str
        Names that no helper value may have: those that its maker is going to give.
    """

    name: str
    taken: set[str] = field(default_factory=set)
    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _declared: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """A constant tensor of the array's type."""
        name = self.free(name)
        self._constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def number(self, value: float, dtype: DTypeLike) -> str:
        """A scalar constant; equal ones are one."""
        array = np.array(value, dtype)
        name = f"{array.dtype}:{array.item()!r}"
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def vector(self, values: Iterable[int]) -> str:
        """A list of int64, as axes, pads and shapes are given; equal ones are one."""
        array = np.array(list(values), np.int64)
        name = f"int64:{array.tolist()}"
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def node(
        self, operator: str, inputs: Iterable[str], output: str = "", **attributes: Any
    ) -> str:
        """An operator with one output, named after where it comes from unless told otherwise."""
        inputs = list(inputs)
        output = output or self.free(f"{inputs[0]}/{operator}")
        self.taken.add(output)
        self._nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def declare(self, name: str, dtype: DTypeLike, shape: Shape) -> None:
        """State type and shape (without the batch) of a value."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._declared[name] = helper.make_tensor_value_info(name, kind, [BATCH, *shape])

    def finish(
        self, image: str, outputs: Iterable[str], metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """The whole model; `image` and `outputs` are declared values.

        Raises
        ------
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError
            The model breaks a rule of the standard, or a declaration contradicts an operator:
            a fault of the writer, not of its user.
        """
        outputs = list(outputs)
        between = [v for name, v in self._declared.items() if name not in (image, *outputs)]
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [self._declared[image]],
            [self._declared[name] for name in outputs],
            list(self._constants.values()),
            value_info=between,
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="signum"
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model

    def free(self, name: str) -> str:
        """``name``, or with a number behind it where that is taken."""
        found, count = name, 1
        while found in self.taken or found in self._constants:
            count += 1
            found = f"{name}{count}"
        self.taken.add(found)
        return found


def onnx_pads(pads: Pads) -> list[int]:
    """Pads in ONNX's order: those before all axes, then those after."""
    return [pads.top, pads.left, pads.bottom, pads.right]


def nearest_decimal(value: float) -> float:
    """The number that a float32 stands for: the shortest decimal that gives it.

    ONNX keeps an operator's own numbers in float32 and no finer: an epsilon of 1e-5 is stored as
    9.99999974737875e-06, and this makes 1e-5 of it again.
    """
    return float(str(np.float32(value)))
