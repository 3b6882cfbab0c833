"""Which files of the tree are ours: one walk for all checks, with or without git."""

import pathlib

ROOMS = ("proto", "model", "server", "client", "tests", "deploy", ".ci")
DATA = ("tests/fixtures/", "deploy/models/", "deploy/scenes/")
CPP = (".h", ".cc", ".cu", ".cuh")


def files(root, suffixes=(), names=()):
    """Our files with one of these suffixes or names, as paths relative to `root`, in order."""
    found = []
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            name = path.relative_to(root)
            if not path.is_file() or name.as_posix().startswith(DATA):
                continue
            if "__pycache__" in name.parts:
                continue
            if path.suffix in suffixes or path.name in names:
                found.append(name)
    for path in sorted(root.iterdir()):
        if path.is_file() and (path.suffix in suffixes or path.name in names):
            found.append(pathlib.Path(path.name))
    return found
