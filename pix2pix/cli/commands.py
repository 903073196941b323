"""Running a parsed command, alone or on the ranks of an MPI job.

Commands are imported inside functions: a package that a command does not need is not loaded.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import mpi
from ..errors import InputError
from ..video.options import STANDARD, PipeOptions, VideoOptions, is_video
from .parser import parser, pipe_options, translate_options, video_options
from .serve_parser import serve_options
from .streams import ENDINGS, check_written

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..files.options import TranslateOptions
    from ..files.sharing import Ranks


def run(argv: Sequence[str] | None) -> int:
    """Run a command line. Under mpiexec rank 0 does, and the other ranks follow its orders."""
    comm = mpi.world()
    if comm is None:
        return _run(parser().parse_args(argv), None)
    if comm.rank:
        return _serve(comm)
    with mpi.leading(comm) as ranks:
        args = parser().parse_args(argv)
        if args.command == "translate":
            ranks.comm.heartbeat.timeout = args.rank_timeout
        return _run(args, ranks)


def _serve(comm: MPI.Intracomm) -> int:
    """Follow rank 0's orders. An error here ends all ranks: rank 0 would wait for ever."""
    ignored = [getattr(signal, name) for name in ("SIGINT", *ENDINGS)]  # they reach all ranks; rank 0 decides
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    try:
        mpi.serve(comm, ignored)
    except Exception as error:
        print(f"pix2pix: rank {comm.rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        mpi.abort(comm, 2)
    return 0


def _translate_options(args: argparse.Namespace) -> TranslateOptions | VideoOptions | PipeOptions:
    if args.raw:
        return pipe_options(args)
    options = translate_options(args)
    if STANDARD in (*options.inputs, options.output):
        raise InputError(
            "got - for stdin or stdout, where raw frames go: give --raw and their size, e.g. --raw 1280x720"
        )
    return video_options(args) if is_video(options.inputs, options.output) else options


def _run(args: argparse.Namespace, ranks: Ranks | None) -> int:
    """Run a parsed command; returns the exit status."""
    if ranks and args.command in ("watch", "serve"):
        raise InputError(f"{args.command} runs in one process: start it without mpiexec")
    if args.command == "translate":
        from . import translate

        return translate.run(_translate_options(args), args.quiet, args.json, ranks)
    if args.command == "watch":
        from . import watch

        return watch.run(translate_options(args), args.quiet)
    if args.command == "demo":
        from . import demo

        return demo.run(args.output, ranks)
    if args.command == "serve":
        from . import serve

        return serve.run(serve_options(args), args.demo, opens_browser=args.demo and not args.no_browser)
    from . import convert, info

    status = {"convert": convert, "info": info}[args.command].run(args)
    check_written(sys.stdout)
    return status
