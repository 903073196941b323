"""The engines compared by ``python -m bench.peers``: how each loads a model from its native format, and runs it.

No engine is imported at the top: a cold start (:mod:`.start`) pays for its own engine alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]
ToNhwc = Callable[[Any], np.ndarray]

FILES = {  # by format; ONNX files and OpenVINO's are for n images
    "safetensors": "model.safetensors",
    "torch": "model.pt",
    "onnx": "model-{n}.onnx",
    "int8": "model-int8-{n}.onnx",  # quantised by ONNX Runtime
    "nncf": "model-nncf-{n}.xml",  # quantised by NNCF
}


class Unavailable(RuntimeError):
    """This engine cannot run at this precision on this machine, or not in this version."""


@dataclass(frozen=True, slots=True)
class Task:
    """The work of an engine: the model in ``folder``, written by :func:`.model_files.export`, over the images ``x``,
    float32 (N,H,W,C) in [-1,1]. ``plan`` is for this project's engine."""

    folder: Path
    x: np.ndarray
    threads: int
    plan: str | None = None

    def path(self, file: str) -> Path:
        """The model in one of the formats of FILES."""
        return self.folder / FILES[file].format(n=len(self.x))


@dataclass(frozen=True, slots=True)
class Spec:
    """One engine: ``load`` returns the call to be timed, and a function that converts its result to (N,H,W,C).

    ``file`` is a format of FILES. Each engine gets its input in its own layout; the conversion is not
    timed.
    """

    load: Callable[[Task], tuple[Call, ToNhwc]]
    file: str
    precision: str = "float32"
    ours: bool = False


def nchw(x: np.ndarray) -> np.ndarray:
    """(N,H,W,C) -> (N,C,H,W), contiguous."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def nhwc(y: np.ndarray) -> np.ndarray:
    """(N,C,H,W) -> (N,H,W,C), contiguous."""
    return np.ascontiguousarray(y.transpose(0, 2, 3, 1))


def load_pix2pix(task: Task, precision: str = "float32", plan: str | None = None) -> tuple[Call, ToNhwc]:
    """This project's CPU engine, under ``plan`` if given, else under the task's plan."""
    import pix2pix

    tune = "latency" if len(task.x) == 1 else "throughput"
    model, plan = task.path("safetensors"), plan or task.plan
    try:
        engine = pix2pix.load(model, "cpu", precision=precision, tune=tune, plan=plan, threads=task.threads)
    except RuntimeError as error:
        if precision == "float32":
            raise
        raise Unavailable(str(error)) from None
    return lambda: engine.run(task.x), np.asarray


def load_torch(task: Task, compiled: bool = False, precision: str = "float32") -> tuple[Call, ToNhwc]:
    """PyTorch, channels last: eager, or compiled by inductor with frozen weights and static shapes."""
    import torch

    from .torch_network import read

    torch.set_num_threads(task.threads)
    # Measured: at N = 8 eager mode is faster with group_norm; at N = 1, and compiled, with plain moments.
    module = read(task.path("torch"), group_norm=not compiled and len(task.x) > 1)
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        module = torch.compile(module, dynamic=False)
    tensor = torch.from_numpy(nchw(task.x)).contiguous(memory_format=torch.channels_last)

    def call() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return module(tensor)

    return call, lambda y: nhwc(y.float().numpy())


def load_onnxruntime(task: Task, file: str = "onnx") -> tuple[Call, ToNhwc]:
    """ONNX Runtime with all graph optimisations. It computes convolutions in int8, but no transposed ones."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = task.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(task.path(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: nchw(task.x)}
    return lambda: session.run(None, feed)[0], nhwc


def load_openvino(task: Task, precision: str = "float32", file: str = "onnx") -> tuple[Call, ToNhwc]:
    """OpenVINO, one stream with all threads; ``precision`` is that of what no model marks to be computed in int8."""
    import openvino as ov

    hint = ov.Type.bf16 if precision == "bfloat16" else ov.Type.f32
    settings = {
        "INFERENCE_NUM_THREADS": task.threads,
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    compiled = ov.Core().compile_model(task.path(file), "CPU", settings)
    used = compiled.get_property("INFERENCE_PRECISION_HINT")
    if used != hint:
        raise Unavailable(f"OpenVINO computes in {used.to_string()} on this machine")
    request = compiled.create_infer_request()
    x_nchw = nchw(task.x)
    return lambda: request.infer([x_nchw], share_inputs=True, share_outputs=True)[0], nhwc


ENGINES = {
    "pix2pix": Spec(load_pix2pix, "safetensors", ours=True),
    "pix2pix-direct": Spec(partial(load_pix2pix, plan="direct"), "safetensors", ours=True),
    "torch-eager": Spec(load_torch, "torch"),
    "torch-compile": Spec(partial(load_torch, compiled=True), "torch"),
    "onnxruntime": Spec(load_onnxruntime, "onnx"),
    "openvino": Spec(load_openvino, "onnx"),
    "pix2pix-bfloat16": Spec(partial(load_pix2pix, precision="bfloat16"), "safetensors", "bfloat16", ours=True),
    "torch-eager-bfloat16": Spec(partial(load_torch, precision="bfloat16"), "torch", "bfloat16"),
    "torch-compile-bfloat16": Spec(partial(load_torch, compiled=True, precision="bfloat16"), "torch", "bfloat16"),
    "openvino-bfloat16": Spec(partial(load_openvino, precision="bfloat16"), "onnx", "bfloat16"),
    "pix2pix-int8": Spec(partial(load_pix2pix, precision="int8"), "safetensors", "int8", ours=True),
    "onnxruntime-int8": Spec(partial(load_onnxruntime, file="int8"), "int8", "int8"),
    "openvino-int8": Spec(partial(load_openvino, file="int8"), "int8", "int8"),
    "openvino-nncf": Spec(partial(load_openvino, file="nncf"), "nncf", "int8"),
}
