"""The engine's kernels with one thing broken: a table of changes of their PTX, each of which the tests must notice.

    python -m tests.gpu.ptx.mutations [WORD...]

runs those whose description has the words, and says how each is noticed. None survives. Every intrinsic of
:mod:`pix2pix.gpu.ptx` has a mutation. What they leave out: round8 and pack8 convert by the same instruction, so
"bfloat16 for float16" breaks both; that round8 alone is missing would change results by less than their tolerance.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.gpu.networks import Case, Network, Sample

from .device import Session
from .faults import Fault
from .machine import Options
from .networks import check

ORDERS = Options(), Options(late=False), Options(order="random", late=False, seed=1)  # until one of them notices
NETWORKS: dict[str, Case] = {
    "simt": Network("implicit-128x64", 1, 32, 48, True, 5, 2),
    "sums": Network("implicit-32x128-split4", 1, 16, 32, True, 5, 2),
    "im2col": Network("im2col", 1, 16, 16, True, 5, 2),
    "mma": Network("tensor-64x64", 1, 40, 32, True, 9, 2, "float16"),
    "one step": Network("tensor-64x64", 1, 64, 64, True, 2, 3, "float16"),  # sums and the last stage share memory
    "tf32": Network("tensor-64x64-split2", 1, 16, 32, True, 9, 2, "tf32"),
    "residual": Sample("tensor-64x64", 2, 8, 12, "residual", "float16"),
    "hopper": Network("hopper-128x64", 1, 32, 64, True, (32, 64, 64), 3, "float16"),
}


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change of one intrinsic's PTX in the kernels whose names match."""

    intrinsic: str
    what: str
    network: str
    kernels: str
    change: Callable[[str], str]

    def __str__(self) -> str:
        return f"{self.intrinsic}: {self.what} ({self.network})"


def sub(pattern: str, new: Any, which: int | None = 0) -> Callable[[str], str]:
    """Replace the match of that number (counted from the end if negative), or all."""

    def apply(text: str) -> str:
        found = [*re.finditer(pattern, text)]
        if which is not None:
            found = found[which : which + 1 or None]
        for match in reversed(found):
            text = text[: match.start()] + (new(match) if callable(new) else match.expand(new)) + text[match.end() :]
        return text

    return apply


NO_BARRIER = r"bar\.sync\s+0;"
REGISTERS = r"(%r\d+),(%r\d+),(%r\d+),(%r\d+)"
FLOATS = r"(%f\d+),(%f\d+),(%f\d+),(%f\d+)"
V4_LOAD = r"(ld\.global\.v4\.f32\s+\{[^}]*\}, \[%rd\d+)\]"
V4_STORE = r"(st\.global\.v4\.f32\s+\[[^]]*\], \{)(%f\d+), (%f\d+)"
V4_WORDS = r"(st\.global\.v4\.u32\s+\[[^]]*\], \{)(%r\d+), (%r\d+)"
WAIT_FULL = r"\{ \.reg \.pred ended[^}]*\}(?=[^}]{0,900}wgmma\.fence)"
WAIT_FREE = r"\{ \.reg \.pred ended[^}]*\}(?=[^}]{0,300}arrive\.expect_tx)"
HALVES = r"cvt\.f32\.f16 (%f\d+),(%rs\d+);([^;]*?)cvt\.f32\.f16 (%f\d+),(%rs\d+);"
COPY = r"(cp\.async\.cg\.shared\.global \[%r\d+\],\[%rd\d+\],16),%r\d+"
COORDINATES = r"(complete_tx::bytes \[%r\d+\],\[%rd\d+,\{%r\d+,)(%r\d+),(%r\d+),(%r\d+)"


def _more(match: re.Match[str]) -> str:
    return f"{match[1]}{int(match[2]) + 1}"


def _further(match: re.Match[str]) -> str:
    return f"{match[1]}+{int(match[2]) + 16}]"


