"""Throughput and waiting of llava-vision with 1, 8 and 64 clients at once.

    $LLAVA_VENV/bin/python tests/bench/vision_load.py [--tower FOLDER] [--clients 1,8,64] [--seconds 20]
        [--cached] [--json FILE] [-- flags of llava-vision]

Each client sends the next picture when it has the features of the last. All pictures are different
files (bytes behind the end of one picture) unless --cached, where all are one. The first tenth of the
time is not counted."""
import io
import statistics
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


def measure(service, clients, seconds, image, cached):
    """Seconds of each call that began and ended in the counted time, and that time."""
    models = Client(service.grpc, "llava.v1.ModelService")
    digest = models.ListModels(models.new("ListModelsRequest")).models[0].vision_spec.tower_digest
    models.close()
    begin = time.monotonic() + 0.1 * seconds
    end = begin + seconds
    times, failures, lock = [], [], threading.Lock()

    def work(worker):
        client = Client(service.grpc, "llava.v1.VisionService")
        spec = {"tower_digest": digest, "image_mode": 2, "select_layer": -2, "select_feature": 1}
        own, number = [], 0
        while time.monotonic() < end:
            number += 1
            # Bytes behind the picture's end: another file, the same work.
            name = b"" if cached else f"{time.monotonic_ns()} {worker} {number}".encode()
            start = time.monotonic()
            try:
                for _ in client.Encode(client.new("EncodeRequest", image=image + name, spec=spec)):
                    pass
            except Exception as error:  # counted, and shown at the end
                failures.append(str(error))
                continue
            stop = time.monotonic()
            if start >= begin and stop <= end:
                own.append(stop - start)
        client.close()
        with lock:
            times.extend(own)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        print(f"{len(failures)} calls failed, the first: {failures[0]}", file=sys.stderr)
    return times, seconds


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
        service = Service("llava-vision", ["--model", arguments.tower, "--port", 0, "--metrics-port", 0, "--log-format", "json",
                                           "--threads", arguments.threads, *arguments.flags], folder).wait_listening().wait_ready(600)
        try:
            for clients in arguments.clients:
                before = service.metrics()
                times, seconds = measure(service, clients, arguments.seconds, image, arguments.cached)
                after = service.metrics()
                grown = lambda name: after.get(name, 0) - before.get(name, 0)
                batches = grown("llava_vision_batch_size_count")
                row = {"clients": clients, "images_per_second": len(times) / seconds,
                       "p50_ms": 1e3 * statistics.median(times), "p99_ms": 1e3 * percentile(times, 0.99),
                       "mean_batch": grown("llava_vision_batch_size_sum") / batches if batches else 0}
                rows.append(row)
                print(f"{clients:3d} clients: {row['images_per_second']:8.1f} images/s, p50 {row['p50_ms']:8.2f} ms, "
                      f"p99 {row['p99_ms']:8.2f} ms, mean batch {row['mean_batch']:.1f}", flush=True)
        finally:
            service.stop()
    bench.write(arguments, {"tower": str(arguments.tower), "rows": rows})


if __name__ == "__main__":
    main()
