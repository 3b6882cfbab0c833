#!/usr/bin/env bash
# Asks the shipped model about a bundled scene on each of the devices and compares the answers.
#
#   chat.sh PATH_OF_llava_device_chat DEVICE...
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$1; shift
picture=$(mktemp --suffix=.ppm)
trap 'rm -f "$picture"' EXIT
python3 tests/gpu/png_to_ppm.py deploy/scenes/lion.png "$picture"
"$program" deploy/models/emoji-tower deploy/models/emoji "$picture" "What is in the picture?" "$@"
