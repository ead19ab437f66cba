"""How a run is computed and watched: precision, memory, compiler, time, records, TensorBoard."""

from __future__ import annotations

import io
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from compiler.datasets import Dataset
from compiler.errors import UsageError
from tests.train.small import job
from train import folders
from train.data import Augmentation, splits
from train.export import read_network
from train.loop import Progress, Runner, accuracy, crops_accuracy, train
from train.network import Architecture, Network
from train.recipe import Execution
from train.record import git_commit, record_session
from train.team import Team
from train.watch import line, watching

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_images_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.loop.MOMENTS_IMAGES", 100)
    monkeypatch.setattr("train.loop.CALIBRATION_BATCHES", 1)


def losses(tiny: Dataset, out: Path, **changes: Any) -> list[float]:
    found = []
    watch = Progress(epoch=lambda record: found.append(record["train_loss"]))
    train(job(**{"epochs": 2} | changes), splits(tiny, CPU), out, watch)
    return found


# -- precision, memory, compiler -------------------------------------------------------------------


def test_bf16_is_near_and_its_weights_stay_float32(tiny: Dataset, tmp_path: Path) -> None:
    exact = losses(tiny, tmp_path / "a")
    rounded = losses(tiny, tmp_path / "b", execution=Execution("bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)
    state = torch.load(tmp_path / "b/state.pt")["network"]
    assert {v.dtype for n, v in state.items() if n.endswith("weight")} == {torch.float32}
    assert state["head.bn1.running_mean"].dtype == torch.float32


def test_bf16_is_for_steps_alone(tiny: Dataset) -> None:
    runner = Runner(job(execution=Execution("bf16")), Team(CPU))
    types_: list[torch.dtype] = []
    layer = runner.network.get_submodule("stage2.block1.conv1")
    layer.register_forward_hook(lambda m, i, o: types_.append(o.dtype))
    training, test = splits(tiny, CPU)
    runner.step(training.images[:8], training.labels[:8])
    accuracy(runner.network, test)
    assert types_ == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("channels_last", [True, False])
def test_maps_lie_as_asked(channels_last: bool, tiny: Dataset, tmp_path: Path) -> None:
    execution = Execution(channels_last=channels_last)
    runner = Runner(job(execution=execution), Team(CPU))
    seen: list[bool] = []
    for module in runner.network.modules():
        if type(module).__name__ == "Block":
            module.register_forward_hook(
                lambda m, i, o: seen.append(o.is_contiguous(memory_format=torch.channels_last))
            )
    runner.network(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    assert seen == [channels_last] * 3
    # Float activations: where sums differ in their order, a quantiser may round the other way.
    got = losses(tiny, tmp_path / "a", execution=execution, activation_bits=None)
    want = losses(tiny, tmp_path / "b", activation_bits=None)
    assert got == pytest.approx(want, rel=1e-4)


def compiled_losses(tiny: Dataset, out: Path, **changes: Any) -> list[float]:
    torch.compiler.reset()
    try:
        return losses(tiny, out, execution=Execution(compile=True), **changes)
    finally:
        torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_compiling_changes_nothing_but_rounding(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by the compiler, with a stand-in for its slow code generator."""
    graphs: list[int] = []
    real = torch.compile

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph

    monkeypatch.setattr(torch, "compile", lambda m, **k: real(m, backend=backend, **k))
    assert compiled_losses(tiny, tmp_path / "a") == pytest.approx(losses(tiny, tmp_path / "b"))
    assert len(graphs) == 2  # whole, once in float and once quantised: nothing broke out of it
    assert graphs[0] > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own, on machines it does not know
def test_compiled_for_this_machine(tiny: Dataset, tmp_path: Path) -> None:
    expected = losses(tiny, tmp_path / "b")
    assert compiled_losses(tiny, tmp_path / "a") == pytest.approx(expected, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(compiled: bool, tiny: Dataset, tmp_path: Path) -> None:
    expected = losses(tiny, tmp_path / "cpu", augmentation=Augmentation())
    gpu = Team(torch.device("cuda"))
    found: list[float] = []
    watch = Progress(epoch=lambda record: found.append(record["train_loss"]))
    given = job(epochs=2, augmentation=Augmentation(), execution=Execution("bf16", compiled))
    train(given, splits(tiny, gpu.device), tmp_path / "gpu", watch, gpu)
    assert found == pytest.approx(expected, rel=0.2)  # another order of the images


@pytest.mark.parametrize("wrong", [{"precision": "int8"}])
def test_illegal_execution(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be one of float32, bf16"):
        Execution(**wrong)


# -- time ------------------------------------------------------------------------------------------


def test_a_session_stops_in_time_and_the_next_goes_on(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("train.loop.time.monotonic", lambda: now[0])

    def step(_: float) -> None:
        now[0] += 1.0  # 4 steps an epoch of 25 images each: 4 seconds

    data = splits(tiny, CPU)
    first = train(job(), data, tmp_path / "a", Progress(step=step), seconds=11.0)
    assert first["epoch"] == 2 and first["seconds"] == 4.0
    second = train(job(), data, tmp_path / "a", Progress(step=step), seconds=0.0)
    assert second["epoch"] == 3  # every session gets on
    train(job(), data, tmp_path / "a", Progress(step=step), seconds=100.0)
    train(job(), data, tmp_path / "b", Progress())
    a, b = (torch.load(tmp_path / name / "state.pt")["network"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    sessions = json.loads((tmp_path / "a/run.json").read_text())["sessions"]
    assert [s["after_epoch"] for s in sessions] == [0, 2, 3]


def test_lines_say_how_long_it_will_take() -> None:
    record = {
        "epoch": 3, "train_loss": 1.5, "train_accuracy": 0.5, "test_accuracy": 0.25,
        "seconds": 70.0,
    }  # fmt: skip
    assert line(record, 62).endswith("test 25.00%  70.0 s  1:08:50 left")
    last = line(record | {"epoch": 62, "deployed_accuracy": 0.26}, 62)
    assert last.endswith("70.0 s  checkpoint: 26.00%")


# -- records ---------------------------------------------------------------------------------------


def test_run_json_says_what_ran_where(tmp_path: Path) -> None:
    record_session(tmp_path, job(), 0, CPU, 1)
    record_session(tmp_path, job(), 3, CPU, 1)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["job"] == job().described()
    assert found["seed"] == 3
    assert [s["after_epoch"] for s in found["sessions"]] == [0, 3]
    session = found["sessions"][1]
    assert session["versions"]["torch"] == torch.__version__
    assert session["machine"]["threads"] == torch.get_num_threads()
    assert session["machine"]["processor"] and "gpu" not in session["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", session["started"])
    assert session["commit"] == git_commit()


def test_commit_is_a_digest_or_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", git_commit())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown"


def test_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            written.append((folder,))

        def add_scalar(self, *values: Any) -> None:
            written.append(values)

        def flush(self) -> None: ...

        def close(self) -> None:
            written.append(("closed",))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    record = {
        "epoch": 2, "train_loss": 1.5, "train_accuracy": 0.5, "test_accuracy": 0.25,
        "seconds": 7.0,
    }  # fmt: skip
    with watching(job(), Console(file=io.StringIO()), tmp_path / "board") as progress:
        progress.epoch(record)
    assert written[0] == (str(tmp_path / "board"),) and written[-1] == ("closed",)
    assert set(written[1:-1]) == {(k, v, 2) for k, v in record.items() if k != "epoch"}


def test_tensorboard_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(UsageError, match="TensorBoard, which is not installed"),
        watching(job(), Console(file=io.StringIO()), tmp_path),
    ):
        pass


# -- every form is a checkpoint --------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        {"batch_norm": "none", "activation_bits": None},
        {"batch_norm": "none", "activation_bits": 3},
        {"family": "wrn-imagenet", "depth": 10, "width": 0.0625},
    ],
    ids=str,
)
def test_rare_forms_train_and_are_deployed(
    form: dict[str, Any], tiny: Dataset, tmp_path: Path
) -> None:
    data = splits(tiny, CPU)
    last = train(job(epochs=2, **form), data, tmp_path, Progress())
    network = read_network(tmp_path / "checkpoint.pt")
    assert accuracy(network, data[1])["accuracy"] == last["deployed_accuracy"]
    assert (network.steps is None) == (form.get("activation_bits", 4) is None)


@pytest.mark.parametrize("weights", ["32bit", "bwn-channel", "bwn-layer"])
def test_every_form_of_weights_trains_and_is_deployed(
    weights: str, tiny: Dataset, tmp_path: Path
) -> None:
    data = splits(tiny, CPU)
    plain = {"epochs": 6, "weights": weights, "augmentation": Augmentation()}
    last = train(job(**plain), data, tmp_path, Progress())
    assert last["deployed_accuracy"] >= 0.9
    network = read_network(tmp_path / "checkpoint.pt")
    assert accuracy(network, data[1])["accuracy"] == last["deployed_accuracy"]


# -- accuracies ------------------------------------------------------------------------------------


class Fixed(Network):
    """Answers each picture of brightness v with the score -(v - k)**2 for class k."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brightness = x.float().amax((1, 2, 3))[:, None]
        return -((brightness - torch.arange(self.architecture.classes)) ** 2)


def fixed(classes: int) -> Network:
    return Fixed(Architecture(8, 0.25, classes, (1, 8, 8)))


def pictures(values: list[int], labels: list[int]) -> Any:
    images = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    return splits_of(images.contiguous(), torch.tensor(labels))


def splits_of(images: torch.Tensor, labels: torch.Tensor) -> Any:
    from train.data import Split

    return Split(images, labels)


def test_top_five() -> None:
    part = pictures([20, 20, 20, 20, 20], [20, 21, 22, 23, 17])
    assert accuracy(fixed(40), part) == {"accuracy": 0.2, "top5_accuracy": 0.6}
    assert accuracy(fixed(10), pictures([3, 4], [3, 3])) == {"accuracy": 0.5}


def test_of_equal_scores_the_lowest_class_is_first() -> None:
    class Equal(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), self.architecture.classes)

    network = Equal(Architecture(8, 0.25, 20, (1, 8, 8)))
    part = pictures([0] * 20, list(range(20)))
    assert accuracy(network, part) == {"accuracy": 0.05, "top5_accuracy": 0.25}


def test_25_crops_average_the_softmax() -> None:
    class Crops:
        def __len__(self) -> int:
            return 1

        def crops(self, **_: Any) -> Any:
            # 24 crops of brightness 3 and one of 9, where the scores are far higher but one-sided
            images = torch.full((1, folders.CROPS, 1, 8, 8), 3, dtype=torch.uint8)
            images[0, 0] = 9
            yield images, torch.tensor([3])

    class Loud(Fixed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = super().forward(x)
            return torch.where(x.amax((1, 2, 3))[:, None] == 9, scores * 1000, scores)

    network = Loud(Architecture(8, 0.25, 12, (1, 8, 8)))
    found = crops_accuracy(network, Crops())  # type: ignore[arg-type]
    assert found["accuracy"] == 1.0  # the mean of the scores would be ruled by the loud crop
