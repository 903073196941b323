"""PTX written by hand, of public textbook form, that shows whether the machine itself is right.

ptxas assembles each module too, where there is one, so that they are legal.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from .global_memory import Allocation, GlobalMemory
from .machine import Chosen, Machine, Options, Program
from .parse import parse
from .tma import TensorMap, encoded

DEFAULT = Options()
HEAD = """.version 8.7
.target {target}
.address_size 64
{shared}
.visible .entry k({params})
.maxntid {threads}, 1, 1
{{
.reg .pred %p<40>; .reg .b16 %rs<20>; .reg .b32 %r<200>; .reg .f32 %f<200>; .reg .b64 %rd<100>;
{loads}mov.u32 %r1, %tid.x;
{body}ret;
}}
"""


def module(body: str, pointers: int, threads: int, target: str = "sm_90a", shared: str = "") -> str:
    """A kernel that takes pointers, %rd1 and on; %r1 is the thread."""
    params = ", ".join(f".param .u64 p{i}" for i in range(1, pointers + 1))
    loads = "".join(f"ld.param.u64 %rd{i}, [p{i}];\n" for i in range(1, pointers + 1))
    return HEAD.format(target=target, shared=shared, params=params, threads=threads, loads=loads, body=body)


def ptxas_errors(text: str) -> str:
    """What ptxas says against a module; nothing if nothing, or if there is no ptxas."""
    try:
        import nvidia

        found = [str(path) for folder in nvidia.__path__ for path in Path(folder).glob("**/bin/ptxas")]
    except ImportError:
        found = []
    ptxas = found[0] if found else shutil.which("ptxas")
    if not ptxas:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "k.ptx")
        file.write_text(text)
        target = text.split(".target ")[1].split()[0]
        command = [ptxas, f"-arch={target}", "-o", f"{folder}/k.cubin", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def run(
    text: str, *arrays: np.ndarray, threads: int = 32, blocks: int = 1, dynamic: int = 0, options: Options = DEFAULT
) -> list[np.ndarray]:
    """The arrays after a launch; each is passed as a pointer."""
    memory, values, held = GlobalMemory(), {}, []
    for i, array in enumerate(arrays, 1):
        allocation = Allocation(array.nbytes, 0)
        allocation.bytes[: array.nbytes] = array.reshape(-1).view(np.uint8)
        values[f"p{i}"] = memory.add(allocation, 0, array.nbytes, f"array {i}")
        held.append(allocation)
    chosen = Chosen((blocks, 1, 1), threads, dynamic, np.arange(blocks))
    Machine(Program(parse(text)), memory, values, chosen, options).run()
    pairs = zip(held, arrays, strict=True)
    return [allocation.bytes[: a.nbytes].view(a.dtype).reshape(a.shape).copy() for allocation, a in pairs]


def words(matrix: np.ndarray, kind: str) -> np.ndarray:
    """Rows of a matrix as uint32 words of a format that holds its values exactly."""
    if kind == "f16":
        return np.ascontiguousarray(matrix, np.float16).view(np.uint32)
    bits = np.ascontiguousarray(matrix, np.float32).view(np.uint32)
    return np.ascontiguousarray((bits >> 16).astype(np.uint16)).view(np.uint32) if kind == "bf16" else bits


def exact_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers that every format holds exactly."""
    return rng.integers(-8, 9, shape).astype(np.float64) / 4


# -- mma.sync ---------------------------------------------------------------------------------------------------------


