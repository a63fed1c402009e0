"""Benchmarks: `python -m benchmarks --help`. Results are JSON in `benchmarks/results`."""
