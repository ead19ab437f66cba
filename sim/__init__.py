"""Simulation: cocotb benches, stream drivers, vendor cell models and the runner that builds them."""
