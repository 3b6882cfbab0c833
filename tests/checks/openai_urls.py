"""A port of ours that a URL of the OpenAI API names is the one on which the gateway serves it."""

import re

from commands import documents
from source_tree import CPP, files

HTTP_PORT = re.compile(r"\bhttp_port = (\d+);")
OTHER_PORT = re.compile(r"\.(?:port|metrics_port) = (\d+);")
URL = re.compile(r"\b(?:localhost|127\.0\.0\.1):(\d+)/v1\b")


def problems(root):
    http, others = set(), set()
    for name in files(root, CPP):
        if name.parts[0] == "server":
            text = (root / name).read_text(encoding="utf-8")
            http.update(HTTP_PORT.findall(text))
            others.update(OTHER_PORT.findall(text))
    if len(http) != 1:
        return [f"server: one default of http_port is looked for, there are {len(http)}"]
    found = []
    for name in sorted({*documents(root), *files(root, (*CPP, ".sh", ".html", ".yaml", ".proto"))}):
        lines = (root / name).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            for port in URL.findall(line):
                if port in others:
                    found.append(f"{name}:{number}: port {port} does not speak the OpenAI API, {min(http)} does")
    return found
