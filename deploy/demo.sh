#!/usr/bin/env bash
# Entry point of the demo image: the three services and a chat in one container.
#
#   docker run -it  llava-demo                                      chat at the keyboard
#   docker run      llava-demo --message "Hello" --message "And again"
#   docker run -d --network host llava-demo                         services until SIGTERM
#
# Arguments go to llava-chat.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/deploy/services.sh"
folder=$(mktemp -d "${TMPDIR:-/tmp}/llava-demo.XXXXXX")
child=
finish() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null && wait "$child" || true; fi
  services_stop || status=1
  rm -rf "$folder"
  exit $status
}
trap finish EXIT
trap 'exit 143' TERM HUP

services_start "$root/bin" "$root/models/emoji-tower" "$root/models/emoji" "$folder" 8000
services_wait 120 # the logs are shown if it fails
if [ -t 0 ] && [ -t 1 ]; then
  trap : INT # Ctrl-C is for the chat
  pictures=("$root"/scenes/*.png)
  "$root/bin/llava-chat" "${@:---image=${pictures[0]}}"
elif [ $# -gt 0 ]; then
  "$root/bin/llava-chat" "$@" &
  child=$!
  wait "$child"
  child=
else
  echo "ready: the gateway serves HTTP on port 8000, gRPC on port 8001 and metrics on port 8002"
  trap 'exit 0' TERM INT
  sleep infinity &
  child=$!
  wait "$child"
fi
