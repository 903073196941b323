"""Benchmarks of films and pipes."""
