"""The timed stages of ci/gpu.sh.

    python -m ci.gpu_stages first|quick|tune|bench|compile|sanitize [WORD...] [--seconds N] [--at-once N]

first     builds; then accuracy of whole networks in each precision, and of every kernel at its real tiles
quick     images/s beside PyTorch, eager and as a CUDA graph: float16, tf32 and float32, N=64 and N=1
tune      the fastest tile and split of each layer
bench     what quick measures, then everything else but torch.compile
compile   what quick measures, beside torch.compile too, and the command line
sanitize  the networks of first under compute-sanitizer

WORDs choose cases by parts of their names. A stage ends after its time and says what it skipped: run it again, and it
goes on. The record of all stages is bench/results/gpu-cases.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.sources import fingerprint
from tests.gpu.networks import MORE, launching_all

from .case_runner import SECONDS, Case, Run, python, wanted

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "bench" / "results" / "gpu-cases.json"
HOPPER = "9.0"  # the compute capability of H100 and H200, which networks and tiles of that name need
TIME_TO_FIND = 60  # seconds for starting CUDA
PRECISIONS = ("float16", "tf32", "float32", "bfloat16")  # the most valuable measurements first
TILES = {"tensor": ("64x64", "128x64", "128x128"), "implicit": ("32x128", "128x64", "128x128")}
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
ONE_BY_ONE = {"CUDA_LAUNCH_BLOCKING": "1"}  # kernels, so that the one that fails is known


def child(*words: str) -> tuple[str, ...]:
    """The command of a case of :mod:`.gpu_case`."""
    return python("ci.gpu_case", *words)


def first() -> list[Case]:
    """What is most likely to tell something new comes first: whole networks, then kernels."""
    whole = [
        Case(f"{name} {precision}", child(name, precision), 90, 15, environment=ONE_THREAD)
        for name in ("demo", "resnet")
        for precision in ("float32", "float16", "bfloat16", "tf32")
    ]
    needed = launching_all()
    return whole + [
        Case(f"network {network}", child("network", str(network)), 90, 15, environment=ONE_THREAD | ONE_BY_ONE)
        for network in (*needed, *(network for network in MORE if network not in needed))
    ]


def peers(n: int, precision: str) -> Case:
    """The whole network beside PyTorch. Results of a batch size and precision have a file of their own."""
    return Case(f"gpu-{n}-{precision}", _peers(n, precision), 100, 25, alone=True)


def peers_compiled(n: int, precision: str) -> Case:
    """The same beside torch.compile too, in the same file."""
    images = ("--images", "1600") if n == 64 else ()
    return Case(f"compile gpu-{n}-{precision}", _peers(n, precision, *images), 235, 75, alone=True)


def _peers(n: int, precision: str, *options: str) -> tuple[str, ...]:
    words = ("--batches", str(n), "--precisions", precision, "--name", f"gpu-{n}-{precision}", *options)
    return python("bench.gpu.peers", *words)


def benchmark(seconds: float, module: str, *words: str, name: str = "", limit: float = 235) -> Case:
    """Another program of bench/, which takes about so many seconds."""
    return Case(name or module.rpartition(".")[2], python(f"bench.{module}", *words), limit, seconds, alone=True)


def compiled(cases: list[Case], words: Iterable[tuple[str, ...]]) -> list[Case]:
    """The cases, behind the compilation of what they launch: several processes at a time, as nothing is measured."""
    names = frozenset(case.name for case in cases)
    return [
        *(
            Case(f"ready {' '.join(w)}", child("ready", *w), 90, 30, prepares=names, environment=ONE_THREAD)
            for w in words
        ),
        *cases,
    ]


def for_both(precisions: Iterable[str]) -> list[tuple[str, ...]]:
    """What has to be compiled for the default plans of those precisions."""
    return [(precision, tune) for precision in precisions for tune in ("throughput", "latency")]


def quick() -> list[Case]:
    """N=64 and N=1 of float16, then of tf32, then of float32."""
    cases = [peers(n, precision) for precision in PRECISIONS[:3] for n in (64, 1)]
    return compiled(cases, for_both(PRECISIONS[:3]))


def compile_too() -> list[Case]:
    """The same and torch.compile, which takes a minute or more."""
    cases = [peers_compiled(n, precision) for precision in PRECISIONS for n in (64, 1)]
    return compiled(cases, for_both(PRECISIONS))


def bench() -> list[Case]:
    """All benchmarks that measure a GPU, without torch.compile."""
    cases = [peers(n, precision) for precision in PRECISIONS for n in (64, 1)]
    cases += [benchmark(40, "gpu.quality"), benchmark(100, "gpu.layers")]
    cases += [peers(n, precision) for precision in PRECISIONS for n in (8, 128, 32, 256)]
    cases.append(benchmark(90, "engines.pool", "--device", "cuda:0", "--images", "4096", "--batch", "64"))
    cases += [benchmark(150, "mode_b"), benchmark(100, "mode_c")]
    return compiled(cases, for_both(PRECISIONS))


def tune() -> list[Case]:
    """Each precision, and then what only Hopper has of it. The tuner itself goes on where it was stopped."""
    cases = []
    for precision in PRECISIONS:
        words = ("--precisions", precision, "--seconds", SECONDS)
        kind = "implicit" if precision == "float32" else "tensor"
        plans = [f"{kind}-{tile}{split}" for tile in TILES[kind] for split in ("", "-split4")]
        own = benchmark(50, "gpu.tune", *words, name=f"tune {precision}")
        cases += compiled([own], [(precision, "throughput", plan) for plan in plans])
        if precision != "float32":
            cases.append(benchmark(50, "gpu.tune", *words, "--hopper", name=f"tune {precision} hopper"))
    return cases


def sanitize() -> list[Case]:
    """memcheck, then racecheck."""
    return [
        Case(
            f"{tool} {network}",
            ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *child("network", str(network))),
            limit=120,
            estimate=30,
            environment=ONE_THREAD,
        )
        for tool in ("memcheck", "racecheck")
        for network in launching_all()
    ]


STAGES: dict[str, tuple[Callable[[], list[Case]], float]] = {
    "first": (first, 240),
    "quick": (quick, 200),
    "tune": (tune, 240),
    "bench": (bench, 240),
    "compile": (compile_too, 240),
    "sanitize": (sanitize, 240),
}


def with_build(cases: list[Case], folder: Path) -> list[Case]:
    """The cases, behind the build unless these sources were built here already."""
    mark = folder / "built"
    if mark.exists():
        return cases
    command = ("bash", "-c", f'ci/gpu.sh build && touch "{mark}"')
    names = frozenset(case.name for case in cases if not case.prepares)
    return [Case("build", command, 150, 60, prepares=names, environment={"PYTHON": sys.executable}), *cases]


def found() -> dict[str, Any]:
    """The GPU, its driver, and versions. RuntimeError if there is no GPU that can be used."""
    done = subprocess.run(child("found"), capture_output=True, text=True, timeout=TIME_TO_FIND, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
        "--format=csv,noheader",
    ]
    smi = subprocess.run(query, capture_output=True, text=True, check=False).stdout if shutil.which(query[0]) else ""
    return {**json.loads(done.stdout.splitlines()[-1]), "nvidia_smi": smi.splitlines()}


def main(argv: list[str] | None = None) -> int:
    """Run a stage; the exit status is 1 if a case failed, or no GPU can be used."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(prog="ci/gpu.sh", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("words", nargs="*", metavar="WORD", help="in the names of the cases that are wanted (all)")
    parser.add_argument("--seconds", type=float, help="after which the stage ends (first 240, quick 200, others 240)")
    parser.add_argument(
        "--at-once", type=int, default=max(1, len(os.sched_getaffinity(0)) * 3 // 4), help="(%(default)s)"
    )
    arguments = parser.parse_intermixed_args(argv)
    make, seconds = STAGES[arguments.stage]
    if arguments.stage == "sanitize" and not shutil.which("compute-sanitizer"):
        print("SKIPPED: compute-sanitizer is not installed")
        return 0
    # A folder of compiled kernels for each state of the sources: Numba does not notice changes of intrinsics.
    folder = ROOT / "build" / f"kernels-{fingerprint()}"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cases are ended, too
    try:
        facts = found()
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"no GPU can be used: {error}")
        return 1
    print(json.dumps(facts, indent=1), flush=True)
    here = [case for case in make() if "hopper" not in case.name or facts["capability"] == HOPPER]
    cases = wanted(with_build(here, folder), arguments.words)
    if not cases:
        parser.error(f"no case of {arguments.stage} has any of {arguments.words} in its name")
    same = {
        "gpu": facts["gpu"],
        "sources": fingerprint() if arguments.stage in ("first", "tune") else fingerprint(".json"),
    }
    run = Run(RECORD, cases, same, facts)
    return run.run((arguments.seconds or seconds) - (time.perf_counter() - begun), arguments.at_once)


if __name__ == "__main__":
    sys.exit(main())
