#!/usr/bin/env bash
# Tries and measures the real services on a GPU, from the archive that bundle.sh makes elsewhere, where
# a python3 has torch 2.11 and numpy; no network, no gRPC, no compiler.
#
#   tests/gpu/services.sh ARCHIVE [FLAGS OF services.py]
#
# OUT (default build/gpu)      where services.json and services.log go
# LLAVA_GPU_DEVICE             device under test (default cuda:0); cpu with --shape tiny: to try this
# LLAVA_TORCH_DIR              folder of the torch wheel (default: where python3 finds it)
#
# The large model is made in memory (/dev/shm) where that has 24 GB, else under TMPDIR. Exit status: 0
# if nothing failed.
set -euo pipefail
archive=$(realpath "${1:?the archive of bundle.sh is missing}")
shift
cd "$(dirname "$0")/../.."

out=${OUT:-$PWD/build/gpu}
torch=${LLAVA_TORCH_DIR:-$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')}
place=${TMPDIR:-/tmp}
if [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -gt 24000000 ] 2>/dev/null; then place=/dev/shm; fi
work=$(mktemp -d "$place/llava-services.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/bundle"
tar -xf "$archive" -C "$work/bundle"

export LLAVA_BIN_DIR=$work/bundle/bin
# LibTorch's libraries know where CUDA's lie; the programs ask for the runtime by themselves.
LLAVA_LIBRARIES=$work/bundle/lib:$torch/lib
for folder in "$(dirname "$torch")"/nvidia/*/lib /usr/local/cuda/lib64; do
  [ ! -d "$folder" ] || LLAVA_LIBRARIES+=:$folder
done
export LLAVA_LIBRARIES
missing=$(LD_LIBRARY_PATH=$LLAVA_LIBRARIES ldd "$LLAVA_BIN_DIR"/llava-* | grep 'not found' | sort -u || true)
[ -z "$missing" ] || echo "services: not found before they are loaded: $missing"

PYTHONUNBUFFERED=1 python3 tests/gpu/services.py "${LLAVA_GPU_DEVICE:-cuda:0}" "$out/services.json" \
  --work "$work/run" "$@" 2>&1 | tee "$out/services.log"
