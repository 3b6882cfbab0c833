#!/usr/bin/env python3
"""Throughput and waiting of llava-vision with 1, 8 and 64 clients at once, beside the tower alone.

    vision_load.py [--tower FOLDER|vit-l-14-336] [--clients 1,8,64] [--seconds 20]
        [--turns 3] [--cached] [--raise-priority] [--json FILE] [-- flags of llava-vision]

In each turn, one after the other: llava-model bench with the same tower and arithmetic (not with --cached), then each number
of clients; every other turn backwards. The speed of a machine wanders by more than the service costs, so figures are
compared within a turn, and ratios are medians of turns.

Each client sends the next picture when it has the features of the last. All pictures are different
files (bytes behind the end of one picture) unless --cached, where all are one. Counted are the calls that
end in a window: it opens when each client has had an answer, and lasts --seconds, or longer if a client
had fewer than two answers by then. vit-l-14-336 is that shape with random weights."""
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import bench

bench.need("grpc", "PIL")
sys.path.insert(0, str(bench.ROOT / "tests/e2e"))
from PIL import Image  # noqa: E402
from stack import FREE_PORTS, TOWER_MODEL, Client, Service  # noqa: E402


def picture(side):
    data = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(data, "JPEG", quality=90)
    return data.getvalue()


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


class Window:
    """Counts the calls that end in it."""

    def __init__(self, clients):
        self.changed = threading.Condition()
        self.last, self.counted = {}, {}  # of each client: when its last call ended; (calls, seconds they took together)
        self.times, self.failures = [], []
        self.clients, self.open, self.closed = clients, False, False

    def ended(self, worker, start):
        with self.changed:
            now = time.monotonic()
            if self.open and not self.closed:
                calls, seconds = self.counted.get(worker, (0, 0))
                self.counted[worker] = calls + 1, seconds + now - self.last[worker]
                self.times.append(now - start)
            self.last[worker] = now
            self.changed.notify_all()

    def failed(self, worker, error):
        with self.changed:
            self.last[worker] = time.monotonic()
            self.failures.append(str(error))
            self.changed.notify_all()

    def wait(self, seconds):
        with self.changed:
            self.changed.wait_for(lambda: len(self.last) == self.clients)
            self.open, begin = True, time.monotonic()
            twice = lambda: len(self.counted) == self.clients and min(self.counted.values())[0] >= 2
            while time.monotonic() - begin < seconds or not (twice() or self.failures):
                self.changed.wait(0.1)
            self.closed = True

    def rate(self):
        """Calls a second: the sum of what each client had, from the end of a call to the end of another. (Answers come in
        bursts, a batch at a time: calls by seconds of the window would depend on whether it ends before or behind a burst.)"""
        return sum(calls / seconds for calls, seconds in self.counted.values())


def measure(service, clients, seconds, image, cached):
    """Seconds of each counted call, and calls a second."""
    models = Client(service.grpc, "llava.v1.ModelService")
    digest = models.ListModels(models.new("ListModelsRequest")).models[0].vision_spec.tower_digest
    models.close()
    window = Window(clients)

    def work(worker):
        client = Client(service.grpc, "llava.v1.VisionService")
        spec = {"tower_digest": digest, "image_mode": 2, "select_layer": -2, "select_feature": 1}
        number = 0
        while not window.closed:
            number += 1
            # Bytes behind the picture's end: another file, the same work.
            name = b"" if cached else f"{time.monotonic_ns()} {worker} {number}".encode()
            start = time.monotonic()
            try:
                for _ in client.Encode(client.new("EncodeRequest", image=image + name, spec=spec)):
                    pass
            except Exception as error:  # counted, and shown at the end
                window.failed(worker, error)
                continue
            window.ended(worker, start)
        client.close()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(clients)]
    for thread in threads:
        thread.start()
    window.wait(seconds)
    for thread in threads:
        thread.join()
    if window.failures:
        print(f"{len(window.failures)} calls failed, the first: {window.failures[0]}", file=sys.stderr)
    return window.times, window.rate()


def tower_folder(word, folder):
    if word != "vit-l-14-336":
        return word
    script = bench.ROOT / "tests/gpu/random_tower.py"
    subprocess.run([sys.executable, script, f"{folder}/vit-l-14-336", "--large"], check=True, stdout=subprocess.DEVNULL)
    os.sync()  # not while we measure
    return f"{folder}/vit-l-14-336"


