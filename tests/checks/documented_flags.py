"""Each flag that a service declares is named in some document, with its two dashes; each that the files of deploy/ set
by its environment twin is declared by that service."""

import re

from commands import documents
from source_tree import files

# As server/runtime/settings.h has it.
DECLARED = re.compile(r"\bsettings\s*\.Add\w*\(\s*\"([a-z0-9-]+)\"")
TWIN = re.compile(r"\bLLAVA_(GATEWAY|VISION|LLM)_([A-Z0-9_]+)\b")
OWN = ("gateway", "vision", "llm")  # rooms of server/ whose flags are one service's


def undeclared(root, declared):
    """`declared`: flags by room of server/."""
    common = {"config"}.union(*(flags for room, flags in declared.items() if room not in OWN))
    for name in files(root, (".yaml",), ("Dockerfile",)):
        if name.parts[0] not in ("deploy", "Dockerfile"):
            continue
        for number, line in enumerate((root / name).read_text(encoding="utf-8").splitlines(), 1):
            for service, twin in TWIN.findall(line.split("#")[0]):
                if twin.lower().replace("_", "-") not in common | declared.get(service.lower(), set()):
                    yield f"{name}:{number}: llava-{service.lower()} has no flag for LLAVA_{service}_{twin}"


def problems(root):
    text = "\n".join((root / name).read_text(encoding="utf-8") for name in documents(root))
    named = set(re.findall(r"--([a-z0-9-]+)", text))
    found = []
    declared = {}
    for name in files(root, (".cc",)):
        if name.parts[0] != "server":
            continue
        for flag in DECLARED.findall((root / name).read_text(encoding="utf-8")):
            declared.setdefault(name.parts[1], set()).add(flag)
            if flag not in named:
                found.append(f"{name}: no document names --{flag}")
    return found + list(undeclared(root, declared))
