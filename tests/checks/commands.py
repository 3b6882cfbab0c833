"""A script or Python program that a document names is there, and can be run as the document has it."""

import os
import re

from source_tree import DATA, files

NAMED = re.compile(r"(?<![\w/.-])(?:tests|deploy|\.ci)/[\w./-]+\.(?:py|sh)\b")


def documents(root):
    """README.md of the tree and of each room, and docs."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    found += [root / name for name in files(root, (".md",))]
    return sorted({path.relative_to(root) for path in found if not str(path.relative_to(root)).startswith(DATA)})


def is_program(text):
    """Not a part of others, nor unit tests, which ctest starts."""
    return '__name__ == "__main__"' in text and "unittest.main" not in text


def problems(root):
    found = []
    for name in files(root, (".py",)):
        if (root / name).read_text(encoding="utf-8").startswith("#!") and not os.access(root / name, os.X_OK):
            found.append(f"{name}: is not executable (chmod +x)")
    for document in documents(root):
        text = (root / document).read_text(encoding="utf-8")
        for name in sorted(set(NAMED.findall(text))):
            path = root / name
            if not path.is_file():
                found.append(f"{document}: there is no {name}")
            elif name.endswith(".py"):
                program = path.read_text(encoding="utf-8")
                if is_program(program) and not (program.startswith("#!") and os.access(path, os.X_OK)):
                    found.append(f"{document}: {name} cannot be run: it lacks #! or chmod +x")
    return found
