#!/usr/bin/env bash
# ScienceQA end to end at small scale, by the paper's recipe: problems about scenes in its format,
# twelve epochs on them, answers to new ones, and the table of the paper. Reasons before the answer
# (QCM-LEPA) against the answer first (QCM-ALE), with and without stage 1, from the shipped base parts.
#
#   deploy/scienceqa.sh [--out FOLDER] [--train N] [--test N] [--stage1 N] [--epochs N] [--seed N]
#                       [--no-build]
#
#   --out FOLDER   where everything goes (default build/scienceqa); what is finished there stays
#   --train N      problems to train on (default 2400)
#   --test N       problems to measure by (default 400)
#   --stage1 N     pictures of stage 1 (default 3000)
#   --epochs N     on the problems (default 12)
#   --seed N       of problems, order and projector (default 1)
#   --no-build     take the binaries of build/release (LLAVA_BIN_DIR: of another folder)
set -euo pipefail
cd "$(dirname "$0")/.."

out=build/scienceqa
train=2400
test=400
stage1=3000
epochs=12
seed=1
build=1
wrong() { echo "scienceqa: $*; see deploy/scienceqa.sh --help" >&2; exit 2; }
number() { # option, value
  [[ ${2:-} =~ ^[1-9][0-9]{0,6}$ ]] || wrong "$1 takes a number of at least 1"
}
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:?scienceqa: --out needs a folder}; shift ;;
    --train) number "$@"; train=$2; shift ;;
    --test) number "$@"; test=$2; shift ;;
    --stage1) number "$@"; stage1=$2; shift ;;
    --epochs) number "$@"; epochs=$2; shift ;;
    --seed) number "$@"; seed=$2; shift ;;
    --no-build) build=0 ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' deploy/scienceqa.sh; exit 0 ;;
    *) wrong "unknown option $1" ;;
  esac
  shift
done
say() { printf '\033[1mscienceqa:\033[0m %s\n' "$*"; }

bin=${LLAVA_BIN_DIR:-build/release/bin}
if [ $build = 1 ]; then
  deploy/setup.sh
  . "${LLAVA_CACHE:-$HOME/.cache/llava-serving}/env.sh"
  cmake --preset release >/dev/null
  say "building llava-train, llava-datagen and llava-eval"
  ninja -C build/release -j"${LLAVA_JOBS:-$(nproc)}" llava-train llava-datagen llava-eval
fi

tower=deploy/models/emoji-tower
language=deploy/models/emoji-base
problems=(--problems "$out/problems/problems.json" --splits "$out/problems/pid_splits.json")
mkdir -p "$out/data" "$out/results"

say "problems and pictures"
[ -e "$out/problems/dataset.json" ] ||
  "$bin/llava-datagen" science --out "$out/problems" --train "$train" --val 0 --test "$test" \
    --seed "$seed"
[ -e "$out/scenes/dataset.json" ] ||
  "$bin/llava-datagen" scenes --out "$out/scenes" --seed "$seed" --count "$stage1" --stage1 \
    --stage1-detail

if [ ! -e "$out/aligned/published.json" ]; then
  say "stage 1"
  "$bin/llava-train" align --recipe deploy/training/align.json --set "seed=$seed" \
    --set "tower=$tower" --set "model=$language" --set "data=$out/scenes/stage1.json" \
    --set "images=$out/scenes/images" --set held_out_records=0 \
    --out "$out/aligned" --publish "$out/models" --name aligned
fi

# Batches of 8 instead of the paper's 32: few problems make few steps.
results=()
for start in aligned base; do
  for format in QCM-LEPA QCM-ALE; do
    [ -e "$out/data/$format.json" ] ||
      "$bin/llava-eval" scienceqa convert "${problems[@]}" --split train --format $format \
        --out "$out/data/$format.json"
    name=$format-$start
    title=$([ $format = QCM-LEPA ] && echo "reasons first" || echo "answer first")
    if [ $start = aligned ]; then
      from=(--set "model=$out/models/aligned")
    else
      title="$title, without stage 1"
      from=(--set "model=$language" --set projector.init=fresh)
    fi
    results+=("$title=$out/results/$name.json")
    [ ! -e "$out/results/$name.json" ] || continue
    if [ ! -e "$out/runs/$name/published.json" ]; then
      say "$title: $epochs epochs"
      "$bin/llava-train" finetune --recipe deploy/training/finetune.json --set "seed=$seed" \
        --set "tower=$tower" "${from[@]}" --set "data=$out/data/$format.json" \
        --set "images=$out/problems/images/train" --set "epochs=$epochs" --set packing=none \
        --set batch_size=8 --set held_out_records=0 \
        --out "$out/runs/$name" --publish "$out/models" --name "sqa-${name,,}"
    fi
    say "$title: answers"
    "$bin/llava-eval" scienceqa run "${problems[@]}" --format $format \
      --pictures "$out/problems/images/test" --checkpoint "$out/models/sqa-${name,,}" \
      --tower "$tower" --max-tokens 200 --out "$out/results/$name.jsonl"
    "$bin/llava-eval" scienceqa score "${problems[@]}" --predictions "$out/results/$name.jsonl" \
      --json >"$out/results/$name.part"
    mv "$out/results/$name.part" "$out/results/$name.json"
  done
done
"$bin/llava-eval" report "${results[@]}" --title "ScienceQA at small scale" \
  --html "$out/report.html" --markdown "$out/report.md"
cat "$out/report.md"
say "report: $out/report.html, $out/report.md"
