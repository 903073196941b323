"""What the intrinsics of gpu/ptx do in Numba's CUDA simulator: modules and functions have the same names."""
