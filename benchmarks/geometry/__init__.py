"""Figures of docs/geometry.md: `python -m benchmarks.geometry --help`."""
