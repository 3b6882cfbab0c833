#!/usr/bin/env bash
# Instruction data from a teacher, end to end: pictures with captions and boxes, conversations, descriptions
# and reasoning that a text-only teacher writes about them, a model trained on these beside one trained on
# the naive expansion of the same captions (same pictures, same stage 1, same number of steps), both asked
# about scenes that nobody has seen, and the better one served by the real services.
#
#   deploy/datagen.sh --base-url URL --model NAME [--out FOLDER] [--pictures N] [--records N]
#                     [--concurrency N] [--steps N] [--questions N] [--seed N] [--jobs N]
#                     [--port-base N] [--no-build]
#
# The teacher is any OpenAI-compatible server; its key comes from OPENAI_API_KEY. Without a language model at
# hand, tests/support/scripted_teacher.py is one. Everything can be interrupted: the same command goes on, and
# no answer is asked, or paid, twice.
#
#   --base-url URL    of the teacher, for example https://api.openai.com/v1
#   --model NAME      the teacher's name there
#   --out FOLDER      where everything goes (default build/datagen)
#   --pictures N      (default 1000)
#   --records N       to ask the teacher for, in the paper's proportions (default two a picture)
#   --concurrency N   requests at a time (default 8)
#   --steps N         of stage 2, batches of 16 records; stage 1 takes a third of them (default 900)
#   --questions N     of each type (default 100)
#   --seed N          of pictures, records, order and projector (default 1)
#   --jobs N          trainings at a time, one thread each (default 2)
#   --port-base N     ports of the services: N, N+1 ... N+22 (default 8400)
#   --no-build        take the binaries of build/release (LLAVA_BIN_DIR: of another folder)
set -euo pipefail
cd "$(dirname "$0")/.."

. deploy/making.sh

out=build/datagen
url=
model=
pictures=1000
records=
concurrency=8
steps=900
questions=100
seed=1
jobs=2
base=8400
while [ $# -gt 0 ]; do
  case $1 in
    --base-url) url=${2:?datagen: --base-url needs an address}; shift ;;
    --model) model=${2:?datagen: --model needs a name}; shift ;;
    --out) out=${2:?datagen: --out needs a folder}; shift ;;
    --pictures) at_least 8 "$@"; pictures=$2; shift ;;
    --records) number "$@"; records=$2; shift ;;
    --concurrency) number "$@"; concurrency=$2; shift ;;
    --steps) number "$@"; steps=$2; shift ;;
    --questions) number "$@"; questions=$2; shift ;;
    --seed) number "$@"; seed=$2; shift ;;
    --jobs) number "$@"; jobs=$2; shift ;;
    --port-base) port_base "$@"; base=$2; shift ;;
    --no-build) build=0 ;;
    -h | --help) help ;;
    *) wrong "unknown option $1" ;;
  esac
  shift
done
[ -n "$url" ] && [ -n "$model" ] || wrong "name a teacher with --base-url and --model"
records=${records:-$((2 * pictures))}
build_programs llava-datagen llava-train llava-eval llava-vision llava-llm llava-gateway llava-chat llava-probe
export OMP_NUM_THREADS=1

claim "$out" "$(echo "teacher $model, $records records about $pictures pictures"
  echo "seed $seed, $steps steps, $questions questions"
  digests deploy/training/align.json deploy/training/finetune.json)"
mkdir -p "$out/results"
. deploy/pieces.sh
title_of() { echo "${*//-/ }"; }
log_of() { echo "$out/logs/$1.log"; }

say "pictures with captions and boxes"
scenes "$out/scenes" $((seed * 100 + 4)) "$pictures"
say "the naive expansion: a brief question, answered with a caption"
[ -e "$out/expansion.json" ] ||
  run "$bin/llava-datagen" expand --scenes "$out/scenes" --seed "$seed" --out "$out/expansion.json"
say "the teacher reads captions and boxes, and writes"
if [ ! -e "$out/instruction-data/published.json" ]; then
  run "$bin/llava-datagen" instruct --scenes "$out/scenes" --seed "$seed" --count "$records" \
    --base-url "$url" --model "$model" --concurrency "$concurrency" --out "$out/instruct"
fi

train() { # align or finetune, name, data, model, settings...
  local sets=() setting
  [ ! -e "$out/$2/published.json" ] || return 0
  for setting in "seed=$seed" "tower=$tower" "model=$4" "data=$3" "images=$out/scenes/images" \
    packing=none held_out_records=0 keep_states=1 "${@:5}"; do
    sets+=(--set "$setting")
  done
  run "$bin/llava-train" "$1" --recipe "deploy/training/$1.json" "${sets[@]}" \
    --out "$out/$2" --publish "$out/models" --name "$2"
}
say "stage 1, on the naive expansion"
train align aligned "$out/expansion.json" "$language" "steps=$((steps / 3 + 1))"

variant() { # name
  local data=$out/instruct/instruct.json result=$out/results/$1.json
  [ ! -e "$result" ] || return 0
  [ "$1" != naive-expansion ] || data=$out/expansion.json
  train finetune "$1" "$data" "$out/models/aligned" "steps=$steps" batch_size=16
  run "$bin/llava-eval" chat-quality "$out/models/$1" --tower "$tower" --conditions picture,majority \
    --per-type "$questions" --threads 1 --json >"$result.part"
  mv "$result.part" "$result"
}
work "stage 2 and $questions questions a type" variant instruction-data naive-expansion

results=("instruction data=$out/results/instruction-data.json"
  "naive expansion=$out/results/naive-expansion.json")
"$bin/llava-eval" ablation "${results[@]}" --reference "naive expansion" \
  --markdown "$out/results.md" --plot "$out/results.png"
"$bin/llava-eval" report "${results[@]}" --title "Instruction data against naive expansion" \
  --html "$out/report.html"
cat "$out/results.md"
average() { awk -F'|' '/\*\*average\*\*/ { split($'"$1"', words, " "); print words[1] }' "$out/results.md"; }
winner=instruction-data
if awk "BEGIN { exit !($(average 4) > $(average 3)) }"; then winner=naive-expansion; fi
say "$winner has more right answers; it is served now"

. deploy/services.sh
stop_all() {
  services_stop
  stop_pieces
}
trap stop_all EXIT
services_start "$bin" "$tower" "$out/models/$winner" "$out/services" "$base"
services_wait 120
run "$bin/llava-chat" --gateway "127.0.0.1:$((base + 1))" --image deploy/scenes/pizza_bee_pig.png \
  --temperature 0 --max-new-tokens 40 --message "What is in the picture?" \
  --message "What is on the left?" --message "Can you eat it?" >"$out/answers.txt"
cat "$out/answers.txt"
say "data: $out/instruct, its report: $out/instruct/report.md, the models' answers: $out/report.html"
