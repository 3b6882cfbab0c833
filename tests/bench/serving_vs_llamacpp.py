"""Decoder of llava-llm beside llama.cpp, turn by turn: same shape, threads, prompt and tokens.

    serving_vs_llamacpp.py --llama-cpp BIN_DIR --pair int8=OURS=MODEL.gguf [--pair ...] [--threads 2] [--prompt 512]
                           [--gen 64] [--parallel 1,4,8,16] [--turns 3] [--raise-priority] [--json FILE]

A pair names the format of our weights, our model (a shape, or the path of a version packed so) and the file for
llama-bench and llama-batched-bench. Each turn runs one side, then the other; medians of the turns are printed,
and how many times as fast we are.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = pathlib.Path(os.environ.get("LLAVA_BIN_DIR", ROOT / "build/release/bin"))


def ours(options, dtype, model):
    command = [BIN / "llava-model", "bench", "--shape", model, "--dtype", dtype, "--prompt", options.prompt, "--gen", options.gen,
               "--context", 16, "--parallel", options.parallel, "--repeats", 1, "--threads", options.threads, "--json"]
    found = json.loads(subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout)
    rows = {"prompt": found["prompt_tokens_per_s"]}
    for row in found["decode"]:
        rows[f"decode {row['parallel']}"] = row["decode_tokens_per_s"]
    return rows, found


def theirs(options, file):
    environment = dict(os.environ, LD_LIBRARY_PATH=str(options.llama_cpp))
    run = lambda program, *arguments: subprocess.run(
        [str(options.llama_cpp / program), "-m", file, "-t", str(options.threads), *map(str, arguments)],
        capture_output=True, text=True, check=True, env=environment).stdout
    rows = {}
    for row in json.loads(run("llama-bench", "-p", options.prompt, "-n", 0, "-r", 1, "-o", "json")):
        rows["prompt"] = row["avg_ts"]
    counts = [int(n) for n in options.parallel.split(",")]
    text = run("llama-batched-bench", "-c", max(2560, max(counts) * (options.gen + 32)), "-b", 512, "-ub", 512, "-npp", 16,
               "-ntg", options.gen, "-npl", options.parallel)
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) >= 8 and re.fullmatch(r"\d+", cells[2]):
            rows[f"decode {int(cells[2])}"] = float(cells[7])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=pathlib.Path, required=True)
    parser.add_argument("--pair", action="append", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--parallel", default="1,4,8,16")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--raise-priority", action="store_true", help="of this session's scheduling group (Linux)")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.raise_priority:
        pathlib.Path("/proc/self/autogroup").write_text("-15")
    result = []
    for pair in options.pair:
        dtype, model, file = pair.split("=")
        turns = []
        for _ in range(options.turns):
            mine, found = ours(options, dtype, model)
            turns.append((mine, theirs(options, file)))
        rows = {}
        for name in turns[0][0]:
            left, right = (statistics.median(turn[side][name] for turn in turns) for side in (0, 1))
            rows[name] = {"ours": left, "llama_cpp": right, "times": left / right}
        result.append({"dtype": dtype, "file": pathlib.Path(file).name, "read_gb_per_s": found["read_gb_per_s"],
                       "instruction_set": found["instruction_set"], "rows": rows})
        for name, row in rows.items():
            print(f"{dtype:5} {pathlib.Path(file).name:16} {name:10} {row['ours']:8.1f} {row['llama_cpp']:8.1f} {row['times']:6.2f} x",
                  flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
