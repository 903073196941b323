"""A generator as the files that the engines of :mod:`.engines` read natively."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pix2pix import checkpoints
from pix2pix.model.generator import INPUT, Generator, Weights

from . import networks
from .engines import nchw

CONVOLUTIONS = ["Conv", "ConvTranspose"]


def export(
    folder: Path, generator: Generator, weights: Weights, n: int, formats: Iterable[str], calibration: np.ndarray
) -> None:
    """Write the model in the named formats into ``folder``, those that are there already excepted.

    ``safetensors`` is this project's, ``torch`` a dict of tensors, ``onnx`` and ``int8`` are ONNX for ``n`` pictures;
    the ranges for int8 are those that ``calibration`` has, float32 (N,256,256,3) in [-1,1].
    """
    height, width = calibration.shape[1:3]
    for name in sorted(set(formats)):
        if name == "safetensors" and not (path := folder / "model.safetensors").exists():
            checkpoints.write(path, generator, weights)
        elif name == "torch" and not (path := folder / "model.pt").exists():
            from .torch_network import write

            write(path, generator, weights)
        elif name == "onnx" and not (path := folder / f"model-{n}.onnx").exists():
            path.write_bytes(networks.onnx_model(generator, weights, n, height, width).SerializeToString())
        elif name == "int8" and not (path := folder / f"model-int8-{n}.onnx").exists():
            _write_int8(path, folder / "model-int8.onnx", generator, weights, n, calibration)


def _write_int8(
    path: Path, quantised: Path, generator: Generator, weights: Weights, n: int, calibration: np.ndarray
) -> None:
    """Write the int8 model for ``n`` pictures; ``quantised`` is kept, for other numbers."""
    import onnx

    if not quantised.exists():
        quantise(quantised, generator, weights, calibration)
    model = onnx.load(quantised)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = n
    del model.graph.value_info[:]
    onnx.save(model, path)


def quantise(path: Path, generator: Generator, weights: Weights, calibration: np.ndarray) -> None:
    """Write the model for one picture with all convolutions in int8: ONNX Runtime's static QDQ, one scale per filter.

    Measured: only with signed, symmetric activations does OpenVINO compute transposed convolutions in int8.
    """
    from onnxruntime import quantization

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, np.ndarray]] = iter([{INPUT: nchw(x[None])} for x in calibration])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises to optimise the model first: there is nothing to optimise
    quantization.quantize_static(
        networks.onnx_model(generator, weights, 1, *calibration.shape[1:3]),
        path,
        Pictures(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=CONVOLUTIONS,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "OpTypesToExcludeOutputQuantization": CONVOLUTIONS},
    )
    logging.root.setLevel(level)
