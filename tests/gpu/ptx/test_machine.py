"""The PTX machine itself: textbook programs against NumPy, and programs that break one rule, which it must refuse."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from .faults import Fault, PtxError
from .handmade import exact_numbers, mma_text, module, ptxas_errors, run, wgmma_error, wgmma_text, words
from .machine import Options
from .parse import parse

pytestmark = pytest.mark.ptx
FORMATS = ("f16", "bf16", "tf32")

# -- arithmetic -------------------------------------------------------------------------------------------------------

INTEGERS = [  # (instruction on a, b -> d, types of a, b and of d, the same in Python)
    ("add.s64 d, a, b", "s64", "s64", lambda a, b: a + b),
    ("sub.s32 d, a, b", "s32", "s32", lambda a, b: a - b),
    ("mul.lo.s64 d, a, b", "s64", "s64", lambda a, b: a * b),
    ("mul.lo.s32 d, a, b", "s32", "s32", lambda a, b: a * b),
    ("mul.wide.s32 d, a, b", "s32", "s64", lambda a, b: a * b),
    ("mul.wide.u32 d, a, b", "u32", "u64", lambda a, b: a * b),
    ("div.s64 d, a, b", "s64", "s64", lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)),
    ("rem.s64 d, a, b", "s64", "s64", lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1)),
    ("div.u32 d, a, b", "u32", "u32", lambda a, b: a // b),
    ("rem.u32 d, a, b", "u32", "u32", lambda a, b: a % b),
    ("min.s64 d, a, b", "s64", "s64", min),
    ("max.s32 d, a, b", "s32", "s32", max),
    ("and.b64 d, a, b", "u64", "u64", lambda a, b: a & b),
    ("or.b32 d, a, b", "u32", "u32", lambda a, b: a | b),
    ("xor.b32 d, a, b", "u32", "u32", lambda a, b: a ^ b),
    ("bfi.b32 d, a, b, 1, 1", "u32", "u32", lambda a, b: b & ~2 | (a & 1) << 1),
    ("shl.b64 d, a, 33", "u64", "u64", lambda a, b: a << 33),
    ("shr.s64 d, a, 63", "s64", "s64", lambda a, b: a >> 63),
    ("shr.u32 d, a, 40", "u32", "u32", lambda a, b: 0),
    ("shr.s32 d, a, 40", "s32", "s32", lambda a, b: a >> 31),
    ("cvt.u32.u64 d, a", "u64", "u32", lambda a, b: a),
    ("cvt.s64.s32 d, a", "s32", "s64", lambda a, b: a),
    ("cvt.u64.u32 d, a", "u32", "u64", lambda a, b: a),
    ("neg.s64 d, a", "s64", "s64", lambda a, b: -a),
    ("not.b32 d, a", "u32", "u32", lambda a, b: ~a),
    ("mad.lo.s32 d, a, b, 7", "s32", "s32", lambda a, b: a * b + 7),
]
FLOATS = [
    ("add.f32 d, a, b", lambda a, b: a + b),
    ("mul.f32 d, a, b", lambda a, b: a * b),
    ("div.rn.f32 d, a, b", lambda a, b: a / b),
    ("fma.rn.f32 d, a, b, a", lambda a, b: np.float32(np.longdouble(a) * b + a)),
    ("copysign.f32 d, a, b", lambda a, b: np.copysign(b, a)),
    ("max.f32 d, a, b", lambda a, b: b if np.isnan(a) else a if np.isnan(b) else max(a, b)),
    ("abs.f32 d, a", lambda a, b: np.abs(a)),
    ("sqrt.rn.f32 d, b", lambda a, b: np.sqrt(b)),
]


def elementwise(instruction: str, of: str, to: str) -> str:
    """A module that computes p3 = instruction(p1, p2), an element for each of 32 threads."""
    prefix = {"f32": "%f", "32": "%r", "64": "%rd"}
    a, b = (prefix[of if of == "f32" else of[1:]] + number for number in ("20", "21"))
    d = prefix[to if to == "f32" else to[1:]] + "22"
    mnemonic, operands = instruction.split(" ", 1)
    named = ", ".join({"a": a, "b": b, "d": d}.get(operand, operand) for operand in operands.split(", "))
    load, store = (kind if kind == "f32" else f"b{kind[1:]}" for kind in (of, to))
    body = f"mul.wide.u32 %rd10, %r1, {int(of[1:]) // 8}; add.s64 %rd11, %rd1, %rd10; add.s64 %rd12, %rd2, %rd10;\n"
    body += f"ld.global.{load} {a}, [%rd11]; ld.global.{load} {b}, [%rd12];\n{mnemonic} {named};\n"
    body += f"mul.wide.u32 %rd10, %r1, {int(to[1:]) // 8}; add.s64 %rd13, %rd3, %rd10;\n"
    body += f"st.global.{store} [%rd13], {d};\n"
    return module(body, 3, 32)


@pytest.mark.parametrize("instruction, of, to, meaning", INTEGERS, ids=lambda v: v if isinstance(v, str) else "")
def test_integers(instruction, of, to, meaning):
    """Integers of all signs and sizes; shifts beyond the width."""
    rng, bits = np.random.default_rng(0), int(of[1:])
    a = rng.integers(0, (1 << bits) - 1, 32, np.uint64)
    b = rng.integers(1, 1 << 20, 32).astype(np.uint64)
    a[:4] = 0, 1, (1 << bits) - 1, 1 << bits - 1
    if of[0] == "s":
        b[::3] = (np.uint64(0) - b[::3]) & np.uint64((1 << bits) - 1)
    a, b = a.astype(f"u{bits // 8}"), b.astype(f"u{bits // 8}")
    text = elementwise(instruction, of, to)
    assert not ptxas_errors(text)
    view, mask = f"{'i' if of[0] == 's' else 'u'}{bits // 8}", (1 << int(to[1:])) - 1
    out = run(text, a, b, np.zeros(32, f"u{int(to[1:]) // 8}"))[2]
    assert out.tolist() == [meaning(int(x), int(y)) & mask for x, y in zip(a.view(view), b.view(view), strict=True)]


@pytest.mark.parametrize("instruction, meaning", FLOATS, ids=lambda v: v if isinstance(v, str) else "")
def test_floats(instruction, meaning):
    """Floats of all sizes, infinities, NaN and -0."""
    rng = np.random.default_rng(0)
    a = (rng.standard_normal(32) * 10.0 ** rng.integers(-20, 20, 32)).astype(np.float32)
    b = np.abs(rng.standard_normal(32) * 10.0 ** rng.integers(-20, 20, 32)).astype(np.float32)
    a[:3], b[3:5] = (np.nan, np.inf, -0.0), (np.nan, np.inf)
    text = elementwise(instruction, "f32", "f32")
    assert not ptxas_errors(text)
    with np.errstate(all="ignore"):
        expected = np.array([meaning(x, y) for x, y in zip(a, b, strict=True)], np.float32)
    np.testing.assert_array_equal(run(text, a, b, np.zeros(32, np.float32))[2], expected)


def test_undefined_bits_of_tf32_are_anything():
    x = np.linspace(-3, 3, 32, dtype=np.float32)
    words_of_x = run(elementwise("cvt.rna.tf32.f32 d, a", "f32", "u32"), x, x, np.zeros(32, np.uint32))[2]
    assert len(np.unique(words_of_x & 0x1FFF)) > 8
    assert np.abs((words_of_x & 0xFFFFE000).view(np.float32) - x).max() <= 3 * 2.0**-11


# -- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loads", ["formulas", "ldmatrix", "trans"])
@pytest.mark.parametrize("kind", FORMATS)
def test_mma_sync_is_the_product(kind, loads):
    if (kind, loads) == ("tf32", "trans"):
        loads = "ldmatrix"  # transposition is of 16 bits
    rng, depth = np.random.default_rng(1), 8 if kind == "tf32" else 16
    a, b = exact_numbers(rng, 16, depth), exact_numbers(rng, depth, 8)
    c = exact_numbers(rng, 16, 8).astype(np.float32)
    text = mma_text(kind, loads)
    assert not ptxas_errors(text)
    stored = words(b if loads == "trans" else b.T, kind)
    np.testing.assert_array_equal(run(text, words(a, kind), stored, c)[2], a @ b + c)


@pytest.mark.parametrize(
    "options",
    [Options(), Options(late=False), Options(order="random", spurious=True)],
    ids=["late", "early", "random"],
)
@pytest.mark.parametrize("columns", [8, 64, 128, 256])
@pytest.mark.parametrize("kind", FORMATS)
def test_wgmma_of_boxes_is_the_product(kind, columns, options):
    if options == Options():
        assert not ptxas_errors(wgmma_text(columns, kind, {}))
    assert wgmma_error(kind, columns, {}, options) == 0


# -- what must be refused ---------------------------------------------------------------------------------------------

SHARED = ".shared .align 16 .b8 s[1024];"
ROTATE = "shl.b32 %r2, %r1, 2; mov.u64 %rd5, s; cvt.u32.u64 %r3, %rd5; add.s32 %r4, %r3, %r2;\n"
ROTATE += "st.shared.u32 [%r4], %r1;\n"
READ_NEXT = "xor.b32 %r5, %r2, 4; add.s32 %r6, %r3, %r5; ld.shared.u32 %r7, [%r6];\n"
READ_NEXT += "cvt.u64.u32 %rd6, %r2; add.s64 %rd7, %rd1, %rd6; st.global.u32 [%rd7], %r7;\n"
COPY = "shl.b32 %r2, %r1, 4; mov.u64 %rd5, s; cvt.u32.u64 %r3, %rd5; add.s32 %r4, %r3, %r2; cvt.u64.u32 %rd6, %r2;\n"
COPY += "add.s64 %rd7, %rd1, %rd6; cp.async.cg.shared.global [%r4],[%rd7],16; cp.async.commit_group;\n"
READ_COPY = "ld.shared.v4.u32 {%r5,%r6,%r7,%r8}, [%r4]; st.global.v4.u32 [%rd7], {%r5,%r6,%r7,%r8};\n"
LDMATRIX = "mov.u64 %rd5, s; cvt.u32.u64 %r3, %rd5; setp.lt.u32 %p1, %r1, 16; @%p1 bra A;\n"
LDMATRIX += "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3]; A:\n"
BRANCH = "setp.lt.u32 %p1, %r1, 32; @%p1 bra A; "
REFUSED = {  # what is wrong: body, threads, blocks, what the machine says
    "no barrier": (ROTATE + READ_NEXT, 64, 1, "race"),
    "a barrier of some": (BRANCH + "bar.sync 0; A:\n", 64, 1, "stuck"),
    "two barriers": (BRANCH + "bar.sync 0; bra B; A: bar.sync 0; B:\n", 64, 1, "different barriers"),
    "a store beyond the end": (
        "mul.wide.u32 %rd5, %r1, 32; add.s64 %rd6, %rd1, %rd5; st.global.u32 [%rd6], %r1;\n",
        64,
        1,
        "out of bounds",
    ),
    "a vector off its place": ("add.s64 %rd6, %rd1, 8; ld.global.v4.u32 {%r2,%r3,%r4,%r5}, [%rd6];\n", 64, 1, "misal"),
    "a read of what nobody wrote": ("mov.u64 %rd5, s; ld.shared.u32 %r2, [%rd5];\n", 64, 1, "uninitialised"),
    "a read beyond a variable": ("mov.u64 %rd5, s; ld.shared.u32 %r2, [%rd5+1024];\n", 64, 1, "outside the variables"),
    "blocks that write one word": ("st.global.u32 [%rd1], %r1;\n", 1, 2, "race"),
    "threads that write one word": ("st.global.u32 [%rd1], %r1;\n", 32, 1, "race: two threads"),
    "ldmatrix by half a warp": (LDMATRIX, 32, 1, "stuck"),
    "copies that are not waited for": (COPY + READ_COPY, 32, 1, "uninitialised"),
    "copies waited for too little": (COPY + "cp.async.wait_group 1;\n" + READ_COPY, 32, 1, "uninitialised"),
    "copies in flight at the end": (COPY, 32, 1, "in flight"),
    "a division by zero": ("div.u32 %r2, 7, %r1;\n", 64, 1, "division by zero"),
    "a register that was never set": ("add.u32 %r2, %r3, %r1;\n", 64, 1, "never set"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_illegal_is_refused(what):
    body, threads, blocks, message = REFUSED[what]
    text = module(body, 1, threads, shared=SHARED)
    assert not ptxas_errors(text)
    with pytest.raises(Fault, match=message):
        run(text, np.arange(256, dtype=np.uint32), threads=threads, blocks=blocks)


@pytest.mark.parametrize("body", [ROTATE + "bar.sync 0;\n" + READ_NEXT, COPY + "cp.async.wait_group 0;\n" + READ_COPY])
def test_the_same_with_its_barrier_or_wait_is_legal(body):
    numbers = np.arange(256, dtype=np.uint32)
    threads = 64 if body.startswith(ROTATE) else 32
    out = run(module(body, 1, threads, shared=SHARED), numbers, threads=threads)[0]
    assert out[:64].tolist() == ([i ^ 1 for i in range(64)] if threads == 64 else numbers[:64].tolist())


EXPECT = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 17000;"
OTHER_PARITY = "L2: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r6], 1; @!%p2 bra L2;"
REFUSED_OF_HOPPER = {
    "no wait for boxes": ({"wait": "L2:"}, "uninitialised"),
    "the other parity": ({"wait": OTHER_PARITY}, "uninitialised"),
    "too many bytes expected": ({"expect": EXPECT}, "stuck"),
    "no mbarrier made": ({"init": ""}, "no mbarrier"),
    "two arrivals awaited": ({"init": "mbarrier.init.shared::cta.b64 [%r6], 2;"}, "stuck"),
    "no fence after mbarrier.init": ({"fence": ""}, "without fence.mbarrier_init"),
    "no barrier after mbarrier.init": ({"sync": ""}, "race|no mbarrier"),
    "no fence of tensor maps": ({"map_fence": ""}, "without fence.proxy.tensormap"),
    "accumulators read too early": ({"done": "wgmma.commit_group.sync.aligned;"}, "in flight"),
    "no wgmma.fence": ({"wgmma_fence": ""}, "no wgmma.fence"),
    "another swizzle": ({"descriptor": str(2 << 62 | 64 << 32 | 1 << 16)}, "not known"),
}


@pytest.mark.parametrize("what", REFUSED_OF_HOPPER)
def test_what_is_illegal_on_hopper_is_refused(what):
    lines, message = REFUSED_OF_HOPPER[what]
    with pytest.raises(Fault, match=message):
        wgmma_error("f16", 64, lines, Options(order="random" if "sync" in lines else "lowest"))


@pytest.mark.parametrize("lines", [{"descriptor": str(1 << 62 | 32 << 32 | 1 << 16)}, {"step": "1"}])
def test_another_layout_gives_other_numbers(lines):
    """A stride of 512 bytes, steps of 16 bytes: legal, and wrong."""
    assert wgmma_error("f16", 64, lines) > 0.1


@pytest.mark.parametrize(
    "text", ["frobnicate.b32 %r1, %r2;\n", "@%p1 add.u32 %r2, %r1, %r1;\n", "mul.hi.u32 %r2, %r1, %r1;\n"]
)
def test_unknown_instructions_are_errors(text):
    with pytest.raises((Fault, PtxError), match="not known|a guard"):
        run(module(f"setp.eq.u32 %p1, 0, 0;\n{text}", 1, 32), np.zeros(32, np.uint32))


def test_unknown_statements_are_errors():
    with pytest.raises(PtxError, match="local"):
        parse(module(".local .align 4 .b8 l[4];\n", 1, 32))


def test_the_machine_knows_nothing_of_the_engine():
    """It must not share a mistake with the simulator or the fragment layouts. Only what runs the engine imports it."""
    users = {"device.py", "compiler.py", "networks.py", "mutations.py"}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not any("gpu.simulator" in name for name in names), path.name
        if not path.name.startswith("test_") and path.name not in users:
            assert not any(name.startswith("pix2pix") for name in names), path.name


def test_what_is_imported_is_required():
    """ci/requirements installs what the machine imports: NumPy, pytest, and Numba with its toolkit."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "ci").is_dir():
        pytest.skip("needs the checkout's ci/")
    required = {
        re.split(r"[=\[]", line)[0]
        for name in ("base", "test", "cuda")
        for line in (root / "ci" / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    }
    packages = {"numpy": "numpy", "pytest": "pytest", "numba": "numba-cuda", "nvidia": "cuda-toolkit"}
    found = set()
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").split(".")[0])
    third_party = found - set(sys.stdlib_module_names) - {"pix2pix", "tests", "ci"}
    assert {packages[name] for name in third_party} <= required
