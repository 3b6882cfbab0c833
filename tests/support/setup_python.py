"""Lets Python programs of the tree run as they are typed: what the Python at hand lacks, that of deploy/setup.sh has.
Standard library only."""
import importlib.util
import os
import pathlib
import sys

CACHE = pathlib.Path(os.environ.get("LLAVA_CACHE") or pathlib.Path.home() / ".cache/llava-serving")


def need(*modules, peers=False):
    """Goes on if all are there; else starts the program anew by the Python of deploy/setup.sh, or of its --with-peers."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return
    if peers:
        python = pathlib.Path(os.environ.get("LLAVA_PEERS") or CACHE / "peers/bin/python").absolute()
    else:
        python = pathlib.Path(os.environ.get("LLAVA_VENV") or CACHE / "venv").absolute() / "bin/python"
    if not python.exists() or python == pathlib.Path(sys.executable).absolute():
        sys.exit(f"{sys.argv[0]}: no Python module {missing[0]}: run deploy/setup.sh" + peers * " --with-peers")
    os.execv(python, [str(python), *sys.orig_argv[1:]])
