"""What the intrinsics of :mod:`pix2pix.gpu.ptx.vectors` do in Numba's simulator; see there for their parameters."""

from __future__ import annotations

import numpy as np

from ..ptx.fragments import VECTOR
from ..ptx.packed_words import ELEMENTS, TF32, VECTOR_WORDS, floats_of, words_of
from .threads import plain


def fill8(value):
    """See pix2pix.gpu.ptx.vectors."""
    return np.full(VECTOR, value, np.float32)


def load8(array, at):
    """See pix2pix.gpu.ptx.vectors."""
    return plain(array)[at : at + VECTOR].copy()


def store8(array, at, vector):
    """See pix2pix.gpu.ptx.vectors."""
    plain(array)[at : at + VECTOR] = vector


def unpack8(array, at, kind):
    """See pix2pix.gpu.ptx.vectors."""
    words = plain(array)[at : at + VECTOR_WORDS[kind]].view(np.uint32)
    return words.view(np.float32).copy() if kind == TF32 else floats_of(words, kind)


def pack8(array, at, vector, kind):
    """See pix2pix.gpu.ptx.vectors."""
    words = words_of(vector, kind).view(np.float32)
    plain(array)[at : at + len(words)] = words


def round8(vector, kind):
    """See pix2pix.gpu.ptx.vectors."""
    return floats_of(words_of(vector, kind), kind)


def add8(a, b):
    """See pix2pix.gpu.ptx.vectors."""
    return a + b


def subtract8(a, b):
    """See pix2pix.gpu.ptx.vectors."""
    return a - b


def multiply8(a, b):
    """See pix2pix.gpu.ptx.vectors."""
    return a * b


def leaky_relu8(vector, slope):
    """See pix2pix.gpu.ptx.vectors."""
    return np.maximum(vector, vector * slope)


def pack(low, high, kind):
    """See pix2pix.gpu.ptx.vectors."""
    return words_of(np.array([low, high][: ELEMENTS[kind]], np.float32), kind)[0]


def unpack(word, kind):
    """See pix2pix.gpu.ptx.vectors."""
    if ELEMENTS[kind] == 1:
        return (np.uint32(word).view(np.float32),) * 2
    return tuple(floats_of(np.array([word], np.uint32), kind))


def load_word(array, at):
    """See pix2pix.gpu.ptx.vectors."""
    return plain(array)[at : at + 1].view(np.uint32)[0]


def store_word(array, at, word):
    """See pix2pix.gpu.ptx.vectors."""
    plain(array)[at : at + 1] = np.array([word], np.uint32).view(np.float32)
