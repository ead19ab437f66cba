"""The stream drivers: each word once and in order under all stalls, each broken rule found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.drivers import LAZY, STALLS, Stall, first_difference, pack, unpack
from sim.runner import BenchError, Simulation
from tests.sim.designs import Increment

BENCH = "tests.sim.bench_stream"


@pytest.fixture(scope="module")
def increment():
    return Simulation.build(Increment(16), "increment")


@pytest.mark.cocotb
@pytest.mark.parametrize("source", STALLS)
@pytest.mark.parametrize("sink", [*STALLS, LAZY.name])
def test_every_word_arrives(increment, source, sink):
    given = {"source": source, "sink": sink, "words": 1000}
    values = increment.run(BENCH, parameters=given).values
    assert values["received"] == 1000
    if source == sink == "never":
        assert values["cycles"] == 1000  # a word a cycle
    else:
        assert values["cycles"] > 1500


@pytest.mark.cocotb
def test_one_bit_payload():
    simulation = Simulation.build(Increment(1), "increment")
    simulation.run(BENCH, parameters={"source": "random", "sink": "random", "words": 100})


@pytest.mark.cocotb
@pytest.mark.parametrize(
    ("fault", "sink", "message"),
    [
        ("drop", "random", "valid must stay high until its word has moved"),
        ("drop", "lazy", "valid must stay high until its word has moved"),
        ("change", "bursts", "payload must not change while it waits"),
        ("wait", "lazy", "Timeout"),
    ],
)
def test_broken_rule_is_found(fault, sink, message):
    simulation = Simulation.build(Increment(16, fault), "increment")
    with pytest.raises(BenchError, match=message):
        simulation.run(BENCH, parameters={"source": "never", "sink": sink, "words": 300})


@pytest.mark.parametrize("arguments", [{"probability": 1.0}, {"probability": -0.1}, {"burst": 0}])
def test_stall_wrong_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        Stall("x", **arguments)


@given(st.integers(1, 20).flatmap(lambda w: st.tuples(st.just(w), lanes_of(w))))
def test_unpack_is_the_opposite_of_pack(case):
    width, lanes = case
    packed = pack(lanes, width)
    assert packed < 1 << (width * len(lanes))
    assert unpack(packed, width, len(lanes), signed=True) == lanes


def lanes_of(width):
    return st.lists(st.integers(-(1 << (width - 1)), (1 << (width - 1)) - 1), max_size=9)


def test_pack_puts_the_first_lane_lowest():
    assert pack([1, 2, -1], 4) == 0xF21
    assert unpack(0xF21, 4, 3) == [1, 2, 15]


def test_first_difference():
    assert first_difference([1, 2], [1, 2]) == ""
    assert first_difference([1, 2], [1]) == "2 words expected, 1 got"
    assert first_difference([1, 2, 3], [1, 9, 8]) == (
        "2 of 3 words differ: [1] expected 2 got 9, [2] expected 3 got 8"
    )
