"""The arguments of ``pix2pix serve``, and the options that they make."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import get_args

from ..files.options import Fit, OutputFormat, Pair, ServeOptions
from .arguments import (
    add_engine_options,
    add_model_options,
    bytes_of,
    count_of,
    engine_options,
    seconds_of,
    size_of,
)

EPILOG = "exit status: 0 ended by a signal, and all requests answered; 2 it could not start"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a model, as a part of a URL
TOKEN = "PIX2PIX_TOKEN"  # an environment variable: arguments can be seen by all users of a machine


def serve_options(args: argparse.Namespace) -> ServeOptions:
    """The options of a parsed ``serve`` command. Raises ValueError for an empty token, no model, or two of one name."""
    if bool(args.model) == args.demo:
        raise ValueError("name what to serve: either --model FILE or --demo")
    if args.token == "":
        raise ValueError("got an empty --token: give one, or leave the option out")
    names = [name for name, _ in args.model]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two models are called {repeated[0]!r}: name them, e.g. --model day=FILE --model night=FILE")
    return ServeOptions(
        models=tuple(args.model),
        host=args.host,
        port=args.port,
        engine=engine_options(args),
        statistics=args.statistics,
        overrides=dict(args.set),
        key=args.key,
        fit=args.fit,
        size=args.size,
        pair=args.pair,
        no_instance=args.no_instance,
        format=args.format,
        image_timeout=args.image_timeout,
        memory=args.memory,
        token=args.token or os.environ.get(TOKEN) or None,
        allow_origins=tuple(args.allow_origin),
        hosts=tuple(args.allow_host),
        max_queue=args.max_queue,
        max_delay=args.max_delay / 1000,
        max_body=args.max_body,
        max_pixels=args.max_pixels,
        max_bytes=args.max_bytes,
        body_timeout=args.body_timeout,
        grace=args.grace,
    )


def add(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``serve``."""
    p.add_argument(
        "--model",
        "-m",
        type=_model,
        action="append",
        default=[],
        metavar="[NAME=]FILE|DIR",
        help="a trained generator; several are told apart by NAME [that of the file], and the first is the default",
    )
    p.add_argument("--demo", action="store_true", help="serve the embedded model, and open the page in a browser")
    p.add_argument("--no-browser", action="store_true", help="with --demo: open nothing")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1: this machine alone]")
    p.add_argument("--port", type=_port, default=8000, help="[8000]; 0 takes a free one")
    add_engine_options(p.add_argument_group("engine"))
    add_model_options(p.add_argument_group("model"))
    images = p.add_argument_group("images", "what a request gets that asks for nothing else")
    images.add_argument("--fit", default="resize", choices=get_args(Fit), help="[resize]")
    images.add_argument("--size", type=size_of, metavar="N|WxH", help="[what the model was trained at]")
    images.add_argument("--pair", choices=get_args(Pair), help="images are A|B side by side; take one half")
    images.add_argument("--format", "-f", default="png", choices=get_args(OutputFormat), help="[png]")
    images.add_argument("--no-instance", action="store_true", help="label maps for pix2pixHD come without instances")
    _add_access(p.add_argument_group("access"))
    _add_limits(p.add_argument_group("limits"))


def _add_access(access: argparse._ActionsContainer) -> None:
    access.add_argument("--token", help=f"that requests must give as a bearer token [the environment's {TOKEN}]")
    access.add_argument(
        "--allow-origin",
        action="append",
        type=_origin,
        default=[],
        metavar="ORIGIN",
        help="pages of https://example.org may use this server [its own page alone]; may be repeated",
    )
    access.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which requests may call the server on a loopback address [localhost]; may be repeated",
    )


def _add_limits(limits: argparse._ActionsContainer) -> None:
    limits.add_argument("--max-queue", type=count_of, default=64, metavar="N", help="images that wait; more: 503 [64]")
    limits.add_argument(
        "--max-delay",
        type=_milliseconds,
        default=5.0,
        metavar="MS",
        help="milliseconds that an image may wait for others of its size, to be computed together [5]",
    )
    limits.add_argument("--max-body", type=bytes_of, default=64 << 20, metavar="SIZE", help="bytes of a request [64M]")
    limits.add_argument(
        "--max-pixels",
        type=count_of,
        default=1 << 24,
        metavar="N",
        help="pixels of an image when padded [16777216]",
    )
    limits.add_argument(
        "--max-bytes", type=bytes_of, default=1 << 30, metavar="SIZE", help="memory of all requests together [1G]"
    )
    limits.add_argument(
        "--body-timeout", type=seconds_of, default=30.0, metavar="SECONDS", help="within which a request comes [30]"
    )
    limits.add_argument(
        "--image-timeout",
        type=seconds_of,
        default=30.0,
        metavar="SECONDS",
        help="seconds of processor time after which decoding an image is given up [30]",
    )
    limits.add_argument("--memory", type=bytes_of, metavar="SIZE", help="of the process [what the system leaves it]")
    limits.add_argument(
        "--grace", type=seconds_of, default=10.0, metavar="SECONDS", help="to finish requests after SIGTERM [10]"
    )


def _model(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals or not NAME.fullmatch(name):
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).stem).lstrip(".-_") or "model", Path(text)
    if not file:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a file after NAME=")
    return name, Path(file)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a port, 0 to 65535")
    return int(text)


def _milliseconds(text: str) -> float:
    return 0.0 if text == "0" else seconds_of(text)


def _origin(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s*]+", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an origin, e.g. https://example.org")
    return text.lower()
