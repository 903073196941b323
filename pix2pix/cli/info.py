"""The command ``info``: describes a model, its plan, and this build."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import __version__
from ..cpu.instruction_sets import build_info, chosen
from ..cpu.peaks import measure
from ..engines.sensitivity import plan_for_weights
from ..loading import read_model
from ..model.generator import Generator, Layer, Source, Weights
from ..model.palette import described
from ..plans import placements
from ..plans import plan as plans
from ..plans.algorithms import ALGORITHMS
from ..plans.heuristics import choose
from ..plans.plan import Plan
from ..plans.precisions import check_precision


def run(args: argparse.Namespace) -> int:
    """Describe ``args.model`` and its plan, or this build. Returns the exit status."""
    if args.plan and not args.model:  # "info --plan MODEL": the option has taken the model's place
        args.model, args.plan = Path(args.plan), ""
    if args.model:
        generator, weights = read_model(args.model, args.statistics, args.key, dict(args.set))
        plan = _plan(args, generator, weights)
        print(describe(generator))
        print()
        print(layer_table(generator, plan))
        if not args.measure:
            return 0
        print()
    elif args.plan is not None or args.gpu_layers:
        raise ValueError("--plan shows the plan of a model: name one")
    facts = {"pix2pix": __version__, **build_info()}
    if args.measure:
        facts |= {name: f"{value:.4g}" for name, value in measure().items()}
    print(aligned(facts))
    return 0


def _plan(args: argparse.Namespace, generator: Generator, weights: Weights) -> Plan | None:
    """The plan that --plan and --gpu-layers ask to be shown."""
    if args.gpu_layers == "auto":
        raise ValueError("info measures no placement: translate with --gpu-layers auto writes a plan file to show here")
    if args.gpu_layers:
        return placements.decide(generator, args.gpu_layers, args.plan or None, args.precision, args.tune)
    if args.plan is None:
        return None
    if args.plan == "" or args.plan in ALGORITHMS["cpu"]:
        check_precision(args.precision, "cpu")
        try:
            processor = chosen(precision=args.precision)
        except RuntimeError:  # nothing is built: the plan for processors without AMX
            processor = None
        if args.precision == "int8" and not args.plan:
            return plan_for_weights(generator, weights, args.tune, processor)
        return choose(generator, args.tune, args.plan or None, args.precision, processor=processor)
    return plans.read(args.plan, generator)


def describe(generator: Generator) -> str:
    """A model's facts, one per line."""
    shapes = generator.tensors().values()
    whose = {"image": "each image's own statistics", "running": "the stored statistics"}[generator.statistics]
    norms = "none" if generator.eps is None else f"eps {generator.eps:g}, {whose}"
    labels = " of label maps" if generator.takes == "labels" else ""
    facts = {
        "origin": generator.origin or "unknown",
        "ngf": generator.ngf,
        "levels": generator.depth,
        "channels": f"{generator.in_channels}{labels} -> {generator.out_channels}",
        "norm": norms,
        "trained at": f"{generator.size}x{generator.size}, takes multiples of {generator.multiple}",
        "parameters": f"{sum(map(math.prod, shapes)):,}",
        "work": f"{generator.flops() / 1e9:.3f} GFLOP per image of that size",
    }
    if generator.palette:
        facts["palette"] = ", ".join(map(" ".join, described(generator.palette).items()))
    return "\n\n".join(filter(None, [aligned(facts), provisos(generator)]))


def provisos(generator: Generator) -> str:
    """What the model's file does not say, what was taken for it and how to correct it, and remarks; "" for nothing."""
    other = {"image": "running", "running": "image"}[generator.statistics]
    values = {
        "eps": (generator.eps, "--set eps=NUMBER"),
        "slope": (generator.slope, "--set slope=NUMBER"),
        "statistics": (generator.statistics, f"--statistics {other}"),
        "align_corners": (generator.align_corners, f"--set align_corners={str(not generator.align_corners).lower()}"),
        "padding_mode": (generator.padding_mode, "--set padding_mode=replicate"),
        "size": (generator.size, "--set size=NUMBER"),
    }
    rows = [["  " + name, str(values[name][0]).lower(), values[name][1]] for name in generator.assumed]
    heading = ["not in the file, so its framework's defaults, and what corrects them:", table(rows)] if rows else []
    return "\n".join([*heading, *generator.remarks])


def layer_table(generator: Generator, plan: Plan | None = None) -> str:
    """A table of the layers, for an image of the model's own size; with what ``plan`` says of each."""
    shapes = generator.shapes(generator.size, generator.size)
    macs = generator.macs(generator.size, generator.size)
    head = ["layer", "reads", "kernel", "output", "norm", "parameters", "MFLOP", "plan"]
    rows = [head[: 7 + (plan is not None)]]
    for layer in generator.layers:
        h, w, c = shapes[layer.name]
        parameters = sum(map(math.prod, layer.tensors(generator.statistics).values()))
        row = [layer.name, _reads(layer), _kernel(layer), f"{h}x{w}x{c}", _norm(layer)]
        row += [f"{parameters:,}", f"{2 * macs[layer.name] / 1e6:,.1f}"]
        rows.append(row + ([f"{plan.hardware_of(layer.name)} {plan.layers[layer.name]}"] if plan else []))
    return table(rows, right={5, 6})


def _reads(layer: Layer) -> str:
    names = {"concat": ", ", "add": " + "}[layer.join].join(map(_read, layer.inputs))
    return names + (f"; + {_read(layer.residual)}" if layer.residual else "")


def _read(source: Source) -> str:
    return source.layer + {1.0: "", 0.0: " relu"}.get(source.slope, f" lrelu {source.slope:g}")


def _norm(layer: Layer) -> str:
    if layer.norm and layer.norm.groups:
        return f"{layer.norm.groups} group{'s' * (layer.norm.groups > 1)}"
    return "yes" if layer.norm else "-"


def _kernel(layer: Layer) -> str:
    words = [f"{layer.kernel}x{layer.kernel} s{layer.stride}"]
    if layer.transposed:
        words.append("up")
    elif layer.upsample > 1:
        words.append(f"of {layer.upsample}x {layer.upsample_mode}")
    elif layer.stride > 1:
        words.append("down")
    words += ["fixed"] if layer.depthwise else []
    words += [layer.padding_mode] if layer.padding_mode != "zeros" else []
    return " ".join(words)


def aligned(facts: Mapping[str, object]) -> str:
    """Names and values in two columns."""
    return table([[name, str(value)] for name, value in facts.items()])


def table(rows: Iterable[Iterable[str]], right: Iterable[int] = ()) -> str:
    """Rows in columns of even width; the columns whose numbers are in ``right`` are aligned to the right."""
    rows, right = [list(row) for row in rows], set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
