"""Throughput and waiting of llava-vision with 1, 8 and 64 clients at once.

    $LLAVA_VENV/bin/python tests/bench/vision_load.py [--tower FOLDER|vit-l-14-336] [--clients 1,8,64] [--seconds 20]
        [--cached] [--json FILE] [-- flags of llava-vision]

Each client sends the next picture when it has the features of the last. All pictures are different
files (bytes behind the end of one picture) unless --cached, where all are one. Counted are the calls that
end in a window: it opens when each client has had an answer, and lasts --seconds, or longer if there
are fewer than two calls a client by then. vit-l-14-336 is that shape with random weights."""
import io
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import bench

sys.path.insert(0, str(bench.ROOT / "tests/e2e"))
from PIL import Image  # noqa: E402
from stack import TOWER_MODEL, Client, Service  # noqa: E402


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
        self.first, self.times, self.failures = set(), [], []
        self.clients, self.open, self.closed = clients, False, False

    def ended(self, worker, seconds):
        with self.changed:
            self.first.add(worker)
            if self.open and not self.closed:
                self.times.append(seconds)
            self.changed.notify_all()

    def failed(self, worker, error):
        with self.changed:
            self.first.add(worker)
            self.failures.append(str(error))
            self.changed.notify_all()

    def wait(self, seconds):
        """Seconds for which it was open."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.first) == self.clients)
            self.open, begin = True, time.monotonic()
            enough = lambda: len(self.times) + len(self.failures) >= 2 * self.clients
            while time.monotonic() - begin < seconds or not enough():
                self.changed.wait(0.1)
            self.closed = True
            return time.monotonic() - begin


def measure(service, clients, seconds, image, cached):
    """Seconds of each counted call, and those of the window."""
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
            window.ended(worker, time.monotonic() - start)
        client.close()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(clients)]
    for thread in threads:
        thread.start()
    open_for = window.wait(seconds)
    for thread in threads:
        thread.join()
    if window.failures:
        print(f"{len(window.failures)} calls failed, the first: {window.failures[0]}", file=sys.stderr)
    return window.times, open_for


def tower_folder(word, folder):
    if word != "vit-l-14-336":
        return word
    script = bench.ROOT / "tests/gpu/random_tower.py"
    subprocess.run([sys.executable, script, f"{folder}/vit-l-14-336", "--large"], check=True, stdout=subprocess.DEVNULL)
    return f"{folder}/vit-l-14-336"


def main():
    parser = bench.parser(__doc__, turns=0)
    parser.add_argument("--tower", default=TOWER_MODEL)
    parser.add_argument("--clients", type=bench.numbers, default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--side", type=int, default=336, help="pixels of the pictures sent")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("flags", nargs="*", help="of llava-vision, behind --")
    arguments = bench.parse(parser)
    image = picture(arguments.side)
    rows = []
    with tempfile.TemporaryDirectory(prefix="llava-vision-load-") as folder:
        tower = tower_folder(str(arguments.tower), folder)
        service = Service("llava-vision", ["--model", tower, "--port", 0, "--metrics-port", 0, "--log-format", "json",
                                           "--threads", arguments.threads, *arguments.flags], folder).wait_listening().wait_ready(600)
        try:
            for clients in arguments.clients:
                before = service.metrics()
                times, seconds = measure(service, clients, arguments.seconds, image, arguments.cached)
                after = service.metrics()
                grown = lambda name: after.get(name, 0) - before.get(name, 0)
                batches = grown("llava_vision_batch_size_count")
                row = {"clients": clients, "calls": len(times), "seconds": seconds, "images_per_second": len(times) / seconds,
                       "p50_ms": 1e3 * statistics.median(times), "p99_ms": 1e3 * percentile(times, 0.99),
                       "mean_batch": grown("llava_vision_batch_size_sum") / batches if batches else 0}
                rows.append(row)
                print(f"{clients:3d} clients: {row['images_per_second']:8.1f} images/s, p50 {row['p50_ms']:8.2f} ms, "
                      f"p99 {row['p99_ms']:8.2f} ms, mean batch {row['mean_batch']:.1f}", flush=True)
        finally:
            service.stop()
    bench.write(arguments, {"tower": str(arguments.tower), "flags": arguments.flags, "side": arguments.side, "rows": rows})


if __name__ == "__main__":
    main()
