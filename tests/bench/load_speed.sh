#!/bin/bash
# How fast a language model is read cold, checked and made ready, beside `dd` of the same files.
#
#   tests/bench/load_speed.sh [BUILD] [ROUNDS] [SHAPE]      (default: build/release of the tree, 3, llama-1.1b)
#
# Makes a model of that shape in bfloat16 with random weights (2.2 GB in a temporary folder of $TMPDIR,
# which has to be a disk), then by turns drops its files from the page cache and reads them with dd, one process a
# file, and with cat, one process for all; drops them again and loads them. Prints the medians and their ratios.
# Nothing else should run meanwhile.
set -euo pipefail

for argument in "$@"; do
  case $argument in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
done
here=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$here/build/release}
rounds=${2:-3}
shape=${3:-llama-1.1b}
model=$build/bin/llava-model
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$model" random "$folder/m" --shape "$shape" --plain --tokenizer "$here/deploy/models/emoji" >/dev/null
version=$folder/m/1

drop() {  # these files alone, from the page cache
  sync
  for file in "$version"/*; do
    dd if="$file" iflag=nocache count=0 status=none
  done
}
read_with_dd() {  # one after the other, in pieces of 4 MiB
  for file in "$version"/*; do dd if="$file" of=/dev/null bs=4M status=none; done
}
read_with_cat() { cat "$version"/* >/dev/null; }
seconds_of() {
  local begin end
  begin=$(date +%s%N)
  "$@"
  end=$(date +%s%N)
  echo $(((end - begin) / 1000)) | sed 's/\(.*\)/\1e-6/'
}

: >"$folder/dd"
: >"$folder/cat"
: >"$folder/load"
for ((round = 0; round < rounds; ++round)); do
  drop
  seconds_of read_with_dd >>"$folder/dd"
  drop
  seconds_of read_with_cat >>"$folder/cat"
  drop
  "$model" bench --load --shape "$version" --json >>"$folder/load"
done

python3 - "$folder" <<'PYTHON'
import json, statistics, sys

folder = sys.argv[1]
dd, cat = (statistics.median(float(line) for line in open(f"{folder}/{name}")) for name in ("dd", "cat"))
text, loads, decoder = open(f"{folder}/load").read(), [], json.JSONDecoder()
while text.strip():
    load, end = decoder.raw_decode(text.lstrip())
    text = text.lstrip()[end:]
    loads.append(load)
loaded = statistics.median(load["loaded_s"] for load in loads)
size, weights = loads[0]["file_bytes"], loads[0]["weight_bytes"]
peak = max(load["peak_bytes"] for load in loads)
print(f"dd      {dd:6.2f} s  {size / dd / 1e9:5.2f} GB/s")
print(f"cat     {cat:6.2f} s  {size / cat / 1e9:5.2f} GB/s")
print(f"ready   {loaded:6.2f} s  {size / loaded / 1e9:5.2f} GB/s  {100 * dd / loaded:.0f} % of dd, "
      f"{100 * cat / loaded:.0f} % of cat")
print(f"peak    {peak / 1e9:6.2f} GB for {weights / 1e9:.2f} GB of weights: {peak / weights:.2f} times")
PYTHON
