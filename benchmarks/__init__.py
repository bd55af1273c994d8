"""Measurements, run by hand; their figures stand in docs/benchmarks.md."""
