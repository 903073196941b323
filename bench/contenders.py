"""The engines that :mod:`.peers` compares, each in a process of its own that runs blocks of calls on demand.

Processes keep the thread pools of different libraries apart; only one of them works at a time. Every contender gets
its input in the layout that it likes best, and converting to it is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pix2pix.generator import Generator, Weights, random_weights, unet

from . import common, networks

Call = Callable[[], Any]
ToNhwc = Callable[[Any], np.ndarray]
MODEL_SEED = 0


def model() -> tuple[Generator, Weights]:
    """The network that all contenders run: U-Net 256, ngf=64, random weights, image statistics."""
    generator = unet(ngf=64, depth=8)
    return generator, random_weights(generator, MODEL_SEED)


def inputs(n: int) -> np.ndarray:
    """The pictures that all contenders run over: float32 (n,256,256,3) in [-1,1]."""
    return common.pictures(n).astype(np.float32) / np.float32(127.5) - np.float32(1)


def nchw(x: np.ndarray) -> np.ndarray:
    """(N,H,W,C) -> (N,C,H,W), contiguous."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def nhwc(y: np.ndarray) -> np.ndarray:
    """(N,C,H,W) -> (N,H,W,C), contiguous."""
    return np.ascontiguousarray(y.transpose(0, 2, 3, 1))


def pix2pix(
    generator: Generator, weights: Weights, x: np.ndarray, threads: int, plan: str | None
) -> tuple[Call, ToNhwc]:
    """This project's CPU engine, under the named plan."""
    from pix2pix.cpu import CpuEngine

    tune = "latency" if len(x) == 1 else "throughput"
    engine = CpuEngine(generator, weights, tune=tune, plan=plan, threads=threads)
    return lambda: engine.run(x), np.asarray


def torch_eager(generator: Generator, weights: Weights, x: np.ndarray, threads: int) -> tuple[Call, ToNhwc]:
    """PyTorch as it is, channels last."""
    return _torch(generator, weights, x, threads, compiled=False)


def torch_compile(generator: Generator, weights: Weights, x: np.ndarray, threads: int) -> tuple[Call, ToNhwc]:
    """PyTorch's inductor with frozen weights and static shapes."""
    return _torch(generator, weights, x, threads, compiled=True)


def _torch(generator: Generator, weights: Weights, x: np.ndarray, threads: int, compiled: bool) -> tuple[Call, ToNhwc]:
    import torch

    from .torch_network import TorchNetwork

    torch.set_num_threads(threads)
    # Measured: at N = 8 eager mode is faster with group_norm; at N = 1, and compiled, with plain moments.
    module = TorchNetwork(generator, weights, group_norm=not compiled and len(x) > 1)
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        module = torch.compile(module, dynamic=False)
    tensor = torch.from_numpy(nchw(x)).contiguous(memory_format=torch.channels_last)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return module(tensor)

    return call, lambda y: nhwc(y.numpy())


def onnxruntime(generator: Generator, weights: Weights, x: np.ndarray, threads: int) -> tuple[Call, ToNhwc]:
    """ONNX Runtime with all graph optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    serialised = networks.onnx_model(generator, weights, len(x), *x.shape[1:3])
    session = ort.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: nchw(x)}
    return lambda: session.run(None, feed)[0], nhwc


def openvino(generator: Generator, weights: Weights, x: np.ndarray, threads: int) -> tuple[Call, ToNhwc]:
    """OpenVINO in float32, one stream that has all threads."""
    import openvino as ov

    network = ov.Core().read_model(networks.onnx_model(generator, weights, len(x), *x.shape[1:3]))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = ov.Core().compile_model(network, "CPU", settings).create_infer_request()
    x_nchw = nchw(x)
    return lambda: request.infer([x_nchw], share_inputs=True, share_outputs=True)[0], nhwc


PEERS: dict[str, Callable[[Generator, Weights, np.ndarray, int], tuple[Call, ToNhwc]]] = {
    "torch-eager": torch_eager,
    "onnxruntime": onnxruntime,
    "torch-compile": torch_compile,
    "openvino": openvino,
}


def _serve(connection: Connection, name: str, n: int, threads: int, plan: str | None) -> None:
    """In the contender's process: get ready, send the output, then time as many calls as is asked for."""
    try:
        generator, weights = model()
        x = inputs(n)
        start = time.perf_counter()
        if name in PEERS:
            call, to_nhwc = PEERS[name](generator, weights, x, threads)
        else:
            call, to_nhwc = pix2pix(generator, weights, x, threads, plan)
        output = np.array(to_nhwc(call()))
        connection.send((output, time.perf_counter() - start))
        while repetitions := connection.recv():
            connection.send(common.time_calls(call, repetitions))
    except Exception as error:
        connection.send(error)


class Contender:
    """One engine in a process of its own, ready to be timed. ``output`` is (n,256,256,3); ``setup`` is in seconds."""

    def __init__(self, name: str, n: int, threads: int, plan: str | None = None) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, n, threads, plan), daemon=True)
        self._process.start()
        theirs.close()
        self.output, self.setup = self._receive()

    def _receive(self) -> Any:
        reply = self._connection.recv()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def time(self, repetitions: int) -> list[float]:
        """Seconds of each of so many calls, run now."""
        self._connection.send(repetitions)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._connection.send(0)
        self._process.join()
