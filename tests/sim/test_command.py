"""`python -m sim`: exit codes and what is printed where."""

from __future__ import annotations

import json

import pytest

from sim import __main__ as command
from sim.runner import BenchError, Simulation
from tests.conftest import ROOT

DIGITS = ROOT / "train" / "zoo" / "digits-wrn8-1-a4.pt"


def test_list(capsys):
    assert command.main(["list"]) == 0
    assert capsys.readouterr().out.startswith("counter ")


def test_unknown_block(capsys):
    assert command.main(["run", "nope"]) == 2
    caught = capsys.readouterr()
    assert "BLOCK must be one of counter" in caught.err
    assert "hint: python -m sim list" in caught.err
    assert not caught.out


@pytest.mark.parametrize("arguments", [[], ["run", "--seed", "-3"], ["fly"]])
def test_usage(arguments):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2


@pytest.mark.cocotb
def test_run_prints_json_alone(capsys):
    assert command.main(["run", "counter", "--seed", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counter 8 bits"]["seed"] == 3
    assert report["counter 8 bits"]["tests"] == 1


@pytest.mark.parametrize("verbose", [[], ["-vv"]])
def test_failure_is_exit_5_and_a_traceback_only_on_request(monkeypatch, capsys, verbose):
    def fail(*args, **kwargs):
        raise BenchError("word 3 differs", hint="look there")

    monkeypatch.setattr(Simulation, "build", fail)
    assert command.main([*verbose, "run", "counter"]) == 5
    text = capsys.readouterr().err
    assert "error: word 3 differs\nhint: look there" in text
    assert ("Traceback" in text) == bool(verbose)


def test_interrupt(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "build", interrupt)
    assert command.main(["run", "counter"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


@pytest.mark.cocotb
def test_accuracy_of_digits(capsys):
    """The shipped network on the shipped engine: equal to golden, as fast as predicted."""
    assert command.main(["accuracy", str(DIGITS), "--images", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lanes"] == 256
    assert report["accuracy"]["golden_equals_rtl"]
    assert report["accuracy"]["rtl"] == report["accuracy"]["golden"] == 1
    cycles = report["cycles_per_image"]
    assert cycles["simulated"] == pytest.approx(cycles["predicted"], rel=0.005)
    assert report["utilisation"] >= 0.28
