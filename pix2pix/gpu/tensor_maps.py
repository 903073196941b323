"""Tensor maps of the operands of :mod:`pix2pix.gpu.kernels.hopper_gemm`: tensors in memory, and boxes of them for TMA.

All have five dimensions, the innermost of words; see :func:`pix2pix.gpu.ptx.hopper.tma_load`. Source: the CUDA driver
API, "Tensor Map Object Management".
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from .device import Device
from .jit import SIMULATED
from .kernels.hopper_gemm import Box
from .ptx.fragments import SWIZZLE_ROW

ENCODED_BYTES = 128  # of a tensor map, at a multiple of as many


class TensorMap(NamedTuple):
    """A tensor, and a box of it, the outermost dimension first; sizes and strides in words."""

    array: Any
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


def source_map(array: Any, shape: tuple[int, int, int, int], stride: int, box: Box) -> TensorMap:
    """Of maps (images, h, w, words) that are read with a stride: boxes have SWIZZLE_ROW words of each pixel.

    For stride 2 the maps are a tensor (n, h / 2, 2, w / 2, 2 * words).
    """
    n, h, w, words = shape
    sizes = (n, h // stride, stride, w // stride, stride * words)
    strides = (h * w * words, stride * w * words, w * words, stride * words, 1)
    return TensorMap(array, sizes, strides, (box.images, box.h, 1, box.w, SWIZZLE_ROW))


def weight_map(array: Any, rows: int, words: int, box_rows: int) -> TensorMap:
    """Of a matrix (rows, words): boxes have SWIZZLE_ROW words of `box_rows` rows."""
    sizes, strides = (1, 1, 1, rows, words), (rows * words,) * 3 + (words, 1)
    return TensorMap(array, sizes, strides, (1, 1, 1, box_rows, SWIZZLE_ROW))


def encode(device: Device, tensor_map: TensorMap) -> Any:
    """The tensor map as kernels take it: in the GPU's memory, in the hardware's format. Raises RuntimeError."""
    if SIMULATED:
        return tensor_map._replace(array=tensor_map.array._ary)
    from cuda.bindings import driver

    # driver.cuTensorMapEncodeTiled would choose the address itself; the result must be aligned.
    encode_tiled = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    space = np.zeros(2 * ENCODED_BYTES, np.uint8)
    begin = -space.ctypes.data % ENCODED_BYTES
    encoded = space[begin : begin + ENCODED_BYTES]
    dimensions = len(tensor_map.sizes)
    error = encode_tiled(
        ctypes.c_void_p(encoded.ctypes.data),
        int(driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT32),
        ctypes.c_uint32(dimensions),
        ctypes.c_void_p(tensor_map.array.__cuda_array_interface__["data"][0]),
        (ctypes.c_uint64 * dimensions)(*reversed(tensor_map.sizes)),
        (ctypes.c_uint64 * (dimensions - 1))(*(4 * stride for stride in reversed(tensor_map.strides[:-1]))),
        (ctypes.c_uint32 * dimensions)(*reversed(tensor_map.box)),
        (ctypes.c_uint32 * dimensions)(*(1 for _ in tensor_map.box)),
        int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B),
        int(driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
        int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
    )
    if error:
        sizes = f"{tensor_map.box} of {tensor_map.sizes}, strides {tensor_map.strides}"
        raise RuntimeError(f"{device.name} takes no tensor map of boxes {sizes}: {driver.CUresult(error).name}")
    return device.upload(encoded.view(np.uint64))
