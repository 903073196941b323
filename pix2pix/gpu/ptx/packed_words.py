"""Packed words: two float16 or bfloat16, or one tf32 or float32, in 32 bits.

On the GPU, maps and weights lie in arrays of such words. Here is the host's conversion from and to float32.
"""

from __future__ import annotations

import numpy as np

from .fragments import VECTOR

KINDS = {
    "float16": 0,
    "bfloat16": 1,
    "tf32": 2,
    "float32": 3,
}  # kernels' constants are numbers: the kind of word of a precision
FLOAT16, BFLOAT16, TF32, FLOAT32 = KINDS.values()
ELEMENTS = (2, 2, 1, 1)  # of a word, by kind
VECTOR_WORDS = tuple(VECTOR // elements for elements in ELEMENTS)
LARGEST_FLOAT16 = 65504.0
TF32_BITS = 0xFFFFE000  # of a word: all but the last 13


def words_of(values: np.ndarray, kind: int) -> np.ndarray:
    """float32 (..., elements) -> uint32 (..., words), rounded to nearest: ties to even, for tf32 away from zero."""
    values = np.ascontiguousarray(values, np.float32)
    if kind == FLOAT16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint32)
    if kind == FLOAT32:
        return values.view(np.uint32)
    bits = values.view(np.uint32).astype(np.uint64)
    if kind == BFLOAT16:
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return (rounded[..., ::2] | rounded[..., 1::2] << 16).astype(np.uint32)
    return (bits + 0x1000 & TF32_BITS).astype(np.uint32)


def floats_of(words: np.ndarray, kind: int) -> np.ndarray:
    """uint32 (..., words) -> float32 (..., elements), as tensor cores read them: without the last 13 bits of a tf32."""
    if kind == FLOAT16:
        return np.ascontiguousarray(words).view(np.float16).astype(np.float32)
    if kind == BFLOAT16:
        halves = np.stack([words << 16, words & 0xFFFF0000], axis=-1).astype(np.uint32)
        return halves.view(np.float32).reshape(*words.shape[:-1], -1)
    return (words if kind == FLOAT32 else words & np.uint32(TF32_BITS)).view(np.float32)
