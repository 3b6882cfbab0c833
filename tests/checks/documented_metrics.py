"""Each series of the services and the trainer has a row in docs/metrics.md, and each row is a series."""

import re

from source_tree import CPP, files

DOCUMENT = "docs/metrics.md"
# A name that ends in "_" is the beginning of several.
NAMED = re.compile(r"\"(llava_(?:gateway|llm|vision|model|train|build)_[a-z0-9_]+)\"")
ROW = re.compile(r"^\| `(llava_[a-z0-9_]+)[`{]", re.M)


def covers(named, row):
    return row.startswith(named) if named.endswith("_") else row == named


def problems(root):
    rows = ROW.findall((root / DOCUMENT).read_text(encoding="utf-8"))
    found, names = [], set()
    for name in files(root, CPP):
        if name.parts[0] != "server" and name.as_posix() != "model/train/metrics_endpoint.cc":
            continue
        for series in sorted(set(NAMED.findall((root / name).read_text(encoding="utf-8")))):
            names.add(series)
            if not any(covers(series, row) for row in rows):
                found.append(f"{name}: {DOCUMENT} has no row for {series}")
    for row in rows:
        if not any(covers(series, row) for series in names):
            found.append(f"{DOCUMENT}: no source has a series {row}")
    return found
