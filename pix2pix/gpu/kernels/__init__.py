"""CUDA kernels written in Numba, each made by a factory whose tile sizes are compile-time constants."""
