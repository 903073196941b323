"""Benchmarks of MPI: what sharing the work over ranks costs."""
