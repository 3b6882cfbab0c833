"""The wire is tidy (buf lint) and understands all that was ever published (buf breaking).

The published form is proto_baseline.binpb. After a change that only adds, renew it in the same commit, else what was
added could be taken away again and nobody would hear of it:

    cd proto && $LLAVA_VENV/bin/buf build --exclude-source-info \\
        -o ../tests/checks/proto_baseline.binpb
"""

import pathlib
import subprocess
import sys
import tempfile

BUF = pathlib.Path(sys.executable).parent / "buf"
BASELINE = pathlib.Path(__file__).parent / "proto_baseline.binpb"


def run_buf(root, *command):
    done = subprocess.run([str(BUF), *command], cwd=root / "proto", text=True, capture_output=True)
    if done.returncode == 0:
        return []
    lines = (done.stdout + done.stderr).strip().splitlines()
    return [f"buf {command[0]}: {line}" for line in lines or ["failed"]]


def problems(root):
    found = run_buf(root, "lint") + run_buf(root, "breaking", "--against", str(BASELINE))
    if found:
        return found
    with tempfile.TemporaryDirectory() as folder:
        image = pathlib.Path(folder) / "image.binpb"
        found = run_buf(root, "build", "--exclude-source-info", "-o", str(image))
        if not found and image.read_bytes() != BASELINE.read_bytes():
            found = [f"{BASELINE.name} is not what is in proto: renew it, as the head of proto_wire.py says"]
    return found
