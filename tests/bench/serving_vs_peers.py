#!/usr/bin/env python3
"""Decoder of llava-llm beside other engines, turn by turn: same shape, threads, prompts and tokens.

    serving_vs_peers.py --against PEER=OURS [--against ...] [--llama-cpp BIN_DIR] [--model DTYPE=PATH ...]
                        [--prompt 512,2048] [--parallel 1,4,8,16] [--gen 32] [--turns 3] [--raise-priority] [--json FILE]

PEER is openvino:int8, openvino:int4, openvino:bf16, transformers:bf16 (both LLaMA 1.1B with random weights, see
language_peers.py; run by $LLAVA_PEERS or the python of `deploy/setup.sh --with-peers`) or llama.cpp:FILE.gguf (for
llama-bench and llama-batched-bench in BIN_DIR). OURS is the format of our weights: int8, int4 or bf16; --model names a
version packed so, else random weights of --shape are packed anew for every run. Each turn runs one side, then the
other; medians of the turns are printed, and how many times as fast we are.
"""
import json
import os
import pathlib
import re
import subprocess

import bench

CACHE = pathlib.Path(os.environ.get("LLAVA_CACHE", pathlib.Path.home() / ".cache/llava-serving"))
PEERS_PYTHON = os.environ.get("LLAVA_PEERS", CACHE / "peers/bin/python")
CONTEXT = 16  # tokens of each sequence before those that are timed


class Ours:
    def __init__(self, options, dtype):
        self.options, self.dtype = options, dtype
        self.model = options.models.get(dtype, options.shape)
        self.about = {}

    def __call__(self):
        rows = {}
        for tokens in self.options.prompt:
            found = self.bench(prompt=tokens, gen=1, parallel=1)
            rows[f"prompt {tokens}"] = found["prompt_tokens_per_s"]
        found = self.bench(prompt=0, gen=self.options.gen, parallel=",".join(map(str, self.options.parallel)))
        for row in found["decode"]:
            rows[f"decode {row['parallel']}"] = row["decode_tokens_per_s"]
        self.about = {name: found[name] for name in ("model", "dtype", "instruction_set", "weight_bytes", "peak_rss_bytes",
                                                     "rss_own_bytes", "rss_file_bytes", "read_gb_per_s")}
        self.about["model"] = "/".join(pathlib.Path(self.about["model"]).parts[-2:])  # NAME/VERSION, or the shape
        return rows

    def bench(self, **arguments):
        return bench.llava_bench(self.model, self.dtype, context=CONTEXT, threads=self.options.threads, **arguments)


class LlamaCpp:
    def __init__(self, options, file):
        self.options, self.file = options, file
        self.about = {"file": pathlib.Path(file).name}

    def run(self, program, *arguments):
        folder = self.options.llama_cpp
        return subprocess.run([str(folder / program), "-m", self.file, "-t", str(self.options.threads), *map(str, arguments)],
                              capture_output=True, text=True, check=True, env=dict(os.environ, LD_LIBRARY_PATH=str(folder))).stdout

    def __call__(self):
        options, rows = self.options, {}
        for tokens in options.prompt:
            found = json.loads(self.run("llama-bench", "-p", tokens, "-n", 0, "-r", 1, "-o", "json"))
            rows[f"prompt {tokens}"] = found[0]["avg_ts"]
        text = self.run("llama-batched-bench", "-c", max(2560, max(options.parallel) * (options.gen + 2 * CONTEXT)), "-b", 512,
                        "-ub", 512, "-npp", CONTEXT, "-ntg", options.gen, "-npl", ",".join(map(str, options.parallel)))
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("| ").split("|")]
            if len(cells) >= 8 and re.fullmatch(r"\d+", cells[2]):
                rows[f"decode {int(cells[2])}"] = float(cells[7])
        return rows


class Worker:
    """A process of language_peers.py that waits while we are measured."""

    def __init__(self, options, peer):
        self.options = options
        self.process = subprocess.Popen([str(PEERS_PYTHON), str(bench.ROOT / "tests/bench/language_peers.py"), peer, str(options.threads)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self.answer())

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with {self.process.wait()}")
        return line

    def ask(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return float(self.answer())

    def __call__(self):
        rows = {f"prompt {tokens}": self.ask("prompt", tokens) for tokens in self.options.prompt}
        for count in self.options.parallel:
            rows[f"decode {count}"] = self.ask("decode", count, self.options.gen)
        return rows

    def close(self):
        self.about |= bench.memory_of(self.process.pid)
        self.process.stdin.close()
        self.process.wait()


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--against", action="append", required=True, metavar="PEER=OURS")
    parser.add_argument("--llama-cpp", type=pathlib.Path, metavar="BIN_DIR")
    parser.add_argument("--model", action="append", default=[], metavar="DTYPE=PATH")
    parser.add_argument("--shape", default="llama-1.1b")
    parser.add_argument("--prompt", type=bench.numbers, default=[512])
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--parallel", type=bench.numbers, default=[1, 4, 8, 16])
    options = bench.parse(parser)
    if not options.llama_cpp and any(pair.startswith("llama.cpp:") for pair in options.against):
        parser.error("--against llama.cpp:... needs --llama-cpp, the folder of its programs")
    if not pathlib.Path(PEERS_PYTHON).exists() and not all(pair.startswith("llama.cpp:") for pair in options.against):
        parser.error(f"there is no {PEERS_PYTHON}: run deploy/setup.sh --with-peers")
    options.models = dict(pair.split("=", 1) for pair in options.model)
    result = []
    for pair in options.against:
        peer, dtype = pair.rsplit("=", 1)
        name, which = peer.split(":", 1)
        ours = Ours(options, dtype)
        theirs = LlamaCpp(options, which) if name == "llama.cpp" else Worker(options, peer)
        rows = bench.alternate({"ours": ours, name: theirs}, options.turns)
        if isinstance(theirs, Worker):
            theirs.close()
        for row, figures in rows.items():
            figures["times"] = figures["ours"] / figures[name]
            print(f"{dtype:5} {pathlib.Path(peer).name:20} {row:12} {figures['ours']:8.1f} {figures[name]:8.1f} {figures['times']:6.2f} x",
                  flush=True)
        result.append({"ours": ours.about, "peer": {"name": name} | theirs.about, "threads": options.threads,
                       "turns": options.turns, "rows": rows})
    bench.write(options, result)


if __name__ == "__main__":
    main()
