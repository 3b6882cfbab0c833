#!/usr/bin/env bash
# From a fresh machine to a chat about a picture.
#
#   deploy/quickstart.sh [--image PATH] [--port-base N] [--no-build] [--keep] [--train]
#
# Sets up, builds (build/release), starts the three services on the default checkpoint and opens
# llava-chat; without a terminal it plays two questions and prints the answers. At the end it stops
# all that it started.
#
#   --image PATH    talk about this picture instead of a bundled one
#   --port-base N   ports N ... N+22 (default 8000: the gateway's HTTP there, its gRPC on 8001)
#   --no-build      take the binaries as they are (LLAVA_BIN_DIR: from another folder)
#   --keep          leave the services running
#   --train         first make a model of one's own from the shipped base parts: pictures and dialogues,
#                   stage 1, stage 2 (about 4 minutes on 2 cores), and publish it under the running
#                   services, which load it and answer the same question by version 1 and by version
#                   2. In build/own; interrupted, the same command goes on
set -euo pipefail
cd "$(dirname "$0")/.."

. deploy/making.sh

pictures=(deploy/scenes/*.png)
image=${pictures[0]}
base=8000
keep=0
train=0
while [ $# -gt 0 ]; do
  case $1 in
    --image) image=${2:?quickstart: --image needs a path}; shift ;;
    --port-base) port_base "$@"; base=$2; shift ;;
    --no-build) build=0 ;;
    --keep) keep=1 ;;
    --train) train=1 ;;
    -h | --help) help ;;
    *) wrong "unknown option $1" ;;
  esac
  shift
done
[ -f "$image" ] || wrong "there is no picture $image"
if [ $build = 1 ]; then say "the first build takes 3 to 8 minutes on 2 cores, packages and LibTorch to download come on top"; fi
programs=(llava-gateway llava-vision llava-llm llava-chat llava-probe)
if [ $train = 1 ]; then programs+=(llava-train llava-datagen llava-model); fi
build_programs "${programs[@]}"

. deploy/services.sh
folder=$(mktemp -d "${TMPDIR:-/tmp}/llava-quickstart.XXXXXX")
finish() {
  local status=$?
  trap - EXIT INT TERM HUP
  stop_child
  if [ $keep = 1 ] && [ $status = 0 ]; then
    say "the services keep running; logs and data in $folder; stop them with"
    say "  kill ${SERVICE_PID[*]}"
    exit 0
  fi
  say "stopping the services"
  services_stop || status=1
  if [ $status = 0 ]; then
    rm -rf "$folder"
  else
    say "logs are in $folder/logs"
  fi
  exit $status
}
trap finish EXIT

begin_services() { # language model
  say "starting llava-vision, llava-llm and llava-gateway on ports $base to $((base + 22))"
  services_start "$bin" "$tower" "$1" "$folder" "$base"
  services_wait 120
}
chat=("$bin/llava-chat" --gateway "127.0.0.1:$((base + 1))" --image "$image")
ask() { # questions...
  local question arguments=()
  for question in "$@"; do arguments+=(--message "$question"); done
  run "${chat[@]}" --temperature 0 --max-new-tokens 40 "${arguments[@]}"
}

publish() { # checkpoint; as the next version of the model that is served
  "$bin/llava-model" publish "$1" --tower "$tower" --repository "$folder/models" --name emoji >/dev/null
}
if [ $train = 1 ]; then
  publish "$language"
  begin_services "$folder/models/emoji"
  say "version 1, before training: a projector that was never trained"
  ask "What is in the picture?"
  if [ -e build/own/models/emoji ]; then say "build/own has a model already; remove it to train anew"; fi
  run env LLAVA_BIN_DIR="$bin" deploy/train_default.sh --out build/own --no-build \
    --no-evaluation --pictures 12000
  publish build/own/models/emoji
  say "version 2 is published under the running services"
  # Until they have loaded it, there is no such version.
  deadline=$((SECONDS + 60))
  until "${chat[@]}" --model emoji@2 --message "Hello?" >/dev/null 2>&1; do
    if [ $SECONDS -ge $deadline ]; then
      fail "version 2 is not served after 60 s; $folder/logs/llm.log says why"
    fi
    sleep 0.1
  done
  say "version 2, after training: the same question"
else
  begin_services deploy/models/emoji
fi
say "all ready; talking about $image"
if [ -t 0 ] && [ -t 1 ]; then
  trap : INT # Ctrl-C stops an answer of the chat, which ends itself when it is meant to
  "${chat[@]}"
else
  ask "What is in the picture?" "How many things are there?"
fi
