"""Every flag of every service changes what the service does. A flag without a check here fails."""
import hashlib
import pathlib
import re
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

import grpc
from stack import BIN, LLM_MODEL, ROOT, SCENES, SLOWDOWN, TOWER_MODEL, Answer, Client, Service, Stack

LION = {"data": (SCENES / "lion.png").read_bytes()}


def crc32c(data):
    """CRC-32C (Castagnoli), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def flags(program):
    """Flags in --help, the universal ones aside."""
    text = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, check=True).stdout
    return [flag for flag in re.findall(r"^ *(?:-h,)?--([a-z0-9-]+)", text, re.M) if flag not in ("help", "version")]


class FlagsCase(unittest.TestCase):
    """Checks are methods named check_<flag>; each starts what it needs."""
    program = None

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="llava-flags-")
        self.folder = pathlib.Path(self.temporary.name)
        self.addCleanup(self.temporary.cleanup)

    def base(self):
        """Arguments without which the service does not start."""
        return []

    def run_once(self, *arguments):
        """(exit code, output) of a service that ends by itself."""
        return Service(self.program, [*self.base(), "--metrics-port", "0", *arguments], self.folder).wait_end()

    def start(self, *arguments, ready=True, environment=None):
        service = Service(self.program, [*self.base(), "--port", "0", "--metrics-port", "0", "--log-format", "json", *arguments],
                          self.folder, environment)
        self.addCleanup(service.stop)
        service.wait_listening()
        return service.wait_ready() if ready else service

    def check_host(self):
        self.assertTrue(self.start("--host", "127.0.0.3", ready=False).grpc.startswith("127.0.0.3:"))

    def check_insecure(self):
        self.assertEqual(self.run_once("--host", "0.0.0.0")[0], 2)
        self.assertTrue(self.start("--host", "0.0.0.0", "--insecure", ready=False).grpc.startswith("0.0.0.0:"))

    def check_port(self):
        port = free_port()
        self.assertEqual(self.start("--port", port, ready=False).grpc, f"127.0.0.1:{port}")

    def check_metrics_port(self):
        port = free_port()
        self.start("--metrics-port", port, ready=False)
        self.assertIn("llava_build_info", urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())

    def check_log_level(self):
        port = free_port()
        service = Service(self.program, [*self.base(), "--port", "0", "--metrics-port", port, "--log-level", "error"], self.folder)
        self.addCleanup(service.stop)
        service.http = f"127.0.0.1:{port}"
        while service.get("/livez")[0] != 200:
            self.assertIsNone(service.process.poll(), service.text())
        self.assertNotIn("listening", service.text())

    def check_log_format(self):
        service = self.start(ready=False)
        self.assertEqual(service.log_lines()[0]["msg"], "listening")
        port = free_port()
        service.stop()
        plain = Service(self.program, [*self.base(), "--port", "0", "--metrics-port", port, "--log-format", "text"], self.folder)
        self.addCleanup(plain.stop)
        deadline = time.monotonic() + 10 * SLOWDOWN
        while "listening" not in plain.text() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertRegex(plain.text(), r" info .*listening.* grpc=127\.0\.0\.1:\d+")

    def check_config(self):
        port = free_port()
        file = self.folder / "settings.yaml"
        file.write_text(f"port: {port}\nlog_format: json\n")
        service = Service(self.program, [*self.base(), "--metrics-port", "0", "--config", file], self.folder)
        self.addCleanup(service.stop)
        self.assertEqual(service.wait_listening().grpc, f"127.0.0.1:{port}")
        service.stop()
        file.write_text("prot: 1\n")
        code, text = self.run_once("--config", file)
        self.assertEqual((code, text.count("\n")), (2, 1), text)
        self.assertIn("prot", text)

    def check_print_config(self):
        code, text = self.run_once("--port", "7", "--print-config")
        self.assertEqual(code, 0)
        self.assertRegex(text, r"(?m)^port: 7 +# flag$")

    def check_check_config(self):
        self.assertEqual(self.run_once("--check-config"), (0, ""))
        self.assertEqual(self.run_once("--check-config", "--port", "x")[0], 2)

    def environment_twin(self):
        port = free_port()
        name = self.program.upper().replace("-", "_") + "_METRICS_PORT"
        service = Service(self.program, [*self.base(), "--port", "0", "--log-format", "json"], self.folder, {name: str(port)})
        self.addCleanup(service.stop)
        self.assertEqual(service.wait_listening().http, f"127.0.0.1:{port}")

    def run_all(self):
        names = flags(self.program)
        self.assertGreater(len(names), 12)
        checks = {name[6:].replace("_", "-") for name in dir(self) if name.startswith("check_")}
        self.assertEqual(sorted(set(names) - checks), [], "flags without a check")
        self.assertEqual(sorted(checks - set(names)), [], "checks without a flag")
        for name, check in [("environment twin", self.environment_twin)] + [
                (name, getattr(self, "check_" + name.replace("-", "_"))) for name in names]:
            with self.subTest(flag=name):
                try:
                    check()
                finally:
                    self.doCleanups()
                    self.setUp()


class GatewayFlags(FlagsCase):
    program = "llava-gateway"

    @classmethod
    def setUpClass(cls):
        cls.stack = Stack()
        cls.stack.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.stack.__exit__()

    def base(self):
        return ["--vision", self.stack.vision.grpc, "--llm", self.stack.llm.grpc, "--data-dir", self.folder / "data"]

    def chat(self, *arguments):
        service = self.start(*arguments)
        client = Client(service.grpc, "llava.v1.ChatService")
        self.addCleanup(client.close)
        return client, client.CreateSession(client.new("CreateSessionRequest")).session.id, service

    def fails(self, code, hint, client, **fields):
        with self.assertRaises(grpc.RpcError) as caught:
            Answer(client.Chat(client.new("ChatRequest", **fields)))
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
        client, session, service = self.chat("--drain-timeout", "300ms")
        stream = iter(client.Chat(client.new("ChatRequest", session_id=session, text="Hello?",
                                             sampling={"max_new_tokens": 2000, "ignore_eos": True})))
        next(stream)
        start = time.monotonic()
        self.assertEqual(service.stop(), 0)
        self.assertLess(time.monotonic() - start, 5 * SLOWDOWN)

    def check_vision(self):
        service = self.start("--vision", f"127.0.0.1:{free_port()}", ready=False)
        status, body = service.get("/readyz")
        self.assertEqual(status, 503)
        self.assertIn("vision", body)

    def check_llm(self):
        service = self.start("--llm", f"127.0.0.1:{free_port()}", ready=False)
        time.sleep(0.3)
        status, body = service.get("/readyz")
        self.assertEqual(status, 503)
        self.assertIn("llm", body)

    def check_default_model(self):
        client, session, _ = self.chat("--default-model", "emoji")
        self.assertEqual(client.ListModels(client.new("ChatServiceListModelsRequest")).default_model, "emoji")
        service = self.start("--default-model", "other", "--data-dir", self.folder / "other", ready=False)
        time.sleep(0.3)
        self.assertIn("other", service.get("/readyz")[1])

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

    def check_request_timeout(self):
        client, session, _ = self.chat("--request-timeout", "200ms")
        self.fails(grpc.StatusCode.DEADLINE_EXCEEDED, "", client, session_id=session, text="Hello?",
                   sampling={"max_new_tokens": 2000, "ignore_eos": True})

    def test_flags(self):
        self.run_all()


class ModelFlagsCase(FlagsCase):
    """What the two services with a model share."""

    def check_device(self):
        self.assertEqual(self.run_once("--device", "cuda:0", "--port", "0")[0], 5)
        self.assertEqual(self.run_once("--device", "toaster", "--port", "0")[0], 2)

    def check_dtype(self):
        service = self.start("--dtype", "bfloat16")
        models = Client(service.grpc, "llava.v1.ModelService")
        self.assertEqual(models.ListModels(models.new("ListModelsRequest")).models[0].numerics, "cpu-bf16")
        models.close()

    def check_drain_timeout(self):
        start = time.monotonic()
        self.assertEqual(self.start("--drain-timeout", "100ms").stop(), 0)
        self.assertLess(time.monotonic() - start, 20 * SLOWDOWN)

    def more_threads(self, flag, few, many):
        counts = [self.start(flag, count).threads() for count in (few, many)]
        self.assertAlmostEqual(counts[1] - counts[0], many - few, delta=3)  # gRPC's own come and go


class VisionFlags(ModelFlagsCase):
    program = "llava-vision"

    def base(self):
        return ["--model", TOWER_MODEL]

    def encode(self, service, count=1, images=None):
        """gRPC codes of `count` calls made at once."""
        client = Client(service.grpc, "llava.v1.VisionService")
        models = Client(service.grpc, "llava.v1.ModelService")
        digest = models.ListModels(models.new("ListModelsRequest")).models[0].vision_spec.tower_digest
        codes = []

        def call(image):
            request = client.new("EncodeRequest", image=image, spec={
                "tower_digest": digest, "image_mode": 1, "select_layer": -2, "select_feature": 1})
            try:
                list(client.Encode(request))
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())

        images = images or [LION["data"] + bytes([i]) for i in range(count)]  # all different
        threads = [threading.Thread(target=call, args=(image,)) for image in images]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close(), models.close()
        return codes

    def check_model(self):
        self.assertEqual(self.run_once("--model", self.folder, "--port", "0")[0], 4)
        service = self.start("--model", ROOT / "tests/fixtures/clip-tower")
        self.assertTrue(any("clip-tower" in name for name in service.metrics()))

    def check_max_message_bytes(self):
        self.assertEqual(self.encode(self.start("--max-message-bytes", "1K")), [grpc.StatusCode.RESOURCE_EXHAUSTED])

    def check_workers(self):
        self.assertEqual(self.start("--workers", "2").metrics()['llava_vision_workers{state="ready"}'], 2)

    def check_threads(self):
        few, many = (self.start("--threads", count) for count in (1, 3))
        for service in (few, many):
            self.encode(service)
        self.assertGreater(many.threads(), few.threads())

    def check_decode_threads(self):
        self.more_threads("--decode-threads", 1, 17)

    def check_max_batch(self):
        service = self.start("--max-batch", "1", "--batch-wait", "100ms")
        self.assertEqual(self.encode(service, 12), [grpc.StatusCode.OK] * 12)
        metrics = service.metrics()
        self.assertEqual(metrics["llava_vision_batch_size_sum"], metrics["llava_vision_batch_size_count"])
        wide = self.start("--max-batch", "12", "--batch-wait", "1s")
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


class LlmFlags(ModelFlagsCase):
    program = "llava-llm"

    def base(self):
        return ["--model", LLM_MODEL]

    def models(self, service):
        client = Client(service.grpc, "llava.v1.ModelService")
        try:
            return client.ListModels(client.new("ListModelsRequest")).models[0]
        finally:
            client.close()

    def generate(self, service, text="Hello?", count=1, **sampling):
        """(gRPC code, message or finish event) of `count` calls made at once."""
        client = Client(service.grpc, "llava.v1.LlmService")
        model = self.models(service).model
        results = []

        def call():
            request = client.new("GenerateRequest", model={"name": model.name, "version": model.version},
                                 messages=[{"role": 2, "text": text}], sampling=sampling)
            try:
                results.append((grpc.StatusCode.OK, list(client.Generate(request))[-1].finished))
            except grpc.RpcError as error:
                results.append((error.code(), error.details()))

        threads = [threading.Thread(target=call) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        return results

    def check_model(self):
        self.assertEqual(self.run_once("--model", self.folder, "--port", "0")[0], 4)
        service = self.start("--model", ROOT / "tests/fixtures/tiny-llava")
        self.assertEqual(self.models(service).image_tokens, self.models(service).feature_rows)
        self.assertNotEqual(self.models(service).model.name, "emoji")

    def check_tower(self):
        copy = self.folder / "model"
        copy.mkdir()
        for file in (ROOT / "tests/fixtures/orig-f32").iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        config = (copy / "config.json").read_text()
        (copy / "config.json").write_text(config.replace("../clip-tower", "somebody/on-a-hub"))
        code, text = self.run_once("--model", copy, "--port", "0")
        self.assertEqual(code, 4)
        self.assertIn("--tower", text)
        self.start("--model", copy, "--tower", ROOT / "tests/fixtures/clip-tower")

    def check_chat_template(self):
        lengths = [self.generate(self.start("--chat-template", name), max_new_tokens=1)[0][1].usage.text_tokens
                   for name in ("emoji", "v1")]
        self.assertGreater(lengths[1], lengths[0] + 10)

    def check_context_tokens(self):
        service = self.start("--context-tokens", "40")
        self.assertEqual(self.models(service).context_tokens, 40)
        self.assertEqual(self.generate(service, ignore_eos=True)[0][1].reason, 3)

    def check_max_message_bytes(self):
        service = self.start("--max-message-bytes", "1K")
        self.assertEqual(self.generate(service, "x" * 2000)[0][0], grpc.StatusCode.RESOURCE_EXHAUSTED)

    def check_threads(self):
        few, many = (self.start("--threads", count) for count in (1, 3))
        for service in (few, many):
            self.generate(service, "What is a lion? " * 60)
        self.assertGreater(many.threads(), few.threads())

    def check_prompt_threads(self):
        self.more_threads("--prompt-threads", 1, 17)

    def check_max_running(self):
        service = self.start("--max-running", "1")
        most, end = [0], threading.Event()

        def look():
            while not end.is_set():
                most.append(service.metrics()["llava_llm_requests_running"])
        looker = threading.Thread(target=look)
        looker.start()
        self.generate(service, count=6, max_new_tokens=100, ignore_eos=True)
        end.set()
        looker.join()
        self.assertEqual(max(most), 1)

    def check_prefill_chunk(self):
        steps = {}
        for chunk in ("4", "512"):
            service = self.start("--prefill-chunk", chunk)
            before = service.metrics()["llava_llm_batch_tokens_count"]
            self.generate(service, "What is a lion? " * 20, max_new_tokens=1)
            steps[chunk] = service.metrics()["llava_llm_batch_tokens_count"] - before
        self.assertGreater(steps["4"], steps["512"] + 10)

    def check_prefill_slowdown(self):
        """Beside a running answer a long prompt goes in more steps the less it may slow that down."""
        steps = {}
        for slowdown in ("1.1", "1000"):
            service = self.start("--prefill-slowdown", slowdown)
            self.generate(service, "What is a lion? " * 90, max_new_tokens=20, ignore_eos=True)
            running = threading.Thread(target=self.generate, args=(service,), kwargs={"max_new_tokens": 900, "ignore_eos": True})
            running.start()
            while service.metrics()["llava_llm_generated_tokens_total"] < 80:
                time.sleep(0.01)
            before = service.metrics()
            self.generate(service, "Where is the rose? " * 90, max_new_tokens=1)
            after = service.metrics()
            running.join()
            steps[slowdown] = after["llava_llm_step_seconds_count"] - before["llava_llm_step_seconds_count"]
        self.assertGreater(steps["1.1"], steps["1000"])

    def check_dtype(self):
        for dtype, numerics in (("bfloat16", "cpu-bf16"), ("int8", "cpu-i8"), ("int4", "cpu-i4")):
            service = self.start("--dtype", dtype)
            self.assertEqual(self.models(service).numerics, numerics)
            self.generate(service)
        code, text = self.run_once("--dtype", "float16", "--port", "0")
        self.assertEqual(code, 4)
        self.assertIn("float16 is for GPUs", text)

    def check_group(self):
        service = self.start("--dtype", "int4", "--group", "32")
        self.generate(service)
        code, text = self.run_once("--dtype", "int4", "--group", "48", "--port", "0")
        self.assertEqual(code, 2)
        self.assertIn("32, 64 and 128", text)

    def check_kv_type(self):
        sizes = {}
        for kind in ("float32", "int8"):
            service = self.start("--kv-type", kind)
            self.generate(service, max_new_tokens=30, ignore_eos=True)
            sizes[kind] = service.metrics()["llava_llm_kv_cached_bytes"]
        self.assertGreater(sizes["float32"], 3 * sizes["int8"])

    def check_queue(self):
        service = self.start("--queue", "1", "--max-running", "1")
        codes = [code for code, _ in self.generate(service, count=20, max_new_tokens=100, ignore_eos=True)]
        self.assertIn(grpc.StatusCode.UNAVAILABLE, codes)
        self.assertIn(grpc.StatusCode.OK, codes)

    def check_kv_bytes(self):
        code, message = self.generate(self.start("--kv-bytes", "256K"), max_new_tokens=1000)[0]
        self.assertEqual(code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertRegex(message, r"\d+.*\d+")

    def check_feature_store_bytes(self):
        service = self.start("--feature-store-bytes", "1K")
        client = Client(service.grpc, "llava.v1.LlmService")
        model = self.models(service)
        data = bytes(2 * model.feature_rows * model.feature_width)
        spec = model.vision_spec  # its digest, as the comment of FeatureKey defines it
        digest = hashlib.sha256(b"llava.v1.VisionSpec\0" + struct.pack("<I", 32) + spec.tower_digest + struct.pack(
            "<IIiI", spec.image_mode, 0, spec.select_layer, spec.select_feature)).digest()
        header = {"key": {"image_sha256": b"1" * 32, "spec_digest": digest, "numerics": "cpu-f32"},
                  "tensor": {"dtype": 3, "shape": [model.feature_rows, model.feature_width], "size_bytes": len(data),
                             "crc32c": crc32c(data)}}
        with self.assertRaises(grpc.RpcError) as caught:
            client.PutFeatures(iter([client.new("PutFeaturesRequest", header=header), client.new("PutFeaturesRequest", chunk=data)]))
        self.assertIn("1024", caught.exception.details())
        client.close()

    def check_default_temperature(self):
        service = self.start("--default-temperature", "1.25")
        self.assertEqual(self.models(service).default_sampling.temperature, 1.25)
        cold = self.start("--default-temperature", "0")
        texts = {self.generate(cold, seed=seed)[0][1].tokens.ids[:].__str__() for seed in range(6)}
        self.assertEqual(len(texts), 1)

    def check_default_top_p(self):
        self.assertAlmostEqual(self.models(self.start("--default-top-p", "0.25")).default_sampling.top_p, 0.25)

    def check_default_max_new_tokens(self):
        service = self.start("--default-max-new-tokens", "3")
        self.assertEqual(self.generate(service, ignore_eos=True)[0][1].usage.generated_tokens, 3)

    def test_flags(self):
        self.run_all()


if __name__ == "__main__":
    unittest.main(verbosity=2)
