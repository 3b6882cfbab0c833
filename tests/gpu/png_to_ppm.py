"""Turns an 8-bit RGB PNG into a PPM with the standard library alone: tests/gpu builds without OpenCV.

Usage: png_to_ppm.py IN.png OUT.ppm
"""
import struct
import sys
import zlib


def read_png(path):
    with open(path, "rb") as file:
        data = file.read()
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path}: not a PNG")
    position, header, packed = 8, None, b""
    while position < len(data):
        size, kind = struct.unpack(">I4s", data[position:position + 8])
        body = data[position + 8:position + 8 + size]
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            packed += body
        position += 12 + size
    width, height, depth, colour, _, _, interlace = header
    if (depth, colour, interlace) != (8, 2, 0):
        raise ValueError(f"{path}: only plain 8-bit RGB is read here")
    return width, height, unfilter(zlib.decompress(packed), width * 3, height)


def unfilter(raw, stride, height):
    """Undoes PNG's line filters for three bytes a pixel."""
    above, out = bytearray(stride), bytearray()
    for y in range(height):
        begin = y * (stride + 1)
        kind, line = raw[begin], bytearray(raw[begin + 1:begin + 1 + stride])
        for x in range(stride):
            left = line[x - 3] if x >= 3 else 0
            up, corner = above[x], above[x - 3] if x >= 3 else 0
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) // 2
            elif kind == 4:
                p = left + up - corner
                guess = min((abs(p - left), 0, left), (abs(p - up), 1, up), (abs(p - corner), 2, corner))[2]
            else:
                guess = 0
            line[x] = (line[x] + guess) & 255
        out += line
        above = line
    return bytes(out)


if __name__ == "__main__":
    w, h, pixels = read_png(sys.argv[1])
    with open(sys.argv[2], "wb") as file:
        file.write(b"P6 %d %d 255\n" % (w, h) + pixels)