def mma_text(kind: str, loads: str) -> str:
    """One product by one warp: out (p3, 16 x 8) += A (p1, 16 rows of 32 bytes) @ B (p2).

    Fragments are loaded element by element by the documented formulas, or by ldmatrix, for which B is stored (n, k), or
    (k, n) with .trans.
    """
    shape = "m16n8k8" if kind == "tf32" else "m16n8k16"
    body = "shr.u32 %r2, %r1, 2; and.b32 %r3, %r1, 3;\n"  # g, t
    if loads == "formulas":
        body += "mad.lo.s32 %r4, %r2, 32, 0; shl.b32 %r5, %r3, 2; add.s32 %r4, %r4, %r5;\n"
        body += "cvt.u64.u32 %rd10, %r4; add.s64 %rd11, %rd1, %rd10; add.s64 %rd12, %rd2, %rd10;\n"
        for i, offset in enumerate((0, 8 * 32, 16, 8 * 32 + 16)):
            body += f"ld.global.u32 %r{20 + i}, [%rd11+{offset}];\n"
        body += "ld.global.u32 %r30, [%rd12]; ld.global.u32 %r31, [%rd12+16];\n"
    else:
        body += "mov.u64 %rd20, tile; cvt.u32.u64 %r6, %rd20;\nshl.b32 %r7, %r1, 2; cvt.u64.u32 %rd21, %r7;\n"
        body += "add.s64 %rd22, %rd1, %rd21; add.s64 %rd23, %rd2, %rd21; add.s32 %r9, %r6, %r7;\n"
        for i in range(0, 128, 32):  # A to shared memory, B behind it
            body += f"ld.global.u32 %r8, [%rd22+{4 * i}]; st.shared.u32 [%r9+{4 * i}], %r8;\n"
        for i in range(0, 64, 32):
            body += f"ld.global.u32 %r8, [%rd23+{4 * i}]; st.shared.u32 [%r9+{512 + 4 * i}], %r8;\n"
        body += "bar.sync 0;\nand.b32 %r10, %r1, 15; shr.u32 %r11, %r1, 4; shl.b32 %r12, %r10, 5;\n"
        body += "shl.b32 %r13, %r11, 4; add.s32 %r14, %r6, %r12; add.s32 %r14, %r14, %r13;\n"  # row l % 16, half l / 16
        body += "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r14];\n"
        if loads == "trans":  # rows 0 to 15 of k, of 16 bytes each
            body += "shl.b32 %r15, %r10, 4; add.s32 %r15, %r15, %r6;\n"
            body += "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r30, %r31}, [%r15+512];\n"
        else:  # rows of n, of 32 bytes: the first 16 bytes, then the others
            body += "and.b32 %r15, %r1, 7; shl.b32 %r15, %r15, 5; shr.u32 %r16, %r1, 3; and.b32 %r16, %r16, 1;\n"
            body += "shl.b32 %r16, %r16, 4; add.s32 %r15, %r15, %r16; add.s32 %r15, %r15, %r6;\n"
            body += "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r30, %r31}, [%r15+512];\n"
    body += "shl.b32 %r40, %r2, 5; shl.b32 %r41, %r3, 3; add.s32 %r40, %r40, %r41; cvt.u64.u32 %rd30, %r40;\n"
    body += "add.s64 %rd31, %rd3, %rd30;\n"
    places = ("", "+4", "+256", "+260")
    body += "".join(f"ld.global.f32 %f{i}, [%rd31{place}];\n" for i, place in enumerate(places, 1))
    body += f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
    body += "{%f5,%f6,%f7,%f8},{%r20,%r21,%r22,%r23},{%r30,%r31},{%f1,%f2,%f3,%f4};\n"
    body += "".join(f"st.global.f32 [%rd31{place}], %f{i};\n" for i, place in enumerate(places, 5))
    return module(body, 3, 32, "sm_80", ".shared .align 16 .b8 tile[1024];")


# -- wgmma ------------------------------------------------------------------------------------------------------------


