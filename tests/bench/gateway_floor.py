#!/usr/bin/env python3
"""What llava-gateway costs beside the least that a hop of gRPC can cost, and a durable question beside the disk.

    gateway_floor.py [--turns 5] [--seconds 3] [--keys 100] [--tls] [--raise-priority] [--json FILE]

One client (llava-bench), several ways to the same tokens, turn by turn:
  relay         llava_stand_ins relay -> llava_stand_ins chat: every message is passed on, nothing else
  gateway       llava-gateway -> llava_stand_ins llm: sessions, durable turns, the journal, stored answers
  gateway+keys  the same, asking for an API key, of which it knows so many (--keys)
  relay+tls, gateway+tls    both with an encrypted connection to the client (--tls; with --keys, also keys)
Rows: as fast as it goes, 1, 8 and 64 streams (tokens relayed a second); and at a fixed pace, as people read, 1, 8 and
64 streams of 50 tokens a second (how old a token is when the client has it): medians, and how much more that is than the relay
of the same turn. Then the time until a question is acknowledged, 1 and 64 sessions of short answers, beside fdatasync of the
same folder. LLAVA_BIN_DIR: folder of the programs (default build/release/bin)."""
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import bench
from stand_ins import BIN, Certificates, Gateway, StandIn


def load(way, seconds, sessions, tokens):
    done = subprocess.run(
        [BIN / "llava-bench", "--gateway", way.address, *way.flags, "--seconds", str(seconds), "--warmup", "0.5", "--sessions", str(sessions),
         "--turns", "4", "--prompt-words", "8", "--max-new-tokens", str(tokens), "--stamps", "--json", "-"],
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


class Way:
    """An address, what a client needs to come in, and the name of the way that it is compared with."""

    def __init__(self, address, flags, floor=None):
        self.address, self.flags, self.floor = address, flags, floor


class Ways:
    """All of them, each with tokens `pace` microseconds apart."""

    def __init__(self, folder, pace, keys, certificates):
        self.parts, self.gateways, self.ways = [], [], {}
        llm, vision, chat = (self.start(*arguments) for arguments in (("llm", pace), ("vision",), ("chat", pace)))

        def gateway(name, floor, **more):
            self.gateways.append(Gateway(folder, f"{name}-{pace}", llm, vision, **more))
            self.ways[name] = Way(self.gateways[-1].grpc, self.gateways[-1].client_flags, floor)

        self.ways["relay"] = Way(self.start("relay", chat.address).address, [])
        gateway("gateway", "relay")
        if keys:
            gateway("gateway+keys", "relay", keys=keys)
        if certificates:
            relay = self.start("relay", chat.address, certificates.pem("server"), certificates.key("server"))
            self.ways["relay+tls"] = Way(relay.address, ["--tls-ca", certificates.pem("ca")])
            gateway("gateway+tls", "relay+tls", keys=keys, certificates=certificates)

    def start(self, *arguments):
        self.parts.append(StandIn(*arguments))
        return self.parts[-1]

    def stop(self):
        for gateway in self.gateways:
            gateway.stop()
        for part in reversed(self.parts):
            part.stop()


def compare(ways, turns, seconds, sessions, tokens, figure):
    """{way: {"value": median, "ratio": median of value / the floor's, "ratios": of each turn}}."""
    values = {name: [] for name in ways}
    for number in range(turns):
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            values[name].append(figure(load(ways[name], seconds, sessions, tokens)))
    row = {}
    for name, way in ways.items():
        row[name] = {"value": statistics.median(values[name])}
        if way.floor:
            ratios = [value / floor for value, floor in zip(values[name], values[way.floor])]
            row[name] |= {"ratio": statistics.median(ratios), "ratios": [round(ratio, 3) for ratio in ratios]}
    return row


def show(title, row, show_value, times_more):
    words = [f"{name} {show_value(cell['value'])}" + (f" ({times_more(cell['ratio']):.2f})" if "ratio" in cell else "")
             for name, cell in row.items()]
    print(f"{title}: {', '.join(words)}", flush=True)


def main():
    parser = bench.parser(__doc__, turns=5, threads=False)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--keys", type=int, default=0, metavar="N", help="also a gateway that knows so many API keys")
    parser.add_argument("--tls", action="store_true", help="also encrypted")
    options = bench.parse(parser)
    result = {"keys": options.keys, "relayed": {}, "paced": {}, "durable": {}}
    with tempfile.TemporaryDirectory() as folder:
        certificates = Certificates(folder) if options.tls else None
        ways = Ways(folder, 0, options.keys, certificates)
        try:
            for sessions in (1, 8, 64):
                row = compare(ways.ways, options.turns, options.seconds, sessions, 256, lambda r: r["pieces_per_second"])
                result["relayed"][sessions] = row
                show(f"{sessions:3} streams, tokens/s", row, lambda value: f"{value:.0f}", lambda ratio: 1 / ratio)
            asked = ways.ways["gateway+keys" if options.keys else "gateway"]
            for sessions in (1, 64):
                pairs = []
                for _ in range(options.turns):
                    disk = sync_seconds(folder)
                    pairs.append((disk, load(asked, options.seconds, sessions, 1)["acknowledged_seconds"]["median"]))
                row = {"fdatasync": statistics.median(p[0] for p in pairs), "acknowledged": statistics.median(p[1] for p in pairs),
                       "ratio": statistics.median(p[1] / p[0] for p in pairs)}
                result["durable"][sessions] = row
                print(f"{sessions:3} sessions: fdatasync {1e3 * row['fdatasync']:.2f} ms, question acknowledged {1e3 * row['acknowledged']:.2f} ms: "
                      f"{row['ratio']:.2f} times", flush=True)
        finally:
            ways.stop()
        ways = Ways(folder, 20_000, options.keys, certificates)
        try:
            for sessions in (1, 8, 64):
                row = compare(ways.ways, options.turns, max(options.seconds, 3), sessions, 50, lambda r: r["age_seconds"]["median"])
                result["paced"][sessions] = row
                show(f"{sessions:3} streams of 50/s, age of a token in us", row, lambda value: f"{1e6 * value:.0f}", lambda ratio: ratio)
        finally:
            ways.stop()
    bench.write(options, result)


if __name__ == "__main__":
    main()
