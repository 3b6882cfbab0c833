"""Clients that begin large gRPC messages and end none of them, or take no answer: HTTP/2 by hand, as no library would do it."""
import select
import socket
import struct
import time

DATA, HEADERS, RESET, SETTINGS, PING, WINDOW = 0, 1, 3, 4, 6, 8
INITIAL_WINDOW = 4  # a setting
ACK, END_STREAM, END_HEADERS = 1, 1, 4
FRAME_BYTES = 16384


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def field(name, value):
    """Of a header, in HPACK: literal, not indexed, not packed."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class HalfMessages:
    """So many calls of `method` on one connection, each with all but the last byte of a message of `size` bytes, as far as
    the server's windows allow. `sent` counts the bytes, `refused` the calls that the server ended."""
    settings, more_fields, last_flags = b"", (), 0

    def __init__(self, address, method, calls, size):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.input, self.sent, self.refused = b"", 0, 0
        self.window, self.initial, self.windows = 65535, 65535, {}
        self.left = {}
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, self.settings))
        head = b"".join(field(*each) for each in (
            (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "x"),
            ("content-type", "application/grpc"), ("te", "trailers"), *self.more_fields))
        for stream in range(1, 2 * calls, 2):
            self.windows[stream], self.left[stream] = self.initial, self.part_of(size)
            self.socket.sendall(frame(HEADERS, END_HEADERS, stream, head))
            self.send(stream, b"\0" + struct.pack(">I", size))

    def part_of(self, size):
        return size - 1

    def bytes_of(self, stream, size):
        """The next ones of the message."""
        return b"x" * size

    def send(self, stream, data, flags=0):
        self.socket.sendall(frame(DATA, flags, stream, data))
        self.window -= len(data)
        self.windows[stream] -= len(data)
        self.sent += len(data)

    def take(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            for place in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[place:place + 6])
                if name == INITIAL_WINDOW:
                    self.windows = {each: window + value - self.initial for each, window in self.windows.items()}
                    self.initial = value
            self.socket.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == WINDOW and stream == 0:
            self.window += struct.unpack(">I", payload)[0]
        elif kind == WINDOW and stream in self.windows:
            self.windows[stream] += struct.unpack(">I", payload)[0]
        elif (kind == RESET or kind == HEADERS and flags & END_STREAM) and self.left.pop(stream, None) is not None:
            self.refused += 1

    def read(self, seconds):
        """Takes what the server says. False: it has closed the connection."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return True
        data = self.socket.recv(1 << 16)
        self.input += data
        while len(self.input) >= 9 and len(self.input) >= 9 + int.from_bytes(self.input[:3], "big"):
            size = int.from_bytes(self.input[:3], "big")
            head, payload, self.input = self.input[:9], self.input[9:9 + size], self.input[9 + size:]
            self.take(head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7fffffff, payload)
        return data != b""

    def flood(self, quiet_seconds):
        """Sends what the windows allow, until they have allowed nothing for that long or the connection has ended."""
        last = time.monotonic()
        try:
            while time.monotonic() - last < quiet_seconds and self.read(0.05):
                for stream in list(self.left):
                    size = min(FRAME_BYTES, self.window, self.windows[stream], self.left.get(stream, 0))
                    if size > 0:
                        self.left[stream] -= size
                        self.send(stream, self.bytes_of(stream, size), 0 if self.left[stream] else self.last_flags)
                        last = time.monotonic()
        except OSError:
            pass  # closed by the server: it has had enough

    def close(self):
        self.socket.close()


class NoAnswers(HalfMessages):
    """Calls with a key and a whole message, which has one field that nobody knows; no byte of an answer is taken."""
    settings, last_flags = struct.pack(">HI", INITIAL_WINDOW, 0), END_STREAM

    def __init__(self, address, method, calls, size, key):
        self.more_fields = (("authorization", f"Bearer {key}"),)
        length = size - 5
        self.message = b"\x7a" + bytes(0x80 | length >> shift & 0x7f for shift in (0, 7, 14)) + bytes([length >> 21]) + b"x" * length
        super().__init__(address, method, calls, size)

    def part_of(self, size):
        return size

    def bytes_of(self, stream, size):
        end = len(self.message) - self.left[stream]
        return self.message[end - size:end]
