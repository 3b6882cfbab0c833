#!/usr/bin/env bash
# ScienceQA end to end at small scale, by the paper's recipe: problems about scenes in its format,
# twelve epochs on them, answers to new ones, and the table of the paper. Reasons before the answer
# (QCM-LEPA) against the answer first (QCM-ALE), with and without stage 1, from the shipped base parts.
#
#   deploy/scienceqa.sh [--out FOLDER] [--train N] [--test N] [--stage1 N] [--epochs N] [--seed N]
#                       [--jobs N] [--no-build]
#
# Everything can be interrupted: the same command goes on.
#
#   --out FOLDER   where everything goes (default build/scienceqa)
#   --train N      problems to train on (default 2400)
#   --test N       problems to measure by (default 600)
#   --stage1 N     pictures of stage 1 (default 3000)
#   --epochs N     on the problems (default 12)
#   --seed N       of problems, order and projector (default 1)
#   --jobs N       trainings at a time, one thread each (default 2)
#   --no-build     take the binaries of build/release (LLAVA_BIN_DIR: of another folder)
set -euo pipefail
cd "$(dirname "$0")/.."

. deploy/making.sh

out=build/scienceqa
train=2400
test=600
stage1=3000
epochs=12
seed=1
jobs=2
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:?scienceqa: --out needs a folder}; shift ;;
    --train) number "$@"; train=$2; shift ;;
    --test) number "$@"; test=$2; shift ;;
    --stage1) number "$@"; stage1=$2; shift ;;
    --epochs) number "$@"; epochs=$2; shift ;;
    --seed) number "$@"; seed=$2; shift ;;
    --jobs) number "$@"; jobs=$2; shift ;;
    --no-build) build=0 ;;
    -h | --help) help ;;
    *) wrong "unknown option $1" ;;
  esac
  shift
done
build_programs llava-train llava-datagen llava-eval
export OMP_NUM_THREADS=1

claim "$out" "$(echo "$train problems, $test to measure by, $stage1 pictures of stage 1"
  echo "$epochs epochs, seed $seed"
  digests deploy/training/align.json deploy/training/finetune.json)"
mkdir -p "$out/data" "$out/results"
problems=(--problems "$out/problems/problems.json" --splits "$out/problems/pid_splits.json")

say "problems and pictures"
[ -e "$out/problems/dataset.json" ] ||
  run "$bin/llava-datagen" science --out "$out/problems" --train "$train" --val 0 --test "$test" \
    --seed "$seed"
for format in QCM-LEPA QCM-ALE; do
  [ -e "$out/data/$format.json" ] ||
    run "$bin/llava-eval" scienceqa convert "${problems[@]}" --split train --format $format \
      --out "$out/data/$format.json"
done
scenes "$out/scenes" "$seed" "$stage1" --stage1 --stage1-detail

if [ ! -e "$out/aligned/published.json" ]; then
  say "stage 1"
  run "$bin/llava-train" align --recipe deploy/training/align.json --set "seed=$seed" \
    --set "tower=$tower" --set "model=$language" --set "data=$out/scenes/stage1.json" \
    --set "images=$out/scenes/images" --set held_out_records=0 \
    --out "$out/aligned" --publish "$out/models" --name aligned
fi

. deploy/pieces.sh
declare -A title=([QCM-LEPA]="reasons first" [QCM-ALE]="answer first" [aligned]=""
  [base]=", without stage 1")
title_of() { echo "${title[$1]}${title[$2]}"; }
log_of() { echo "$out/logs/$1-$2.log"; }

# Few problems make few steps, and the small model has never seen a letter in brackets: hence smaller
# batches (16, the paper's are 32) and a higher rate than for dialogues.
variant() { # format, start
  local name=$1-$2 from=(--set "model=$out/models/aligned") model=sqa-${1,,}-$2
  [ ! -e "$out/results/$name.json" ] || return 0
  if [ "$2" = base ]; then from=(--set "model=$language" --set projector.init=fresh); fi
  [ -e "$out/runs/$name/published.json" ] ||
    run "$bin/llava-train" finetune --recipe deploy/training/finetune.json --set "seed=$seed" \
      --set "tower=$tower" "${from[@]}" --set "data=$out/data/$1.json" \
      --set "images=$out/problems/images/train" --set "epochs=$epochs" --set packing=none \
      --set batch_size=16 --set learning_rate=1e-3 \
      --set held_out_records=0 --set keep_states=1 \
      --out "$out/runs/$name" --publish "$out/models" --name "$model"
  run "$bin/llava-eval" scienceqa run "${problems[@]}" --format "$1" \
    --pictures "$out/problems/images/test" --checkpoint "$out/models/$model" \
    --tower "$tower" --max-tokens 200 --threads 1 --out "$out/results/$name.jsonl"
  run "$bin/llava-eval" scienceqa score "${problems[@]}" --predictions "$out/results/$name.jsonl" \
    --json >"$out/results/$name.part"
  mv "$out/results/$name.part" "$out/results/$name.json"
}
variants=("QCM-LEPA aligned" "QCM-ALE aligned" "QCM-LEPA base" "QCM-ALE base")
work "$epochs epochs and $test answers" variant "${variants[@]}"

results=()
for words in "${variants[@]}"; do
  # shellcheck disable=SC2086 # words
  results+=("$(title_of $words)=$out/results/${words// /-}.json")
done
"$bin/llava-eval" report "${results[@]}" --title "ScienceQA at small scale" \
  --html "$out/report.html" --markdown "$out/report.md"
cat "$out/report.md"
say "report: $out/report.html, $out/report.md"
