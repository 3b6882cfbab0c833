#!/usr/bin/env python3
"""The vision tower beside OpenVINO, and resizing beside Pillow, turn by turn in one run.

    vision_vs_peers.py [--image-size 336] [--dtypes bf16,int8] [--batch 1,8] [--turns 5] [--threads 2] [--only tower|resize]
                       [--raise-priority] [--json FILE]

Runs under a Python that has openvino, numpy and pillow, or that of `deploy/setup.sh --with-peers`; our side is llava-model and
llava_picture_bench of $LLAVA_BIN_DIR (default: build/release/bin). Both towers are ViT-L/14 with random weights and
run 23 of its blocks, as LLaVA reads the second last hidden state. Each turn runs one side, then the other; medians
of the turns are printed, and how many times as fast we are.
"""
import json
import statistics
import subprocess
import time

import bench

BLOCKS, WIDTH, HEADS, INNER, PATCH = 23, 1024, 16, 4096, 14


def program(name, *arguments):
    output = subprocess.run([str(bench.BIN / name), *map(str, arguments)], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


def openvino_tower(side):
    """The graph of CLIP's tower up to the hidden state, as a model of OpenVINO."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    weight = lambda *shape: op.constant((random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float32))
    integers = lambda *values: op.constant(np.array(values, np.int64))

    def norm(x):
        flat = op.mvn(x, integers(-1), True, 1e-5, "inside_sqrt")
        return op.add(op.multiply(flat, op.constant(np.ones(WIDTH, np.float32))), op.constant(np.zeros(WIDTH, np.float32)))

    def linear(x, out, into):
        return op.add(op.matmul(x, weight(out, into), False, True), weight(out))

    tokens = (side // PATCH) ** 2 + 1
    pixels = op.parameter([-1, 3, side, side], np.float32)
    x = op.convolution(pixels, weight(WIDTH, 3, PATCH, PATCH), [PATCH, PATCH], [0, 0], [0, 0], [1, 1])
    x = op.transpose(op.reshape(x, integers(0, WIDTH, tokens - 1), True), integers(0, 2, 1))
    batch = op.gather(op.shape_of(pixels), integers(0), op.constant(np.array(0)))
    first = op.broadcast(weight(1, 1, WIDTH), op.concat([batch, integers(1, WIDTH)], 0))
    x = norm(op.add(op.concat([first, x], 1), weight(1, tokens, WIDTH)))
    for _ in range(BLOCKS):
        y = norm(x)
        heads = lambda t: op.transpose(op.reshape(t, integers(0, 0, HEADS, WIDTH // HEADS), True), integers(0, 2, 1, 3))
        q, k, v = (heads(linear(y, WIDTH, WIDTH)) for _ in range(3))
        seen = op.transpose(op.scaled_dot_product_attention(q, k, v), integers(0, 2, 1, 3))
        x = op.add(x, linear(op.reshape(seen, integers(0, 0, WIDTH), True), WIDTH, WIDTH))
        inner = linear(norm(x), INNER, WIDTH)
        inner = op.multiply(inner, op.sigmoid(op.multiply(inner, op.constant(np.float32(1.702)))))
        x = op.add(x, linear(inner, WIDTH, INNER))
    return ov.Model([x], [pixels])


class OpenVino:
    def __init__(self, side, threads):
        import numpy as np
        import openvino as ov

        self.version, self.numpy, self.side = ov.__version__.split("-")[0], np, side
        compiled = ov.Core().compile_model(openvino_tower(side), "CPU", {
            "INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False})
        self.request = compiled.create_infer_request()

    def milliseconds(self, batch, repeats=3):
        pixels = self.numpy.random.default_rng(1).standard_normal((batch, 3, self.side, self.side), dtype="float32")
        self.request.infer([pixels])
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            self.request.infer([pixels])
            times.append((time.perf_counter() - begin) / batch * 1e3)
        return statistics.median(times)


def towers(options):
    peer = OpenVino(options.image_size, options.threads)
    shape = "vit-l-14" if options.image_size == 224 else "vit-l-14-336"
    rows, cosines = {}, {}
    for turn in range(options.turns):
        for batch in options.batch:
            rows.setdefault(f"openvino {peer.version} bf16, batch {batch}", []).append(peer.milliseconds(batch))
        for dtype in options.dtypes:
            found = program("llava-model", "bench", "--vision", shape, "--dtype", dtype, "--batch",
                            ",".join(map(str, options.batch)), "--threads", options.threads, "--json")
            cosines[dtype] = found.get("cosine_to_float32")
            for row in found["pictures"]:
                rows.setdefault(f"ours {dtype}, batch {row['batch']}", []).append(row["ms_per_picture"])
        print(f"turn {turn + 1} of {options.turns}", flush=True)
    medians = {name: statistics.median(times) for name, times in rows.items()}
    for name, ms in medians.items():
        batch = name.split("batch ")[1]
        theirs = next(value for other, value in medians.items() if other.startswith("openvino") and other.endswith(f" {batch}"))
        print(f"{name:40} {ms:8.1f} ms a picture   {theirs / ms:5.2f} x OpenVINO bf16")
    for dtype, cosine in cosines.items():
        if cosine:
            print(f"cosine of {dtype} features to float32: smallest {cosine['min']:.5f}, mean {cosine['mean']:.5f}")
    return {"towers_ms": rows, "cosines": cosines}


def resizing(options):
    import numpy as np
    import PIL
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), dtype=np.uint8))
    side = options.image_size
    width, left = int(side * 1920 / 1080), (int(side * 1920 / 1080) - side) // 2
    rows = {"pillow": [], "ours": []}
    for _ in range(options.turns):
        times = []
        for _ in range(40):
            begin = time.perf_counter()
            image.resize((width, side), Image.Resampling.BICUBIC).crop((left, 0, left + side, side)).load()
            times.append((time.perf_counter() - begin) * 1e3)
        rows["pillow"].append(statistics.median(times))
        rows["ours"].append(program("llava_picture_bench", 1920, 1080, side, 0.5)["ms"])
    pillow, ours = (statistics.median(rows[name]) for name in ("pillow", "ours"))
    print(f"1920 x 1080 to {side}: Pillow {PIL.__version__} {pillow:.2f} ms, ours {ours:.2f} ms: {ours / pillow:.2f} of its time")
    return {"resize_ms": rows}


def main():
    parser = bench.parser(__doc__, turns=5)
    parser.add_argument("--image-size", type=int, default=336, choices=[224, 336])
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=["bf16", "int8"])
    parser.add_argument("--batch", type=bench.numbers, default=[1, 8])
    parser.add_argument("--only", choices=["tower", "resize"])
    options = bench.parse(parser, peers=("openvino", "numpy", "PIL"))
    found = {}
    if options.only != "tower":
        found |= resizing(options)
    if options.only != "resize":
        found |= towers(options)
    bench.write(options, found)


if __name__ == "__main__":
    main()
