"""What the intrinsics of gpu/ptx do in Numba's CUDA simulator, under the same names."""
