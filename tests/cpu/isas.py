"""The instruction sets that this machine can run, as the tests take them."""

from __future__ import annotations

from pix2pix.cpu.instruction_sets import extension, instruction_sets

EXTENSIONS = [isa for isa in instruction_sets() if isa != "amx"]  # each has kernels of its own
_HAVE_BFLOAT16 = extension(EXTENSIONS[0]).build_facts()["bfloat16"] == "yes"
BFLOAT16 = [isa for isa in instruction_sets() if isa in ("amx", "avx512")] if _HAVE_BFLOAT16 else []
EACH_BFLOAT16 = BFLOAT16 or [None]  # for parametrize: one case, which is skipped
INT8 = instruction_sets()
# each with whether 8-bit integers lie as VNNI takes them, which the portable kernels do in plain C
INTEGERS = [(isa, False) for isa in EXTENSIONS]
INTEGERS += [(isa, True) for isa in INT8 if isa == "portable" or extension(isa).build_facts()["vnni"] == "yes"]
NO_BFLOAT16 = "this processor has no AVX512_BF16"
