"""Every flag of gateway and vision service changes what the service does."""
import hashlib
import select
import signal
import socket
import threading
import time
import unittest
import urllib.request

import grpc
from certificates import Certificates
from flags_case import FlagsCase, ModelFlagsCase
from picture_url_checks import PictureUrlChecks
from rollout_flags import RolloutFlags
from stack import FREE_PORTS, ROOT, SCENES, SLOWDOWN, TOWER_MODEL, Answer, Client, Service, Stack, answer_held, until

import ports  # a neighbour that service.py finds

LION = {"data": (SCENES / "lion.png").read_bytes()}
PATIENCE = 240 * SLOWDOWN


class GatewayFlags(PictureUrlChecks, RolloutFlags, FlagsCase):
    program = "llava-gateway"

    @classmethod
    def setUpClass(cls):
        cls.stack = Stack()
        cls.stack.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.stack.__exit__()
        cls.end_rollouts()

    def base(self):
        return ["--vision", self.stack.vision.grpc, "--llm", self.stack.llm.grpc, "--data-dir", self.folder / "data",
                "--http-port", "0"]

    def chat(self, *arguments):
        service = self.start(*arguments)
        client = Client(service.grpc, "llava.v1.ChatService")
        self.addCleanup(client.close)
        return client, self.session(client), service

    def session(self, client):
        return client.CreateSession(client.new("CreateSessionRequest")).session.id

    def answer_held(self, client, **fields):
        """Of the gateway of `client`; see stack.py."""
        return answer_held(self.stack.llm, client, lambda: self.session(client),
                           sampling={"max_new_tokens": 1900, "ignore_eos": True}, **fields)

    def fails(self, code, hint, client, **fields):
        begin = time.monotonic()
        with self.assertRaises(grpc.RpcError) as caught:
            Answer(client.Chat(client.new("ChatRequest", **fields), timeout=PATIENCE))
        self.assertLess(time.monotonic() - begin, PATIENCE, "it never ends by itself")
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        self.assertIn(hint, caught.exception.details())

    def refuses(self, arguments, hint, **fields):
        """Refused under these arguments, answered by default."""
        client, session, _ = self.chat(*arguments)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, hint, client, session_id=session, text="What is this?", **fields)
        client, session, _ = self.chat("--data-dir", self.folder / "other")
        Answer(client.Chat(client.new("ChatRequest", session_id=session, text="What is this?", **fields)))

    def check_max_message_bytes(self):
        client, session, _ = self.chat("--max-message-bytes", "4K")
        self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger", client, session_id=session, text="x" * 5000)

    def check_drain_timeout(self):
        client, _, service = self.chat("--drain-timeout", "300ms")
        with self.answer_held(client) as (_, stream):
            start = time.monotonic()
            self.assertEqual(service.stop(), 0)
        self.assertLess(time.monotonic() - start, 30, "what it would wait by default")
        del stream  # read by nobody, but there

    def check_vision(self):
        service = self.start("--vision", f"127.0.0.1:{ports.hold()}", ready=False)
        until(lambda: "vision" in service.get("/readyz")[1])  # it was asked
        self.assertEqual(service.get("/readyz")[0], 503)

    def check_llm(self):
        service = self.start("--llm", f"127.0.0.1:{ports.hold()}", ready=False)
        until(lambda: "llm" in service.get("/readyz")[1])  # it was asked
        self.assertEqual(service.get("/readyz")[0], 503)

    def check_default_model(self):
        client, session, _ = self.chat("--default-model", "emoji")
        self.assertEqual(client.ListModels(client.new("ChatServiceListModelsRequest")).default_model, "emoji")
        service = self.start("--default-model", "other", "--data-dir", self.folder / "other", ready=False)
        until(lambda: "other" in service.get("/readyz")[1])

    def keys(self, **fields):
        """A keys file with one key, "secret"; more fields in its line."""
        file = self.folder / "keys.yaml"
        more = "".join(f", {name}: {value}" for name, value in fields.items())
        file.write_text(f"- {{name: ann, sha256: {hashlib.sha256(b'secret').hexdigest()}{more}}}\n")
        return file

    def check_keys_file(self):
        service = self.start("--keys-file", self.keys())
        channel = grpc.insecure_channel(service.grpc)
        self.addCleanup(channel.close)
        call = channel.unary_unary("/llava.v1.ChatService/ListSessions", request_serializer=bytes, response_deserializer=bytes)
        with self.assertRaises(grpc.RpcError) as caught:
            call(b"")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
        call(b"", metadata=[("authorization", "Bearer secret")])
        for file, what in (("none", "none"), ("broken", "line 1")):
            (self.folder / "broken").write_text("- nonsense")
            for also in ((), ("--check-config",)):
                code, text = self.run_once("--keys-file", self.folder / file, "--port", "0", *also)
                self.assertEqual((code, text.count("\n")), (2, 1), text)
                self.assertIn(what, text)

    def check_metrics_open(self):
        arguments = ["--keys-file", self.keys(), "--host", "0.0.0.0"]
        closed = self.start(*arguments, "--http-port", "-1", ready=False)
        self.assertEqual(closed.get("/metrics")[0], 401)
        self.assertEqual(closed.get("/livez")[0], 200)
        opened = self.start(*arguments, "--metrics-open", "--data-dir", self.folder / "open", ready=False)
        self.assertEqual(opened.get("/metrics")[0], 200)
        local = self.start("--keys-file", self.keys(), "--data-dir", self.folder / "local", ready=False)
        self.assertEqual(local.get("/metrics")[0], 200)
        for service in (opened, local):  # the port that is for everybody, perhaps behind a proxy
            service.http = "127.0.0.1:" + self.http_address(service).rsplit(":", 1)[1]
            self.assertEqual(service.get("/metrics")[0], 401)
            self.assertEqual(service.get("/livez")[0], 200)

    def check_http_port(self):
        port = ports.hold()
        self.assertEqual(self.http("--http-port", port), ("127.0.0.1", port))
        self.assertIn("llava", urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode())
        none = self.start("--http-port", "-1", "--data-dir", self.folder / "none")  # it is ready after that line
        self.assertNotIn("serving HTTP", none.text())

    def check_http_threads(self):
        few = self.start("--http-threads", "1", ready=False)
        many = self.start("--http-threads", "9", "--data-dir", self.folder / "many", ready=False)
        until(lambda: many.threads() > few.threads())

    def http(self, *arguments):
        """Address of HTTP of a service that listens."""
        host, port = self.http_address(self.start(*arguments, ready=False)).rsplit(":", 1)
        return host, int(port)

    def http_address(self, service):
        return until(lambda: next((line["http"] for line in service.log_lines() if line["msg"] == "serving HTTP"), None))

    def begin_post(self, address, size, sent):
        """A connection on which so many bytes of a body have been sent."""
        connection = socket.create_connection(address, timeout=60 * SLOWDOWN)
        self.addCleanup(connection.close)
        try:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n" % size + b" " * sent)
        except ConnectionError:
            pass  # refused and closed before all was sent; the answer can be read
        return connection

    def check_http_connections(self):
        address = self.http("--http-connections", "1")
        first = socket.create_connection(address, timeout=60 * SLOWDOWN)
        self.addCleanup(first.close)
        time.sleep(0.1)
        second = socket.create_connection(address, timeout=60 * SLOWDOWN)
        self.addCleanup(second.close)
        self.assertEqual(first.recv(1), b"", "the idle one gives way")

    def check_http_body_timeout(self):
        address = self.http("--http-body-timeout", "200ms")
        self.assertIn(b" 408 ", self.begin_post(address, 100, 50).recv(100))

    def check_http_bodies_bytes(self):
        address = self.http("--max-turn-bytes", "1M", "--http-bodies-bytes", "2400K")
        both = [self.begin_post(address, 2_000_000, 1_999_999) for _ in range(2)]
        refused = select.select(both, [], [], 60 * SLOWDOWN)[0]
        self.assertIn(b" 503 ", refused[0].recv(100), "there is room for one of them")
        self.assertEqual(self.run_once("--http-bodies-bytes", "1M")[0], 2)

    def check_max_running_turns(self):
        client, other, _ = self.chat("--max-running-turns", "1", "--max-waiting-turns", "0")
        with self.answer_held(client, on_disconnect=2) as (_, stream):
            self.fails(grpc.StatusCode.UNAVAILABLE, "full", client, session_id=other, text="Hello?")
        stream.cancel()

    def check_max_waiting_turns(self):
        client, second, service = self.chat("--max-running-turns", "1", "--max-waiting-turns", "1")
        third = self.session(client)
        with self.answer_held(client, on_disconnect=2) as (_, stream):
            waiting = client.Chat(client.new("ChatRequest", session_id=second, text="What is this?"), timeout=PATIENCE)
            until(lambda: service.metrics()["llava_gateway_turns_waiting"] == 1)
            self.fails(grpc.StatusCode.UNAVAILABLE, "full", client, session_id=third, text="Hello?")
        stream.cancel()
        self.assertTrue(Answer(waiting).finished)

    def check_turn_queue_timeout(self):
        client, other, _ = self.chat("--max-running-turns", "1", "--turn-queue-timeout", "1ms")
        with self.answer_held(client, on_disconnect=2) as (_, stream):
            self.fails(grpc.StatusCode.UNAVAILABLE, "too long", client, session_id=other, text="Hello?")
        del stream  # read by nobody, but there

    def check_backend_tls_ca(self):
        certificates = Certificates(self.folder)
        vision = Service("llava-vision", ["--model", TOWER_MODEL, *FREE_PORTS, *certificates.listener("server", "ca")], self.folder)
        self.addCleanup(vision.stop)
        vision.wait_listening()
        arguments = ["--vision", vision.grpc, "--backend-tls-ca", certificates.pem("ca")]
        service = self.start(*arguments, "--backend-tls-cert", certificates.pem("client"),
                             "--backend-tls-key", certificates.key("client"), ready=False)
        until(lambda: "vision" not in service.get("/readyz")[1])
        bare = self.start(*arguments, "--data-dir", self.folder / "bare", ready=False)
        until(lambda: "vision" in bare.get("/readyz")[1])
        time.sleep(1)
        self.assertIn("vision", bare.get("/readyz")[1])
        self.assertEqual(self.run_once("--backend-tls-ca", self.folder / "none")[0], 2)

    check_backend_tls_cert = check_backend_tls_ca
    check_backend_tls_key = check_backend_tls_ca

    def check_data_dir(self):
        self.chat("--data-dir", self.folder / "here")
        self.assertTrue(any((self.folder / "here").iterdir()))

    def check_max_image_bytes(self):
        self.refuses(["--max-image-bytes", "1K"], "1024", images=[LION])

    def check_max_image_pixels(self):
        self.refuses(["--max-image-pixels", "9000"], "9000", images=[LION])

    def check_max_images_per_turn(self):
        self.refuses(["--max-images-per-turn", "1"], "1", images=[LION, {"data": (SCENES / "three_frogs.png").read_bytes()}])

    def check_max_turn_bytes(self):
        self.refuses(["--max-turn-bytes", "2K"], "2048", images=[LION])

    def check_request_bytes(self):
        client, session, service = self.chat("--max-image-bytes", "1M", "--max-turn-bytes", "1M", "--request-bytes", "1M")
        requests = [client.new("UploadImageRequest", header={"session_id": session}),
                    client.new("UploadImageRequest", chunk=b"x" * 700_000)]
        done = threading.Event()

        def upload():  # that stands still
            yield from requests
            done.wait()

        self.addCleanup(done.set)
        first = client.UploadImage.future(upload())
        until(lambda: service.metrics()["llava_gateway_request_bytes"] > 600_000)
        with self.assertRaises(grpc.RpcError) as caught:
            client.UploadImage(iter(requests))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("--request-bytes", caught.exception.details())
        first.cancel()
        until(lambda: service.metrics()["llava_gateway_request_bytes"] == 0)
        self.assertEqual(self.run_once("--request-bytes", "1M")[0], 2)

    def check_request_timeout(self):
        client, session, _ = self.chat("--request-timeout", "200ms")
        self.fails(grpc.StatusCode.DEADLINE_EXCEEDED, "", client, session_id=session, text="Hello?",
                   sampling={"max_new_tokens": 2000, "ignore_eos": True})

    def check_max_turns_per_session(self):
        client, session, _ = self.chat("--max-turns-per-session", "1")
        ask = {"session_id": session, "text": "Hello?"}
        Answer(client.Chat(client.new("ChatRequest", **ask)))
        self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "allowed are 1", client, **ask)

    def check_max_images_per_session(self):
        client, session, _ = self.chat("--max-images-per-session", "1")
        ask = {"session_id": session, "text": "What is this?"}
        Answer(client.Chat(client.new("ChatRequest", images=[LION], **ask)))
        frogs = {"data": (SCENES / "three_frogs.png").read_bytes()}
        self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "allowed are 1", client, images=[frogs], **ask)

    def check_session_ttl(self):
        client, session, _ = self.chat("--session-ttl", "300ms", "--resume-grace", "300ms")

        def gone():
            try:
                client.GetSession(client.new("GetSessionRequest", session_id=session))
            except grpc.RpcError as error:
                return error.code() == grpc.StatusCode.NOT_FOUND

        until(gone)

    def turn(self, client, session):
        return client.ListTurns(client.new("ListTurnsRequest", session_id=session)).turns[0]

    def check_resume_grace(self):
        client, _, _ = self.chat("--resume-grace", "10ms")
        with self.answer_held(client) as (session, stream):
            stream.cancel()
            until(lambda: self.turn(client, session).state == 3)
        self.assertIn("--resume-grace", self.turn(client, session).error_message)

    def check_continue_timeout(self):
        client, _, _ = self.chat("--continue-timeout", "300ms")
        with self.answer_held(client) as (_, stream):
            begin = time.monotonic()
            self.stack.llm.stop(signal.SIGKILL)
        with self.assertRaises(grpc.RpcError) as caught:
            list(stream)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertLess(time.monotonic() - begin, 60, "what it would wait by default")
        self.stack.restart("llm")

    def check_backup(self):
        self.chat()
        code, text = self.run_once("--backup", self.folder / "copy")  # while the other serves
        self.assertEqual(code, 0, text)
        self.assertIn("1 sessions", text)
        self.assertEqual(self.run_once("--backup", self.folder / "copy")[0], 1)
        # Nothing listens: as in the image, whose environment says so.
        code, text = self.run_once("--host", "0.0.0.0", "--backup", self.folder / "other copy")
        self.assertEqual(code, 0, text)

    def check_restore(self):
        _, session, _ = self.chat()
        copy, restored = self.folder / "copy", self.folder / "restored"
        self.assertEqual(self.run_once("--backup", copy)[0], 0)
        code, text = self.run_once("--restore", copy, "--data-dir", restored)
        self.assertEqual(code, 0, text)
        client, _, _ = self.chat("--data-dir", restored)
        self.assertEqual(client.GetSession(client.new("GetSessionRequest", session_id=session)).session.id, session)

    def test_flags(self):
        self.run_all()


