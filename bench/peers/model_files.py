"""Writes a generator in the native formats of the engines of :mod:`.engines`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pix2pix import checkpoints
from pix2pix.model.generator import INPUT, Generator, Weights

from ..networks import Workload
from . import onnx_network
from .engines import nchw

CONVOLUTIONS = ["Conv", "ConvTranspose"]
CALIBRATION_SEEDS = range(100, 108)  # of images that are in no other input; they give int8 its ranges


def export(
    folder: Path, generator: Generator, weights: Weights, n: int, formats: Iterable[str], calibration: np.ndarray
) -> None:
    """Write the model into ``folder`` in the named formats, unless the files exist.

    ``safetensors`` is this project's, ``torch`` a dict of tensors, ``onnx`` and ``int8`` are ONNX for ``n`` images.
    ``calibration``, float32 (N,H,W,C) in [-1,1], gives int8 its ranges.
    """
    height, width = calibration.shape[1:3]
    for name in sorted(set(formats)):
        if name == "safetensors" and not (path := folder / "model.safetensors").exists():
            checkpoints.write(path, generator, weights)
        elif name == "torch" and not (path := folder / "model.pt").exists():
            from .torch_network import write

            write(path, generator, weights)
        elif name == "onnx" and not (path := folder / f"model-{n}.onnx").exists():
            path.write_bytes(onnx_network.onnx_model(generator, weights, n, height, width).SerializeToString())
        elif name == "int8" and not (path := folder / f"model-int8-{n}.onnx").exists():
            _write_int8(path, folder / "model-int8.onnx", generator, weights, n, calibration)


def calibration(workload: Workload) -> np.ndarray:
    """Calibration images for a network."""
    return workload.inputs(len(CALIBRATION_SEEDS), CALIBRATION_SEEDS.start)


def _write_int8(
    path: Path, quantised: Path, generator: Generator, weights: Weights, n: int, calibration: np.ndarray
) -> None:
    """Write the int8 model for ``n`` images; ``quantised`` is kept for other values of ``n``."""
    import onnx

    if not quantised.exists():
        quantise(quantised, generator, weights, calibration)
    model = onnx.load(quantised)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = n
    del model.graph.value_info[:]
    onnx.save(model, path)


def quantise(path: Path, generator: Generator, weights: Weights, calibration: np.ndarray) -> None:
    """Write the model for one image with all convolutions in int8: ONNX Runtime's static QDQ, one scale per filter.

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
        onnx_network.onnx_model(generator, weights, 1, *calibration.shape[1:3]),
        path,
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=CONVOLUTIONS,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "OpTypesToExcludeOutputQuantization": CONVOLUTIONS},
    )
    logging.root.setLevel(level)
