#!/usr/bin/env python3
"""Speed and fairness of llava-llm over gRPC: one stream, several, and a long prompt that arrives meanwhile.

    serving_load.py --model PATH [--dtype int8] [--threads 2] [--prompt 2048] [--streams 8] [--tokens 200]
                    [--turns 3] [--parallel 1,16] [--flag prefill-slowdown=2.9 ...] [--raise-priority] [--json FILE]

Starts the service itself (LLAVA_BIN_DIR, default build/release/bin). Prints, medians of the turns:
- tokens/s of N streams that run together, turn by turn beside `llava-model bench` with as many sequences;
- the gap between tokens of the running streams, alone and while the long prompt is computed (50th and 99th
  percentile), and the time to the first token of that prompt, alone and beside them. Judged together: the gaps' 99th
  percentile at most 3 times that of undisturbed ones, the first token at most 1.5 times as late;
- memory: peak, its own, of files; and the peak over weights plus --kv-bytes.
"""
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time

import bench

bench.need("grpc")
sys.path.insert(0, str(bench.ROOT / "tests/e2e"))

from stack import FREE_PORTS, Client, Service

CONTEXT = 32  # tokens of a stream's prompt, about
KV_BYTES = 1 << 30


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Load:
    def __init__(self, options, folder):
        arguments = ["--model", options.model, "--dtype", options.dtype, *FREE_PORTS, "--kv-bytes", KV_BYTES, "--threads",
                     options.threads]
        for flag in options.flag:
            name, value = flag.split("=", 1)
            arguments += [f"--{name}", value]
        self.service = Service("llava-llm", arguments, folder).wait_listening().wait_ready(600)
        self.client = Client(self.service.grpc, "llava.v1.LlmService")
        models = Client(self.service.grpc, "llava.v1.ModelService")
        found = models.ListModels(models.new("ListModelsRequest")).models[0].model
        self.model = {"name": found.name, "version": found.version}
        self.number = 0
        # Of the version, for the bench program.
        self.folder = next(path for path in (pathlib.Path(options.model) / str(found.version), pathlib.Path(options.model))
                           if path.is_dir())

    def messages(self, tokens):
        """A prompt of about so many tokens that begins like no other."""
        self.number += 1
        text = f"Number {self.number}: "
        count = lambda words: self.client.CountTokens(self.client.new(
            "CountTokensRequest", model=self.model, messages=[{"role": 2, "text": text + "What is a lion? " * words}])).text_tokens
        few, many = count(1), count(101)
        words = max(1, int((tokens - few) / ((many - few) / 100)))
        return [{"role": 2, "text": text + "What is a lion? " * words}]

    def stream(self, messages, tokens, times):
        """Appends the moment of every token."""
        request = self.client.new("GenerateRequest", model=self.model, messages=messages, sampling={
            "max_new_tokens": tokens, "ignore_eos": True, "temperature": 0})
        for response in self.client.Generate(request):
            if response.WhichOneof("event") == "delta":
                times += [time.perf_counter()] * len(response.delta.token_ids)

    def streams(self, count, tokens, prompt=CONTEXT):
        """Runs streams in threads; returns (threads, their lists of times)."""
        lists = [[] for _ in range(count)]
        threads = [threading.Thread(target=self.stream, args=(self.messages(prompt), tokens, times)) for times in lists]
        for thread in threads:
            thread.start()
        return threads, lists

    def speed(self, count, tokens):
        threads, lists = self.streams(count, tokens)
        for thread in threads:
            thread.join()
        assert all(len(times) == tokens for times in lists), "a stream ended early"
        first, last = max(times[0] for times in lists), min(times[-1] for times in lists)
        if first >= last:  # more than the service runs at once: from the first token to the last
            first, last = min(times[0] for times in lists), max(times[-1] for times in lists)
        return sum(sum(1 for t in times if first < t <= last) for times in lists) / (last - first)

    def first_token(self, prompt):
        times = []
        begin = time.perf_counter()
        self.stream(self.messages(prompt), 1, times)
        return times[0] - begin, begin, times[0]


def gaps(lists, begin=0.0, end=float("inf")):
    return [b - a for times in lists for a, b in zip(times, times[1:]) if a >= begin and b <= end]


def speeds(load, options):
    """Tokens a second over gRPC beside the same decoder without a service."""
    result = {}
    for count in options.parallel:
        def alone():
            found = bench.llava_bench(load.folder, options.dtype, prompt=0, gen=64, context=CONTEXT, parallel=count,
                                      threads=options.threads)
            result["weight_bytes"] = found["weight_bytes"]
            return {"speed": found["decode"][0]["decode_tokens_per_s"]}
        sides = {"service": lambda: {"speed": load.speed(count, 64)}}
        if options.dtype != "auto":
            sides["bench"] = alone
        found = bench.alternate(sides, options.turns)["speed"]
        result[f"tokens_per_s_{count}"] = found["service"]
        if "bench" in found:
            result[f"bench_tokens_per_s_{count}"] = found["bench"]
            result[f"service_to_bench_{count}"] = found["service"] / found["bench"]
    return result


def mixed_load(load, options):
    alone, beside, undisturbed, disturbed = [], [], [], []
    for _ in range(options.turns):
        alone.append(load.first_token(options.prompt)[0])
        threads, lists = load.streams(options.streams, options.tokens)
        while any(len(times) < 40 for times in lists):
            time.sleep(0.01)
        seconds, begin, end = load.first_token(options.prompt)
        for thread in threads:
            thread.join()
        beside.append(seconds)
        quiet = max(times[5] for times in lists)
        undisturbed += gaps(lists, quiet, begin)
        disturbed += gaps(lists, begin, end)
        if any(times[-1] < end for times in lists):
            print("# a stream ended before the prompt was computed: give it more --tokens")
    p50, p99 = percentile(undisturbed, 0.5), percentile(undisturbed, 0.99)
    beside_p99 = percentile(disturbed, 0.99)
    ratio = statistics.median(beside) / statistics.median(alone)
    return {"first_token_alone_s": statistics.median(alone), "first_token_beside_s": statistics.median(beside),
            "first_token_ratio": ratio, "gap_p50_ms": 1e3 * p50, "gap_p99_ms": 1e3 * p99,
            "gap_beside_p50_ms": 1e3 * percentile(disturbed, 0.5), "gap_beside_p99_ms": 1e3 * beside_p99,
            "gap_ratio_p99_to_p99": beside_p99 / p99, "gap_ratio_p99_to_p50": beside_p99 / p50,
            "held": {"gaps": beside_p99 <= 3 * p99, "first_token": ratio <= 1.5}}


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--parallel", type=bench.numbers, default=[1, 16])
    parser.add_argument("--flag", action="append", default=[], metavar="NAME=VALUE", help="of llava-llm")
    options = bench.parse(parser)
    result = {"model": options.model, "dtype": options.dtype, "prompt": options.prompt, "streams": options.streams}
    with tempfile.TemporaryDirectory() as folder:
        load = Load(options, folder)
        try:
            load.speed(2, 8)
            result |= speeds(load, options)
            result |= mixed_load(load, options)
            result |= bench.memory_of(load.service.process.pid)
            if "weight_bytes" in result:
                result["peak_to_weights_and_kv"] = result["peak_rss_bytes"] / (result["weight_bytes"] + KV_BYTES)
        finally:
            load.service.stop()
    print(json.dumps(result, indent=1))
    bench.write(options, result)


if __name__ == "__main__":
    main()
