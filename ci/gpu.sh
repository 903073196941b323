#!/usr/bin/env bash
# Usage: ci/gpu.sh build|test|bench [NAME...]|tune   On a machine with an NVIDIA GPU, with the Python that is there
# ($PYTHON, or python3) and what it has installed; nothing is downloaded. Each stage is meant to take less than 8 minutes;
# of bench, each benchmark is: name them one by one where time is short.
#
#   build   builds in place, and says what it found
#   test    the tests of all engines and of the GPU's kernels, on the GPU; compute-sanitizer, where that is
#   bench   the benchmarks: gpu, mode_b, pool and mode_c, or those that are named; results go to bench/results
#   tune    times the tiles and splits that each layer may have, and writes the best as plans
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
unset NUMBA_ENABLE_CUDASIM

build() {
    "$python" setup.py build_ext --inplace >build-gpu.log 2>&1 || { cat build-gpu.log; exit 1; }
    rm build-gpu.log
    "$python" - <<'CODE'
import importlib.metadata as metadata
import sys

from pix2pix._gpu_device import Device, count

print("Python", sys.version.split()[0])
for name in ("numba", "numba-cuda", "cuda-core", "cuda-bindings", "llvmlite", "numpy", "torch"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not installed")
print(count(), "GPU(s) that can be used")
device = Device(0)
print("first:", device.name, "- launches", "as CUDA graphs" if device.has_graphs else "one by one: cuda-core has no graphs")
CODE
}

test() {
    local log
    log=$(mktemp)
    "$python" -m pytest -q -rs -p no:cacheprovider -m "not full" tests/test_cuda.py tests/test_engines.py \
        tests/test_hybrid.py -k "test_cuda or cuda or a_gpu" | tee "$log"
    if grep '^SKIPPED' "$log" | grep -v 'several devices'; then
        echo "on a GPU, only tests of several GPUs may be skipped" >&2
        exit 1
    fi
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            echo "== compute-sanitizer $tool"
            timeout 150 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" ci/gpu_tiny.py
        done
    else
        echo "== compute-sanitizer: SKIPPED, it is not here"
    fi
}

bench() {
    local name options
    [ $# -gt 0 ] || set -- gpu mode_b pool mode_c
    for name; do
        options=()
        [ "$name" != pool ] || options=(--device cuda:0 --images 4096 --batch 64)
        "$python" -m "bench.$name" "${options[@]}"
    done
}

tune() {
    "$python" -m bench.tune
}

case "${1:-}" in
    build | test | bench | tune) "$@" ;;
    *)
        sed -n '2,10s/^# \?//p' "$0"
        exit 2
        ;;
esac
