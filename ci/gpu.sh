#!/usr/bin/env bash
# Usage: ci/gpu.sh STAGE [WORD...] [--seconds N] [--at-once N]     or: ci/gpu.sh build|test
# Runs on a machine with an NVIDIA GPU, with its Python ($PYTHON, or python3) and the packages there; downloads nothing.
#
# Each stage begins with what is most valuable, ends by itself after so many seconds (--seconds sets others), says what
# it skipped for lack of time, and goes on there if it is run again. WORDs choose cases by parts of their names. Each
# case is a process with a time limit. bench/results/gpu-cases.json has all outcomes so far, also of a killed run.
#
#   first     240 s  builds, and shows GPU, driver and versions. Then accuracy: whole networks in each precision, then
#                    every kernel at its real tiles: float32, float16, bfloat16, tf32, then Hopper's. Names the kernel
#                    that fails or hangs
#   quick     200 s  images/s at N=64 and N=1 in float16, tf32 and float32, beside PyTorch: eager, and as a CUDA graph
#   tune      240 s  times the tiles and splits of each layer, and writes pix2pix/plans/measured/GPU.json, from which
#                    later plans take their algorithms
#   bench     240 s  what quick measures, and bfloat16, PSNR on real weights, layers beside their roofs, other batches,
#                    1 to 16 workers, and the course program's measurement
#   compile   240 s  what quick measures, beside torch.compile too, and the command line over a raw file of images
#   sanitize  240 s  the kernels of first under compute-sanitizer, if it is installed
#
# In this order: first; mend what failed; first; quick. Commit the results. Then tune; commit the table; quick, bench
# and compile measure again, as the table changes plans. Each is run again until it has skipped nothing.
#
#   build            deletes cached kernels, and builds in place, before test
#   test             runs the tests of all engines and of the kernels on the GPU, without a time limit
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
unset NUMBA_ENABLE_CUDASIM
export PYTHONUNBUFFERED=1

build() {
    find bench pix2pix tests -name "*.nb[ic]" -delete # Numba does not notice changes of intrinsics
    "$python" setup.py build_ext --inplace >build-gpu.log 2>&1 || { cat build-gpu.log; exit 1; }
    rm build-gpu.log
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
}

measure() {
    local status=0
    "$python" -m ci.gpu_stages "$@" || status=$?
    if "$python" -c "import matplotlib" 2>/dev/null; then "$python" -m bench.gpu.plots; fi
    return "$status"
}

case "${1:-}" in
    build | test) "$1" ;;
    first | tune | sanitize) "$python" -m ci.gpu_stages "$@" ;;
    quick | bench | compile) measure "$@" ;;
    *)
        sed -n '2,28s/^# \?//p' "$0"
        exit 2
        ;;
esac
