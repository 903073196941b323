"""Benchmarks of engines that are made of engines: the pool."""
