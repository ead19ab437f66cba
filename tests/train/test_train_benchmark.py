"""The benchmark: that the plain formulation computes the same, and what is printed."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from compiler.errors import UsageError
from train.__main__ import main
from train.benchmark import PlainConvolution, PlainNetwork, benchmark
from train.network import Architecture, Convolution, Network
from train.recipe import Execution
from train.team import Team


def test_the_plain_formulation_is_the_same_network() -> None:
    torch.manual_seed(2)
    architecture = Architecture(14, 0.5, 10, (3, 16, 16))
    ours, plain = Network(architecture).double(), PlainNetwork(architecture).double()
    kinds = [(ours, Convolution), (plain, PlainConvolution)]
    ours_, plain_ = ([m for m in net.modules() if isinstance(m, kind)] for net, kind in kinds)
    assert len(ours_) == len(plain_) == 14
    for a, b in zip(ours_, plain_, strict=True):
        b.weight.data.copy_(a.weight.data)
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(6)
    scores = [ours(images), plain(images)]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-9, atol=1e-9)
    for given in scores:
        F.cross_entropy(given, labels).backward()
    for a, b in zip(ours_, plain_, strict=True):
        torch.testing.assert_close(b.weight.grad, a.weight.grad, rtol=1e-7, atol=1e-10)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--nets", "8-0.25", "8-0.5", "--batch", "4", "--seconds", "0", "--device", "cpu"]
    assert main(["benchmark", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["net"] for s in found["speed"]] == ["8-0.25", "8-0.5"]
    for speed in found["speed"]:
        assert speed["ratio"] == pytest.approx(speed["step"] / speed["plain"])
        assert min(speed["step"], speed["epoch"], speed["plain"]) > 0
    assert found["machine"]["processor"] and found["execution"]["precision"] == "float32"
    assert main(["benchmark", *flags]) == 0
    out = capsys.readouterr().out
    assert "| net | weights | step | with loading | plain | ratio |" in out
    weights = Architecture(8, 0.25, 10, (3, 32, 32)).num_weights
    assert f"| 8-0.25 | {weights:,} | " in out


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--batch must be at least 2, not 1"):
        benchmark([], Team(torch.device("cpu")), Execution(), 1, 0.0)
