"""PTX instructions as Numba intrinsics, and the layouts of the registers and words that they work on."""