class VisionFlags(ModelFlagsCase):
    program = "llava-vision"

    def base(self):
        return ["--model", TOWER_MODEL]

    def requests(self, service, client, count):
        """For so many different pictures."""
        models = Client(service.grpc, "llava.v1.ModelService")
        digest = models.ListModels(models.new("ListModelsRequest")).models[0].vision_spec.tower_digest
        models.close()
        spec = {"tower_digest": digest, "image_mode": 1, "select_layer": -2, "select_feature": 1}
        return [client.new("EncodeRequest", image=LION["data"] + bytes([i]), spec=spec) for i in range(count)]

    def encode(self, service, count=1):
        """gRPC codes of `count` calls made at once."""
        client = Client(service.grpc, "llava.v1.VisionService")
        results = self.at_once(service, client.Encode, self.requests(service, client, count))
        client.close()
        return [code for code, _ in results]

    at_work = ["--max-batch", "2", "--batch-wait", "600s"]  # a picture waits for another one

    def begin_work(self, service):
        client = Client(service.grpc, "llava.v1.VisionService")
        self.addCleanup(client.close)
        call = client.Encode(self.requests(service, client, 1)[0])
        until(lambda: service.metrics()["llava_vision_queue_depth"] == 1)
        return call

    def check_model(self):
        self.assertEqual(self.run_once("--model", self.folder, "--port", "0")[0], 4)
        service = self.start("--model", ROOT / "tests/fixtures/clip-tower")
        self.assertTrue(any("clip-tower" in name for name in service.metrics()))

    def check_max_message_bytes(self):
        for size in ("0", "2G", "4G", "inf"):
            self.assertEqual(self.run_once("--max-message-bytes", size)[0], 2, size)
        self.assertEqual(self.encode(self.start("--max-message-bytes", "1K")), [grpc.StatusCode.RESOURCE_EXHAUSTED])

    def check_workers(self):
        service = self.start("--workers", "2")
        until(lambda: service.metrics()['llava_vision_workers{state="ready"}'] == 2)

    def check_threads(self):
        few, many = (self.start("--threads", count) for count in (1, 3))
        for service in (few, many):
            self.encode(service)
        until(lambda: many.threads() > few.threads())

    def check_dtype(self):
        super().check_dtype()
        service = self.start("--dtype", "int8")
        models = Client(service.grpc, "llava.v1.ModelService")
        self.assertRegex(models.ListModels(models.new("ListModelsRequest")).models[0].numerics, r"^cpu-int8-\w+-\d+$")
        models.close()
        self.assertEqual(self.encode(service), [grpc.StatusCode.OK])

    def check_decode_threads(self):
        self.more_threads("--decode-threads", 1, 17)

    def check_max_batch(self):
        service = self.start("--max-batch", "1", "--batch-wait", "100ms")
        self.assertEqual(self.encode(service, 12), [grpc.StatusCode.OK] * 12)
        metrics = service.metrics()
        self.assertEqual(metrics["llava_vision_batch_size_sum"], metrics["llava_vision_batch_size_count"])
        wide = self.start("--max-batch", "12", "--batch-wait", "60s")  # not longer than until it is full
        self.encode(wide, 12)
        metrics = wide.metrics()
        self.assertGreater(metrics["llava_vision_batch_size_sum"], metrics["llava_vision_batch_size_count"])

    def check_batch_wait(self):
        service = self.start("--batch-wait", "700ms")
        start = time.monotonic()
        self.encode(service)
        self.assertGreater(time.monotonic() - start, 0.7)

    def check_queue(self):
        service = self.start("--queue", "1", "--max-batch", "1", "--batch-wait", "0ms")
        self.assertIn(grpc.StatusCode.UNAVAILABLE, self.encode(service, 60))

    def check_queue_bytes(self):
        service = self.start("--queue-bytes", "1K", "--max-batch", "1", "--batch-wait", "0ms")
        codes = self.encode(service, 60)
        self.assertIn(grpc.StatusCode.UNAVAILABLE, codes)
        self.assertIn(grpc.StatusCode.OK, codes, "who is alone is taken whatever the size")

    def check_preferred_batch(self):
        self.assertEqual(self.run_once("--preferred-batch", "9", "--max-batch", "8")[0], 2)
        self.assertEqual(self.run_once("--queue", "7", "--max-batch", "8")[0], 2)
        service = self.start("--preferred-batch", "3", "--max-batch", "8", "--batch-wait", "60s")
        self.assertEqual(self.encode(service, 3), [grpc.StatusCode.OK] * 3)
        metrics = service.metrics()
        self.assertEqual((metrics["llava_vision_batch_size_sum"], metrics["llava_vision_batch_size_count"]), (3, 1))

    def check_step_limit(self):
        """A batch that takes longer is as good as one that hangs: its pictures end, and so does the process."""
        service = self.start("--step-limit", "1ms", "--feature-cache-bytes", "0", "--max-batch", "60", "--drain-timeout", "1s")
        codes = []
        while service.process.poll() is None:
            try:
                codes += self.encode(service, 60)
            except grpc.RpcError:
                break  # it has ended, or is about to
        code, log = service.wait_end()
        self.assertEqual(code, 7, log)
        self.assertIn("--step-limit", log)
        self.assertIn(grpc.StatusCode.UNAVAILABLE, codes)
        self.assertIn(grpc.StatusCode.OK, self.encode(self.start("--step-limit", "0s"), 60))

    def check_exif(self):
        numerics = set()
        for word in ("ignore", "apply"):
            service = self.start("--exif", word)
            models = Client(service.grpc, "llava.v1.ModelService")
            numerics.add(models.ListModels(models.new("ListModelsRequest")).models[0].numerics)
            models.close()
        self.assertEqual(len(numerics), 2, "features of two kinds must not bear one name")
        self.assertEqual(self.run_once("--exif", "perhaps")[0], 2)

    def check_feature_cache_dir(self):
        folder = self.folder / "features"
        service = self.start("--feature-cache-dir", folder)
        self.encode(service)
        service.stop()
        self.assertEqual(len(list(folder.glob("*.feature"))), 1)
        again = self.start("--feature-cache-dir", folder)
        self.encode(again)
        self.assertEqual(again.metrics()["llava_vision_feature_disk_hits_total"], 1)

    def check_feature_cache_disk_bytes(self):
        folder = self.folder / "features"
        service = self.start("--feature-cache-dir", folder, "--feature-cache-disk-bytes", "1K")
        self.encode(service)
        service.stop()
        self.assertEqual(list(folder.glob("*.feature")), [])

    def check_feature_cache_bytes(self):
        for budget, hits in (("0", 0), ("1M", 1)):
            service = self.start("--feature-cache-bytes", budget)
            self.encode(service), self.encode(service)
            self.assertEqual(service.metrics()["llava_vision_feature_cache_hits_total"], hits)

    def check_max_image_bytes(self):
        self.assertEqual(self.encode(self.start("--max-image-bytes", "1K")), [grpc.StatusCode.INVALID_ARGUMENT])

    def check_max_image_pixels(self):
        self.assertEqual(self.encode(self.start("--max-image-pixels", "9000")), [grpc.StatusCode.INVALID_ARGUMENT])

    def test_flags(self):
        self.run_all()


if __name__ == "__main__":
    unittest.main(verbosity=2)
