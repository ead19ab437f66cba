"""The benches: one module a block, each a set of cocotb tests that run inside the simulator."""
