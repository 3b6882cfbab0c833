"""All C++ files look as .clang-format says (mend with: clang-format -i FILE)."""

import subprocess

from source_tree import CPP, files


def problems(root):
    sources = [str(name) for name in files(root, CPP)]
    if not sources:
        return []
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", *sources], cwd=root, text=True,
                          capture_output=True)
    if done.returncode == 0:
        return []
    wrong = sorted({line.split(":")[0] for line in done.stderr.splitlines() if "error:" in line})
    return [f"{name}: run clang-format -i {name}" for name in wrong] or [done.stderr.strip()]
