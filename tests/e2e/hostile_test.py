"""Strangers who want the gateway's memory: what they send counts before anybody can ask who they are."""
import os
import pathlib
import re
import resource
import socket
import tempfile
import unittest

import grpc
from half_messages import HalfMessages, NoAnswers
from stack import FREE_PORTS, SLOWDOWN, Service, run, until

MIB = 1 << 20


def message_of_bytes(size):
    """A CreateSessionRequest that unpacks to so many bytes: one long field."""
    length = bytearray()
    rest = size
    while rest >= 128:
        length.append(rest & 127 | 128)
        rest >>= 7
    return b"\x12" + bytes(length) + bytes([rest]) + b"a" * size


class HostileTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="llava-hostile-")
        self.addCleanup(folder.cleanup)
        keys = pathlib.Path(folder.name) / "keys.yaml"
        self.key = run("llava-gateway", "keys", "add", "ann", "--keys-file", keys).stdout.strip()
        self.gateway = Service("llava-gateway", [
            *FREE_PORTS, "--http-port", "0", "--data-dir", pathlib.Path(folder.name) / "data",
            "--keys-file", keys, "--http-connections", 64,  # the others are for gRPC
            "--max-message-bytes", "4M", "--max-turn-bytes", "2M",
            "--max-image-bytes", "2M", "--request-bytes", "64M"], folder.name).wait_listening()
        self.addCleanup(self.gateway.stop)

    def peak_mib(self):
        status = pathlib.Path(f"/proc/{self.gateway.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) // 1024

    def serves(self):
        with grpc.insecure_channel(self.gateway.grpc) as channel:
            create = channel.unary_unary("/llava.v1.ChatService/CreateSession")
            with self.assertRaises(grpc.RpcError) as caught:
                create(b"", timeout=60 * SLOWDOWN)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)

    def test_a_small_message_does_not_become_a_large_one(self):
        self.serves()
        before = self.peak_mib()
        with grpc.insecure_channel(self.gateway.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
            create = channel.unary_unary("/llava.v1.ChatService/CreateSession")
            for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                with self.assertRaises(grpc.RpcError) as caught:
                    create(message_of_bytes(100 * MIB), compression=compression, timeout=120 * SLOWDOWN)
                self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED, caught.exception.details())
        self.assertLess(self.peak_mib() - before, 50 * SLOWDOWN)
        self.serves()

    def test_the_port_outlives_a_want_of_descriptors(self):
        self.serves()
        process = self.gateway.process.pid
        resource.prlimit(process, resource.RLIMIT_NOFILE, (200, 200))
        host, port = self.gateway.grpc.rsplit(":", 1)
        strangers = [socket.create_connection((host, int(port)), timeout=60 * SLOWDOWN) for _ in range(300)]
        until(lambda: len(os.listdir(f"/proc/{process}/fd")) == 200)
        for each in strangers:
            each.close()
        self.serves()

    def test_messages_that_never_end_share_a_bound(self):
        self.serves()
        before = self.peak_mib()
        floods = [HalfMessages(self.gateway.grpc, "/llava.v1.ChatService/Chat", 100, 4 * MIB) for _ in range(3)]
        for flood in floods:
            self.addCleanup(flood.close)
            flood.flood(quiet_seconds=3)
        # 1200 MiB were offered; sixteen of the largest messages may be held.
        self.assertLess(self.peak_mib() - before, 200 * SLOWDOWN, [(flood.sent // MIB, flood.refused) for flood in floods])
        self.serves()

    def whole(self, calls, size, quiet_seconds):
        flood = NoAnswers(self.gateway.grpc, "/llava.v1.RolloutService/GetRollout", calls, size, self.key)
        self.addCleanup(flood.close)
        flood.flood(quiet_seconds)
        return flood

    def test_answers_that_nobody_takes_hold_little(self):
        self.serves()
        before = self.peak_mib()
        large = self.whole(20, 4 * MIB - 100, 2)
        self.assertEqual(large.refused, 20, "more than such a call may have")
        # So few at a time that those which are being received find room. The key may hold half of --request-bytes.
        floods = [self.whole(25, MIB - 100, 0.5) for _ in range(12)]
        self.assertLess(self.peak_mib() - before, 200 * SLOWDOWN, [(flood.sent // MIB, flood.refused) for flood in floods])
        for flood in floods:  # with the patience for what is sent
            until(lambda: flood.read(0.05) and flood.refused == 25, lambda: f"{flood.refused} of 25 are over")
        until(lambda: self.held_bytes() == 0)
        self.serves()

    def held_bytes(self):
        return self.gateway.metrics()["llava_gateway_request_bytes"]

    def test_a_connection_has_so_many_calls_at_a_time(self):
        with grpc.insecure_channel(self.gateway.grpc) as channel:
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
            calls = [watch(b"") for _ in range(1024)]
            for call in calls:
                next(call)
            with self.assertRaises(grpc.RpcError) as caught:
                next(watch(b"", timeout=2))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED, "it waits at the client")
            calls[0].cancel()
            next(watch(b"", timeout=60 * SLOWDOWN))
        self.serves()


if __name__ == "__main__":
    unittest.main(verbosity=2)
