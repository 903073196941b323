"""PTX instructions as Numba intrinsics, the layouts of their fragments, and packed words."""
