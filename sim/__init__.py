"""Simulation: cocotb benches, stream drivers, models of vendor cells and their runner."""
