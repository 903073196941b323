"""Code in a process of its own, for what a process does once: loading libraries, forking, being interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def run_code(code: str, **environment: str) -> str:
    """What a fresh process prints that runs ``code``; without Numba's simulator, unless ``environment`` asks for it."""
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=inherited | environment)
    assert run.returncode == 0, run.stderr
    return run.stdout
