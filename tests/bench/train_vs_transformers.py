#!/usr/bin/env python3
"""Training throughput on this CPU: llava-train against Hugging Face transformers + PyTorch.

    deploy/setup.sh --with-peers
    tests/bench/train_vs_transformers.py --raise-priority --json FILE

Both sides read one llava-hf folder and one LLaVA JSON, take the same batches in the same order with the
same threads and precision, and do stage 2: projector and language model learn, features of the frozen
tower are kept, no gradient checkpointing, AdamW, clipping. They run side by side and step by turns, the
one that is not at it stands still; turns alternate who is first. A pair of turns is the same steps on both
sides, real (not padding) tokens a second are compared. The losses and gradient norms of the first steps
must agree, or it is an error: then it was not the same work.

Rows: the shipped default model on dialogues about scenes, a 162M-parameter shape on longer conversations
(training_world.py says which), each in bf16 (autocast there, masters here) and fp32. Their batches are
shuffled, as the default's recipe has it, or grouped by length, as LLaVA's script does, which spares the
other side its padding. Packing, which the other side lacks, is a row of its own, in dialogues a second.

Memory: the peak of llava-train in these runs against what its --dry-run said before.

It wants a quiet machine. --raise-priority gives it a session of its own with raised autogroup priority,
where the kernel has that (root)."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

import bench
from training_sides import Failed, Ours, Peer
from training_world import ROOT, World

RATE = 1e-4
COMPARED_STEPS = 3
# Of loss and gradient norm, relative to the larger one or to FLOOR: what the default model knows by
# heart has a loss near 0.
TOLERANCES = {"fp32": (1e-4, 1e-3), "bf16": (1e-2, 1e-1)}
FLOOR = 0.1


@dataclasses.dataclass(frozen=True)
class Row:
    shape: str  # default, 160m
    order: str  # shuffled, grouped, packed
    precision: str
    threads: int

    @property
    def name(self):
        return f"{self.shape}/{self.order}/{self.precision}/{self.threads}"


@dataclasses.dataclass(frozen=True)
class Course:
    """Sizes of a row."""
    batch: int
    batches: int  # different ones
    ours: int     # steps of a turn
    peer: int
    warmup: int   # of the first turn, which is not timed
    poll: float   # seconds between looks at the log


COURSES = {"default": Course(batch=40, batches=4, ours=8, peer=8, warmup=4, poll=0.001),
           "160m": Course(batch=4, batches=2, ours=2, peer=2, warmup=2, poll=0.005),
           "160m in fp32": Course(batch=4, batches=2, ours=1, peer=1, warmup=2, poll=0.005),
           # Ours takes 40 scenes a step, with all their dialogues: the other side as many dialogues in
           # steps of 40.
           "packed": Course(batch=40, batches=1, ours=2, peer=24, warmup=2, poll=0.002)}
SLOW = Row("160m", "grouped", "fp32", 1)  # minutes


def all_rows():
    rows = [Row("default", order, "bf16", threads) for order in ("shuffled", "grouped") for threads in (2, 1)]
    rows += [Row("default", "grouped", "fp32", threads) for threads in (2, 1)]
    rows += [Row("160m", "grouped", "bf16", threads) for threads in (2, 1)]
    rows += [Row("default", "packed", "bf16", threads) for threads in (2, 1)]
    return rows + [Row("160m", "grouped", "fp32", 2), SLOW]


def course_of(row):
    if row.order == "packed":
        return COURSES["packed"]
    return COURSES["160m in fp32" if (row.shape, row.precision) == ("160m", "fp32") else row.shape]


def settings_of(row, course, model, data, images):
    settings = {
        "model": model, "data": data, "images": images, "chat_template": "emoji", "image_order": "front",
        "order": "as_data", "batch_size": course.batch, "steps": 100_000, "learning_rate": RATE,
        "warmup_ratio": 0, "final_rate": 1, "evaluate_every": 0, "save_every": 0,
        "feature_cache.memory_mib": 1024, "precision": row.precision, "threads": row.threads,
        "packing": "picture" if row.order == "packed" else "none"}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def difference(a, b):
    return abs(a - b) / max(abs(a), abs(b), FLOOR)


def compare(row, ours, peer):
    """Largest relative differences of the first steps; throws where they are no longer noise."""
    worst = [0.0, 0.0]
    for mine, theirs in list(zip(ours, peer))[:COMPARED_STEPS]:
        for key in ("samples", "tokens", "trained_tokens"):
            if mine[key] != theirs[key]:
                raise Failed(f"{row.name}: step {mine['step']} has {mine[key]} {key} here, "
                             f"{theirs[key]} there")
        for i, key in enumerate(("loss", "gradient_norm")):
            worst[i] = max(worst[i], difference(mine[key], theirs[key]))
            if worst[i] > TOLERANCES[row.precision][i]:
                raise Failed(f"{row.name}: step {mine['step']} has {key} {mine[key]:.6g} here, "
                             f"{theirs[key]:.6g} there")
    return {"loss": worst[0], "gradient_norm": worst[1]}


def total(steps, key):
    return sum(step[key] for step in steps)


def measure(row, world, arguments, folder):
    course = course_of(row)
    model, _ = world.model(row.shape)
    images = world.scenes() / "images"
    unit = "samples" if row.order == "packed" else "tokens"
    if row.order == "packed":
        data, peer_data = world.packed()
    else:
        make = world.conversations if row.shape == "160m" else world.dialogues
        data = peer_data = make(course.batch, course.batches, row.order == "grouped")
    settings = settings_of(row, course, model, data, images)
    train = arguments.bin / "llava-train"
    result = {"row": row.name, **dataclasses.asdict(row), "batch": course.batch, "unit": unit}

    estimate = None
    if arguments.memory and row.threads == 2 and row.order == "grouped":
        done = subprocess.run([train, "finetune", *settings, "--dry-run"], text=True, check=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        estimate = json.loads(done.stdout)

    job = {"model": str(model), "data": str(peer_data), "images": str(images), "batch": course.batch,
           "threads": row.threads, "precision": row.precision, "learning_rate": RATE}
    with contextlib.ExitStack() as stack:
        peer = Peer(arguments.python, job, folder / "job.json", folder / "peer.log")
        stack.callback(peer.close)
        ours = Ours([train, "finetune", *settings], folder / "run", folder / "ours.log", course.poll)
        stack.callback(ours.close)
        first = (ours.turn(course.warmup), peer.turn(course.warmup))
        if row.order != "packed":
            result["differences"] = compare(row, *first)
        pairs, mine, theirs = [], [], []
        for number in range(arguments.pairs):
            turns = {}
            for side in (("ours", "peer") if number % 2 == 0 else ("peer", "ours")):
                turns[side] = ours.turn(course.ours) if side == "ours" else peer.turn(course.peer)
            rates = {side: total(steps, unit) / total(steps, "seconds") for side, steps in turns.items()}
            pairs.append({**rates, "ratio": rates["ours"] / rates["peer"]})
            mine += turns["ours"]
            theirs += turns["peer"]
        result.update(
            pairs=pairs, peak_bytes=ours.peak_bytes(), peer_peak_bytes=peer.peak_bytes(),
            versions=peer.facts, padding=1 - total(theirs, "tokens") / total(theirs, "padded"),
            step_seconds=statistics.median(step["seconds"] for step in mine),
            peer_step_seconds=statistics.median(step["seconds"] for step in theirs),
            tokens_per_step=total(mine, "tokens") / len(mine))
        calm = [step for step in mine if step["whole"]]
        result["waiting"] = total(calm, "waited_seconds") / total(calm, "seconds") if calm else None
    ratios = [pair["ratio"] for pair in pairs]
    result["ratio"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    if estimate:
        result["estimate_bytes"] = estimate["estimated_memory_bytes"]
        result["estimate_off"] = result["estimate_bytes"] / result["peak_bytes"] - 1
    return result


def machine():
    cpu = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return {"cpu": cpu.get("model name", "unknown"), "cores": os.cpu_count(),
            "flags": [flag for flag in known if flag in cpu.get("flags", "").split()],
            "load_before": os.getloadavg()[0], "commit": commit.stdout.strip() or "unknown",
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def table(results):
    heads = ("model/batches/precision/threads", "unit", "ours", "theirs", "ratio (range)", "padding",
             "waiting", "loss off", "peak", "theirs", "estimate")
    lines = [heads]
    for result in results:
        ratio = result["ratio"]
        rates = [statistics.median(pair[side] for pair in result["pairs"]) for side in ("ours", "peer")]
        off = result.get("differences", {}).get("loss")
        lines.append((
            result["row"], f"{result['unit']}/s", *(f"{rate:,.0f}" for rate in rates),
            f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})", f"{result['padding']:.1%}",
            "-" if result["waiting"] is None else f"{result['waiting']:.1%}",
            "-" if off is None else f"{off:.0e}", f"{result['peak_bytes'] / 2**20:,.0f} MiB",
            f"{result['peer_peak_bytes'] / 2**20:,.0f} MiB",
            f"{result['estimate_off']:+.1%}" if "estimate_off" in result else "-"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in lines)


def arguments_of():
    cache = pathlib.Path(os.environ.get("LLAVA_CACHE", pathlib.Path.home() / ".cache/llava-serving"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
    parser.add_argument("--only", default="", help="rows whose name holds all of these words: default,bf16/2")
    parser.add_argument("--all", action="store_true", help=f"with {SLOW.name}, which takes minutes")
    parser.add_argument("--pairs", type=int, default=5, help="of turns a row (default 5)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="without the dry runs")
    parser.add_argument("--bin", type=pathlib.Path, default=bench.BIN,
                        help="folder of llava-train and llava-datagen (default: $LLAVA_BIN_DIR, build/release/bin)")
    parser.add_argument("--python", type=pathlib.Path, default=cache / "peers/bin/python",
                        help="interpreter with what tests/bench/requirements.txt lists")
    parser.add_argument("--world", type=pathlib.Path, help="folder that keeps models and data for another time")
    parser.add_argument("--raise-priority", action="store_true",
                        help="a session of its own with raised autogroup priority")
    return parser.parse_args()


def main():
    arguments = arguments_of()
    for file, fix in ((arguments.python, "deploy/setup.sh --with-peers"),
                      (arguments.bin / "llava-train", "ninja -C build/release llava-train"),
                      (arguments.bin / "llava-datagen", "ninja -C build/release llava-datagen")):
        if not shutil.which(file):
            sys.exit(f"bench: {file} is not there: {fix}")
    if arguments.raise_priority:
        bench.raise_priority()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # nobody is left behind
    words = [word for word in arguments.only.split(",") if word]
    rows = [row for row in all_rows() if all(word in row.name for word in words)]
    if not arguments.all and len(rows) > 1:
        rows = [row for row in rows if row != SLOW]
    if not rows:
        sys.exit(f"bench: no row has all of {words}; rows: {', '.join(row.name for row in all_rows())}")
    report = {"machine": machine(), "rows": []}
    failed = False
    with tempfile.TemporaryDirectory(prefix="llava-bench-") as temporary:
        temporary = pathlib.Path(temporary)
        world = World((arguments.world or temporary / "world").resolve(), arguments.bin.resolve(),
                      arguments.python)
        arguments.bin = arguments.bin.resolve()
        report["parameters"] = {shape: world.model(shape)[1] for shape in {row.shape for row in rows}}
        for number, row in enumerate(rows):
            print(f"bench: {row.name} ({number + 1} of {len(rows)})", file=sys.stderr)
            folder = temporary / f"row-{number}"
            folder.mkdir()
            try:
                report["rows"].append(measure(row, world, arguments, folder))
            except Failed as error:
                failed = True
                print(f"bench: {error}", file=sys.stderr)
            shutil.rmtree(folder)
            bench.write(arguments, report)
    print(f"{report['machine']['cpu']}, {report['machine']['cores']} cores, "
          f"{' '.join(report['machine']['flags'])}; load before {report['machine']['load_before']:.1f}; "
          f"commit {report['machine']['commit']}")
    print(table(report["rows"]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
