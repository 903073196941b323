"""The command ``watch``: says what becomes of the files that appear in a folder, and decides the exit status."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from ..errors import InputError
from ..files.options import TranslateOptions
from .progress import Progress, summary


def run(options: TranslateOptions, quiet: bool = False) -> int:
    """Watch until an interrupt, which is how this command ends in good order. Returns the exit status.

    Raises ValueError, RuntimeError or OSError with a message for people if the run cannot start.
    """
    if find_spec("watchfiles") is None:
        raise InputError("watching a folder needs watchfiles: pip install 'pix2pix[watch]'")
    from ..video.watch import watch

    with Progress(sys.stderr, quiet) as progress:
        report = watch(options, progress)
        if report.stopped and not report.interrupted:
            progress.message(f"stopped: {report.stopped}")
    if not quiet:
        print(summary(report))
    return 1 if report.counts["failed"] or (report.stopped and not report.interrupted) else 0
