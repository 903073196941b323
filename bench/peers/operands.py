"""What a generator's operations read, in the form that PyTorch and ONNX share."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from pix2pix.model.generator import Norm, Weights
from pix2pix.model.lowering import Op, Program


def torch_weight(op: Op, weights: Weights) -> np.ndarray:
    """The kernel in PyTorch's and ONNX's layout, float32: (out,in,kh,kw), (in,out,kh,kw) for a transposed convolution,
    (channels,1,kh,kw) for a fixed filter."""
    if op.depthwise:
        taps = np.outer(op.depthwise, op.depthwise).astype(np.float32)
        return np.repeat(taps[None, None], op.filters, axis=0)
    return np.ascontiguousarray(weights[f"{op.name}.kernel"].transpose(3, 2, 0, 1))


def norm_of(op: Op) -> Norm | None:
    """The operation's norm. ValueError for one that is not by each channel's own statistics."""
    norm = op.epilogue.norm
    if norm is not None and (norm.fixed or norm.groups):
        which = "stored ones" if norm.fixed else f"those of {norm.groups} groups"
        raise ValueError(f"the peers' networks take norms by each channel's own statistics, {op.name} has {which}")
    return norm


def is_average(op: Op) -> bool:
    """Whether the operation is an average that leaves the padding out. ValueError for other filters that do."""
    if op.sampling.counts_padding:
        return False
    taps = op.depthwise
    if len(set(taps)) != 1 or not math.isclose(sum(taps), 1) or op.sampling.padding != (op.sampling.padding[0],) * 4:
        raise ValueError(f"the peers' networks cannot leave the padding out of the filter {taps} of {op.name}")
    return True


def common_slope(op: Op) -> float | None:
    """The one slope of all inputs that are concatenated, so that they can be joined first; None if there is none."""
    slopes = {source.slope for source in op.sources}
    return slopes.pop() if op.join == "concat" and len(slopes) == 1 else None


def last_reads(program: Program) -> dict[str, list[str]]:
    """For each operation, the values that nothing reads after it."""
    last = {name: op.name for op in program.ops for name in op.reads}
    done = defaultdict(list)
    for name, reader in last.items():
        done[reader].append(name)
    return dict(done)
