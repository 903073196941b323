"""Kernels with one thing broken are noticed, whichever intrinsic it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .needs import MISSING

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

import pix2pix.gpu.ptx

from .mutations import MUTATIONS, outcome

pytestmark = pytest.mark.ptx
QUICK = (
    "ldmatrix: matrices exchanged (mma)",
    "wgmma: steps of 16 bytes (hopper)",
    "fma_tile: one product of wrong operands (simt)",
)


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(m, marks=[] if str(m) in QUICK else [pytest.mark.full]) for m in MUTATIONS],
    ids=str,
)
def test_a_broken_kernel_is_noticed(mutation):
    assert outcome(mutation) not in ("survived", "changes nothing")


def intrinsics() -> set[str]:
    """Names of all intrinsics of the engine, by their decorator or, of those made from a template, their assignment."""
    found = set()
    for path in Path(pix2pix.gpu.ptx.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "intrinsic" for d in node.decorator_list):
                found.add(node.name)
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("_elementwise("):
                found.add(ast.unparse(node.targets[0]))
    return found


def test_every_intrinsic_has_a_mutation():
    broken = {mutation.intrinsic for mutation in MUTATIONS}
    assert len(intrinsics()) > 30
    assert intrinsics() <= broken
    names = [str(mutation) for mutation in MUTATIONS]
    assert len({*names}) == len(names) and {*QUICK} <= {*names}
