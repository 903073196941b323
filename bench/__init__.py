"""Benchmarks. Each is run from the top folder as ``python -m bench.NAME`` and writes JSON into bench/results."""
