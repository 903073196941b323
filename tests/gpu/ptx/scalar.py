"""Arithmetic of single lanes as PTX defines it, over arrays.

Floats round to nearest. fma is computed in float64 and rounded once more, which is exact but for rare ties. rcp.approx
and ex2.approx are correctly rounded here; hardware may differ by some units in the last place.

Source: PTX ISA 8.7, "Integer Arithmetic Instructions", "Floating Point Instructions", "cvt".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .faults import Fault


def shift_left(a: np.ndarray, b: Any) -> np.ndarray:
    """a << b; 0 for amounts beyond the width."""
    bits = 8 * a.dtype.itemsize
    amount = np.minimum(b, bits - 1).astype(a.dtype)
    return np.where(np.asarray(b) < bits, a << amount, a.dtype.type(0))


def shift_right(a: np.ndarray, b: Any) -> np.ndarray:
    """a >> b; for amounts beyond the width 0, or the sign."""
    bits = 8 * a.dtype.itemsize
    amount = np.minimum(b, bits - 1).astype(a.dtype)
    shifted = a >> amount
    return shifted if a.dtype.kind == "i" else np.where(np.asarray(b) < bits, shifted, a.dtype.type(0))


def divide(a: np.ndarray, b: Any) -> np.ndarray:
    """a / b towards zero. Raises Fault for a divisor of zero."""
    if np.any(b == 0):
        raise Fault("division by zero")
    quotient = a // b
    if np.asarray(a).dtype.kind == "i":
        quotient = quotient + (((a < 0) != (b < 0)) & (quotient * b != a)).astype(quotient.dtype)
    return quotient


def remainder(a: np.ndarray, b: Any) -> np.ndarray:
    """What divide leaves: it has the sign of a."""
    return a - divide(a, b) * b


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """a * b + c, rounded once (see above)."""
    return (np.asarray(a, np.float64) * b + c).astype(np.float32)


def insert_bits(a: Any, b: Any, place: Any, count: Any) -> np.ndarray:
    """bfi: the lowest `count` bits of a, put into b from bit `place` on."""
    mask = ((1 << int(count)) - 1) << int(place)
    mask = np.uint32(mask & 0xFFFFFFFF)
    return (b & ~mask) | ((a << np.uint32(place)) & mask)


def to_integer(a: np.ndarray, kind: str) -> np.ndarray:
    """Rounded towards zero and clamped; NaN gives 0."""
    limits = np.iinfo(np.dtype(kind))
    whole = np.nan_to_num(np.trunc(a.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
    return np.clip(whole, float(limits.min), float(limits.max)).astype(kind)


def bfloat16(a: np.ndarray) -> np.ndarray:
    """The 16 bits, as uint32, of float32 rounded to bfloat16: to nearest, ties to even."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(a), 0x7FFF, rounded).astype(np.uint32)


def float16(a: np.ndarray) -> np.ndarray:
    """The 16 bits, as uint32, of float32 rounded to float16."""
    return np.ascontiguousarray(a, np.float32).astype(np.float16).view(np.uint16).astype(np.uint32)


def tf32(a: np.ndarray) -> np.ndarray:
    """The bits of float32 rounded to tf32: to nearest, ties away from zero."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x1000) & 0xFFFFE000).astype(np.uint32)
    return np.where(np.isfinite(a), rounded, bits)


def flat(value: Any, n: int) -> np.ndarray:
    """A value for each of n lanes."""
    return value if getattr(value, "ndim", 0) else np.full(n, value)


def flushed(a: np.ndarray) -> np.ndarray:
    """ftz: subnormal numbers become zeros of their sign."""
    return np.where(np.abs(a) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), a), a)


SCOPE: dict[str, Any] = {  # names in the functions that :mod:`.emit` writes
    "np": np,
    "C": lambda value, n: np.array(value) if getattr(value, "ndim", 0) else np.full(n, value),
    "F": flat,
    "B": lambda value, n: flat(np.asarray(value), n),
    "SHL": shift_left,
    "SHR": shift_right,
    "DIV": divide,
    "REM": remainder,
    "FMA": fma,
    "BFI": insert_bits,
    "TO_INTEGER": to_integer,
    "PACK_F16X2": lambda high, low: float16(high) << 16 | float16(low),
    "PACK_BF16X2": lambda high, low: bfloat16(high) << 16 | bfloat16(low),
    "RCP": lambda a: (1 / flushed(np.asarray(a)).astype(np.float64)).astype(np.float32),
    "SQRT": lambda a: np.sqrt(a, dtype=np.float32),
    "EX2": lambda a: flushed(np.exp2(flushed(np.asarray(a)).astype(np.float64)).astype(np.float32)),
}
