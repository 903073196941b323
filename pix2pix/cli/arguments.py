"""Arguments that several commands take, and the kinds of their values."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction

from ..factory import EngineOptions
from ..plans.plan import TUNES
from ..plans.precisions import PRECISIONS


def add_engine_options(group: argparse._ActionsContainer) -> None:
    """The options that :func:`engine_options` makes a value of."""
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0,1 or cpu,cuda:0 [auto]")
    group.add_argument("--precision", default="float32", choices=PRECISIONS, help="[float32]")
    group.add_argument(
        "--threads", type=count_of, metavar="N", help="CPU threads [OMP_NUM_THREADS, else the cores that may be used]"
    )
    group.add_argument(
        "--workers", type=count_of, metavar="N", help="that share the work [4 per GPU if there are several]"
    )
    group.add_argument("--gpu-layers", metavar="LIST", help="layers on the GPU: a list, auto, all, seed-b or seed-c")
    group.add_argument("--tune", choices=TUNES, help="[throughput; latency with --raw]")
    group.add_argument(
        "--plan",
        metavar="FILE|NAME",
        help="a plan file, or the name of an algorithm, e.g. winograd4: layers that cannot take it are direct",
    )


def engine_options(args: argparse.Namespace, tune: str = "throughput") -> EngineOptions:
    """The engine's options of a parsed command; ``tune`` is the default."""
    return EngineOptions(
        device=args.device,
        precision=args.precision,
        tune=args.tune or tune,
        plan=args.plan,
        threads=args.threads,
        workers=args.workers,
        gpu_layers=args.gpu_layers,
    )


def add_model_options(p: argparse._ActionsContainer) -> None:
    """How a model file is read."""
    p.add_argument("--statistics", choices=("image", "running"), help="[what the model's own program does]")
    p.add_argument(
        "--set", action="append", type=setting_of, default=[], metavar="NAME=VALUE", help="correct the model: eps=1e-3"
    )
    p.add_argument("--key", metavar="NAME", help="which model, of a file that has several")


def count_of(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


def factor_of(text: str) -> int:
    """A constant rate factor, 0 to 63."""
    if not text.isascii() or not text.isdecimal() or int(text) > 63:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 0 to 63")
    return int(text)


def rate_of(text: str) -> Fraction:
    """Images per second, as a number or a fraction."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected images per second, e.g. 25 or 30000/1001")
    return rate


def seconds_of(text: str) -> float:
    """A number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds above 0")
    return seconds


def bytes_of(text: str) -> int:
    """The bytes that "500M", "4G" or a number of bytes means."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.upper())
    if found is None or not (count := int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a size, e.g. 500M or 4G")
    return count


def size_of(text: str) -> tuple[int, int]:
    """The (H, W) that "N" or "WxH" in pixels means."""
    try:
        sides = [count_of(side) for side in text.lower().split("x")]
    except argparse.ArgumentTypeError:
        sides = []
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected N or WxH pixels, e.g. 256 or 512x256")
    return sides[-1], sides[0]


def setting_of(text: str) -> tuple[str, float]:
    """The (name, value) that "NAME=VALUE" means."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=NUMBER, e.g. eps=1e-3") from None
