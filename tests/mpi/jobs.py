"""How tests start jobs of several ranks. They are skipped where there is no MPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pix2pix

ROOT = Path(pix2pix.__file__).resolve().parents[1]
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
OPENMPI = ROOT / "build" / "openmpi"  # where ci/test-full installs it, for its ULFM
IMAGES = 60

needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or subprocess.run([sys.executable, "-c", "import mpi4py"], capture_output=True).returncode != 0,
    reason="needs mpi4py and mpiexec: pip install .[mpi]",
)


needs_ulfm = pytest.mark.skipif(not OPENMPI.is_dir(), reason="needs Open MPI in build/openmpi, see ci/test-full")
REMEMBER = 'echo $$ > "pid-${PMI_RANK:-$OMPI_COMM_WORLD_RANK}"'  # exec keeps the process's number
SLOW = ("--size", "256")
ULFM = [str(OPENMPI / "bin" / "mpiexec"), "--oversubscribe", "--with-ft", "ulfm"]
OPENMPI_SETTINGS = {
    "MPI4PY_MPIABI": "openmpi",
    "LD_LIBRARY_PATH": str(OPENMPI / "lib"),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def command(folder: Path, *options: str, ranks: int = 0, shell: str = "", **keywords) -> subprocess.CompletedProcess:
    """Run ``pix2pix translate in ...`` by so many ranks, if any; ``shell`` is run by each of them before."""
    return subprocess.run(argv(*options, ranks=ranks, shell=shell), **settings(folder), timeout=100, **keywords)


def argv(*options: str, ranks: int = 0, shell: str = "") -> list[str]:
    program = [sys.executable, "-m", "pix2pix", "translate", "in", "-m", "model.safetensors", "--threads", "1"]
    program += ["--batch-size", "2", "--size", "64", *options]
    if shell:
        program = ["bash", "-c", f'{shell}\nexec "$@"', "bash", *program]
    return [MPIEXEC, "-n", str(ranks), *program] if ranks else program


def settings(folder: Path, **environment: str) -> dict[str, object]:
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": search, **environment}
    return {"cwd": folder, "env": variables, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def files(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, hidden files too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
