"""The command line: parses what was asked for, does it, prints, and decides the exit status. Nothing else prints.

Exit status: 0 all done, 1 some images failed or the run stopped early, 2 it could not start, 130 interrupted.
Commands are imported inside functions: a package that a command does not need is not loaded.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import mpi
from .parser import parser, translate_options

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..files.sharing import Ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit status."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd but harmless metadata in image files
            return _run_on_ranks(argv)
    except KeyboardInterrupt:
        print("pix2pix: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
        if mpi.launched()[0] == 0:  # of several processes that cannot start, one says why
            print(f"pix2pix: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2


def _run_on_ranks(argv: Sequence[str] | None) -> int:
    """Run a command line. Under mpiexec rank 0 does, and the other ranks follow its orders."""
    comm = mpi.world()
    if comm is None:
        return _run(parser().parse_args(argv), None)
    if comm.rank:
        return _serve(comm)
    with mpi.leading(comm) as ranks:
        return _run(parser().parse_args(argv), ranks)


def _serve(comm: MPI.Intracomm) -> int:
    """Follow rank 0's orders. An error here ends all ranks: rank 0 would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all ranks; rank 0 decides what follows
    try:
        mpi.serve(comm)
    except Exception as error:
        print(f"pix2pix: rank {comm.rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        comm.Abort(2)
    return 0


def _run(args: argparse.Namespace, ranks: Ranks | None) -> int:
    """Run a parsed command; returns the exit status."""
    if args.command == "translate":
        from . import translate

        return translate.run(translate_options(args), args.quiet, args.json, ranks)
    if args.command == "demo":
        from . import demo

        return demo.run(args.output, ranks)
    if args.command == "convert":
        from . import convert

        return convert.run(args)
    from . import info

    return info.run(args)