class Measurement:
    """What takes turns: the tower alone, and the service with each number of clients."""

    def __init__(self, arguments, tower, service, image):
        self.arguments, self.tower, self.service, self.image = arguments, tower, service, image

    def alone(self):
        """Milliseconds a picture, one picture at a time."""
        flags = self.arguments.flags
        dtype = flags[flags.index("--dtype") + 1] if "--dtype" in flags else "float32"
        command = [bench.BIN / "llava-model", "bench", "--vision", self.tower, "--dtype", dtype.replace("bfloat16", "bf16"),
                   "--threads", self.arguments.threads, "--batch", 1, "--repeats", 15, "--json"]
        answer = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
        return json.loads(answer)["pictures"][0]["ms_per_picture"]

    def served(self, clients):
        before = self.service.metrics()
        times, rate = measure(self.service, clients, self.arguments.seconds, self.image, self.arguments.cached)
        after = self.service.metrics()
        grown = lambda name: after.get(name, 0) - before.get(name, 0)
        mean = lambda name: grown(f"llava_vision_{name}_sum") / max(1, grown(f"llava_vision_{name}_count"))
        return {"clients": clients, "calls": len(times), "images_per_second": rate,
                "p50_ms": 1e3 * statistics.median(times), "p99_ms": 1e3 * percentile(times, 0.99), "mean_batch": mean("batch_size"),
                "queue_ms": 1e3 * mean("queue_seconds"), "decode_ms": 1e3 * mean("decode_seconds"),
                "batch_compute_ms": 1e3 * mean("compute_seconds")}

    def turn(self, backwards):
        """{"alone_ms": ..., "rows": [a row for each number of clients]}"""
        found = {"rows": []}
        steps = [None] * (not self.arguments.cached) + self.arguments.clients
        for clients in reversed(steps) if backwards else steps:
            if clients is None:
                found["alone_ms"] = self.alone()
                print(f"  tower alone: {found['alone_ms']:8.2f} ms a picture", flush=True)
                continue
            row = self.served(clients)
            found["rows"].append(row)
            print(f"{clients:3d} clients: {row['images_per_second']:8.1f} images/s, p50 {row['p50_ms']:8.2f} ms, p99 {row['p99_ms']:8.2f} ms, "
                  f"mean batch {row['mean_batch']:.1f}, decoding {row['decode_ms']:.1f} ms", flush=True)
        found["rows"].sort(key=lambda row: row["clients"])
        for row in found["rows"]:
            if "alone_ms" in found:
                row["times_alone"] = 1e3 / row["images_per_second"] / found["alone_ms"]
        return found


def summary(turns):
    """Of each number of clients: median, smallest and largest of the turns."""
    rows = []
    for same in zip(*(turn["rows"] for turn in turns)):
        spread = lambda name: [statistics.median(row[name] for row in same), min(row[name] for row in same), max(row[name] for row in same)]
        rows.append({"clients": same[0]["clients"], **{name: spread(name) for name in same[0] if name != "clients"}})
    return rows


def main():
    parser = bench.parser(__doc__)
    parser.add_argument("--tower", default=TOWER_MODEL)
    parser.add_argument("--clients", type=bench.numbers, default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--side", type=int, default=336, help="pixels of the pictures sent")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("flags", nargs="*", help="of llava-vision, behind --")
    arguments = bench.parse(parser)
    image = picture(arguments.side)
    with tempfile.TemporaryDirectory(prefix="llava-vision-load-") as folder:
        tower = tower_folder(str(arguments.tower), folder)
        service = Service("llava-vision", ["--model", tower, *FREE_PORTS, "--threads", arguments.threads, *arguments.flags],
                          folder).wait_listening().wait_ready(600)
        try:
            measure(service, 1, 1, image, arguments.cached)  # warms up
            measurement = Measurement(arguments, tower, service, image)
            turns = []
            for number in range(arguments.turns):
                print(f"# turn {number + 1} of {arguments.turns}", flush=True)
                turns.append(measurement.turn(backwards=number % 2 == 1))
        finally:
            service.stop()
    rows = summary(turns)
    print("# medians of the turns (smallest to largest)")
    for row in rows:
        rate, times = row["images_per_second"], row.get("times_alone")
        beside = f", a picture takes {times[0]:.2f} ({times[1]:.2f} to {times[2]:.2f}) times as long as in the tower alone" if times else ""
        print(f"{row['clients']:3d} clients: {rate[0]:8.1f} images/s ({rate[1]:.1f} to {rate[2]:.1f}), p50 {row['p50_ms'][0]:8.2f} ms, "
              f"p99 {row['p99_ms'][0]:8.2f} ms, mean batch {row['mean_batch'][0]:.1f}{beside}")
    bench.write(arguments, {"tower": str(arguments.tower), "flags": arguments.flags, "side": arguments.side, "rows": rows, "turns": turns})


if __name__ == "__main__":
    main()
