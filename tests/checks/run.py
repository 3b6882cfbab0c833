"""Runs one check of the tree, which is the name of a file beside this one that has `problems`. Usage: run.py CHECK [ROOT].
Prints what is wrong, a line each; exit status 1 if anything is."""

import importlib
import pathlib
import sys


def checks():
    return sorted(path.stem for path in pathlib.Path(__file__).parent.glob("*.py")
                  if "\ndef problems(root):" in path.read_text(encoding="utf-8"))


def main(arguments):
    if not arguments or arguments[0] not in checks():
        print(__doc__, f"Checks: {', '.join(checks())}.", sep="\n", file=sys.stderr)
        return 2
    root = pathlib.Path(arguments[1] if len(arguments) > 1 else ".").resolve()
    found = importlib.import_module(arguments[0]).problems(root)
    print("\n".join(found) or f"{arguments[0]}: ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