MUTATIONS = [
    # -- barriers of blocks
    Mutation("syncthreads", "none in the product", "simt", "simt_gemm", sub(NO_BARRIER, "")),
    Mutation("syncthreads", "none in the product", "mma", "mma_gemm", sub(NO_BARRIER, "")),
    Mutation("syncthreads", "none after mbarriers are made", "hopper", "hopper_gemm", sub(NO_BARRIER, "")),
    Mutation("syncthreads", "none before statistics", "one step", "mma_gemm.*statistics", sub(NO_BARRIER, "", -2)),
    Mutation("syncthreads", "none within statistics", "mma", "mma_gemm.*statistics", sub(NO_BARRIER, "", -1)),
    Mutation("syncthreads", "finish_map's first", "sums", "finish_map normalised", sub(NO_BARRIER, "", 0)),
    Mutation("syncthreads", "finish_map's second", "sums", "finish_map normalised", sub(NO_BARRIER, "", 1)),
    Mutation("syncthreads", "normalise_map's first", "mma", "normalise_map", sub(NO_BARRIER, "", 0)),
    Mutation("syncthreads", "normalise_map's second", "mma", "normalise_map", sub(NO_BARRIER, "", 1)),
    Mutation("syncthreads", "pad_map's first", "residual", "pad_map statistics", sub(NO_BARRIER, "", 0)),
    Mutation("syncthreads", "pad_map's second", "residual", "pad_map statistics", sub(NO_BARRIER, "", 1)),
    # -- simt
    Mutation("load4", "16 bytes further", "im2col", "im2col", sub(V4_LOAD, r"\1+16]")),
    Mutation("load4", "16 bytes further", "simt", "simt_gemm", sub(V4_LOAD, r"\1+16]")),
    Mutation("store4", "insert_zeros exchanges elements", "im2col", "insert_zeros", sub(V4_STORE, r"\1\3, \2", None)),
    Mutation("store4", "elements exchanged", "im2col", "im2col", sub(V4_STORE, r"\1\3, \2", None)),
    Mutation("quotient", "the remainder", "mma", "mma_gemm", sub(r"div\.u32", "rem.u32", -1)),
    Mutation("quotient", "the remainder", "sums", "finish_map", sub(r"div\.u32", "rem.u32", -1)),
    Mutation(
        "fma_tile",
        "one product of wrong operands",
        "simt",
        "simt_gemm",
        sub(r"fma\.rn\.f32 \t(%f\d+), (%f\d+), (%f\d+), (%f\d+)", r"fma.rn.f32 \t\1, \2, \2, \4", 77),
    ),
    Mutation(
        "fma_tile",
        "a row further in shared memory",
        "simt",
        "simt_gemm",
        sub(r"(ld\.shared\.v4\.f32\s+\{[^}]*\}, \[%r?d?\d+)\+(\d+)\]", _further, 3),
    ),
    # -- vectors
    Mutation("fill8", "ones for zeros", "sums", "finish_map normalised", sub(r"0f00000000", "0f3F800000", None)),
    Mutation("load8", "the first half twice", "sums", "finish_map", sub(r"(ld\.global\.v4\.f32[^;]*)\+16\]", r"\1]")),
    Mutation("store8", "elements exchanged", "sums", "simt_gemm", sub(V4_STORE, r"\1\3, \2")),
    Mutation(
        "unpack8",
        "halves of a word exchanged",
        "mma",
        "normalise_map",
        sub(HALVES, r"cvt.f32.f16 \1,\5;\3cvt.f32.f16 \4,\2;", None),
    ),
    Mutation("pack8", "words exchanged", "mma", "mma_gemm.*maps", sub(V4_WORDS, r"\1\3, \2", None)),
    Mutation(
        "pack8",
        "tf32 is not masked",
        "tf32",
        "finish_map|mma_gemm",
        sub(r"and\.b32  ?\t?(%r\d+), (%r\d+), -8192", r"mov.b32 \1, \2", None),
    ),
    Mutation("round8", "bfloat16 for float16", "mma", "mma_gemm", sub(r"cvt\.rn\.f16x2", "cvt.rn.bf16x2", None)),
    Mutation("add8", "a difference", "mma", "mma_gemm maps|mma_gemm.*maps", sub(r"add\.f32", "sub.f32", None)),
    Mutation("subtract8", "a sum", "mma", "normalise_map", sub(r"sub\.f32", "add.f32", None)),
    Mutation("multiply8", "a sum", "mma", "mma_gemm.*statistics", sub(r"mul\.f32", "add.f32", -1)),
    Mutation("leaky_relu8", "the smaller of both", "mma", "mma_gemm.*maps", sub(r"setp\.gt\.f32", "setp.lt.f32", None)),
    Mutation(
        "pack",
        "halves of a word exchanged",
        "mma",
        "write_map",
        sub(r"cvt\.rn\.f16x2\.f32 (%r\d+),(%f\d+),(%f\d+)", r"cvt.rn.f16x2.f32 \1,\3,\2", None),
    ),
    Mutation(
        "unpack",
        "the lower half twice",
        "mma",
        "read_map",
        sub(r"shr\.u32 \t(%r\d+), (%r\d+), 16", r"mov.b32 \1, \2", None),
    ),
    Mutation(
        "load_word", "the next word", "mma", "read_map", sub(r"(ld\.global\.u32 \t%r\d+, \[%rd\d+)\]", r"\1+4]", None)
    ),
    Mutation("store_word", "the next word", "mma", "write_map", sub(r"(st\.global\.u32 \t\[%rd\d+)\]", r"\1+4]", None)),
    # -- mma
    Mutation("cp_async", "what is outside is copied too", "mma", "mma_gemm", sub(COPY, r"\1")),
    Mutation("cp_async_commit_group", "no groups", "mma", "mma_gemm", sub(r"cp\.async\.commit_group;", "", None)),
    Mutation(
        "cp_async_wait_group", "one more in flight", "mma", "mma_gemm", sub(r"(cp\.async\.wait_group )(\d+)", _more)
    ),
    Mutation("cp_async_wait_group", "no wait", "mma", "mma_gemm", sub(r"cp\.async\.wait_group \d+;", "", None)),
    Mutation("ldmatrix", "one is transposed", "mma", "mma_gemm", sub(r"m8n8\.x4\.shared", "m8n8.x4.trans.shared", 5)),
    Mutation(
        "ldmatrix", "matrices exchanged", "mma", "mma_gemm", sub(r"(ldmatrix[^{]*\{)" + REGISTERS, r"\1\2,\4,\3,\5", 1)
    ),
    Mutation(
        "mma_sync",
        "A's registers exchanged",
        "mma",
        "mma_gemm",
        sub(r"(mma\.sync[^;{]*\{[^}]*\},\{)" + REGISTERS, r"\1\2,\4,\3,\5", None),
    ),
    Mutation(
        "mma_sync",
        "B's registers exchanged",
        "mma",
        "mma_gemm",
        sub(r"(mma\.sync[^;{]*\{[^}]*\},\{[^}]*\},\{)(%r\d+),(%r\d+)", r"\1\3,\2", None),
    ),
    Mutation(
        "mma_sync", "sums exchanged", "mma", "mma_gemm", sub(r"(mma\.sync[^;{]*\{)" + FLOATS, r"\1\2,\4,\3,\5", None)
    ),
    Mutation(
        "mma_sync", "bfloat16 for float16", "mma", "mma_gemm", sub(r"f32\.f16\.f16\.f32", "f32.bf16.bf16.f32", None)
    ),
    Mutation(
        "select8",
        "the next vector's case",
        "mma",
        "mma_gemm.*maps",
        sub(r"(setp\.eq\.s32 \t%p\d+, %r\d+, )(\d+)", _more, -1),
    ),
    # -- hopper
    Mutation(
        "mbarrier_init", "7 warps free a stage", "hopper", "hopper_gemm", sub(r"(mov\.u32 \t%r\d+, )8;", r"\g<1>7;")
    ),
    Mutation("mbarrier_init", "one less", "hopper", "hopper_gemm", sub(r"mbarrier\.init[^;]*;", "", 0)),
    Mutation("fence_mbarrier_init", "none", "hopper", "hopper_gemm", sub(r"fence\.mbarrier_init[^;]*;", "", None)),
    Mutation("mbarrier_arrive", "none", "hopper", "hopper_gemm", sub(r"mbarrier\.arrive\.shared[^;]*;", "", None)),
    Mutation(
        "mbarrier_expect_tx",
        "fewer bytes",
        "hopper",
        "hopper_gemm",
        sub(r"(mov\.u32 \t%r\d+, )24576;", r"\g<1>16384;", None),
    ),
    Mutation("mbarrier_wait", "full stages are not waited for", "hopper", "hopper_gemm", sub(WAIT_FULL, "", None)),
    Mutation("mbarrier_wait", "free stages are not waited for", "hopper", "hopper_gemm", sub(WAIT_FREE, "", None)),
    Mutation(
        "atom_offset",
        "half of an atom",
        "hopper",
        "hopper_gemm",
        sub(r"(and\.b32  \t%r\d+, %r\d+, )1020", r"\g<1>508", None),
    ),
    Mutation("fence_tensor_map", "none", "hopper", "hopper_gemm", sub(r"fence\.proxy\.tensormap[^;]*;", "", None)),
    Mutation("tma_load", "rows and columns exchanged", "hopper", "hopper_gemm", sub(COORDINATES, r"\1\4,\3,\2", None)),
    Mutation(
        "wgmma", "two in flight", "hopper", "hopper_gemm", sub(r"(wgmma\.wait_group\.sync\.aligned )1", r"\g<1>2", None)
    ),
    Mutation("wgmma", "no fence", "hopper", "hopper_gemm", sub(r"wgmma\.fence\.sync\.aligned;", "", None)),
    Mutation(
        "wgmma",
        "accumulators exchanged",
        "hopper",
        "hopper_gemm",
        sub(r"(wgmma\.mma_async[^{]*\{)(%f\d+),(%f\d+)", r"\1\3,\2", None),
    ),
    Mutation(
        "wgmma",
        "the swizzle of 64 bytes",
        "hopper",
        "hopper_gemm",
        sub(r"4611686293305360384", str(4611686293305360384 ^ 3 << 62), None),
    ),
    Mutation("wgmma", "steps of 16 bytes", "hopper", "hopper_gemm", sub(r"add\.s64 a,a,2", "add.s64 a,a,1", None)),
    Mutation("wgmma_wait", "none", "hopper", "hopper_gemm", sub(r"wgmma\.wait_group\.sync\.aligned 0;", "", None)),
    # -- images
    Mutation(
        "to_image",
        "tanh's signs exchanged",
        "mma",
        "to_image",
        sub(r"copysign\.f32 \t(%f\d+), (%f\d+), (%f\d+)", r"copysign.f32 \t\1, \3, \2", None),
    ),
]


def outcome(mutation: Mutation) -> str:
    """How the tests notice a mutation: "refused: ..." or "wrong numbers", else "survived" or "changes nothing"."""
    changed = set()

    def change(name: str, text: str) -> str:
        new = mutation.change(text) if re.search(mutation.kernels, name) else text
        if new != text:
            changed.add(name)
        return new

    for options in ORDERS:
        try:
            check(NETWORKS[mutation.network], Session("sm_90a", options, change=change))
        except Fault as fault:
            return "refused: " + " ".join((str(fault).split("\n")[1:2] or [str(fault)])[0].split())
        except AssertionError:
            return "wrong numbers"
    return "survived" if changed else "changes nothing"


def main(words: list[str]) -> int:
    """Print all outcomes; 1 if one was not noticed."""
    missed = 0
    for mutation in MUTATIONS:
        if all(word in str(mutation) for word in words):
            found = outcome(mutation)
            is_missed = found in ("survived", "changes nothing")
            missed += is_missed
            print(f"{'MISSED ' * is_missed}{mutation}: {found}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
