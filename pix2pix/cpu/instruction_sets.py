"""The compiled extensions, one per instruction set: which of them this machine can run, and which one is used."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

from .openmp import loading_environment
from .topology import default_threads

INSTRUCTION_SETS = ("avx512", "avx2", "portable")  # best first
FORCE_ISA = "PIX2PIX_ISA"


def instruction_sets() -> list[str]:
    """What this machine can run and this installation was built for, best first."""
    best = INSTRUCTION_SETS.index(extension("portable").build_facts()["processor"])
    return [isa for isa in INSTRUCTION_SETS[best:] if importlib.util.find_spec(f"pix2pix._cpu_{isa}")]


def extension(isa: str | None = None) -> ModuleType:
    """The compiled module for an instruction set; by default what PIX2PIX_ISA names, else the best there is.

    Raises RuntimeError if it isn't built, or the processor cannot run it.
    """
    if isa is None:
        isa = os.environ.get(FORCE_ISA) or instruction_sets()[0]
    if isa not in INSTRUCTION_SETS:
        raise RuntimeError(f"got instruction set {isa!r}, expected one of {', '.join(INSTRUCTION_SETS)}")
    if isa != "portable" and isa not in instruction_sets():
        raise RuntimeError(f"instruction set {isa!r}: this machine and this build have {', '.join(instruction_sets())}")
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
        "bfloat16": facts["bfloat16"],
        "threads": str(1 if facts["openmp"] == "no" else default_threads()),
    }
