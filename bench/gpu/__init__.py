"""Benchmarks on one GPU: beside PyTorch, by layer, by kernel, and the tuner."""
