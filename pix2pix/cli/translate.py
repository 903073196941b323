"""The command ``translate``: says how the run goes and what came of it, and decides the exit status."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ..atomic import remove_abandoned, write_atomically
from ..errors import InputError
from ..files.options import TranslateOptions
from ..files.report import Report
from ..files.sharing import Ranks
from ..files.translate import Listener, translate
from ..video.options import PipeOptions, VideoOptions
from ..video.pipe import translate_pipe
from .progress import Progress, summary
from .streams import check_written

STDOUT = Path("-")  # as the name of the JSON file
RESUME = "outputs that are there are whole; give the same command again to go on"


def run(
    options: TranslateOptions | VideoOptions | PipeOptions,
    quiet: bool = False,
    to_json: Path | None = None,
    ranks: Ranks | None = None,
) -> int:
    """Do a run and tell of it: the summary goes to stdout, everything else to stderr. Returns the exit status.

    If frames go to stdout, the summary goes to stderr, too. ``to_json`` is the file for the summary as JSON. If that
    goes to stdout, nothing else does.

    Raises ValueError, RuntimeError or OSError with a message for people if the run cannot start.
    """
    is_pipe = isinstance(options, PipeOptions)
    if is_pipe and to_json == STDOUT:
        raise InputError("--json - is stdout, which the frames go to: give the name of a file")
    _check_json(to_json)
    if to_json not in (None, STDOUT):
        remove_abandoned([to_json])
    with Progress(sys.stderr, quiet) as progress:
        report = _translate(options, progress, ranks)
        if report.stopped:
            stopped = report.stopped if report.interrupted else f"stopped: {report.stopped}"
            progress.message(f"{stopped}: {RESUME}" if isinstance(options, TranslateOptions) else stopped)
    status = 130 if report.interrupted else 1 if report.counts["failed"] or report.stopped else 0
    if not quiet:
        print(summary(report), file=sys.stderr if is_pipe or to_json == STDOUT else sys.stdout)
    if to_json:
        try:
            _write_json(report, to_json)
        except OSError as error:
            print(f"cannot write the summary: {error}", file=sys.stderr)
            return status or 1
    return status


def _translate(
    options: TranslateOptions | VideoOptions | PipeOptions, listener: Listener, ranks: Ranks | None
) -> Report:
    if isinstance(options, TranslateOptions):
        return translate(options, listener, ranks)
    if isinstance(options, PipeOptions):
        return translate_pipe(options, 0, 1, listener, ranks)
    if find_spec("av") is None:
        raise InputError("films and numbered images need PyAV: pip install 'pix2pix[video]'")
    from ..video.translate import translate_video

    return translate_video(options, listener, ranks)


def _check_json(path: Path | None) -> None:
    """Raise InputError if the summary could not be written in the end."""
    if path is None or path == STDOUT:
        return
    if path.is_dir():
        raise InputError(f"--json {str(path)!r} is a folder: expected the name of a file, or - for stdout")
    folder = next(parent for parent in path.absolute().parents if parent.exists())  # the others will be made
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "may not be written to" if folder.is_dir() else "is no folder"
        raise InputError(f"cannot write --json {str(path)!r}: {str(folder)!r} {why}: give another name")


def _write_json(report: Report, path: Path) -> None:
    text = json.dumps(report.to_dict(), indent=2) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
        check_written(sys.stdout)
    else:
        write_atomically(path, text.encode())
