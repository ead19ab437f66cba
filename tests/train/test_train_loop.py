"""The run: schedule, exact resume, moments, results, command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler.checkpoint import load
from compiler.datasets import Dataset
from compiler.errors import CheckpointError, DataError, UsageError
from compiler.steps import verify_alignment
from tests.conftest import ROOT
from tests.train.small import job
from train import datasets
from train.__main__ import main
from train.data import Augmentation, splits
from train.loop import Progress, deploy, recompute_moments, train
from train.network import Architecture, Network
from train.quantiser import STEP_REACH
from train.recipe import Execution, Job, Recipe, cycle_of, ends_cycle, learning_rate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_images_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.loop.MOMENTS_IMAGES", 100)
    monkeypatch.setattr("train.loop.CALIBRATION_BATCHES", 1)


# -- schedule --------------------------------------------------------------------------------------


def test_cycles_double_and_restart() -> None:
    starts = [0, 2, 6, 14, 30, 62, 126, 254]
    for start, end in pairwise(starts):
        assert cycle_of(start, 2) == cycle_of(end - 1, 2) == (start, end - start)


@pytest.mark.parametrize(
    ("epochs", "rate"),
    [
        (0, 0.1),
        (0.5, 1e-4 + 0.0999 * (1 + math.sqrt(0.5)) / 2),
        (1, 0.05005),
        (2 - 1e-9, 1e-4),
        (2, 0.1),
        (4, 0.05005),
        (6, 0.1),
        (10, 0.05005),
        (126, 0.1),
        (190, 0.05005),
        (254 - 1e-9, 1e-4),
    ],
)
def test_learning_rate(epochs: float, rate: float) -> None:
    assert learning_rate(epochs, Recipe(epochs=254)) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(
    ("epochs", "rate"),
    [(0, 0.1), (84.99, 0.1), (85, 0.01), (169.99, 0.01), (170, 0.001), (253.9, 0.001)],
)
def test_learning_rate_in_steps(epochs: float, rate: float) -> None:
    assert learning_rate(epochs, Recipe(254, schedule="steps")) == pytest.approx(rate)


def test_what_is_kept_after_which_epoch() -> None:
    restarts, steps = Recipe(epochs=20), Recipe(epochs=20, schedule="steps")
    assert [n for n in range(1, 21) if ends_cycle(n, restarts)] == [2, 6, 14, 20]
    assert [n for n in range(1, 21) if ends_cycle(n, steps)] == [20]


def test_every_step_has_its_rate(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    real = torch.optim.SGD.step

    def record(self: torch.optim.SGD, *rest: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    train(job(epochs=2, batch=30), splits(tiny, CPU), tmp_path, Progress())
    expected = [1e-4 + 0.0999 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"final_rate": 1.0},
        {"quantise_from": 2},
        {"schedule": "linear"},
    ],
)
def test_illegal_recipes(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be"):
        Recipe(**({"epochs": 2} | wrong))


# -- moments ---------------------------------------------------------------------------------------


def test_moments_are_the_average_of_the_batches_own() -> None:
    network = Network(Architecture(8, 1, 10, (2, 6, 6)))
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (n, 2, 6, 6)).astype(np.uint8) for n in (10, 10, 30)]
    recompute_moments(network, [torch.from_numpy(batch) for batch in batches])
    bn = network.input.bn
    means = [batch.mean((0, 2, 3)) for batch in batches]
    variances = [batch.astype(float).var((0, 2, 3), ddof=1) for batch in batches]
    np.testing.assert_allclose(bn.running_mean, np.mean(means, axis=0), rtol=1e-5)
    np.testing.assert_allclose(bn.running_var, np.mean(variances, axis=0), rtol=1e-5)
    assert not network.training
    assert bn.momentum == 0.1


def test_moments_are_those_behind_the_quantisers() -> None:
    torch.manual_seed(0)
    network = Network(Architecture(8, 1, 10, (1, 6, 6), activation_bits=2))
    batch = torch.randint(256, (40, 1, 6, 6), dtype=torch.uint8)
    network.steps = dict.fromkeys(
        [n for n, m in network.named_modules() if hasattr(m, "step")], 0.7
    )
    seen = []
    network.head.bn1.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    recompute_moments(network, [batch])
    torch.testing.assert_close(network.head.bn1.running_mean, seen[0].mean((0, 2, 3)))
    quantised = network.head.bn1.running_mean.clone()
    network.steps = None
    recompute_moments(network, [batch])
    assert not torch.allclose(quantised, network.head.bn1.running_mean, atol=1e-2)


def test_deploying_leaves_the_network_alone(tiny: Dataset, tmp_path: Path) -> None:
    network = Network(job().architecture)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    data = splits(tiny, CPU)
    deploy(job(), network, data, tmp_path, {"epoch": 1})
    assert_same(dict(network.state_dict()), before)
    exported = load(tmp_path / "checkpoint.pt").tensors["input.bn.mean"]
    assert not np.array_equal(exported, before["input.bn.running_mean"].numpy())


def test_deployed_moments_are_of_the_augmented_training_set(tiny: Dataset, tmp_path: Path) -> None:
    """All batches of an epoch as training shows them, by hand, for the input's batch norm."""
    training, _ = splits(tiny, CPU)
    deploy(job(), Network(job().architecture), splits(tiny, CPU), tmp_path, {"epoch": 1})
    generator = torch.Generator().manual_seed(3)
    shown = list(training.training_batches(25, job().recipe.augmentation, generator))
    means = [float(images.double().mean()) for images, _ in shown]
    variances = [float(images.double().var()) for images, _ in shown]
    tensors = load(tmp_path / "checkpoint.pt").tensors
    np.testing.assert_allclose(tensors["input.bn.mean"], np.mean(means), rtol=1e-5)
    np.testing.assert_allclose(tensors["input.bn.variance"], np.mean(variances), rtol=1e-5)


