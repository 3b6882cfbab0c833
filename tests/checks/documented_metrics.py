"""Each series of the services and the trainer has a row in docs/metrics.md, and each row is a series with labels that
its source names."""

import re

from source_tree import CPP, files

DOCUMENT = "docs/metrics.md"
# A name that ends in "_" is the beginning of several.
NAMED = re.compile(r"\"(llava_(?:(?:gateway|llm|vision|model|train|build|process|tls|http|grpc)_[a-z0-9_]+|ready))\"")
ROW = re.compile(r"^\| `(llava_[a-z0-9_]+)(?:\{([a-z0-9_,]+)\})?`", re.M)
LABEL = re.compile(r"\"([a-z0-9_]+)\"|\b([a-z0-9_]+)=\\\"")  # as an argument, or in the text of a page


def covers(named, row):
    return row.startswith(named) if named.endswith("_") else row == named


def problems(root):
    labels = {row: [each for each in text.split(",") if each]
              for row, text in ROW.findall((root / DOCUMENT).read_text(encoding="utf-8"))}
    rows = list(labels)
    found, names, words = [], set(), {}
    for name in files(root, CPP):
        if name.parts[0] != "server" and name.as_posix() != "model/train/metrics_endpoint.cc":
            continue
        text = (root / name).read_text(encoding="utf-8")
        for series in sorted(set(NAMED.findall(text))):
            names.add(series)
            words.setdefault(series, set()).update(word for pair in LABEL.findall(text) for word in pair)
            if not any(covers(series, row) for row in rows):
                found.append(f"{name}: {DOCUMENT} has no row for {series}")
    for row in rows:
        if not any(covers(series, row) for series in names):
            found.append(f"{DOCUMENT}: no source has a series {row}")
            continue
        known = set().union(*(each for series, each in words.items() if covers(series, row)))
        found += [f"{DOCUMENT}: no source of {row} has a label {label}" for label in labels[row] if label not in known]
    return found
