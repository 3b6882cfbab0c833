#!/usr/bin/env bash
# What a merge need not wait for: runs the long checks, one after the other, and writes what came out
# into docs/results/nightly.json, each part with commit, machine and figures.
#
#   tests/nightly.sh [--list] [PART...]         default: every part, in this order
#
# cuda         compiles services, trainer, kernels and their tests for CUDA; a warning is an error
# asan tsan    tests/run.sh with sanitizers
# fuzz         decoding of broken pictures under the address sanitizer, LLAVA_FUZZ_SECONDS (default 600)
# chaos        kills at random bytes of answers and at every failpoint, versions exchanged under load;
#              checked by history
# containers   deploy/container_check.sh --cuda (root; 35 GB of disk)
# speed        the language service under load and the gateway beside a bare relay; nothing else may run
# gpu          tests/gpu/run.sh (an NVIDIA GPU)
#
# A part for which this machine lacks something is skipped with the reason; the result keeps what an
# earlier run of it said. Logs: build/nightly/PART.log. LLAVA_JOBS: compilers at a time (default 2).
# Exit status: 0 if no part failed.
set -euo pipefail
cd "$(dirname "$0")/.."

parts=(cuda asan tsan fuzz chaos containers speed gpu)
result=docs/results/nightly.json
logs=$PWD/build/nightly
jobs=${LLAVA_JOBS:-2}
say() { printf '\033[1mnightly:\033[0m %s\n' "$*"; }
with_cuda() {
  deploy/setup.sh --with-cuda
  . "${LLAVA_CACHE:-$HOME/.cache/llava-serving}/env.sh"
}

# lacks_PART prints what is missing, if anything is; run_PART does the work and may write the file
# $figures (JSON).
lacks_cuda() { :; }
run_cuda() {
  with_cuda
  cmake --preset cuda -B build/nightly-cuda -DCMAKE_COMPILE_WARNING_AS_ERROR=ON
  ninja -C build/nightly-cuda -j"$jobs" llava-vision llava-llm llava-train llava_cuda_test llava_gpu_bench llava_gpu_train
}

lacks_asan() { :; }
run_asan() { tests/run.sh --sanitize asan; }

lacks_tsan() { command -v setarch >/dev/null || echo "no setarch"; }
run_tsan() { tests/run.sh --sanitize tsan; }

lacks_fuzz() { :; }
run_fuzz() {
  cmake --preset asan
  ninja -C build/asan -j"$jobs" llava_fuzz_decode
  build/asan/bin/llava_fuzz_decode --seconds "${LLAVA_FUZZ_SECONDS:-600}" --folder tests/fixtures/images
}

lacks_chaos() { :; }
run_chaos() {
  cmake --preset release -B build/nightly-chaos -DLLAVA_FAILPOINTS=ON -DLLAVA_TESTS=OFF
  ninja -C build/nightly-chaos -j"$jobs" llava-gateway llava-vision llava-llm llava-model
  local seed
  seed=$(date +%-j) # another one every day, told in the log
  echo "seed $seed"
  LLAVA_BIN_DIR=$PWD/build/nightly-chaos/bin "$LLAVA_VENV/bin/python" tests/chaos/chaos_test.py \
    --kills 60 --seed "$seed" --failpoints --history "$logs/history.jsonl"
  LLAVA_BIN_DIR=$PWD/build/nightly-chaos/bin "$LLAVA_VENV/bin/python" tests/chaos/swap_test.py \
    --seconds 120 --every 5 --sessions 16 --result "$figures"
}

lacks_containers() { [ "$(id -u)" = 0 ] || echo "not root"; }
run_containers() { deploy/container_check.sh --cuda; }

lacks_speed() { :; }
run_speed() {
  cmake --preset release
  ninja -C build/release -j"$jobs" llava-gateway llava-vision llava-llm llava-bench llava_stand_ins
  "$LLAVA_VENV/bin/python" tests/bench/serving_load.py --model deploy/models/emoji --prompt 500 \
    --streams 8 --parallel 1,32,200 --json "$logs/serving.json"
  "$LLAVA_VENV/bin/python" tests/bench/gateway_floor.py --json "$logs/gateway.json"
  printf '{"serving": %s, "gateway": %s}\n' "$(cat "$logs/serving.json")" "$(cat "$logs/gateway.json")" >"$figures"
}

lacks_gpu() { nvidia-smi >/dev/null 2>&1 || echo "no NVIDIA GPU"; }
run_gpu() {
  with_cuda
  OUT=$logs/gpu LLAVA_JOBS=$jobs tests/gpu/run.sh
  cp "$logs/gpu/gpu.json" "$figures"
}

# Within a part: the first failing command ends it.
if [ "${1:-}" = --part ]; then
  . "${LLAVA_CACHE:-$HOME/.cache/llava-serving}/env.sh"
  figures=$logs/$2.figures.json
  "run_$2"
  exit 0
fi

chosen=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' tests/nightly.sh; exit 0 ;;
    --list) for part in "${parts[@]}"; do echo "$part $("lacks_$part")"; done; exit 0 ;;
    *)
      [[ " ${parts[*]} " == *" $1 "* ]] || { echo "nightly: no part $1; there are ${parts[*]}" >&2; exit 2; }
      chosen+=("$1") ;;
  esac
  shift
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${parts[@]}")

mkdir -p "$logs" "$(dirname "$result")"
deploy/setup.sh >"$logs/setup.log" 2>&1 || { tail "$logs/setup.log" >&2; exit 1; }
failed=()
for part in "${chosen[@]}"; do
  lack=$("lacks_$part")
  if [ -n "$lack" ]; then
    say "$part: skipped: $lack"
    continue
  fi
  say "$part ($logs/$part.log)"
  rm -f "$logs/$part.figures.json"
  begin=$SECONDS
  outcome=passed
  tests/nightly.sh --part "$part" >"$logs/$part.log" 2>&1 </dev/null || outcome=failed
  [ $outcome = passed ] || { failed+=("$part"); tail -n 20 "$logs/$part.log"; }
  python3 tests/nightly_result.py "$result" "$part" $outcome $((SECONDS - begin)) "$logs/$part.figures.json"
  say "$part: $outcome after $((SECONDS - begin)) s"
done
[ ${#failed[@]} = 0 ] || { say "failed: ${failed[*]}"; exit 1; }
say "none failed"
