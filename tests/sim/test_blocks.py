"""Every block of the engine against `compiler.arith`, with stalls; the full grids at night."""

from __future__ import annotations

import importlib

import pytest

from sim.runner import Simulation, default_seed

BLOCKS = (
    "divider",
    "flash",
    "lanes",
    "loader",
    "maximum",
    "memory",
    "pool",
    "requantise",
    "rom",
    "scorer",
    "sdram",
    "store",
    "window",
    "writer",
)


def run(block: str, *, grid: bool, seeds: int) -> None:
    module = importlib.import_module(f"sim.benches.{block}")
    for component, options, parameters in module.design(grid=grid).values():
        simulation = Simulation.build(component, block, **options)
        for seed in range(default_seed(), default_seed() + seeds):
            results = simulation.run(module.__name__, parameters=parameters, seed=seed)
            print(f"{block}, seed {seed}: {results.values}")


@pytest.mark.cocotb
@pytest.mark.parametrize("block", BLOCKS)
def test_block(block):
    run(block, grid=False, seeds=1)


@pytest.mark.cocotb
@pytest.mark.nightly
@pytest.mark.parametrize("block", BLOCKS)
def test_block_full_grid(block):
    run(block, grid=True, seeds=4)


def test_every_bench_of_a_block_is_run_here():
    from sim.__main__ import benches

    assert set(benches()) - set(BLOCKS) <= {"counter", "engine", "top"}
