"""Writes a generator in the native formats of the engines of :mod:`.engines`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix import checkpoints
from pix2pix.model.generator import INPUT, Generator, Weights

from ..networks import Workload
from ..real_models import CALIBRATION_SEEDS
from . import onnx_network
from .engines import FILES, nchw

CONVOLUTIONS = ["Conv", "ConvTranspose"]


def export(
    folder: Path, generator: Generator, weights: Weights, n: int, formats: Iterable[str], calibration: np.ndarray
) -> None:
    """Write the model into ``folder`` in the formats named, of :data:`.engines.FILES`, unless the files exist.

    ``calibration``, float32 (N,H,W,C) in [-1,1], gives int8 its ranges.
    """
    height, width = calibration.shape[1:3]
    for name in sorted(set(formats)):
        path = folder / FILES[name].format(n=n)
        if path.exists():
            continue
        if name == "safetensors":
            checkpoints.write(path, generator, weights)
        elif name == "torch":
            from .torch_network import write

            write(path, generator, weights)
        elif name == "onnx":
            path.write_bytes(onnx_network.onnx_model(generator, weights, n, height, width).SerializeToString())
        else:
            for_one = folder / FILES[name].format(n=1)
            if not for_one.exists():
                QUANTISERS[name](for_one, onnx_network.onnx_model(generator, weights, 1, height, width), calibration)
            if n != 1:
                BATCHERS[name](path, for_one, n)


def calibration(workload: Workload) -> np.ndarray:
    """Calibration images for a network."""
    return workload.inputs(len(CALIBRATION_SEEDS), CALIBRATION_SEEDS.start)


def quantise(path: Path, model: Any, calibration: np.ndarray) -> None:
    """Write an ONNX model for one image with all convolutions in int8: ONNX Runtime's static QDQ, one scale per filter.

    Measured: only with signed, symmetric activations does OpenVINO compute transposed convolutions in int8.
    """
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, np.ndarray]] = iter([{INPUT: nchw(x[None])} for x in calibration])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises to optimise the model first; nothing is left to optimise
    quantization.quantize_static(
        model,
        path,
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=CONVOLUTIONS,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "OpTypesToExcludeOutputQuantization": CONVOLUTIONS},
    )
    logging.root.setLevel(level)


def quantise_by_nncf(path: Path, model: Any, calibration: np.ndarray) -> None:
    """Write an ONNX model for one image as OpenVINO's, quantised by NNCF after training, with NNCF's own choices."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    floats = ov.Core().read_model(model.SerializeToString())
    images = nncf.Dataset([nchw(x[None]) for x in calibration])
    ov.save_model(nncf.quantize(floats, images, subset_size=len(calibration)), path, compress_to_fp16=False)


def _batch_onnx(path: Path, for_one: Path, n: int) -> None:
    """Write a quantised model for ``n`` images."""
    import onnx

    model = onnx.load(for_one)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = n
    del model.graph.value_info[:]
    onnx.save(model, path)


def _batch_openvino(path: Path, for_one: Path, n: int) -> None:
    """Write a quantised model for ``n`` images."""
    import openvino as ov

    model = ov.Core().read_model(for_one)
    model.reshape([n, *model.input().shape[1:]])
    ov.save_model(model, path, compress_to_fp16=False)


QUANTISERS = {"int8": quantise, "nncf": quantise_by_nncf}
BATCHERS = {"int8": _batch_onnx, "nncf": _batch_openvino}
