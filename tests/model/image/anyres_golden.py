#!/usr/bin/env python3
"""Writes anyres_golden.json: which resolution LLaVA 1.6 chooses, and SHA-256 of the tiles as Pillow makes them.

Run by hand when cases are to be added (needs Pillow and NumPy):
    python tests/model/image/anyres_golden.py > tests/model/image/anyres_golden.json
The pictures come from the generator of pillow_golden.py.
"""
import hashlib
import json
import math
import random

from PIL import Image, __version__

from pillow_golden import pixels


def choose(width, height, candidates):
    def rank(candidate):
        scale = min(candidate[0] / width, candidate[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]
    return max(candidates, key=rank)  # the first of equals


def tiles(image, candidates, size):
    canvas = choose(*image.size, candidates)
    wide, high = canvas[0] / image.width, canvas[1] / image.height
    if wide < high:
        new = canvas[0], min(math.ceil(image.height * wide), canvas[1])
    else:
        new = min(math.ceil(image.width * high), canvas[0]), canvas[1]
    fitted = Image.new("RGB", canvas)
    fitted.paste(image.resize(new), ((canvas[0] - new[0]) // 2, (canvas[1] - new[1]) // 2))
    cut = [fitted.crop((x, y, x + size, y + size)) for y in range(0, canvas[1], size) for x in range(0, canvas[0], size)]
    return canvas, [image.resize((size, size))] + cut


def main():
    size = 28
    candidates = [(size * w, size * h) for w, h in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    rng = random.Random(16)
    shapes = [(56, 56), (28, 56), (200, 10), (10, 200), (1, 1), (57, 84), (84, 28), (56, 28)]
    while len(shapes) < 24:
        shapes.append((rng.randint(5, 160), rng.randint(5, 160)))
    cases = []
    for seed, (width, height) in enumerate(shapes, 1):
        canvas, cut = tiles(Image.fromarray(pixels(width, height, seed)), candidates, size)
        digest = hashlib.sha256(b"".join(tile.tobytes() for tile in cut)).hexdigest()
        cases.append({"seed": seed, "from": [width, height], "canvas": canvas, "tiles": len(cut), "sha256": digest})
    lines = ",\n".join(json.dumps(case) for case in cases)
    print(f'{{"pillow": "{__version__}", "size": {size}, "candidates": {json.dumps(candidates)}, "cases": [\n{lines}\n]}}')


if __name__ == "__main__":
    main()
