"""The compiled extensions, one per instruction set: which of them this machine can run, and which one is used.

AMX has no extension of its own: it is avx512's, whose products in bfloat16 are then computed in tiles.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

from .openmp import loading_environment
from .topology import default_threads

INSTRUCTION_SETS = ("amx", "avx512", "avx2", "portable")  # best first
FORCE_ISA = "PIX2PIX_ISA"


def instruction_sets() -> list[str]:
    """What this machine can run and this installation was built for, best first."""
    best = INSTRUCTION_SETS.index(_load("portable").build_facts()["processor"])
    found = [isa for isa in INSTRUCTION_SETS[best:] if importlib.util.find_spec(f"pix2pix._cpu_{isa}")]
    tiles = "avx512" in found and _load("avx512").build_facts()["tiles"] == "yes"
    return ["amx", *found] if tiles else found


def chosen(isa: str | None = None, precision: str = "float32") -> str:
    """The instruction set to be used: ``isa``, or by default what PIX2PIX_ISA names, else the best for the precision.

    Raises RuntimeError if it isn't built, or the processor cannot run it.
    """
    isa = isa or os.environ.get(FORCE_ISA)
    if isa and isa not in INSTRUCTION_SETS:
        raise RuntimeError(f"got instruction set {isa!r}, expected one of {', '.join(INSTRUCTION_SETS)}")
    if isa == "portable":
        return isa
    found = instruction_sets()
    if isa and isa not in found:
        raise RuntimeError(f"instruction set {isa!r}: this machine and this build have {', '.join(found)}")
    best = isa or found[0]
    return "avx512" if best == "amx" and precision == "float32" else best


def extension(isa: str | None = None) -> ModuleType:
    """The compiled module for an instruction set, which is :func:`chosen`.

    Raises RuntimeError if it isn't built, or the processor cannot run it.
    """
    return _load(chosen(isa))


def _load(isa: str) -> ModuleType:
    try:
        with loading_environment():
            return importlib.import_module(f"pix2pix._cpu_{isa}")
    except ImportError as error:
        raise RuntimeError(f"the compiled extension is missing ({error}): run make build, or pip install .") from None


def build_info() -> dict[str, str]:
    """What the extension was built with and what it uses here."""
    facts = extension().build_facts()
    return {
        "instruction set": f"{facts['isa']} (built and usable here: {', '.join(instruction_sets())})",
        "compiler": facts["compiler"],
        "OpenMP": facts["openmp"],
        "bfloat16": f"yes, {chosen(precision='bfloat16')}" if facts["bfloat16"] == "yes" else "no",
        "int8": f"yes, {chosen(precision='int8')}, {'with' if facts['vnni'] == 'yes' else 'without'} VNNI",
        "threads": str(1 if facts["openmp"] == "no" else default_threads()),
    }
