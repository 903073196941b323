"""Benchmarks of the CPU engine alone: time by layer and by stage."""
