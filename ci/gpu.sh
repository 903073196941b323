#!/usr/bin/env bash
# Usage: ci/gpu.sh build|test|bench [NAME...]|tune [--hopper]
# Runs on a machine with an NVIDIA GPU, with its Python ($PYTHON, or python3) and the packages it has; downloads nothing.
# Each stage takes less than 8 minutes, and so does each benchmark: name them one by one where time is short.
#
#   build   deletes cached kernels, builds in place, and prints versions and GPUs
#   test    runs the tests of all engines and of the kernels on the GPU, and compute-sanitizer if it is installed
#   bench   runs all benchmarks, or those that are named; results go to bench/results
#               gpu-64, gpu-1   beside PyTorch, also compiled, in all precisions: batches of 64, and single images
#               gpu-batches     the same for batches of 8, 32, 128 and 256, without compiling
#               layers          every layer beside its roof, and every kernel
#               quality         PSNR on real weights
#               mode_b, mode_c  the course program's measurement with one GPU, with four GPUs
#               pool            1 to 16 workers on one GPU
#   tune    times the tiles and splits of each layer in all precisions, and writes pix2pix/plans/measured/GPU.json, from
#           which later plans take their algorithms. Commit that file, then run bench. On an H100 or H200, run it again
#           with --hopper, once the tests pass there: it adds the algorithms that only these GPUs have
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
unset NUMBA_ENABLE_CUDASIM

build() {
    find bench pix2pix tests -name "*.nb[ic]" -delete # Numba does not notice changes of intrinsics
    "$python" setup.py build_ext --inplace >build-gpu.log 2>&1 || { cat build-gpu.log; exit 1; }
    rm build-gpu.log
    "$python" - <<'CODE'
import importlib.metadata as metadata
import sys

from pix2pix.devices import count_gpus
from pix2pix.gpu.device import Device

print("Python", sys.version.split()[0])
for name in ("numba", "numba-cuda", "cuda-core", "cuda-bindings", "llvmlite", "numpy", "torch"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not installed")
print(count_gpus(), "GPU(s) that can be used")
device = Device(0)
print("first:", device.name, "- launches", "as CUDA graphs" if device.has_graphs else "one by one: cuda-core has no graphs")
CODE
}

test() {
    local log
    log=$(mktemp)
    "$python" -m pytest -q -rs -p no:cacheprovider -m "gpu and not full" tests/gpu \
        tests/engines/test_engines.py tests/engines/test_hybrid.py tests/plans/test_tables.py | tee "$log"
    if grep '^SKIPPED' "$log" | grep -v 'several devices\|needs compute capability'; then
        echo "on a GPU, only tests of several GPUs, and of GPUs of another kind, may be skipped" >&2
        exit 1
    fi
    "$python" ci/gpu_tiny.py # compiles all kernels, which is slow under compute-sanitizer
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            echo "== compute-sanitizer $tool"
            timeout 150 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" ci/gpu_tiny.py
        done
    else
        echo "== compute-sanitizer: SKIPPED, it is not installed"
    fi
}

bench() {
    local name options status=0
    [ $# -gt 0 ] || set -- gpu-64 gpu-1 gpu-batches layers quality mode_b pool mode_c
    for name; do
        case "$name" in
            gpu-64) options=(gpu.peers --batches 64 --images 1600) ;;
            gpu-1) options=(gpu.peers --batches 1) ;;
            gpu-batches) options=(gpu.peers --batches 8,32,128,256 --no-compile --name gpu-8-and-more) ;;
            layers | quality) options=("gpu.$name") ;;
            pool) options=(engines.pool --device cuda:0 --images 4096 --batch 64) ;;
            *) options=("$name") ;;
        esac
        "$python" -m "bench.${options[0]}" "${options[@]:1}" || status=1
    done
    if "$python" -c "import matplotlib" 2>/dev/null; then "$python" -m bench.gpu.plots; fi
    return "$status"
}

tune() {
    "$python" -m bench.gpu.tune "$@"
}

case "${1:-}" in
    build | test | bench | tune) "$@" ;;
    *)
        sed -n '2,17s/^# \?//p' "$0"
        exit 2
        ;;
esac
