"""Benchmarks: `python benchmarks/run.py --help`. Nothing is timed before it was verified against the reference."""
