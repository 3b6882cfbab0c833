#!/usr/bin/env python3
"""Does the gateway's memory grow? Many idle sessions, many that stream, for minutes, with nothing real behind it.

    gateway_soak.py [--seconds 600] [--base 120] [--idle 1000] [--streams 200] [--pace 50] [--json FILE]

llava-bench holds the sessions: those that stream begin at random moments, so many a second that about STREAMS run at a time, ask, each
about a picture of its own, read answers of 100 tokens (PACE ms apart) and are deleted after four turns. Beside them one client asks by HTTP, every answer resumable, half of them broken off
and taken up again. Prints the gateway's anonymous memory (RssAnon: heap and stacks) by time, and fails if its median over the last
20 seconds is more than 5 % above that around --base. LLAVA_BIN_DIR: folder of the programs (default build/release/bin)."""
import argparse
import http.client
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from stand_ins import BIN, Gateway, StandIn

ALLOWED = 1.05
WINDOW = 20  # seconds whose median counts
TURNS, TOKENS = 4, 100  # of a session, of an answer


def resident(pid):
    """{"anonymous": bytes, "file": bytes} of a process."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return {name: 1024 * int(re.search(rf"Rss{kind}:\s+(\d+)", text).group(1)) for name, kind in (("anonymous", "Anon"), ("file", "File"))}


class HttpClient(threading.Thread):
    """Asks for resumable answers, one after the other, and leaves half of them in the middle to come back."""

    def __init__(self, address, key):
        super().__init__()
        self.address, self.key = address, key
        self.end = threading.Event()
        self.asked = self.resumed = 0
        self.fault = None

    def post(self, *last_event):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        body = {"model": "quick", "stream": True, "stream_options": {"resumable": True}, "max_tokens": 20,
                "messages": [{"role": "user", "content": "What is in the picture? " * 20}]}
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        if last_event:
            headers["last-event-id"] = last_event[0]
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return connection, response

    @staticmethod
    def read(response, lines=None):
        """Reads so many lines, or all; returns the last event's id and whether the stream ended well."""
        last, done = None, False
        while (line := response.readline()) and lines != 0:
            lines = lines and lines - 1
            last = line[3:].strip().decode() if line.startswith(b"id:") else last
            done = done or line.startswith(b"data: [DONE]")
        return last, done

    def run(self):
        try:
            while not self.end.is_set():
                connection, response = self.post()
                self.asked += 1
                last, done = self.read(response, 12 if self.asked % 2 else None)
                connection.close()
                if self.asked % 2:
                    connection, response = self.post(last)
                    _, done = self.read(response)
                    connection.close()
                    self.resumed += 1
                assert done, "a stream ended without its last event"
        except Exception as error:  # told by main
            self.fault = error


def watch(pid, end, samples):
    begin = time.monotonic()
    while not end.wait(1):
        samples.append({"seconds": round(time.monotonic() - begin, 1), **resident(pid)})


def median_around(samples, second):
    """Of the window that ends there."""
    return statistics.median(s["anonymous"] for s in samples if second - WINDOW <= s["seconds"] <= second)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--base", type=int, default=120, help="the second to compare the end with")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--pace", type=int, default=50, help="milliseconds between tokens of a stream")
    parser.add_argument("--picture", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2] / "deploy/scenes/lion.png")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    assert WINDOW < options.base < options.seconds, "wrong --base"

    samples, end = [], threading.Event()
    with tempfile.TemporaryDirectory(prefix="llava-soak-") as folder:
        parts = [StandIn("llm", 1000 * options.pace), StandIn("vision")]
        gateway = Gateway(folder, "soak", *parts, keys=1, more=["--max-running-turns", 2 * options.streams])
        key = pathlib.Path(folder, "key-soak").read_text().strip()
        web = next(line["http"] for line in gateway.log_lines() if line.get("msg") == "serving HTTP")
        client = HttpClient(web, key)
        watcher = threading.Thread(target=watch, args=(gateway.process.pid, end, samples))
        bench = subprocess.Popen(
            [BIN / "llava-bench", "--gateway", gateway.grpc, *gateway.client_flags, "--idle-sessions", str(options.idle),
             "--rate", str(options.streams / (TURNS * TOKENS * options.pace / 1000)), "--sessions", str(2 * options.streams),
             "--turns", str(TURNS), "--max-new-tokens", str(TOKENS), "--picture", options.picture, "--unique-pictures",
             "--connections", "8", "--seconds", str(options.seconds), "--json", "-"], stdout=subprocess.PIPE, text=True)
        watcher.start()
        client.start()
        try:
            output, _ = bench.communicate(timeout=2 * options.seconds + 120)
        finally:
            bench.kill()
            end.set()
            client.end.set()
            watcher.join()
            client.join()
            gateway.stop()
            for part in parts:
                part.stop()
    load = json.loads(output)
    for second in range(WINDOW, options.seconds + 1, max(WINDOW, options.seconds // 20)):
        print(f"{second:5} s: {median_around(samples, second) / 2**20:7.1f} MiB")
    before, after = (median_around(samples, second) for second in (options.base, options.seconds))
    ratio = after / before
    print(f"{load['turns']} turns and {client.asked} over HTTP ({client.resumed} taken up again), {load['failed']} failed; "
          f"after {options.base} s {before / 2**20:.1f} MiB, after {options.seconds} s {after / 2**20:.1f} MiB: {100 * (ratio - 1):+.1f} %")
    if options.json:
        options.json.write_text(json.dumps({
            "idle": options.idle, "streams": options.streams, "pace_ms": options.pace, "turns": load["turns"], "failed": load["failed"],
            "http_turns": client.asked, "before_bytes": before, "after_bytes": after, "ratio": ratio,
            "samples": samples[::max(1, len(samples) // 200)]}, indent=1) + "\n")
    if client.fault:
        sys.exit(f"the HTTP client failed: {client.fault!r}")
    if load["failed"] or ratio > ALLOWED:
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
