#!/usr/bin/env bash
# What each part of the recipe is worth: the paper's ablations at small scale. Trains variants of the
# default model from the shipped base parts, asks all of them the same questions, and writes a table
# (ablation.md) and a chart (ablation.png).
#
#   deploy/ablation.sh [--out FOLDER] [--seeds 1,2,3] [--pictures N] [--questions N]
#                      [--only VARIANT,..] [--jobs N] [--no-build]
#
# Variants: full (stages 1 and 2, MLP projector on the layer before the last, all data), stage2-only,
# stage1-only, last-layer, linear (projector), conversation and conversation-detail (stage 2 on less
# data; with reasoning it is full). A seed has its own pictures, dialogues, order and projector; its
# variants share stage 1 where it is the same. Everything can be interrupted: the same command goes
# on, and what is finished stays.
#
#   --out FOLDER      where everything goes (default build/ablation)
#   --seeds LIST      more seeds may be added later (default 1,2,3)
#   --pictures N      of stage 2; stage 1 takes a quarter of them (default 12000)
#   --questions N     of each type (default 200)
#   --only LIST       these variants; the report tells of all that are finished
#   --jobs N          pieces at a time, one thread each (default 2)
#   --no-build        take the binaries of build/release (LLAVA_BIN_DIR: of another folder)
set -euo pipefail
cd "$(dirname "$0")/.."

. deploy/making.sh

out=build/ablation
seeds=1,2,3
pictures=12000
questions=200
jobs=2
variants=(full stage2-only stage1-only last-layer linear conversation conversation-detail)
chosen=("${variants[@]}")
declare -A title=([full]="full" [stage2-only]="stage 2 only" [stage1-only]="stage 1 only"
  [last-layer]="last layer" [linear]="linear projector" [conversation]="conversation"
  [conversation-detail]="conversation + detail")
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:?ablation: --out needs a folder}; shift ;;
    --seeds) seeds=${2:?ablation: --seeds needs numbers}; shift ;;
    --pictures) at_least 400 "$@"; pictures=$2; shift ;;
    --questions) number "$@"; questions=$2; shift ;;
    --only) IFS=, read -ra chosen <<<"${2:?ablation: --only needs variants}"; shift ;;
    --jobs) number "$@"; jobs=$2; shift ;;
    --no-build) build=0 ;;
    -h | --help) help ;;
    *) wrong "unknown option $1" ;;
  esac
  shift
done
IFS=, read -ra seeds <<<"$seeds"
for seed in "${seeds[@]}"; do
  [[ $seed =~ ^[1-9][0-9]{0,8}$ ]] ||
    wrong "--seeds takes numbers from 1, separated by commas; found \"$seed\""
done
[ "$(printf '%s\n' "${seeds[@]}" | sort | uniq -d)" = "" ] || wrong "--seeds holds a number twice"
for variant in "${chosen[@]}"; do
  [ -n "${title[$variant]:-}" ] || wrong "there is no variant \"$variant\": ${variants[*]}"
done
build_programs llava-train llava-datagen llava-eval
export OMP_NUM_THREADS=1

claim "$out" "$(echo "pictures $pictures"; echo "questions $questions"
  digests deploy/training/align.json deploy/training/finetune.json)"
mkdir -p "$out/results"

# ---- Pieces of work: a seed and a name.

. deploy/pieces.sh
title_of() { echo "seed $1, $2"; }
log_of() { echo "$out/seed-$1/logs/$2.log"; }

dataset() { # seed, name, seed of the scenes, count, flags...
  local folder=$out/seed-$1/data/$2
  [ ! -e "$folder/dataset.json" ] || return 0
  mkdir -p "$out/seed-$1/data"
  run "$bin/llava-datagen" scenes --out "$folder" --seed "$3" --count "$4" --jobs 1 "${@:5}"
}

