"""Builds the extension once per instruction set; everything else about the package is in pyproject.toml.

`python setup.py build_ext --inplace` works offline. OpenMP is used if a small program that needs it compiles, links
and runs; without it, or with PIX2PIX_NO_OPENMP set, the extension is built for one thread. PIX2PIX_DEBUG builds it
with bounds checks and sanitizers.
"""

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
X86_FLAGS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
}
FLAGS = {"portable": []} | (X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else {})
OPENMP_PROBE = """
#include <omp.h>
int main(void) {
    int threads = 0;
#pragma omp parallel num_threads(2) reduction(+ : threads)
    threads += 1;
    return threads == 2 ? 0 : 1;
}
"""
DEBUG = bool(os.environ.get("PIX2PIX_DEBUG"))  # bounds checks, and the compiler's sanitizers
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
}


def openmp_flags() -> list[str]:
    """The flags with which OpenMP works here, found by compiling and running a program; empty if none do."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.c"), Path(folder, "probe")
        source.write_text(OPENMP_PROBE)
        for flags in (["-fopenmp"], ["-Xpreprocessor", "-fopenmp", "-lomp"]):
            try:
                subprocess.run([*compiler, str(source), *flags, "-o", str(program)], check=True, capture_output=True)
                subprocess.run([str(program)], check=True, capture_output=True, timeout=60)
            except (OSError, subprocess.SubprocessError):
                continue
            print(f"OpenMP: a program built with {' '.join(flags)} ran on 2 threads")
            return flags
    print("OpenMP: not found, building for one thread (install libgomp or libomp to use all cores)")
    return []


def extension(isa: str, openmp: list[str]) -> Extension:
    """The extension for one instruction set, from its own copy of the source: Cython names modules after files."""
    folder = Path("build", "isa")
    (HERE / folder).mkdir(parents=True, exist_ok=True)
    source = folder / f"_cpu_{isa}.pyx"
    shutil.copyfile(HERE / "pix2pix" / "_cpu.pyx", HERE / source)
    optimise = ["-O1", *SANITIZE] if DEBUG else ["-O3"]
    return Extension(
        f"pix2pix._cpu_{isa}",
        [str(source)],
        include_dirs=["pix2pix"],
        depends=[str(path) for path in sorted(Path("pix2pix/cpu/kernels").iterdir())],
        extra_compile_args=[*optimise, *FLAGS[isa], *(flag for flag in openmp if flag != "-lomp")],
        extra_link_args=openmp + (SANITIZE if DEBUG else []),
    )


class BuildExtensions(build_ext):
    """Probes for OpenMP only when something is built, and tells setuptools of the C files then."""

    def finalize_options(self) -> None:
        openmp = [] if os.environ.get("PIX2PIX_NO_OPENMP") else openmp_flags()
        extensions = [extension(isa, openmp) for isa in FLAGS]
        self.distribution.ext_modules[:] = cythonize(
            extensions, compiler_directives=DIRECTIVES, include_path=["pix2pix"]
        )
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()


setup(
    ext_modules=[Extension(f"pix2pix._cpu_{isa}", ["pix2pix/_cpu.pyx"]) for isa in FLAGS],
    cmdclass={"build_ext": BuildExtensions},
)
