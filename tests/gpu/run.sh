#!/usr/bin/env bash
# Builds the model core and checks and measures it on an NVIDIA GPU. Needs nvcc, CMake, Ninja, a
# C++20 compiler and a python3 that has torch 2.11; no network, no other package.
#
#   tests/gpu/run.sh [parity] [ops] [train] [bench] [sanitize] [hf]        default: all, in this order
#
# By estimate 5 minutes on 16 cores with an H100, and 3 more for hf.
#
# parity   parity with the reference numbers, and a greedy chat with the shipped model that must
#          equal the CPU's
# ops      kernels and decoder against LibTorch
# train    llava_gpu_train: a run of a small model beside the CPU's, steps of a decoder of 1.1 B
#          parameters
# bench    llava_gpu_bench: the device, decoder and vision tower of a 7B model with random weights
# sanitize the kernels again under compute-sanitizer, if there
# hf       hf_bench.py: Hugging Face transformers with the same work, if python3 has them
#
# OUT (default build/gpu)      where gpu.json and gpu.log go, and nothing else
# LLAVA_GPU_BUILD              build folder (default build/gpu-build)
# LLAVA_GPU_DEVICE             device under test (default cuda:0); cpu: builds without CUDA, with the
#                              kernels emulated and tiny models, to try this script where no GPU is
# LLAVA_TORCH_DIR              folder of the torch wheel (default: where python3 finds it)
# LLAVA_GPU_SECONDS            limit of the whole run (default: none): what no time is left for is skipped
# LLAVA_JOBS                   compilers at a time (default: as many as processors)
# LLAVA_HF_SECONDS             limit of the phase hf (default 200)
# LLAVA_PYTHON                 of the phase hf (default python3)
#
# Every phase has a time limit, and one that fails takes nothing from the others: gpu.json is
# written anew after each. Exit status: 0 if all passed. Tolerances are those of the fixtures; TF32
# is off.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD

device=${LLAVA_GPU_DEVICE:-cuda:0}
gpu=0 # its number for nvidia-smi
if [[ $device =~ ^cuda:([1-9][0-9]*)$ ]]; then # programs see no other
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    echo "run.sh: LLAVA_GPU_DEVICE=$device beside CUDA_VISIBLE_DEVICES: set one of them" >&2
    exit 2
  fi
  gpu=${BASH_REMATCH[1]}
  export CUDA_VISIBLE_DEVICES=$gpu
  device=cuda:0
fi
export LLAVA_GPU_NUMBER=$gpu
build=${LLAVA_GPU_BUILD:-$root/build/gpu-build}
out=${OUT:-$root/build/gpu}
jobs=${LLAVA_JOBS:-$(nproc)}
phases=${*:-parity ops train bench sanitize hf}
results=$build/results
mkdir -p "$out" "$build/third_party"
rm -rf "$results"
mkdir "$results"
log=$out/gpu.log
: >"$log"
started=$(date +%s)
until=$((started + ${LLAVA_GPU_SECONDS:-100000}))
passed=yes
say() { echo "gpu: $(($(date +%s) - started)) s: $*" | tee -a "$log"; }
fail() { say "$*"; exit 1; }
report() { python3 tests/gpu/report.py "$build" "$device" >"$out/gpu.json"; }
wanted() { [[ " $phases " == *" $1 "* ]]; }

# Tests of products that read ahead over the ends of kernels.
streams='MultiplyRow*:CudaMatrixTest.Streams*:CudaMatrixTest.ARowIs*:CudaMatrixTest.Gates*:CudaLlamaTest.Chooses*'