# Each seed has three streams of scenes; those of seed 1 are the default model's.
data() { # seed, name
  local first=$(($1 * 100))
  case $2 in
    stage1) dataset "$@" $((first + 1)) $((pictures / 4)) --stage1 --stage1-detail ;;
    held-out)
      dataset "$@" $((first + 3)) 200 --stage1 --stage1-detail --stage2 --dialogues 2 ;;
    all) dataset "$@" $((first + 2)) "$pictures" --stage2 --dialogues 9 ;;
    *) # other records about the same pictures, of the kinds that the name says
      dataset "$@" $((first + 2)) "$pictures" --stage2 --dialogues 9 --kinds "${2//-/,}" \
        --no-pictures ;;
  esac
}

train() { # seed, kind of training, name, data, settings...
  local folder=$out/seed-$1 sets=() file=stage2.json images=all setting
  [ ! -e "$folder/$3/published.json" ] || return 0
  if [ "$2" = align ]; then file=stage1.json images=stage1; fi
  for setting in "seed=$1" "tower=$tower" keep_states=1 \
    "data=$folder/data/$4/$file" "images=$folder/data/$images/images" \
    "held_out_data=$folder/data/held-out/$file" "held_out_images=$folder/data/held-out/images" \
    "${@:5}"; do
    sets+=(--set "$setting")
  done
  run "$bin/llava-train" "$2" --recipe "deploy/training/$2.json" "${sets[@]}" \
    --out "$folder/$3" --publish "$folder/models" --name "$3"
}

# Stage 1 and data of a variant, the pictures' set first; none for a variant without the stage.
aligned_of() {
  case $1 in
    stage2-only) ;;
    last-layer | linear) echo "aligned-$1" ;;
    *) echo aligned ;;
  esac
}
data_of() {
  case $1 in
    stage1-only) ;;
    conversation | conversation-detail) echo "all $1" ;;
    *) echo all ;;
  esac
}

align() { # seed, name
  case $2 in
    aligned) train "$1" align "$2" stage1 "model=$language" ;;
    aligned-last-layer) train "$1" align "$2" stage1 "model=$language" select_layer=-1 ;;
    aligned-linear) train "$1" align "$2" stage1 "model=$language" projector.type=linear ;;
  esac
}

result_of() { echo "$out/results/$2-$1.json"; } # seed, variant

variant() { # seed, variant
  local models=$out/seed-$1/models name=$2 result records
  result=$(result_of "$@")
  records=$(data_of "$2")
  records=${records##* }
  case $2 in
    stage1-only) name=aligned ;;
    stage2-only) train "$1" finetune "$2" "$records" "model=$language" projector.init=fresh ;;
    *) train "$1" finetune "$2" "$records" "model=$models/$(aligned_of "$2")" ;;
  esac
  run "$bin/llava-eval" chat-quality "$models/$name" --tower "$tower" --conditions picture \
    --seed 1 --per-type "$questions" --threads 1 --json >"$result.part"
  mv "$result.part" "$result"
}

# ---- All of them.

add() { # array, piece: unless it is in it
  local -n list=$1
  local piece
  for piece in "${list[@]}"; do [ "$piece" != "$2" ] || return 0; done
  list+=("$2")
}
sets=()
aligned=()
measured=()
for seed in "${seeds[@]}"; do
  for variant in "${chosen[@]}"; do
    [ ! -e "$(result_of "$seed" "$variant")" ] || continue
    add measured "$seed $variant"
    add sets "$seed held-out"
    for name in $(data_of "$variant"); do add sets "$seed $name"; done
    for name in $(aligned_of "$variant"); do
      add sets "$seed stage1"
      add aligned "$seed $name"
    done
  done
done
work "drawing scenes" data "${sets[@]}"
work "stage 1" align "${aligned[@]}"
work "stage 2 and $questions questions a type" variant "${measured[@]}"

results=()
reference=()
for variant in "${variants[@]}"; do
  for seed in "${seeds[@]}"; do
    result=$(result_of "$seed" "$variant")
    [ -e "$result" ] || continue
    results+=("${title[$variant]}=$result")
    [ "$variant" != full ] || reference=(--reference full)
  done
done
"$bin/llava-eval" ablation "${results[@]}" "${reference[@]}" --markdown "$out/ablation.md" \
  --plot "$out/ablation.png"
cat "$out/ablation.md"
say "table and chart: $out/ablation.md, $out/ablation.png"
