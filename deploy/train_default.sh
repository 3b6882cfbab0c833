#!/usr/bin/env bash
# Makes the default model as it is shipped, from nothing or from the shipped base parts.
#
#   deploy/train_default.sh [--out FOLDER] [--bases] [--pictures N] [--no-evaluation] [--install]
#                           [--no-build]
#
# Base tower and base language model (about an hour on 2 cores), then the paper's two stages on
# scenes that llava-datagen draws. Every step can be interrupted: the same command goes on, and one with
# other settings is refused.
#
#   --out FOLDER      where everything goes (default build/default)
#   --bases           train the base parts too; else the shipped ones are the start
#   --pictures N      of stage 2; stage 1 takes a quarter of them (default 48000)
#   --no-evaluation   without the questions at the end
#   --install         put the outcome into deploy/models and deploy/training
#   --no-build        take the binaries of build/release (LLAVA_BIN_DIR: of another folder)
set -euo pipefail
cd "$(dirname "$0")/.."

. deploy/making.sh

out=build/default
bases=0
install=0
evaluation=1
pictures=48000
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=${2:?train_default: --out needs a folder}; shift ;;
    --pictures) at_least 400 "$@"; pictures=$2; shift ;;
    --bases) bases=1 ;;
    --install) install=1 ;;
    --no-evaluation) evaluation=0 ;;
    --no-build) build=0 ;;
    -h | --help) help ;;
    *) wrong "unknown option $1" ;;
  esac
  shift
done
programs=(llava-train llava-datagen)
if [ $evaluation = 1 ]; then programs+=(llava-eval); fi
build_programs "${programs[@]}"

# Base parts that are trained here are no settings: --install puts them where the shipped ones lie.
settings() {
  echo "$pictures pictures of stage 2, base parts $([ $bases = 1 ] && echo trained here || echo as shipped)"
  if [ $bases = 1 ]; then sha256sum deploy/training/*.json; else digests deploy/training/{align,finetune}.json; fi
}
claim "$out" "$(settings)"
children=()
stop() {
  stop_child
  if [ ${#children[@]} -gt 0 ]; then kill -TERM "${children[@]}" 2>/dev/null || true; wait || true; fi
}
trap stop EXIT

map=deploy/training/text_map.safetensors
if [ $bases = 1 ]; then
  tower=$out/models/emoji-tower
  language=$out/models/emoji-base
  map=$out/text_map.safetensors
  [ -e "$out/tokenizer/tokenizer.model" ] || run "$bin/llava-train" tokenizer --out "$out/tokenizer"
  say "training the base tower and the base language model, a core each"
  OMP_NUM_THREADS=1 "$bin/llava-train" pretrain-vision --recipe deploy/training/tower.json \
    --set "tokenizer=$out/tokenizer" --out "$out/tower" --publish "$out/models" --name emoji-tower &
  children+=($!)
  # A base language model names the tower that its projector will read; until that is there, the
  # shipped one stands in.
  OMP_NUM_THREADS=1 "$bin/llava-train" pretrain-lm --recipe deploy/training/language.json \
    --set "tokenizer=$out/tokenizer" --set tower=deploy/models/emoji-tower \
    --set "text_map=$out/first_map.safetensors" --out "$out/language" \
    --publish "$out/first" --name emoji-base &
  children+=($!)
  for child in "${children[@]}"; do wait "$child"; done
  children=()
  run "$bin/llava-train" pretrain-lm --recipe deploy/training/language_counting.json \
    --set "start=$out/first/emoji-base" --set "start_text_map=$out/first_map.safetensors" \
    --set "tower=$tower" --set "text_map=$map" \
    --out "$out/language-counting" --publish "$out/models" --name emoji-base
fi

mkdir -p "$out/data"
say "drawing scenes"
scenes "$out/data/stage1" 101 $((pictures / 4)) --stage1 --stage1-detail
scenes "$out/data/stage2" 102 "$pictures" --stage2 --dialogues 9
scenes "$out/data/held-out" 103 200 --stage1 --stage1-detail --stage2 --dialogues 2

say "stage 1: the projector learns to speak the language model's words"
run "$bin/llava-train" align --recipe deploy/training/align.json \
  --set "model=$language" --set "tower=$tower" \
  --set "data=$out/data/stage1/stage1.json" --set "images=$out/data/stage1/images" \
  --set "held_out_data=$out/data/held-out/stage1.json" \
  --set "held_out_images=$out/data/held-out/images" \
  --out "$out/align" --publish "$out/models" --name emoji-aligned
say "stage 2: projector and language model learn to answer"
run "$bin/llava-train" finetune --recipe deploy/training/finetune.json \
  --set "model=$out/models/emoji-aligned" --set "tower=$tower" \
  --set "data=$out/data/stage2/stage2.json" --set "images=$out/data/stage2/images" \
  --set "held_out_data=$out/data/held-out/stage2.json" \
  --set "held_out_images=$out/data/held-out/images" \
  --out "$out/finetune" --publish "$out/models" --name emoji

if [ $evaluation = 1 ]; then
  say "questions about pictures that nobody has seen"
  run "$bin/llava-eval" chat-quality "$out/models/emoji" --tower "$tower" --oracle-map "$map" \
    --oracle-model "$language"
fi

if [ $install = 1 ]; then
  names=(emoji)
  if [ $bases = 1 ]; then names+=(emoji-tower emoji-base); fi
  for name in "${names[@]}"; do
    rm -rf "deploy/models/$name"
    mkdir -p "deploy/models/$name"
    cp -r "$out/models/$name/1" "deploy/models/$name/1"
  done
  if [ $bases = 1 ]; then cp "$map" deploy/training/text_map.safetensors; fi
  say "installed into deploy/models: ${names[*]}"
fi
