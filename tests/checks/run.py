"""Runs one check of the tree. Usage: run.py layers|file_sizes|code_format|shell_syntax|proto_wire|
commands|documented_flags|openai_urls|exit_codes|
documented_metrics [ROOT]. Prints what is wrong, a line each; exit status 1 if anything is."""

import importlib
import pathlib
import sys

CHECKS = ("layers", "file_sizes", "code_format", "shell_syntax", "proto_wire", "commands", "documented_flags",
          "openai_urls", "exit_codes", "documented_metrics")


def main(arguments):
    if not arguments or arguments[0] not in CHECKS:
        print(__doc__, file=sys.stderr)
        return 2
    root = pathlib.Path(arguments[1] if len(arguments) > 1 else ".").resolve()
    found = importlib.import_module(arguments[0]).problems(root)
    print("\n".join(found) or f"{arguments[0]}: ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
