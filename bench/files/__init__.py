"""Benchmarks of the command line over files."""
