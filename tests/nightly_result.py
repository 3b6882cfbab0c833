"""Enters what a part of nightly.sh gave into its result file; the other parts stay as they are.

Usage: nightly_result.py RESULT.json PART passed|failed SECONDS FIGURES.json (need not be there)"""
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys


def command(*words):
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine():
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    found = {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / 2**20, 1), "kernel": platform.release()}
    gpu = command("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return {**found, "gpu": gpu} if gpu else found


def main(result, part, outcome, seconds, figures):
    result, figures = pathlib.Path(result), pathlib.Path(figures)
    parts = json.loads(result.read_text()) if result.exists() else {}
    changed = command("git", "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{result}")
    parts[part] = {"result": outcome, "commit": command("git", "rev-parse", "--short=12", "HEAD") + ("+" if changed else ""),
                   "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
                   "seconds": int(seconds), "machine": machine()}
    if figures.exists():
        parts[part]["figures"] = json.loads(figures.read_text())
    result.write_text(json.dumps(parts, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
