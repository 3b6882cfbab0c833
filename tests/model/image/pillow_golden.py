#!/usr/bin/env python3
"""Writes pillow_golden.json: SHA-256 of what Pillow's bicubic resize makes of made-up pictures.

Run by hand when cases are to be added (needs Pillow and NumPy):
    python tests/model/image/pillow_golden.py > tests/model/image/pillow_golden.json
The pictures come from the generator in Pixels() of image_test.cc.
"""
import hashlib
import json
import random

import numpy
from PIL import Image, __version__


def pixels(width, height, seed):
    values = numpy.empty(width * height * 3, numpy.uint8)
    state = int(seed)
    for i in range(values.size):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values[i] = state >> 24
    if seed % 3 == 0:  # hard edges: the overshoot of the filter has to be clamped
        values = numpy.where(values < 128, 0, 255).astype(numpy.uint8)
    return values.reshape(height, width, 3)


def main():
    rng = random.Random(20)
    sizes = [(1, 1, 7, 5), (5, 1, 3, 3), (1, 9, 4, 4), (64, 64, 64, 64), (64, 48, 64, 96),
             (200, 3, 10, 90), (3, 300, 336, 24), (500, 400, 1, 1), (2, 2, 224, 224)]
    while len(sizes) < 48:
        sizes.append((rng.randint(1, 260), rng.randint(1, 260), rng.randint(1, 160),
                      rng.randint(1, 160)))
    cases = []
    for seed, (width, height, out_width, out_height) in enumerate(sizes, 1):
        image = Image.fromarray(pixels(width, height, seed))
        resized = image.resize((out_width, out_height), Image.Resampling.BICUBIC)
        cases.append({"seed": seed, "from": [width, height], "to": [out_width, out_height],
                      "sha256": hashlib.sha256(resized.tobytes()).hexdigest()})
    lines = ",\n".join(json.dumps(case) for case in cases)
    print('{"pillow": "%s", "cases": [\n%s\n]}' % (__version__, lines))


if __name__ == "__main__":
    main()
