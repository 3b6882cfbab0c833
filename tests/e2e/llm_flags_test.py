"""Every flag of the language service changes what it does."""
import hashlib
import struct
import threading
import time
import unittest

import grpc
from flags_case import ModelFlagsCase
from stack import LLM_MODEL, ROOT, SLOWDOWN, Client, until
from versions import publish_copy


def crc32c(data):
    """CRC-32C (Castagnoli), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


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

    def generate(self, service, text="Hello?", count=1, session="", **sampling):
        """(gRPC code, message or finish event) of `count` calls made at once."""
        client = Client(service.grpc, "llava.v1.LlmService")
        model = self.models(service).model
        request = client.new("GenerateRequest", model={"name": model.name, "version": model.version},
                             messages=[{"role": 2, "text": text}], sampling=sampling, session_id=session)
        results = self.at_once(service, client.Generate, [request] * count)
        client.close()
        return [(code, result[-1].finished if code == grpc.StatusCode.OK else result) for code, result in results]

    def begin_work(self, service):
        client = Client(service.grpc, "llava.v1.LlmService")
        self.addCleanup(client.close)
        model = self.models(service).model
        request = client.new("GenerateRequest", model={"name": model.name, "version": model.version},
                             messages=[{"role": 2, "text": "Hello?"}], sampling={"max_new_tokens": 1500, "ignore_eos": True})
        calls = [client.Generate(request) for _ in range(100)]
        until(lambda: service.metrics()["llava_llm_requests_running"] > 0)
        return calls

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

    def check_swap_prewarm(self):
        """The new version reads what the last sessions have said, so many of them."""
        for sessions in (0, 2):
            model = self.folder / f"prewarm-{sessions}" / "emoji"
            publish_copy(LLM_MODEL / "1", model, 1)
            service = self.start("--model", model, "--swap-prewarm", sessions)
            for session in ("a", "b", "c"):
                self.generate(service, f"{session}: " + "What is a lion? " * 10, session=session)
            publish_copy(LLM_MODEL / "1", model, 2)
            until(lambda: self.models(service).model.version == 2)
            loaded = lambda: [line["sessions_ahead"] for line in service.log_lines() if line.get("msg") == "loaded"]
            until(lambda: len(loaded()) == 2)
            self.assertEqual(loaded(), ["0", str(sessions)])
            usage = self.generate(service, "c: " + "What is a lion? " * 10, session="c")[0][1].usage
            self.assertEqual(usage.cached_tokens > 30, sessions > 0, usage)

    def check_threads(self):
        few, many = (self.start("--threads", count) for count in (1, 3))
        for service in (few, many):
            self.generate(service, "What is a lion? " * 60)
        until(lambda: many.threads() > few.threads())

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
        while max(most) == 0 and looker.is_alive():  # until it was seen at work
            self.generate(service, count=6, max_new_tokens=500, ignore_eos=True)
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
        """Beside a running answer a long prompt goes in smaller pieces the less it may slow that down."""
        large = {}
        for slowdown in ("1.1", "1000"):
            service = self.start("--prefill-slowdown", slowdown)
            self.generate(service, "What is a lion? " * 90, max_new_tokens=20, ignore_eos=True)
            above = lambda m: m["llava_llm_batch_tokens_count"] - m['llava_llm_batch_tokens_bucket{le="128"}']
            for round in range(20):
                generated = service.metrics()["llava_llm_generated_tokens_total"]
                running = threading.Thread(target=self.generate, args=(service,), kwargs={"max_new_tokens": 1800, "ignore_eos": True})
                running.start()
                until(lambda: service.metrics()["llava_llm_generated_tokens_total"] >= generated + 60)
                before = service.metrics()
                self.generate(service, f"Where is rose {round}? " * 90, max_new_tokens=1)
                after = service.metrics()
                large[slowdown] = above(after) - above(before)
                running.join()
                if after["llava_llm_requests_running"] > 0:
                    break  # it was beside a running answer, to the end
        self.assertEqual(large["1.1"], 0)
        self.assertGreater(large["1000"], 0)

    def check_step_limit(self):
        """A worker that hangs is given up and another takes its place. A step in which the process stands still is as good
        as hanging."""
        slow = ("--prefill-chunk", "4096", "--dtype", "float32", "--threads", "1")
        long, plain = "What is a lion? " * 325, {"LLAVA_CPU": "portable"}
        service = self.start(*slow, environment=plain)
        self.assertEqual(self.generate(service, long, max_new_tokens=1)[0][0], grpc.StatusCode.OK)
        service.stop()
        limit = 5 * SLOWDOWN
        service = self.start(*slow, "--step-limit", f"{limit}s", environment=plain)
        code, results = grpc.StatusCode.OK, []
        for round in range(20):  # with prompts that nothing is known of
            if code != grpc.StatusCode.OK:
                break
            call = threading.Thread(target=lambda: results.append(self.generate(service, f"{round} {long}", max_new_tokens=1)[0]))
            call.start()
            while call.is_alive() and service.metrics()["llava_llm_requests_running"] == 0:
                pass
            with service.standing_still():
                time.sleep(limit + 1)
            call.join()
            code, message = results[-1]  # fine if it was over before
        self.assertEqual(code, grpc.StatusCode.UNAVAILABLE)
        self.assertIn("hangs", message)
        self.assertEqual(self.generate(service, "Hello?", max_new_tokens=1)[0][0], grpc.StatusCode.OK)
        self.assertEqual(service.metrics()["llava_llm_worker_respawns_total"], 1)
        self.assertEqual(service.stop(), 0)

    def check_dtype(self):
        for dtype, numerics in (("bfloat16", "cpu-bf16"), ("int8", "cpu-i8"), ("int4", "cpu-i4")):
            service = self.start("--dtype", dtype)
            self.assertEqual(self.models(service).numerics, numerics)
            self.generate(service)
        code, text = self.run_once("--dtype", "float16", "--port", "0")
        self.assertEqual(code, 2)
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
            until(lambda: service.metrics()["llava_llm_kv_cached_bytes"] > 0)
            sizes[kind] = service.metrics()["llava_llm_kv_cached_bytes"]
        self.assertGreater(sizes["float32"], 3 * sizes["int8"])

    def check_queue(self):
        service = self.start("--queue", "1", "--max-running", "1")
        codes = [code for code, _ in self.generate(service, count=20, max_new_tokens=100, ignore_eos=True)]
        self.assertIn(grpc.StatusCode.UNAVAILABLE, codes)
        self.assertIn(grpc.StatusCode.OK, codes)

    def check_kv_bytes(self):
        code, text = self.run_once("--kv-bytes", "256K", "--port", "0")
        self.assertEqual(code, 2)
        self.assertRegex(text, "64 tokens.*--kv-bytes")
        code, message = self.generate(self.start("--kv-bytes", "1M"), max_new_tokens=1000)[0]
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