# -- resume ----------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill at a chosen moment."""


def killed_at(moment: float) -> Progress:
    def step(epochs: float) -> None:
        if epochs >= moment:
            raise KilledError

    return Progress(step=step)


def run(job: Job, tiny: Dataset, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    return train(job, splits(tiny, CPU), out, progress or Progress())


def without_seconds(out: Path) -> list[dict[str, Any]]:
    lines = (out / "results.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("kills", [(2.1,), (1.1, 2.6, 3.4)])
@pytest.mark.parametrize("steps", ["calibrated", "learned"])
def test_resume_is_exact(
    steps: str, kills: tuple[float, ...], tiny: Dataset, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(job(steps=steps), tiny, whole)
    for moment in kills:
        with pytest.raises(KilledError):
            run(job(steps=steps), tiny, broken, killed_at(moment))
        torch.manual_seed(int(moment * 100))  # nothing may hang on the global generator
    run(job(steps=steps), tiny, broken)
    assert_same(torch.load(whole / "state.pt"), torch.load(broken / "state.pt"))
    assert_same(torch.load(whole / "checkpoint.pt"), torch.load(broken / "checkpoint.pt"))
    assert without_seconds(whole) == without_seconds(broken)
    assert [r["epoch"] for r in without_seconds(whole)] == [1, 2, 3, 4]


@pytest.mark.parametrize("line", ['{"epoch": 3}\n', '{"epoch": 3, "train_lo'])
def test_a_line_without_its_state_is_dropped(line: str, tiny: Dataset, tmp_path: Path) -> None:
    run(job(epochs=2), tiny, tmp_path)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(line)
    run(job(epochs=3), tiny, tmp_path)
    assert [r["epoch"] for r in without_seconds(tmp_path)] == [1, 2, 3]
    assert "train_loss" in without_seconds(tmp_path)[2]


def test_a_finished_run_can_be_prolonged(tiny: Dataset, tmp_path: Path) -> None:
    run(job(epochs=2), tiny, tmp_path / "a")
    assert run(job(epochs=2), tiny, tmp_path / "a")["epoch"] == 2
    run(job(epochs=4), tiny, tmp_path / "a")
    run(job(epochs=4), tiny, tmp_path / "b")
    a, b = (torch.load(tmp_path / name / "checkpoint.pt") for name in "ab")
    assert_same(a, b)


def test_a_run_may_go_on_computed_otherwise(tiny: Dataset, tmp_path: Path) -> None:
    run(job(epochs=1, quantise_from=0), tiny, tmp_path)
    run(job(epochs=2, quantise_from=0, execution=Execution(channels_last=False)), tiny, tmp_path)
    assert [r["epoch"] for r in without_seconds(tmp_path)] == [1, 2]
    sessions = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert [s["execution"]["channels_last"] for s in sessions] == [True, False]


def test_another_jobs_state_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    run(job(epochs=2), tiny, tmp_path)
    with pytest.raises(UsageError, match=r"recipe.seed = 3, not 4") as caught:
        run(job(epochs=2, seed=4), tiny, tmp_path)
    assert "--out" in caught.value.hint


def test_damaged_results_are_refused(tiny: Dataset, tmp_path: Path) -> None:
    run(job(epochs=2), tiny, tmp_path)
    (tmp_path / "results.jsonl").write_text("junk\n")
    with pytest.raises(CheckpointError, match=r"results.jsonl must hold a JSON record a line"):
        run(job(), tiny, tmp_path)


def test_a_damaged_state_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"junk" * 100)
    with pytest.raises(CheckpointError, match=r"state.pt must be a whole torch file"):
        run(job(), tiny, tmp_path)
    torch.save({"format": "another"}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"must be a 'signum-training-state 3'"):
        run(job(), tiny, tmp_path)


def test_a_failed_write_leaves_the_old_state(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(epochs=2), tiny, tmp_path)

    save = torch.save

    def die(value: dict[str, Any], file: Any) -> None:
        if value["format"] == "signum-checkpoint":
            return save(value, file)
        file.write(b"half")
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("train.state.torch.save", die)
        with pytest.raises(KilledError):
            run(job(epochs=3), tiny, tmp_path)
    assert torch.load(tmp_path / "state.pt")["epoch"] == 2
    run(job(epochs=3), tiny, tmp_path)
    assert [r["epoch"] for r in without_seconds(tmp_path)] == [1, 2, 3]


def test_seed_decides(tiny: Dataset, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 4)):
        run(job(epochs=2, seed=seed), tiny, tmp_path / name)
    a, b = (load(tmp_path / name / "checkpoint.pt").tensors for name in "ab")
    assert not np.array_equal(a["stage1.block1.conv1.weight"], b["stage1.block1.conv1.weight"])


@pytest.mark.slow
def test_resume_after_a_kill_by_the_system(tmp_path: Path) -> None:
    """SIGKILL at three moments that nobody chose; then the same weights, bit for bit."""
    flags = "--dataset digits --net 8-0.25 --activation-bits 4 --epochs 6 --device cpu --threads 1"
    command = [sys.executable, "-m", "train", *flags.split(), "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    lines = tmp_path / "broken" / "results.jsonl"
    for epochs in (1, 2, 4):
        with subprocess.Popen(
            [*command, str(tmp_path / "broken")], cwd=ROOT, stdout=-3, stderr=-3
        ) as process:
            while process.poll() is None and (
                not lines.exists() or lines.read_text().count("\n") < epochs
            ):
                time.sleep(0.02)
            time.sleep(0.1 * epochs)
            process.kill()
    subprocess.run([*command, str(tmp_path / "broken")], cwd=ROOT, check=True, capture_output=True)
    for name in ("state.pt", "checkpoint.pt"):
        whole, broken = (torch.load(tmp_path / run / name) for run in ("whole", "broken"))
        assert_same(whole, broken)
    assert without_seconds(tmp_path / "whole") == without_seconds(tmp_path / "broken")


# -- a run as a whole ------------------------------------------------------------------------------


def test_it_learns_and_says_so(tiny: Dataset, tmp_path: Path) -> None:
    last = run(job(epochs=6, augmentation=Augmentation()), tiny, tmp_path)
    assert last["deployed_accuracy"] >= 0.9
    training = load(tmp_path / "checkpoint.pt").training
    assert training is not None
    assert training["test_accuracy"] == last["deployed_accuracy"]
    assert training["epochs"] == 6
    records = without_seconds(tmp_path)
    assert [r["epoch"] for r in records if "deployed_accuracy" in r] == [2, 6]
    assert records[-1]["train_loss"] < records[0]["train_loss"]


def test_score_gain_is_in_the_loss_alone(tiny: Dataset, tmp_path: Path) -> None:
    still = {"epochs": 1, "peak_rate": 0.0, "final_rate": 0.0, "quantise_from": 0}
    one = run(job(**still), tiny, tmp_path / "a")
    none = run(job(**still, score_gain=0.0), tiny, tmp_path / "b")
    assert none["train_loss"] == pytest.approx(math.log(3))
    assert one["train_loss"] != pytest.approx(math.log(3), abs=1e-3)
    assert none["deployed_accuracy"] == one["deployed_accuracy"]


@pytest.mark.parametrize("steps", ["learned", "calibrated"])
def test_steps_are_chosen_at_their_epoch(steps: str, tiny: Dataset, tmp_path: Path) -> None:
    chosen = []
    for epochs in (1, 2, 3):
        with pytest.raises(KilledError):
            run(job(steps=steps), tiny, tmp_path, killed_at(epochs + 0.1))
        chosen.append(torch.load(tmp_path / "state.pt")["steps"])
    assert chosen[0] is None and chosen[1] is not None
    if steps == "calibrated":  # and stay
        assert chosen[1] == chosen[2]
        return
    verify_alignment(chosen[2], Network(job().architecture).bounds)
    moved = {name: chosen[2][name] / step for name, step in chosen[1].items()}
    assert all(0.5 < ratio < 2 and abs(ratio - 1) > 1e-5 for ratio in moved.values()), moved


def test_steps_move_no_further_than_the_limit(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.quantiser.STEP_RATE", 1e12)
    chosen = {}
    for steps in ("calibrated", "learned"):
        given = job(steps=steps, quantise_from=0, epochs=1)
        run(given, tiny, tmp_path / steps)
        chosen[steps] = torch.load(tmp_path / steps / "state.pt")["steps"]
    batches = len(tiny.train_images) // given.recipe.batch
    reach = STEP_REACH * given.recipe.peak_rate / (1 - given.recipe.momentum) * batches
    for name, step in chosen["calibrated"].items():
        assert 0 < abs(math.log2(chosen["learned"][name] / step)) < reach


def test_init_takes_another_networks_weights(tiny: Dataset, tmp_path: Path) -> None:
    given = job(epochs=2)
    run(given, tiny, tmp_path / "a")
    path = tmp_path / "a/checkpoint.pt"
    still = replace(
        given, init=str(path), recipe=replace(given.recipe, peak_rate=0.0, final_rate=0.0)
    )
    run(still, tiny, tmp_path / "b")
    old, new = (load(p).tensors for p in (path, tmp_path / "b/checkpoint.pt"))
    for name in (n for n in old if n.endswith(".weight")):
        assert np.array_equal(old[name], new[name])
    wider = replace(still, architecture=replace(given.architecture, width=0.5))
    with pytest.raises(CheckpointError, match="must have the layers"):
        run(wider, tiny, tmp_path / "c")


# -- command line ----------------------------------------------------------------------------------


@pytest.fixture
def command(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(datasets, "load", lambda name, folder: tiny)
    options = "--dataset digits --net 8-0.25 --activation-bits 4 --epochs 2 --batch 25 --device cpu"
    return [*options.split(), "--out", str(tmp_path / "run")]


def test_command_trains_and_evaluates(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    out, err = capsys.readouterr()
    trained = json.loads(out)
    assert trained["epoch"] == 2
    assert "epoch   2" in err and "Traceback" not in err
    assert main(["evaluate", trained["checkpoint"], "--dataset", "digits"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated == {"accuracy": {"images": 30, "float": trained["deployed_accuracy"]}}


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--net", "9-1"], 2, "error: depth must be 6n + 2 (8, 14, 20, ...), not 9"),
        (["--net", "wide"], 2, "error: --net must be DEPTH-WIDTH, not 'wide'"),
        (["--activation-bits", "9"], 2, "error: activation bits must be 2 .. 8, not 9"),
        (
            ["--init", "none.pt"],
            1,
            "error: checkpoint must be a file, and there is none at none.pt",
        ),
    ],
)
def test_command_errors(
    extra: list[str], code: int, message: str, command: list[str], capsys: Any
) -> None:
    assert main(command + extra) == code
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert main([*command, *extra, "-vv"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_command_data_error(command: list[str], monkeypatch: Any, capsys: Any) -> None:
    def refuse(name: str, folder: Path | None) -> Dataset:
        raise DataError("no such data", hint="get it")

    monkeypatch.setattr(datasets, "load", refuse)
    assert main(command) == 1
    assert capsys.readouterr().err == "error: no such data\nhint: get it\n"


def test_command_unwritable_folder(command: list[str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run").write_text("a file")
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "error: " in err and "run" in err and "Traceback" not in err


def test_command_interrupted(command: list[str], monkeypatch: Any, capsys: Any) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.__main__.train", interrupt)
    assert main(command) == 130
    err = capsys.readouterr().err
    assert "interrupted; the same command resumes" in err and "Traceback" not in err