# try NAME SECONDS FILE COMMAND...: one step within its limit, its output at the end of FILE, its
# status in the report.
try() {
  local name=$1 limit=$2 file=$3 begin left code=0 status=passed
  shift 3
  begin=$(date +%s)
  : >>"$file"
  left=$((until - begin - 15)) # what does not end on TERM takes 10 more, the report the rest
  if [ $left -lt 5 ]; then
    passed=no
    skip "$name" "no time is left"
    report || say "no report"
    return
  fi
  [ "$limit" -le $left ] || limit=$left
  say "$name"
  timeout -k 10 "$limit" "$@" >>"$file" 2>>"$log" || code=$?
  [ "$code" = 0 ] || status=failed
  # 137: TERM did not end it, or the system's want of memory did, which comes earlier.
  if [ $code = 124 ] || { [ $code = 137 ] && [ $(($(date +%s) - begin)) -ge "$limit" ]; }; then
    status="stopped after $limit s"
  fi
  [ "$status" = passed ] || passed=no
  echo "$status" >"$results/$name.status"
  echo $(($(date +%s) - begin)) >"$results/$name.seconds"
  say "$name: $status"
  report || say "no report"
}
# try_tests NAME SECONDS PROGRAM...: the same for a GoogleTest program.
try_tests() {
  local name=$1 limit=$2
  shift 2
  try "$name" "$limit" "$results/$name.out" "$@" \
    --gtest_output=json:"$results/$name.tests.json"
  cat "$results/$name.out" >>"$log"
  # A LibTorch that sees no GPU would skip them all.
  if [ $cuda = ON ] && grep -q '^\[  SKIPPED \]' "$results/$name.out"; then
    passed=no
    echo "failed: tests were skipped" >"$results/$name.status"
    report || say "no report"
  fi
  grep -E '^\[  (PASSED|FAILED|SKIPPED) +\]' "$results/$name.out" | tail -12 || true
}
# skip NAME REASON
skip() {
  say "$1: skipped: $2"
  echo "skipped: $2" >"$results/$1.status"
}
# stopped NAME: whether that step did not end by itself.
stopped() { grep -qs '^stopped' "$results/$1.status"; }

for phase in $phases; do
  [[ " parity ops train bench sanitize hf " == *" $phase "* ]] ||
    fail "no phase $phase; there are parity, ops, train, bench, sanitize, hf"
