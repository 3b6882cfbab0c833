"""No source file is longer than people read in one sitting."""

from source_tree import CPP, files

LIMIT = 500
SUFFIXES = CPP + (".py", ".sh", ".proto", ".cmake", ".yaml", ".yml")


def problems(root):
    found = []
    for name in files(root, SUFFIXES, names=("CMakeLists.txt", "Dockerfile", "run")):
        lines = (root / name).read_text(encoding="utf-8").count("\n")
        if lines > LIMIT:
            found.append(f"{name}: {lines} lines, at most {LIMIT}: split it by purpose")
    return found
