"""Network to checkpoint and back; docs/checkpoint.md is the contract.

`checkpoint_of` and `network_of` are inverse but for what one bit forgets: of a full-precision
weight only its sign is kept, so `network_of` returns ``scale * sign``. A binary weight network
comes back as a 1-bit one with the scales that it ended with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compiler.arith import sign
from compiler.checkpoint import Checkpoint, Tensors, load, validate
from compiler.checkpoint import Network as Description
from compiler.checkpoint import Quantiser as Steps
from compiler.steps import verify_alignment
from train.network import Architecture, Convolution, Network


def checkpoint_of(network: Network, training: Mapping[str, Any]) -> Checkpoint:
    """Describe a network as it stands: its signs, its running moments, its steps.

    ``training`` is free text and numbers for the reader of the file. Raises `CheckpointError` for
    values that are not finite, and for steps that break the alignment rule.
    """
    description = network.architecture.description
    tensors: Tensors = {}
    for name, layer in network.named_modules():
        if isinstance(layer, Convolution):
            tensors |= {f"{name}.{key}": value for key, value in _weights(layer).items()}
        elif isinstance(layer, nn.BatchNorm2d):
            tensors |= {f"{name}.{key}": _array(value) for key, value in _moments(layer).items()}
    steps, bits = network.steps, network.architecture.activation_bits
    quantiser = None
    if steps is not None and bits is not None:
        verify_alignment(steps, network.bounds)
        quantiser = Steps(bits, steps)
    return validate(Checkpoint(description, tensors, quantiser, dict(training)))


def network_of(checkpoint: Checkpoint) -> Network:
    """The network that a checkpoint describes, in evaluation mode."""
    quantiser = checkpoint.quantiser
    network = Network(
        Architecture(
            **{f.name: getattr(checkpoint.network, f.name) for f in _SHARED_FIELDS},
            activation_bits=None if quantiser is None else quantiser.activation_bits,
        )
    )
    for name, layer in network.named_modules():
        if isinstance(layer, Convolution):
            _set_weights(layer, name, checkpoint.tensors)
        elif isinstance(layer, nn.BatchNorm2d):
            for key, value in _moments(layer).items():
                value.data.copy_(torch.from_numpy(checkpoint.tensors[f"{name}.{key}"]))
    network.steps = None if quantiser is None else dict(quantiser.steps)
    return network.eval()


def read_network(path: Path) -> Network:
    """The network of any file that `compiler.checkpoint.load` reads, in evaluation mode."""
    return network_of(load(path))


_SHARED_FIELDS = fields(Description)


def _weights(layer: Convolution) -> Tensors:
    weight = _array(layer.weight)
    scale = layer.current_scale()
    if scale is None:
        return {"weight": weight}
    if isinstance(scale, Tensor):
        return {"weight": sign(weight), "scale": scale.cpu().double().numpy()}
    return {"weight": sign(weight), "scale": np.array(scale, dtype=np.float64)}


def _set_weights(layer: Convolution, name: str, tensors: Tensors) -> None:
    """Take over the weights, and the scale even where it is not the paper's.

    One that is not is kept as a tensor: it belongs to a network whose steps were not aligned.
    """
    weight = torch.from_numpy(tensors[f"{name}.weight"]).float()
    if layer.scale is not None:
        scale = torch.from_numpy(tensors[f"{name}.scale"])
        if scale.ndim or float(scale) != layer.scale:
            layer.scale = scale
        weight = weight * scale.float().reshape(-1, 1, 1, 1)
    layer.weight.data.copy_(weight)


def _moments(layer: nn.BatchNorm2d) -> dict[str, Tensor]:
    """The tensors of a batch norm by their names in a checkpoint."""
    found = {"mean": layer.running_mean, "variance": layer.running_var}
    if layer.affine:
        found |= {"gamma": layer.weight, "beta": layer.bias}
    return {key: value for key, value in found.items() if value is not None}


def _array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A contiguous float32 copy on the host."""
    array: np.ndarray[Any, np.dtype[np.float32]] = (
        tensor.detach().cpu().float().clone(memory_format=torch.contiguous_format).numpy()
    )
    return array
