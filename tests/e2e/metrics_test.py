"""Every metric of every service moves under a scripted chat with faults."""
import io
import itertools
import json
import signal
import struct
import threading
import time
import unittest

import grpc
from PIL import Image
from chat_case import ChatCase
from stack import LLM_MODEL, SCENES, SLOWDOWN, Answer, Stack, eventually
from versions import edit_json, publish_copy, reseal

# What no chat can bring about, and where it is proven instead.
NOT_BY_CHAT = {
    'llava_vision_workers{state="failed"}': "a device that dies: tests/server/vision",
    'llava_llm_workers{state="failed"}': "a device that dies: tests/server/llm",
    'llava_vision_workers{state="loading"}': "may be over before anybody looks: tests/server/vision",
    'llava_llm_workers{state="loading"}': "may be over before anybody looks: tests/server/llm",
    'llava_model_repository_looks_total{trigger="event"}': "a version that is published: tests/e2e/vision_test.py",
    "llava_model_repository_failed_looks_total": "a folder that cannot be read: tests/server/lifecycle",
    "llava_model_versions_without_folder": "a folder that is deleted: tests/server/lifecycle",
    "llava_model_drain_seconds_count": "a version that goes: tests/server/lifecycle",
    "llava_model_drain_seconds_sum": "a version that goes: tests/server/lifecycle",
    "llava_vision_worker_respawns_total": "a device that dies: tests/server/vision",
    "llava_llm_worker_respawns_total": "a device that dies: tests/server/llm",
    "llava_llm_feature_store_evictions_total": "features stay for half a minute: tests/server/llm",
    "llava_gateway_turns_taken_up_total": "a gateway that was killed: tests/chaos",
    "llava_gateway_turns_given_up_total": "a gateway that was killed again and again: tests/chaos",
    'llava_gateway_rollouts_total{model="emoji",result="promoted"}': "a canary: tests/server/gateway",
    'llava_gateway_rollouts_total{model="emoji",result="rolled_back"}': "a canary: tests/server/gateway",
    'llava_gateway_request_faults_total{method="RegenerateTurn"}': "there before the first of them: tests/server/gateway",
    'llava_gateway_request_duration_seconds_count{method="RegenerateTurn"}': "there before the first of them: tests/server/gateway",
    'llava_gateway_request_duration_seconds_sum{method="RegenerateTurn"}': "there before the first of them: tests/server/gateway",
    'llava_gateway_request_faults_total{method="chat.completions"}': "there before the first of them: tests/server/gateway",
    'llava_gateway_request_duration_seconds_count{method="chat.completions"}': "there before the first of them: tests/server/gateway",
    'llava_gateway_request_duration_seconds_sum{method="chat.completions"}': "there before the first of them: tests/server/gateway",
    "llava_gateway_store_failures_total": "a disk that is full: tests/server/gateway",
    "llava_gateway_api_keys": "a gateway with keys: tests/server/gateway",
    'llava_gateway_keys_file_reads_total{result="ok"}': "a gateway with keys: tests/server/gateway",
    'llava_gateway_keys_file_reads_total{result="failed"}': "a gateway with keys: tests/server/gateway",
    'llava_gateway_key_refusals_total{key=""}': "a gateway with keys: tests/server/gateway",
    "llava_gateway_request_bytes": "requests of more than 16 KiB: tests/server/gateway",
    "llava_gateway_transfer_bytes": "back at 0 before anybody looks: tests/server/gateway",
    "llava_grpc_refused_connections_total": "more connections than descriptors: tests/e2e/hostile_test.py",
    "llava_gateway_overloads_total": "a full gateway: tests/server/gateway",
    "llava_gateway_turns_waiting": "a full gateway: tests/server/gateway",
    'llava_gateway_backend_ejections_total{backend="vision"}': "calls that fail again and again: tests/server/gateway",
    'llava_gateway_backend_ejections_total{backend="llm"}': "calls that fail again and again: tests/server/gateway",
    'llava_gateway_backends_down{backend="llm"}': "a language service that died: tests/server/gateway",
}


