"""What the benchmarks share: options, priority, figures as JSON; our side of those about decoders, turns and medians."""
import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/support"))
from setup_python import need  # noqa: E402

BIN = pathlib.Path(os.environ.get("LLAVA_BIN_DIR", ROOT / "build/release/bin"))


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def parser(description, turns=3, threads=True):
    """With the options that all have; `threads`: --threads, too, where a number of them makes sense."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--turns", type=int, default=turns, help=f"of each row (default {turns})")
    if threads:
        options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    options.add_argument("--raise-priority", action="store_true", help="a session of its own with raised autogroup priority (Linux)")
    options.add_argument("--json", type=pathlib.Path, help="file for the figures, for instance in docs/results")
    return options


def raise_priority():
    """Goes on in a child with a session, and so an autogroup, of its own; signals reach it from here."""
    child = os.fork()
    if child:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not at once: what it has started ends with it
    try:
        pathlib.Path("/proc/self/autogroup").write_text("-15")
    except OSError as error:
        print(f"bench: the priority stays as it is: {error}", file=sys.stderr)


def parse(options, peers=()):
    """`peers`: modules that the program needs of the environment of deploy/setup.sh --with-peers."""
    found = options.parse_args()
    need(*peers, peers=True)
    if found.raise_priority:
        raise_priority()
    return found


def write(options, result):
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def llava_bench(model, dtype, **arguments):
    """llava-model bench as JSON; arguments are its flags."""
    command = [BIN / "llava-model", "bench", "--shape", model, "--dtype", dtype, "--repeats", 1, "--json"]
    for name, value in arguments.items():
        command += [f"--{name}", value]
    return json.loads(subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout)


def alternate(sides, turns):
    """{row: {side: median}} of sides {name: function that gives {row: figure}}, one after the other in each turn."""
    found = {}
    for turn in range(turns):
        for name, side in sides.items():
            for row, figure in side().items():
                found.setdefault(row, {}).setdefault(name, []).append(figure)
        print(f"# turn {turn + 1} of {turns}", flush=True)
    return {row: {name: statistics.median(figures) for name, figures in by_side.items()} for row, by_side in found.items()}


def memory_of(process):
    """Bytes of a process by name: peak, now of its own, now of files (programs and libraries, shared with others)."""
    fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines())
    names = {"peak_rss_bytes": "VmHWM", "rss_own_bytes": "RssAnon", "rss_file_bytes": "RssFile"}
    return {name: int(fields[field].split()[0]) * 1024 for name, field in names.items()}
