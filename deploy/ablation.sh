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

out=build/ablation
seeds=1,2,3
pictures=12000
questions=200
jobs=2
build=1
variants=(full stage2-only stage1-only last-layer linear conversation conversation-detail)
chosen=("${variants[@]}")
declare -A title=([full]="full" [stage2-only]="stage 2 only" [stage1-only]="stage 1 only"
  [last-layer]="last layer" [linear]="linear projector" [conversation]="conversation"
  [conversation-detail]="conversation + detail")
wrong() { echo "ablation: $*; see deploy/ablation.sh --help" >&2; exit 2; }
is_number() { [[ $1 =~ ^[1-9][0-9]{0,8}$ ]]; }
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:?ablation: --out needs a folder}; shift ;;
    --seeds) seeds=${2:?ablation: --seeds needs numbers}; shift ;;
    --pictures)
      is_number "${2:-}" && [ "$2" -ge 400 ] || wrong "--pictures takes a number of at least 400"
      pictures=$2; shift ;;
    --questions)
      is_number "${2:-}" || wrong "--questions takes a number of at least 1"
      questions=$2; shift ;;
    --only) IFS=, read -ra chosen <<<"${2:?ablation: --only needs variants}"; shift ;;
    --jobs)
      is_number "${2:-}" || wrong "--jobs takes a number of at least 1"
      jobs=$2; shift ;;
    --no-build) build=0 ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' deploy/ablation.sh; exit 0 ;;
    *) wrong "unknown option $1" ;;
  esac
  shift
done
IFS=, read -ra seeds <<<"$seeds"
for seed in "${seeds[@]}"; do
  is_number "$seed" || wrong "--seeds takes numbers from 1, separated by commas; found \"$seed\""
done
[ "$(printf '%s\n' "${seeds[@]}" | sort | uniq -d)" = "" ] || wrong "--seeds holds a number twice"
for variant in "${chosen[@]}"; do
  [ -n "${title[$variant]:-}" ] || wrong "there is no variant \"$variant\": ${variants[*]}"
done
say() { printf '\033[1mablation:\033[0m %s\n' "$*"; }
fail() { echo "ablation: $*" >&2; exit 1; }

bin=${LLAVA_BIN_DIR:-build/release/bin}
if [ $build = 1 ]; then
  deploy/setup.sh
  . "${LLAVA_CACHE:-$HOME/.cache/llava-serving}/env.sh"
  cmake --preset release >/dev/null
  say "building llava-train, llava-datagen and llava-eval"
  ninja -C build/release -j"${LLAVA_JOBS:-$(nproc)}" llava-train llava-datagen llava-eval
fi
for program in train datagen eval; do
  [ -x "$bin/llava-$program" ] || fail "$bin/llava-$program is missing: run without --no-build"
done
export OMP_NUM_THREADS=1

tower=deploy/models/emoji-tower
language=deploy/models/emoji-base
recipes=(deploy/training/align.json deploy/training/finetune.json)
# What all results of a folder have in common: a change would mix what cannot be compared.
mkdir -p "$out/results"
settings=$(echo "pictures $pictures"; echo "questions $questions"
  sha256sum "${recipes[@]}" "$tower"/*/manifest.json "$language"/*/manifest.json)
if [ ! -e "$out/settings" ]; then
  printf '%s\n' "$settings" >"$out/settings.part"
  mv "$out/settings.part" "$out/settings"
elif ! differences=$(diff "$out/settings" - <<<"$settings"); then
  printf '%s\n' "$differences" >&2
  wrong "$out was begun with other settings (<); choose another --out, or remove it"
fi
exec 9>"$out/.lock" # held by the pieces too: they outlive a script that is killed
flock -n 9 || fail "another ablation runs in $out"

# ---- Pieces of work, each in a process of its own with a log of its own.

# A program of a piece; in the background, so that a signal ends it in time.
run() {
  "$@" &
  child=$!
  wait "$child"
}

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

# ---- Pieces side by side.

declare -A running=() # process -> "seed name"
stop() {
  if [ ${#running[@]} -gt 0 ]; then kill -TERM "${!running[@]}" 2>/dev/null || true; wait || true; fi
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

log_of() { echo "$out/seed-$1/logs/$2.log"; } # seed, name
last_words() { tail -c 400 "$1" | tr '\r' '\n' | sed '/^ *$/d' | tail -n "${2:-1}"; }
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

begin() { # function, seed, name
  mkdir -p "$out/seed-$2/logs"
  (
    child=
    trap 'kill -TERM $child 2>/dev/null || true; wait; exit 143' TERM
    "$@"
  ) >>"$(log_of "$2" "$3")" 2>&1 &
  running[$!]="$2 $3"
}

# Waits until fewer than $1 pieces run: a line for each that ends, and once a minute for the others.
report_at=60 # of $SECONDS
wait_for_less() {
  while [ ${#running[@]} -ge "$1" ]; do
    local pid status seed name
    for pid in "${!running[@]}"; do
      read -r seed name <<<"${running[$pid]}"
      if kill -0 "$pid" 2>/dev/null; then
        [ $SECONDS -lt $report_at ] ||
          say "    seed $seed, $name: $(last_words "$(log_of "$seed" "$name")")"
        continue
      fi
      unset "running[$pid]"
      status=0
      wait "$pid" || status=$?
      if [ $status != 0 ]; then
        last_words "$(log_of "$seed" "$name")" 3 >&2
        fail "seed $seed, $name: exit status $status; its log is $(log_of "$seed" "$name")"
      fi
      ended=$((ended + 1))
      say "$ended of $total: seed $seed, $name ($(minutes $SECONDS) since the start)"
    done
    [ $SECONDS -lt $report_at ] || report_at=$((SECONDS + 60))
    [ ${#running[@]} -lt "$1" ] || sleep 1
  done
}

work() { # what, function, "seed name"...
  local what=$1 function=$2 piece
  shift 2
  total=$#
  ended=0
  [ "$total" -gt 0 ] || return 0
  say "$what: $total pieces"
  for piece in "$@"; do
    wait_for_less "$jobs"
    # shellcheck disable=SC2086 # two words
    begin "$function" $piece
  done
  wait_for_less 1
}

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
