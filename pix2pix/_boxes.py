"""Descriptions of boxes, which Hopper copies by itself: where a map or a matrix lies, and how much is one box.

All have five dimensions, the innermost of words; see :func:`pix2pix._hopper.copy_box`. Source: the CUDA driver API,
"Tensor Map Object Management".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._cuda import SIMULATED
from ._gpu_device import Device
from ._hopper import ROW
from ._hopper_gemm import Box


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

    error, described = driver.cuTensorMapEncodeTiled(
        driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT32,
        len(boxes.sizes),
        boxes.array.__cuda_array_interface__["data"][0],
        [driver.cuuint64_t(size) for size in reversed(boxes.sizes)],
        [driver.cuuint64_t(4 * stride) for stride in reversed(boxes.strides[:-1])],
        [driver.cuuint32_t(size) for size in reversed(boxes.box)],
        [driver.cuuint32_t(1) for _ in boxes.box],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(
            f"{device.name} takes no boxes {boxes.box} of {boxes.sizes}, strides {boxes.strides}: {error}"
        )
    return device.upload(np.array([int(part) for part in described.opaque], np.uint64))