done
torch=${LLAVA_TORCH_DIR:-$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')}
[ -e "$torch/lib/libtorch_cpu.so" ] || fail "no LibTorch in $torch"
cuda=ON shape=7b trained=1b
[ "$device" != cpu ] || cuda=OFF shape=tiny trained=tiny
if [ $cuda = ON ] && [ -z "${CUDACXX:-}" ] && ! command -v nvcc >/dev/null; then
  export PATH=$PATH:/usr/local/cuda/bin
fi
say "device $device, LibTorch $torch, phases $phases"

for archive in tests/gpu/third_party/*.tar.xz; do
  tar -xf "$archive" -C "$build/third_party"
done
googletest=$(echo "$build"/third_party/googletest-*)
json=$(echo "$build"/third_party/nlohmann-json-*)

# mold finds what libtorch_cuda needs in turn; the ordinary linker must not look for it.
link=-Wl,--unresolved-symbols=ignore-in-shared-libs
! command -v mold >/dev/null || link=-fuse-ld=mold

# Named, because some machines would link the archive of the C++ library: a second copy of it beside
# the one that LibTorch uses, with which programs end in "free(): invalid pointer".
standard=$(ldconfig -p | sed -n 's/^[[:space:]]*libstdc++\.so\.6 .*x86-64.* => //p' | head -n 1)

launcher=
! command -v ccache >/dev/null || launcher="-DCMAKE_CXX_COMPILER_LAUNCHER=$PWD/deploy/ccache.sh"

# Code for the GPU at hand alone: a third of the compiling.
architecture=
if [ $cuda = ON ]; then
  capability=$(nvidia-smi -i "$gpu" --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ') || true
  [ -z "$capability" ] || architecture=-DCMAKE_CUDA_ARCHITECTURES=$capability-real
fi

targets=
! wanted parity || targets="$targets llava_parity_test llava_device_chat"
! wanted train || targets="$targets llava_gpu_train"
! wanted bench || targets="$targets llava_gpu_bench"
if wanted ops || wanted sanitize; then
  if [ $cuda = ON ]; then
    targets="$targets llava_cuda_test"
  else
    targets="$targets model_ops_cuda_emulated_test model_nn_cuda_emulated_test"
  fi
fi
build_all() {
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAVA_SERVICES=OFF \
    -DLLAVA_CUDA=$cuda -DLLAVA_TORCH_DIR="$torch" -DLLAVA_GTEST_SOURCE="$googletest" \
    -DCMAKE_PREFIX_PATH="$json" -DCMAKE_EXE_LINKER_FLAGS="$link" \
    -DCMAKE_CXX_STANDARD_LIBRARIES="$standard" ${launcher:+"$launcher"} $architecture
  # shellcheck disable=SC2086
  ninja -k 0 -C "$build" -j"$jobs" $targets
}
export -f build_all
export build cuda torch googletest json link standard launcher architecture targets jobs
if [ -n "$targets" ]; then
  try build 400 "$log" bash -euo pipefail -c build_all
  # What did build is tried all the same.
  [ $passed = yes ] || grep -E -A 8 "error|CMake Error" "$log" | head -120 || true
fi

if wanted parity; then
  LLAVA_PARITY_DEVICE=$device try_tests parity 240 "$build/tests/parity/llava_parity_test"
  try chat 90 "$results/chat.json" tests/gpu/chat.sh "$build/bin/llava_device_chat" cpu "$device"
  cat "$results/chat.json" >>"$log"
fi

if wanted ops && [ $cuda = OFF ]; then
  try_tests ops 400 "$build/tests/model/ops/model_ops_cuda_emulated_test"
  try_tests decoder 400 "$build/tests/model/nn/model_nn_cuda_emulated_test"
elif wanted ops; then
  test=$build/tests/gpu/llava_cuda_test
  try_tests ops 60 "$test" --gtest_filter="-CudaLlama*:$streams"
  LLAVA_CUDA_WITHOUT=stream try_tests decoder 120 "$test" --gtest_filter="CudaLlama*-$streams"
  # By themselves and last: what a fault in them breaks stays broken for the process.
  try_tests streams 60 "$test" --gtest_filter="$streams"
  if stopped streams; then
    skip decoder_streams "streams did not end"
  else
    try_tests decoder_streams 120 "$test" --gtest_filter="CudaLlama*-$streams"
  fi
fi

if wanted train; then
  try train 180 "$results/train.lines" "$build/bin/llava_gpu_train" "$device" $trained deploy/models
fi

if wanted bench; then
  # Figures without streams are better than none.
  without=${LLAVA_CUDA_WITHOUT:-}
  ! stopped streams || without=stream
  LLAVA_CUDA_WITHOUT=$without try bench 200 "$results/bench.lines" "$build/bin/llava_gpu_bench" "$device" $shape
fi

if wanted sanitize && [ $cuda = OFF ]; then
  skip memcheck "built without CUDA"
elif wanted sanitize; then
  test=$build/tests/gpu/llava_cuda_test
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  for tool in memcheck racecheck; do
    # Not what is LibTorch's for the most part.
    # CudaLlama* and AStep* record graphs, which cannot be while every tensor is allocated anew.
    without='CudaLlama*:TrainingOnDevice*:TokenChoiceTest.AStep*'
    # The tower's attention is LibTorch's; in cuDNN's, as it was, racecheck found hazards that are none of ours.
    [ $tool != racecheck ] || without="$without:ClipTowerOnDeviceTest*"
    if stopped ops || stopped streams; then
      skip $tool "the same tests did not end without it"
    elif [ -x "$sanitizer" ]; then
      # Every tensor an allocation of its own, so that no neighbour hides what is out of bounds.
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 try_tests $tool 120 "$sanitizer" --tool $tool \
        --error-exitcode 99 "$test" --gtest_filter="-$without"
    else
      skip $tool "no compute-sanitizer"
    fi
  done
fi

if wanted hf; then
  python=${LLAVA_PYTHON:-python3}
  hf_seconds=${LLAVA_HF_SECONDS:-200}
  if "$python" -c 'import importlib.util as i; exit(not i.find_spec("transformers"))'; then
    try hf $((hf_seconds + 30)) "$results/hf.lines" \
      "$python" tests/gpu/hf_bench.py "$device" $shape "$hf_seconds"
  else
    skip hf "$python has no transformers"
  fi
fi

report
cat "$out/gpu.json"
[ $passed = yes ] || fail "failed; see $log"
say "all passed"
