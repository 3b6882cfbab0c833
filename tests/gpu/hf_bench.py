"""Hugging Face transformers with the work of llava_gpu_bench: LlamaForCausalLM with random bfloat16
weights, sdpa attention, a static cache; decoding also with torch.compile(mode="reduce-overhead");
CLIPVisionModel, of which all blocks run.

Usage: hf_bench.py DEVICE SHAPE SECONDS
       hf_bench.py DEVICE SHAPE - PHASE

SHAPE: 7b, or tiny to try this program where no GPU is. Each phase is a process of its own, which is
stopped when its part of the SECONDS is over: what it had measured by then is kept. Prints a JSON
object a line. A step here leaves the logits on the device; llava_gpu_bench's steps bring them to the host."""

import json
import statistics
import subprocess
import sys
import threading
import time

CONTEXT = 512
STEPS = 24
WARM_UP = 4
# Share of the time that each phase may take, if those before it have taken all of theirs.
PHASES = {"eager": 0.35, "compiled": 0.65}


def shape_of(name):
    if name == "7b":
        return {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000}, 2048, (1, 64)
    return {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 100}, 150, (1, 4)


def tower_of(name):
    if name == "7b":
        return {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                "num_attention_heads": 16, "image_size": 336, "patch_size": 14}, (1, 8, 32)
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14}, (1, 2)


def report(**found):
    print(json.dumps(found), flush=True)


class Phase:
    def __init__(self, device, shape):
        import torch
        import transformers
        self.torch, self.transformers = torch, transformers
        self.device = torch.device(device)
        self.shape = shape
        values, self.prompt, self.batches = shape_of(shape)
        self.config = transformers.LlamaConfig(max_position_embeddings=4096, **values)
        self.config._attn_implementation = "sdpa"
        torch.manual_seed(1)
        torch.set_default_dtype(torch.bfloat16)
        with self.device:
            self.model = transformers.LlamaForCausalLM(self.config).eval()
        report(versions={"transformers": transformers.__version__, "torch": torch.__version__})

    def wait(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def ids(self, batch, tokens):
        return self.torch.randint(0, self.config.vocab_size, (batch, tokens), device=self.device)

    def cache(self, tokens):
        return self.transformers.StaticCache(config=self.config, max_cache_len=tokens)

    def run(self, forward, ids, cache):
        return forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    def decode(self, forward, batch):
        """Median seconds of a step behind CONTEXT tokens."""
        cache = self.cache(CONTEXT + STEPS + WARM_UP)
        self.run(self.model, self.ids(batch, CONTEXT), cache)
        ids, seconds = self.ids(batch, 1), []
        for _ in range(WARM_UP + STEPS):
            self.wait()
            begin = time.perf_counter()
            if self.device.type == "cuda":
                self.torch.compiler.cudagraph_mark_step_begin()
            self.run(forward, ids, cache)
            self.wait()
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[WARM_UP:])

    def decode_all(self, name, forward):
        for batch in self.batches:
            begin = time.perf_counter()
            seconds = self.decode(forward, batch)
            report(**{f"{name}_decode_{batch}": {
                "milliseconds": seconds * 1e3, "tokens_per_second": batch / seconds,
                "seconds_with_compiling": time.perf_counter() - begin}})

    def eager(self):
        self.decode_all("eager", self.model)
        seconds = []
        ids = self.ids(1, self.prompt)
        for _ in range(5):
            cache = self.cache(self.prompt)
            self.wait()
            begin = time.perf_counter()
            self.run(self.model, ids, cache)
            self.wait()
            seconds.append(time.perf_counter() - begin)
        best = statistics.median(seconds[1:])
        report(eager_prefill={"tokens": self.prompt, "milliseconds": best * 1e3,
                              "tokens_per_second": self.prompt / best})

        self.tower()

    def tower(self):
        values, batches = tower_of(self.shape)
        config = self.transformers.CLIPVisionConfig(**values)
        config._attn_implementation = "sdpa"
        with self.device:
            model = self.transformers.CLIPVisionModel(config).eval()
        side = values["image_size"]
        for batch in batches:
            pixels = self.torch.randn(batch, 3, side, side, device=self.device)
            seconds = []
            for _ in range(8):
                self.wait()
                begin = time.perf_counter()
                model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
                self.wait()
                seconds.append(time.perf_counter() - begin)
            best = statistics.median(seconds[2:])
            report(**{f"eager_tower_{batch}": {"milliseconds": best * 1e3,
                                               "images_per_second": batch / best}})

    def compiled(self):
        forward = self.torch.compile(self.model, mode="reduce-overhead", fullgraph=True)
        self.decode_all("compiled", forward)


def run_phase(device, shape, name):
    phase = Phase(device, shape)
    with phase.torch.no_grad():
        getattr(phase, name)()


def collect(device, shape, name, seconds):
    """Runs a phase for at most so long and hands its lines on. Returns the seconds taken and what
    went wrong, or None."""
    process = subprocess.Popen([sys.executable, __file__, device, shape, "-", name], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    errors = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr.readlines()))
    drain.start()
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    begin = time.monotonic()
    for line in process.stdout:
        if line.startswith("{"):
            print(line, end="", flush=True)
    code = process.wait()
    timer.cancel()
    drain.join()
    took = time.monotonic() - begin
    if code == 0:
        return took, None
    sys.stderr.write("".join(errors[-30:]))
    return took, f"stopped after {seconds:.0f} s" if took >= seconds else "".join(errors[-4:]).strip()


def main(device, shape, seconds):
    left, share_left, failed = float(seconds), 1.0, {}
    for name, share in PHASES.items():
        took, wrong = collect(device, shape, name, left * share / share_left)
        left -= took
        share_left -= share
        report(**{f"{name}_seconds": took})
        if wrong:
            failed[name] = wrong
    if failed:
        report(failed=failed)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) == 5:
        run_phase(sys.argv[1], sys.argv[2], sys.argv[4])
    elif len(sys.argv) == 4:
        sys.exit(main(*sys.argv[1:]))
    else:
        sys.exit(__doc__)
