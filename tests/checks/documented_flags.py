"""Each flag that a service declares is named in some document, with its two dashes."""

import re

from commands import documents
from source_tree import files

# As server/runtime/settings.h has it.
DECLARED = re.compile(r"\bsettings\s*\.Add\w*\(\s*\"([a-z0-9-]+)\"")


def problems(root):
    text = "\n".join((root / name).read_text(encoding="utf-8") for name in documents(root))
    named = set(re.findall(r"--([a-z0-9-]+)", text))
    found = []
    for name in files(root, (".cc",)):
        if name.parts[0] != "server":
            continue
        for flag in DECLARED.findall((root / name).read_text(encoding="utf-8")):
            if flag not in named:
                found.append(f"{name}: no document names --{flag}")
    return found
