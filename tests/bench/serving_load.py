"""Speed and fairness of llava-llm over gRPC: one stream, several, and a long prompt that arrives meanwhile.

    serving_load.py --model PATH [--dtype int8] [--threads 2] [--prompt 2048] [--streams 8] [--tokens 200]
                    [--repeats 3] [--parallel 1,16] [--raise-priority] [--json FILE]

Starts the service itself (LLAVA_BIN_DIR, default build/release/bin). Prints, medians of the repeats:
- tokens/s of N streams that run together;
- the gap between tokens of the running streams, alone and while the long prompt is computed (50th and 99th
  percentile), and the time to the first token of that prompt, alone and beside them.
"""
import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))

from stack import Client, Service


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Load:
    def __init__(self, options, folder):
        arguments = ["--model", options.model, "--dtype", options.dtype, "--port", "0", "--metrics-port", "0",
                     "--log-format", "json", "--kv-bytes", "2G"]
        if options.threads:
            arguments += ["--threads", options.threads]
        self.service = Service("llava-llm", arguments, folder).wait_listening().wait_ready(600)
        self.client = Client(self.service.grpc, "llava.v1.LlmService")
        models = Client(self.service.grpc, "llava.v1.ModelService")
        found = models.ListModels(models.new("ListModelsRequest")).models[0].model
        self.model = {"name": found.name, "version": found.version}
        self.number = 0

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

    def streams(self, count, tokens, prompt=32):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", default="")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parallel", default="1,16")
    parser.add_argument("--raise-priority", action="store_true", help="of this session's scheduling group (Linux)")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.raise_priority:
        pathlib.Path("/proc/self/autogroup").write_text("-15")
    result = {"model": options.model, "dtype": options.dtype, "prompt": options.prompt, "streams": options.streams}
    with tempfile.TemporaryDirectory() as folder:
        load = Load(options, folder)
        try:
            load.speed(2, 8)
            for count in (int(n) for n in options.parallel.split(",") if n):
                result[f"tokens_per_s_{count}"] = statistics.median(load.speed(count, 64) for _ in range(options.repeats))
            alone, beside, undisturbed, disturbed = [], [], [], []
            for _ in range(options.repeats):
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
            result |= {
                "first_token_alone_s": statistics.median(alone), "first_token_beside_s": statistics.median(beside),
                "first_token_ratio": statistics.median(beside) / statistics.median(alone),
                "gap_p50_ms": 1e3 * percentile(undisturbed, 0.5), "gap_p99_ms": 1e3 * percentile(undisturbed, 0.99),
                "gap_beside_p50_ms": 1e3 * percentile(disturbed, 0.5), "gap_beside_p99_ms": 1e3 * percentile(disturbed, 0.99),
                "gap_ratio_p99_to_undisturbed_p50": percentile(disturbed, 0.99) / percentile(undisturbed, 0.5)}
        finally:
            load.service.stop()
    print(json.dumps(result, indent=1))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
