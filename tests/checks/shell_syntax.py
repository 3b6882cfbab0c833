"""Every shell script parses, can be run, and stops at errors."""

import os
import re
import subprocess

from source_tree import files


def problems(root):
    found = []
    for name in files(root, (".sh",), names=("run",)):
        done = subprocess.run(["bash", "-n", str(name)], cwd=root, text=True, capture_output=True)
        if done.returncode != 0:
            found.append(f"{name}: {done.stderr.strip()}")
        text = (root / name).read_text(encoding="utf-8")
        if text.startswith("#!"):
            if not os.access(root / name, os.X_OK):
                found.append(f"{name}: is not executable (chmod +x)")
            if not re.search(r"^(set -[a-z]*e|exec )", text, re.M):
                found.append(f"{name}: does not stop at errors (set -e)")
    return found
