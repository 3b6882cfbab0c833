"""What llava-gateway costs beside the least that a hop of gRPC can cost, and a durable question beside the disk.

    gateway_floor.py [--rounds 5] [--seconds 3] [--raise-priority] [--json FILE]

One client (llava-bench), two ways to the same tokens, turn by turn:
  relay     llava_stand_ins relay -> llava_stand_ins chat: every message is passed on, nothing else
  gateway   llava-gateway -> llava_stand_ins llm: sessions, durable turns, stored answers
Rows: as fast as it goes, 1, 8 and 64 streams (tokens relayed a second); and at a fixed pace, as people read, 1, 8 and
64 streams of 50 tokens a second (how old a token is when the client has it). Then the time until a question is
acknowledged, 1 and 64 sessions of short answers, beside fdatasync of the same folder. Medians of the rounds' ratios.
LLAVA_BIN_DIR: folder of the programs (default build/release/bin)."""
import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))

from stack import BIN, Service


class StandIn:
    def __init__(self, *arguments):
        self.process = subprocess.Popen([BIN / "llava_stand_ins", *arguments], stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()
        assert self.address, arguments

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


def bench(address, seconds, sessions, tokens, *more):
    done = subprocess.run(
        [BIN / "llava-bench", "--gateway", address, "--seconds", str(seconds), "--warmup", "0.5", "--sessions", str(sessions),
         "--turns", "4", "--prompt-words", "8", "--max-new-tokens", str(tokens), "--stamps", "--json", "-", *more],
        capture_output=True, text=True, timeout=120 + 4 * seconds)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert result["failed"] == 0, result["errors"]
    return result


def sync_seconds(folder, count=200):
    """Median of fdatasync after a small write."""
    times = []
    with open(pathlib.Path(folder) / "sync", "wb", buffering=0) as file:
        for _ in range(count):
            file.write(b"x" * 4096)
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Sides:
    """Both ways, each with tokens `pace` microseconds apart."""

    def __init__(self, folder, pace):
        self.parts = [StandIn("llm", str(pace)), StandIn("vision"), StandIn("chat", str(pace))]
        llm, vision, chat = self.parts
        self.parts.append(StandIn("relay", chat.address))
        self.gateway = Service("llava-gateway", [
            "--port", "0", "--metrics-port", "0", "--http-port", "0", "--log-format", "json", "--data-dir", pathlib.Path(folder) / f"data{pace}",
            "--vision", vision.address, "--llm", llm.address], folder)
        self.gateway.wait_listening().wait_ready()
        self.addresses = {"relay": self.parts[-1].address, "gateway": self.gateway.grpc}

    def stop(self):
        self.gateway.stop()
        for part in reversed(self.parts):
            part.stop()


def compare(sides, rounds, seconds, sessions, tokens, figure):
    """{"relay": median, "gateway": median, "ratio": median of gateway / relay}."""
    values = {"relay": [], "gateway": []}
    for number in range(rounds):
        for side in ("relay", "gateway") if number % 2 == 0 else ("gateway", "relay"):
            values[side].append(figure(bench(sides.addresses[side], seconds, sessions, tokens)))
    ratios = [gateway / relay for gateway, relay in zip(values["gateway"], values["relay"])]
    return {side: statistics.median(each) for side, each in values.items()} | {
        "ratio": statistics.median(ratios), "ratios": [round(ratio, 3) for ratio in ratios]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--raise-priority", action="store_true", help="of this session's scheduling group (Linux)")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.raise_priority:
        pathlib.Path("/proc/self/autogroup").write_text("-15")
    result = {"relayed": {}, "paced": {}, "durable": {}}
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(folder, 0)
        try:
            for sessions in (1, 8, 64):
                row = compare(sides, options.rounds, options.seconds, sessions, 256, lambda r: r["pieces_per_second"])
                result["relayed"][sessions] = row
                print(f"{sessions:3} streams: relay {row['relay']:9.0f} tokens/s, gateway {row['gateway']:9.0f}: {1 / row['ratio']:.2f} times slower",
                      flush=True)
            for sessions in (1, 64):
                pairs = []
                for _ in range(options.rounds):
                    disk = sync_seconds(folder)
                    pairs.append((disk, bench(sides.addresses["gateway"], options.seconds, sessions, 1)["acknowledged_seconds"]["median"]))
                row = {"fdatasync": statistics.median(p[0] for p in pairs), "acknowledged": statistics.median(p[1] for p in pairs),
                       "ratio": statistics.median(p[1] / p[0] for p in pairs)}
                result["durable"][sessions] = row
                print(f"{sessions:3} sessions: fdatasync {1e3 * row['fdatasync']:.2f} ms, question acknowledged {1e3 * row['acknowledged']:.2f} ms: "
                      f"{row['ratio']:.2f} times", flush=True)
        finally:
            sides.stop()
        sides = Sides(folder, 20_000)
        try:
            for sessions in (1, 8, 64):
                seconds = max(options.seconds, 3)
                row = compare(sides, options.rounds, seconds, sessions, 50, lambda r: r["age_seconds"]["median"])
                result["paced"][sessions] = row
                print(f"{sessions:3} streams of 50/s: relay {1e6 * row['relay']:.0f} us, gateway {1e6 * row['gateway']:.0f} us: {row['ratio']:.2f} times",
                      flush=True)
        finally:
            sides.stop()
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
