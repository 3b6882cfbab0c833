"""Gathers what the phases of run.sh have left into one JSON object on standard output.

Usage: report.py BUILD DEVICE. In BUILD/results: NAME.status ("passed", "failed", ... of each phase),
NAME.tests.json (GoogleTest's), NAME.lines (JSON objects, a line each), NAME.json (one), seconds."""

import json
import os
import pathlib
import subprocess
import sys


def read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def merged_lines(path):
    found = {}
    for line in path.read_text().splitlines():
        try:
            found.update(json.loads(line))
        except ValueError:  # cut off by a time limit
            found["unreadable"] = line[:200]
    return found


def tests_of(path):
    cases = [(f"{suite['name']}.{test['name']}", test)
             for suite in read(path).get("testsuites", []) for test in suite["testsuite"]]
    return {"tests": len(cases),
            "failed": [name for name, test in cases if test.get("failures")],
            "skipped": [name for name, test in cases if test.get("result") == "SKIPPED"]}


def gpu_name():
    try:
        return subprocess.run(["nvidia-smi", "-i", os.environ.get("LLAVA_GPU_NUMBER", "0"), "--query-gpu=name,driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main(build, device):
    results = pathlib.Path(build) / "results"
    found = {"device": device, "gpu": gpu_name(), "seconds": {}}
    for path in sorted(results.glob("*.seconds")):
        found["seconds"][path.stem] = int(path.read_text())
    for path in sorted(results.glob("*.status")):
        name = path.stem
        phase = found[name] = {"result": path.read_text().strip()}
        if (results / f"{name}.tests.json").exists():
            phase.update(tests_of(results / f"{name}.tests.json"))
        if (results / f"{name}.lines").exists():
            phase.update(merged_lines(results / f"{name}.lines"))
        phase.update(read(results / f"{name}.json"))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
