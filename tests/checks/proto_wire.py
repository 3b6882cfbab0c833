"""The wire is tidy (buf lint) and understands all that was ever published (buf breaking).

The published form is proto_baseline.binpb. After a change that only adds, renew it with

    cd proto && $LLAVA_VENV/bin/buf build --exclude-source-info \\
        -o ../tests/checks/proto_baseline.binpb
"""

import pathlib
import subprocess
import sys

BUF = pathlib.Path(sys.executable).parent / "buf"
BASELINE = pathlib.Path(__file__).parent / "proto_baseline.binpb"


def problems(root):
    found = []
    for command in (["lint"], ["breaking", "--against", str(BASELINE)]):
        done = subprocess.run([str(BUF), *command], cwd=root / "proto", text=True,
                              capture_output=True)
        lines = (done.stdout + done.stderr).strip().splitlines()
        if done.returncode != 0:
            found += [f"buf {command[0]}: {line}" for line in lines or ["failed"]]
    return found
