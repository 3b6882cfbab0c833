#!/usr/bin/env python3
"""Writes png_suite/golden.json: size and SHA-256 of the RGB pixels that Pillow reads from each file of png_suite/valid.

Run by hand when files are to be added (needs Pillow):
    python tests/model/image/png_suite_golden.py > tests/model/image/png_suite/golden.json
"""
import hashlib
import json
import pathlib

from PIL import Image, __version__

FOLDER = pathlib.Path(__file__).parent / "png_suite" / "valid"


def main():
    lines = []
    for path in sorted(FOLDER.glob("*.png")):
        with Image.open(path) as image:
            pixels = image.convert("RGB")
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        lines.append(json.dumps({"file": path.name, "size": pixels.size, "sha256": digest}))
    print('{"pillow": "%s", "files": [\n%s\n]}' % (__version__, ",\n".join(lines)))


if __name__ == "__main__":
    main()
