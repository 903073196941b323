"""The GPU engine: device memory, packed weights, and launches of the Numba kernels in gpu/kernels."""
