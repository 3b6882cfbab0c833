#!/usr/bin/env bash
# Sets up, builds and runs the tests. Nonzero if any fails; skipped ones are listed with reasons.
#
#   tests/run.sh [--label unit|e2e] [--sanitize asan|tsan]
#
# Without --label every test runs; those on a GPU are tests/gpu/run.sh. --sanitize builds into build/asan
# or build/tsan instead of build/release. LLAVA_JOBS is the number of compilers and tests at a time (default 2).
set -euo pipefail
cd "$(dirname "$0")/.."

label=
preset=release
usage() { sed -n '2,7s/^# \{0,1\}//p' tests/run.sh; }
wrong() { echo "tests/run.sh: $*; see tests/run.sh --help" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --label)
      case ${2:-} in
        unit | e2e) label=$2 ;;
        gpu) wrong "--label takes unit or e2e; the tests on a GPU are tests/gpu/run.sh" ;;
        *) wrong "--label takes unit or e2e" ;;
      esac
      shift 2 ;;
    --sanitize)
      case ${2:-} in asan | tsan) preset=$2 ;; *) wrong "--sanitize takes asan or tsan" ;; esac
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) wrong "unknown option $1" ;;
  esac
done
jobs=${LLAVA_JOBS:-2}
say() { printf '\033[1mtests:\033[0m %s\n' "$*"; }

deploy/setup.sh
. "${LLAVA_CACHE:-$HOME/.cache/llava-serving}/env.sh"

say "building build/$preset"
cmake --preset "$preset" >"$(dirname "$LLAVA_VENV")/configure.log" 2>&1 || {
  cat "$(dirname "$LLAVA_VENV")/configure.log"
  exit 1
}
ninja -C "build/$preset" -j"$jobs"

# Prints the reports with lines and lets a finding fail the test.
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# Debian's gRPC and LibTorch are built without the thread sanitizer, which cannot see their locks.
export TSAN_OPTIONS=ignore_noninstrumented_modules=1:suppressions=$PWD/tests/tsan.supp:history_size=4
run=()
# The thread sanitizer of GCC 12 cannot live with the address randomisation of newer kernels.
if [ "$preset" = tsan ]; then run=(setarch -R); fi

say "running ${label:-all} tests"
log=build/$preset/ctest.log
junit=$PWD/build/$preset/ctest.xml
rm -f "$junit"
status=0
"${run[@]}" ctest --test-dir "build/$preset" -j"$jobs" --output-on-failure --no-tests=error \
  --output-junit "$junit" --test-output-size-passed 65536 --test-output-size-failed 1048576 \
  ${label:+-L "^$label\$"} </dev/null 2>&1 | tee "$log" || status=$?

echo
if [ -e "$junit" ]; then "$LLAVA_VENV/bin/python" tests/checks/skipped_tests.py "$junit"; fi
grep 'tests passed.*tests failed out of' "$log" || true  # the last line, as ctest says it
exit $status