def wgmma_text(columns: int, kind: str, lines: dict[str, str]) -> str:
    """out (p3) = A @ B' of 64 x 128 bytes and columns x 128 bytes, from TMA, by one warpgroup.

    p1 and p2 are tensor maps. `lines` replaces parts of the program.
    """
    count, shape = columns // 2, f"m64n{columns}k{8 if kind == 'tf32' else 16}"
    part = {
        "init": "mbarrier.init.shared::cta.b64 [%r6], 1;",
        "fence": "fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;",
        "sync": "bar.sync 0;",
        "expect": f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], {128 * (64 + columns)};",
        "wait": "L2: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r6], 0; @!%p2 bra L2;",
        "descriptor": str(1 << 62 | 64 << 32 | 1 << 16),
        "wgmma_fence": "wgmma.fence.sync.aligned;",
        "done": "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
        "step": "2",
        "map_fence": "".join(f"fence.proxy.tensormap::generic.acquire.sys [%rd{i}], 128; " for i in (1, 2)),
    } | lines
    body = "mov.u64 %rd20, barrier; cvt.u32.u64 %r6, %rd20; mov.u64 %rd21, tiles; cvt.u32.u64 %r7, %rd21;\n"
    body += "add.s32 %r7, %r7, 1023; and.b32 %r7, %r7, -1024; add.s32 %r8, %r7, 8192; setp.ne.s32 %p1, %r1, 0;\n"
    body += f"@%p1 bra L1;\n{part['init']} {part['fence']}\nL1: {part['sync']}\n@%p1 bra L2;\n"
    body += f"{part['map_fence']}\n{part['expect']}\nmov.u32 %r9, 0;\n"
    for to, tensor_map in ((7, 1), (8, 2)):
        body += "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        body += f"[%r{to}],[%rd{tensor_map},{{%r9,%r9}}],[%r6];\n"
    body += f"{part['wait']}\nshr.u32 %r10, %r7, 4; cvt.u64.u32 %rd10, %r10;\n"
    body += f"or.b64 %rd10, %rd10, {part['descriptor']}; add.s64 %rd11, %rd10, 512;\n"
    body += "".join(f"mov.f32 %f{i}, 0f00000000; " for i in range(count)) + "\nsetp.eq.u32 %p3, 0, 0;\n"
    sums = ",".join(f"%f{i}" for i in range(count))
    last = "%p3,1,1" if kind == "tf32" else "%p3,1,1,0,0"
    for step in range(4):
        body += part["wgmma_fence"] if step == 0 else ""
        body += f"wgmma.mma_async.sync.aligned.{shape}.f32.{kind}.{kind} {{{sums}}},%rd10,%rd11,{last};\n"
        body += f"add.s64 %rd10, %rd10, {part['step']}; add.s64 %rd11, %rd11, {part['step']};\n"
    body += f"{part['done']}\nshr.u32 %r20, %r1, 5; shl.b32 %r20, %r20, 4; and.b32 %r21, %r1, 31;\n"
    body += "shr.u32 %r22, %r21, 2; add.s32 %r20, %r20, %r22; and.b32 %r23, %r21, 3; shl.b32 %r23, %r23, 1;\n"
    body += f"mad.lo.s32 %r24, %r20, {columns}, %r23; mul.wide.u32 %rd30, %r24, 4; add.s64 %rd31, %rd3, %rd30;\n"
    for i in range(count):  # element i: 8 rows further on for bit 1, 8 columns for each four
        offset = 4 * (8 * (i // 4) + i % 2 + 8 * columns * (i // 2 % 2))
        body += f"st.global.f32 [%rd31+{offset}], %f{i};\n"
    shared = ".extern .shared .align 16 .b8 tiles[];\n.shared .align 8 .b8 barrier[8];"
    return module(body, 3, 128, "sm_90a", shared)


def one_box(array: np.ndarray) -> np.ndarray:
    """A tensor map of rows of 32 words, all of them one box."""
    held = np.ascontiguousarray(array).view(np.uint32).reshape(-1).copy()
    return encoded(TensorMap(held, (32, len(array)), (128,), (32, len(array)), is_swizzled=True))


def wgmma_error(kind: str, columns: int, lines: dict[str, str], options: Options = DEFAULT) -> float:
    """The largest difference from NumPy's product."""
    rng, depth = np.random.default_rng(2), 32 if kind == "tf32" else 64
    a, b = exact_numbers(rng, 64, depth), exact_numbers(rng, columns, depth)
    arrays = one_box(words(a, kind)), one_box(words(b, kind)), np.zeros((64, columns), np.float32)
    dynamic = 128 * (64 + columns) + 1024
    out = run(wgmma_text(columns, kind, lines), *arrays, threads=128, dynamic=dynamic, options=options)[2]
    return float(np.abs(out - a @ b.T).max())
