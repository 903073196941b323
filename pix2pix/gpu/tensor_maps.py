"""Descriptions of boxes, which Hopper copies by itself: where a map or a matrix lies, and how much is one box.

All have five dimensions, the innermost of words; see :func:`pix2pix.gpu.ptx.hopper.copy_box`. Source: the CUDA driver API,
"Tensor Map Object Management".
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from .device import Device
from .kernels.common import SIMULATED
from .kernels.hopper_gemm import Box
from .ptx.hopper import ROW

DESCRIPTION = 128  # bytes, at a multiple of as many


class Boxes(NamedTuple):
    """What there is, and a box of it, the outermost dimension first; sizes and strides in words."""

    array: Any
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


def of_map(array: Any, n: int, h: int, w: int, words: int, zoom: int, box: Box) -> Boxes:
    """Boxes of maps (n, h, w, words), of one row of words of each pixel in `box`.

    Where every second pixel is read (`zoom` is 2), the map is one of (n, h / 2, 2, w / 2, 2 * words).
    """
    sizes = (n, h // zoom, zoom, w // zoom, zoom * words)
    strides = (h * w * words, zoom * w * words, w * words, zoom * words, 1)
    return Boxes(array, sizes, strides, (box.images, box.h, 1, box.w, ROW))


def of_weights(array: Any, rows: int, words: int, box_rows: int) -> Boxes:
    """Boxes of a matrix (rows, words), of one row of shared memory of `box_rows` each."""
    return Boxes(array, (1, 1, 1, rows, words), (rows * words,) * 3 + (words, 1), (1, 1, 1, box_rows, ROW))


def describe(device: Device, boxes: Boxes) -> Any:
    """A description that kernels take: in the GPU's memory, as hardware reads it."""
    if SIMULATED:
        return boxes._replace(array=boxes.array._ary)
    from cuda.bindings import driver

    # Not driver.cuTensorMapEncodeTiled, which has the description written where it likes: it must be aligned.
    encode = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    space = np.zeros(2 * DESCRIPTION, np.uint8)
    begin = -space.ctypes.data % DESCRIPTION
    description = space[begin : begin + DESCRIPTION]
    dimensions = len(boxes.sizes)
    error = encode(
        ctypes.c_void_p(description.ctypes.data),
        int(driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT32),
        ctypes.c_uint32(dimensions),
        ctypes.c_void_p(boxes.array.__cuda_array_interface__["data"][0]),
        (ctypes.c_uint64 * dimensions)(*reversed(boxes.sizes)),
        (ctypes.c_uint64 * (dimensions - 1))(*(4 * stride for stride in reversed(boxes.strides[:-1]))),
        (ctypes.c_uint32 * dimensions)(*reversed(boxes.box)),
        (ctypes.c_uint32 * dimensions)(*(1 for _ in boxes.box)),
        int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B),
        int(driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
        int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
    )
    if error:
        sizes = f"{boxes.box} of {boxes.sizes}, strides {boxes.strides}"
        raise RuntimeError(f"{device.name} takes no boxes {sizes}: {driver.CUresult(error).name}")
    return device.upload(description.view(np.uint64))