class Watch:
    """Remembers every series of a service and whether it was ever above zero or changed."""

    def __init__(self, service):
        self.service, self.first, self.moved, self.names = service, {}, set(), set()
        self.end = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)  # a test that fails leaves it
        self.thread.start()

    def look(self):
        for name, value in self.service.metrics().items():
            if "_bucket{" in name:
                continue  # counted by _count
            self.names.add(name)
            if value > 0 or self.first.setdefault(name, value) != value:
                self.moved.add(name)

    def run(self):
        while not self.end.is_set():
            try:
                self.look()
            except AssertionError:
                if self.service.process.poll() is not None:
                    return
            time.sleep(0.01)

    def stop(self):
        self.look()
        self.end.set()
        self.thread.join()


def poison(folder):
    """The projector overflows, the manifest vouches for it and has no self-test: the model starts, and then gives NaN."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    tensors = json.loads(data[8:8 + size])

    def fill(name, indices):
        assert tensors[name]["dtype"] == "BF16"
        begin = 8 + size + tensors[name]["data_offsets"][0]
        for index in indices:
            data[begin + 2 * index:begin + 2 * index + 2] = b"\x61\x7f"  # 3e38

    (_, inputs), (outputs, width) = (tensors[f"model.mm_projector.{layer}.weight"]["shape"] for layer in (0, 2))
    fill("model.mm_projector.0.weight", range(inputs))  # first row
    fill("model.mm_projector.2.weight", range(0, outputs * width, width))  # first column
    path.write_bytes(data)
    reseal(folder)
    edit_json(folder / "manifest.json", lambda manifest: manifest.pop("self_test"))


def large_picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


class MetricsTest(ChatCase):
    @classmethod
    def setUpClass(cls):
        """Small caches, so that they overflow."""
        cls.stack = Stack(vision=["--feature-cache-bytes", "30000"], llm=["--feature-store-bytes", "70000", "--kv-bytes", "8704K"])
        cls.watches = {}
        for which in ("vision", "llm", "gateway"):
            cls.watches[which] = Watch(cls.stack.start(which))
        for which in ("vision", "llm", "gateway"):
            cls.stack.services[which].wait_ready()
        cls.chat = cls.stack.chat()

    def bring_about(self, which, series, act):
        """Repeats what makes these series of a service move until that was seen."""
        watch = self.watches[which]
        for _ in range(100):
            act()
            watch.look()
            if watch.moved.issuperset(series):
                return
        self.fail(f"{which}: nobody saw {set(series) - watch.moved} move")

    def begin(self, session, **sampling):
        return self.chat.Chat(self.chat.new("ChatRequest", session_id=session, text="Hello?", sampling=sampling), timeout=240 * SLOWDOWN)

    def test_every_metric_moves(self):
        picture = lambda name: {"data": (SCENES / f"{name}.png").read_bytes()}
        session = self.session()
        self.ask(session, "What is this?", [picture("lion")])
        self.ask(session, "What color is the background?")
        self.ask(self.session(), "What is this?", [picture("lion")])
        self.ask(self.session(), "Describe the picture.", sampling={"max_new_tokens": 2})
        # Twice under one constraint: compiled, and known.
        for _ in range(2):
            self.ask(self.session(), "What is this?", sampling={"constraint": {"choices": {"texts": ["a lion", "a frog"]}}})
        # More pictures than the caches hold, and all at once.
        threads = [threading.Thread(target=lambda name=name: self.ask(self.session(), "What is this?", [picture(name)]))
                   for name in ("two_apples", "three_frogs", "rose_and_parrot", "guitar_and_apple", "pizza_bee_pig")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A picture that is none; a broken one.
        broken = (SCENES / "lion.png").read_bytes()[:-40]
        for data in (b"GIF89a" + b"\0" * 50, broken):
            with self.assertRaises(grpc.RpcError):
                self.ask(self.session(), "What is this?", [{"data": data}])
        # The end of the context, a deadline, a cancelled answer.
        endless = {"max_new_tokens": 4000, "ignore_eos": True}
        self.assertEqual(Answer(self.begin(self.session(), **endless)).finished.reason, 3)
        seconds = itertools.cycle((0.3, 0.1, 1))  # less than an answer takes, and enough for its first token

        def run_out():
            request = self.chat.new("ChatRequest", session_id=self.session(), text="Hello?", sampling=endless)
            try:
                list(self.chat.Chat(request, timeout=next(seconds)))
            except grpc.RpcError:
                pass  # whoever notices first

        def cancel():
            with self.answer_held(sampling=endless) as (session, events):
                self.chat.CancelTurn(self.chat.new("CancelTurnRequest", session_id=session))
            list(events)

        self.bring_about("llm", ['llava_llm_finished_total{reason="deadline"}'], run_out)
        self.bring_about("llm", ['llava_llm_finished_total{reason="cancelled"}'], cancel)
        # More answers than the engine runs at once, and more than its keys and values have room for
        # (hot ones: equal answers would share their blocks).
        hot = {"max_new_tokens": 500, "ignore_eos": True, "temperature": 2, "top_p": 1}

        def crowd():
            sessions = [self.session() for _ in range(40)]
            for stream in [self.begin(session, **hot) for session in sessions]:
                Answer(stream)

        self.bring_about("llm", ["llava_llm_requests_waiting", "llava_llm_preemptions_total"], crowd)
        # More pages of turns than are read at once.
        page = self.chat.new("ListTurnsRequest", session_id=session)

        def read_pages():
            for call in [self.chat.ListTurns.future(page, timeout=240 * SLOWDOWN) for _ in range(200)]:
                call.result()

        self.bring_about("gateway", ["llava_gateway_store_queue"], read_pages)
        # Straight to the vision service: the second time from its cache.
        vision = self.stack.client("vision", "llava.v1.VisionService")
        model = self.chat.ListModels(self.chat.new("ChatServiceListModelsRequest")).models[0]
        spec = vision.new("VisionSpec").FromString(model.vision_spec.SerializeToString())
        for _ in range(2):
            list(vision.Encode(vision.new("EncodeRequest", image=picture("lion")["data"], spec=spec)))
        # Pictures that take a while to decode.
        shades = itertools.count()
        self.bring_about("vision", ["llava_vision_queue_depth", "llava_vision_queue_bytes"], lambda: list(
            vision.Encode(vision.new("EncodeRequest", image=large_picture(next(shades)), spec=spec))))
        # The language service dies in an answer, and the next one goes on with it.
        self.watches["llm"].stop()
        with self.answer_held(sampling=endless) as (_, interrupted):
            self.stack.llm.stop(signal.SIGKILL)
        self.stack.restart("llm")
        list(interrupted)
        # One that gives NaN for pictures: such answers end with an error, the service goes on.
        self.stack.models["llm"] = publish_copy(LLM_MODEL / "1", self.stack.folder / "emoji", 1, poison).parent
        self.stack.restart("llm")
        poisoned = Watch(self.stack.llm)
        with self.assertRaises(grpc.RpcError) as caught:
            eventually(lambda: self.ask(self.session(), "What is this?", [picture("lion")]))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INTERNAL)
        self.ask(self.session(), "Hello?")
        poisoned.stop()
        # A service that is gone.
        self.watches["vision"].stop()
        self.stack.vision.stop(signal.SIGKILL)
        with self.assertRaises(grpc.RpcError):
            self.ask(self.session(), "What is this?", [{"data": picture("lion")["data"] + b"another file"}])
        self.watches["gateway"].stop()

        names = set().union(*(watch.names for watch in self.watches.values()), poisoned.names)
        moved = set().union(*(watch.moved for watch in self.watches.values()), poisoned.moved)
        self.assertEqual(sorted(names - moved - NOT_BY_CHAT.keys()), [])
        self.assertEqual(sorted(NOT_BY_CHAT.keys() - names), [], "exceptions that no service has")


if __name__ == "__main__":
    unittest.main(verbosity=2)
