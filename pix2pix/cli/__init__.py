"""The command line: parses what was asked for, does it, prints, and decides the exit status. Nothing else prints.

Exit status: 0 all done, 1 some images failed or the run stopped early, 2 it could not start, 130 interrupted.
This module imports little, so that an interrupt while the rest is imported is told like any other.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence

from .streams import interrupted_by_signals, unfailing_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit status."""
    with unfailing_streams(), interrupted_by_signals():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of odd but harmless metadata in image files
                from .commands import run

                return run(argv)
        except KeyboardInterrupt:
            print("pix2pix: interrupted", file=sys.stderr)
            return 130
        except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
            from ..mpi.launch import launched

            if launched()[0] == 0:  # of several processes that cannot start, one says why
                print(f"pix2pix: error: {str(error) or type(error).__name__}", file=sys.stderr)
            return 2
        finally:
            if argv is None:  # the process ends: a second Ctrl-C has nothing left to stop
                signal.signal(signal.SIGINT, signal.SIG_IGN)
