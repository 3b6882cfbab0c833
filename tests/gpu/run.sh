#!/usr/bin/env bash
# Builds the model core and checks it on an NVIDIA GPU: parity with the reference numbers, and a
# greedy chat with the shipped model that must equal the CPU's. Needs nvcc, CMake, Ninja, a C++20
# compiler and a python3 that has torch 2.11; no network, no other package.
#
#   tests/gpu/run.sh
#
# OUT (default build/gpu)      where gpu.json and gpu.log go, and nothing else
# LLAVA_GPU_BUILD              build folder (default build/gpu-build)
# LLAVA_GPU_DEVICE             device under test (default cuda:0); cpu: builds without CUDA, to try
#                              this script where no GPU is
# LLAVA_TORCH_DIR              folder of the torch wheel (default: where python3 finds it)
# LLAVA_JOBS                   compilers at a time (default 16)
#
# Exit status: 0 if all passed. Tolerances are those of the fixtures; TF32 is off.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD

device=${LLAVA_GPU_DEVICE:-cuda:0}
build=${LLAVA_GPU_BUILD:-$root/build/gpu-build}
out=${OUT:-$root/build/gpu}
jobs=${LLAVA_JOBS:-16}
mkdir -p "$out" "$build/third_party"
log=$out/gpu.log
: >"$log"
started=$(date +%s)
say() { echo "gpu: $*" | tee -a "$log"; }
fail() { say "$*"; exit 1; }

torch=${LLAVA_TORCH_DIR:-$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')}
[ -e "$torch/lib/libtorch_cpu.so" ] || fail "no LibTorch in $torch"
cuda=ON
[ "$device" != cpu ] || cuda=OFF
say "device $device, LibTorch $torch"

for archive in tests/gpu/third_party/*.tar.xz; do
  tar -xf "$archive" -C "$build/third_party"
done
googletest=$(echo "$build"/third_party/googletest-*)
json=$(echo "$build"/third_party/nlohmann-json-*)

# mold finds what libtorch_cuda needs in turn; the ordinary linker must not look for it.
link=-Wl,--unresolved-symbols=ignore-in-shared-libs
! command -v mold >/dev/null || link=-fuse-ld=mold

launcher=
! command -v ccache >/dev/null || launcher=-DCMAKE_CXX_COMPILER_LAUNCHER=ccache

say "building in $build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAVA_SERVICES=OFF \
  -DLLAVA_CUDA=$cuda -DLLAVA_TORCH_DIR="$torch" -DLLAVA_GTEST_SOURCE="$googletest" \
  -DCMAKE_PREFIX_PATH="$json" -DCMAKE_EXE_LINKER_FLAGS="$link" $launcher >>"$log" 2>&1 ||
  { tail -30 "$log"; fail "configuring failed"; }
ninja -k 0 -C "$build" -j"$jobs" llava_parity_test llava_device_chat >>"$log" 2>&1 ||
  { grep -A 8 "error:" "$log" | head -120; fail "building failed"; }
built=$(date +%s)

say "parity on $device"
parity=passed
LLAVA_PARITY_DEVICE=$device "$build/tests/parity/llava_parity_test" \
  --gtest_output=json:"$build/parity.json" >>"$log" 2>&1 || parity=failed
grep -E '^\[  (PASSED|FAILED|SKIPPED) +\]' "$log" || true

say "chat on $device and cpu"
chat=passed
tests/gpu/chat.sh "$build/bin/llava_device_chat" cpu "$device" >"$build/chat.json" 2>>"$log" ||
  chat=failed
cat "$build/chat.json" >>"$log"

PARITY=$parity CHAT=$chat DEVICE=$device BUILD=$build BUILD_SECONDS=$((built - started)) \
  SECONDS_TOTAL=$(($(date +%s) - started)) python3 - >"$out/gpu.json" <<'PYTHON'
import json, os, pathlib, subprocess

def read(name):
    try:
        return json.loads((pathlib.Path(os.environ["BUILD"]) / name).read_text())
    except (OSError, ValueError):
        return None

def gpu_name():
    try:
        return subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

parity = read("parity.json") or {}
tests = [(suite["name"] + "." + test["name"], test) for suite in parity.get("testsuites", [])
         for test in suite["testsuite"]]
print(json.dumps({
    "device": os.environ["DEVICE"],
    "gpu": gpu_name(),
    "build_seconds": int(os.environ["BUILD_SECONDS"]),
    "seconds": int(os.environ["SECONDS_TOTAL"]),
    "parity": {"result": os.environ["PARITY"],
               "tests": len(tests),
               "failed": [name for name, test in tests if test.get("failures")],
               "skipped": [name for name, test in tests if test.get("result") == "SKIPPED"]},
    "chat": {"result": os.environ["CHAT"], **(read("chat.json") or {})},
}, indent=1))
PYTHON
cat "$out/gpu.json"
[ "$parity" = passed ] && [ "$chat" = passed ] || fail "failed; see $log"
say "all passed in $(($(date +%s) - started)) s"
